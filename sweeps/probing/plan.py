"""What a probing sweep is to do, from its flags: the network and the data, the task, the rules, the folder."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from ddae.backbones import Backbone
from ddae.datasets import Dataset
from ddae.memory import for_fits, machine_bytes
from ddae.units import parse_size, size
from ddae.views import USUAL
from storage.ledger import content_key
from sweeps.cluster.given import FOR_FITS, address
from sweeps.findings import again
from sweeps.flags import ModelAndData, check_numbers
from sweeps.layer_noise import LayerNoise
from sweeps.probing import cost
from sweeps.probing.atlas import warm_start
from sweeps.probing.screening import (
    SEARCH_VAL,
    ScreeningRules,
    bound_search,
    choose_rungs,
    least_searched,
    quarters,
)
from sweeps.probing.source import VAL_FRACTION, input_files, load_model, open_source
from sweeps.probing.space import check_choices, make_space, stored_pooling
from sweeps.probing.task import ProbeTask
from sweeps.search.halving import check_search, plan_round_size
from sweeps.search.samplers import find_sampler


class Setup(NamedTuple):
    task: ProbeTask
    backbone: Backbone
    dataset: Dataset


def set_up(
    config: ModelAndData,
    poolings: tuple[int, ...] = (1,),
    heads: tuple[str, ...] | None = None,
    exhaustive: bool = False,
    seed: int = 0,
    views: int = 1,
    metric: str = "accuracy",
    memory: str = "",
    gpus_per_fit: float = 0,
    search_images: int | Literal["auto", "all"] = "all",
    val_fraction: float = VAL_FRACTION,
    augment: str = USUAL,
    grid: int = 0,
    backbone: Backbone | None = None,
) -> Setup:
    """Load the network and the dataset that the flags name, and check every name and number against them.

    heads: None where none is to be fitted. exhaustive: whether all cells are fitted on all images at once.
    search_images: how many training images the search has at most. val_fraction, augment: as open_source takes them.
    grid: the largest that is stored; by default one from which several poolings follow. backbone: the network, where it
    is loaded. Raises ValueError for what cannot be searched.
    """
    poolings, heads = check_choices(poolings, heads)
    backbone = backbone or load_model(config)
    space = make_space(backbone, config, poolings, heads)
    source, dataset = open_source(config, backbone, grid or stored_pooling(poolings), val_fraction, augment)
    labels = {split: dataset.labels(split) for split in ("train", "val")}
    task = ProbeTask(
        source,
        space,
        space.sites,
        labels,
        dataset.num_classes,
        (len(labels["train"]),),
        seed,
        views,
        dataset.notes,
        dataset.twins,
        metric,
        parse_memory(memory),
        gpus_per_fit if source.fits_on != "cpu" else 0,
    )
    return Setup(task if exhaustive else bounded(task, search_images), backbone, dataset)


def bounded(task: ProbeTask, search_images: int | Literal["auto", "all"]) -> ProbeTask:
    """The task of a search that has at most so many training images. Where these are not all, it stops no trial on
    fewer than it would choose by itself: heads on fewer mislead (docs/log.md)."""
    bound = bound_search(search_images, task.num_train, task.num_classes)
    if bound == task.num_train:
        return replace(task, rungs=choose_rungs(bound, task.num_classes)[-2:])
    return replace(task, rungs=quarters(bound, least_searched(task.num_classes))[-2:], search_val=SEARCH_VAL)


def set_up_search(config: LayerNoise, backbone: Backbone | None = None) -> Setup:
    """The network and the dataset of a search. backbone: the network, where it is loaded."""
    rules_of(config, (1,))  # wrong rules are found before anything is loaded
    check_search(config.search, config.num_trials, config.round_size)
    exhaustive = config.search == "grid"
    check_warm_start(config)
    check_numbers(config, gpus_per_fit=(0, FOR_FITS))
    parse_memory(config.memory)
    if exhaustive and isinstance(config.search_images, int):
        raise ValueError(
            f"search_images={config.search_images} bounds a search, and the grid fits every cell on all images; leave "
            "--search-images out"
        )
    found = set_up(
        config,
        config.poolings,
        config.heads,
        exhaustive,
        config.seed,
        config.views,
        config.metric,
        config.memory,
        config.gpus_per_fit,
        config.search_images,
        backbone=backbone,
    )
    if not address() or config.memory:
        check_fits(found.task, config.memory)
    return found


def check_fits(task: ProbeTask, memory: str) -> None:
    """Raises ValueError where fits on all images have too little memory, or are given more than there is here."""
    if not address():
        has = for_fits(task.device, task.gpus_per_fit) if task.gpus_per_fit else machine_bytes()
        if task.memory_bytes > has:
            more = ", or raise --gpus-per-fit" if task.gpus_per_fit else ""
            raise ValueError(f"memory={memory!r} is more than the {size(has)} that a fit can have here; lower it{more}")
        task = replace(task, memory_bytes=task.memory_bytes or for_fits(task.device, task.part(num_cpus=1)))
    for cell in task.space.cells_at({task.space.timesteps[0]: task.space.block_names}):
        try:
            task.check_memory(cell, task.num_train)
        except ValueError as error:
            raise ValueError(f"{cell.head} at {cell.block} {cell.pooling}x{cell.pooling}: {error}") from error


def parse_memory(text: str) -> int:
    """--memory in bytes; 0 where it is not given."""
    try:
        return parse_size(text) if text else 0
    except ValueError as error:
        raise ValueError(f"memory={error}") from error


def check_warm_start(config: LayerNoise) -> None:
    """Raises ValueError for an atlas that is none, or that is not to be used."""
    if config.warm_start is None:
        return
    if not config.warm_start.is_dir():
        raise ValueError(f"warm_start={str(config.warm_start)!r} is no folder; give an atlas, as out/atlas")
    if config.search == "grid" or config.start != "ridge":
        other = "--search grid" if config.search == "grid" else f"--start {config.start}"
        raise ValueError(f"warm_start={str(config.warm_start)!r} does not go with {other}; leave one of them out")


def rules_of(config: LayerNoise, rungs: tuple[int, ...], warm: bool = False) -> ScreeningRules:
    """How a search screens. rungs: all numbers of images from which rounds and rungs are taken. warm: whether other
    sweeps make the first cut."""
    start = "atlas" if warm else config.start
    exhaustive = config.search == "grid"
    rounds = rungs[:1] if exhaustive or len(rungs) == 1 else rungs[:-1]
    rounds = rounds if start == "ridge" else rounds[1:] or rounds
    return ScreeningRules(rounds, config.keep, config.finalists, start, exhaustive)


def rules_for(config: LayerNoise, task: ProbeTask, warm: bool = False) -> ScreeningRules:
    """A search that is bounded screens on all of its images, one that is not leaves the last rung to the trials."""
    rungs = choose_rungs(task.rungs[-1], task.num_classes)
    return rules_of(config, (*rungs, task.num_train) if task.is_bounded else rungs, warm)


def round_size(config: LayerNoise, task: ProbeTask) -> int:
    """How many cells are proposed at once."""
    planned = plan_round_size(config.search, config.num_trials, len(task.space.cells))
    return planned if config.round_size is None else config.round_size


def sweep_folder(config: LayerNoise, task: ProbeTask) -> Path:
    """out/layer-noise-<hash of all that decides the sweep's trials, but for how many there are>. What an atlas has said
    is kept in the folder; its place is hashed, because it grows."""
    space, rules = task.space, rules_for(config, task)
    key = content_key(
        blocks=space.block_names,
        timesteps=space.timesteps,
        poolings=space.poolings,
        heads=space.heads,
        trials=[task.key(cell, rung) for cell in space.cells[:1] for rung in task.rungs],
        search=(config.search, round_size(config, task), config.seed),
        screening=(rules.rounds, rules.keep, rules.finalists, rules.start),
        **({"warm_start": str(config.warm_start.absolute())} if config.warm_start else {}),
    )
    return config.out / f"{task.name}-{key[:8]}"


def remember(key: str, config: LayerNoise, setup: Setup, folder: Path, printed: str, started_seconds: float) -> None:
    """Have the same command print the same at once, as long as nothing has changed. key, started_seconds: of when this
    one began."""
    source = setup.task.source
    files, there = input_files(config, setup.backbone), [source.ledger, f"{source.store}/{source.folder()}"]
    again.remember(key, folder, printed, started_seconds, files, there)


def list_blocks(config: ModelAndData, every_module: bool = False) -> str:
    """What the model holds: its blocks, or also every other module that returns a map of the image."""
    backbone = load_model(config)
    if every_module:
        listed = {block.module for block in backbone.blocks}
        backbone.add_modules(path for path, _ in backbone.network.named_modules() if path not in listed)
    return cost.block_table(backbone)


def estimate(config: LayerNoise, setup: Setup) -> str:
    """What the sweep will cost."""
    warm = warm_start(sweep_folder(config, setup.task), config.warm_start, setup.task)
    rules = rules_for(config, setup.task, warm.ranking is not None)
    total, of_search = (cost.least_and_most(setup.task, rules, final) for final in (True, False))
    costs = cost.estimate(*setup, *total, of_search=of_search)
    num_trials = min(config.num_trials, len(setup.task.space.cells))
    if find_sampler(config.search).rounds:
        costs += f"\ntrials          {num_trials:,}, in rounds of {round_size(config, setup.task):,}"
    return f"{costs}\nbegins          {warm.said}" if warm.said else costs
