"""The importance with cross terms between the weights of a layer: one factor for its inputs, one for its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.distortion import distortion_for
from waterfill.distortion.probe_vectors import Signals
from waterfill.errors import UsageError
from waterfill.importance.allocation import Allocation, allocate
from waterfill.importance.factored import KroneckerForm, UnfactoredForm
from waterfill.importance.factors import Factors, Gatherer, expected
from waterfill.importance.fisher import Probes, check_draws, check_temperature, needed
from waterfill.importance.forms import DiagonalForm, Doubles
from waterfill.importance.moments import Moments
from waterfill.importance.plan import Plan
from waterfill.importance.row_sums import RowSums
from waterfill.importance.squares import row_squares, square_sum
from waterfill.importance.state import ForwardPass, Seen, forward, in_full_precision, run
from waterfill.models.batches import Inputs, num_samples, pick, split
from waterfill.models.capture import variables
from waterfill.models.output_rules import reading_of
from waterfill.models.surroundings import in_ordinary_surroundings
from waterfill.protocols import Output, Progress
from waterfill.records import Floats
from waterfill.threads import one_thread

LARGEST = 16384
"""Most inputs of a layer whose products are all kept: 2 GiB in double precision."""

FEW_SIGNALS = 2
"""So many signals are sent to every sample: fewer cost as much."""

ONE_BY_ONE = 16
"""Samples, of all data, that are sent signals one after the other, for the tensors that need that: each costs a pass of
its own. Evenly spread; at least one of those that are taken in together."""

UNUSED = "no output depends on it on these data"

Form: TypeAlias = KroneckerForm | DiagonalForm


@dataclass(frozen=True)
class kronecker:
    """Kronecker-factored importance, `I = G (x) A` of every layer: `e^T I e = tr(G E A E^T)` of an error E [out, in].

    `A = E[x x^T]` of the layer's inputs (patches, for convolutions; of each group, for grouped ones) says how errors in
    the weights of one output add up or cancel, which a diagonal cannot. `G = E[g g^T]` of the gradients at its outputs,
    for the KL divergence of logits (`kl`) or the squared error of values (`regression`), says how much each output
    matters: its diagonal, or with `full` all of it. The means are over positions with a gradient, over all calls of the
    layer. G is scaled so that every row of the product's diagonal has the same total as in `kl` or `regression`, which
    the same passes give exactly, see `Factors.form`.

    Vectors have the diagonal form of `kl` or `regression`. So have tables of tokens, where A would be diagonal; tokens
    that never came are priced by those that came once. So has a matrix that is not the matrix of one linear map
    (elementwise, tied to a layer that reads it the other way, used in ways that cannot be watched) or whose factor
    would be too large: its `UnfactoredForm` says why.

    Source: section 5.7 of PAPER.md; Martens and Grosse 2015 (K-FAC); Grosse and Martens 2016 for convolutions.

    Attributes:
        full: whether G has cross terms.
        temperature: of the softmax, above 0; of no use for values.
        draws: how many random signals for each sample, as in `kl`. None for as many as the prices of rows need, see
            `waterfill.importance.allocation`: the samples whose outputs are uncertain are sent those of `kl`, the
            others one or none. `KroneckerForm.standard_error` is what that leaves.
        seed: of what is drawn.
        largest: most rows of a factor that is a matrix; of several groups, most of one matrix of as many values.
    """

    full: bool = False
    temperature: float = 1.0
    draws: int | None = None
    seed: int = 0
    largest: int = LARGEST

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_draws(self.draws)
        if self.largest < 0:
            raise UsageError(f"largest is {self.largest}; expected a number not below 0. Give 0 for no matrices.")

    @property
    def name(self) -> str:
        """`kronecker`, with `full`, and the temperature where it is not 1."""
        options = ["full"] if self.full else []
        options += [] if self.temperature == 1 else [f"temperature={self.temperature:g}"]
        return f"kronecker({', '.join(options)})" if options else "kronecker"

    @in_ordinary_surroundings
    @one_thread()
    def estimate(
        self,
        model: nn.Module,
        data: Iterable[Any] | None,
        output: Output | None = None,
        *,
        fold_norms: bool = True,
        progress: Progress | None = None,
    ) -> dict[str, Form]:
        """Estimate it for every learned tensor of a model.

        Args:
            model: the network; it is left as it was.
            data: batches.
            output: what the model returns; None to tell from the targets.
            fold_norms: whether batch norms are priced as a scale and a shift.
            progress: called with ("importance", done, total) after every batch.

        Returns:
            Forms by name in the state dict. Buffers have none, unless they are a folded norm's.

        Raises:
            CalibrationError: there are no data, or they do not fit the model, or do not tell what it returns.
            UnsupportedModelError: the model cannot be differentiated or taken apart by sample.
        """
        batches = needed(self.name, model, data)
        reading = reading_of(model, batches, output)
        with reading.of(model):
            state = replace(self.begin(model, reading.form, fold_norms=fold_norms), batches=max(1, len(batches)))
            return run(state, reading.batches(batches), progress).forms()

    def begin(self, model: nn.Module, output: Output = "logits", *, fold_norms: bool = True) -> KroneckerState:
        """Make the state before the first batch, for data that come in parts.

        Args:
            model: the network.
            output: what it returns.
            fold_norms: as in `estimate`.
        """
        model = in_full_precision(model)
        learned = variables(model, fold_norms=fold_norms)
        source = Probes(distortion_for(output), self.temperature, self.draws, self.seed)
        return KroneckerState(model, learned, FactorMoments({}), Plan(), self, source)


@dataclass(frozen=True, eq=False)
class FactorMoments(Moments):
    """Sums of squared gradients, row by row for the matrices that have factors, and these factors.

    Attributes:
        sums: of all other tensors that have a gradient.
        rows: by name.
        factors: by name.
        reasons: why matrices have none, by name.
    """

    rows: Mapping[str, RowSums] = field(default_factory=dict)
    factors: Mapping[str, Factors] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def merge(self, other: Moments) -> FactorMoments:
        """Add what another one has seen.

        Raises:
            UsageError: they are about different tensors, or the other one has no factors.
        """
        return self._with(other, Factors.merge)

    def absorb(self, other: Moments) -> FactorMoments:
        """Add what another one has seen, which is of no use after that; as `merge`."""
        return self._with(other, partial(Factors.merge, reuse=True))

    def on_host(self) -> FactorMoments:
        """The same sums on the CPU, for other processes."""
        rows = {name: each.on_host() for name, each in self.rows.items()}
        factors = {name: each.on_host() for name, each in self.factors.items()}
        sums = {name: each.cpu() for name, each in self.sums.items()}
        return FactorMoments(sums, self.count, rows, factors, self.reasons)

    def _with(self, other: Moments, merged: Callable[[Factors, Factors], Factors]) -> FactorMoments:
        if not isinstance(other, FactorMoments):
            raise UsageError("Moments with factors cannot be merged with others; expected a state of kronecker().")
        factors = _joined(self.factors, other.factors, merged)
        rows = _joined(self.rows, other.rows, RowSums.merge)
        sums = _joined(self.sums, other.sums, Tensor.add)
        return FactorMoments(sums, self.count + other.count, rows, factors, _joined(self.reasons, other.reasons, max))


T = TypeVar("T")


def _joined(one: Mapping[str, T], other: Mapping[str, T], both: Callable[[T, T], T]) -> dict[str, T]:
    """The entries of two mappings, made one where both have one."""
    more = {name: both(one[name], each) if name in one else each for name, each in other.items()}
    return {**one, **more}


@dataclass(frozen=True, eq=False)
class KroneckerState(Seen):
    """What `kronecker` has seen: sums of squared gradients, and of the factors of all matrices.

    Attributes:
        moments: the sums.
        option: what is estimated.
        source: what is sent back.
        batches: how many there will be, about as large as each other; by it the number of signals is chosen.
        samples: how many samples there are in all batches, as far as the one that is taken in tells.
    """

    moments: FactorMoments
    option: kronecker
    source: Probes
    batches: int = 1
    samples: int = 1

    @property
    def seed(self) -> int:
        """Seed of the source."""
        return self.option.seed

    @property
    def together(self) -> int:
        """One signal is most often enough."""
        return 2

    def seen(self, batch: Any, index: int | None = None) -> FactorMoments:
        """Sums over one batch alone, by the plan; as `Seen.seen`."""
        here = replace(self, samples=max(1, self.batches * num_samples(split(batch)[0])))
        found = super(KroneckerState, here).seen(batch, index)
        assert isinstance(found, FactorMoments)
        return found

    def measure(
        self, inputs: Inputs, target: Tensor | None, generator: torch.Generator, index: int | None
    ) -> FactorMoments:
        """Square the gradients of the signals, and multiply inputs and gradients at outputs with themselves."""
        passed = forward(self, inputs, index)
        output, share = passed.output.detach(), min(1.0, passed.samples / self.samples)
        gatherer = Gatherer(self.learned.layouts, self.option.full, self.option.largest, share, generator)
        signals = self.source.signals(output, target, generator)
        allocation = None
        if self.option.draws is None and signals.number > FEW_SIGNALS:
            powers = self.source.distortion.probe_powers(output, target, self.option.temperature)
            allocation = allocate(powers, share, generator)
        if allocation is None:
            found = self._squares(passed, signals, gatherer)
            return replace(found, count=signals.count, factors=gatherer.factors(), reasons=gatherer.reasons)
        one = replace(self.source, draws=1).signals(output, target, generator)
        found = self._squares(passed, one, gatherer, allocation)
        factors = gatherer.factors()
        if allocation.all_signals:
            found = found.merge(self._of_all_signals(passed.inputs, target, generator, allocation, gatherer))
        return replace(found, count=signals.count, factors=factors, reasons=gatherer.reasons)

    def _of_all_signals(
        self, inputs: Inputs, target: Tensor | None, generator: torch.Generator, allocation: Allocation, seen: Gatherer
    ) -> FactorMoments:
        """The sums over the samples that are sent all signals."""
        chosen = allocation.all_signals
        of_samples = target is not None and target.ndim and len(target) == num_samples(inputs)
        labels = target[chosen] if target is not None and of_samples else target
        passed = forward(self, pick(inputs, chosen), None)
        signals = self.source.signals(passed.output.detach(), labels, generator)
        return self._squares(passed, signals, seen, gathers=False)

    def _squares(
        self,
        passed: ForwardPass,
        signals: Signals,
        gatherer: Gatherer,
        allocation: Allocation | None = None,
        *,
        gathers: bool = True,
    ) -> FactorMoments:
        """The sums over samples, some of which count several times or not at all; what is gathered sees all of them."""
        chosen = None if allocation is None else allocation.one_signal
        times = _times(allocation, passed.output)
        left_out = 0 if allocation is None else passed.samples - len(allocation.all_signals) - len(allocation.weights)
        sums: dict[str, Tensor] = {}
        rows: dict[str, RowSums] = {}
        for stack in passed.stacks(signals):
            for name, order, uses, found in passed.captured(stack * times.where(times > 0, 1)):
                if gathers:
                    gatherer.see(name, uses, found)
                if gatherer.takes_rows(name, uses):
                    each = row_squares(uses, found, passed.samples, order, chosen)
                    here = RowSums.of(each, drawn=signals.drawn, left_out=left_out)
                    rows[name] = rows[name].merge(here) if name in rows else here
                    continue
                squares = square_sum(uses, found, passed.samples, order, chosen)
                sums[name] = sums[name] + squares if name in sums else squares
            for name, squares in passed.general_squares(self, stack * times, self._one_by_one(passed)):
                gatherer.see(name, (), ())
                sums[name] = sums[name] + squares if name in sums else squares
        return FactorMoments(sums, 0, rows)

    def _one_by_one(self, passed: ForwardPass) -> list[int] | None:
        """The samples that are sent signals one after the other; None for all."""
        wanted = math.ceil(ONE_BY_ONE * min(1.0, passed.samples / self.samples))
        if self.option.draws is not None or wanted >= passed.samples:
            return None
        return [number * passed.samples // wanted for number in range(wanted)]

    def forms(self) -> dict[str, Form]:
        """Forms so far, by name.

        Raises:
            CalibrationError: nothing was seen.
        """
        self.moments.check()
        return {name: self._form(name) for name in self.learned.layouts}

    def _form(self, name: str) -> Form:
        layout, moments = self.learned.layouts[name], self.moments
        unit: dict[str, Any] = {"factor": self.source.factor, "unit": self.source.unit}
        factors, reason = moments.factors.get(name), moments.reasons.get(name)
        product = self._product(name) if name in moments.rows else None
        if product is not None and factors is not None and reason is None:
            return replace(product, **unit)
        squares = moments.sums.get(name, torch.zeros(layout.shape, dtype=torch.float64))
        exact = layout.to_matrix(squares.cpu().numpy() / moments.count)
        if factors is not None and factors.inputs.ndim == 2 and reason is None:
            return DiagonalForm(_of_tokens(exact, factors), **unit)
        values = (exact if product is None else exact + product.diagonal()).astype(np.float32)
        if len(layout.shape) < 2:
            return DiagonalForm(values, **unit)
        return UnfactoredForm(values, reason or UNUSED, **unit)

    def _product(self, name: str) -> KroneckerForm:
        rows = self.moments.rows[name]
        error = math.sqrt(float(np.square(rows.relative_errors()).mean()))
        return self.moments.factors[name].form(rows.total.cpu().numpy() / self.moments.count, error)


def _times(allocation: Allocation | None, output: Tensor) -> Tensor:
    """By what the signal of every sample is multiplied, [samples, ...] beside the output; 0 for those left out."""
    shape = (len(output), *(1,) * (output.ndim - 1))
    if allocation is None:
        return output.new_ones(shape)
    times = torch.zeros(len(output), dtype=torch.float64)
    times[allocation.one_signal] = allocation.weights.sqrt()
    return times.to(output).reshape(shape)


def _of_tokens(exact: Doubles, factors: Factors) -> Floats:
    """The form of a table of tokens: no two of them come at one position, so it has no cross terms between them."""
    counts = factors.inputs[0].cpu().numpy()
    found = expected(exact.T, counts).T if factors.turned else expected(exact, counts)
    values: Floats = found.astype(np.float32)
    return values
