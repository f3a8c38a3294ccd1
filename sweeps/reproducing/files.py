"""The files of published networks and datasets: where they belong, and where they are to be had."""

from collections.abc import Mapping
from pathlib import Path

from sweeps.reproducing.entry import Entry, Generation, Model, Probe

STABLE_DIFFUSION = ("stable-diffusion-v1", "a diffusers folder of Stable Diffusion 1.x; the paper does not say which")
DIT_VAE = ("vae", "the VAE of Stable Diffusion, stabilityai/sd-vae-ft-mse on Hugging Face, as a folder")
OWN = "no checkpoint is public; train it: python sweeps/pretrain.py --recipe {0} --out {1}, and copy its model/ there"


def own(folder: str, recipe: str) -> Model:
    """A network that nobody has published."""
    return Model(((folder, OWN.format(recipe, f"out/{folder}")),))


def of_the_ddae_code(name: str, epoch: int) -> Model:
    where = f"no checkpoint is public; train it with the code of FutureXiang/ddae, and take epoch {epoch}"
    return Model(((f"ddae-code/{name}_{epoch}.pth", where),))


MODELS: Mapping[str, Model] = {
    "ddpm-cifar10": Model(
        (("ddpm-cifar10-32", "google/ddpm-cifar10-32 on Hugging Face, as a folder (the DDAE paper has pesser's copy)"),)
    ),
    "edm-cifar10": Model(
        (("edm-cifar10-32x32-uncond-vp.pkl", "NVlabs/edm: pretrained/edm-cifar10-32x32-uncond-vp.pkl"),)
    ),
    "ddpm-tiny": own("ddpm-tiny-imagenet", "ddpm-tiny-imagenet"),
    "edm-tiny": own("edm-tiny-imagenet", "edm-tiny-imagenet"),
    "edm-imagenet": Model(
        (("edm-imagenet.pkl", "DDAE's own DDPM++ under EDM on ImageNet, which is not public"),)
    ),
    "dit": Model(
        (("DiT-XL-2-256x256.pt", "facebookresearch/DiT: DiT-XL-2-256x256.pt"), DIT_VAE)
    ),
    "adm": Model(
        (("256x256_diffusion_uncond.pt", "openai/guided-diffusion: 256x256_diffusion_uncond.pt"),)
    ),
    "adm-classifier": Model(
        (("256x256_classifier.pt", "openai/guided-diffusion: 256x256_classifier.pt"),)
    ),
    "sd": Model((STABLE_DIFFUSION,)),
    "sd-text": Model(
        (
            STABLE_DIFFUSION,
            ("text.safetensors", "what sweeps/learn_text.py learns on --dataset imagenet with that folder"),
        )
    ),
    "sd-2.1": Model((("stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1 on Hugging Face, as a folder"),)),
    "cleandift": Model(
        (("cleandift-sd21", "stable-diffusion-2-1 as a folder, its unet/ with the weights of CompVis/cleandift"),)
    ),
    "simclr": Model(
        (("simclr_resnet50.torch", "VISSL's model zoo: SimCLR, ResNet-50, 1,000 epochs on ImageNet"),),
        "torchvision:resnet50@{}",
    ),
    "swav": Model(
        (("swav_800ep_pretrain.pth.tar", "facebookresearch/swav: swav_800ep_pretrain.pth.tar"),),
        "torchvision:resnet50@{}",
    ),
    "wrn": Model((), "wrn:28-10"),
    "shipped": Model((), "ddpm-fashion-mnist"),
    "ddae-ddpm": of_the_ddae_code("DDPM_ddpm", 800),
    "ddae-edm-ddpm": of_the_ddae_code("DDPM_edm", 1200),
    "ddae-ddpmpp": of_the_ddae_code("DDPMpp_ddpm", 1200),
    "ddae-edm-ddpmpp": of_the_ddae_code("DDPMpp_edm", 1200),
    "ddae-edm-ddpmpp-aug": of_the_ddae_code("DDPMpp_edm_aug", 2000),
}  # fmt: skip
"""name -> network."""

DATASETS: Mapping[str, tuple[str, str]] = {
    "cifar10": ("cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar.html, the python version, unpacked"),
    "tiny-imagenet": ("tiny-imagenet-200", "http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked"),
    "imagenet": ("imagenet", "ImageNet-1k (ILSVRC 2012) as train/<wnid>/ and val/<wnid>/"),
    "imagenet-50": ("imagenet", "ImageNet-1k (ILSVRC 2012) as train/<wnid>/ and val/<wnid>/"),
    "aircraft": ("fgvc-aircraft-2013b", "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft, unpacked"),
    "cars": ("stanford_cars", "Stanford Cars, what https://github.com/pytorch/vision/issues/7545 names"),
    "cub": ("CUB_200_2011", "https://www.vision.caltech.edu/datasets/cub_200_2011, unpacked"),
    "dogs": ("stanford_dogs", "http://vision.stanford.edu/aditya86/ImageNetDogs, images.tar and lists.tar unpacked"),
    "flowers": ("flowers-102", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102, unpacked"),
    "fashion-mnist-8k": ("", "ships with the package"),
    "nabirds": ("nabirds", "https://dl.allaboutbirds.org/nabirds, unpacked"),
}
"""name -> (folder below --data-root, where to get it); no folder where the package has the images."""

INCEPTION = (
    "weights-inception-2015-12-05-6726825d.pth",
    "FID's Inception: the release fid-inception of toshas/torch-fidelity, or pytorch-fid's",
)


def needed(entry: Entry, model: Model, models: Path, data_root: Path) -> list[tuple[Path, str]]:
    """Every file and folder that an entry takes, and where each is to be had."""
    files = [*model.files, *([INCEPTION] if isinstance(entry.recipe, Generation) else [])]
    folder, where = DATASETS[entry.dataset]
    images = [(data_root / folder, where)] if folder else []
    return [*((models / path, source) for path, source in files), *images]


def check_there(entry: Entry, model: Model, models: Path, data_root: Path) -> None:
    """Raises ValueError where files are missing, with all of them."""
    missing = [(path, where) for path, where in needed(entry, model, models, data_root) if not path.exists()]
    if missing:
        listed = "; ".join(f"{path} ({where})" for path, where in missing)
        raise ValueError(
            f"{entry.name} needs what is not there: {listed}. Put it there, or give --models or --data-root"
        )


def check_cell(entry: Entry, is_given: bool) -> None:
    """Raises ValueError where the paper does not say which feature it reads. is_given: whether flags do."""
    if getattr(entry.recipe, "block", "-") == "" and not is_given:
        head = entry.recipe.head if isinstance(entry.recipe, Probe) else "linear"
        raise ValueError(
            f"{entry.name}: {entry.source} does not say which block and timestep it reads; search them with "
            f"sweeps/layer_noise.py --dataset {entry.dataset} --heads {head} --poolings 1, and give --block and "
            "--timestep"
        )
