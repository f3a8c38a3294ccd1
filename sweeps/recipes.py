"""Trainings by name: the flags of the command that differ from its defaults."""

from collections.abc import Mapping

DDPM = {
    "family": "ddpm", "channels": (128, 256, 256, 256), "layers_per_block": 2, "attention": (16,), "dropout": 0.1,
    "flip": True, "batch_size": 512, "learning_rate": 4e-4, "decay": "none", "ema_decay": 0.9999,
}  # fmt: skip
"""DDAE's DDPM: 35.7M parameters; a batch of 128 and a learning rate of 1e-4 on each of four GPUs."""

EDM = {
    "family": "edm", "layers_per_block": 4, "attention": (16,), "stem_channels": 128, "decay": "none",
    "max_gradient_norm": float("inf"), "autocast": False,
}  # fmt: skip
"""What the networks of Karras et al. 2022 (table 7) have in common: 200M images, of which 10M warm up."""

RECIPES: Mapping[str, Mapping[str, object]] = {
    "ddpm-fashion-mnist": {},
    "ddpm-cifar10": {**DDPM, "dataset": "cifar10", "steps": 195_300, "warmup": 1_270},
    "edm-cifar10": {
        **EDM, "dataset": "cifar10", "channels": (256, 256, 256), "dropout": 0.13, "augment": 0.12, "batch_size": 512,
        "learning_rate": 1e-3, "ema_decay": 0.9993, "steps": 390_600, "warmup": 19_530,
    },
    "ddpm-tiny-imagenet": {**DDPM, "dataset": "tiny-imagenet", "image_size": 64, "steps": 195_300, "warmup": 2_540},
    "edm-tiny-imagenet": {
        **EDM, "dataset": "tiny-imagenet", "image_size": 64, "channels": (128, 256, 256, 256), "dropout": 0.05,
        "flip": True, "batch_size": 256, "learning_rate": 2e-4, "ema_decay": 0.9997, "steps": 781_200, "warmup": 39_060,
    },
}  # fmt: skip
"""The default, which ships with the package (85 minutes on 2 cores); DDAE's DDPM on CIFAR-10 for 2,000 epochs, 13 of
which warm up, best probe 90.05 %; DDPM++ under EDM, 55.7M parameters, best probe 95.49 %. DDAE does not print its
settings for Tiny-ImageNet: these are those of CIFAR-10 at twice the side and half the epochs (best probe 46.8 %), and
those of Karras et al. for 64 pixels (61.8M parameters, FFHQ), without their augmentation (best probe 50.0 %)."""
