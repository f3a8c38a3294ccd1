"""Guidance in one pass: the head that names the class reads a block of the very pass that denoises, and its gradient
walks back from that block alone (Denoising Diffusion Autoencoders, Xiang et al. 2023, section 4.1.3).

    classifier = NoisyClassifier.load("out/noisy-classifier")
    backbone = classifier.open()
    guide = Guide.towards(classifier, backbone, ["bag", "coat"], scale=5)
    images = backbone.encoder.decode(sample(backbone, range(64), denoise=guide))
    pipeline.unet = GuidedNetwork(guide, pipeline.scheduler)  # the same in a pipeline of diffusers

A guided step costs 1 + kappa forward passes, where kappa is the share of the pass up to the block: the gradient is that
of the input alone, and takes as many operations as the forward pass of that part; of the products in attention, both of
whose factors depend on the input, it takes twice as many.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddae.backbones import Backbone
from ddae.backbones.hooks import hooked
from ddae.backbones.predictions import PREDICTIONS
from ddae.nearest import did_you_mean
from ddae.noise import VP, Flow
from ddae.noisy_classifier import NoisyClassifier

Scalar = Callable[[Tensor, Tensor, np.ndarray], Tensor]
"""(map of the block [N, C, S, S], ln(sigma / alpha) [N], numbers of the images [N]) -> what is to grow, [N]. Image i's
depends on row i alone."""


def log_prob(logits: Callable[[Tensor, Tensor], Tensor], labels: Sequence[int] | np.ndarray) -> Scalar:
    """ln p(label | x_t). logits: (map, ln(sigma / alpha)) -> [N, K]. Image number i has labels[i % len(labels)]."""
    labels = np.asarray(labels)

    def scalar(map: Tensor, log_sigma: Tensor, numbers: np.ndarray) -> Tensor:
        wanted = torch.from_numpy(labels[numbers % len(labels)]).to(map.device)
        return logits(map, log_sigma).log_softmax(1).gather(1, wanted[:, None])[:, 0]

    return scalar


@dataclass(frozen=True)
class Guide:
    """A `denoise` for ddae.generation.sampling: x0 moved so that a scalar of a block's map grows.

    The score becomes score + scale * gradient of the scalar to x_t. As the score of x_t = alpha x0 + sigma noise is
    (alpha x0 - x_t) / sigma^2, x0 moves by scale * sigma^2 / alpha * gradient, whatever the network predicts: that is
    eps - scale * sigma * gradient under DDIM, D + scale * sigma^2 * gradient under EDM, and under DDPM a mean that
    moves by scale * beta / sqrt(1 - beta) * gradient (Dhariwal & Nichol 2021, algorithms 1 and 2). Where x_t is noise
    alone (alpha = 0), and at scale 0, nothing moves and no gradient is taken.
    """

    backbone: Backbone
    block: str
    scalar: Scalar
    scale: float

    def __post_init__(self) -> None:
        """Raises ValueError for a block or a network that cannot guide."""
        self.backbone.block(self.block)
        settings = self.backbone.settings
        if settings.offload:
            raise ValueError("offload=True takes the weights away before the gradient needs them; leave it out")
        if settings.precision == "float16":
            raise ValueError("precision='float16' loses small gradients; guide in bfloat16 or float32")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale} is no finite number; give one such as 5")

    @classmethod
    def towards(cls, classifier: NoisyClassifier, backbone: Backbone, classes: Sequence[str], scale: float) -> "Guide":
        """Image number i is to be of classes[i % len(classes)]. Raises ValueError for a class that is not there, and
        for another network than the classifier's."""
        classifier.check(backbone)
        known = classifier.class_names
        for name in classes:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"class {name!r} is not there; the classifier knows {', '.join(known)}{hint}")
        labels = [known.index(name) for name in classes]
        return cls(backbone, classifier.block, log_prob(classifier.logits, labels), scale)

    @property
    def cost(self) -> float:
        """Forward passes that a guided step takes, the head left out: 1 + kappa."""
        return 1 + self.backbone.block(self.block).flops_share

    def __call__(self, x_t: Tensor, timestep: int, numbers: np.ndarray) -> Tensor:
        """x0, float32 [N, *shape]. Raises ValueError where it is no number."""
        alpha, sigma = self.backbone.schedule.scales(timestep)
        if not self.scale or not alpha:
            return self.backbone.denoise(x_t, timestep)
        log_sigma = torch.full((len(x_t),), math.log(sigma / alpha), device=x_t.device)
        x0, gradient = denoise_with_gradient(
            self.backbone, x_t, timestep, self.block, lambda map: self.scalar(map, log_sigma, numbers)
        )
        guided = x0 + self.scale * sigma**2 / alpha * gradient
        if not guided.isfinite().all():
            raise ValueError(f"scale={self.scale:g} makes what is no number at timestep {timestep}; give a smaller one")
        return guided


