"""What networks compute, written out from their papers and codes over the official tensors."""

import torch
from torch.nn import functional


def dit(state: dict, x, timestep: float, label: int, num_heads: int) -> dict:
    """Peebles & Xie (2023), section 3.2, with adaLN-Zero, from the official tensors -> the map of every block."""

    def linear(name, input):
        return functional.linear(input, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(input, shift, scale):
        return functional.layer_norm(input, input.shape[-1:], eps=1e-6) * (1 + scale) + shift

    patches, size = state["x_embedder.proj.weight"], state["x_embedder.proj.weight"].shape[-1]
    map = functional.conv2d(x, patches, state["x_embedder.proj.bias"], stride=size)
    tokens = map.flatten(2).transpose(1, 2) + state["pos_embed"]
    angles = timestep * 10000 ** (-torch.arange(128) / 128)
    time = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()]))
    condition = linear("t_embedder.mlp.2", functional.silu(time)) + state["y_embedder.embedding_table.weight"][label]
    maps = {}
    for i in range(sum(name.endswith("attn.qkv.weight") for name in state)):
        block = f"blocks.{i}"
        modulation = linear(f"{block}.adaLN_modulation.1", functional.silu(condition))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.chunk(6)
        qkv = linear(f"{block}.attn.qkv", norm(tokens, shift_1, scale_1))
        q, k, v = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(3) @ v
        tokens = tokens + gate_1 * linear(f"{block}.attn.proj", attention.transpose(1, 2).flatten(2))
        hidden = functional.gelu(linear(f"{block}.mlp.fc1", norm(tokens, shift_2, scale_2)), approximate="tanh")
        tokens = tokens + gate_2 * linear(f"{block}.mlp.fc2", hidden)
        maps[f"block.{i}"] = tokens.transpose(1, 2).unflatten(2, map.shape[2:])
    return maps
