from __future__ import annotations

import gzip
import io
import lzma
import random
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from waterfill.errors import FormatError, WaterfillError
from waterfill.zoo import jpeg_zip
from waterfill.zoo.arrays import read_npy_xz, read_npz
from waterfill.zoo.cifar_binary import CIFAR10_LAYOUT, CIFAR100_LAYOUT, read_cifar_binary
from waterfill.zoo.idx import read_idx
from waterfill.zoo.jpeg_zip import jpeg_label, jpeg_names, read_jpegs

RNG = np.random.default_rng(0)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def cifar_bytes(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Labels `[n, 1 or 2]`, images `[n, 32, 32, 3]`."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels, planes], axis=1).astype(np.uint8).tobytes()


def random_images(count: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def jpeg_bytes(side: int) -> bytes:
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(np.full((side, side, 3), (200, 100, 50), np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


# idx


@settings(max_examples=50, deadline=None)
@given(
    array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)),
    suffix=st.sampled_from(["", ".gz"]),
)
def test_idx_round_trip(array: np.ndarray, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"x-ubyte{suffix}"
        path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
        np.testing.assert_array_equal(read_idx(path, array.ndim), array)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("found", [0, 1, 11])
def test_idx_of_wrong_length_names_file_and_sizes(tmp_path: Path, suffix: str, found: int) -> None:
    content = (idx_bytes(np.zeros(10, np.uint8)) + b"\0")[: 8 + found]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(
        FormatError, match=rf"expected 10 bytes after the header for shape \(10,\), found {found}"
    ) as caught:
        read_idx(path, 1)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"\x1f\x8b\x08\x00rest", "1f8b0800"),
        (idx_bytes(np.zeros((2, 2), np.uint8)), "00000802"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd", "00000d01"),
    ],
)
def test_idx_with_a_wrong_magic_names_both(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=f"expected the magic 00000801, found {found}"):
        read_idx(tmp_path / "x", 1)


def test_idx_with_half_a_header(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(idx_bytes(np.zeros((2, 2, 2), np.uint8))[:9])
    with pytest.raises(FormatError, match="expected 16 bytes of header, found 9"):
        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize(
    "content", [idx_bytes(np.zeros(5, np.uint8)), gzip.compress(bytes(4000), mtime=0)[:20], b"\x1f\x8b"]
)
def test_gz_that_is_none_or_is_cut(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.gz"):
        read_idx(tmp_path / "x.gz", 1)


# CIFAR binary batches


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), fine=st.booleans())
def test_cifar_round_trip(seed: int, sizes: list[int], fine: bool) -> None:
    rng = np.random.default_rng(seed)
    layout = CIFAR100_LAYOUT if fine else CIFAR10_LAYOUT
    images = rng.integers(0, 256, (sum(sizes), 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, (sum(sizes), layout.label_bytes), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / f"{index}.bin" for index in range(len(sizes))]
        for path, part in zip(paths, np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]), strict=True):
            path.write_bytes(cifar_bytes(images[part], labels[part]))
        found = read_cifar_binary(paths, layout)
    np.testing.assert_array_equal(found.inputs, images)
    np.testing.assert_array_equal(found.labels, labels[:, -1])


def test_cifar_reads_no_more_files_than_needed(tmp_path: Path) -> None:
    (tmp_path / "1.bin").write_bytes(cifar_bytes(random_images(3, 32, 32, 3), np.zeros((3, 1))))
    found = read_cifar_binary([tmp_path / "1.bin", tmp_path / "missing.bin"], CIFAR10_LAYOUT, samples=3)
    assert len(found.labels) == 3


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_cifar_of_wrong_length_names_file_and_sizes(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(size))
    with pytest.raises(FormatError, match=rf"x\.bin .*records of 3073 bytes, found {size} bytes"):
        read_cifar_binary([tmp_path / "x.bin"], CIFAR10_LAYOUT)


def test_cifar_with_a_wrong_label(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(cifar_bytes(random_images(2, 32, 32, 3), np.array([[3], [10]])))
    with pytest.raises(FormatError, match=r"x\.bin has the label 10: expected labels below 10"):
        read_cifar_binary([tmp_path / "x.bin"], CIFAR10_LAYOUT)


# NumPy files


def test_npz_reads_an_array_once(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.arange(5))
    first = read_npz(tmp_path / "x.npz", "a")
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert read_npz(tmp_path / "x.npz", "a") is first
    assert not first.flags.writeable


def test_npz_without_the_array_names_the_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.arange(5), b=np.arange(5))
    with pytest.raises(FormatError, match=r"x\.npz has no array 'c': expected it beside \['a', 'b'\]"):
        read_npz(tmp_path / "x.npz", "c")


def test_npz_never_unpickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FormatError, match="damaged"):
        read_npz(tmp_path / "x.npz", "a")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x80\x04."])
def test_npz_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(FormatError, match=r"x\.npz is damaged or no \.npz file"):
        read_npz(tmp_path / "x.npz", "a")


def write_npy_xz(path: Path, array: np.ndarray, cut: int | None = None) -> None:
    stream = io.BytesIO()
    np.save(stream, array)
    path.write_bytes(lzma.compress(stream.getvalue())[:cut])


