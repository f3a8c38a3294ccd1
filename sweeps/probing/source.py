"""Where features come from: one network on one dataset, as a worker opens it, and where the store keeps them."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch

from ddae.backbones import LIBRARIES, SHIPPED, Backbone, Block, Settings, load_backbone
from ddae.datasets import DATASETS, Dataset, Reading, folders_of, load_dataset
from ddae.features import FeatureKey
from ddae.nearest import did_you_mean
from ddae.views import USUAL
from storage.ledger import content_key
from storage.remote import Remote, is_address
from sweeps import cli
from sweeps.cluster.given import address
from sweeps.findings.folder import started_in
from sweeps.flags import SEEDS, ImagesAndLabels, ModelAndData, check_numbers

VAL_FRACTION = 0.2
SHARD_ROWS = 512
"""Images between two publications: what a kill can lose."""

Flags = TypeVar("Flags", bound=ModelAndData)

log = logging.getLogger("sweeps")


@dataclass(frozen=True)
class Need:
    """Features that must stand in the store: the first num_images of a split, at every one of the blocks."""

    timestep: int
    split: str
    num_images: int
    blocks: tuple[str, ...]
    draw: int = 0
    view: int = 0


@dataclass(frozen=True)
class FeatureSource:
    """A network and a dataset, how they are run, and the store of what comes of it."""

    name: str
    """The dataset's name, or its folder's."""
    backbone: str
    dataset: str
    data_root: str
    settings: Settings
    encoder: str
    """Encoder.fingerprint; empty where the network takes pixels."""
    store: str
    """A folder's absolute path, or an address."""
    key: FeatureKey
    reading: Reading = field(default_factory=Reading)
    """How workers read the images, which need not open all of them again."""
    images: str = ""
    """Images.fingerprint, by which a worker knows the set; the key may hold the one that version 0.2 knew it by."""
    cache_images: bool = False
    """Whether decoded images are kept beside the store."""
    family: str = ""
    """The class of the network."""
    flops: float = 0
    """Floating-point operations of a full forward pass of one image; those of a VAE before it are not counted."""

    @property
    def fits_on(self) -> str:
        """The device of heads, screening and scores: a GPU, if networks run there; others lack double precision."""
        return self.settings.device if self.settings.device.startswith("cuda") else "cpu"

    @property
    def ledger(self) -> str:
        return f"{self.store}/ledger"

    def folder(self, draw: int = 0, view: int = 0) -> str:
        """The store's folder of all features that differ in split, timestep and block alone."""
        return f"{self.name}/{content_key(**replace(self.key, draw=draw, view=view).asdict())[:16]}"

    def column(self, need: Need, block: str) -> str:
        """The store's folder of one block's features."""
        return f"{self.folder(need.draw, need.view)}/t={need.timestep}/split={need.split}/block={block}"

    def latents(self, split: str, view: int) -> str:
        """The store's folder of the encoded images, which serve every timestep, noise draw and network with this
        encoder."""
        key = self.key
        made_by = self.encoder, key.images, key.split_seed, key.val_fraction
        seen_as: tuple = (key.noise_seed, view) if view else ()
        if view and key.augment != USUAL:
            seen_as += (key.augment,)
        return f"{self.name}/latents-{content_key(made_by=made_by, view=seen_as)[:16]}/split={split}/block=latents"


def open_source(
    config: ModelAndData,
    backbone: Backbone,
    pooling: int,
    val_fraction: float = VAL_FRACTION,
    augment: str = USUAL,
) -> tuple[FeatureSource, Dataset]:
    """Load the dataset that the flags name, at the network's size. pooling: the largest grid that is to be derived.
    val_fraction: of the training images. augment: how views change them."""
    if is_address(config.store):
        Remote(config.store).check()
    dataset = load_images(config, backbone, val_fraction)
    source = FeatureSource(
        name=Path(config.dataset).resolve().name or "images",
        backbone=absolute(config.backbone),
        dataset=absolute(config.dataset),
        data_root=str(Path(config.data_root).absolute()),
        settings=make_settings(config),
        encoder=backbone.encoder.fingerprint,
        store=config.store if is_address(config.store) else str(Path(config.store).absolute()),
        key=FeatureKey(
            backbone.fingerprint,
            dataset.images.fingerprint,
            split_seed=config.data_seed,
            val_fraction=val_fraction,
            noise_seed=config.data_seed,
            pooling=pooling,
            augment=augment,
        ),
        reading=replace(dataset.images.reading, check=False),
        images=dataset.images.fingerprint,
        cache_images=config.cache_images and not dataset.images.in_memory and not backbone.encoder.fingerprint,
        family=type(backbone.network).__name__,
        flops=backbone.flops,
    )
    for note in dataset.notes[: 1 if config.check_data else None]:
        log.warning(f"{config.dataset}: {note}")
    return as_stored(source, dataset.images.old_fingerprint), dataset


