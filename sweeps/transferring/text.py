"""What a person reads of a transfer sweep: its tables and sentences, rendered from the findings."""

from ddae.transfer import Loss
from ddae.units import counted, rounded
from sweeps.cli import aligned
from sweeps.flags import command_of
from sweeps.probing.text import accuracy_text
from sweeps.transferring.findings import Findings, Searched

HEADER = (
    "network", "dataset", "block", "t", "sigma", "pooling", "head", "val", "tied", "forward", "GFLOPs", "raw pixels",
    "passes",
)  # fmt: skip


def report(found: Findings) -> str:
    """What a person reads at the end."""
    lines = ["the best cell of each pair, fitted on all training images; val has chosen it", ""]
    lines += aligned([HEADER, *pair_rows(found)])
    for backbone in found.backbones:
        if len(found.datasets) > 1:
            lines += [
                "",
                f"{backbone}: points lost by the cell chosen on the row, used on the column; * beyond two standard "
                "errors",
            ]
            lines += aligned(regret_rows(found, backbone))
    if found.agreements:
        lines += [
            "",
            "Spearman correlation of two datasets' sites; 95 % interval of what it is without the images' noise, which "
            "lowers it; what equal orders would come to, as their halves tell",
        ]
        lines += aligned([AGREEMENT, *agreement_rows(found)])
    lines += ["", *(f"{name:<15}{fact}" for name, fact in facts(found).items())]
    lines += [f"{'report':<15}{found.folder / 'report.html'}", f"{'trials':<15}{found.tracked}"]
    return "\n".join([*lines, *([f"{'atlas':<15}{found.added}"] if found.added else [])])


def pair_rows(found: Findings) -> list[tuple[str, ...]]:
    """One a pair, under HEADER."""
    return [(each.pair.task.backbone, each.pair.task.dataset, *answer_row(found, each)) for each in found.searched]


def answer_row(found: Findings, each: Searched) -> tuple[str, ...]:
    task, cell = each.pair.task, each.answer.cell
    raw = found.raw_pixels.get(task.dataset)
    return (
        cell.block,
        str(cell.timestep),
        rounded(task.space.sigmas[cell.timestep], 3),
        f"{cell.pooling}x{cell.pooling}",
        cell.head,
        accuracy_text(each.own.last, task.measure),
        f"{len(each.answer.tied)} of {each.answer.num_full}",
        f"{task.space.block(cell.block).flops_share:.2f}",
        rounded(each.gflops(cell), 3),
        accuracy_text(raw, task.measure) if raw else "",
        f"{each.passes:,.0f}",
    )


def regret_rows(found: Findings, backbone: str) -> list[tuple[str, ...]]:
    """A header, and a row a dataset on which a cell was chosen; then the cell that loses least on the mean, and the
    one that the other datasets would have said."""
    regrets, names, under = found.regrets(backbone), found.datasets, found.under(backbone)
    rows = [("chosen on", "cell", *names)]
    for one in names:
        losses = ["own" if one == other else loss_text(regrets[one, other]) for other in names]
        rows.append((one, under[one].answer.cell.name, *losses))
    best = found.for_all(backbone)[0]
    rows.append(("all", best.cell.name, *(loss_text(lost) for lost in found.losses_of(backbone, best.cell).values())))
    if len(names) > 2:
        rows.append(("all the others", "", *(loss_text(lost) for _, lost in found.left_out(backbone).values())))
    return rows


def loss_text(lost: Loss) -> str:
    return f"{lost.points:.1f} +- {lost.stderr:.1f}{'' if lost.is_tied else ' *'}"


AGREEMENT = "network", "over", "datasets", "Spearman", "without noise, 95 %", "equal orders"


def agreement_rows(found: Findings) -> list[tuple[str, ...]]:
    """One a network, a scope and two datasets, under AGREEMENT."""
    return [
        (
            backbone,
            scope,
            f"{one}, {other}",
            f"{each.value:.2f}",
            f"{each.low:.2f} to {each.high:.2f}",
            f"{found.ceiling(backbone, scope, one, other):.2f}",
        )
        for (backbone, scope, one, other), each in found.agreements.items()
    ]


def facts(found: Findings) -> dict[str, str]:
    """What else is to be known, a line each."""
    lines = {f"one for all{number}": one_for_all(found, name) for number, name in numbered(found.backbones)}
    if len(found.datasets) < 2:
        lines = {}
    for number, dataset in numbered(found.datasets):
        lines[f"networks{number}"] = networks(found, dataset)
    images = {
        task.dataset: f"{task.dataset}: chosen by and lost on its {task.num_val:,} val images, sites on its first "
        f"{each.pair.num_site_images:,} training images"
        for each in found.searched
        for task in [each.pair.task]
    }
    return lines | {
        "images": "; ".join(images.values())
        + ". An own cell was chosen on the very val images on which another is said to lose, which makes losses a "
        "little too large; one below 0 is a cell that the dataset's own search has passed over",
        "cost": f"{found.new_passes:,.0f} forward passes were run just now; it takes "
        f"{sum(each.passes for each in found.searched):,.0f} where each image passes once at a timestep; "
        f"{found.wall_seconds:.0f} s",
        "hand one over": f"{commands(found)[0]} fits nothing anew, as its trials stand in the store; then "
        "final_test.py and hand_over.py",
    }


def numbered(names: list[str]) -> list[tuple[str, str]]:
    """Each with the number that its line has, which is empty where there is one."""
    return [("" if len(names) == 1 else f" {number}", name) for number, name in enumerate(names, 1)]


def one_for_all(found: Findings, backbone: str) -> str:
    """The cell with the least mean loss, and how many are as good."""
    best, *others = found.for_all(backbone)
    tied = sum(other.against_best.is_tied for other in others)
    lost = f"loses {best.points:.1f} +- {best.stderr:.1f} points on the mean"
    return f"{backbone}: {best.cell.name} {lost}; {tied} of {len(others)} others are tied"


def networks(found: Findings, dataset: str) -> str:
    """What each loses against the best, on the same val images."""
    (best, _), *others = found.against_best(dataset).items()
    losses = [f"{name} loses {loss_text(lost).removesuffix(' *')}{' (tied)' * lost.is_tied}" for name, lost in others]
    return f"{dataset}: {best} is best" + "".join(f"; {each}" for each in losses)


def carried_rows(found: Findings, dataset: str) -> list[tuple[str, ...]]:
    """A header, and a row a network whose best site is looked for in the others."""
    losses, names = found.carried(dataset), list(found.on(dataset))
    return [
        ("best site of", *(f"in {name}" for name in names)),
        *((one, *("own" if one == other else loss_text(losses[one, other]) for other in names)) for one in names),
    ]


def images_text(found: Findings, dataset: str) -> str:
    """On which images sites are compared."""
    each = next(iter(found.on(dataset).values()))
    return f"the first {counted(each.pair.num_site_images, 'training image', 'training images')}, each left out once"


def commands(found: Findings) -> list[str]:
    """layer_noise.py for each pair."""
    return [command_of(each.pair.config, "layer_noise") for each in found.searched]


def answer_text(found: Findings) -> str:
    """What MLflow notes."""
    best = "; ".join(networks(found, dataset) for dataset in found.datasets)
    if len(found.datasets) < 2:
        return best
    return f"{'; '.join(one_for_all(found, backbone) for backbone in found.backbones)}. {best}"
