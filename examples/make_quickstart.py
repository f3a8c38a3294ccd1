"""Writes quickstart.ipynb beside itself, without outputs: `python examples/make_quickstart.py`."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")
CELLS = (
    """# From a diffusion model to a classifier
The model and the images ship with the project. Here two blocks at two timesteps are searched; `LayerNoise()` is what
`python sweeps/layer_noise.py` does, all blocks and seven timesteps.""",
    (
        "import pandas",
        "from IPython.display import Image, display",
        "",
        "import ddae",
        "from sweeps.hand_over import HandOver, main",
        "from sweeps.layer_noise import LayerNoise, sweep",
        "",
        'config = LayerNoise(blocks=("mid", "up.1.0"), timesteps=(10, 120), poolings=(1, 2), heads=("linear",), '
        "num_trials=6)",
        "findings = sweep(config)",
        "findings.answer.cell, findings.answer.result.metrics",
    ),
    """Run this cell again, or stop it in the middle: nothing is computed twice. Every trial is a row, best first;
those that are statistically tied with the best are equals.""",
    (
        'print(len(findings.answer.tied), "cells are statistically tied with the best")',
        "pandas.DataFrame(findings.trials)",
    ),
    "The figures of `report.html`, which lies in the sweep's folder:",
    (
        'for path in sorted((findings.folder / "figures").glob("*.png")):',
        "    display(Image(path, width=600))",
    ),
    """Blocks of one pass can be read together at no more cost. What is fused is compared with the answer on the same
val images, and is the answer only where it gains more than a standard error.""",
    (
        "from sweeps import finetune, fuse",
        "",
        'fuse.main(fuse.Fuse(sweep=findings.folder, heads=("joint-ridge",), num_trials=4))',
    ),
    """The network itself can be trained on, cut after the answer's block and with its head on top. Here it is on 200
labels for 30 steps and with one seed, which shows how and not how well; `python sweeps/finetune.py` compares it with
the same network from scratch and frozen, on all labels and with three seeds.""",
    (
        'short = {"num_labels": (200,), "epochs": (3,), "batch_size": 20, "num_trials": 1, "seeds": 1}',
        'one = {"init": ("finetune",), "augment": ("none",), "learning_rates": (1e-3,), "head_start": ("probe",)}',
        "finetune.main(finetune.Finetune(sweep=findings.folder, **short, **one))",
    ),
    """The sweep's answer as a scikit-learn estimator; the folders of the other two are handed over in the same way.
`python sweeps/final_test.py` measures it on the test images, once.""",
    (
        "main(HandOver(sweep=findings.folder))",
        "winner = ddae.load(findings.folder)",
        '[example] = winner.predict([str(findings.folder / "example.png")])',
        "winner.class_names_[example]",
    ),
)
"""Texts, and lines of code."""


def cell(number: int, content: str | tuple[str, ...]) -> dict:
    is_text = isinstance(content, str)
    made = {"id": f"cell-{number}", "metadata": {}}
    made |= {} if is_text else {"execution_count": None, "outputs": []}
    source = (content if is_text else "\n".join(content)).splitlines(keepends=True)
    return dict(sorted({"cell_type": "markdown" if is_text else "code", **made, "source": source}.items()))


def notebook() -> str:
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    cells = [cell(number, content) for number, content in enumerate(CELLS)]
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook())
