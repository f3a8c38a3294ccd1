"""Images that are unusual and right give the pixels that a person sees."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ddae.datasets import Reading, load_dataset
from ddae.datasets.pixels import decode
from tests.pictures import png_of_16_bits

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
SIXTEEN_BITS = np.random.default_rng(0).integers(0, 2**16, (6, 6), dtype=np.uint16)
FEW = np.where(GREY < 128, 20, 200).astype(np.uint8)
LEFT = np.arange(6) < 3
HIDDEN = np.dstack([COLOURS, np.broadcast_to(np.where(LEFT, 0, 255).astype(np.uint8), (6, 6))])
ON_WHITE = np.where(LEFT[None, :, None], 255, COLOURS)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
OURS = SRGB.replace("sRGB".encode("utf-16-be"), "ours".encode("utf-16-be"))
"""The same colours under another name."""
ALPHA = np.dstack([COLOURS, np.full((6, 6), 255, np.uint8)])


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def cmyk_jpeg(ink):
    return encoded(Image.new("CMYK", (6, 6), ink), "JPEG", quality=100)


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
    "palette, none of it transparent": (encoded(Image.fromarray(FEW).convert("P"), transparency=b"\xff" * 20), FEW),
    "transparent in places": (encoded(HIDDEN), ON_WHITE),
    "WebP, transparent in places": (encoded(HIDDEN, "WEBP", lossless=True, exact=True), ON_WHITE),
    "grey, transparent in places": (encoded(np.dstack([GREY, HIDDEN[..., 3]])), np.where(LEFT, 255, GREY)),
    "half transparent": (encoded(np.dstack([COLOURS * 0, COLOURS[..., 0] * 0 + 128])), np.full((6, 6), 127)),
    "one colour transparent": (encoded(FEW, transparency=20), np.where(FEW == 20, 255, FEW)),
    "palette, one colour transparent": (
        encoded(Image.fromarray(FEW).convert("P"), transparency=20),
        np.where(FEW == 20, 255, FEW),
    ),
    "GIF, one colour transparent": (encoded(FEW, "GIF", transparency=20), np.where(FEW == 20, 255, FEW)),
    "pages": (encoded(COLOURS, "TIFF", save_all=True, append_images=[Image.fromarray(255 - COLOURS)]), COLOURS),
    "animated PNG": (encoded(COLOURS, save_all=True, append_images=[Image.fromarray(255 - COLOURS)]), COLOURS),
    "1-bit TIFF": (encoded(Image.fromarray(GREY > 127), "TIFF"), np.where(GREY > 127, 255, 0)),
    "fax": (encoded(Image.fromarray(GREY > 127), "TIFF", compression="group4"), np.where(GREY > 127, 255, 0)),
    "sRGB profile": (encoded(COLOURS, icc_profile=SRGB), COLOURS),
    "damaged profile": (encoded(COLOURS, icc_profile=b"none"), COLOURS),
    "profile of another mode": (encoded(GREY, "TIFF", icc_profile=OURS), GREY),
    "GIF": (encoded(FEW, "GIF"), FEW),
    "animated GIF": (encoded(FEW, "GIF", save_all=True, append_images=[Image.fromarray(255 - FEW)]), FEW),
    "CMYK JPEG, which Adobe inverts": (cmyk_jpeg((0, 255, 255, 0)), np.full((6, 6, 3), (255, 0, 0))),
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
    [pixels] = decode([(case, io.BytesIO(content))], 6, white=2**16 - 1)
    assert torch.equal(pixels.permute(1, 2, 0), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_as_others(orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    eight, sixteen = (encoded(each, exif=rotated(orientation)) for each in (pixels, pixels.astype(np.uint16) * 256))
    a, b = decode([("8", io.BytesIO(eight)), ("16", io.BytesIO(sixteen))], 6, white=2**16 - 1)
    assert torch.equal(a, b)


def tiff_of_16_bits(pixels, order="<", compress=False, white_is_zero=False):
    """pixels: [H, W, 1, 3 or 4]"""
    height, width, channels = pixels.shape
    data = pixels.astype(order + "u2").tobytes()
    data = zlib.compress(data) if compress else data
    photometric = 2 if channels > 1 else 0 if white_is_zero else 1
    tags = {256: width, 257: height, 258: None, 259: 8 if compress else 1, 262: photometric, 273: None, 277: channels}
    tags |= {278: height, 279: len(data)} | ({338: 2} if channels == 4 else {})
    end = 8 + 2 + 12 * len(tags) + 4
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    tags |= {258: end if channels > 2 else 16, 273: end + len(bits)}
    entries = b"".join(
        struct.pack(order + "HHI", tag, 3, channels if tag == 258 else 1)
        + struct.pack(
            order + ("I" if tag == 258 and channels > 2 else "HH"),
            *([value] if tag == 258 and channels > 2 else [value, 0]),
        )
        for tag, value in tags.items()
    )
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    return start + entries + bytes(4) + bits + data


DEEP = {
    "grey PNG": lambda pixels: encoded(pixels[..., 0]),
    "grey TIFF": lambda pixels: encoded(pixels[..., 0], "TIFF"),
    "grey TIFF of the other order": lambda pixels: tiff_of_16_bits(pixels[..., :1], ">"),
    "grey TIFF, 0 is white": lambda pixels: tiff_of_16_bits(WHITES[pixels.max()] - pixels[..., :1], white_is_zero=True),
    "32-bit TIFF": lambda pixels: encoded(pixels[..., 0].astype(np.int32), "TIFF"),
    "PNG": lambda pixels: png_of_16_bits(pixels),
    "PNG with alpha": lambda pixels: png_of_16_bits(np.dstack([pixels, pixels[..., 0] | 2**16 - 1])),
    "grey PNG with alpha": lambda pixels: png_of_16_bits(np.dstack([pixels[..., 0], pixels[..., 0] | 2**16 - 1])),
    "TIFF": lambda pixels: tiff_of_16_bits(pixels),
    "TIFF of the other order": lambda pixels: tiff_of_16_bits(pixels, ">"),
    "compressed TIFF": lambda pixels: tiff_of_16_bits(pixels, compress=True),
    "TIFF with alpha": lambda pixels: tiff_of_16_bits(np.dstack([pixels, pixels[..., 0] | 2**16 - 1])),
}
WHITES = {2**bits - 1: 2**bits - 1 for bits in range(8, 17)}


def write_classes(folder, write):
    """folder/{cat,dog}/{0..9}, the content of each by write(number)."""
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            (folder / name / f"{i}.{'png' if i % 2 else 'tif'}").write_bytes(write(10 * number + i))
    return str(folder)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("form", DEEP)
def test_deep_images_are_seen_with_the_bits_that_their_set_uses(tmp_path, caplog, form, bits):
    """Whatever of the 16 bits of a file its camera has filled; the brightest image of a set decides for all."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint16)
    pixels[:, 0, 0], pixels[1:] = 255, pixels[1:] // 3
    filled = pixels * 2 ** (bits - 8) + (2 ** (bits - 8) - 1)
    filled[1:, 0, 0] = 0 if "0 is white" not in form else filled[1:, 0, 0]
    if "0 is white" in form:
        filled[:, 0, 0] = 2**bits - 1
    name = write_classes(tmp_path / "set", lambda number: DEEP[form](filled[number]))
    images = load_dataset(name, 6).images
    assert images.reading.white == 2**bits - 1
    assert f"in all of them {2**bits - 1} is white" in caplog.text
    expected = (filled >> (bits - 8)).astype(np.uint8)
    expected = expected[..., :1].repeat(3, -1) if "grey" in form or "32" in form else expected
    seen = {image.permute(1, 2, 0).numpy().tobytes() for image in images.read(np.arange(20))}
    assert seen == {image.tobytes() for image in expected}


