import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.errors import WaterfillError
from waterfill.records import (
    Coded,
    Constant,
    Entry,
    Exact,
    Inventory,
    Layout,
    Tied,
    Weight,
)
from waterfill.results import CompressionResult, TensorReport


@st.composite
def layouts(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=5))
    if len(shape) < 2 or not draw(st.booleans()):
        return Layout(tuple(shape))
    groups = draw(st.integers(1, 3))
    return Layout((shape[0] * groups, *shape[1:]), transposed=True, groups=groups)


def slow_matrix(layout, values):
    """The normal form, element by element."""
    shape = values.shape
    if len(shape) < 2:
        return values.reshape(1, -1)
    taps = int(np.prod(shape[2:]))
    flat = values.reshape(shape[0], shape[1], taps)
    if not layout.transposed:
        return flat.reshape(shape[0], shape[1] * taps)
    channels = shape[0] // layout.groups
    matrix = np.empty((layout.groups * shape[1], channels * taps), values.dtype)
    for group in range(layout.groups):
        for channel in range(channels):
            for out in range(shape[1]):
                for tap in range(taps):
                    value = flat[group * channels + channel, out, tap]
                    matrix[group * shape[1] + out, channel * taps + tap] = value
    return matrix


@given(layouts())
@settings(max_examples=300, deadline=None)
def test_a_tensor_becomes_a_matrix_and_comes_back(layout):
    values = np.arange(layout.numel).reshape(layout.shape)
    out, channels, taps = layout.axes
    matrix = layout.to_matrix(values)
    assert matrix.shape == (out, channels * taps)
    assert matrix.flags.c_contiguous
    assert (matrix == slow_matrix(layout, values)).all()
    back = layout.from_matrix(matrix)
    assert back.shape == layout.shape
    assert (back == values).all()


@given(layouts())
@settings(max_examples=50, deadline=None)
def test_tensors_that_lie_in_another_order_are_read_the_same(layout):
    values = np.arange(layout.numel, dtype=np.float32).reshape(layout.shape)
    turned = np.asfortranarray(values)
    assert (layout.to_matrix(turned) == layout.to_matrix(values)).all()
    matrix = layout.to_matrix(values)
    assert (layout.from_matrix(np.asfortranarray(matrix)) == values).all()


def test_the_matrix_of_a_transposed_convolution_does_what_the_convolution_does():
    torch.manual_seed(0)
    conv = torch.nn.ConvTranspose1d(6, 4, 3, groups=2, bias=False)
    matrix = Layout((6, 2, 3), transposed=True, groups=2).to_matrix(conv.weight.detach().numpy())
    x = torch.randn(1, 6, 1)
    expected = [
        sum(matrix[o, 3 * c + tap] * float(x[0, c + 3 * (o // 2), 0]) for c in range(3))
        for o in range(4)
        for tap in range(3)
    ]
    assert conv(x).detach().reshape(-1).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("shape", "is_vector"), [((), True), ((3,), True), ((3, 1), False), ((2, 1, 1), False)])
def test_tensors_with_fewer_than_two_axes_are_vectors(shape, is_vector):
    layout = Layout(shape)
    assert Weight("w", layout.to_matrix(np.zeros(shape, np.float32)), layout).is_vector == is_vector


def test_floating_values_count_every_kind_but_tied_and_integer_ones():
    entries = (
        Entry("a", (2, 3), "float32", Coded(Layout((2, 3)))),
        Entry("b", (2, 3), "float32", Tied("a")),
        Entry("c", (5,), "bfloat16", Exact("excluded")),
        Entry("d", (7,), "int64", Exact("integer")),
        Entry("e", (11,), "float32", Constant(0.0)),
        Entry("f", (13,), "complex64", Exact("complex")),
    )
    assert Inventory(entries, {}, {}).floating_values == 6 + 5 + 11 + 13
    assert Inventory((), {}, {}).floating_values == 0


@pytest.fixture
def result():
    rows = (
        TensorReport("a", (4, 5), 20, 10.5, 4.2, 0.01, "uniform", "", 4.0, 0.1, "Gaussian"),
        TensorReport("n", (), 1, 8.0, 64.0, None, "exact", "integer"),
    )
    return CompressionResult(
        data=b"x" * 50,
        floating_values=20,
        original_bytes=88,
        tensors=rows,
        overhead_bytes=31.5,
        water_level=1e-4,
        distortion=None,
        target={"rate": 20.0},
        importance="kl",
        importance_power=0.5,
        limit=16.0,
        limit_error=0.1,
        limit_measure="kl^0.5",
    )


def test_sizes_of_a_result(result):
    assert result.size_bytes == 50
    assert result.rate == 20.0
    assert result.ratio == 88 / 50
    assert dataclasses.replace(result, floating_values=0).rate == 400


def test_a_gap_is_what_lies_above_the_limit(result):
    assert (result.gap, result.gap_percent) == (4.0, 25.0)
    below = dataclasses.replace(result, limit=25.0)
    assert (below.gap, below.gap_percent) == (-5.0, pytest.approx(-20.0))
    assert dataclasses.replace(result, limit=0.0).gap_percent is None
    assert [row.gap for row in result.tensors] == [pytest.approx(0.2), None]
    assert [row.gap_percent for row in result.tensors] == [pytest.approx(5.0), None]


def test_a_result_as_json_has_everything_but_the_bytes(result):
    parsed = json.loads(result.to_json())
    rows = parsed.pop("tensors")
    assert [row.pop("gap") for row in rows] == [pytest.approx(0.2), None]
    assert [row.pop("gap_percent") for row in rows] == [pytest.approx(5.0), None]
    assert rows == [{**dataclasses.asdict(row), "shape": list(row.shape)} for row in result.tensors]
    assert parsed == {
        "floating_values": 20,
        "original_bytes": 88,
        "overhead_bytes": 31.5,
        "water_level": 1e-4,
        "distortion": None,
        "target": {"rate": 20.0},
        "importance": "kl",
        "importance_power": 0.5,
        "size_bytes": 50,
        "rate": 20.0,
        "ratio": 88 / 50,
        "limit": 16.0,
        "limit_error": 0.1,
        "limit_measure": "kl^0.5",
        "gap": 4.0,
        "gap_percent": 25.0,
        "distortion_unit": "",
        "limit_distortion": None,
        "limit_curve": [],
        "predicted_distortion": None,
        "held_out_distortion": None,
        "untuned_distortion": None,
        "importance_error": None,
        "notes": [],
    }


def test_a_result_shows_itself_without_its_bytes_and_its_table(result):
    assert "xxx" not in repr(result)
    assert "TensorReport" not in repr(result)


def test_a_result_is_saved(result, tmp_path):
    path = tmp_path / "m.wf"
    result.save(path)
    assert path.read_bytes() == result.data
    dataclasses.replace(result, data=b"new").save(str(path))
    assert path.read_bytes() == b"new"
    with pytest.raises(WaterfillError, match="exists"):
        result.save(path, force=False)
    assert path.read_bytes() == b"new"
