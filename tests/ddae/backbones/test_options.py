"""The files of options beside checkpoints."""

import itertools
import json

import pytest

from ddae.backbones.options import read_options


def laughs(first, again):
    """Nine anchors, each of which names the one before it nine times."""
    lines = (f"{b}: &{b} {again.format(', '.join([f'*{a}'] * 9))}\n" for a, b in itertools.pairwise("abcdefghij"))
    return f"a: &a {first}\n" + "".join(lines)


@pytest.mark.parametrize(
    ("suffix", "content", "match"),
    [
        (".yaml", laughs("[1, 2]", "[{}]"), "aliases"),
        (".yaml", laughs("{x: 1}", "{{<<: [{}]}}"), "aliases"),
        (".yaml", "a: " + "[" * 5000, "cannot be read"),
        (".json", '{"a": ' + "[" * 100_000, "cannot be read"),
        (".json", '{"a": "' + "x" * 400_000 + '"}', "too many"),
        (".json", '{"a": ' + "9" * 5000 + "}", "cannot be read"),
    ],
)  # fmt: skip
def test_no_sidecar_takes_time_or_memory_without_end(suffix, content, match, tmp_path):
    (tmp_path / f"model{suffix}").write_text(content)
    with pytest.raises(ValueError, match=match) as refusal:
        read_options(tmp_path / "model.pt")
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_two_sidecars_must_say_the_same(tmp_path):
    (tmp_path / "model.json").write_text('{"num_heads": 2, "image_size": 16}')
    (tmp_path / "model.yaml").write_text("image_size: 16\nnum_heads: 2\n")
    assert read_options(tmp_path / "model.pt") == {"num_heads": 2, "image_size": 16}
    (tmp_path / "model.yaml").write_text("image_size: 16\nnum_heads: 4\n")
    with pytest.raises(ValueError, match=r"model.json and .*model.yaml say different things .*\(num_heads\); keep one"):
        read_options(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_options_lie_beside_a_checkpoint(suffix, tmp_path):
    assert read_options(tmp_path / "model.pt") == {}
    options = {"num_heads": 6, "attention_resolutions": [32, 16], "lr": 1e-05, "class_cond": False}
    (tmp_path / f"model{suffix}").write_text(
        json.dumps(options)
        if suffix == ".json"
        else "num_heads: 6\nattention_resolutions: [32, 16]\nlr: 1.0e-5\nclass_cond: false\n"
    )
    assert read_options(tmp_path / "model.pt") == options


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("model.json", "[1, 2]", "must be a mapping .* not list"),
        ("model.yaml", "", "must be a mapping .* not NoneType"),
        ("model.json", "{'a': 1}", "cannot be read"),
        ("model.yaml", "a: [1,\nb: 2", "cannot be read"),
        ("model.yml", "!!python/object/apply:os.system ['touch ran']", "cannot be read"),
    ],
)
def test_options_that_are_none_are_refused(name, content, match, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=match) as refusal:
        read_options(tmp_path / "model.pt")
    assert str(tmp_path / name) in str(refusal.value) and "\n" not in str(refusal.value)
