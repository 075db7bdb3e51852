"""Error feedback: column by column, each makes up for the errors of those before it, along a path through a trellis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from waterfill.codec.lanes import best_lanes
from waterfill.codec.trellis import PARITIES
from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm, has_cross_terms
from waterfill.importance.forms import Doubles
from waterfill.protocols import QuadraticForm, Quantizer, QuantizerTraits
from waterfill.quantize import path_spread
from waterfill.quantize import spread as spreads
from waterfill.quantize.path_spread import PathFit
from waterfill.quantize.prefilter import Filters, Target
from waterfill.quantize.scalar import Scalar, finish, in_steps, largest_step
from waterfill.quantize.sparse import Sparse
from waterfill.quantize.spread import Fit
from waterfill.quantize.trellis import (
    FEW_STATES,
    LEVEL_TO_SQUARED_STEP,
    Trellis,
    code_for,
    few_values,
    finish_path,
    lagrangian,
)
from waterfill.reconstruct import LEVEL_UNIT, step_sizes
from waterfill.records import ALL, Floats, Lanes, Layout, Paths, Quantized, Spread, Symbols, Uniform, Weight

Exponents: TypeAlias = NDArray[np.int64]

LARGEST_SPAN = 1 << 16
"""Weights of a span, about so many at most: then the state of a path is 0 again."""

DRAFT_STATES, DRAFT_ROUNDS = 8, 2
"""Of a draft, at most."""

BLOCK, WIDE_BLOCK = 64, 256
"""Columns that get at once what those before them leave, at least: from the wide block that they are in, and from all
before that. Wide products are faster, and inside of a block sums are slower than products."""

FORCED = 1024
"""From so many rows on the levels of a column are decided at its end."""

MOST_ENDS, LEAST_ENDS = 1 << 14, 8
"""Of shorter columns so many ends are kept, over the rows, and at least so many."""

SAMPLE, FEWEST_ROWS = 1 << 16, 128
"""Tables are found on about so many weights, and at least so many rows where there are twice as many."""

MEMORY = 10
"""Paths are taken to agree after so many steps for each bit of their state."""

LEAST_PART = 0.25
"""Where fewer elements take part in the path, its memory is not made longer."""

SCALAR_SQUARED_STEP, PATH_SQUARED_STEP = 12.0, LEVEL_TO_SQUARED_STEP
"""The squared step in water levels; the steps of a path are half as large, and every other number is left out."""

FINEST = 23
"""As for other quantizers, and three more, for errors that are fed back are some steps large."""

RIDGES = np.array([1e-6, 1e-3, 1e-3, 1e-3])
"""Shares of their weight by which the step and the shifts are held: where levels are few, both can do the same."""

LOW_RATE_ASIDE = 0.05
"""Tables are found on all rows where a larger share of the elements stands aside."""

FITTED, FEWEST_FITTED = 1 << 17, 32
"""Step and shifts are fitted to about so many weights, and to so many rows at least."""

SPARSE, VERY_SPARSE = 0.5, 0.4
"""Shares of weights that are not zero up to which a matrix is also searched weight by weight, or only so."""


@dataclass(frozen=True)
class Feedback:
    """Uniform steps and a path through a trellis, with error feedback under a form that has cross terms.

    Inputs of a layer that go together make errors in one column good in another. The weights are filtered for the rate
    (`prefilter`), column j has steps proportional to `1 / U_jj`, and the trellis runs down the columns, first to last:
    what a column aims at makes up for the errors of the columns before it. Where a column is shorter than the memory
    of the trellis, every survivor feeds back its own errors. The step and the levels are those that cost the least in
    the end. Where rows differ in importance, so do their filters and steps.

    A form without cross terms is for `Trellis`, or `Scalar` with one state.

    Attributes:
        states: of the trellis, 1 for none (a scalar quantizer), or a power of two from 4 to 4096.
        lmbda: price of a bit in water levels, for the choice between levels; what bits cost in the mean is in the
            filter.
        regulariser: noise to filter for, in water levels; 0 does not filter.
        rounds: how often tables and paths are fitted to each other; all but the last with few states on some rows.
        device: where columns are searched that are decided at their ends; None for the processor.

    Raises:
        UsageError: an option is out of its range.

    Source:
        LDLQ and GPTQ (Frantar et al. 2023); steps as in WaterSIC; trellis-coded quantization, see `Trellis`.
    """

    states: int = 64
    lmbda: float = 0.3
    regulariser: float = 1.1
    rounds: int = 3
    device: str | None = None

    traits: ClassVar[QuantizerTraits] = QuantizerTraits(uses_cross_terms=True, any_basis=True)

    def __post_init__(self) -> None:
        if self.states not in (1, *(1 << log for log in PARITIES)):
            raise UsageError(
                f"Feedback of states={self.states} is unknown; expected 1 or a power of two from 4 to 4096."
            )
        if not (self.lmbda >= 0 and self.regulariser >= 0) or self.rounds < 1:
            raise UsageError(
                f"Feedback of lmbda={self.lmbda}, regulariser={self.regulariser}, rounds={self.rounds} is out of "
                "range; expected at least 0, 0 and 1."
            )

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one weight so that its mean `I_w e^2` comes near the water level.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
            water_level: mean cost of an error per weight.
        """
        return self.prepared(weight, form).quantize(weight, form, water_level)

    def draft(self) -> Feedback:
        """A quicker quantizer that takes nearly the same bits."""
        return replace(self, states=min(DRAFT_STATES, self.states), rounds=min(DRAFT_ROUNDS, self.rounds))

    def prepared(self, weight: Weight, form: QuadraticForm | None) -> Quantizer:
        """A quantizer of this weight under this form alone, which keeps its filters.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
        """
        plain = plain_of(self)
        if not has_cross_terms(form) or not weight.matrix.any():
            return plain
        return FilteredFeedback(self, Filters(weight, form))