def as_turned(source: FeatureSource) -> FeatureSource:
    """The source whose views are the images turned by quarter turns; its images as they are lie where they did."""
    return replace(source, key=replace(source.key, augment="turn"))


def load_images(config: ModelAndData, backbone: Backbone, val_fraction: float = VAL_FRACTION) -> Dataset:
    """The dataset that the flags name, at the network's size."""
    num_channels = 3 if backbone.encoder.fingerprint else backbone.encoder.shape[0]  # latents are made of colours
    where, how = (config.dataset, backbone.image_size, config.data_root), reading_of(config)
    return load_dataset(*where, config.data_seed, val_fraction, how, num_channels)


def reading_of(config: ImagesAndLabels) -> Reading:
    check_numbers(config, white=(0, 1e30))
    return Reading(config.label_column, config.group_by, config.white, config.check_data, config.skip_unreadable)


def as_stored(source: FeatureSource, old_fingerprint: str) -> FeatureSource:
    """The source under the name and the fingerprint that the store knows it by: a copy of a folder may be called
    otherwise, and version 0.2 told folders by the times of their files."""
    old = replace(source, key=replace(source.key, images=old_fingerprint))
    is_new = old_fingerprint not in ("", source.key.images)
    if is_address(source.store) and not is_new:
        return source
    for each in (source, old) if is_new else (source,):
        names = stored_names(each)
        if names and each is old and source.reading.shown:
            log.warning(
                f"{source.store} holds features of {source.dataset} as version 0.2 saw it (now otherwise: "
                f"{source.reading.shown}); they are extracted again"
            )
        elif names:
            return each if each.name in names else replace(each, name=names[0])
    return source


def stored_names(source: FeatureSource) -> list[str]:
    """What the store calls the datasets with such features; at an address only the source's own name is looked for."""
    if is_address(source.store):
        return [source.name] if "_key.json" in Remote(source.store).names(source.folder()) else []
    return sorted(path.parent.name for path in Path(source.store).glob(f"*/{Path(source.folder()).name}"))


def load_model(config: ModelAndData) -> Backbone:
    """The backbone that the flags name, on the CPU where a cluster's machines do the work."""
    check_numbers(config, image_size=(0, 4096), num_steps=(2, 1000), data_seed=SEEDS, gpus_per_extractor=(0.01, 1))
    settings = make_settings(config)
    return load_backbone(config.backbone, replace(settings, device="cpu") if address() else settings)


def make_settings(config: ModelAndData) -> Settings:
    """How the workers run the network."""
    return Settings(
        config.device if address() and config.device != "auto" else choose_device(config.device),
        config.precision,
        config.channels_last,
        config.compile,
        config.image_size,
        config.num_steps,
        absolute(config.text_embedding) if config.text_embedding else "",
        absolute(config.weights) if config.weights else "",
        config.offload,
    )


def input_files(config: ModelAndData, backbone: Backbone) -> list[Path] | None:
    """All files and folders that model and data are read from; None where they cannot all be told, as those of a hub,
    of a library, of a store at an address, and of a VAE that lies elsewhere."""
    model, data, is_latent = model_files(config.backbone), data_files(config), bool(backbone.encoder.fingerprint)
    if model is None or data is None or is_address(config.store):
        return None
    if is_latent and not any((path / "vae").is_dir() for path in model):
        return None
    return [
        path.absolute() for path in [*model, *data, *map(Path, filter(None, (config.weights, config.text_embedding)))]
    ]


