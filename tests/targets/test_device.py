"""Decoding on a device, without one: Triton's interpreter runs the kernel, its compiler makes code of it."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from slow_paths import levels_of

from directories import compressed, original
from waterfill import targets
from waterfill.bundle import Bundle, part_name
from waterfill.codec import container, pieces
from waterfill.errors import FormatError, UsageError
from waterfill.files import WaterfillFile
from waterfill.reconstruct import fill
from waterfill.records import ALL, Coded, Entry, Lanes, Layout, Paths, Quantized, Spread, Uniform
from waterfill.targets.device import LaneStream, OnDevice, decode

pytest.importorskip("triton", reason="needs Triton: pip install triton")

ON = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RULE = Uniform(-30, (5, -3, 2))


def coded(shape, lanes, *, down=False, zero=False, scaled=False, base=40, largest=9, least=ALL):
    """Layout, rule and spread of a path, and its levels in the order of its lines."""
    rng, layout = np.random.default_rng(shape), Layout(shape)
    spread = Spread(5, base, trellis=Paths(6, zero, 0, 7, base, down, least, lanes))
    rule, sums = RULE, None
    if scaled:
        rows, columns = (rng.integers(-4, 5, n).astype(np.int8) for n in shape)
        spread = replace(spread, rows=rows, channels=columns)
        sums = np.add.outer(rows.astype(int), columns.astype(int))
        sums = (sums.T if down else sums).reshape(-1)
        rule = replace(rule, rows=rng.integers(-3, 4, shape[0]).astype(np.int8), channels=columns[::-1].copy())
    indices = rng.integers(-largest, largest + 1, layout.numel).tolist()
    return layout, rule, spread, levels_of(indices, spread.trellis, shape[0], sums, shape[1])


def streams_of(layout, spread, levels, per_piece):
    """Streams of so many levels each."""
    found = []
    for start in range(0, levels.size, per_piece):
        stop = min(start + per_piece, levels.size)
        model = pieces.model(spread, layout, start, stop)
        found.append(LaneStream(pieces.encode([levels[start:stop]], [model]), model, start, "net.wf"))
    return found


def on_processor(layout, rule, spread, streams):
    matrix = np.empty((layout.axes[0], layout.numel // layout.axes[0]), np.float32)
    for data, model, start, _ in streams:
        fill(matrix, pieces.decode(data, [model])[0], rule, layout, start, spread.down)
    return matrix


CASES = {
    "rows": {},
    "columns": {"down": True},
    "zero in both subsets": {"zero": True},
    "classes": {"scaled": True, "least": -2},
    "classes down columns": {"scaled": True, "down": True, "zero": True},
    "escapes": {"largest": 90_000},
    "escapes with zero": {"largest": 300, "zero": True, "down": True},
    "low bits": {"base": 120, "largest": 70_000},
}


@pytest.mark.parametrize("count", [8, 32])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_are_those_of_the_processor_bit_for_bit(case, count):
    shape, lines = (21, 9) if count == 8 else (37, 5), 2
    layout, rule, spread, levels = coded(shape, Lanes(count, lines), **case)
    length = shape[0] if spread.down else shape[1]
    streams = streams_of(layout, spread, levels, (4 if spread.down else 14) * length)
    assert len(streams) > 1
    found = torch.full(shape, np.nan, device=ON)
    decode(streams, rule, layout, spread.down, found)
    expected = on_processor(layout, rule, spread, streams)
    np.testing.assert_array_equal(found.cpu().numpy().view(np.int32), expected.view(np.int32))


def test_damage_is_found():
    layout, rule, spread, levels = coded((20, 6), Lanes(8, 2), largest=40)
    (stream,) = streams_of(layout, spread, levels, levels.size)
    data = stream.data
    bad = [data[:-2], data[:40], data[:30], data + b"\0\0", b"\1" + data[1:], data[:-1]]
    bad += [np.random.default_rng(seed).bytes(len(data)) for seed in range(5)]
    for each in bad:
        with pytest.raises(FormatError, match=r"net\.wf: "):
            decode([stream._replace(data=each)], rule, layout, False, torch.empty(20, 6, device=ON))


def packed(tmp_path, layout, rule, spread, levels, dtype):
    """A file of one tensor."""
    shape = layout.shape
    symbols = levels.reshape(shape[1], shape[0]).T if spread.down else levels.reshape(shape)
    quantized = Quantized(np.ascontiguousarray(symbols), rule, spread, 0.0, 0.0)
    path = tmp_path / "net.wf"
    path.write_bytes(container.pack((Entry("w", shape, dtype, Coded(layout)),), {"w": quantized}, {}, "test").data)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("step", [-30, 1100], ids=["small", "beyond float16"])
def test_tensors_of_a_file_are_the_same_on_a_device(tmp_path, monkeypatch, dtype, step):
    layout, rule, spread, levels = coded((17, 8), Lanes(8, 2), largest=20)
    path = packed(tmp_path, layout, replace(rule, step=step), spread, levels, dtype)
    expected = WaterfillFile(path)["w"]
    into = torch.empty(17, 8, dtype=getattr(torch, dtype), device=ON)
    if ON.type == "cpu":
        monkeypatch.setattr("waterfill.files.is_elsewhere", lambda _: True)
        monkeypatch.setattr("waterfill.files.has_kernels", lambda _: True)
    taken = []
    put = OnDevice.put_stream
    monkeypatch.setattr(OnDevice, "put_stream", lambda self, *args: [taken.append(args), put(self, *args)][1])
    (found,) = dict(WaterfillFile(path).tensors(into={"w": into})).values()
    assert found is into and len(taken) == 1
    assert torch.equal(found.cpu(), expected)


def test_devices_without_kernels_get_what_the_processor_decodes(tmp_path, monkeypatch):
    layout, rule, spread, levels = coded((17, 8), Lanes(8, 2), largest=20)
    path = packed(tmp_path, layout, rule, spread, levels, "bfloat16")
    into = torch.empty(17, 8, dtype=torch.bfloat16)
    monkeypatch.setattr("waterfill.files.is_elsewhere", lambda _: True)
    monkeypatch.setattr(OnDevice, "put_stream", None)
    assert dict(WaterfillFile(path).tensors(into={"w": into}))["w"] is into
    assert torch.equal(into, WaterfillFile(path)["w"])


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    "into",
    [torch.empty(17, 8), torch.empty(8, 17).bfloat16(), torch.empty(8, 17).bfloat16().mT, torch.empty(1, 8).bfloat16()],
    ids=["another type", "another shape", "not contiguous", "fewer rows"],
)
def test_tensors_that_cannot_be_filled_are_refused(tmp_path, monkeypatch, into, elsewhere):
    monkeypatch.setattr("waterfill.files.is_elsewhere", lambda _: elsewhere)
    path = packed(tmp_path, *coded((17, 8), Lanes(8, 2)), "bfloat16")
    with pytest.raises(UsageError, match=r"'w' is .*; expected bfloat16 \[17, 8\], contiguous"):
        dict(WaterfillFile(path).tensors(into={"w": into}))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from waterfill.targets import device_kernels as kernels

WIDE = "ends states pieces lasts shrink".split()
KINDS = {"words": "*i16", "lows": "*u8", "steps": "*fp32", "matrix": "*fp32"} | dict.fromkeys(WIDE, "*i64")
SCALARS = dict.fromkeys("flips picks zero depth length apart next_place".split(), "i32")
assert all(each.is_constexpr or each.do_not_specialize for each in kernels.decode_streams.params)
for lanes in (8, 32):
    kinds = {name: (KINDS | SCALARS).get(name, "*i32") for name in kernels.decode_streams.arg_names}
    source = ASTSource(
        fn=kernels.decode_streams, signature=kinds | {"LANES": "constexpr"}, constexprs={"LANES": lanes}
    )
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 1})
    print(len(made.asm["cubin"]))
"""