def test_one_white_for_all_deep_images(tmp_path):
    """A dark image stays darker than a bright one."""
    name = write_classes(tmp_path / "set", lambda n: encoded(np.full((6, 6), 4095 if n == 3 else 2048, np.uint16)))
    seen = load_dataset(name, 6).images.read(np.arange(20)).flatten(1).float().mean(1)
    assert sorted(seen.tolist()) == [128] * 19 + [255]


def test_a_given_white(tmp_path):
    name = write_classes(tmp_path / "set", lambda n: encoded(np.full((6, 6), 65535 if n else 1023, np.uint16)))
    images = load_dataset(name, 6, reading=Reading(white=2047)).images
    assert sorted(images.read(np.arange(20))[:, 0, 0, 0].tolist()) == [127] + [255] * 19
    assert images.fingerprint != load_dataset(name, 6).images.fingerprint


@pytest.mark.parametrize(
    ("pixels", "reach"),
    [
        (np.full((6, 6), 70_000, np.int32), "70000 to 70000"),
        (np.full((6, 6), -1, np.int32), "-1 to -1"),
        (np.full((6, 6), 200, np.float32), "200 to 200"),
        (np.full((6, 6), -0.5, np.float32), "-0.5 to -0.5"),
    ],
)
def test_numbers_whose_white_nobody_knows(tmp_path, pixels, reach):
    name = write_classes(tmp_path / "set", lambda number: encoded(pixels, "TIFF"))
    with pytest.raises(ValueError, match=rf"its white is not known: 20 images .* reach from {reach}\); .* --white"):
        load_dataset(name, 6)
    assert load_dataset(name, 6, reading=Reading(white=400)).images.read(np.arange(20)).shape == (20, 3, 6, 6)


