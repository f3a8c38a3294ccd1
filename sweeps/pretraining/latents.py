"""The latents that trainings in the same autoencoder share."""

from collections.abc import Callable, Iterable

import numpy as np

from ddae.pretrain import Pretraining
from ddae.pretraining.latents import encode, open_encoder
from storage.files import locked, published


def encode_latents(
    training: Pretraining, device: str, track: Callable[[range], Iterable[int]] = lambda starts: starts
) -> None:
    """Encode the training images, unless that was done for this training or another one. track: shows progress."""
    if not training.latents:
        return
    file = training.latents.file
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock")):
        if file.exists():
            return
        images = training.read_images()
        encoder = open_encoder(training.latents.vae, images.read(np.arange(1)).shape[-1], device)
        with published(file) as part:
            encode(encoder, images, training.how.flip, part, device, track)