@pytest.mark.parametrize(("rows", "expected"), [(None, 5), (0, 0), (2, 2), (5, 5), (9, 5)])
def test_npy_xz_reads_the_first_rows(tmp_path: Path, rows: int | None, expected: int) -> None:
    images = random_images(5, 4, 3)
    write_npy_xz(tmp_path / "x.npy.xz", images)
    np.testing.assert_array_equal(read_npy_xz(tmp_path / "x.npy.xz", rows, (4, 3)), images[:expected])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 4, 4), np.uint8), r"rows of shape \(4, 4\): expected \(4, 3\)"),
        (np.zeros((5, 4, 3), np.float32), "row-major float32 of shape"),
        (np.asfortranarray(np.zeros((5, 4, 3), np.uint8)), "column-major uint8"),
        (np.zeros((), np.uint8), "expected row-major uint8 rows"),
        (np.zeros((5, 4, 3), object), "expected row-major uint8 rows"),
    ],
)
def test_npy_xz_of_another_kind(tmp_path: Path, array: np.ndarray, message: str) -> None:
    write_npy_xz(tmp_path / "x.npy.xz", array)
    with pytest.raises(FormatError, match=message):
        read_npy_xz(tmp_path / "x.npy.xz", None, (4, 3))


def test_npy_xz_of_another_version(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros((5, 4, 3), np.uint8), version=(2, 0))
    (tmp_path / "x.npy.xz").write_bytes(lzma.compress(stream.getvalue()))
    with pytest.raises(FormatError, match=r"npy version \(2, 0\): expected \(1, 0\)"):
        read_npy_xz(tmp_path / "x.npy.xz", None, (4, 3))


def test_npy_xz_cut_off(tmp_path: Path) -> None:
    write_npy_xz(tmp_path / "x.npy.xz", random_images(50, 4, 3), cut=-200)
    with pytest.raises(FormatError, match=r"x\.npy\.xz is damaged or truncated"):
        read_npy_xz(tmp_path / "x.npy.xz", None, (4, 3))


def test_npy_xz_shorter_than_its_header(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((5, 4, 3), np.uint8))
    (tmp_path / "x.npy.xz").write_bytes(lzma.compress(stream.getvalue()[:-1]))
    with pytest.raises(FormatError, match="expected 60 bytes of pixels, found 59"):
        read_npy_xz(tmp_path / "x.npy.xz", None, (4, 3))


# JPEG archives


def test_jpegs_in_the_order_asked_for(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("0007_b.jpg", jpeg_bytes(8))
        archive.writestr("0003_a.jpg", jpeg_bytes(8))
        archive.writestr("classes.txt", "")
    names = jpeg_names(tmp_path / "x.zip")
    assert [jpeg_label(name) for name in names] == [3, 7]
    images = read_jpegs(tmp_path / "x.zip", names[::-1], 8)
    assert images.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(images[0, 4, 4].astype(int), (200, 100, 50), atol=4)


def test_jpeg_of_another_size_or_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("0001_a.jpg", jpeg_bytes(8))
        archive.writestr("0002_b.jpg", jpeg_bytes(16)[:200])
        archive.writestr("0003_c.jpg", b"no image")
    with pytest.raises(FormatError, match=r"'0001_a\.jpg' of .*x\.zip has 8 rows and 8 columns: expected 16"):
        read_jpegs(tmp_path / "x.zip", ("0001_a.jpg",), 16)
    for name in ("0002_b.jpg", "0003_c.jpg"):
        with pytest.raises(FormatError, match=rf"'{name}' of .*x\.zip is damaged"):
            read_jpegs(tmp_path / "x.zip", (name,), 16)


def test_archive_without_images_or_no_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "")
    (tmp_path / "y.zip").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"x\.zip has no images"):
        jpeg_names(tmp_path / "x.zip")
    with pytest.raises(FormatError, match=r"y\.zip is damaged or no zip archive"):
        jpeg_names(tmp_path / "y.zip")


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(WaterfillError, match="pip install pillow"):
        jpeg_zip.read_jpegs(tmp_path / "x.zip", (), 8)


# Random damage: the right array or a FormatError, nothing else


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@pytest.mark.parametrize("kind", ["idx", "gz", "bin", "npz", "npy.xz"])
def test_random_damage_is_a_format_error(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / f"whole.{kind}"
    images = random_images(2, 32, 32, 3)
    readers = {
        "idx": lambda path: read_idx(path, 3),
        "gz": lambda path: read_idx(path, 3),
        "bin": lambda path: read_cifar_binary([path], CIFAR10_LAYOUT),
        "npz": lambda path: read_npz(path, "a"),
        "npy.xz": lambda path: read_npy_xz(path, None, (32, 3)),
    }
    if kind == "npz":
        np.savez_compressed(whole, a=images)
    elif kind == "npy.xz":
        write_npy_xz(whole, images[0])
    else:
        content = cifar_bytes(images, np.zeros((2, 1))) if kind == "bin" else idx_bytes(images[0])
        whole.write_bytes(gzip.compress(content) if kind == "gz" else content)
    readers[kind](whole)
    chance = random.Random(0)
    for trial in range(2000):
        content = bytearray(whole.read_bytes())
        if trial % 2:
            del content[chance.randrange(len(content)) :]
        else:
            content[chance.randrange(min(len(content), 400))] ^= 1 << chance.randrange(8)
        damaged = tmp_path / f"{trial}.{kind}"
        damaged.write_bytes(content)
        try:
            readers[kind](damaged)
        except FormatError as error:
            assert str(damaged) in str(error)
