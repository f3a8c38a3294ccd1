"""The layouts of official checkpoints: the names and shapes of their tensors."""

import math
from collections.abc import Iterator
from typing import Any

import torch

Shapes = dict[str, tuple[int, ...]]


def weights(name: str, *shape: int) -> Shapes:
    """Of a convolution, a linear layer or a norm."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def random_state(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Nothing in it is zero, as the last convolution of every block is before training."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5 for name, shape in shapes.items()
    }


def adm_shapes(
    num_channels: int = 32,
    widths: tuple[int, ...] = (32, 64, 64),
    attention: tuple[int, ...] = (1,),
    num_res_blocks: int = 1,
    scale_shift: bool = True,
    resample: str = "resnet",
) -> Shapes:
    """Guided diffusion's UNet, by its official names. attention: levels that have it."""
    time, last = 4 * num_channels, len(widths) - 1

    def residual(name: str, channels: int, width: int) -> Shapes:
        return {
            **weights(f"{name}.in_layers.0", channels),
            **weights(f"{name}.in_layers.2", width, channels, 3, 3),
            **weights(f"{name}.emb_layers.1", width * (2 if scale_shift else 1), time),
            **weights(f"{name}.out_layers.0", width),
            **weights(f"{name}.out_layers.3", width, width, 3, 3),
            **(weights(f"{name}.skip_connection", width, channels, 1, 1) if channels != width else {}),
        }

    def attend(name: str, width: int) -> Shapes:
        return {
            **weights(f"{name}.norm", width),
            **weights(f"{name}.qkv", 3 * width, width, 1),
            **weights(f"{name}.proj_out", width, width, 1),
        }

    def resampler(name: str, width: int, convolution: str) -> Shapes:
        if resample == "conv":
            return weights(f"{name}.{convolution}", width, width, 3, 3)
        return residual(name, width, width) if resample == "resnet" else {}

    shapes = {
        **weights("time_embed.0", time, num_channels),
        **weights("time_embed.2", time, time),
        **weights("input_blocks.0.0", widths[0], 3, 3, 3),
    }
    channels, skips, b = widths[0], [widths[0]], 1
    for level, width in enumerate(widths):
        for _ in range(num_res_blocks):
            shapes |= residual(f"input_blocks.{b}.0", channels, width)
            shapes |= attend(f"input_blocks.{b}.1", width) if level in attention else {}
            channels, b = width, b + 1
            skips.append(width)
        if level < last:
            shapes |= resampler(f"input_blocks.{b}.0", width, "op")
            skips.append(width)
            b += 1
    shapes |= residual("middle_block.0", channels, channels) | attend("middle_block.1", channels)
    shapes |= residual("middle_block.2", channels, channels)
    b = 0
    for level in reversed(range(len(widths))):
        for j in range(num_res_blocks + 1):
            shapes |= residual(f"output_blocks.{b}.0", channels + skips.pop(), widths[level])
            channels = widths[level]
            shapes |= attend(f"output_blocks.{b}.1", channels) if level in attention else {}
            if level and j == num_res_blocks:
                shapes |= resampler(f"output_blocks.{b}.{1 + (level in attention)}", channels, "conv")
            b += 1
    return shapes | weights("out.0", channels) | weights("out.2", 6, channels, 3, 3)


def adm_classifier_shapes(num_classes: int = 4, image_size: int = 16, **layout: Any) -> Shapes:
    """Guided diffusion's classifier, by its official names: half of the UNet, and an attention that pools."""
    whole = adm_shapes(**layout)
    kept = {name: shape for name, shape in whole.items() if not name.startswith(("output_blocks.", "out."))}
    channels = kept["middle_block.2.out_layers.0.weight"][0]
    side = image_size >> (len(layout.get("widths", (32, 64, 64))) - 1)
    return {
        **kept,
        **weights("out.0", channels),
        "out.2.positional_embedding": (channels, side**2 + 1),
        **weights("out.2.qkv_proj", 3 * channels, channels, 1),
        **weights("out.2.c_proj", num_classes, channels, 1),
    }


