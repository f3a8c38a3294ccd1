"""Which combination of label-free scores ranks sites best on a pair of network and images that did not choose it.

    python benchmarks/consensus.py        # from the tables that benchmarks/label_free_tables.py has left in results/

Candidates: every set of one to three scores, their merits standardised over the sites and summed, or their ranks
averaged; and all scores under non-negative weights that are fitted to the standardised accuracies. The side of a score
that no source tells apart is taken either way (a minus). The loss of a candidate on a pair is the regret of its first
choice in points, plus one minus its Spearman over the blocks at one timestep. Leave-one-pair-out: the candidate with
the least loss on the other pairs is judged on the one left out.
"""

import json
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import record
import tyro
from scipy.optimize import nnls
from scipy.stats import rankdata

from ddae import label_free

EITHER_WAY = "next_blocks", "high_frequencies", "curvature", "prompt_entropy", "matrix_entropy"
PAPER = ("alignment", "uniformity")
SHIPPED = tuple(name for name in label_free.CONSENSUS if name in label_free.SCORES)
MOST = 3
"""Scores in a set."""


@dataclass(frozen=True)
class Pair:
    name: str
    names: tuple[str, ...]
    merits: np.ndarray
    """[draws, scores, blocks, timesteps], higher is better."""
    accuracy: np.ndarray
    """[blocks, timesteps], per cent."""
    regret: np.ndarray

    def standardised(self, ranks: bool) -> np.ndarray:
        values = self.merits.reshape(*self.merits.shape[:2], -1)
        values = rankdata(values, axis=-1) if ranks else values
        spread = values.std(-1, keepdims=True).clip(1e-12)
        return ((values - values.mean(-1, keepdims=True)) / spread).reshape(self.merits.shape)

    def judge(self, combined: np.ndarray) -> np.ndarray:
        """(regret, Spearman over the blocks at one timestep, over all sites) of [..., blocks, timesteps]."""
        flat = combined.reshape(*combined.shape[:-2], -1)
        within = correlation(rankdata(combined, axis=-2), rankdata(self.accuracy, axis=0), -2).mean(-1)
        overall = correlation(rankdata(flat, axis=-1), rankdata(self.accuracy.ravel()), -1)
        return np.stack([self.regret.ravel()[flat.argmax(-1)], within, overall])


def main() -> None:
    pairs = [read(path) for path in sorted(record.RESULTS.glob("label_free_table_*.json"))]
    names = pairs[0].names
    sets = [each for size in range(1, MOST + 1) for each in combinations(range(len(names)), size)]
    sets = [each for each in sets if not {"-" + names[n] for n in each} & {names[n] for n in each}]
    judged = {}
    for how in ("sum", "ranks"):
        each = [judge_sets(pair, sets, how == "ranks") for pair in pairs]  # [3, sets] a pair
        judged |= {
            (how, tuple(names[n] for n in one)): np.stack([at[:, k] for at in each]) for k, one in enumerate(sets)
        }
    results = {f"{how}: {' + '.join(one)}": values for (how, one), values in judged.items()}
    show("alone", {name: results[f"sum: {name}"] for name in names}, pairs)
    paper, shipped = (f"sum: {' + '.join(each)}" for each in (PAPER, SHIPPED))
    best = sorted(results, key=lambda name: loss(results[name]).mean())[:10]
    show(
        "together: the paper's two, what ships, and the ten of least loss on all pairs",
        {n: results[n] for n in (paper, shipped, *best)},
        pairs,
    )
    left_out = {"chosen on the others": [], "weights fitted on the others": []}
    for n, pair in enumerate(pairs):
        others = [k for k in range(len(pairs)) if k != n]
        chosen = min(results, key=lambda name: loss(results[name][others]).mean())
        weights = fit([pairs[k] for k in others])
        print(
            f"without {pair.name}: {chosen}; weights "
            + ", ".join(f"{names[k]} {weights[k]:.2f}" for k in weights.nonzero()[0])
        )
        left_out["chosen on the others"].append(results[chosen][n])
        combined = np.tensordot(pair.standardised(False), weights, (1, 0))
        left_out["weights fitted on the others"].append(pair.judge(combined).mean(1))
    left = {name: np.stack(rows) for name, rows in left_out.items()}
    show("each pair left out", {**left, "what ships": results[shipped], "the paper's two": results[paper]}, pairs)
    keep = {**{name: results[name] for name in (*best, paper, shipped)}, **left}
    record.write(
        "consensus",
        {"pairs": [pair.name for pair in pairs], **{name: np.round(rows, 3).tolist() for name, rows in keep.items()}},
    )


def read(path) -> Pair:
    table = json.loads(path.read_text())
    shape = len(table["blocks"]), len(table["timesteps"])
    merits = {}
    for name, values in table["scores"].items():
        if name in label_free.SCORES:
            merits[name] = label_free.SCORES[name].merit(np.array(values))
            if name in EITHER_WAY:
                merits["-" + name] = -merits[name]
    stacked = np.stack(list(merits.values()), axis=1).reshape(-1, len(merits), *shape)
    accuracy, regret = (np.array(table[name]).reshape(shape) for name in ("accuracy", "regret"))
    return Pair(path.stem.removeprefix("label_free_table_"), tuple(merits), stacked, accuracy, regret)


def judge_sets(pair: Pair, sets: list[tuple[int, ...]], ranks: bool) -> np.ndarray:
    """[3, sets], the mean over the draws."""
    values, found = pair.standardised(ranks), []
    for start in range(0, len(sets), 500):
        combined = np.stack([values[:, list(each)].sum(1) for each in sets[start : start + 500]])
        found.append(pair.judge(combined).mean(-1))
    return np.concatenate(found, axis=1)


def fit(pairs: list[Pair]) -> np.ndarray:
    """Non-negative weights [scores] by least squares on the standardised accuracies, within timesteps and over all."""
    rows, targets = [], []
    for pair in pairs:
        for values in pair.standardised(False):
            for centre in (lambda x: x - x.mean((-2, -1), keepdims=True), lambda x: x - x.mean(-2, keepdims=True)):
                rows.append(centre(values).reshape(len(values), -1).T)
                targets.append(centre(pair.accuracy).ravel() / pair.accuracy.std())
    return nnls(np.concatenate(rows), np.concatenate(targets))[0]


def loss(rows: np.ndarray) -> np.ndarray:
    """[pairs] of [pairs, 3]. A regret below 0 is no gain: the best site was chosen on other images than judge it."""
    return rows[:, 0].clip(0) + 1 - rows[:, 1]


def correlation(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    a, b = (x - x.mean(axis, keepdims=True) for x in (a, b))
    return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis)).clip(1e-12)


def show(title: str, rows: dict[str, np.ndarray], pairs: list[Pair]) -> None:
    """regret / Spearman at one timestep / over all sites."""
    width = max(map(len, rows))
    print(f"\n{title}: regret / Spearman at one timestep / over all sites")
    print(f"{'':{width}}  loss  " + "  ".join(f"{pair.name:>18}" for pair in pairs))
    for name, values in rows.items():
        cells = "  ".join(f"{a:6.2f} /{b:5.2f} /{c:5.2f}" for a, b, c in values)
        print(f"{name:{width}}  {loss(values).mean():4.2f}  {cells}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
