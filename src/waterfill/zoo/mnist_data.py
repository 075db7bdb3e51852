"""Loaders of MNIST and Fashion-MNIST, from `mnist.npz` or from the published idx files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from waterfill.errors import FormatError
from waterfill.zoo.arrays import read_npz
from waterfill.zoo.batches import Batches, Labelled
from waterfill.zoo.folder import find_file, missing_file
from waterfill.zoo.idx import read_idx
from waterfill.zoo.preprocess import lenet_input, paper_mnist_input

_CLASSES = 10
_IMAGE_SHAPE = (28, 28)


@dataclass(frozen=True)
class _Source:
    """Where a data set may lie under the data folder: first the `.npz` file, then the folders of idx files."""

    archive: str
    folders: tuple[str, ...]


# Both data sets have the same file names: idx files directly in the data folder are those of the data set asked for.
_MNIST = _Source("mnist.npz", ("MNIST/raw", "mnist", "."))
_FASHION = _Source("fashion_mnist.npz", ("FashionMNIST/raw", "fashion-mnist", "."))


def mnist_calibration(*, samples: int | None = 1024, batch_size: int = 128) -> Batches:
    """First images of the MNIST training set, for the LeNets.

    Args:
        samples: how many; None is all 60,000.
        batch_size: samples in a batch.

    Returns:
        Batches of images float32 `[batch, 1, 28, 28]`, pixel / 256, and labels int64 `[batch]`.

    Raises:
        WaterfillError: the data are not there, damaged, or fewer than asked for.
    """
    return Batches(_read(_MNIST, "train").first(samples), lenet_input, batch_size)


def mnist_test(*, samples: int | None = None, batch_size: int = 500) -> Batches:
    """First images of the MNIST test set, by default all 10,000, prepared as in `mnist_calibration`."""
    return Batches(_read(_MNIST, "test").first(samples), lenet_input, batch_size)


def paper_mnist_calibration(*, samples: int | None = 1024, batch_size: int = 128) -> Batches:
    """First images of the MNIST training set, for the paper's perceptron.

    Args:
        samples: how many; None is all 60,000.
        batch_size: samples in a batch.

    Returns:
        Batches of images float32 `[batch, 1, 28, 28]`, (pixel / 255 - 0.1307) / 0.3081, and labels int64 `[batch]`.

    Raises:
        WaterfillError: the data are not there, damaged, or fewer than asked for.
    """
    return Batches(_read(_MNIST, "train").first(samples), paper_mnist_input, batch_size)


def paper_mnist_test(*, samples: int | None = None, batch_size: int = 500) -> Batches:
    """First images of the MNIST test set, by default all 10,000, prepared as in `paper_mnist_calibration`."""
    return Batches(_read(_MNIST, "test").first(samples), paper_mnist_input, batch_size)


def fashion_mnist_calibration(*, samples: int | None = 1024, batch_size: int = 128) -> Batches:
    """First images of the Fashion-MNIST training set, prepared as in `mnist_calibration`."""
    return Batches(_read(_FASHION, "train").first(samples), lenet_input, batch_size)


def fashion_mnist_test(*, samples: int | None = None, batch_size: int = 500) -> Batches:
    """First images of the Fashion-MNIST test set, by default all 10,000, prepared as in `mnist_calibration`."""
    return Batches(_read(_FASHION, "test").first(samples), lenet_input, batch_size)


def _read(source: _Source, split: str) -> Labelled:
    archive = find_file(source.archive)
    if archive is not None:
        images, labels = read_npz(archive, f"{split}_images"), read_npz(archive, f"{split}_labels")
        return _checked(images, labels, archive)
    prefix = "train" if split == "train" else "t10k"
    image_path = _idx_path(source, f"{prefix}-images-idx3-ubyte")
    labels = read_idx(_idx_path(source, f"{prefix}-labels-idx1-ubyte"), axes=1)
    return _checked(read_idx(image_path, axes=3), labels, image_path)


def _idx_path(source: _Source, name: str) -> Path:
    candidates = [f"{folder}/{name}{suffix}" for folder in source.folders for suffix in ("", ".gz")]
    found = find_file(*candidates)
    if found is None:
        raise missing_file(source.archive, *(candidate.removeprefix("./") for candidate in candidates))
    return found


def _checked(images: NDArray[Any], labels: NDArray[Any], path: Path) -> Labelled:
    if images.shape != (len(labels), *_IMAGE_SHAPE):
        raise FormatError(f"{path} has images of shape {images.shape}: expected {(len(labels), *_IMAGE_SHAPE)}.")
    if len(labels) and labels.max() >= _CLASSES:
        raise FormatError(f"The labels of {path} go up to {labels.max()}: expected less than {_CLASSES}.")
    return Labelled(images, labels, str(path))
