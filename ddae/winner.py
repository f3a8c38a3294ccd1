"""One frozen feature and its head, in scikit-learn's conventions: what a sweep has chosen, as people use it."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ddae.backbones import LIBRARIES, SHIPPED, Backbone, Block, Settings, load_backbone
from ddae.backbones.files import local_path, model_files
from ddae.backbones.options import sidecars
from ddae.datasets.images import stratified
from ddae.datasets.pixels import decode
from ddae.features import check_timestep, fitting_batch, pass_once
from ddae.fusion import members_of
from ddae.heads import StackedHead, find_head, restore
from ddae.noise import image_noise
from ddae.pooling import pool
from ddae.probe import to_maps

RECORD, HEAD, BACKBONE = "winner.json", "head.safetensors", "./backbone"
FILES = {"text_embedding": "./text.safetensors", "weights": "./weights.safetensors"}
"""Settings that name files, and the copies of these."""
VERSION = 1
"""Raise it when a saved model would be read differently."""
STORED_POOLING = 4
"""The grid that features are rounded to float16 at in a sweep, unless it has a finer pooling."""
PACKAGES = "torch", "diffusers", "scikit-learn", "numpy", "pillow"
Images = Any
"""uint8 [N, H, W, 3], [N, 3, H, W] or, grey, [N, H, W], as an array or tensor, or a list of files: paths, bytes or PIL
images. Files are resized and cropped as those of a dataset; arrays are only resized, to the network's square."""

one_pass = Lock()
"""A pass reads its maps through hooks on the network, where those of another thread would see them too."""


