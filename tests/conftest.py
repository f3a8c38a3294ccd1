import json
import os
import re
import runpy
import shutil
import socket
import sys
import threading
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch

# before diffusers and Ray load, and for child processes; the last puts Ray on loopback
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The many short tests last, so that the processes of a run end together."""
    items.sort(key=lambda item: item.path.is_relative_to(Path(__file__).parent / "ddae"))


@pytest.fixture(autouse=True)
def environment():
    """A command that runs in this process leaves no variable behind."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run_command(monkeypatch, capsys):
    """A function that runs a command in this process and returns its exit status, and what it printed and warned of."""

    def run(command: str, *args: str, cwd: Path) -> tuple[object, str, str]:
        script = Path(__file__).parents[1] / "sweeps" / f"{command}.py"
        monkeypatch.setattr(sys, "argv", [str(script), *args])
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as exit:
            return exit.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def fork():
    """A function that starts a command, soon there, on a Ray of one CPU that all of them share."""
    from tests.commands import ray_of_one_cpu

    with ray_of_one_cpu() as start:
        yield start


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A diffusers pipeline folder with a random UNet of 16x16 images: 8 blocks, attention in the middle."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("model")
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=1000)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_stable_diffusion(tmp_path_factory) -> str:
    """A Stable Diffusion 1.x folder with random networks: 64x64 images, latents of 4x8x8, texts of 8 tokens of 32."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=32,
    )
    vae = AutoencoderKL(
        sample_size=64,
        block_out_channels=(4, 4, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    start, end = "<|startoftext|>", "<|endoftext|>"
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=2, eos_token_id=3, pad_token_id=3,
    )  # fmt: skip
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    (tokenizer / "vocab.json").write_text(json.dumps({"a</w>": 0, "b</w>": 1, start: 2, end: 3}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 8, **special}))
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    folder = tmp_path_factory.mktemp("stable-diffusion")
    StableDiffusionPipeline(
        vae, CLIPTextModel(text), CLIPTokenizer.from_pretrained(tokenizer), unet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    (folder / "tokenizer" / "tokenizer.json").unlink()  # the published folders have vocabulary and merges alone
    return str(folder)


KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory):
    """Where a real S3 server (SeaweedFS) listens on loopback; it has one bucket, `features`."""
    from tests.servers import answers, serving

    folder = tmp_path_factory.mktemp("s3")
    names = "s3.port", "master.port", "volume.port", "filer.port", "admin.port"
    names += tuple(f"{name}.grpc" for name in names)
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        ports = {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}
    command = ["weed", "mini", f"-dir={folder}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-bucket=features", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-webdav=false", "-admin.ui=false", *(f"-{name}={port}" for name, port in ports.items())]
    health, log = f"http://127.0.0.1:{ports['s3.port']}/healthz", folder / "log"

    def ready():
        return answers(health) and "All enabled components" in log.read_text()

    with serving(command, ready, log, folder, **KEYS):
        yield ports["s3.port"]


class Bucket:
    """A new folder of the S3 server's bucket, behind a proxy that notes what it is asked, and can go away.

    drop: so many of the next requests get no answer.
    """

    def __init__(self, server_port):
        self.server_port, self.port, self.drop = server_port, 0, 0
        self.prefix = uuid.uuid4().hex
        self.address = f"s3://features/{self.prefix}"
        self.seen: list[tuple[str, str]] = []
        self.open()

    def open(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        self.sockets = [self.listener]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def close(self):
        """Nobody answers from here on."""
        for one in self.sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def asked(self, method, ending=""):
        return [path for name, path in self.seen if name == method and path.endswith(ending)]

    def _accept(self, listener):
        with suppress(OSError):
            while True:
                ends = listener.accept()[0], socket.create_connection(("127.0.0.1", self.server_port))
                self.sockets += ends
                for source, sink in (ends, ends[::-1]):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source, sink):
        with source, suppress(OSError):
            while data := source.recv(65536):
                if request := re.match(rb"([A-Z]+) /features(\S*) HTTP/1.1\r\n", data):
                    self.seen.append((request[1].decode(), request[2].decode()))
                    if self.drop:
                        self.drop -= 1
                        break
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def bucket(s3_port, monkeypatch, tmp_path):
    bucket = Bucket(s3_port)
    node = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{bucket.port}", "XDG_CACHE_HOME": str(tmp_path / "node")}
    for name, value in {**KEYS, **node, "AWS_MAX_ATTEMPTS": "2"}.items():
        monkeypatch.setenv(name, value)
    yield bucket
    bucket.close()
