"""What is fetched of a hub's repository, from a server on loopback that answers as the hub does."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ddae.backbones import load_backbone

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FINGERPRINT = "import sys; from ddae.backbones import load_backbone; print(load_backbone(sys.argv[1]).fingerprint)"


@pytest.fixture
def hub(tmp_path):
    """(address, folder that it serves as lab/model, files that were downloaded)."""
    folder, downloaded = tmp_path / "repository", []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/lab/model/revision/"):
                return self.answer(json.dumps({"id": "lab/model", "sha": COMMIT, "siblings": []}).encode())
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            if path.startswith(f"/api/models/lab/model/tree/{COMMIT}"):
                entries = [
                    {
                        "type": "file",
                        "path": file.relative_to(folder).as_posix(),
                        "size": file.stat().st_size,
                        "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                    }
                    for file in files
                ]
                return self.answer(json.dumps(entries).encode())
            name = path.removeprefix(f"/lab/model/resolve/{COMMIT}/")
            if not (folder / name).is_file():
                return self.send_error(404)
            if self.command == "GET":
                downloaded.append(name)
            self.answer((folder / name).read_bytes())

        def answer(self, content):
            self.send_response(200)
            for header, value in {
                "Content-Length": len(content),
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
            }.items():
                self.send_header(header, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder, downloaded
    server.shutdown()
    server.server_close()


def fingerprint(address: str, home: Path) -> str:
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", FINGERPRINT, "lab/model@main"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("weights", [".safetensors", ".bin"])
def test_no_more_of_stable_diffusion_is_fetched_than_is_read(hub, weights, tiny_stable_diffusion, tmp_path):
    address, folder, downloaded = hub
    shutil.copytree(tiny_stable_diffusion, folder)
    if weights == ".bin":
        from diffusers import UNet2DConditionModel

        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        unet = UNet2DConditionModel.from_pretrained(f"{tiny_stable_diffusion}/unet")
        unet.save_pretrained(folder / "unet", safe_serialization=False)
    expected = load_backbone(str(folder)).fingerprint

    (folder / "safety_checker").mkdir()
    for other in (
        "v1-5-pruned.safetensors",
        "safety_checker/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "README.md",
    ):
        (folder / other).write_bytes(b"large")
    assert fingerprint(address, tmp_path / "home") == expected == load_backbone(str(folder)).fingerprint
    assert sorted(name for name in downloaded if not name.endswith((".json", ".txt"))) == [
        "text_encoder/model.safetensors",
        f"unet/diffusion_pytorch_model{weights}",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    if weights == ".bin":
        return
    downloaded.clear()
    assert fingerprint(address, tmp_path / "home") == expected and not downloaded


def test_a_network_at_the_top_of_its_repository(hub, tiny_model, tmp_path):
    address, folder, downloaded = hub
    shutil.copytree(Path(tiny_model) / "unet", folder)
    shutil.copy(Path(tiny_model) / "scheduler" / "scheduler_config.json", folder)
    shutil.copy(Path(tiny_model) / "model_index.json", folder)
    assert fingerprint(address, tmp_path / "home") == load_backbone(str(folder)).fingerprint
    assert "diffusion_pytorch_model.safetensors" in downloaded
