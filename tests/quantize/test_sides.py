"""What quantizers expect scales to take, against the files they are in."""

from dataclasses import replace

import numpy as np
import pytest
from slow_paths import down_columns, levels_of

import conformance
from waterfill.codec import container, pieces
from waterfill.codec.rans import HEADER_BYTES
from waterfill.codec.scales import NAME_BITS, NONE, OPPOSITE, side_bits, stored
from waterfill.files import WaterfillFile
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Scalar, Trellis, path_spread
from waterfill.records import ALL, Layout, Paths, Weight

LAYOUTS = (Layout((150, 160)), Layout((60, 50, 3, 3)), Layout((60, 70, 2), transposed=True, groups=2))


def known(layout, decades, seed=0):
    """Normal weights, and importance that factors over rows and channels."""
    rng = np.random.default_rng(seed)
    out, channels, taps = layout.axes
    rows, columns = (10 ** (decades * rng.uniform(-0.5, 0.5, n)) for n in (out, channels))
    importance = np.outer(rows, np.repeat(columns, taps)).astype(np.float32)
    return Weight("w", rng.normal(size=importance.shape).astype(np.float32), layout), DiagonalForm(importance)


@pytest.mark.parametrize("quantizer", [Scalar(), Trellis(8)], ids=["scalar", "trellis"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("level", [0.3, 0.01])
def test_bits_are_those_of_the_file_where_steps_have_scales(quantizer, layout, level):
    some, form = known(layout, 2)
    item = quantizer.quantize(some, form, level)
    assert item.rule.rows is not None
    assert item.rule.channels is not None
    packed = conformance.packed(item, layout)
    file = WaterfillFile(packed.data).container
    assert file.tensor_bytes() == pytest.approx(packed.tensor_bytes)
    codes = file._directory.tensors[0].scales
    named = sum(code != NONE for code in codes) * NAME_BITS
    stored_bits = container._side_bits(file._side_vectors())["w"]
    side = side_bits(item.rule.scales) + side_bits(item.spread.scales, item.rule.scales)
    assert stored_bits + named == pytest.approx(side, rel=1e-5)
    assert item.bits == pytest.approx(pieces.tensor_bits(item.symbols, item.spread, layout) + side, rel=1e-5)
    states = 2 * 8 * HEADER_BYTES  # of both streams; they hold a part of the bits
    assert 8 * packed.tensor_bytes["w"] + named <= 1.002 * item.bits + 16
    assert 8 * packed.tensor_bytes["w"] + named + states >= item.bits


@pytest.mark.parametrize("quantizer", [Scalar(), Trellis(8)], ids=["scalar", "trellis"])
def test_at_high_rate_spreads_take_nothing_beside_steps(quantizer):
    some, form = known(LAYOUTS[0], 2)
    item = quantizer.quantize(some, form, 0.003)
    codes = [stored(*each).code for each in zip(item.spread.scales, item.rule.scales, strict=True)]
    assert codes[:2] == [OPPOSITE, OPPOSITE]
    assert side_bits(item.spread.scales, item.rule.scales) < 30 < side_bits(item.spread.scales) / 20


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_a_fit_of_a_path_knows_its_steps(zero, down):
    rng, layout = np.random.default_rng(0), Layout((40, 50))
    rows, channels = (rng.integers(-5, 6, n).astype(np.int8) for n in layout.shape)
    sizes = 2.0 ** ((rows[:, None] + channels) / 4.0)
    values = rng.normal(size=layout.shape) * 2 / sizes
    order = np.array(down_columns(layout) if down else range(layout.numel))
    paths = Paths(4, zero, 10, 0, 0, down)
    levels = np.empty(layout.numel, np.int32)
    levels[order] = levels_of(np.rint(values.reshape(-1)[order] / 2).astype(int).tolist(), paths, 40)
    levels, steps = levels.reshape(layout.shape), (rows, channels, None)
    start = path_spread.start(np.rint(values / 2).astype(np.int32), layout, zero, steps)
    start = replace(start, least=ALL)
    fit = replace(path_spread.refit(levels, paths, layout, start), least=ALL)
    plain = replace(path_spread.start(levels // 2, layout, zero), least=ALL)
    plain = replace(path_spread.refit(levels, paths, layout, plain), least=ALL)
    for offsets, step in zip(fit.offsets[:2], steps[:2], strict=True):
        assert (offsets == -step.astype(int)).all()
    spread = fit.spread(paths)
    assert fit.bits == pytest.approx(pieces.tensor_bits(levels, spread, layout) + side_bits(spread.scales, steps))
    assert fit.bits < plain.bits - 200
    assert (
        path_spread.refit(levels, paths, layout, plain.__class__(**{**vars(plain), "steps": steps})).bits < plain.bits
    )
