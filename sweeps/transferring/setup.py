"""The pairs of a transfer sweep, from its flags: each a network, a dataset, and a probing task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ddae.backbones import Backbone
from ddae.noise_ablation import nearest_timesteps
from storage.ledger import content_key
from sweeps.flags import check_numbers
from sweeps.layer_noise import LayerNoise
from sweeps.probing import plan
from sweeps.probing.atlas import short_name
from sweeps.probing.screening import MIN_IMAGES_A_CLASS, ScreeningRules
from sweeps.probing.source import Need, load_model
from sweeps.probing.space import Cell
from sweeps.probing.task import ProbeTask, Read
from sweeps.search.task import Value
from sweeps.transfer import Transfer

SITE_IMAGES = 500
"""Training images on which every site is screened by default: an accuracy of 80 % is known to 1.8 points."""


@dataclass(frozen=True)
class PairTask(ProbeTask):
    """The task of a pair, whose trials say which pair they are of. Its results are those of layer_noise.py."""

    backbone: str = ""
    dataset: str = ""

    def label(self, cell: Read) -> str:
        return f"{self.backbone} on {self.dataset}: {cell.name}"

    def params(self, cell: Cell) -> dict[str, Value]:
        return {"backbone": self.backbone, "dataset": self.dataset, **super().params(cell)}

    def of_cells(self, cells: Sequence[Cell]) -> "PairTask":
        """The task of fitting these cells alone, on all images; one pass serves all their blocks at a timestep."""
        sites: dict[int, tuple[str, ...]] = {}
        for cell in cells:
            blocks = {cell.block, *sites.get(cell.timestep, ())}
            sites[cell.timestep] = tuple(name for name in self.space.block_names if name in blocks)
        return replace(self, rungs=(self.num_train,), sites=sites)


@dataclass(frozen=True)
class Pair:
    config: LayerNoise
    """As layer_noise.py would be asked to search it."""
    task: PairTask
    num_site_images: int
    """On which every site is screened."""

    @property
    def name(self) -> str:
        return f"{self.task.backbone} on {self.task.dataset}"

    @property
    def every_site(self) -> ScreeningRules:
        return ScreeningRules((self.num_site_images,), exhaustive=True)

    @property
    def gflops(self) -> float:
        """Those of a full forward pass of one image."""
        return self.task.source.flops / 1e9


@dataclass(frozen=True)
class Setup:
    config: Transfer
    pairs: tuple[Pair, ...]
    """Those of the first backbone with every dataset first."""

    @property
    def folder(self) -> Path:
        """out/transfer-<hash of all that decides the sweep's trials, but for how many there are>."""
        names = [(plan.sweep_folder(pair.config, pair.task).name, pair.num_site_images) for pair in self.pairs]
        return self.config.out / f"transfer-{content_key(pairs=names)[:8]}"


def set_up(config: Transfer) -> Setup:
    """Load every network and dataset once, and check them against the flags; the networks themselves are not kept.
    Raises ValueError for what cannot be searched."""
    return Setup(config, tuple(pair for pair, _ in open_pairs(config)))


def open_pairs(config: Transfer) -> Iterator[tuple[Pair, plan.Setup]]:
    """Every pair, with its network and dataset as long as it is looked at."""
    check(config)
    names = [short_names(each) for each in (config.backbones, config.datasets)]
    for backbone, short in zip(config.backbones, names[0], strict=True):
        network: Backbone | None = None
        for dataset, shorter in zip(config.datasets, names[1], strict=True):
            search = searched(config, backbone, dataset)
            try:
                network = network or load_model(search)
                search = replace(search, timesteps=timesteps_of(network, config.sigmas))
                found = plan.set_up_search(search, network)
            except ValueError as error:
                if backbone in str(error) or dataset in str(error):
                    raise
                raise ValueError(f"{short} on {shorter}: {error}") from error
            kept = {each.name: getattr(found.task, each.name) for each in fields(ProbeTask) if each.init}
            task = PairTask(**kept, backbone=short, dataset=shorter)
            yield Pair(search, task, num_site_images(config, task)), found


def short_names(names: Sequence[str]) -> list[str]:
    """The names without their folders, where that leaves them different."""
    found = [short_name(name) for name in names]
    return found if len(set(found)) == len(found) else list(names)


def searched(config: Transfer, backbone: str, dataset: str) -> LayerNoise:
    """The flags of layer_noise.py for a pair. What is to be known of a dataset is looked up and said once, but where
    images are left out that cannot be read: every network has to leave out the same."""
    shared = {each.name for each in fields(LayerNoise)} & {each.name for each in fields(Transfer)} - {"sync", "dry_run"}
    check_data = config.check_data and (config.skip_unreadable or backbone == config.backbones[0])
    given = {name: getattr(config, name) for name in shared} | {"check_data": check_data}
    return LayerNoise(**given | {"backbone": backbone, "dataset": dataset})


def timesteps_of(backbone: Backbone, sigmas: Sequence[float]) -> tuple[int, ...]:
    """Those nearest to the sigmas; none where the network is to choose. A network of clean images has its one."""
    schedule = backbone.schedule
    if not sigmas or len(schedule.timesteps) == 1:
        return ()
    found = tuple(nearest_timesteps(schedule, sigmas).values())
    if not found:
        least, most = (schedule.sigma(at) for at in (schedule.timesteps[0], schedule.timesteps[-1]))
        raise ValueError(
            f"sigmas={list(sigmas)} are all beyond the noise that the network knows, {min(least, most):.3g} to "
            f"{max(least, most):.3g}; give some between"
        )
    return found


def num_site_images(config: Transfer, task: ProbeTask) -> int:
    return min(task.num_train, config.site_images or max(SITE_IMAGES, MIN_IMAGES_A_CLASS * task.num_classes))


def check(config: Transfer) -> None:
    """Raises ValueError for flags that make no sense, before anything is loaded."""
    for name in ("backbones", "datasets"):
        given = getattr(config, name)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"{name}={list(given)}: give one or more, and each once")
    if any(not 0 < sigma < float("inf") for sigma in config.sigmas):
        raise ValueError(f"sigmas={list(config.sigmas)}: give numbers above 0, as 0.03 0.1 0.4")
    check_numbers(config, site_images=(0, 10**9))
    if 0 < config.site_images < 8:
        raise ValueError(f"site_images={config.site_images} must be 8 or more, or 0 for the default")


def estimate(config: Transfer) -> str:
    """What each pair will cost."""
    said = []
    for pair, setup in open_pairs(config):
        task = pair.task
        deepest, timesteps = task.space.pass_share(task.space.block_names), task.space.timesteps
        every_site = deepest * pair.num_site_images * len(timesteps)
        others = min(len(config.datasets), len(timesteps)) if len(config.datasets) > 1 else 0
        answers = deepest * others * (task.views * task.num_train + task.num_val)
        said.append(
            f"{pair.name}\n{plan.estimate(pair.config, setup)}\n"
            f"every site      {every_site:,.0f} passes at most, those of the search among them\n"
            f"other answers   {answers:,.0f} passes at most, to fit the other datasets' answers on all images\n"
        )
    return "\n".join(said)


def site_needs(pair: Pair) -> list[Need]:
    """The features that screening every site reads."""
    return [Need(t, "train", pair.num_site_images, blocks) for t, blocks in pair.task.space.sites.items()]
