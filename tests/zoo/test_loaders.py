from __future__ import annotations

import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from waterfill import zoo
from waterfill.errors import CalibrationError, FormatError, WaterfillError

RNG = np.random.default_rng(0)


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, prefix: str, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for array, name in ((images, "images-idx3"), (labels, "labels-idx1")):
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        path = folder / f"{prefix}-{name}-ubyte{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)


def write_records(path: Path, images: np.ndarray, *label_columns: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    path.write_bytes(np.column_stack([*label_columns, planes]).astype(np.uint8).tobytes())


def write_packed(folder: Path, stem: str, images: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, images)
    (folder / f"{stem}_images.npy.xz").write_bytes(lzma.compress(stream.getvalue(), preset=0))


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)


def collect(batches: zoo.Batches) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


# MNIST


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("place", "calibration", "test"),
    [
        (".", zoo.mnist_calibration, zoo.mnist_test),
        ("MNIST/raw", zoo.mnist_calibration, zoo.mnist_test),
        ("mnist", zoo.mnist_calibration, zoo.mnist_test),
        (".", zoo.fashion_mnist_calibration, zoo.fashion_mnist_test),
        ("FashionMNIST/raw", zoo.fashion_mnist_calibration, zoo.fashion_mnist_test),
        ("fashion-mnist", zoo.fashion_mnist_calibration, zoo.fashion_mnist_test),
    ],
)
def test_mnist_from_idx_files(folder: Path, suffix: str, place: str, calibration: Callable, test: Callable) -> None:
    images, labels = digits(7)
    write_idx(folder / place, images, labels, "train", suffix)
    write_idx(folder / place, images[::-1].copy(), labels[::-1].copy(), "t10k", suffix)
    inputs, targets = collect(calibration(samples=5, batch_size=2))
    torch.testing.assert_close(inputs, torch.tensor(images[:5, None] / 256, dtype=torch.float32))
    assert targets.tolist() == [0, 1, 2, 3, 4]
    assert collect(test())[1].tolist() == [6, 5, 4, 3, 2, 1, 0]


def test_mnist_prefers_the_archive(folder: Path) -> None:
    write_idx(folder, *digits(7), "t10k")
    images, labels = digits(3)
    np.savez(folder / "mnist.npz", test_images=images, test_labels=labels)
    assert len(collect(zoo.mnist_test())[1]) == 3


def test_fashion_mnist_is_not_mnist(folder: Path) -> None:
    images, labels = digits(3)
    np.savez(folder / "mnist.npz", test_images=images, test_labels=labels)
    write_idx(folder / "MNIST" / "raw", images, labels, "t10k")
    with pytest.raises(WaterfillError, match=r"'FashionMNIST/raw/t10k-images-idx3-ubyte'"):
        zoo.fashion_mnist_test()


def test_paper_mnist_is_standardised(folder: Path) -> None:
    images, labels = digits(3)
    np.savez(folder / "mnist.npz", train_images=images, train_labels=labels)
    inputs, _ = collect(zoo.paper_mnist_calibration(samples=3))
    expected = (images[:, None] / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(inputs, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            np.zeros((3, 28, 28), np.uint8),
            np.zeros(4, np.uint8),
            r"images of shape \(3, 28, 28\): expected \(4, 28, 28\)",
        ),
        (
            np.zeros((3, 14, 14), np.uint8),
            np.zeros(3, np.uint8),
            r"images of shape \(3, 14, 14\): expected \(3, 28, 28\)",
        ),
        (np.zeros((3, 28, 28), np.uint8), np.full(3, 10, np.uint8), "go up to 10: expected less than 10"),
    ],
)
def test_mnist_that_does_not_match(folder: Path, images: np.ndarray, labels: np.ndarray, message: str) -> None:
    write_idx(folder, images, labels, "t10k")
    with pytest.raises(FormatError, match=message):
        zoo.mnist_test()


def test_missing_mnist_names_every_place(folder: Path) -> None:
    with pytest.raises(WaterfillError) as caught:
        zoo.mnist_test()
    text = str(caught.value)
    for place in ("'mnist.npz'", "'MNIST/raw/t10k-images-idx3-ubyte'", "'t10k-images-idx3-ubyte.gz'", str(folder)):
        assert place in text


# CIFAR