def denoise_with_gradient(
    backbone: Backbone, x_t: Tensor, timestep: int, block: str, read: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(x0 as backbone.denoise, the gradient to x_t of the sum of read(the block's map)), from one pass.

    The gradient is taken the moment the block has run, so that its graph is gone before the rest of the pass, which
    keeps none. Raises ValueError where it does not reach x_t."""
    with torch.enable_grad():
        x = x_t.detach().requires_grad_().clone()  # no leaf, behind which torch's FLOP counter cannot count
    gradients: list[Tensor] = []

    def take(name: str, output: Any) -> None:
        if gradients:
            return
        with torch.autocast(x.device.type, enabled=False):
            value = read(backbone.map_of(output).float()).sum()
        if not value.requires_grad:
            raise ValueError(f"block={block!r} of this network has no gradient to its input; choose another block")
        gradients.extend(torch.autograd.grad(value, x))
        torch.set_grad_enabled(False)  # until the block of `with` below ends

    with torch.enable_grad(), hooked({block: backbone.modules[block]}, take):
        x0 = backbone.denoise(x, timestep)
    return x0.detach(), gradients[0]


class GuidedNetwork(nn.Module):
    """Predicts as guided, in the place of the network of a diffusers pipeline that gives it nothing but x_t and the
    timestep: `pipeline.unet = GuidedNetwork(guide, pipeline.scheduler)`. Image i of a batch has number i.

    Raises ValueError for a scheduler of other noise than the network's.
    """

    def __init__(self, guide: Guide, scheduler: Any):
        super().__init__()
        self.guide, schedule = guide, guide.backbone.schedule
        self.network = guide.backbone.network
        kind = scheduler.config.get("prediction_type", "epsilon")
        if isinstance(schedule, VP):
            there = getattr(scheduler, "alphas_cumprod", torch.empty(0)).tolist()
            same = schedule.first == 0 and np.shape(there) == np.shape(schedule.alphas_cumprod)
            same = same and np.allclose(there, schedule.alphas_cumprod, atol=1e-6)
        else:
            same, kind = isinstance(schedule, Flow) and hasattr(scheduler, "sigmas"), "flow_prediction"
        if not same or kind not in PREDICTIONS:
            raise ValueError(
                f"the pipeline's {type(scheduler).__name__} noises or predicts otherwise than the guide's network; "
                "give a pipeline of the same folder, or use ddae.generation.sampling.sample"
            )
        self.predicted = PREDICTIONS[kind]

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True, **others: Any) -> Any:
        """As the network's own forward."""
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise ValueError(f"the pipeline gives its network {', '.join(given)}, which guidance does not pass on")
        times = torch.as_tensor(timestep).flatten().tolist()
        if len(set(times)) > 1 or times[0] != int(times[0]):
            raise ValueError(f"timestep={times} is not one whole number, as guidance takes it; choose other steps")
        alpha, sigma = self.guide.backbone.schedule.scales(int(times[0]))
        x0 = self.guide(sample, int(times[0]), np.arange(len(sample)))
        unpredicted = self.predicted(torch.zeros_like(sample), sample, alpha, sigma)
        slope = self.predicted(torch.ones(()), torch.zeros(()), alpha, sigma)
        output = (x0 - unpredicted) / slope
        return SimpleNamespace(sample=output) if return_dict else (output,)