class Winner(ClassifierMixin, TransformerMixin, BaseEstimator):
    """Images -> the feature (transform) -> classes (fit, predict, predict_proba).

    transform needs no fit. fit replaces the head alone, also by one for other classes; with setting="" it first
    chooses the head's setting (learning rate or penalty) on a fifth of the images.
    An image is noised as in a sweep, unless noised is False, but keyed by a hash of its pixels where a sweep has its
    row number: the same image has the same feature wherever it stands, and no two share a noise. That costs no
    accuracy (docs/log.md).
    Several features that are read together are a block such as up.1.0+mid@30,mid@60, in place of the timestep.
    white is the value of white in images of more than 8 bits a channel that do not say it, as the sweep had it.
    """

    def __init__(
        self,
        backbone: str = "ddpm-fashion-mnist",
        block: str = "up.1.0",
        timestep: int = 30,
        pooling: int = 4,
        head: str = "linear",
        setting: str = "",
        seed: int = 0,
        noise_seed: int = 0,
        noised: bool = True,
        settings: Settings | None = None,
        white: float = 0,
    ):
        self.backbone = backbone
        self.block = block
        self.timestep = timestep
        self.pooling = pooling
        self.head = head
        self.setting = setting
        self.seed = seed
        self.noise_seed = noise_seed
        self.noised = noised
        self.settings = settings
        self.white = white

    def transform(self, images: Images, indices: np.ndarray | None = None) -> np.ndarray:
        """float32 [N, C * p * p]. indices: numbers to noise the images by, such as a sweep's rows, instead of the
        hashes."""
        return self._maps(images, indices).flatten(1).numpy()

    def fit(self, images: Images, labels: Sequence | np.ndarray | None = None) -> "Winner":
        self._fit(self._maps(images), labels)
        return self

    def fit_transform(self, images: Images, labels: Sequence | np.ndarray | None = None) -> np.ndarray:
        """In one pass of the network."""
        maps = self._maps(images)
        self._fit(maps, labels)
        return maps.flatten(1).numpy()

    def predict(self, images: Images) -> np.ndarray:
        """One of classes_ for each image; class_names_ are their names."""
        best = self.predict_proba(images).argmax(1)
        return self.classes_[best]

    def predict_proba(self, images: Images) -> np.ndarray:
        """float32 [N, K], in the order of classes_. Of ridge, softmax of least squares: an order, no more."""
        check_is_fitted(self, "head_")
        return self.head_.probabilities(self.head_(self._maps(images)))[0].numpy()

    def take(
        self, head: StackedHead, num_images: int, classes: Sequence | np.ndarray, class_names: Sequence[str]
    ) -> "Winner":
        """A head of one setting that was fitted on so many features of this kind."""
        self.head_, self.num_images_ = head, num_images
        self.classes_, self.class_names_ = np.asarray(classes), tuple(class_names)
        return self

    def save(self, folder: str | Path, include_backbone: bool = False, measured: dict | None = None) -> None:
        """winner.json and head.safetensors, for ddae.load. The network is referred to, unless include_backbone copies
        its files. measured: what is known of it, such as its val accuracy."""
        check_is_fitted(self, "head_")
        folder, settings = Path(folder), self.settings or Settings()
        folder.mkdir(parents=True, exist_ok=True)
        backbone, is_library = self.backbone, self.backbone.partition(":")[0] in LIBRARIES
        if include_backbone and is_library:
            raise ValueError(
                f"backbone={backbone!r} is made by its library and has no files to copy; leave the flag out"
            )
        source = Path(backbone) if is_library else local_path(backbone)
        if include_backbone or source.resolve().is_relative_to((folder / BACKBONE).resolve()):
            backbone = copy_model(source, folder / BACKBONE)
        elif backbone not in SHIPPED and Path(backbone).exists():
            backbone = str(source.absolute())
        copies = {name: file for name, file in FILES.items() if getattr(settings, name)}
        for name, file in copies.items():
            copy_file(Path(getattr(settings, name)), folder / file)
        tensors = {name: tensor.cpu().clone().contiguous() for name, tensor in self.head_.state_dict().items()}
        save_file(tensors, folder / HEAD)
        kept = asdict(settings) | copies
        del kept["device"], kept["compile"]
        network = self._network()
        record = {
            "version": VERSION,
            "parameters": {**self.get_params(deep=False), "backbone": backbone, "settings": kept},
            "fingerprint": network.fingerprint,
            "head_sha256": sha256(folder / HEAD),
            "setting": self.head_.settings[0],
            "num_images": self.num_images_,
            "classes": self.classes_.tolist(),
            "class_names": self.class_names_,
            "preprocessing": f"RGB, shorter side to {network.image_size}, centre crop"
            + (f", noise of t={self.timestep}" if self.noised else f", as it is, told t={self.timestep}"),
            "measured": measured or {},
            "packages": {name: version(name) for name in PACKAGES},
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1))

    def _maps(self, images: Images, indices: np.ndarray | None = None) -> Tensor:
        """float32 [N, C, p, p], on the CPU."""
        network, members = self._network(), self._members()
        found, views = listed(images), [list[np.ndarray]() for _ in members]
        batch, grid = fitting_batch(network), max(STORED_POOLING, self.pooling)
        for start in range(0, len(found), batch):
            pixels = read_images(found[start : start + batch], network.image_size, start, self.white)
            numbers = hashes(pixels) if indices is None else indices[start : start + batch]
            with one_pass:
                x0 = network.encode(pixels)
                x0 = x0.half().float() if network.encoder.fingerprint else x0  # as latents are kept
                for timestep in dict.fromkeys(timestep for _, timestep in members):
                    shape = network.encoder.shape
                    noise = image_noise(numbers, shape, timestep, self.noise_seed) if self.noised else None
                    blocks = [block.name for block, at in members if at == timestep]
                    maps = pass_once(network, x0, noise, timestep, blocks, grid)
                    for view, (block, at) in zip(views, members, strict=True):
                        if at == timestep:
                            view.append(maps[block.name])
        parts = [
            pool(to_maps(view, block.channels), self.pooling) for view, (block, _) in zip(views, members, strict=True)
        ]
        return torch.cat(parts, 1)

    def _fit(self, maps: Tensor, labels: Sequence | np.ndarray | None) -> None:
        if labels is None:  # for the transform alone
            return
        classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
        if len(numbers) != len(maps) or len(classes) < 2:
            raise ValueError(
                f"{len(numbers)} labels of {len(classes)} classes for {len(maps)} images; give one label an image, and "
                "two classes or more"
            )
        family, sizes = find_head(self.head, self._channels())

        def fit(rows: np.ndarray) -> StackedHead:
            return family.fit(maps[rows], torch.from_numpy(numbers[rows]), len(classes), self.seed, *sizes)

        setting = self.setting
        if not setting:
            rows, held_out = stratified(numbers, 0.2, np.random.default_rng(self.seed))
            head = fit(rows)
            right = head(maps[held_out]).argmax(-1) == torch.from_numpy(numbers[held_out])
            setting = head.settings[int(right.float().mean(1).argmax())]
        head = fit(np.arange(len(maps)))
        if setting not in head.settings:
            raise ValueError(f"setting={setting!r} is none of {self.head}'s: {', '.join(head.settings)}; or give ''")
        self.take(head.only(setting), len(maps), classes, list(map(str, classes)))

    def _network(self) -> Backbone:
        return network(self.backbone, self.settings or Settings())

    def _members(self) -> list[tuple[Block, int]]:
        """The blocks and timesteps that are read, checked, as is the pooling."""
        network, found = self._network(), []
        names = {block.alias: block.name for block in network.blocks if block.alias}
        members = members_of(self.block) if "@" in self.block else ((self.block, self.timestep),)
        for name, timestep in members:
            check_timestep(network, timestep)
            block = network.block(names.get(name, name))
            if not 1 <= self.pooling <= block.size:
                raise ValueError(f"pooling={self.pooling} must be 1 or more, and {block.size} at most in {block.name}")
            found.append((block, timestep))
        return found

    def _channels(self) -> tuple[int, ...]:
        return tuple(block.channels for block, _ in self._members())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def read_head(record_file: Path, head_file: Path, known: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is recorded of a head, and its tensors. Raises ValueError where they do not belong together, or are of
    another version than the known one, and whatever a damaged file raises."""
    record = json.loads(record_file.read_text())
    if record["version"] != known:
        raise ValueError(f"it is of version {record['version']}, and this code reads {known}")
    if sha256(head_file) != record["head_sha256"]:
        raise ValueError(f"{head_file.name} is not the one it was written with")
    return record, load_file(head_file)


def with_files(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Recorded Settings, with those of FILES that lie in the folder by their whole paths."""
    copies = {name: str(folder / file) for name, file in FILES.items() if settings.get(name) == file}
    return {**settings, **copies}


def load(folder: Path, device: str) -> Winner:
    """As ddae.load."""
    folder = (folder / "model" if (folder / "model" / RECORD).exists() else folder).absolute()
    if not (folder / RECORD).exists():
        raise ValueError(f"{folder} holds no {RECORD}; give a folder that sweeps/hand_over.py has made")
    try:
        record, tensors = read_head(folder / RECORD, folder / HEAD, VERSION)
        parameters = record["parameters"]
        kept = with_files(parameters.pop("settings"), folder)
        if parameters["backbone"].startswith(BACKBONE):
            parameters["backbone"] = str(folder / parameters["backbone"])
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        winner = Winner(**parameters, settings=Settings(device=device, **kept))
        names = "fingerprint", "setting", "num_images", "classes", "class_names", "measured"
        fingerprint, setting, num_images, classes, class_names, winner.measured_ = map(record.__getitem__, names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged ({error}); run sweeps/hand_over.py again") from error
    network = winner._network()
    if network.fingerprint != fingerprint:
        raise ValueError(
            f"backbone={winner.backbone!r} is not the network that {folder} was made with: its fingerprint was "
            f"{fingerprint[:12]}, and is {network.fingerprint[:12]}; bring its files back, or hand over again"
        )
    channels = winner._channels()
    shape = num_images, sum(channels), winner.pooling, winner.pooling
    head = restore(winner.head, shape, len(classes), tensors, setting, channels)
    return winner.take(head, num_images, classes, class_names)


@lru_cache(maxsize=1)
def network(name: str, settings: Settings) -> Backbone:
    """Shared by an estimator and its clones."""
    return load_backbone(name, settings)


def copy_model(source: Path, folder: Path) -> str:
    """All that is loaded from a diffusers folder or an official checkpoint; returns what refers to it."""
    root, files = (source, model_files(source)) if source.is_dir() else (source.parent, [source, *sidecars(source)])
    for file in files:
        copy_file(file, folder / file.relative_to(root))
    return BACKBONE if source.is_dir() else f"{BACKBONE}/{source.name}"


def copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)


def listed(images: Images) -> np.ndarray | list:
    """uint8 [N, 1 or 3, H, W], or files: what can be cut into batches."""
    if isinstance(images, str | bytes | Path):
        raise ValueError("images is a single one; give a list")
    images = images.cpu().numpy() if isinstance(images, Tensor) else images
    if not isinstance(images, np.ndarray) or images.dtype.kind in "OU":
        images = list(images)
    else:
        pixels = images[:, None] if images.ndim == 3 else images
        pixels = np.moveaxis(pixels, -1, 1) if pixels.shape[-1] in (1, 3) else pixels
        if images.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; give uint8 [N, H, W, 3], [N, 3, H, W] or [N, H, W], "
                "or a list of paths, bytes or PIL images"
            )
        images = pixels
    if not len(images):
        raise ValueError("images is empty; give one or more")
    return images


def read_images(images: np.ndarray | list, size: int, first: int, white: float = 0) -> Tensor:
    """uint8 [N, 3, H, W] of a batch of listed() images, the first of which has this number."""
    if isinstance(images, np.ndarray):
        return torch.tensor(images).expand(-1, 3, -1, -1).contiguous()
    sources = [BytesIO(image) if isinstance(image, bytes) else image for image in images]
    named = [str(s) if isinstance(s, str | Path) else f"image {first + i}" for i, s in enumerate(sources)]
    return decode(zip(named, sources, strict=True), size, white)


def hashes(pixels: Tensor) -> np.ndarray:
    """uint64 [N]."""
    return np.array([xxhash.xxh3_64_intdigest(image.numpy().data) for image in pixels], dtype=np.uint64)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
