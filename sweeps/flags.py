"""Flags that several commands have, and what is checked of flags."""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SEEDS = 0, 2**32 - 1
"""The seeds that every generator takes."""


@dataclass(frozen=True)
class Inputs:
    """What is looked into, and where the results lie."""

    backbone: str = "ddpm-fashion-mnist"
    """A diffusers folder, a hub id `owner/model[@revision]`, or an official checkpoint file (.pt, .pth, .pkl,
    .safetensors) of DDAE, EDM, EDM2, DiT, SiT, REPA, ADM and the others that README lists; the default ships with the
    package. Also classifiers: torchvision:name[@weights], timm:name, timm:folder, timm:owner/model,
    transformers:owner/model or folder, with @random for random weights, and wrn:28-10. random:NAME is any of these with
    random weights."""
    dataset: str = "fashion-mnist-8k"
    """A name (fashion-mnist-8k ships with the package; README lists the others), a folder with one sub-folder of images
    a class, a folder that Hugging Face datasets reads, or a hub id `owner/name[@revision]`."""
    blocks: tuple[str, ...] = ()
    """Names of blocks, for example `mid up.1.0`, or the papers', `out_7` or `b24`; all of them if not given. Or
    modules by paths and patterns, as `*.attn1.to_q`: queries, keys and hidden units are often better than blocks."""
    timesteps: tuple[int, ...] = ()
    """Noise levels in the model's own counting: 0 to 999 for most, 1 to 18 for EDM. By default up to nine of them."""
    data_seed: int = 0
    """Seed of the val split, the order of the images and the noise; another one extracts anew."""
    store: str = "out/store"
    """Folder of features and results, shared by sweeps, or an address: s3://bucket/folder, gs://, abfs://, and others
    that pyarrow or fsspec knows. What lies at an address is fetched once a machine."""
    out: Path = Path("out")
    """Folder in which the sweep's own folder is made."""


@dataclass(frozen=True)
class ImagesAndLabels:
    """How a dataset is read."""

    data_root: str = "data"
    """Where the named datasets lie, or torchvision downloads them to."""
    label_column: str = ""
    """The column of the classes in a Hugging Face set, where it has several and none is called label."""
    group_by: str = ""
    """What must not be split between train and val (nor test, where there is no official one): a column of a Hugging
    Face set, or a regular expression with one group for the paths of images, such as '(patient[0-9]+)'."""
    white: float = 0
    """The value of white in images of more than 8 bits a channel; 0 is found from the bits that all of them use."""
    check_data: bool = True
    """Open every image before anything is computed; of 100,000 images or more only 1,000."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, and name them."""


@dataclass(frozen=True)
class Drawing:
    """How images are sampled, kept and measured."""

    num_samples: int = 2000
    """Images to sample, and real images in each of the two sets they are compared with. More later go on from these."""
    sampler: Literal["auto", "ddim", "ancestral", "heun", "euler"] = "auto"
    """auto is heun for EDM, euler for flows, and ddim for all others. heun passes the network twice a step; ancestral
    is DDPM's, and adds noise on the way."""
    steps: int = 50
    """Steps of the sampler, evenly over the timesteps that the network knows; all of these where they are fewer."""
    seed: int = 0
    """Decides the noise of every image."""
    num_resamples: int = 50
    """Halves of the images, drawn at random, whose distances spread gives an interval."""
    force: bool = False
    """Measure although there are fewer images than twice the extractor's features."""
    keep: Literal["npz", "png"] = "npz"
    """How the images are kept: in samples.npz, or also one file each."""
    batch_size: int = 64
    """Images that pass the network together; it changes rounding alone."""
    out: Path | None = None
    """Folder for all of it; named by what is sampled if not given."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    dry_run: bool = False
    """Say what it would cost, and stop."""


@dataclass(frozen=True)
class ModelAndData(ImagesAndLabels, Inputs):
    """The flags that every command takes which looks into a model."""

    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    gpus_per_extractor: float = 1.0
    """Share of a GPU that runs one copy of the network; 0.5 puts two copies on each GPU."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward passes (autocast); another one extracts anew."""
    offload: bool = False
    """Keep the network's weights in CPU memory, and move each layer to the GPU while it runs: slower, for networks that
    are larger than the GPU's memory. Features stay the same."""
    channels_last: bool = False
    """Memory layout of the forward passes."""
    compile: bool = False
    """torch.compile: faster passes after minutes of compiling, which every extractor does anew."""
    image_size: int = 0
    """Side in pixels of the images the network sees, where it is not bound to one; 0 is the model's own."""
    num_steps: int = 18
    """EDM and networks that are trained under its noise alone: the steps of the schedule that timesteps count, 18 or 50
    in the DDAE paper."""
    text_embedding: str = ""
    """Stable Diffusion alone: a text embedding that sweeps/learn_text.py has learned, instead of the null text."""
    cache_images: bool = True
    """Keep decoded images beside the store, as numbers of one byte, so that frozen features at several timesteps decode
    each file once a machine. Latent models keep latents instead."""
    weights: str = ""
    """File of tensors that replace the network's own, as sweeps/finetune.py writes it."""
    dry_run: bool = False
    """Say what it would cost, and stop."""


def check_numbers(config: "DataclassInstance", **ranges: tuple[float, float]) -> None:
    """Raises ValueError for a flag beyond its range (least, most)."""
    for name, (least, most) in ranges.items():
        if not least <= (value := getattr(config, name)) <= most:
            raise ValueError(f"{name}={value} must be {least:,} or more, and {most:,} at most")


def check_no_offload(config: ModelAndData) -> None:
    """Raises ValueError if weights are to be kept off the device that they are trained or differentiated on."""
    if config.offload:
        raise ValueError(
            "offload=True is for frozen features; what trains needs the weights on the device: leave it out"
        )


def as_flags(config: "DataclassInstance") -> dict[str, Any]:
    """The flags that are given or have a default, as plain YAML and JSON know them."""
    flags = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items()}


def as_args(name: str, value: object) -> list[str]:
    """A flag and its value as the command line has them."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]


def command_of(config: "DataclassInstance", script: str) -> str:
    """The command that makes the same sweep: the flags that are not as by default."""
    given, default = as_flags(config), as_flags(type(config)())
    args = [arg for name, value in given.items() if value != default.get(name) for arg in as_args(name, value)]
    return shlex.join(["python", f"sweeps/{script}.py", *args])