def ddae_shapes(
    n_channels: int = 32,
    ch_mults: tuple[int, ...] = (1, 2, 2),
    attention: tuple[int, ...] = (1,),
    n_blocks: int = 1,
    use_res_for_updown: bool = False,
    augment_dim: int = 0,
) -> Shapes:
    """The UNet of the DDAE paper's code, by its official names. attention: levels that have it."""
    time, last = 4 * n_channels, len(ch_mults) - 1

    def residual(name: str, channels: int, width: int) -> Shapes:
        return {
            **weights(f"{name}.norm1", channels),
            **weights(f"{name}.conv1", width, channels, 3, 3),
            **weights(f"{name}.norm2", width),
            **weights(f"{name}.conv2.1", width, width, 3, 3),
            **(weights(f"{name}.shortcut", width, channels, 1, 1) if channels != width else {}),
            **weights(f"{name}.time_emb.1", width, time),
        }

    def attend(name: str, width: int) -> Shapes:
        return {
            **weights(f"{name}.norm", width),
            **weights(f"{name}.projection", 3 * width, width),
            **weights(f"{name}.output", width, width),
        }

    def resampler(name: str, width: int) -> Shapes:
        if use_res_for_updown:
            return residual(f"{name}.op", width, width)
        return weights(f"{name}.conv", width, width, 3, 3)

    shapes = {
        **weights("image_proj", n_channels, 3, 3, 3),
        **({"time_emb.aug_emb.weight": (n_channels, augment_dim)} if augment_dim else {}),
        **weights("time_emb.lin1", time, n_channels),
        **weights("time_emb.lin2", time, time),
    }
    widths = [n_channels * multiplier for multiplier in ch_mults]
    channels, skips, k = n_channels, [n_channels], 0
    for level, width in enumerate(widths):
        for _ in range(n_blocks):
            shapes |= residual(f"down.{k}.res", channels, width)
            shapes |= attend(f"down.{k}.attn", width) if level in attention else {}
            channels, k = width, k + 1
            skips.append(width)
        if level < last:
            shapes |= resampler(f"down.{k}", width)
            skips.append(width)
            k += 1
    shapes |= residual("middle.res1", channels, channels) | attend("middle.attn", channels)
    shapes |= residual("middle.res2", channels, channels)
    k = 0
    for level in reversed(range(len(widths))):
        for _ in range(n_blocks + 1):
            shapes |= residual(f"up.{k}.res", channels + skips.pop(), widths[level])
            channels = widths[level]
            shapes |= attend(f"up.{k}.attn", channels) if level in attention else {}
            k += 1
        if level:
            shapes |= resampler(f"up.{k}", channels)
            k += 1
    return shapes | weights("norm", channels) | weights("final", 3, channels, 3, 3)


def nvlabs_blocks(stem: int, size: int, widths: tuple[int, ...], num_blocks: int) -> Iterator[tuple[str, int, int]]:
    """(name, channels in, channels out) of the blocks of NVlabs' UNets, in the order in which the data meets them."""
    now, skips = stem, [stem]
    for level, width in enumerate(widths):
        here = f"enc.{size >> level}x{size >> level}"
        if level:
            yield f"{here}_down", now, now
            skips.append(now)
        for j in range(num_blocks):
            yield f"{here}_block{j}", now, width
            now = width
            skips.append(now)
    for level, width in reversed(list(enumerate(widths))):
        here = f"dec.{size >> level}x{size >> level}"
        for name in ("in0", "in1") if level == len(widths) - 1 else ("up",):
            yield f"{here}_{name}", now, now
        for j in range(num_blocks + 1):
            yield f"{here}_block{j}", now + skips.pop(), width
            now = width


def attends(name: str, attention: tuple[int, ...]) -> bool:
    """Whether a block has attention: the first of the middle, and those at sizes that have it."""
    size = int(name.split(".")[1].split("x")[0])
    return name.endswith("_in0") or ("_block" in name and size in attention)