def model_files(name: str) -> list[Path] | None:
    path = SHIPPED.get(name) or Path(name)
    if not path.exists() or name.partition(":")[0] in LIBRARIES:
        return None
    if path.is_file():
        return [path, *(path.with_suffix(suffix) for suffix in (".json", ".yaml", ".yml"))]
    is_alone = not (path / "model_index.json").exists()
    if is_alone and (path.parent / "model_index.json").exists():
        return [path.parent]
    return [path, *([path.parent / "scheduler", path.parent / "model_index.json"] if is_alone else [])]


def data_files(config: ModelAndData) -> list[Path] | None:
    name = config.dataset
    if name in DATASETS:
        return folders_of(name, str(Path(config.data_root).expanduser().absolute()))
    return [Path(name)] if Path(name).is_dir() else None


def choose_blocks(backbone: Backbone, names: Iterable[str]) -> tuple[Block, ...]:
    """The blocks of these names, their own or the paper's, in the order of the data; all where none is named.

    A pattern, as `up.*`, names blocks, or if it fits none, as `*.attn1.to_q`, modules that return a map of the image.
    """
    names, wanted = list(names), set[str]()
    known = [each for block in backbone.blocks for each in (block.name, block.alias) if each]
    paths = [path for path, _ in backbone.network.named_modules() if path]
    for name in names:
        found = {each for each in known if each == name or fnmatchcase(each, name)}
        matching = [] if found else [path for path in paths if fnmatchcase(path, name)]
        if not found and not matching:
            raise ValueError(
                f"block={name!r} is not known; allowed: {', '.join(known)}, or the path of a module, as layer_noise.py "
                f"--list-blocks --all shows{did_you_mean(name, [*known, *paths])}"
            )
        backbone.add_modules(matching)
        found |= set(matching) & backbone.modules.keys()
        if not found:
            raise ValueError(
                f"block={name!r} names {len(matching)} modules, and none returns a map of the image once in a pass"
            )
        wanted |= found
    return tuple(block for block in backbone.blocks if not names or {block.name, block.alias} & wanted)


def with_whole_paths(config: Flags, start: Path | None = None) -> Flags:
    """The flags with every path absolute, to be read again from any working folder. start: what relative paths begin
    at, if not the working folder."""
    base = start or Path.cwd()
    whole: dict[str, Any] = {}
    for name in ("backbone", "dataset", "text_embedding", "weights"):
        whole[name] = absolute(getattr(config, name), base)
    whole["store"] = config.store if is_address(config.store) else str(base / Path(config.store).expanduser())
    whole |= {"data_root": str(base / Path(config.data_root).expanduser()), "out": base / config.out}
    if getattr(config, "warm_start", None) is not None:
        whole["warm_start"] = base / config.warm_start  # type: ignore[attr-defined]
    for name in ("baseline", "against"):
        if hasattr(config, name):
            whole[name] = tuple(absolute(each, base) for each in getattr(config, name))
    return replace(config, **whole)


def recorded_flags(folder: Path, config_class: type[Flags]) -> Flags:
    """The flags of the sweep in a folder, with whole paths. A store that has moved along with the folder is found."""
    flags = cli.parse(config_class, ["--config", str(folder / "config.yaml")], None)
    flags = with_whole_paths(flags, started_in(folder))
    if is_address(flags.store) or Path(flags.store).is_dir():
        return flags
    moved = folder.resolve().parent / os.path.relpath(flags.store, flags.out)
    if moved.is_dir():
        log.warning(f"{flags.store}, the store of {folder}, has moved to {moved}")
        return replace(flags, store=str(moved))
    log.warning(f"{flags.store}, the store of {folder}, is gone; what it held is made again there")
    return flags


def absolute(name: str, base: Path | None = None) -> str:
    """A folder's or file's absolute path, because workers run elsewhere; any other name as it is. In a library's
    model@weights both may be. base: what a relative path begins at, if not the working folder."""
    path = (base or Path.cwd()) / name
    library, colon, inside = name.partition(":")
    if colon and library in LIBRARIES:
        model, at, beside = inside.partition("@")
        return f"{library}:{absolute(model, base)}{at}{absolute(beside, base)}"
    return str(path) if name and path.exists() and name not in SHIPPED and name not in DATASETS else name


def choose_device(name: str) -> str:
    """auto is cuda where PyTorch sees a GPU, else cpu."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # meta holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={name!r} is not available ({str(error).splitlines()[0]}); use cpu, or cuda where there is a GPU"
        ) from error
    return name
