"""Reader of a zip archive of JPEG images whose names begin with their labels."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np

from waterfill.errors import FormatError, WaterfillError
from waterfill.zoo.arrays import Bytes, frozen

_NAME = re.compile(r"(\d{4})_.*\.jpe?g", re.ASCII | re.IGNORECASE)
_KEPT_SELECTIONS = 4


@cache
def jpeg_names(path: Path) -> tuple[str, ...]:
    """List the images of an archive.

    Args:
        path: the archive; names of images are like `0007_n01514668.jpg`, other files are allowed.

    Returns:
        The names of the images, sorted, at least one.

    Raises:
        FormatError: the file is no zip archive or has no such images.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = tuple(sorted(name for name in archive.namelist() if _NAME.fullmatch(name)))
    except zipfile.BadZipFile as error:
        raise FormatError(f"{path} is damaged or no zip archive ({error}); copy the file again.") from error
    if not names:
        raise FormatError(f"{path} has no images: expected names of four digits, like '0007_n01514668.jpg'.")
    return names


def jpeg_label(name: str) -> int:
    """Return the label of an image, the number at the beginning of its name."""
    return int(name[:4])


@lru_cache(maxsize=_KEPT_SELECTIONS)
def read_jpegs(path: Path, names: tuple[str, ...], side: int) -> Bytes:
    """Decode some images of an archive, once in a process.

    Args:
        path: the archive.
        names: names of the images in the order wanted.
        side: height and width that each image must have, pixels.

    Returns:
        RGB uint8 `[len(names), side, side, 3]`, read-only.

    Raises:
        WaterfillError: Pillow is not installed.
        FormatError: an image is damaged or of another size.
    """
    images = np.empty((len(names), side, side, 3), np.uint8)
    pillow = _pillow_image()
    with zipfile.ZipFile(path) as archive:
        for index, name in enumerate(names):
            images[index] = _decode(pillow, archive, name, side)
    return frozen(images)


def _decode(pillow: ModuleType, archive: zipfile.ZipFile, name: str, side: int) -> Bytes:
    try:
        with pillow.open(io.BytesIO(archive.read(name))) as image:
            if image.size != (side, side):
                raise FormatError(
                    f"The image '{name}' of {archive.filename} has {image.height} rows and {image.width} columns:"
                    f" expected {side} of each; resize and crop it."
                )
            pixels: Bytes = np.asarray(image.convert("RGB"))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise FormatError(f"The image '{name}' of {archive.filename} is damaged ({error}).") from error
    return pixels


def _pillow_image() -> ModuleType:
    try:
        import PIL.Image
    except ImportError as error:
        raise WaterfillError("JPEG images need Pillow, which is not installed: pip install pillow") from error
    module: ModuleType = PIL.Image
    return module
