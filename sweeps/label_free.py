"""Rank every (block, timestep) of a diffusion model on images alone: no label is read, no head is fitted.

    python sweeps/label_free.py                                       # the model and images that ship with it
    python sweeps/label_free.py --backbone ./my-model --dataset ./my-images --timesteps 0 50 100

Two noise draws of 256 images pass the network once a timestep; alignment and uniformity (DDAE paper, equations 3-4) of
every block are standardised and summed. Prints the first ten and writes a heat map and a table.
"""

import csv
from dataclasses import dataclass

from sweeps import cli


@dataclass(frozen=True)
class LabelFreeRanking(cli.ModelAndData):
    num_images: int = 256
    """So many training images, or all if there are fewer, in two noise draws each."""


def main(config: LabelFreeRanking) -> None:
    from ddae.report import heat_map
    from sweeps.tuning.estimate import estimate
    from sweeps.tuning.outcome import best_cells
    from sweeps.tuning.plan import make_plan
    from sweeps.tuning.run import Sweep, check_cluster, ray_cluster

    plan, backbone, dataset = make_plan(config)
    if config.num_images < 2:
        raise ValueError(f"num_images={config.num_images} must be 2 or more, because uniformity is of pairs")
    needs = plan.label_free_needs(config.num_images)
    passes = 2 * plan.space.forward_passes(needs)
    if config.dry_run:
        print(estimate(plan, backbone, dataset, passes, passes))
        return
    check_cluster()
    folder = config.out / f"label-free-{plan.folder().rpartition('/')[2]}"
    cli.check_writable(folder, plan.store)
    with ray_cluster(), Sweep(plan, passes) as sweep:
        scores = sweep.label_free(config.num_images)
    names = [block.name for block in plan.space.blocks]
    order = best_cells(plan, scores.ranking, scores.ranking.size)
    heat_map(
        scores.ranking,
        names,
        plan.sigmas,
        "alignment and uniformity, standardised; higher is better",
        f"label-free ranking on {needs[0].num_images} images   * its first",
        folder / "label_free.png",
        star=order[0],
    )
    with (folder / "label_free.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        header = ["block", "timestep", "sigma", *scores.scores, "ranking"]
        writer.writerow(header)
        print("  ".join(f"{name:>10}" for name in header))
        for place, (block, timestep) in enumerate(order):
            at = names.index(block), plan.space.timesteps.index(timestep)
            numbers = (plan.sigmas[timestep], *(table[at] for table in scores.scores.values()), scores.ranking[at])
            row = [block, str(timestep), *(f"{number:.3f}" for number in numbers)]
            writer.writerow(row)
            if place < 10:
                print("  ".join(f"{cell:>10}" for cell in row))
    print(f"\nheat map  {folder / 'label_free.png'}\ntable     {folder / 'label_free.csv'}")


if __name__ == "__main__":
    cli.run(main, LabelFreeRanking, __doc__)
