"""Entropy-coded trellis-coded quantization: the path of the lowest cost through a trellis of uniform levels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import pieces
from waterfill.codec.lanes import best_lanes
from waterfill.codec.scales import side_bits
from waterfill.codec.trellis import PARITIES, parities
from waterfill.errors import UsageError
from waterfill.protocols import QuadraticForm, QuantizerTraits, Quartic
from waterfill.quantize import own, path_spread
from waterfill.quantize import spread as spreads
from waterfill.quantize.path_spread import PathFit
from waterfill.quantize.scalar import LARGEST_SYMBOL, Scalar, cost_of, finish, in_steps, largest_step
from waterfill.quantize.sparse import Sparse
from waterfill.reconstruct import LEVEL_UNIT, step_sizes
from waterfill.records import (
    ALL,
    NO_SCALES,
    AxisScales,
    Floats,
    Lanes,
    Layout,
    Paths,
    Quantized,
    Spread,
    Symbols,
    Uniform,
    Weight,
)

LEVEL_TO_SQUARED_STEP = 4.0
"""At high rate a path through 64 states is off by 0.249 squared steps; even numbers alone would be by 1/3."""

PRICE_OF_BIT = 1.386
"""What a bit may cost at high rate, in water levels: the slope 2 ln 2 of the rate-distortion function."""

LARGEST_LOG_SPAN, SPAN_BYTES = 16, 26
"""A path has at most 2^16 weights, and 2^26 decisions in memory."""

FEW_STATES = 3
SAMPLE, FEWEST_ROWS = 1 << 16, 128
"""What is decided before the search, is so with 8 states and on about so many weights, of so many rows at least."""

SMALL = 1 << 12
"""Tensors of so many weights have two paths through all states, as have those with zero in both subsets."""

LOW_RATE = 2.0
"""Bits per weight up to which zero in both subsets and larger steps are tried."""

SPARSE_RATE = 1.0
"""Bits per weight up to which the scalar quantizer is tried, whose zeros may be cheaper."""

FEW_VALUES, VALUE_BITS = 0.75, 16
"""Share of the bits of a path below which the entropy of nearest levels, with so many bits for each that occurs, has to
be, so that these are tried."""

STRETCHES = (16, 24, 32, 40, 48, 56, 64)
"""By how much larger steps are tried with zero in both subsets, in 1/64 octave."""

NEARLY = 0.015
"""Costs so near to each other may change places with more states."""

NARROW, WIDE = 128.0, 4096.0
"""Integers for a cost of one squared step, in int16 and in int32."""

LARGEST_NARROW = 16.0
"""The largest weight of a squared error with which costs are int16."""

DRAFT_ROUNDS = 2
"""Rounds of a draft, at most."""

LEAST_ON_DEVICE = 1 << 16
"""Paths of fewer weights are searched on the processor, wherever others are."""


@dataclass(frozen=True)
class Trellis:
    """Uniform steps, a path through a trellis, coded: for the same rate less error than `Scalar`, or fewer bits.

    The levels of all weights are chosen together so that the sum of `importance * error^2 + lmbda * bits` is the
    smallest that any path has (Viterbi), under tables and centroids that are fitted to the path in turns. Steps are
    those of `Scalar`: importance that factors over rows, input channels and taps goes into them where that pays.

    Attributes:
        states: of the trellis, a power of two from 4 to 4096. The gap to the rate-distortion function at high rate is
            about 0.075 bit with 8, 0.045 with 64, 0.033 with 256, 0.025 with 2048; time goes with the states.
        lmbda: price of a bit in units of the squared step; 0 takes the nearest path.
        rounds: how often tables and paths are fitted to each other; all but the last with few states on some rows.
        device: where large matrices are searched, which finds the same paths; None for the processor.

    Raises:
        UsageError: an option is out of its range.
    """

    states: int = 64
    lmbda: float = 0.35
    rounds: int = 4
    device: str | None = None
    traits: ClassVar[QuantizerTraits] = QuantizerTraits(any_basis=True)

    def __post_init__(self) -> None:
        if self.states not in [1 << log for log in PARITIES]:
            raise UsageError(f"Trellis of states={self.states} is unknown; expected a power of two from 4 to 4096.")
        if not self.lmbda >= 0 or self.rounds < 1:
            raise UsageError(
                f"Trellis of lmbda={self.lmbda}, rounds={self.rounds} is out of range; expected at least 0 and 1."
            )

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one weight so that its mean `I_w e^2` comes near the water level.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
            water_level: mean cost of an error per weight.
        """
        if not weight.matrix.size:
            return Scalar().quantize(weight, form, water_level)
        importance = np.ones((1, 1), np.float32) if form is None else form.diagonal()
        rule, x, relative = in_steps(weight, importance, water_level * LEVEL_TO_SQUARED_STEP / 12)
        problem = Problem(x, relative, weight.layout, self.lmbda, rule.scales, device=self.device)
        log_states, done = self.states.bit_length() - 1, []
        for draft in self._drafts(problem, largest_step(rule) - rule.step):
            whole = problem.stretched(draft.stretch).side_by_side(draft, log_states)
            found = whole.finish(draft, log_states)
            moved_rule = replace(rule, step=rule.step + draft.stretch, shrink=found.shrink)
            spread = found.fit.spread(whole.paths(log_states))
            done.append(finish_path(weight, form, found.levels.reshape(weight.matrix.shape), moved_rule, spread))
        done += _free(weight, form, water_level, done[0])
        return min(done, key=lambda each: lagrangian(each, water_level))

    def draft(self) -> Trellis:
        """A quicker quantizer that takes nearly the same bits."""
        return replace(self, states=min(1 << FEW_STATES, self.states), rounds=min(DRAFT_ROUNDS, self.rounds))

    def prepared(self, weight: Weight, form: QuadraticForm | None) -> Trellis:
        """This one: nothing can be kept.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
        """
        del weight, form
        return self

    def _drafts(self, problem: Problem, room: int) -> list[Found]:
        """Paths of some rows through few states that cost the least: with zero in both subsets, larger steps, or not.

        Both, where the difference is so small that more states may turn it round. At higher rates the tables of some
        rows are fitted once: more rounds save .006 % of the bits.
        """
        sample = problem.sample()
        rounds = max(1, self.rounds - 1)
        once = 1 if sample is not problem else rounds
        free = sample.drafted(sample.start(False), once)
        if self.lmbda == 0 or free.fit.bits > LOW_RATE * sample.x.size:
            return [free]
        free = sample.drafted(free.fit, rounds - once, free) if rounds > once else free
        best: Found | None = None
        for stretch in (each for each in STRETCHES if each <= room):
            tried = sample.stretched(stretch)
            if best is None:
                found = tried.drafted(tried.start(True), rounds)
            else:
                found = tried.drafted(best.fit.narrower((stretch - best.stretch) // 8), rounds, best)
            if best is not None and found.cost >= best.cost:
                break
            best = found
        if best is None:
            return [free]
        if abs(best.cost - free.cost) < NEARLY * free.cost:
            return [free, best]
        return [free if free.cost < best.cost else best]


@dataclass(frozen=True, eq=False)
class Found:
    """A path.

    Attributes:
        levels: int32 [n].
        fit: the entropy model fitted to it.
        shrink: the centroids fitted to it.
        cost: of its errors and bits under both, in squared steps before they were made larger.
        stretch: by how much they were, in 1/64 octave.
    """

    levels: Symbols
    fit: PathFit
    shrink: tuple[int, int, int]
    cost: float
    stretch: int


@dataclass(frozen=True, eq=False)
class Problem:
    """What a path is sought for.

    Attributes:
        x: weights in steps [out, channels, taps].
        importance: of the same shape, or [1, 1, 1] when constant.
        layout: of the tensor.
        lmbda: cost of a bit.
        steps: scales of the steps.
        stretch: by how much steps are larger than they were, in 1/64 octave.
        lanes: of the path, which say where it begins; None for none.
        device: where it is sought; None for the processor.
    """

    x: Floats
    importance: Floats
    layout: Layout
    lmbda: float
    steps: AxisScales = NO_SCALES
    stretch: int = 0
    lanes: Lanes | None = None
    device: str | None = None

    def paths(self, log_states: int) -> Paths:
        """The path: how many states it has, and where that is 0 again."""
        if self.lanes is not None:
            return Paths(log_states, False, 0, 0, 0, lanes=self.lanes)
        return Paths(log_states, False, log_span(log_states), 0, 0)

    def side_by_side(self, draft: Found, log_states: int) -> Problem:
        """The same with lanes, where these cost little of the bits of a draft."""
        rate = draft.fit.bits / draft.levels.size
        return replace(self, lanes=best_lanes(self.layout, False, rate, 1 << log_span(log_states)))

    def stretched(self, stretch: int) -> Problem:
        """The same in larger steps."""
        if not stretch:
            return self
        x, lmbda = self.x * np.float32(2 ** (-stretch / 64)), self.lmbda * 2 ** (-stretch / 32)
        return replace(self, x=x, lmbda=lmbda, stretch=stretch)

    def sample(self) -> Problem:
        """Some of the rows of a large tensor."""
        rows = self.x.shape[0]
        kept = max(FEWEST_ROWS, rows * SAMPLE // max(1, self.x.size))
        if 2 * kept > rows:
            return self
        some = np.arange(kept) * rows // kept
        x = np.ascontiguousarray(self.x[some])
        importance = np.ascontiguousarray(self.importance[some]) if self.importance.size > 1 else self.importance
        in_rows, *others = self.steps
        steps = None if in_rows is None else in_rows[some], others[0], others[1]
        return replace(self, x=x, importance=importance, layout=Layout(x.shape), steps=steps)

    def drafted(self, fit: PathFit, rounds: int, before: Found | None = None) -> Found:
        """A path through few states, with tables and centroids fitted to it so many times."""
        found = self.solve(fit, FEW_STATES, before)
        for _ in range(rounds - 1):
            found = self.solve(found.fit, FEW_STATES, found)
        return found

    def finish(self, draft: Found, log_states: int) -> Found:
        """The path of all rows under the tables of a draft, which are fitted to it."""
        fit = draft.fit
        if draft.levels.size < self.x.size:
            fit = path_spread.extended(fit, self._nearest(), self.layout, self.steps)
            if fit.least != ALL:  # at low rate all depends on which elements stand aside, and is fitted no more
                draft = self.solve(fit, FEW_STATES, draft)
                fit = draft.fit
        if self.x.size <= SMALL or fit.zero:
            draft = self.solve(fit, log_states, draft)
            fit = draft.fit
        return self.solve(fit, log_states, draft, last=True)

    def start(self, zero: bool) -> PathFit:
        """Tables to start from."""
        return path_spread.start(self._nearest(), self.layout, zero, self.steps)

    def _nearest(self) -> Symbols:
        """Indices that are nearly those of either subset, [out, in]."""
        return np.rint(self.x / 2).astype(np.int32).reshape(self.x.shape[0], -1)

    def solve(self, fit: PathFit, log_states: int, before: Found | None = None, *, last: bool = False) -> Found:
        """The best path under the tables of a fit and the centroids of the one before, with both fitted to it."""
        from waterfill.quantize import trellis_kernels as kernels

        shrink = (0, 0, 0) if before is None else before.shrink
        x, importance = self.x.reshape(-1), self.importance.reshape(-1)
        paths = self.paths(log_states)
        span = paths.span(self.layout)
        device = self.device if x.size >= LEAST_ON_DEVICE else None
        levels = search(x, importance, self._exponents(fit), fit, log_states, shrink, self.lmbda, span, device)
        weights, short = kernels.shortfalls(x, importance, levels)
        shifts = np.rint(LEVEL_UNIT * short / np.maximum(weights, 1e-30)).clip(-LEVEL_UNIT, LEVEL_UNIT).astype(int)
        shrink = int(shifts[0]), int(shifts[1]), int(shifts[2])
        error = kernels.squared_error(x, importance, levels, moved(shrink))
        fit = path_spread.refit(levels.reshape(self.x.shape[0], -1), paths, self.layout, fit, last=last)
        cost = error + (self.lmbda * fit.bits if np.isfinite(fit.bits) else 0.0)
        return Found(levels, fit, shrink, cost * 2 ** (self.stretch / 32), self.stretch)

    def _exponents(self, fit: PathFit) -> NDArray[np.int32]:
        """Rows of the fit's lengths, [n] or [1]."""
        parts = spreads.exponents_of(fit.offsets, self.layout, -fit.range()[0])
        if all(o is None for o in fit.offsets):
            return np.array([parts[0][0] if parts[0].size else 0], np.int32)
        rows, channels, taps = (part.astype(np.int32) for part in parts)
        return (rows[:, None, None] + channels[:, None] + taps).reshape(-1)


def lagrangian(item: Quantized, water_level: float) -> float:
    """What errors and bits of a quantized weight cost together, at the price of a bit at high rate."""
    return item.distortion + PRICE_OF_BIT * water_level * item.bits


def _free(weight: Weight, form: QuadraticForm | None, water_level: float, done: Quantized) -> Iterator[Quantized]:
    """What no trellis does better: a sparse matrix, or one of few values that have tables of their own."""
    size = weight.matrix.size
    if 2 * np.count_nonzero(weight.matrix) <= size and weight.matrix.any() and not isinstance(form, Quartic):
        yield Sparse().quantize(weight, form, water_level)
    if done.bits <= SPARSE_RATE * size or few_values(weight, done):
        yield Scalar().quantize(weight, form, water_level)


def few_values(weight: Weight, done: Quantized) -> bool:
    """Whether weights are so near to a few values that free levels in tables of their own may take fewer bits."""
    assert isinstance(done.rule, Uniform)
    steps = step_sizes(done.rule, weight.layout, 0, weight.layout.numel)
    nearest = np.rint(weight.matrix.reshape(-1) / steps / 2).clip(-LARGEST_SYMBOL, LARGEST_SYMBOL).astype(np.int32)
    counted = own.histogram(nearest)
    values = np.count_nonzero(counted.counts) + counted.beyond
    return bool(counted.entropy_bits + VALUE_BITS * values < FEW_VALUES * done.bits)


def log_span(log_states: int) -> int:
    """Logarithm of the length of a path."""
    return min(LARGEST_LOG_SPAN, SPAN_BYTES - log_states)


def moved(shrink: tuple[int, int, int]) -> NDArray[np.float64]:
    """How far the levels of magnitude 0, 1, 2, >= 3 lie towards zero, in steps."""
    return np.array([0, *shrink], np.float64) / LEVEL_UNIT


def search(
    x: Floats,
    importance: Floats,
    exponents: NDArray[np.int32],
    fit: PathFit,
    log_states: int,
    shrink: tuple[int, int, int],
    lmbda: float,
    span: int,
    device: str | None = None,
) -> Symbols:
    """Levels [n] of the path of the lowest cost, span by span, in parallel.

    Args:
        x: weights in steps [n].
        importance: [n], or [1] when constant.
        exponents: rows of the fit's lengths, [n] or [1].
        fit: the entropy model.
        log_states: logarithm of the number of states.
        shrink: centroids in 1/64 step.
        lmbda: cost of a bit.
        span: levels after which the state is 0 again.
        device: where to search; None for the processor.
    """
    from waterfill.quantize import viterbi_kernels as kernels
    from waterfill.quantize.branch_kernels import PRICES, level_prices

    bits = level_prices(fit.lengths(), lmbda, fit.zero).reshape(-1)
    moves, code = moved(shrink).astype(np.float32), code_for(log_states, importance)
    starts, aside = exponents * np.int32(PRICES), fit.aside()[exponents]
    if device is not None:
        from waterfill.quantize import device as devices

        return devices.best_paths(
            x, importance, starts, aside, span, devices.DeviceSearch.of(code, bits, moves, fit.zero, device)
        )
    levels = np.empty(x.size, np.int32)

    def one(some: slice) -> None:
        part = x[some]
        weights, begins, stays = (_repeated(each, some, part.size) for each in (importance, starts, aside))
        kernels.best_path(part, weights, begins, bits, fit.zero, moves, stays, code, levels[some])

    _every(one, _spans(x.size, span))
    return levels


def _repeated(values: NDArray[Any], span: slice, size: int) -> NDArray[Any]:
    """The values of a span, all of one size."""
    return values[span] if values.size > 1 else np.full(size, values[0])


def code_for(log_states: int, weights: Floats | None = None) -> Any:
    """A trellis with costs as narrow as the weights of squared errors allow; wide ones where these are not known."""
    from waterfill.quantize.viterbi_kernels import code_of

    flips, picks = parities(log_states)
    if weights is not None and weights.max() <= LARGEST_NARROW:
        return code_of(flips, picks, np.int16, NARROW)
    return code_of(flips, picks, np.int32, WIDE)


def _spans(size: int, span: int) -> Iterator[slice]:
    return (slice(start, min(start + span, size)) for start in range(0, size, span))


def _every(work: Callable[[slice], None], spans: Iterator[slice]) -> None:
    """Do the work of all spans, in parallel where there are several."""
    todo = list(spans)
    if len(todo) <= 1:
        for span in todo:
            work(span)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, todo))


def finish_path(
    weight: Weight, form: QuadraticForm | None, levels: Symbols, rule: Uniform, spread: Spread
) -> Quantized:
    """The record of a path with levels [out, in], with bits and distortion; zeros alone need none."""
    if not levels.any():
        return finish(weight, form, levels, rule, spreads.fit(levels, weight.layout))
    bits = pieces.tensor_bits(levels, spread, weight.layout)
    bits += side_bits(rule.scales) + side_bits(spread.scales, rule.scales)
    cost, row_costs = cost_of(weight, form, levels, rule)
    return Quantized(levels, rule, spread, bits, cost, row_costs=row_costs)
