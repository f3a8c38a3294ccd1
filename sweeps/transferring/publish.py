"""Writes what a transfer sweep has found into its folder, and logs it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ddae.report import page
from ddae.report.noise_curves import noise_curves
from ddae.report.page import Page, Section, Table
from ddae.report.transfer import agreements, cost_of_networks, regret_map
from storage.remote import is_address
from storage.secrets import hidden
from storage.tracking import Tracker
from sweeps.findings.publish import Publication
from sweeps.findings.publish import publish as publish_sweep
from sweeps.findings.table import write_csv
from sweeps.findings.versions import versions
from sweeps.flags import as_flags, command_of
from sweeps.probing.source import absolute
from sweeps.probing.text import accuracy_text
from sweeps.search.task import Trial
from sweeps.transfer import Transfer
from sweeps.transferring.findings import Findings, Searched
from sweeps.transferring.text import (
    AGREEMENT,
    HEADER,
    agreement_rows,
    answer_text,
    carried_rows,
    commands,
    facts,
    images_text,
    networks,
    one_for_all,
    pair_rows,
    regret_rows,
    report,
)

KNOWN = "feature", "block", "timestep, t", "sigma", "pooling", "head", "cell, trial", "raw pixels", "ridge, screening"
WORDS = {word: page.WORDS[word] for word in KNOWN} | {
    "site": "A block at a timestep.",
    "forward, GFLOPs": "The share of a forward pass after which the network stops, and billions of operations an image "
    "up to there; a VAE before it is not counted.",
    "regret, lost": "Points of accuracy lost against the dataset's own cell, on the same val images. A loss below two "
    "standard errors is no loss as far as they tell: such cells are tied.",
    "equal orders": "What two datasets would come to whose sites lie in the very same order, as two halves of each "
    "one's images tell: noise alone keeps it below 1.",
    **{word: page.WORDS[word] for word in ("val, test", "Spearman", "\N{PLUS-MINUS SIGN}")},
}


def publish(found: Findings, config: Transfer, tracker: Tracker) -> None:
    publication = Publication(
        report(found),
        draw=lambda: sections(found),
        page=lambda drawn: page_of(found, config, drawn),
        tables={
            name: lambda path, rows=rows: write_csv(path, rows)  # type: ignore[misc]
            for name, rows in {
                "trials.csv": found.trials,
                "regret.csv": regrets(found),
                "agreement.csv": orders(found),
            }.items()
            if rows
        },
        trials=[(each.pair.task, trial) for each in found.searched for trial in each.trials],
        metrics={"wall_seconds": found.wall_seconds, "forward_passes": sum(each.passes for each in found.searched)},
        note=lambda: answer_text(found),
        results=lambda: results(found, config),
        undrawn=[found.not_added],
    )
    publish_sweep(publication, found.folder, tracker)


def flags_of(config: Transfer) -> dict[str, Any]:
    """As plain YAML and JSON know them, for any working folder."""
    return as_flags(
        replace(
            config,
            backbones=tuple(map(absolute, config.backbones)),
            datasets=tuple(map(absolute, config.datasets)),
            data_root=str(Path(config.data_root).absolute()),
            out=config.out.absolute(),
            store=config.store if is_address(config.store) else str(Path(config.store).absolute()),
        )
    )


def merit(each: Searched) -> float:
    return each.pair.task.objectives[0].merit(each.own.last)


def page_of(found: Findings, config: Transfer, drawn: Sequence[Section]) -> Page:
    best = max(found.searched, key=merit)
    several = len(found.datasets) > 1
    return Page(
        title=f"{', '.join(found.backbones)} on {', '.join(found.datasets)}",
        cell=f"{best.answer.cell.name} of {best.pair.name}, the best of {len(found.searched)} pairs",
        accuracy=accuracy_text(best.own.last, best.pair.task.measure),
        test="The test images have not been looked at.",
        facts=facts(found) | {"trials": found.tracked},
        tied=Table(HEADER, pair_rows(found)),
        sections=drawn,
        command=hidden(command_of(config, "transfer")),
        versions=versions(
            **{
                f"network {name}": each.pair.task.source.key.backbone[:12]
                for name, each in found.on(found.datasets[0]).items()
            },
            **{
                f"images of {name}": each.pair.task.source.key.images[:12]
                for name, each in found.under(found.backbones[0]).items()
            },
        ),
        says="of the val images are classified correctly by",
        words=WORDS if several else {word: said for word, said in WORDS.items() if word != "equal orders"},
    )


def sections(found: Findings) -> list[Section]:
    figures, drawn = found.folder / "figures", []
    if len(found.datasets) > 1:
        for number, backbone in enumerate(found.backbones):
            drawn.append(transfers(found, backbone, figures / f"regret-{number}.png"))
        if found.agreements:
            drawn.append(same_order(found, figures / "agreement.png"))
    for number, dataset in enumerate(found.datasets):
        drawn.append(costs(found, dataset, figures / f"cost-{number}.png"))
        drawn.append(noise(found, dataset, figures / f"sigma-{number}.png"))
    return drawn


def transfers(found: Findings, backbone: str, path: Path) -> Section:
    header, *rows = regret_rows(found, backbone)
    return Section(
        f"Does one cell of {backbone} serve all datasets?",
        one_for_all(found, backbone) + ".",
        "Chosen on the row, fitted and judged on the column's images, against the column's own cell; a frame is a loss "
        "of more than two standard errors. The last rows are the cell with the least mean loss, and the one that the "
        "other datasets would have said.",
        regret_map(found.regrets(backbone), found.datasets, "points lost, with paired standard errors", path),
        "points lost by the cell of each dataset on each other one",
        Table(header, rows),
    )


def same_order(found: Findings, path: Path) -> Section:
    rows = {
        f"{scope}: {backbone}, {one} and {other}": (each, found.ceiling(backbone, scope, one, other))
        for (backbone, scope, one, other), each in found.agreements.items()
    }
    return Section(
        "Are the sites in the same order?",
        "Two datasets order the sites of a network as differently as the diamond lies from the grey tick.",
        "Accuracy of ridge at every site, each image left out once. Lines are 95 % intervals of a bootstrap over the "
        "images for the correlation without their noise, which pulls it towards 0: they may lie above the diamond. "
        "Over blocks and over timesteps it is the mean of the correlations at each of the other.",
        agreements(rows, path),
        "Spearman correlations between datasets",
        Table(AGREEMENT, agreement_rows(found)),
    )


def costs(found: Findings, dataset: str, path: Path) -> Section:
    on = found.on(dataset)
    measure = next(iter(on.values())).pair.task.measure
    raw, metric = found.raw_pixels.get(dataset), next(iter(on.values())).pair.task.objectives[0].metric
    return Section(
        f"What does accuracy on {dataset} cost?",
        networks(found, dataset) + ".",
        "Filled, with its standard error: a network's answer, fitted on all training images; hollow: the other cells "
        "that were. The line is the Pareto front.",
        cost_of_networks(
            {name: points(each) for name, each in on.items()}, raw.metrics[metric] if raw else None, measure, path
        ),
        "val accuracy against GFLOPs, a mark a network",
    )


def points(each: Searched) -> list[tuple[float, float, float]]:
    """(GFLOPs, accuracy, standard error) of the answer, and of the other cells on all images."""
    task = each.pair.task
    name, error = f"val_{task.metric}", f"val_{task.metric.replace('accuracy', 'stderr')}"
    full = [trial for trial in each.trials if trial.rung == task.num_train and trial.cell != each.answer.cell]
    trials: list[Trial] = [each.own, *full]
    return [(each.gflops(t.cell), t.last.metrics[name], t.last.metrics[error]) for t in trials]


def noise(found: Findings, dataset: str, path: Path) -> Section:
    header, *rows = carried_rows(found, dataset)
    several = len(found.backbones) > 1
    carried = "The best site of one network, looked for in another at the nearest noise and depth, loses there what "
    return Section(
        f"At which noise is each network best on {dataset}?",
        f"{carried}the table says." if several else "The best block at each noise level.",
        f"Ridge at the best block, on {images_text(found, dataset)}. Sigma is noise against image; clean images stand "
        "at 0.001. Latents and pixels of the same sigma are not equally hard to see.",
        noise_curves(found.by_sigma(dataset), {}, path, "accuracy of ridge (%)"),
        "accuracy against sigma, a line a network",
        Table(header, rows) if several else None,
    )


def regrets(found: Findings) -> list[dict[str, Any]]:
    """A row a network and two datasets."""
    return [
        {
            "backbone": backbone,
            "chosen_on": one,
            "used_on": other,
            "cell": found.chosen(backbone)[one].name,
            "points_lost": lost.points,
            "stderr": lost.stderr,
            "tied": lost.is_tied,
        }
        for backbone in found.backbones
        for (one, other), lost in found.regrets(backbone).items()
    ]


def orders(found: Findings) -> list[dict[str, Any]]:
    """A row a network, a scope and two datasets."""
    return [
        {"backbone": backbone, "over": scope, "dataset": one, "other": other, "spearman": each.value, "low": each.low,
         "high": each.high, "equal_orders": found.ceiling(backbone, scope, one, other)}
        for (backbone, scope, one, other), each in found.agreements.items()
    ]  # fmt: skip


def results(found: Findings, config: Transfer) -> dict[str, Any]:
    """All numbers, as JSON knows them."""
    return {
        "task": "transfer",
        "flags": flags_of(config),
        "answer": {name: [asdict(each) for each in found.for_all(name)] for name in found.backbones},
        "pairs": [pair_as_json(each) for each in found.searched],
        "raw_pixels": {name: dict(result.metrics) for name, result in found.raw_pixels.items()},
        "regret": regrets(found),
        "left_out": {
            backbone: {name: {"cell": cell.name, **asdict(lost)} for name, (cell, lost) in left.items()}
            for backbone in found.backbones
            for left in [found.left_out(backbone)]
        },
        "agreement": orders(found),
        "networks": {
            dataset: {name: asdict(lost) for name, lost in found.against_best(dataset).items()}
            for dataset in found.datasets
        },
        "carried": {
            dataset: [
                {"best_site_of": one, "in": other, **asdict(lost)}
                for (one, other), lost in found.carried(dataset).items()
            ]
            for dataset in found.datasets
        },
        "commands": commands(found),
        "new_passes": found.new_passes,
        "wall_seconds": found.wall_seconds,
    }


def pair_as_json(each: Searched) -> dict[str, Any]:
    task, cell = each.pair.task, each.answer.cell
    return {
        "backbone": task.backbone,
        "dataset": task.dataset,
        "cell": asdict(cell),
        "sigma": task.space.sigmas[cell.timestep],
        "depth": task.space.block(cell.block).flops_share,
        "gflops": each.gflops(cell),
        **each.own.last.metrics,
        "num_train": task.num_train,
        "num_val": task.num_val,
        "tied": [trial.cell.name for trial in each.answer.tied],
        "fitted": {cell.name: dict(trial.last.metrics) for cell, trial in each.fitted.items()},
        "blocks": list(task.space.block_names),
        "depths": [block.flops_share for block in task.space.blocks],
        "timesteps": list(task.space.timesteps),
        "sigmas": list(task.space.sigmas.values()),
        "site_images": each.pair.num_site_images,
        "site_accuracy": each.right.mean(-1).tolist(),
        "passes": each.passes,
    }