def test_fractions_are_white_at_one(tmp_path):
    pixels = np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6)
    images = load_dataset(write_classes(tmp_path / "set", lambda n: encoded(pixels, "TIFF")), 6).images
    assert np.array_equal(images.read(np.arange(1))[0, 0], np.floor(pixels.astype(float) * 255 + 0.5))


def test_not_a_number(tmp_path):
    name = write_classes(tmp_path / "set", lambda n: encoded(np.full((6, 6), np.nan, np.float32), "TIFF"))
    with pytest.raises(ValueError, match="it holds NaN or infinity"):
        load_dataset(name, 6)


def test_colours_by_their_profile():
    """A profile that swaps red and blue, as no viewer overlooks."""
    swapped = bytearray(OURS)
    [red, blue] = [swapped.index(name, 128) for name in (b"rXYZ", b"bXYZ")]
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    content = encoded(np.full((6, 6, 3), (250, 20, 20), np.uint8), icc_profile=bytes(swapped))
    [pixels] = decode([("swapped", io.BytesIO(content))], 6)
    assert (pixels[:, 0, 0].int() - torch.tensor([20, 20, 250])).abs().max() <= 3


def test_lab():
    srgb, lab = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    grey = Image.new("RGB", (6, 6), (120, 130, 110))
    content = encoded(ImageCms.profileToProfile(grey, srgb, lab, outputMode="LAB"), "TIFF")
    [pixels] = decode([("lab", io.BytesIO(content))], 6)
    assert (pixels[:, 0, 0].int() - torch.tensor([120, 130, 110])).abs().max() <= 3


IN_MEMORY = (
    ("YCbCr",),
    ("HSV",),
    ("CMYK",),
    ("LA",),
    ("P", "PA"),
    ("RGBX",),
    ("RGBA", "RGBa"),
    ("LA", "La"),
    ("1",),
    ("I",),
)


@pytest.mark.parametrize("modes", IN_MEMORY, ids="-".join)
def test_images_in_memory(modes):
    """As a notebook hands them to a model."""
    image = Image.new("RGB", (6, 6), (200, 100, 50))
    expected = {"LA": [124] * 3, "La": [124] * 3, "1": [0] * 3, "I": [124 // 2] * 3}.get(modes[-1], [200, 100, 50])
    for mode in modes:
        image = image.convert("L").convert(mode) if mode in ("LA", "1", "I") else image.convert(mode)
    image = image.point(lambda shade: 0) if modes == ("1",) else image
    [pixels] = decode([(modes[-1], image)], 6, white=511)
    assert (pixels[:, 0, 0].int() - torch.tensor(expected)).abs().max() <= 4


def test_what_is_seen_otherwise_is_noted(tmp_path, caplog):
    first, second = Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)
    contents = {
        0: encoded(HIDDEN),
        1: encoded(first, "TIFF", save_all=True, append_images=[second]),
        2: encoded(COLOURS, icc_profile=OURS),
    }
    name = write_classes(tmp_path / "set", lambda n: contents.get(n, encoded(COLOURS)))
    assert load_dataset(name, 6).images.reading.shown == "alpha profile"
    for note in ("1 image is transparent in places", "1 image has several frames", "1 image has a colour profile"):
        assert note in caplog.text


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
