"""The search on a device, without one: Triton's interpreter runs the kernels, and its compiler makes code of them."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import waterfill
from waterfill.codec.trellis import PARITIES, parities
from waterfill.importance.factored import KroneckerForm
from waterfill.quantize import feedback, trellis
from waterfill.quantize import viterbi_kernels as viterbi
from waterfill.quantize.branch_kernels import PRICES, level_prices
from waterfill.quantize.feedback_kernels import Feed, Prices, decided_span
from waterfill.records import Layout, Weight

pytest.importorskip("triton", reason="needs Triton: pip install triton")

from waterfill.quantize import device, device_kernels

ON = "cuda" if torch.cuda.is_available() else "cpu"
EXPONENTS = 6


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """Segments so short that small matrices have several."""
    monkeypatch.setattr(device, "SEGMENT", 32)
    monkeypatch.setattr(device, "PROGRAMS", 1 << 20)


def priced(seed, zero=False):
    """Prices of random tables."""
    rng = np.random.default_rng(seed)
    lengths = np.tile(np.arange(128) * 0.6, 2) + rng.uniform(0, 1, (EXPONENTS, 256))
    return level_prices(lengths.astype(np.float32), 0.35, zero)


@pytest.mark.parametrize(
    ("log_states", "count", "span", "zero", "metric", "aside"),
    [
        (2, 150, 150, False, np.int16, 0),
        (3, 130, 40, True, np.int32, 2),
        (4, 97, 97, False, np.int16, 5),
        (6, 200, 120, True, np.int16, 1),
        (6, 110, 110, False, np.int32, 0),
        (9, 70, 70, False, np.int32, 3),
    ],
)
def test_paths_are_those_of_the_processor(log_states, count, span, zero, metric, aside):
    rng = np.random.default_rng(count)
    x = rng.laplace(size=count).astype(np.float32) * 3
    x[::29] *= 40
    weights, exponents = rng.gamma(0.5, size=count).astype(np.float32), rng.integers(0, EXPONENTS, count)
    starts, stays = (exponents * PRICES).astype(np.int32), exponents < aside
    code = viterbi.code_of(*parities(log_states), metric, 128.0 if metric is np.int16 else 4096.0)
    shrink, bits = trellis.moved((3, -2, 1)).astype(np.float32), priced(count, zero).reshape(-1)
    expected = np.empty(count, np.int32)
    for start in range(0, count, span):
        some = slice(start, start + span)
        known = x[some], weights[some], starts[some], bits, zero, shrink, stays[some]
        viterbi.best_path(*known, code, expected[some])
    search = device.DeviceSearch.of(code, bits, shrink, zero, ON)
    np.testing.assert_array_equal(device.best_paths(x, weights, starts, stays, span, search), expected)


def test_one_weight_and_one_price_for_all_are_those_of_each():
    x = np.random.default_rng(0).normal(size=70).astype(np.float32)
    search = device.DeviceSearch.of(trellis.code_for(3, np.ones(1, np.float32)), priced(0), np.zeros(4), False, ON)
    every = np.full(70, 2.0, np.float32), np.full(70, 1024, np.int32), np.zeros(70, bool)
    one = np.full(1, 2.0, np.float32), np.full(1, 1024, np.int32), np.zeros(1, bool)
    np.testing.assert_array_equal(device.best_paths(x, *one, 50, search), device.best_paths(x, *every, 50, search))


def test_paths_of_nothing_but_what_stands_aside():
    x = np.array([0.2, -3.1, 4.4], np.float32)
    search = device.DeviceSearch.of(trellis.code_for(2), priced(0), np.zeros(4), False, ON)
    levels = device.best_paths(x, np.ones(1, np.float32), np.zeros(1, np.int32), np.ones(1, bool), 3, search)
    assert (levels % 2 == 0).all() and np.abs(levels - x).max() < 1.01


def test_what_a_search_takes_is_bounded_whatever_the_paths_are(monkeypatch):
    monkeypatch.setattr(device, "PROGRAMS", 4)
    x = np.random.default_rng(0).normal(size=300).astype(np.float32)
    search = device.DeviceSearch.of(trellis.code_for(2), priced(0), np.zeros(4), False, ON)
    known = np.ones(1, np.float32), np.zeros(1, np.int32), np.zeros(1, bool), 25, search
    expected, sizes, paths = device.best_paths(x, *known), [], device.DeviceSearch.paths
    monkeypatch.setattr(device, "MEMORY", 96 * 110)
    monkeypatch.setattr(
        device.DeviceSearch, "paths", lambda self, *args: [sizes.append(len(args[0])), paths(self, *args)][1]
    )
    np.testing.assert_array_equal(device.best_paths(x, *known), expected)
    assert sizes == [100, 100, 100]
    many = device.Segments.room(1000, 40, 4, torch.device(ON))
    assert many.best.shape == (1000, 1) and many.length == 64  # not the 16,384 weights that four programs would take


def test_launches_have_no_more_programs_than_a_gpu_takes(monkeypatch):
    """On all axes but the first, 65,535."""
    launched = []

    class Recorded:
        def __getitem__(self, grid):
            return lambda *_, **__: launched.append(grid)

    for name in ("extend_segments", "decide_segments"):
        monkeypatch.setattr(device_kernels, name, Recorded())
    search = device.DeviceSearch.of(trellis.code_for(2), priced(0), np.zeros(4), False, ON)
    room = device.Segments.room(1 << 17, 40, 4, torch.device(ON))
    search.extend(room.best, None, None, 5, room)
    search.decide(device.Order(room.best, None, None), room, None, None, None, None)
    assert launched == [(1 << 17, 2)] * 2


def eighths(values):
    """Rounded, so that sums are exact in whatever order they are added up."""
    return (np.round(values * 8) / 8).astype(np.float32)


def columns(rng, out, inputs, classes, weighted):
    """A matrix in steps, how errors come in, and weights [in, out]."""
    factors = eighths(np.tril(rng.normal(size=(classes, inputs, inputs)) * 0.3, -1))
    gains, steps = np.ones((classes, inputs), np.float32), np.where(np.arange(inputs) % 3, 1, 0.5).astype(np.float32)
    gains[:, ::2] = 0.5
    feed = Feed(factors, gains, steps, rng.integers(0, classes, out), np.zeros((out, inputs), np.float32))
    weights = rng.gamma(0.5, size=(inputs, out)) if weighted else np.ones((1, 1))
    return eighths(rng.laplace(size=(out, inputs)) * 3), feed, weights.astype(np.float32)


def decided(x, aims, feed, prices, aside, code, block, span):
    """Levels by the kernels of the processor, which leave their errors in the feed."""
    out, inputs = x.shape
    levels = np.empty(x.shape, np.int32)
    for start in range(0, inputs, span):
        base, stop = start // block * block, min(start + span, inputs)
        carried = (aims - x)[:, start:stop].T.copy()
        for c, r in np.ndindex(carried.shape):
            k = feed.classes[r]
            carried[c, r] += feed.gains[k, start + c] * (feed.factors[k, start + c, :base] @ feed.errors[r, :base])
        weights = prices.weights[start:stop] if len(prices.weights) > 1 else np.ones((1, out), np.float32)
        priced_here = prices._replace(weights=weights, columns=prices.columns[start:stop])
        found = np.empty((stop - start, out), np.int32)
        decided_span(x[:, start:stop].T.copy(), carried, feed, start, base, priced_here, aside, code, found)
        levels[:, start:stop] = found.T
    return levels


@pytest.mark.parametrize(
    ("log_states", "shape", "classes", "weighted", "aside", "block", "span", "warm"),
    [
        (3, (48, 4), 1, False, 0, 4, 2, 40),
        (6, (40, 5), 2, True, 0, 5, 5, 5),  # again and again
        (4, (67, 6), 1, True, 4, 3, 3, 5),
        (5, (33, 4), 2, False, EXPONENTS, 2, 1, 40),
    ],
)
def test_columns_are_those_of_the_processor(
    monkeypatch, log_states, shape, classes, weighted, aside, block, span, warm
):
    """Values are such that sums of errors are exact: then the aims are equal, and all the rest has to be."""
    monkeypatch.setattr(device, "WARM", warm)
    rng = np.random.default_rng(shape)
    x, feed, weights = columns(rng, *shape, classes, weighted)
    rows, others = rng.integers(0, EXPONENTS // 2, shape[0]), rng.integers(0, EXPONENTS // 2, shape[1])
    prices, standing = Prices(weights, rows, others, priced(9)), np.arange(EXPONENTS) < aside
    code = trellis.code_for(log_states, weights)
    search = device.DeviceSearch.of(code, prices.bits, np.zeros(4), False, ON)
    aims = x + np.float32(0.25) * rng.integers(-8, 9, x.shape).astype(np.float32)
    found = device.decided_columns(x, aims, feed, prices, standing, search, block, span)
    np.testing.assert_array_equal(found, decided(x, aims, feed, prices, standing, code, block, span))


def test_a_search_that_began_too_late_is_noticed(monkeypatch):
    """Otherwise paths would be worse in silence."""
    tried = []
    extend = device.DeviceSearch.extend
    monkeypatch.setattr(device, "WARM", 1)
    monkeypatch.setattr(
        device.DeviceSearch, "extend", lambda self, *args: [tried.append(args[3]), extend(self, *args)][1]
    )
    x = np.random.default_rng(1).normal(size=100).astype(np.float32) * 5
    search = device.DeviceSearch.of(trellis.code_for(5), priced(1), np.zeros(4), False, ON)
    device.best_paths(x, np.ones(1, np.float32), np.zeros(1, np.int32), np.zeros(1, bool), 100, search)
    assert len(tried) > 1 and tried == [5 * 2**i for i in range(len(tried) - 1)] + [tried[-1]]


@pytest.mark.parametrize("kind", ["alone", "feedback"])
def test_quantizers_find_on_a_device_what_they_find_without(monkeypatch, kind):
    monkeypatch.setattr(trellis, "LEAST_ON_DEVICE", 1)
    monkeypatch.setattr(feedback, "FORCED", 1)
    rng = np.random.default_rng(3)
    weight = Weight("w", rng.normal(size=(20, 5)).astype(np.float32), Layout((20, 5, 1)))
    inputs = rng.normal(size=(40, 5)) @ (np.eye(5) + 0.7 * np.eye(5, k=1))
    form = KroneckerForm(np.ones(20), (inputs.T @ inputs / 40)[None])
    options = trellis.Trellis(8, rounds=1) if kind == "alone" else feedback.Feedback(8, rounds=1)
    on_device = type(options)(8, rounds=1, device=ON)
    here, there = (each.quantize(weight, None if kind == "alone" else form, 0.01) for each in (options, on_device))
    if kind == "alone":
        np.testing.assert_array_equal(there.symbols, here.symbols)
    assert there.bits == pytest.approx(here.bits, rel=0.01)
    assert there.distortion == pytest.approx(here.distortion, rel=0.02)


def test_whole_files_made_on_a_device_are_those_of_the_processor(monkeypatch):
    """All matrices are searched on it, however small; what rounds otherwise is less than .002 bit of a file."""
    monkeypatch.setattr("waterfill.compression.api.has_kernels", lambda device: device is not None)
    monkeypatch.setattr(trellis, "LEAST_ON_DEVICE", 1)
    monkeypatch.setattr(feedback, "FORCED", 1)
    searched, one_at_a_time = [], threading.Lock()  # Triton's interpreter is for one thread

    def counted(search):
        def find(*args):
            searched.append(args)
            with one_at_a_time:
                return search(*args)

        return find

    for name in ("best_paths", "decided_columns"):
        monkeypatch.setattr(device, name, counted(getattr(device, name)))
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 12)
    data = [(torch.randn(16, 4), torch.zeros(16, dtype=torch.int64)) for _ in range(2)]
    known = {"rate": 6.0, "effort": "fast", "importance": waterfill.importance.kronecker()}
    here, there = waterfill.compress(model, data, **known), waterfill.compress(model, data, **known, device=ON)
    assert searched
    assert abs(there.rate - here.rate) <= 0.002
    assert there.distortion == pytest.approx(here.distortion, rel=0.05)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from waterfill.quantize import device_kernels as kernels

FLOATS = "values weights prices shrink unit carried factors gains step errors".split()
INTEGERS = "size earlier columns height far warm segments".split()

def compiled(kernel, warps, **constants):
    kinds = {name: "*fp32" if name in FLOATS else "i32" if name in INTEGERS else "*i32" for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=kinds | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    assert all(each.is_constexpr or each.do_not_specialize for each in kernel.params), kernel.__name__
    assert "fma" not in made.asm["ptx"], kernel.__name__
    print(kernel.__name__, len(made.asm["cubin"]))

for zero in (False, True):
    compiled(kernels.price_weights, 4, EACH=True, PRICED=True, ZERO=zero, BLOCK=128)
compiled(kernels.price_column, 4, EACH=True, BLOCK=128)
for log in (2, 6, 12):
    known = {"STATES": 1 << log, "LOG": log, "SEGMENT": 1024}
    warps = min(max((1 << log) // 64, 1), 8)
    compiled(kernels.extend_segments, warps, **known)
    compiled(kernels.decide_segments, warps, **known, FEEDS=True)
"""


def test_kernels_compile_for_gpus_without_fused_products(tmp_path):
    """Fused ones would round otherwise than the processor does."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    if "no ptxas" in run.stderr.lower():
        pytest.skip("needs the assembler that Triton brings")
    assert run.returncode == 0, run.stderr
    sizes = [int(line.split()[1]) for line in run.stdout.splitlines()]
    assert len(sizes) == 9 and min(sizes) > 1000


def test_all_trellises_have_states_that_a_word_of_decisions_tells():
    assert max(PARITIES) <= 32
