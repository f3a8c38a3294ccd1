"""The description of a sweep's run in MLflow. MLflow's page renders Markdown: tables, and images from an address."""

import numpy as np

from storage.tracking import THIS_RUN
from sweeps.probing import text
from sweeps.probing.findings import Findings

NOTED = "answer", "images", "without copies", "balanced", "accuracy", "search passes", "final passes", "cost"
HEAT_MAP = "block_timestep.png"
MAX_LETTERS = 4000
"""The most that the table may have: MLflow takes a description of 8,000."""


def note(found: Findings) -> str:
    """What is known of the answer, the heat map, and its numbers as a table."""
    facts = [f"{name} {fact}" for name, fact in text.facts(found).items() if name in NOTED]
    picture = f"![{found.task.measure} by block and timestep](get-artifact?path={HEAT_MAP}&run_uuid={THIS_RUN})"
    return "\n\n".join([*facts, picture, table(found)])


def table(found: Findings) -> str:
    """The metric in percent, a row a block and a column a timestep, the best in bold; the worst blocks are left out
    where it gets long."""
    space, measured = found.task.space, found.best_accuracies()
    values = 100 * (found.screening.accuracy if measured is None else measured)
    num_images = found.task.num_train if measured is not None else found.screening.rules.rounds[0]
    how = "of the best pooling and head" if measured is not None else "under ridge, one image left out at a time,"
    rows = [
        f"| {name} | {' | '.join(cell_text(value, np.nanmax(values)) for value in of_block)} |"
        for name, of_block in zip(space.block_names, values, strict=True)
    ]
    best_first = np.argsort(-np.nan_to_num(values, nan=-1).max(1), kind="stable")
    lengths = np.cumsum([len(rows[block]) + 1 for block in best_first])
    kept = sorted(best_first[lengths <= MAX_LETTERS])
    left_out = f"; {len(rows) - len(kept)} worse blocks are left out" * (len(kept) < len(rows))
    header = f"| block | {' | '.join(f't = {t}' for t in space.timesteps)} |"
    return "\n".join(
        [
            f"{found.task.measure.capitalize()} (%) {how} on {num_images:,} training images{left_out}:",
            "",
            header,
            "|---" * (1 + len(space.timesteps)) + "|",
            *(rows[block] for block in kept),
        ]
    )


def cell_text(value: float, best: float) -> str:
    if np.isnan(value):
        return ""
    return f"**{value:.1f}**" if value == best else f"{value:.1f}"