def song_unet_shapes(
    size: int = 8,
    stem: int = 8,
    widths: tuple[int, ...] = (16, 8),
    attention: tuple[int, ...] = (4,),
    num_blocks: int = 1,
    channels: int = 3,
    num_labels: int = 0,
    num_augments: int = 0,
    ncsn: bool = False,
) -> Shapes:
    """NVlabs' DDPM++, by its official names and in the order the data meets them, or NCSN++. attention: sizes that have
    it."""
    taps, noise = (4, 2 * stem) if ncsn else (2, stem)

    def residual(name: str, old: int, new: int, attend: bool = False, resample: bool = False) -> Shapes:
        filters = {f"{name}.{module}.resample_filter": (1, 1, taps, taps) for module in ("conv0", "skip")}
        return {
            **weights(f"{name}.norm0", old),
            **weights(f"{name}.conv0", new, old, 3, 3),
            **weights(f"{name}.affine", new, 4 * stem),
            **weights(f"{name}.norm1", new),
            **weights(f"{name}.conv1", new, new, 3, 3),
            **(weights(f"{name}.skip", new, old, 1, 1) if resample or old != new else {}),
            **(filters if resample else {}),
            **(weights(f"{name}.norm2", new) if attend else {}),
            **(weights(f"{name}.qkv", 3 * new, new, 1, 1) if attend else {}),
            **(weights(f"{name}.proj", new, new, 1, 1) if attend else {}),
        }

    shapes = {
        **({"map_noise.freqs": (noise // 2,)} if ncsn else {}),
        **(weights("map_label", noise, num_labels) if num_labels else {}),
        **({"map_augment.weight": (noise, num_augments)} if num_augments else {}),
        **weights("map_layer0", 4 * stem, noise),
        **weights("map_layer1", 4 * stem, 4 * stem),
        **weights(f"enc.{size}x{size}_conv", stem, channels, 3, 3),
    }
    level = 0
    for name, old, new in nvlabs_blocks(stem, size, widths, num_blocks):
        early = name.startswith("dec.") and "_block" in name and not name.endswith(f"_block{num_blocks}")
        shapes |= residual(name, old, new, attends(name, attention) and not early, name.endswith(("_down", "_up")))
        if ncsn and name.endswith("_down"):
            level += 1
            image = channels if level == 1 else widths[level - 2]
            side = name.removesuffix("_down")
            shapes |= weights(f"{side}_aux_residual", new, image, 3, 3)
            shapes[f"{side}_aux_residual.resample_filter"] = (1, 1, taps, taps)
    top = f"dec.{size}x{size}_aux"
    return shapes | weights(f"{top}_norm", new) | weights(f"{top}_conv", channels, new, 3, 3)


def song_unet_state(**layout: Any) -> dict[str, torch.Tensor]:
    """Random weights of song_unet_shapes, with the filters that NVlabs' networks have."""
    state, taps = random_state(song_unet_shapes(**layout)), torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for name in state:
        if name.endswith(".resample_filter"):
            state[name] = taps.outer(taps)[None, None] if layout.get("ncsn") else torch.full((1, 1, 2, 2), 0.25)
    return state


def dhariwal_shapes(
    size: int = 8,
    model_channels: int = 64,
    widths: tuple[int, ...] = (64, 128),
    attention: tuple[int, ...] = (4,),
    num_blocks: int = 1,
    out_channels: int = 3,
    num_labels: int = 0,
    num_augments: int = 0,
) -> Shapes:
    """ADM as NVlabs' EDM code has it. attention: sizes that have it."""
    embedding = 4 * model_channels

    def residual(name: str, old: int, new: int, attend: bool = False, resample: bool = False) -> Shapes:
        filters = {f"{name}.{module}.resample_filter": (1, 1, 2, 2) for module in ("conv0", "skip")}
        return {
            **weights(f"{name}.norm0", old),
            **weights(f"{name}.conv0", new, old, 3, 3),
            **weights(f"{name}.affine", 2 * new, embedding),
            **weights(f"{name}.norm1", new),
            **weights(f"{name}.conv1", new, new, 3, 3),
            **(weights(f"{name}.skip", new, old, 1, 1) if old != new else {}),
            **(filters if resample else {}),
            **(weights(f"{name}.norm2", new) if attend else {}),
            **(weights(f"{name}.qkv", 3 * new, new, 1, 1) if attend else {}),
            **(weights(f"{name}.proj", new, new, 1, 1) if attend else {}),
        }

    shapes = {
        **({"map_augment.weight": (model_channels, num_augments)} if num_augments else {}),
        **weights("map_layer0", embedding, model_channels),
        **weights("map_layer1", embedding, embedding),
        **({"map_label.weight": (embedding, num_labels)} if num_labels else {}),
        **weights(f"enc.{size}x{size}_conv", widths[0], 3, 3, 3),
    }
    for name, old, new in nvlabs_blocks(widths[0], size, widths, num_blocks):
        shapes |= residual(name, old, new, attends(name, attention), name.endswith(("_down", "_up")))
    return shapes | weights("out_norm", new) | weights("out_conv", out_channels, new, 3, 3)


def edm2_shapes(
    size: int = 8,
    widths: tuple[int, ...] = (64, 128),
    attention: tuple[int, ...] = (4,),
    num_blocks: int = 1,
    channels: int = 3,
    num_labels: int = 0,
) -> Shapes:
    """NVlabs' EDM2, by its official names and in the order the data meets them. attention: sizes that have it."""
    embedding = max(widths)

    def residual(name: str, old: int, new: int, decoder: bool = False, attend: bool = False) -> Shapes:
        return {
            f"{name}.emb_gain": (),
            f"{name}.conv_res0.weight": (new, old if decoder else new, 3, 3),
            f"{name}.emb_linear.weight": (new, embedding),
            f"{name}.conv_res1.weight": (new, new, 3, 3),
            **({f"{name}.conv_skip.weight": (new, old, 1, 1)} if old != new else {}),
            **({f"{name}.attn_qkv.weight": (3 * new, new, 1, 1)} if attend else {}),
            **({f"{name}.attn_proj.weight": (new, new, 1, 1)} if attend else {}),
        }

    shapes: Shapes = {
        "out_gain": (),
        "emb_fourier.freqs": widths[:1],
        "emb_fourier.phases": widths[:1],
        "emb_noise.weight": (embedding, widths[0]),
        **({"emb_label.weight": (embedding, num_labels)} if num_labels else {}),
        f"enc.{size}x{size}_conv.weight": (widths[0], channels + 1, 3, 3),
    }
    for name, old, new in nvlabs_blocks(widths[0], size, widths, num_blocks):
        shapes |= residual(name, old, new, name.startswith("dec."), attends(name, attention))
    return shapes | {"out_conv.weight": (channels, new, 3, 3)}


def dit_shapes(
    hidden_size: int = 16,
    depth: int = 2,
    patch_size: int = 2,
    input_size: int = 8,
    num_labels: int = 4,
    in_channels: int = 4,
    out_channels: int = 8,
    mlp_ratio: float = 4,
) -> Shapes:
    """Meta's DiT, by its official names. num_labels: the classes and the null class."""
    inner = int(mlp_ratio * hidden_size)
    shapes = {
        "pos_embed": (1, (input_size // patch_size) ** 2, hidden_size),
        **weights("x_embedder.proj", hidden_size, in_channels, patch_size, patch_size),
        **weights("t_embedder.mlp.0", hidden_size, 256),
        **weights("t_embedder.mlp.2", hidden_size, hidden_size),
        "y_embedder.embedding_table.weight": (num_labels, hidden_size),
    }
    for i in range(depth):
        shapes |= weights(f"blocks.{i}.attn.qkv", 3 * hidden_size, hidden_size)
        shapes |= weights(f"blocks.{i}.attn.proj", hidden_size, hidden_size)
        shapes |= weights(f"blocks.{i}.mlp.fc1", inner, hidden_size)
        shapes |= weights(f"blocks.{i}.mlp.fc2", hidden_size, inner)
        shapes |= weights(f"blocks.{i}.adaLN_modulation.1", 6 * hidden_size, hidden_size)
    shapes |= weights("final_layer.linear", patch_size**2 * out_channels, hidden_size)
    return shapes | weights("final_layer.adaLN_modulation.1", 2 * hidden_size, hidden_size)
