"""Loaders of a sample of 1000 ImageNet images, one for each class.

All loaders take from one fixed permutation of the images: calibration from its front, test from its back. Thus
`imagenet_test()` is all 1000 images and has those of `imagenet_calibration()` among them, while
`imagenet_test(samples=744)` has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from waterfill.zoo.batches import Batches, Labelled, permuted_back, permuted_front
from waterfill.zoo.folder import require_file
from waterfill.zoo.jpeg_zip import jpeg_label, jpeg_names, read_jpegs
from waterfill.zoo.preprocess import mobilenet_input, squeezenet_input

_ARCHIVE = "imagenet_sample_1000.zip"
_SIDE = 224


def imagenet_calibration(*, samples: int | None = 256, batch_size: int = 32) -> Batches:
    """Images for calibrating MobileNet, from the front of the fixed permutation.

    Args:
        samples: how many; None is all 1000.
        batch_size: samples in a batch.

    Returns:
        Batches of images float32 `[batch, 3, 224, 224]`, RGB, pixel / 127.5 - 1, and labels int64 `[batch]`.

    Raises:
        WaterfillError: the data are not there, damaged, or fewer than asked for, or Pillow is not installed.
    """
    return _batches(_front(samples), mobilenet_input, batch_size)


def imagenet_test(*, samples: int | None = None, batch_size: int = 50) -> Batches:
    """Images for testing MobileNet, from the back of the fixed permutation, by default all 1000.

    With at most 744 samples it shares none with `imagenet_calibration()`. Prepared as there.
    """
    return _batches(_back(samples), mobilenet_input, batch_size)


def imagenet_squeezenet_calibration(*, samples: int | None = 256, batch_size: int = 32) -> Batches:
    """The images of `imagenet_calibration` for SqueezeNet: BGR, pixel minus (104, 117, 123)."""
    return _batches(_front(samples), squeezenet_input, batch_size)


def imagenet_squeezenet_test(*, samples: int | None = None, batch_size: int = 50) -> Batches:
    """The images of `imagenet_test` for SqueezeNet: BGR, pixel minus (104, 117, 123)."""
    return _batches(_back(samples), squeezenet_input, batch_size)


def _front(samples: int | None) -> tuple[str, ...]:
    names = jpeg_names(require_file(_ARCHIVE))
    return tuple(names[index] for index in permuted_front(len(names), samples, _ARCHIVE))


def _back(samples: int | None) -> tuple[str, ...]:
    names = jpeg_names(require_file(_ARCHIVE))
    return tuple(names[index] for index in permuted_back(len(names), samples, _ARCHIVE))


def _batches(names: tuple[str, ...], prepare: Callable[[NDArray[Any]], Tensor], batch_size: int) -> Batches:
    labels = np.array([jpeg_label(name) for name in names])
    images = read_jpegs(require_file(_ARCHIVE), names, _SIDE)
    return Batches(Labelled(images, labels, _ARCHIVE), prepare, batch_size)
