"""Mirrored images, and EDM's augmentation, which does not leak into what is generated: the network is told the
parameters, and asked for images with all of them at zero (Karras et al. 2022, appendix F.2)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

AUGMENT_DIM = 9
"""Parameters: mirrored left to right, upside down; size; cosine - 1 and sine of a rotation; strength times cosine and
sine of the direction of a stretch; shift along x and y."""


def draw_mirrored(num_images: int, rng: torch.Generator) -> Tensor:
    """1 for images to be mirrored, every second one, float32 [N]."""
    return (torch.rand(num_images, generator=rng) < 0.5).float()


def mirror(images: Tensor, mirrored: Tensor, axis: int = -1) -> Tensor:
    """Images [N, C, H, W], mirrored where mirrored [N] is 1."""
    return torch.where((mirrored > 0)[:, None, None, None], images.flip(axis), images)


def draw_parameters(num_images: int, probability: float, rng: torch.Generator) -> Tensor:
    """[N, AUGMENT_DIM]; every second image is mirrored, and each other change made with this probability, by itself."""
    normal = torch.randn((num_images, 4), generator=rng)
    angle, along = (2 * torch.rand((2, num_images), generator=rng) - 1) * math.pi
    upside_down, size, turned, stretched, shifted = torch.rand((5, num_images), generator=rng) < probability
    angle, strength = angle * turned, normal[:, 1] * stretched
    parameters = [
        draw_mirrored(num_images, rng), draw_mirrored(num_images, rng) * upside_down, normal[:, 0] * size,
        angle.cos() - 1, angle.sin(), strength * along.cos(), strength * along.sin(),
        normal[:, 2] * shifted, normal[:, 3] * shifted,
    ]  # fmt: skip
    return torch.stack(parameters, dim=1)


def augment(images: Tensor, parameters: Tensor) -> Tensor:
    """Change images [N, C, S, S] as their parameters [N, AUGMENT_DIM] say; those without a parameter stay as they are.

    Sizes and stretches are 2^(0.2 parameter), shifts an eighth of the side. Sampling is bilinear, over borders that
    reflect, where the official code filters with wavelets.
    """
    left_right, upside_down, size, cos_less_1, sin, *stretch, x, y = parameters.T
    images = mirror(mirror(images, left_right), upside_down, axis=-2)
    warped = parameters[:, 2:].ne(0).any(dim=1)
    if not warped.any():
        return images
    strength, along = torch.hypot(*stretch), torch.atan2(stretch[1], stretch[0])
    # where in the image each pixel comes from: the inverse of what is done to it
    squeeze = torch.diag_embed(2 ** (0.2 * torch.stack([-strength, strength], dim=1)))
    turn = torch.stack([cos_less_1 + 1, sin, -sin, cos_less_1 + 1], dim=1).view(-1, 2, 2)
    matrix = 2 ** (-0.2 * size)[:, None, None] * (turn @ rotation(along) @ squeeze @ rotation(-along))
    offset = -matrix @ (0.25 * torch.stack([x, y], dim=1))[:, :, None]  # coordinates go from -1 to 1
    grid = functional.affine_grid(
        torch.cat([matrix, offset], dim=2)[warped], list(images[warped].shape), align_corners=False
    )
    changed = images.clone()
    changed[warped] = functional.grid_sample(images[warped], grid, padding_mode="reflection", align_corners=False)
    return changed


def rotation(angle: Tensor) -> Tensor:
    """[N] -> [N, 2, 2]"""
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
