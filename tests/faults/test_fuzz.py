"""Whatever a flag, a config file, an image or a checkpoint holds: it is used, or it is one line and nothing written."""

import dataclasses
import functools
import io
import re
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddae.backbones import load_backbone
from ddae.datasets.pixels import decode
from sweeps import cli
from sweeps.layer_noise import LayerNoise, main
from sweeps.probing import source


def fuzzed(num_examples):
    """Alike on every machine."""
    everything = list(HealthCheck)
    return settings(
        max_examples=num_examples, derandomize=True, database=None, deadline=None, suppress_health_check=everything
    )


INTEGERS = st.one_of(st.integers(-3, 20), st.integers())
WORDS = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "..", "../..", "a/b", "a/../..", "nowhere", "\0", "é/ö", "-x"])
)
KNOWN = {
    "dataset": ["digits"],
    "blocks": ["mid", "up.1.0", "out_3", "up.9"],
    "heads": ["linear", "mlp-8", "cnn", "attention-2", "ridge", "mlp-0", "linear-3", "mlp-99999999999999999999"],
    "search": ["optuna", "random", "grid", "bayes"],
    "precision": ["float32", "bfloat16", "float16", "float64"],
    "device": ["cpu", "auto", "cuda:99", "meta", "tpu", "cpu:3"],
    "text_embedding": ["", "none.safetensors"],
    "backbone": ["nowhere"],
}
FIELDS = {field.name: field.type for field in dataclasses.fields(LayerNoise)}


def values(name):
    """Of a flag, right ones and wrong ones."""
    kind = str(FIELDS[name])
    if "bool" in kind:
        return st.just(False) if name == "compile" else st.booleans()  # compiling takes minutes
    if name == "image_size":
        return st.one_of(st.integers(-2, 33), st.integers(max_value=-1), st.integers(min_value=4097))
    one = st.one_of(st.sampled_from(KNOWN[name]), WORDS) if name in KNOWN else WORDS
    one = INTEGERS if "int" in kind else st.floats() if "float" in kind else one
    return st.lists(one, max_size=4) if "tuple" in kind else one


FLAGS = st.lists(st.sampled_from(sorted(FIELDS.keys() - {"dry_run", "backbone"})), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: values(name) for name in names})
)
"""Few at once, since one wrong flag hides the others."""


@pytest.fixture(scope="module")
def command(tiny_model, tmp_path_factory):
    """args -> (exit code, stderr) of a dry run in a folder of its own, which must stay as it is."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "load_backbone", functools.cache(load_backbone))
        patch.setattr(torch, "set_num_threads", lambda _: None)
        patch.chdir(folder)

        def run(*args, config=None):
            out, err = io.StringIO(), io.StringIO()
            given = ["--backbone", tiny_model, "--dataset", "digits", *args, "--dry-run"]
            if config is not None:
                (folder / "config.yaml").write_bytes(config)
                given = ["--config", "config.yaml", *given]
            patch.setattr(sys, "argv", ["layer_noise.py", *given])
            code = 0
            with redirect_stdout(out), redirect_stderr(err):
                try:
                    cli.run(main, LayerNoise, "")
                except SystemExit as exit:
                    code = exit.code
            assert (
                sorted(path.name for path in folder.rglob("*")) == ["config.yaml"] * (folder / "config.yaml").exists()
            )
            (folder / "config.yaml").unlink(missing_ok=True)
            if code:
                assert (code, out.getvalue()) == (2, "")
                assert err.getvalue().startswith("error: ") and len(err.getvalue().splitlines()) == 1, err.getvalue()
            return code, err.getvalue()

        yield run


@fuzzed(12)
@given(flags=FLAGS)
def test_flags(command, flags):
    args = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            args.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            args += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    if "--list-blocks" not in args and "-h" not in args:
        command(*args)


@fuzzed(12)
@given(flags=FLAGS)
def test_a_config_file_of_flags(command, flags):
    command(config=yaml.safe_dump(flags, allow_unicode=True).encode())


ANY_YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(FIELDS)), inner, max_size=3),
    max_leaves=6,
)


@fuzzed(50)
@given(
    config=st.one_of(
        st.binary(max_size=40), st.text(max_size=40).map(str.encode), ANY_YAML.map(lambda v: yaml.safe_dump(v).encode())
    )
)
def test_a_config_file_of_anything(command, config):
    command(config=config)


def encoded(pixels, format):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
ENCODED = [encoded(PIXELS, format) for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
PIECES = st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=8), st.integers(0, 64)), max_size=4)


@fuzzed(150)
@given(content=st.sampled_from([*ENCODED, b""]), pieces=PIECES, stop=st.one_of(st.none(), st.integers(0, 400)))
@pytest.mark.filterwarnings("ignore")
def test_images(content, pieces, stop):
    for start, inserted, dropped in pieces:
        content = content[:start] + inserted + content[start + dropped :]
    try:
        images = decode([("image.png", io.BytesIO(content[:stop]))], 8)
    except ValueError as error:
        assert re.fullmatch(r"image\.png cannot be read as an image \(.*\); repair or remove the file", str(error))
        return
    assert images.shape == (1, 3, 8, 8) and images.dtype == torch.uint8
