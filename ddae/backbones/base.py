"""What every diffusion network looks like to the rest of the project."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """One place in the network where a feature can be read."""

    name: str
    index: int
    """1-based within its stage; in the up path it is the k of the DDAE paper's out_k."""
    stage: str
    """down, mid or up."""
    channels: int
    size: int
    """Side of its square map."""
    flops_share: float
    """Share of a full forward pass's floating-point operations spent up to and with this block."""


class Backbone(Protocol):
    """A frozen denoiser that applies its own preconditioning."""

    fingerprint: str
    """Hash of weights and configuration."""
    blocks: tuple[Block, ...]
    """In the order the data meets them."""
    image_size: int
    num_timesteps: int
    flops: int
    """Floating-point operations of one full forward pass of one image."""

    def sigma(self, timestep: int) -> float:
        """Noise-to-signal ratio at a native timestep."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> x0, float32 on the network's device."""
        ...

    def activations(
        self,
        x0: Tensor,
        noise: Tensor,
        timestep: int,
        blocks: Sequence[str],
        reduce: Callable[[Tensor], Tensor] = lambda map: map,
    ) -> dict[str, Tensor]:
        """reduce([N, C, H, W]) of every named block, in one forward pass that stops after the deepest of them.

        reduce is applied as each map appears, so that full maps need not be held together.
        """
        ...


class _DeepestReached(Exception):
    """Ends a forward pass whose remaining blocks nobody asked for."""


def capture(
    modules: dict[str, nn.Module],
    names: Sequence[str],
    forward: Callable[[], object],
    reduce: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Run forward() and keep reduce(output) of the named modules; modules is in the order the data meets them."""
    missing = [name for name in names if name not in modules]
    if missing:
        raise ValueError(f"block={missing[0]!r} is not in this backbone; it has: {', '.join(modules)}")
    wanted = [name for name in modules if name in names]
    captured: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output) -> None:
            captured[name] = reduce(output[0] if isinstance(output, tuple) else output)
            if name == wanted[-1]:
                raise _DeepestReached

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in wanted]
    try:
        forward()
    except _DeepestReached:
        pass
    finally:
        for handle in hooks:
            handle.remove()
    return captured
