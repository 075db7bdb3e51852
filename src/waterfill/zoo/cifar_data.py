"""Loaders of CIFAR-10 and CIFAR-100, from xz-compressed NumPy files or from the published binary batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from waterfill.errors import FormatError
from waterfill.zoo.arrays import read_npy_xz, read_npz
from waterfill.zoo.batches import Batches, Labelled, checked_count
from waterfill.zoo.cifar_binary import CIFAR10_LAYOUT, CIFAR100_LAYOUT, RecordLayout, read_cifar_binary
from waterfill.zoo.folder import data_folder, find_file, missing_file, require_file
from waterfill.zoo.preprocess import cifar_resnet_input, paper_cifar_input

_IMAGE_SHAPE = (32, 32, 3)


@dataclass(frozen=True)
class _Split:
    """Where one split may lie under the data folder: packed images with a table of labels, or binary batches."""

    images: str
    labels: str
    label_key: str
    binary_folder: str
    binary_files: tuple[str, ...]
    layout: RecordLayout
    pickled_folder: str


_CIFAR10_TRAIN = _Split(
    images="cifar10_train20k_images.npy.xz",
    labels="cifar10_labels.npz",
    label_key="train20k_labels",
    binary_folder="cifar-10-batches-bin",
    binary_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    layout=CIFAR10_LAYOUT,
    pickled_folder="cifar-10-batches-py",
)
_CIFAR10_TEST = _Split(
    images="cifar10_test_images.npy.xz",
    labels="cifar10_labels.npz",
    label_key="test_labels",
    binary_folder="cifar-10-batches-bin",
    binary_files=("test_batch.bin",),
    layout=CIFAR10_LAYOUT,
    pickled_folder="cifar-10-batches-py",
)
_CIFAR100_TRAIN = _Split(
    images="cifar100_train10k_images.npy.xz",
    labels="cifar100_labels.npz",
    label_key="train10k_labels",
    binary_folder="cifar-100-binary",
    binary_files=("train.bin",),
    layout=CIFAR100_LAYOUT,
    pickled_folder="cifar-100-python",
)
_CIFAR100_TEST = _Split(
    images="cifar100_test_images.npy.xz",
    labels="cifar100_labels.npz",
    label_key="test_labels",
    binary_folder="cifar-100-binary",
    binary_files=("test.bin",),
    layout=CIFAR100_LAYOUT,
    pickled_folder="cifar-100-python",
)


def cifar10_calibration(*, samples: int | None = 1024, batch_size: int = 128) -> Batches:
    """First images of the CIFAR-10 training set, for the ResNets.

    Args:
        samples: how many; None is all that are in the data folder.
        batch_size: samples in a batch.

    Returns:
        Batches of images float32 `[batch, 3, 32, 32]`, normalised by ImageNet's means and deviations, and labels
        int64 `[batch]`.

    Raises:
        WaterfillError: the data are not there, damaged, or fewer than asked for.
    """
    return Batches(_read(_CIFAR10_TRAIN, samples), cifar_resnet_input, batch_size)


def cifar10_test(*, samples: int | None = None, batch_size: int = 250) -> Batches:
    """First images of the CIFAR-10 test set, by default all 10,000, prepared as in `cifar10_calibration`."""
    return Batches(_read(_CIFAR10_TEST, samples), cifar_resnet_input, batch_size)


def paper_cifar10_calibration(*, samples: int | None = 1024, batch_size: int = 128) -> Batches:
    """First images of the CIFAR-10 training set, for the paper's network.

    Args:
        samples: how many; None is all that are in the data folder.
        batch_size: samples in a batch.

    Returns:
        Batches of images float32 `[batch, 3, 32, 32]`, (pixel / 255 - 0.5) / 0.5, and labels int64 `[batch]`.

    Raises:
        WaterfillError: the data are not there, damaged, or fewer than asked for.
    """
    return Batches(_read(_CIFAR10_TRAIN, samples), paper_cifar_input, batch_size)


def paper_cifar10_test(*, samples: int | None = None, batch_size: int = 250) -> Batches:
    """First images of the CIFAR-10 test set, by default all 10,000, prepared as in `paper_cifar10_calibration`."""
    return Batches(_read(_CIFAR10_TEST, samples), paper_cifar_input, batch_size)


def paper_cifar100_calibration(*, samples: int | None = 1024, batch_size: int = 128) -> Batches:
    """First images of the CIFAR-100 training set, fine labels, prepared as in `paper_cifar10_calibration`."""
    return Batches(_read(_CIFAR100_TRAIN, samples), paper_cifar_input, batch_size)


def paper_cifar100_test(*, samples: int | None = None, batch_size: int = 250) -> Batches:
    """First images of the CIFAR-100 test set, fine labels, by default all 10,000."""
    return Batches(_read(_CIFAR100_TEST, samples), paper_cifar_input, batch_size)


def _read(split: _Split, samples: int | None) -> Labelled:
    packed = find_file(split.images)
    if packed is not None:
        return _read_packed(packed, split, samples)
    return read_cifar_binary(_binary_paths(split), split.layout, samples).first(samples)


def _read_packed(path: Path, split: _Split, samples: int | None) -> Labelled:
    label_path = require_file(split.labels)
    labels = read_npz(label_path, split.label_key)
    count = checked_count(samples, len(labels), str(path))
    images = read_npy_xz(path, count, _IMAGE_SHAPE)
    if len(images) != count:
        raise FormatError(f"{path} has {len(images)} images, but {label_path} {len(labels)} labels: expected as many.")
    return Labelled(images, labels[:count], str(path))


def _binary_paths(split: _Split) -> list[Path]:
    names = [f"{split.binary_folder}/{name}" for name in split.binary_files]
    missing = [name for name in names if find_file(name) is None]
    if missing:
        raise missing_file(split.images, *missing, advice=_advice(split))
    return [data_folder() / name for name in names]


def _advice(split: _Split) -> str:
    if (data_folder() / split.pickled_folder).is_dir():
        return (
            f"The folder '{split.pickled_folder}' has the Python version, which is pickled and never read:"
            f" download the binary version and unpack it as '{split.binary_folder}'."
        )
    return ""
