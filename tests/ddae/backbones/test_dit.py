import json
from argparse import Namespace

import pytest
import torch

from ddae.backbones import Settings, load_backbone
from ddae.backbones.dit import from_state
from tests.ddae.backbones import official, tiny
from tests.ddae.backbones.formulae import dit

NULL = 3
"""The last of dit_shapes's four labels."""


@pytest.fixture
def load(tmp_path):
    """(state dict, sidecar, settings) -> Backbone."""

    def make(state, options=None, settings=None):
        torch.save(state, tmp_path / "dit.pt")
        (tmp_path / "dit.json").write_text(json.dumps(options or {}))
        tiny.make_vae().save_pretrained(tmp_path / "vae")
        return load_backbone(str(tmp_path / "dit.pt"), settings or Settings())

    return make


def maps_of(backbone, x_t, timestep=121) -> dict:
    return backbone.capture(x_t, timestep, [block.name for block in backbone.blocks], lambda map: map)


@torch.no_grad()
@pytest.mark.parametrize(
    ("shapes", "num_heads"),
    [
        ({}, 2),
        ({"patch_size": 4, "input_size": 16, "depth": 3}, 4),
        ({"patch_size": 8, "input_size": 32, "num_labels": 1001, "out_channels": 4}, 1),
        ({"mlp_ratio": 2, "patch_size": 2, "in_channels": 4}, 2),
        ({"hidden_size": 384, "depth": 1}, 6),
        ({"hidden_size": 768, "depth": 1}, 12),
        ({"hidden_size": 1024, "depth": 1}, 16),
        ({"hidden_size": 1152, "depth": 1, "patch_size": 4}, 16),
    ],
)
def test_official_checkpoints_compute_what_the_paper_says(load, shapes, num_heads):
    state = official.random_state(official.dit_shapes(**shapes))
    known = shapes.get("hidden_size", 0) >= 384
    backbone = load(state, {} if known else {"num_heads": num_heads})
    x_t = torch.randn(2, 4, *backbone.encoder.shape[1:], generator=torch.Generator().manual_seed(1))
    expected = dit(state, x_t, 121, len(state["y_embedder.embedding_table.weight"]) - 1, num_heads)
    maps = maps_of(backbone, x_t)
    assert list(maps) == list(expected)
    for name, map in maps.items():
        torch.testing.assert_close(map, expected[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_diffusers_folder_runs_as_the_checkpoint_it_was_converted_from(load, tmp_path):
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    backbone = load(official.random_state(official.dit_shapes(num_labels=NULL + 1)), {"num_heads": 2})
    stock = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=NULL,
    ).eval()  # fmt: skip
    stock.load_state_dict(backbone.network.state_dict())
    stock.pos_embed.pos_embed.copy_(backbone.network.pos_embed.pos_embed)
    x_t = torch.randn(2, 4, 8, 8)
    maps = maps_of(backbone, x_t)
    outputs = []
    stock.transformer_blocks[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    stock(x_t, torch.full((2,), 121), torch.full((2,), NULL))
    assert not torch.allclose(outputs[0].transpose(1, 2).flatten(2), maps["block.1"].flatten(2), atol=1e-2)

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02)
    DiTPipeline(stock, tiny.make_vae(), scheduler).save_pretrained(tmp_path / "pipeline")
    for folder in ("pipeline", "pipeline/transformer"):
        converted = load_backbone(str(tmp_path / folder))
        converted.network.pos_embed.pos_embed.copy_(backbone.network.pos_embed.pos_embed)
        for name, map in maps_of(converted, x_t).items():
            assert torch.equal(map, maps[name])
        assert converted.schedule.timesteps == backbone.schedule.timesteps
        assert converted.sigma(121) == pytest.approx(backbone.sigma(121), rel=1e-5)


def test_positions_of_a_folder_are_the_official_ones(tmp_path):
    """MAE's fixed sine-cosine embedding: the first half of the channels for the column, the second for the row."""
    from diffusers import DiTTransformer2DModel

    DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8).save_pretrained(
        tmp_path / "model"
    )
    tiny.make_vae().save_pretrained(tmp_path / "vae")
    positions = load_backbone(str(tmp_path / "model")).network.pos_embed.pos_embed[0].unflatten(0, (4, 4))
    for row in range(4):
        for column in range(4):
            angles = [place * 10000 ** (-torch.arange(4) / 4) for place in (column, row)]
            expected = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())])
            torch.testing.assert_close(positions[row, column], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_every_image_gets_the_null_class(load):
    state = official.random_state(official.dit_shapes(num_labels=NULL + 1))
    x_t, table = torch.randn(2, 4, 8, 8), state["y_embedder.embedding_table.weight"]
    before = maps_of(load(state, {"num_heads": 2}), x_t)["block.1"]
    table[:NULL] += 1
    assert torch.equal(maps_of(load(state, {"num_heads": 2}), x_t)["block.1"], before)
    table[NULL] += 1
    assert not torch.allclose(maps_of(load(state, {"num_heads": 2}), x_t)["block.1"], before)


def test_noise_is_the_linear_schedule_of_a_thousand(load):
    backbone = load(official.random_state(official.dit_shapes()), {"num_heads": 2})
    assert backbone.schedule.timesteps == range(1000)
    alpha = 1.0
    for t in range(1000):
        alpha *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert backbone.sigma(t) == pytest.approx(((1 - alpha) / alpha) ** 0.5, rel=1e-9)


def test_xl_2_is_counted_as_in_the_paper(tmp_path):
    """675M parameters, of which none is written to."""
    shapes = official.dit_shapes(hidden_size=1152, depth=28, input_size=32, num_labels=1001)
    tiny.make_vae(levels=4).save_pretrained(tmp_path / "vae")
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    backbone = from_state(state, tmp_path / "DiT-XL-2-256x256.pt", "random", Settings())

    def millions(until: int) -> float:
        names = ("pos_embed", "transformer_blocks.0.norm1.emb", *(f"transformer_blocks.{i}." for i in range(until)))
        named = backbone.network.named_parameters()
        return sum(parameter.numel() for name, parameter in named if name.startswith(names)) / 1e6

    assert sum(parameter.numel() for parameter in backbone.network.parameters()) / 1e6 == pytest.approx(675, abs=0.5)
    assert backbone.image_size == 256 and backbone.encoder.shape == (4, 32, 32)
    assert [block.name for block in backbone.blocks] == [f"block.{i}" for i in range(28)]
    assert all((block.channels, block.size) == (1152, 16) for block in backbone.blocks)
    best = backbone.blocks[12]  # the paper's 12/28, with 314M parameters up to it
    assert (best.index, best.alias, best.module) == (12, "layer-12", "transformer_blocks.12")
    assert millions(13) == pytest.approx(314, abs=0.5)
    assert best.flops_share == pytest.approx(0.464, abs=0.001)


def test_images_of_another_size(load):
    state, options = official.random_state(official.dit_shapes()), {"num_heads": 2}
    backbone = load(state, options, Settings(image_size=32))
    assert backbone.encoder.shape == (4, 16, 16) and backbone.blocks[0].size == 8
    with pytest.raises(ValueError, match=r"image_size=30 does not suit .*dit.pt; it takes multiples of 4"):
        load(state, options, Settings(image_size=30))


def test_the_residual_stream_stays_float32_under_autocast(load):
    state, options = official.random_state(official.dit_shapes()), {"num_heads": 2}
    x_t = torch.randn(2, 4, 8, 8)
    exact, rounded = (
        maps_of(load(state, options, Settings(precision=precision)), x_t) for precision in ("float32", "bfloat16")
    )
    for name, map in rounded.items():
        assert map.dtype == torch.float32 and not torch.equal(map, exact[name])
        torch.testing.assert_close(map, exact[name], rtol=0.1, atol=0.1)


def test_the_moving_average_of_a_training_checkpoint_is_read(load):
    state = official.random_state(official.dit_shapes())
    other = {name: tensor + 1 for name, tensor in state.items()}
    checkpoint = {"model": other, "ema": state, "opt": {"state": {}}, "args": Namespace(image_size=256)}
    x_t = torch.randn(2, 4, 8, 8)
    expected = maps_of(load(state, {"num_heads": 2}), x_t)["block.1"]
    assert torch.equal(maps_of(load(checkpoint, {"num_heads": 2}), x_t)["block.1"], expected)


@pytest.mark.parametrize(
    ("said", "options", "named"),
    [
        ({}, {}, True),
        ({"model": "DiT-S/2"}, {}, False),
        ({"model": "DiT-B/2"}, {}, True),
        ({}, {"num_heads": 6}, False),
    ],
)
def test_heads_that_nothing_tells_are_named(load, caplog, said, options, named):
    state = official.random_state(official.dit_shapes(hidden_size=384, depth=1))
    load({"ema": state, "args": Namespace(**said)}, options)
    assert ("nothing beside it says, num_heads=6; taking" in caplog.text) == named


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {}, r"dit.pt: hidden size 16 with num_heads=0 is not known; give the `num_heads` .* in .*dit.json"),
        ({}, {"num_heads": 3}, r"hidden size 16 with num_heads=3 is not known"),
        ({}, {"num_heads": 0}, r"hidden size 16 with num_heads=0 is not known"),
        ({}, {"num_heads": 2, "hidden_size": 32}, r"says hidden_size=32, but its tensors have 16"),
        ({}, {"num_heads": 2, "depth": 28}, r"says depth=28, but its tensors have 2"),
        ({}, {"num_heads": 2, "patch_size": 4}, r"says patch_size=4, but its tensors have 2"),
        ({}, {"num_heads": 2, "input_size": 32}, r"says input_size=32, but its tensors have 8"),
        ({}, {"num_heads": 2, "mlp_ratio": 2}, r"says mlp_ratio=2, but its tensors have 4.0"),
        ({}, {"num_heads": 2, "num_classes": 4}, r"says num_classes=4, but its tensors have 3"),
        ({}, {"num_heads": 2, "learn_sigma": False}, r"says learn_sigma=False, but its tensors have True"),
        ({}, {"num_heads": "2"}, r"num_heads='2'; it must be a whole number"),
        ({}, {"num_heads": [2]}, r"num_heads=\[2\]; it must be a whole number"),
        ({}, {"num_heads": 2, "class_dropout_prob": "0"}, r"class_dropout_prob='0'; it must be a number"),
        ({}, {"num_heads": 2, "vae": True}, r"vae=True; it must be a word"),
        ({}, {"num_head": 2}, r"'num_head' is no option of this network; did you mean 'num_heads'"),
        ({}, {"num_heads": 2, "class_dropout_prob": 0}, r"no null class .* class_dropout_prob=0"),
        ({"blocks.0.attn.q_norm.weight": (8,)}, {"num_heads": 2}, r"\(qk_norm\), as blocks.0.attn.q_norm.weight shows"),
        ({"text_embedder.weight": (8,)}, {"num_heads": 2}, r"1 tensors that its network should not .*: text_embedder"),
        (
            {"blocks.1.mlp.fc1.bias": None},
            {"num_heads": 2},
            r"does not fit its network: .*transformer_blocks.1.ff.net.0",
        ),
        ({"x_embedder.proj.weight": (16, 16)}, {"num_heads": 2}, r"is no DiT: .* but tokens, as FiT's does"),
        ({"pos_embed": None}, {"num_heads": 2}, r"is no DiT: it has x_embedder.proj.weight, but no pos_embed"),
        ({"y_embedder.embedding_table.weight": None}, {"num_heads": 2}, r"is no DiT: .* no y_embedder.embedding_table"),
    ],
)
def test_what_is_no_dit_says_why(load, change, options, message):
    state = official.random_state(official.dit_shapes())
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        load(state, options)
