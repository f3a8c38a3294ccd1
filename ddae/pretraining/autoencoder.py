"""A small autoencoder of diffusers, trained by L1 and a little KL; without the perceptual and adversarial losses of
Rombach et al. 2022, which need other networks, its reconstructions are smoother than theirs."""

from typing import Any

import diffusers
from torch import Tensor

KL_WEIGHT = 1e-6
"""Against the absolute error, both summed over an image (Rombach et al. 2022, appendix G)."""


class AutoencoderKL(diffusers.AutoencoderKL):
    """One whose forward pass returns what its loss needs; under its own name, by which a saved one is loaded."""

    def forward(self, sample: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstructions [N, 3, H, W], the KL divergence of each posterior from a standard normal one [N]).

        noise: standard normal, [N, ...] of at least as many elements as the latents; the first are taken."""
        posterior = self.encode(sample).latent_dist
        of_latents = noise.flatten(1)[:, : posterior.mean[0].numel()].view_as(posterior.mean)
        return self.decode(posterior.mean + posterior.std * of_latents).sample, posterior.kl()


def vae_loss(predict: Any, scheduler: None, x0: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """Absolute error and KL, a mean over pixels. The signature is that of a Framework's loss."""
    reconstructed, kl = predict(x0, noise)
    return (reconstructed.float() - x0).abs().mean() + KL_WEIGHT * kl.float().mean() / x0[0].numel()