@dataclass(frozen=True, eq=False)
class FilteredFeedback:
    """Error feedback of one weight, with its filters.

    Attributes:
        options: of the search.
        filters: of the weight.
    """

    options: Feedback
    filters: Filters

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize the weight so that its mean `I_w e^2` comes near the water level.

        Args:
            weight: the one that it is for.
            form: likewise.
            water_level: mean cost of an error per weight.
        """
        share = np.count_nonzero(weight.matrix) / weight.matrix.size
        if share <= VERY_SPARSE:
            return Sparse().quantize(weight, form, water_level)
        found = self._feed_back(weight, water_level)
        # feedback fills the zeros of a sparse matrix, and leaves the few values that a matrix has
        plain = plain_of(self.options)
        others: list[Quantizer] = [Sparse()] if share <= SPARSE else []
        others += [plain] if found.spread.adaptive is not None else []
        others += [Scalar()] if few_values(weight, found) else []
        every = [found, *(other.quantize(weight, form, water_level) for other in others)]
        return min(every, key=lambda each: lagrangian(each, water_level))

    def _feed_back(self, weight: Weight, water_level: float) -> Quantized:
        options, form = self.options, self.filters.form
        target = self.filters.target(options.regulariser * water_level)
        squared_step = SCALAR_SQUARED_STEP if options.states == 1 else PATH_SQUARED_STEP
        aimed_at = replace(weight, matrix=target.aims)
        rule, aims, relative = in_steps(aimed_at, target.importance, water_level * squared_step / 12, finest=FINEST)
        loop = Loop.of(weight, target, rule, aims, relative, options.lmbda / squared_step)
        loop = replace(loop, device=options.device)
        if options.states == 1:
            levels, fit = loop.scalar(rule, options.rounds)
            return finish(weight, form, levels, centred(weight, form, levels, rule), fit)
        log_states = options.states.bit_length() - 1
        levels, spread = loop.path(rule, options.rounds, log_states)
        return finish_path(weight, form, levels, centred(weight, form, levels, rule), spread)


def plain_of(options: Feedback) -> Scalar | Trellis:
    """The quantizer of the same trellis that feeds nothing back."""
    return Scalar() if options.states == 1 else Trellis(options.states, device=options.device)


def is_sparse(matrix: Floats) -> bool:
    """Whether zeros of a matrix are worth keeping."""
    return bool(np.count_nonzero(matrix) <= SPARSE * matrix.size)


@dataclass(frozen=True, eq=False)
class Loop:
    """What levels are sought for, column by column.

    Attributes:
        x: weights in steps, float32 [out, in].
        aims: what columns aim at where nothing before them has errors, in steps, float32 [out, in].
        weights: of the squared errors, of the same shape, or [1, 1] when constant.
        target: with the factors by which errors in one column change the aims of later ones.
        steps: of the columns, float32 [in].
        layout: of the tensor.
        lmbda: cost of a bit in squared steps.
        lanes: of the path, which say where it begins; None for none.
        device: where columns are searched that are decided at their ends; None for the processor.
    """

    x: Floats
    aims: Floats
    weights: Floats
    target: Target
    steps: Floats
    layout: Layout
    lmbda: float
    lanes: Lanes | None = None
    device: str | None = None

    @classmethod
    def of(cls, weight: Weight, target: Target, rule: Uniform, aims: Floats, relative: Floats, lmbda: float) -> Loop:
        """Put a weight and its target into steps: the aims and relative importances of `in_steps`."""
        layout = weight.layout
        out, channels, taps = layout.axes
        each = np.zeros((channels, 1)) if rule.channels is None else rule.channels.astype(np.float64)[:, None]
        steps = np.exp2((each + (np.zeros(taps) if rule.taps is None else rule.taps)) / 4).reshape(-1)
        weights = relative.reshape(out, -1) if relative.size > 1 else relative.reshape(1, 1)
        x = (weight.matrix.reshape(-1) / step_sizes(rule, layout, 0, layout.numel)).reshape(out, -1)
        return cls(x, aims.reshape(out, -1), weights, target, steps.astype(np.float32), layout, lmbda)

    def paths(self, log_states: int) -> Paths:
        """The path: how many states it has, and where that is 0 again."""
        if self.lanes is not None:
            return Paths(log_states, False, 0, 0, 0, True, lanes=self.lanes)
        return Paths(log_states, False, max(0, math.ceil(math.log2(LARGEST_SPAN / len(self.x)))), 0, 0, True)

    def scalar(self, rule: Uniform, rounds: int) -> tuple[Symbols, Fit]:
        """Levels [out, in] that are free, and the entropy model fitted to them."""
        fit = spreads.fit(self._nearest(1), self.layout, steps=rule.scales)
        for _ in range(rounds):
            rows, columns = _exponents(fit.exponents(self.layout))
            lmbda = 0.0 if fit.shift else self.lmbda  # low bits take the same everywhere
            bits = np.float32(lmbda) * fit.lengths()[:, None]
            levels = self._columns((rows, columns, bits))
            fit = spreads.fit(levels, self.layout, fit)
        return levels, fit

    def path(self, rule: Uniform, rounds: int, log_states: int) -> tuple[Symbols, Spread]:
        """Levels [out, in] that are a path, and the entropy model fitted to it.

        Tables are found with few states on some of the rows, then used for one path of all, and fitted to it. At low
        rate all depends on which elements stand aside, so there they are found on all rows.
        """
        fit = path_spread.start(self._nearest(2), self.layout, zero=False, steps=rule.scales)
        few, rate = min(log_states, FEW_STATES), math.inf
        if rounds > 1:
            draft, some = self._sample() if self._aside(fit) < LOW_RATE_ASIDE else (self, None)
            known, axes = path_spread.of_rows(fit, some), (0, 1, 2) if some is None else (1, 2)
            for _ in range(rounds - 1):
                known = draft.refit(draft.search(known, few, LEAST_ENDS), known, few, axes=axes)
            rate = known.bits / draft.x.size
            fit = known if some is None else path_spread.of_all(known, fit)
            if fit.least != ALL:  # who stands aside is fitted no more after the path
                fit = self.refit(self.search(fit, few, 1), fit, few)
        lanes = best_lanes(self.layout, True, rate, max(LARGEST_SPAN, len(self.x)))
        whole = replace(self, lanes=lanes)
        levels = whole.search(fit, log_states)
        return levels, whole.refit(levels, fit, log_states, last=True).spread(whole.paths(log_states))

    def search(self, fit: PathFit, log_states: int, ends: int = 0) -> Symbols:
        """Levels [out, in] of a path of low cost under the tables of a fit.

        Args:
            fit: the entropy model.
            log_states: logarithm of the number of states.
            ends: how many of the states in which a column can end are kept for the next one; 0 for as many as pay.
        """
        from waterfill.quantize.branch_kernels import level_prices
        from waterfill.quantize.survivor_kernels import Survivors

        rows, columns = _exponents(spreads.exponents_of(fit.offsets, self.layout, -fit.range()[0]))
        height = len(self.x)
        ends = ends or (1 if height >= FORCED else max(LEAST_ENDS, MOST_ENDS // height))
        prices = rows, columns, level_prices(fit.lengths(), self.lmbda, False)
        if ends == 1:
            return self._columns(prices, (fit.aside(), code_for(log_states, self.weights)))
        lag = int(MEMORY * log_states / max(1 - self._aside(fit), LEAST_PART))
        return self._columns(prices, (fit.aside(), code_for(log_states), Survivors(lag, ends)))

    def _aside(self, fit: PathFit) -> float:
        """Share of the elements that stand aside."""
        aside = fit.aside()
        if not aside.any():
            return 0.0
        rows, columns = _exponents(spreads.exponents_of(fit.offsets, self.layout, -fit.range()[0]))
        return float(aside[np.add.outer(rows, columns)].mean())

    def refit(
        self, levels: Symbols, fit: PathFit, log_states: int, *, last: bool = False, axes: Sequence[int] = (0, 1, 2)
    ) -> PathFit:
        """The entropy model fitted to a path, see `path_spread.refit`."""
        return path_spread.refit(levels, self.paths(log_states), self.layout, fit, last=last, axes=axes)

    def _sample(self) -> tuple[Loop, NDArray[np.int64] | None]:
        """Some rows of a large matrix and which they are; itself and None where there are few."""
        out, columns = self.x.shape
        kept = max(FEWEST_ROWS, SAMPLE // columns)
        if 2 * kept > out:
            return self, None
        some = np.arange(kept) * out // kept
        weights = self.weights[some] if self.weights.size > 1 else self.weights
        target = replace(self.target, classes=self.target.classes[some])
        layout = Layout((kept, *self.layout.axes[1:]))
        return Loop(self.x[some], self.aims[some], weights, target, self.steps, layout, self.lmbda), some

    def _nearest(self, step: int) -> Symbols:
        return np.rint(self.aims / step).astype(np.int32)

    def _columns(self, prices: tuple[Exponents, Exponents, Floats], search: tuple[Any, ...] = ()) -> Symbols:
        """Search the levels [out, in] of a path, or free ones, span by span.

        What the columns before a wide block leave to it is one product, and so is what those before a block in it
        leave to that; inside, a column adds up what those before it leave.

        Args:
            prices: exponents of rows and of columns, what levels cost at each.
            search: which exponents stand aside, the trellis, and how much is remembered where all is not decided at the
                end of every column; nothing for free levels.
        """
        from waterfill.quantize import feedback_kernels, survivor_kernels

        if self.device is not None and len(search) == 2:
            return self._on_device(prices, *search)
        kernels = feedback_kernels.scalar_span, feedback_kernels.decided_span, survivor_kernels.surviving_span
        find = kernels[max(0, len(search) - 1)]
        levels, feed = np.empty(self.x.shape, np.int32), self._feed()
        block, span = self._blocks()
        rows, columns, bits = prices
        wide = -(-WIDE_BLOCK // block) * block
        far = np.empty((0, len(self.x)), np.float32)
        for base in range(0, self.x.shape[1], block):
            inside = base % wide
            if not inside:
                far = self._carried(feed, slice(base, base + wide), slice(0, base))
            carried = far[inside : inside + block]
            carried += self._carried(feed, slice(base, base + block), slice(base - inside, base))
            carried += (self.aims[:, base : base + block] - self.x[:, base : base + block]).T
            for start in range(base, min(base + block, self.x.shape[1]), span):
                some = slice(start, min(start + span, base + block))
                x = np.ascontiguousarray(self.x[:, some].T)
                found = np.empty(x.shape, np.int32)
                known = x, np.ascontiguousarray(carried[start - base :][: len(x)]), feed, start, base
                priced = feedback_kernels.Prices(self._weights(some), rows, columns[some], bits)
                find(*known, priced, *search, found)
                levels[:, some] = found.T
        return levels

    def _on_device(self, prices: tuple[Exponents, Exponents, Floats], aside: NDArray[np.bool_], code: Any) -> Symbols:
        """The same on a device, where all is decided at the end of every column."""
        from waterfill.quantize import device as devices
        from waterfill.quantize.feedback_kernels import Prices

        rows, columns, bits = prices
        assert self.device is not None
        search = devices.DeviceSearch.of(code, bits, np.zeros(4, np.float32), False, self.device)
        priced = Prices(self._weights(slice(None)), rows, columns, bits)
        return devices.decided_columns(self.x, self.aims, self._feed(), priced, aside, search, *self._blocks())

    def _blocks(self) -> tuple[int, int]:
        """Columns of a block, which get at once what those before it leave, and those of a path."""
        span = self.paths(FEW_STATES).span(self.layout) // len(self.x)
        return -(-BLOCK // span) * span, span

    def _weights(self, columns: slice) -> Floats:
        """Weights of the squared errors of some columns, [columns, out]; [1, out] where they are constant."""
        if self.weights.size == 1:
            return np.full((1, len(self.x)), self.weights[0, 0], np.float32)
        return np.ascontiguousarray(self.weights[:, columns].T)

    def _feed(self) -> Any:
        """How errors of earlier columns come in, with none yet."""
        from waterfill.quantize.feedback_kernels import Feed

        factors = self.target.factors
        gains = 1 / (np.diagonal(factors, axis1=1, axis2=2) * self.steps)
        return Feed(factors, gains, self.steps, self.target.classes, np.zeros(self.x.shape, np.float32))

    def _carried(self, feed: Any, columns: slice, before: slice) -> Floats:
        """What errors of columns before some columns change of their aims, [columns, out]."""
        some = feed.factors[:, columns, before]
        carried = np.zeros((some.shape[1], len(self.x)), np.float32)
        for k in range(len(some) if some.shape[2] else 0):
            mine = np.flatnonzero(feed.classes == k) if len(some) > 1 else slice(None)
            found = some[k] @ feed.errors[mine, before].T
            carried[:, mine] = np.multiply(feed.gains[k, columns, None], found, out=found)
        return carried


def _exponents(parts: tuple[Exponents, Exponents, Exponents]) -> tuple[Exponents, Exponents]:
    """Exponents of rows and of columns, from those of rows, channels and taps."""
    rows, channels, taps = parts
    return rows, (channels[:, None] + taps).reshape(-1)


def centred(weight: Weight, form: KroneckerForm, levels: Symbols, rule: Uniform) -> Uniform:
    """The step, and the shifts of the levels 1, 2, >= 3, that cost the least for given levels [out, in].

    Filtering makes weights smaller, so the best step is larger than the one they were searched with.
    """
    steps = np.broadcast_to(step_sizes(rule, weight.layout, 0, levels.size), levels.size).reshape(levels.shape)
    form, some = _some_rows(weight, form)
    matrix, levels, steps = weight.matrix[some], levels[some], steps[some]
    sizes = np.minimum(np.abs(levels), 3)
    shifts = [np.where(sizes == size, -np.sign(levels) * steps, np.float32(0)) for size in (1, 2, 3)]
    basis = np.stack([steps * levels.astype(np.float32), *shifts])
    moved = form.times(basis)
    gram = np.array([[np.vdot(left, right) for right in basis] for left in moved])
    wanted = np.array([np.vdot(part, matrix) for part in moved])
    there = np.diagonal(gram) > 1e-9 * gram[0, 0]
    if not there[0]:
        return rule
    found = _least_cost(gram, wanted, there)
    far = np.abs(found) > abs(found[0])
    if far.any():  # levels of about one size do not tell a shift from the step, and no shift is longer than a step
        apart = _least_cost(gram, wanted, there & ~far)
        found = max(_clipped(found), _clipped(apart), key=lambda each: _saving(gram, wanted, each))
    if not found[0] > 0:
        return rule
    step = int(np.clip(rule.step + np.rint(64 * np.log2(found[0])), -largest_step(rule), largest_step(rule)))
    first, second, third = np.rint(LEVEL_UNIT * _clipped(found)[1:] / found[0]).astype(int).tolist()
    return replace(rule, step=step, shrink=(first, second, third))


def _some_rows(weight: Weight, form: KroneckerForm) -> tuple[KroneckerForm, slice]:
    """The form of some rows, and which they are: all that there are if they do not go apart or are not alike."""
    out, inputs = len(form.rows), form.columns.shape[1]
    every = slice(None, None, max(1, out // max(FEWEST_FITTED, FITTED // inputs)))
    if form.rows.ndim == 1 and len(form.columns) == 1 and weight.are_rows_alike:
        return form.rows_of(every), every
    return form, slice(None)


def _least_cost(gram: Doubles, wanted: Doubles, free: NDArray[np.bool_]) -> Doubles:
    """The step and the shifts that cost the least, where only some are free and the others are 0."""
    found = np.zeros(len(wanted))
    ridge = np.diag(RIDGES * np.diagonal(gram))
    found[free] = np.linalg.solve((gram + ridge)[np.ix_(free, free)], wanted[free])
    return found


def _clipped(found: Doubles) -> Doubles:
    """A step and shifts that are no longer than it."""
    return found.clip(-abs(found[0]), abs(found[0]))


def _saving(gram: Doubles, wanted: Doubles, found: Doubles) -> float:
    """How much less a step with shifts costs than zeros."""
    return float(2 * found @ wanted - found @ gram @ found)
