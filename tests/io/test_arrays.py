"""Arrays of every type: the values and roundings of PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from waterfill.errors import FormatError
from waterfill.io.arrays import LARGEST, STORAGE, TypedArray, exact_array, round_into, rounded
from waterfill.models.arrays import array_of, exact_bytes, tensor_of
from waterfill.records import Coded, Entry, Exact, Layout

EDGES = np.array([0, -0.0, 1e-45, 1e-38, 6e-8, 6.1e-5, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 65503, 3.3e38], np.float32)


def entry_of(shape, dtype, origin=None):
    return Entry("w", shape, dtype, origin or Coded(Layout(shape)))


@pytest.mark.parametrize("dtype", sorted(STORAGE))
def test_every_pattern_has_the_value_that_pytorch_gives_it(dtype):
    size = STORAGE[dtype].itemsize
    raw = np.arange(1 << 16, dtype=np.uint16) if size > 1 else np.arange(256, dtype=np.uint8)
    if dtype == "bool":
        raw = raw[:2]
    if size > 2:
        raw = np.random.default_rng(0).integers(0, 256, (64, size), dtype=np.uint8)
    values = exact_array(entry_of((raw.nbytes // size,), dtype, Exact("")), raw.tobytes())
    tensor = tensor_of(values)
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert exact_bytes(tensor) == bytes(values.elements()) == raw.tobytes()
    assert array_of(tensor).dtype == dtype and np.shares_memory(array_of(tensor).array, values.array)
    found = values.numbers()
    exact = {"complex32": torch.complex64}.get(
        dtype, torch.float32 if tensor.is_floating_point() and size < 4 else None
    )
    expected = (tensor if exact is None else tensor.to(exact)).numpy()
    np.testing.assert_array_equal(found.astype(expected.dtype), expected)


@pytest.mark.parametrize("dtype", sorted(LARGEST))
@given(seed=st.integers(0, 99), octaves=st.sampled_from([1, 20, 100]), order=st.sampled_from("CF"))
def test_values_are_rounded_as_pytorch_rounds_them(dtype, seed, octaves, order):
    random = np.random.default_rng(seed)
    some = random.normal(size=(37, 11)) * 2.0 ** random.integers(-octaves, octaves + 1, (37, 11))
    values = np.asarray(some, np.float32, order=order)
    values[:11, 3] = EDGES
    values = np.clip(values, -LARGEST[dtype], LARGEST[dtype])
    out = np.zeros(values.shape, STORAGE[dtype], order)
    round_into(values, out, dtype)
    expected = torch.from_numpy(values).to(getattr(torch, dtype))
    assert tensor_of(TypedArray(dtype, np.ascontiguousarray(out))).equal(expected)


@pytest.mark.parametrize("dtype", sorted(LARGEST))
def test_what_is_too_large_becomes_the_largest_value(dtype):
    found = rounded(np.array([1e300, -1e300, 1.0]), entry_of((3,), dtype)).numbers()
    limit = min(torch.finfo(torch.float32).max, torch.finfo(getattr(torch, dtype)).max)
    assert found.tolist() == [limit, -limit, 1]


def test_what_is_no_number_stays_none():
    found = rounded(np.array([np.nan, 1], np.float32), entry_of((2,), "bfloat16"))
    assert found.array.tolist() == [0x7FC0, 0x3F80]


def test_a_part_is_a_view():
    whole = TypedArray("bfloat16", np.zeros((4, 3), np.uint16))
    whole[1:3].array[...] = 0x3F80
    whole[3].array[...] = 0x4000
    assert whole.numbers()[:, 0].tolist() == [0, 1, 1, 2] and whole[1:3].shape == (2, 3)


def test_a_boolean_is_nothing_but_0_or_1():
    with pytest.raises(FormatError, match="'w' of type bool"):
        exact_array(entry_of((2,), "bool", Exact("")), b"\x00\x02")