def test_the_kernel_compiles_for_gpus(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) == 2


@pytest.fixture
def with_lanes(monkeypatch):
    """Small tensors have lanes, and the processor stands for a device."""
    monkeypatch.setattr("waterfill.quantize.trellis.best_lanes", lambda *_: Lanes(8, 2))
    if ON.type == "cpu":
        monkeypatch.setattr("waterfill.files.is_elsewhere", lambda _: True)
        monkeypatch.setattr("waterfill.bundle.reader.has_kernels", lambda _: True)
        monkeypatch.setattr("waterfill.files.has_kernels", lambda _: True)


@pytest.mark.usefixtures("with_lanes")
def test_directories_are_decoded_on_a_device(tmp_path, monkeypatch):
    """What has lanes and a stream of its own is decoded there; what shares one, and parts, come there all the same."""
    rng = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(40, 24, generator=rng).to(torch.bfloat16) for n in range(3)}
    tensors |= {"layers.0.bias": torch.randn(40, generator=rng), "layers.0.steps": torch.arange(3)}
    source = original(tmp_path / "source", tensors)

    def split(name, tensor):
        if name != "layers.1.weight":
            return {name: tensor}
        return {part_name(name, *rows): tensor[slice(*rows)].clone() for rows in ((0, 20), (20, 40))}

    with Bundle(compressed(source, tmp_path / "out", split=split)) as bundle:
        expected = bundle.decode(list(tensors))
        taken = []
        decoded = targets.device.decode
        monkeypatch.setattr("waterfill.targets.device.decode", lambda *args: [taken.append(args), decoded(*args)][1])
        found = bundle.decode(list(tensors), ON)
    assert len(taken) == 1
    for name, value in found.items():
        assert value.device.type == ON.type and torch.equal(value.cpu(), expected[name]), name
