"""Images that are unusual and right give the pixels that a person sees."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ddae.datasets import load_dataset
from ddae.datasets.images import decode

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
SIXTEEN_BITS = np.random.default_rng(0).integers(0, 2**16, (6, 6), dtype=np.uint16)
FEW = np.where(GREY < 128, 20, 200).astype(np.uint8)
ALPHA = np.dstack([COLOURS, np.full((6, 6), 255, np.uint8)])


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


CASES = {
    "RGB": (encoded(COLOURS), COLOURS),
    "BMP": (encoded(COLOURS, "BMP"), COLOURS),
    "WebP": (encoded(COLOURS, "WEBP", lossless=True), COLOURS),
    "greyscale": (encoded(GREY), GREY),
    "grey and alpha": (encoded(Image.fromarray(ALPHA).convert("LA")), Image.fromarray(COLOURS).convert("L")),
    "RGBA": (encoded(ALPHA), COLOURS),
    "black and white": (encoded(Image.fromarray(GREY > 127)), np.where(GREY > 127, 255, 0)),
    "palette": (encoded(Image.fromarray(FEW).convert("P")), FEW),
    "palette with transparency": (encoded(Image.fromarray(FEW).convert("P"), transparency=b"\xff" * 20), FEW),
    "GIF": (encoded(FEW, "GIF"), FEW),
    "animated GIF": (encoded(FEW, "GIF", save_all=True, append_images=[Image.fromarray(255 - FEW)]), FEW),
    "CMYK": (encoded(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
    "16-bit PNG": (encoded(SIXTEEN_BITS), SIXTEEN_BITS >> 8),
    "16-bit TIFF": (encoded(SIXTEEN_BITS, "TIFF"), SIXTEEN_BITS >> 8),
    "16-bit PGM": (encoded(SIXTEEN_BITS, "PPM"), SIXTEEN_BITS >> 8),
    "upside down": (encoded(COLOURS, exif=rotated(3)), COLOURS[::-1, ::-1]),
    "on its side": (encoded(COLOURS, exif=rotated(6)), np.rot90(COLOURS, -1)),
    "16 bits on their side": (encoded(SIXTEEN_BITS, exif=rotated(6)), np.rot90(SIXTEEN_BITS >> 8, -1)),
    "damaged EXIF": (encoded(COLOURS, exif=b"Exif\0\0garbage"), COLOURS),
}


@pytest.mark.parametrize("case", CASES)
def test_pixels(case):
    content, expected = CASES[case]
    expected = torch.from_numpy(np.array(np.broadcast_to(np.atleast_3d(expected), (6, 6, 3)), dtype=np.uint8))
    [pixels] = decode([(case, io.BytesIO(content))], 6)
    assert torch.equal(pixels.permute(1, 2, 0), expected)


def test_a_folder_of_mixed_sizes_and_modes(tmp_path):
    sizes = [(1, 1), (1, 300), (300, 1), (7, 5), (64, 48)]
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i, size in enumerate(sizes):
            for mode in ("L", "RGB", "RGBA"):
                Image.new(mode, size, 200 if mode == "L" else (200, 200, 200)).save(tmp_path / name / f"{i}-{mode}.png")
    images = load_dataset(str(tmp_path), 8).images
    pixels = images.read(np.arange(30))
    assert pixels.shape == (30, 3, 8, 8) and (pixels == 200).all()


def test_a_class_with_one_image_is_trained_on_alone(tmp_path):
    for name, count in (("cat", 10), ("dog", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(COLOURS).save(tmp_path / name / f"{i}.png")
    dataset = load_dataset(str(tmp_path), 8)
    assert [(dataset.labels(split) == 1).sum() for split in ("train", "val", "test")] == [1, 0, 0]
