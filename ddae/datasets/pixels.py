"""One image file -> the RGB pixels that a person who opens it sees, as docs/data.md tables them."""

import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from os import cpu_count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

    Source = str | BytesIO | Image.Image

DECODERS = min(8, cpu_count() or 1)
"""Threads; PIL lets go of the interpreter while it decodes, and two take half the time of one."""
SIXTEEN_BITS = 2**16 - 1
STEP_OF_16_BITS = SIXTEEN_BITS // 255
"""By which a value of 8 bits is multiplied where it is kept in 16."""
NATIVE = "BN" if sys.byteorder == "big" else "B"
"""How PIL's raw modes end where the upper byte comes first."""
ORIENTATION, PHOTOMETRIC, WHITE_IS_ZERO = 0x0112, 262, 0
"""Tags of EXIF and TIFF, and the value of the second where 0 is white."""
UPRIGHT: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
"""EXIF's orientation -> what turns [H, W, C] upright."""


@dataclass(frozen=True)
class Opened:
    """An image as its file has it, upright, the first of its frames."""

    rgb: "Image.Image | None"
    """None where there are more than 8 bits a channel and the file does not say which value is white."""
    deep: np.ndarray | None
    """[H, W, 1 or 3], its numbers in that case."""
    alpha: np.ndarray | None
    """[H, W, 1], how opaque deep is, where it is not everywhere."""
    is_inverted: bool
    """Whether 0 is white in deep, as in some TIFFs."""
    num_frames: int
    news: str
    """What of it version 0.2 did not show as a person sees it, a word each: depth, inverted, alpha, profile, LAB."""

    def digest(self) -> str:
        """Hash of the pixels at their own size; the same pixels in another format have the same, and so have 8 bits
        that are kept in 16."""
        pixels = np.ascontiguousarray(self.rgb if self.deep is None else self.deep)
        if self.deep is not None and self.deep.dtype.kind == "i" and not (self.deep % STEP_OF_16_BITS).any():
            pixels = np.asarray(self.as_seen(SIXTEEN_BITS))
        return xxhash.xxh3_128(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()

    def as_seen(self, white: float) -> "Image.Image":
        """RGB. white: the value of white in deep images; 0 refuses them."""
        from PIL import Image

        if self.deep is None:
            assert self.rgb is not None
            return self.rgb
        if not white:
            raise ValueError(
                "it has more than 8 bits a channel and does not say which value is white; give it with --white"
            )
        # of 16 bits, whose white is 65,535, the upper 8 are taken
        shades = self.deep / white * 255 + 0.5 if self.deep.dtype.kind == "f" else self.deep * (256 / (white + 1))
        shades = shades.clip(0, 255)
        shades = 255 - shades if self.is_inverted else shades
        if self.alpha is not None:
            shades = shades * self.alpha + 255 * (1 - self.alpha)
        return Image.fromarray(np.broadcast_to(shades, (*shades.shape[:2], 3)).astype(np.uint8))


def decode(sources: Iterable[tuple[str, "Source"]], size: int, white: float = 0, profiles: bool = True) -> Tensor:
    """(what an error calls it, path, bytes or PIL image) of each image -> uint8 [N, 3, size, size].

    white: the value of white in images of more than 8 bits a channel that do not say it; 0 refuses those.
    profiles: show colours by the profile of the file, where it has one.
    """
    with ThreadPoolExecutor(DECODERS) as threads:
        return torch.stack(
            list(threads.map(lambda source: _decode(source[0], source[1], size, white, profiles), sources))
        )


def _decode(name: str, source: "Source", size: int, white: float, profiles: bool) -> Tensor:
    from PIL import Image, ImageOps

    try:
        fitted = ImageOps.fit(open_image(source, profiles).as_seen(white), (size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # damaged files raise errors of every class
        raise ValueError(f"{name} cannot be read as an image ({error}); repair or remove the file") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def open_image(source: "Source", profiles: bool = True) -> Opened:
    """Raises whatever PIL raises for a damaged file."""
    from PIL import Image, ImageOps

    with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as image:
        num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if (numbers := _deep(image, source)) is not None:
            orientation = None
            with suppress(SyntaxError):
                orientation = image.getexif().get(ORIENTATION)
            numbers = UPRIGHT.get(orientation, lambda pixels: pixels)(numbers)
            deep, alpha = numbers, None
            if numbers.shape[2] in (2, 4):
                deep, opacity = numbers[..., :-1], numbers[..., -1:] / SIXTEEN_BITS
                alpha = opacity if opacity.min() < 1 else None
            is_inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
            news = f"depth{' inverted' * is_inverted}{' alpha' * (alpha is not None)}"
            return Opened(None, deep, alpha, is_inverted, num_frames, news)
        upright: Image.Image = image
        with suppress(SyntaxError):  # damaged EXIF does not damage the pixels
            upright = ImageOps.exif_transpose(image)
        rgb, news = _as_seen(upright, profiles)
        return Opened(rgb, None, None, False, num_frames, news)


def _as_seen(image: "Image.Image", profiles: bool) -> tuple["Image.Image", str]:
    """RGB, transparency on white and colours by the profile, and what of this there was."""
    from PIL import Image

    news = ""
    profile = image.info.get("icc_profile") or b""
    if image.mode[0] in "IF":  # PPM scales it by its header's white, and PIL cuts off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "LAB":
        return _lab_to_srgb().apply(image), "LAB"
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if np.asarray(layer.getchannel("A")).min() < 255:
            layer, news = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer), "alpha"
        image = layer.convert("RGB")
    if image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    if profiles and profile and (transform := _to_srgb(profile, image.mode)):
        return transform.apply(image), f"{news} profile"
    return image.convert("RGB"), news


def _deep(image: "Image.Image", source: "Source") -> np.ndarray | None:
    """[H, W, C] of an image of more than 8 bits a channel that does not say which value is white, else None."""
    tiles: Any = getattr(image, "tile", None)
    args = (tiles[0].args if tiles else None) or ""
    raw_mode = args if isinstance(args, str) else str(args[0])
    if re.fullmatch("(RGB|RGBA|RGBX|LA);16[BLN]", raw_mode):
        return _sixteen_bits(image, source, raw_mode)
    if image.mode[0] not in "IF" or (image.mode, image.format) == ("I", "PPM"):
        return None
    numbers = np.asarray(image)[..., None].astype(np.float64 if image.mode == "F" else np.int64)
    if not np.isfinite(numbers).all():
        raise ValueError("it holds NaN or infinity")
    return numbers


def _sixteen_bits(image: "Image.Image", source: "Source", raw_mode: str) -> np.ndarray:
    """PIL keeps the upper 8 bits of 16 a channel; told the other order of bytes, it gives the lower 8."""
    from PIL import Image

    other = "RGBA" if raw_mode == "LA;16B" else raw_mode[:-1] + ("L" if raw_mode[-1] in NATIVE else "B")
    with Image.open(source) as again:  # type: ignore[arg-type]
        tiles: Any = again.tile
        again.tile = [
            tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:])) for tile in tiles
        ]
        upper, lower = (np.asarray(each).astype(np.int64) for each in (image, again))
    if raw_mode == "LA;16B":
        return lower[..., 0::2] * 256 + lower[..., 1::2]
    return upper * 256 + lower


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """What turns the colours of a profile into sRGB; None where they are, or where the profile is of no use."""
    from PIL import ImageCms

    with suppress(ImageCms.PyCMSError, OSError, ValueError):
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(given):
            return None
        return ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
    return None


@lru_cache(maxsize=1)
def _lab_to_srgb() -> Any:
    from PIL import ImageCms

    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
