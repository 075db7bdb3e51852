"""Paths with lanes: every shape beside the slow decoder, with and without vectors; when they are chosen."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import slow_decoder
import torch
from slow_decoder import Stream
from slow_paths import levels_of

from waterfill.codec import container, lane_kernels, lane_vectors, pieces
from waterfill.codec.lanes import LAYOUTS, LaneSymbols, best_lanes, in_order
from waterfill.errors import FormatError
from waterfill.files import WaterfillFile
from waterfill.importance.factored import KroneckerForm
from waterfill.quantize import Feedback, Trellis
from waterfill.reconstruct import fill, reconstruct
from waterfill.records import ALL, Coded, Entry, Lanes, Layout, Paths, Quantized, Spread, Uniform, Weight

SHAPES = (1, 1), (1, 50), (50, 1), (3, 40), (9, 7), (33, 12), (75, 5)
VECTORS = pytest.mark.parametrize("vectors", [False, True], ids=["scalar", "vectors"])


@pytest.fixture
def with_vectors(monkeypatch, vectors):
    if vectors and not lane_vectors.supported():
        pytest.skip("the processor has no gathers")
    monkeypatch.setattr(lane_kernels, "decode_lanes", forced(lane_kernels.decode_lanes, vectors))


def piece(shape, lanes, *, down=False, zero=False, spread=None, largest=9, seed=0):
    """Levels of a path with lanes in the order of its lines, layout and spread."""
    rng, layout = np.random.default_rng(seed), Layout(shape)
    paths = Paths(6, zero, 0, 7, 45, down, ALL if spread is None else -2, lanes)
    spread = replace(spread or Spread(5, 40), trellis=paths)
    indices = rng.integers(-largest, largest + 1, layout.numel).tolist()
    sums = sum_of_scales(spread, down) if spread.rows is not None else None
    return levels_of(indices, paths, shape[0], sums, shape[1]), layout, spread


def sum_of_scales(spread, down):
    sums = np.add.outer(spread.rows.astype(int), spread.channels.astype(int))
    return (sums.T if down else sums).reshape(-1)


def slowly(stream, spread, layout):
    """Levels by the slow decoder."""
    path, down = spread.trellis, spread.down
    sums = np.zeros(layout.numel, int) if spread.rows is None else sum_of_scales(spread, down)
    models = [((spread.family, path.family), (spread.base + 2 * s, path.base + 2 * s)) for s in sums.tolist()]
    lowest = spread.base + 2 * path.least
    reader = Stream(stream, max(8, path.lanes.count))
    found = reader.path(models, path.log_states, path.zero, path.span(layout), lowest, path.lanes.count)
    reader.finish()
    return found


def scaled(shape):
    rng = np.random.default_rng(1)
    rows, columns = (rng.integers(-4, 5, n).astype(np.int8) for n in shape)
    return Spread(5, 40, rows, columns)


@VECTORS
@pytest.mark.parametrize("count", [8, 32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("with_vectors")
def test_lanes_are_read_as_the_slow_decoder_reads_them(shape, count):
    for lines, down, zero in ((1, False, True), (2, True, False), (1 << 42, False, False), (3, True, True)):
        for spread, largest in ((None, 9), (scaled(shape), 9), (None, 100_000)):
            known = {"down": down, "zero": zero, "spread": spread, "largest": largest}
            levels, layout, coded = piece(shape, Lanes(count, lines), **known)
            model = pieces.model(coded, layout, 0, levels.size)
            stream = pieces.encode([levels], [model])
            assert (in_order(pieces.decode(stream, [model])[0]) == levels).all()
            assert slowly(stream, coded, layout) == levels.tolist()


@VECTORS
@pytest.mark.usefixtures("with_vectors")
def test_low_bits_and_other_pieces_in_the_same_stream():
    levels, layout, spread = piece((20, 9), Lanes(32, 1), spread=Spread(5, 120), largest=70_000)
    spread = replace(spread, trellis=replace(spread.trellis, least=ALL))
    levels = levels_of(np.random.default_rng(0).integers(-70_000, 70_000, 180).tolist(), spread.trellis, 20, None, 9)
    plain, path = Spread(5, 40), Spread(5, 40, trellis=Paths(3, False, 4, 5, 40))
    walked = levels_of([3, -1, 2, 0, 1, -5], path.trellis)
    models = [pieces.model(spread, layout, 0, 180), pieces.model(plain, Layout((9,)), 0, 9)]
    models.append(pieces.model(path, Layout((6,)), 0, 6))
    parts = [levels, np.arange(9, dtype=np.int32), walked]
    found = pieces.decode(pieces.encode(parts, models), models)
    assert all((in_order(part) == known).all() for part, known in zip(found, parts, strict=True))
    assert pieces.header_bytes(models) == 128
    assert pieces.header_bytes(models[1:]) == 32


@VECTORS
@pytest.mark.usefixtures("with_vectors")
@pytest.mark.parametrize("count", [8, 32])
def test_damage_is_found(count):
    levels, layout, spread = piece((70, 11), Lanes(count, 3), largest=40)
    model = pieces.model(spread, layout, 0, levels.size)
    stream = pieces.encode([levels], [model])
    for bad in (stream[:-2], stream[: 4 * count + 20], stream[: 4 * count - 2], stream + b"\0\0", b"\1" + stream[1:]):
        with pytest.raises(FormatError):
            pieces.decode(bad, [model])
    for seed in range(60):  # whatever is read, it is levels or an error
        noise = np.random.default_rng(seed).bytes(len(stream))
        with pytest.raises(FormatError):
            pieces.decode(noise, [model])


def test_an_integer_beyond_32_bits_is_refused():
    paths = Paths(2, False, 0, 5, 256, lanes=Lanes(8, 1))
    model = pieces.model(Spread(5, 256, rows=np.array([127], np.int8), trellis=paths), Layout((1, 1)), 0, 1)
    near = pieces.model(Spread(5, 256, trellis=paths), Layout((1, 1)), 0, 1)
    stream = pieces.encode([np.array([2**30], np.int32)], [near])
    texts = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        with pytest.raises(FormatError) as error:
            pieces.decode(rng.bytes(32) + stream[32:] + rng.bytes(20), [model])
        texts.add(str(error.value))
    assert "a symbol is beyond 32 bits" in texts


@pytest.mark.parametrize("down", [False, True], ids=["rows", "columns"])
def test_chunks_have_whole_rounds_and_values_are_those_of_the_levels(monkeypatch, down):
    monkeypatch.setattr(container, "LARGE_CHUNK", 600)
    monkeypatch.setattr(container, "SMALL_CHUNK", 1)
    shape = (40, 70)
    levels, layout, spread = piece(shape, Lanes(8, 2), down=down, spread=scaled(shape), largest=300)
    matrix = levels.reshape(shape[::-1]).T if down else levels.reshape(shape)
    rule = Uniform(-200, 0, (3, -2, 9), spread.rows, -spread.channels)
    item = Quantized(np.ascontiguousarray(matrix), rule, spread)
    data = container.pack((Entry("w", shape, "float32", Coded(layout)),), {"w": item}, {}, "test").data
    with WaterfillFile(data, threads=1) as file:
        starts = [start for spans in file.container.symbol_spans.values() for _, start, _ in spans]
        found = file["w"].numpy()
    assert starts == list(range(0, 2800, 8 * 2 * (shape[0] if down else shape[1])))
    assert found.tobytes() == reconstruct(item.symbols.reshape(-1), rule, layout).tobytes()


@pytest.mark.parametrize("down", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 90), (90, 5), (40, 70), (64, 64), (257, 33)], ids=str)
def test_values_are_those_of_the_levels_however_large_they_are(shape, down):
    rng, layout = np.random.default_rng(0), Layout(shape)
    scales = scaled(shape)
    rule = Uniform(-200, 0, (64, -64, 9), scales.rows, scales.channels)
    for count, lines, largest in ((8, 3, 4), (32, 1, 300), (8, 9, 1 << 30), (32, 17, (1 << 24) + 3)):
        flat = rng.integers(-largest, largest + 1, layout.numel).astype(np.int32)
        length = layout.line_length(down)
        span = length * min(lines, layout.numel // length)
        order = LaneSymbols(np.arange(layout.numel, dtype=np.int32), count, span, length).in_order()
        levels = np.empty_like(flat)
        levels[order] = flat
        found, expected = np.empty(shape, np.float32), np.empty(shape, np.float32)
        fill(found, LaneSymbols(levels, count, span, length), rule, layout, 0, down)
        fill(expected, flat, rule, layout, 0, down)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("down", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("step", [-200, 900])
def test_short_types_are_rounded_as_a_whole_tensor_is(monkeypatch, down, dtype, step):
    monkeypatch.setattr(container, "LARGE_CHUNK", 100)
    monkeypatch.setattr(container, "SMALL_CHUNK", 1)
    layout = Layout((9, 4, 10), transposed=True)
    shape = (4, 90)
    levels, _, spread = piece(shape, Lanes(8, 1), down=down, largest=300)
    matrix = np.ascontiguousarray(levels.reshape(shape[::-1]).T if down else levels.reshape(shape))
    rule = Uniform(step, 0, (3, -2, 9))
    item = Quantized(matrix, rule, spread)
    data = container.pack((Entry("w", layout.shape, dtype, Coded(layout)),), {"w": item}, {}, "test").data
    kind = getattr(torch, dtype)
    wide = layout.from_matrix(reconstruct(matrix.reshape(-1), rule, layout).reshape(shape))
    expected = torch.from_numpy(wide).clamp(-torch.finfo(kind).max, torch.finfo(kind).max).to(kind)
    with torch.inference_mode():
        found = WaterfillFile(data, threads=2)["w"]
    assert found.dtype == kind
    assert found.is_contiguous()
    assert torch.equal(found, expected)


def test_small_tensors_and_cheap_ones_have_no_lanes():
    assert best_lanes(Layout((256, 256)), False, 8.0, 1 << 16) is None
    assert best_lanes(Layout((256, 257)), False, 8.0, 1 << 16) == Lanes(8, 32)
    assert best_lanes(Layout((1, 1 << 20)), False, 8.0, 1 << 16) is None
    assert best_lanes(Layout((1024, 1024)), True, np.inf, 1 << 16) is None
    assert best_lanes(Layout((1024, 1024)), True, 0.001, 1 << 16) is None


@pytest.mark.parametrize("shape", [(1024, 1024), (576, 576), (4096, 4096), (768, 3072), (5632, 2048), (30522, 384)])
@pytest.mark.parametrize("rate", [0.5, 1.5, 3.0])
def test_lanes_cost_little_and_are_as_many_as_possible(shape, rate):
    layout = Layout(shape)
    found = best_lanes(layout, True, rate, 1 << 16)
    assert found is not None
    spans, chunks = -(-shape[1] // found.lines), -(-layout.numel // LAYOUTS[1][1])
    assert 3 * spans + 24 * (found.count - 8) * chunks <= 0.001 * rate * layout.numel
    assert found.lines * shape[0] <= 1 << 16
    if rate > 1:
        assert found.count == (32 if layout.numel > 1 << 20 or rate > 2 else found.count)


def correlated(shape):
    mixed = np.random.default_rng(2).normal(size=(shape[1], 2 * shape[1]))
    return KroneckerForm(np.ones(shape[0]), (mixed @ mixed.T / shape[1])[None])


@pytest.mark.parametrize("kind", ["trellis", "feedback"])
def test_quantizers_take_lanes_of_large_tensors_alone(kind):
    rng = np.random.default_rng(0)
    for shape, lanes in (((256, 256), False), ((256, 300), True)):
        matrix = rng.normal(size=shape).astype(np.float32)
        weight = Weight("w", matrix, Layout(shape))
        if kind == "trellis":
            item = Trellis(8, rounds=2).quantize(weight, None, 0.05)
        else:
            item = Feedback(8, rounds=2).quantize(weight, correlated(shape), 0.05)
        assert (item.spread.trellis.lanes is not None) == lanes
        entry = Entry("w", shape, "float32", Coded(weight.layout))
        data = container.pack((entry,), {"w": item}, {}, "test").data
        assert data[10] == (2 if lanes else 0)
        values = reconstruct(item.symbols.reshape(-1), item.rule, weight.layout).reshape(shape)
        assert (WaterfillFile(data)["w"].numpy() == values).all()


def forced(kernel, vectors):
    """The kernel with vectors, or without them."""
    return lambda *known: kernel(*known[:-2], vectors, known[-1])


GENERIC = """
import test_lanes
from waterfill.codec import lane_kernels, lane_vectors
assert not lane_vectors.supported()
lane_kernels.decode_lanes = test_lanes.forced(lane_kernels.decode_lanes, True)
test_lanes.test_lanes_are_read_as_the_slow_decoder_reads_them((33, 12), 32)
"""


def test_vectors_are_right_on_a_processor_without_gathers():
    folders = [str(Path(__file__).parent), str(Path(slow_decoder.__file__).parent), *sys.path]
    beside = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    environment = {**os.environ, **beside, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, "-c", GENERIC], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
