"""What a warm start saves and loses: every dataset is left out once, and begun where sweeps on the others have ended.

    python benchmarks/warm_start.py --backbones A B C --datasets W X Y Z          # goes on where it was stopped

Three ways with the same network, images and seed: the search as it is, the search that begins from an atlas of the
other datasets (--warm-start), and one fixed rule, all poolings and heads at the block nearest 0.55 of the FLOPs and the
timestep nearest sigma 0.1. A seed shuffles the training images and splits val into a half that the ways see and one
that they do not. Lost: accuracy of the answer of the search as it is, minus that of the other's, in points, on images
that chose nothing, each answer fitted on all training images. Passes: full forward passes over the training images, of
all that an answer takes.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from statistics import mean

import record
import torch
import tyro
from play import JUDGES, Play
from search_cost import NUM_TRIALS, mean_and_error, wait

from ddae.transfer import nearest_site
from sweeps.findings.answer import choose
from sweeps.findings.atlas import Entry
from sweeps.layer_noise import LayerNoise
from sweeps.probing.atlas import advise, entry_of
from sweeps.probing.extractor import opened
from sweeps.probing.plan import rules_for
from sweeps.probing.source import Need
from sweeps.probing.space import Cell
from sweeps.transfer import Transfer
from sweeps.transferring.setup import PairTask, open_pairs

Case = tuple[PairTask, int]
DEPTH, SIGMA = 0.55, 0.1
"""Where the fixed rule looks."""


@dataclass(frozen=True)
class WarmStarts:
    backbones: tuple[str, ...] = ("ddpm-fashion-mnist",)
    datasets: tuple[str, ...] = ("fashion-mnist-8k", "digits")
    sigmas: tuple[float, ...] = ()
    poolings: tuple[int, ...] = (1, 2, 4)
    heads: tuple[str, ...] = ("linear", "mlp")
    num_trials: int = NUM_TRIALS
    seeds: int = 3
    processes: int = 2
    store: str = "out/store"
    data_root: str = "data"
    name: str = "warm_start"
    """The file's, in results/."""


@dataclass(frozen=True)
class Played:
    way: str
    backbone: str
    dataset: str
    seed: int
    answer: str
    passes: float
    """Over the training images."""
    lost: dict[str, float]
    """Points, against the search as it is, by each of the judges."""


def main(config: WarmStarts) -> None:
    flags = Transfer(
        backbones=config.backbones, datasets=config.datasets, sigmas=config.sigmas, poolings=config.poolings,
        heads=config.heads, store=config.store, data_root=config.data_root,
    )  # fmt: skip
    tasks = [
        replace(pair.task, labels={**pair.task.labels, "test": setup.dataset.labels("test")})
        for pair, setup in open_pairs(flags)
    ]
    with ProcessPoolExecutor(config.processes, get_context("spawn"), torch.set_num_threads, (1,)) as workers:
        wait(
            "extraction", [workers.submit(extract, task, *site) for task in tasks for site in task.space.sites.items()]
        )
        cases = [(task, seed) for seed in range(config.seeds) for task in tasks]
        cold = wait("searches", [workers.submit(search, *case, (), config.num_trials) for case in cases])
        entries = [entry for _, _, entry in cold]
        jobs = [
            workers.submit(compare, *case, cell, elsewhere(case, cases, entries), config.num_trials)
            for case, (cell, _, _) in zip(cases, cold, strict=True)
        ]
        played = [each for of_case in wait("warm starts and the rule", jobs) for each in of_case]
        played += [
            Played("as it is", t.backbone, t.dataset, seed, cell.name, passes / t.num_train, dict.fromkeys(JUDGES, 0.0))
            for (t, seed), (cell, passes, _) in zip(cases, cold, strict=True)
        ]
    rows = {way: summary([one for one in played if one.way == way]) for way in dict.fromkeys(one.way for one in played)}
    for way, row in rows.items():
        lost = "  ".join("{:5.2f} +- {:4.2f} on {}".format(*row["lost"][judge], judge) for judge in JUDGES)
        print(f"{way:<12} {row['passes']:.2f} passes  lost {lost}")
    record.write(config.name, {"ways": rows, "played": [asdict(one) for one in played]})


def extract(task: PairTask, timestep: int, blocks: tuple[str, ...]) -> None:
    for split, labels in task.labels.items():
        opened(task.source).ensure(Need(timestep, split, len(labels), blocks))


def elsewhere(case: Case, cases: Sequence[Case], entries: Sequence[Entry]) -> list[Entry]:
    """The entries of all cases with the same seed on other datasets; advise() prefers those of the same network."""
    (task, seed), others = case, zip(cases, entries, strict=True)
    return [entry for (other, its), entry in others if its == seed and other.dataset != task.dataset]


def search(task: PairTask, seed: int, entries: Sequence[Entry], num_trials: int) -> tuple[Cell, float, Entry]:
    """The answer of a search that begins as the entries advise, the passes that it took, and its own entry."""
    play, advice = Play(task, seed), advise(task, entries)
    rules = rules_for(LayerNoise(), task, advice.ranking is not None)
    screening = play.screen(rules, ranking=advice.ranking)
    play.trials("optuna", task.rungs, num_trials, screening, won=advice.cells)
    answer = choose(task, list(play.full.values()), task.space.cost)
    return answer.cell, passes_of(play), entry_of(f"benchmark-{seed:08}", task, screening, answer, None)


def fixed_rule(task: PairTask, seed: int) -> tuple[Cell, float]:
    """The best pooling and head at one site that nobody searched for."""
    play, space = Play(task, seed), task.space
    block, column = nearest_site(DEPTH, SIGMA, [each.flops_share for each in space.blocks], list(space.sigmas.values()))
    play.sites = {space.timesteps[column]: (space.block_names[block],)}
    for cell in space.cells_at(play.sites):
        play.fit(cell, task.rungs[-1], play.sites)
    return play.answer(), passes_of(play)


def compare(task: PairTask, seed: int, cold: Cell, entries: Sequence[Entry], num_trials: int) -> list[Played]:
    """The warm start and the fixed rule against the answer of the search as it is."""
    warm, warm_passes, _ = search(task, seed, entries, num_trials)
    found = {"warm start": (warm, warm_passes), "fixed rule": fixed_rule(task, seed)}
    judge = Play(task, seed)
    return [
        Played(way, task.backbone, task.dataset, seed, cell.name, passes / task.num_train, judge.regret(cell, cold))
        for way, (cell, passes) in found.items()
    ]


def passes_of(play: Play) -> float:
    return play.task.space.forward_passes(play.needs + play.final_needs(play.answer()))


def summary(played: Sequence[Played]) -> dict:
    """Mean passes, and mean and standard error of the losses over networks, datasets and seeds."""
    lost = {judge: mean_and_error([one.lost[judge] for one in played]) for judge in JUDGES}
    return {
        "passes": mean(one.passes for one in played),
        "lost": lost,
        "worst": max(one.lost["test"] for one in played),
    }


if __name__ == "__main__":
    main(tyro.cli(WarmStarts, description=__doc__))