def test_cifar10_from_packed_files(folder: Path) -> None:
    images, labels = pictures(6)
    write_packed(folder, "cifar10_train20k", images)
    write_packed(folder, "cifar10_test", images[::-1])
    np.savez(folder / "cifar10_labels.npz", train20k_labels=labels, test_labels=labels[::-1])
    inputs, targets = collect(zoo.cifar10_calibration(samples=4, batch_size=3))
    expected = (images[:4] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    torch.testing.assert_close(inputs, torch.tensor(expected.transpose(0, 3, 1, 2), dtype=torch.float32))
    assert targets.tolist() == [0, 1, 2, 3]
    inputs, targets = collect(zoo.paper_cifar10_test())
    expected = (images[::-1] / 255 - 0.5) / 0.5
    torch.testing.assert_close(inputs, torch.tensor(expected.transpose(0, 3, 1, 2), dtype=torch.float32))
    assert targets.tolist() == [5, 4, 3, 2, 1, 0]


def test_cifar10_from_binary_batches(folder: Path) -> None:
    images, labels = pictures(10)
    for index in range(5):
        rows = slice(2 * index, 2 * index + 2)
        write_records(folder / "cifar-10-batches-bin" / f"data_batch_{index + 1}.bin", images[rows], labels[rows])
    write_records(folder / "cifar-10-batches-bin" / "test_batch.bin", images[:3], labels[:3])
    inputs, targets = collect(zoo.paper_cifar10_calibration(samples=7))
    expected = (images[:7] / 255 - 0.5) / 0.5
    torch.testing.assert_close(inputs, torch.tensor(expected.transpose(0, 3, 1, 2), dtype=torch.float32))
    assert targets.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert len(collect(zoo.cifar10_test())[1]) == 3
    assert len(collect(zoo.cifar10_calibration(samples=None))[1]) == 10


def test_cifar100_uses_the_fine_labels(folder: Path) -> None:
    images, labels = pictures(4)
    for name in ("train", "test"):
        write_records(folder / "cifar-100-binary" / f"{name}.bin", images, labels + 5, labels + 90)
    assert collect(zoo.paper_cifar100_calibration(samples=4))[1].tolist() == [90, 91, 92, 93]
    assert collect(zoo.paper_cifar100_test())[1].tolist() == [90, 91, 92, 93]


@pytest.mark.parametrize(
    ("pickled", "binary", "loader"),
    [
        ("cifar-10-batches-py", "cifar-10-batches-bin", zoo.cifar10_test),
        ("cifar-100-python", "cifar-100-binary", zoo.paper_cifar100_test),
    ],
)
def test_pickled_cifar_is_never_read(folder: Path, pickled: str, binary: str, loader: Callable) -> None:
    (folder / pickled).mkdir()
    (folder / pickled / "test_batch").write_bytes(b"\x80\x04.")
    with pytest.raises(WaterfillError, match=f"'{pickled}' has the Python version.*binary version.*'{binary}'"):
        loader()


def test_missing_cifar_names_what_is_missing(folder: Path) -> None:
    images, labels = pictures(1)
    write_records(folder / "cifar-10-batches-bin" / "data_batch_1.bin", images, labels)
    with pytest.raises(WaterfillError) as caught:
        zoo.cifar10_calibration(samples=1)
    assert "'cifar10_train20k_images.npy.xz' or 'cifar-10-batches-bin/data_batch_2.bin'" in str(caught.value)
    assert "data_batch_1.bin" not in str(caught.value)


def test_cifar_with_more_labels_than_images(folder: Path) -> None:
    images, labels = pictures(3)
    write_packed(folder, "cifar10_test", images[:2])
    np.savez(folder / "cifar10_labels.npz", test_labels=labels)
    with pytest.raises(FormatError, match=r"has 2 images, but .* 3 labels"):
        zoo.cifar10_test()


# ImageNet


@pytest.fixture
def imagenet(folder: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    with zipfile.ZipFile(folder / "imagenet_sample_1000.zip", "w") as archive:
        for label in range(8):
            stream = io.BytesIO()
            image.fromarray(np.full((224, 224, 3), (10 * label, 100, 200), np.uint8)).save(stream, "JPEG", quality=95)
            archive.writestr(f"{label:04d}_n{label:08d}.jpg", stream.getvalue())
    return folder


@pytest.mark.usefixtures("imagenet")
def test_imagenet_feeds_mobilenet_and_squeezenet() -> None:
    inputs, targets = collect(zoo.imagenet_test(batch_size=3))
    assert sorted(targets.tolist()) == list(range(8))
    pixels = torch.stack([torch.tensor([10.0 * label, 100.0, 200.0]) for label in targets])
    torch.testing.assert_close(inputs[:, :, 100, 100], pixels / 127.5 - 1, atol=0.03, rtol=0)
    inputs, again = collect(zoo.imagenet_squeezenet_test(batch_size=5))
    assert torch.equal(again, targets)
    expected = pixels.flip(1) - torch.tensor([104.0, 117.0, 123.0])
    torch.testing.assert_close(inputs[:, :, 100, 100], expected, atol=3.0, rtol=0)


@pytest.mark.usefixtures("imagenet")
def test_imagenet_calibration_and_test_split_the_images() -> None:
    calibration = collect(zoo.imagenet_calibration(samples=3))[1].tolist()
    test = collect(zoo.imagenet_test(samples=5))[1].tolist()
    assert sorted(calibration + test) == list(range(8))
    assert collect(zoo.imagenet_squeezenet_calibration(samples=3))[1].tolist() == calibration


# What holds for all loaders


@pytest.fixture
def ten_digits(folder: Path) -> Path:
    images, labels = digits(10)
    np.savez(folder / "mnist.npz", train_images=images, train_labels=labels)
    return folder


@pytest.mark.usefixtures("ten_digits")
def test_batches_can_be_iterated_again_and_change_nothing() -> None:
    batches = zoo.mnist_calibration(samples=10, batch_size=4)
    assert len(batches) == len(list(batches)) == 3
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    first = collect(batches)
    for inputs, targets in batches:
        inputs.zero_()
        targets.zero_()
    again = collect(batches)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.usefixtures("ten_digits")
def test_targets_are_int64_and_images_float32_and_contiguous() -> None:
    inputs, targets = next(iter(zoo.mnist_calibration(samples=3)))
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert inputs.is_contiguous()


@pytest.mark.usefixtures("ten_digits")
@pytest.mark.parametrize("samples", [-1, 0, 11, 1024])
def test_more_samples_than_there_are(samples: int) -> None:
    with pytest.raises(CalibrationError, match=rf"samples={samples} is wrong: .*mnist\.npz has 10; ask for 1 to 10"):
        zoo.mnist_calibration(samples=samples)


@pytest.mark.usefixtures("ten_digits")
@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_has_at_least_one_sample(batch_size: int) -> None:
    with pytest.raises(CalibrationError, match=f"batch_size={batch_size} is wrong: expected at least 1"):
        zoo.mnist_calibration(samples=3, batch_size=batch_size)
