"""The importance with cross terms between the weights of a layer: one factor for its inputs, one for its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.distortion import distortion_for
from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm, UnfactoredForm
from waterfill.importance.factors import Factors, Gatherer, expected
from waterfill.importance.fisher import Probes, check_draws, check_temperature, needed
from waterfill.importance.forms import DiagonalForm, Doubles
from waterfill.importance.moments import Moments
from waterfill.importance.plan import Plan
from waterfill.importance.state import Seen, State, in_full_precision, measure, nothing, run
from waterfill.models.batches import Inputs
from waterfill.models.capture import variables
from waterfill.models.output_rules import reading_of
from waterfill.models.surroundings import in_ordinary_surroundings
from waterfill.protocols import Output, Progress
from waterfill.records import Floats

LARGEST = 16384
"""Most inputs of a layer whose products are all kept: 2 GiB in double precision."""

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
        draws: how many random signals for each sample, as in `kl`.
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
            state = self.begin(model, reading.form, fold_norms=fold_norms)
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
        return KroneckerState(model, learned, FactorMoments(nothing(learned).sums), Plan(), self, source)


@dataclass(frozen=True, eq=False)
class FactorMoments(Moments):
    """Sums of squared gradients, and the factors of all matrices that have some.

    Attributes:
        factors: by name.
        reasons: why matrices have none, by name.
    """

    factors: Mapping[str, Factors] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def merge(self, other: Moments) -> FactorMoments:
        """Add what another one has seen.

        Raises:
            UsageError: they are about different tensors, or the other one has no factors.
        """
        if not isinstance(other, FactorMoments):
            raise UsageError("Moments with factors cannot be merged with others; expected a state of kronecker().")
        sums = super().merge(other)
        factors = dict(self.factors)
        for name, more in other.factors.items():
            factors[name] = factors[name].merge(more) if name in factors else more
        both = self.reasons.keys() & other.reasons.keys()
        reasons = {**self.reasons, **other.reasons, **{n: max(self.reasons[n], other.reasons[n]) for n in both}}
        return FactorMoments(sums.sums, sums.count, {n: f for n, f in factors.items() if n not in reasons}, reasons)


@dataclass(frozen=True, eq=False)
class KroneckerState(Seen):
    """What `kronecker` has seen: sums of squared gradients, and of the factors of all matrices.

    Attributes:
        moments: the sums.
        option: what is estimated.
        source: what is sent back.
    """

    moments: FactorMoments
    option: kronecker
    source: Probes

    @property
    def seed(self) -> int:
        """Seed of the source."""
        return self.option.seed

    def measure(
        self, inputs: Inputs, target: Tensor | None, generator: torch.Generator, index: int | None
    ) -> FactorMoments:
        """Square the gradients of all signals, and multiply inputs and gradients at outputs with themselves."""
        gatherer = Gatherer(self.learned.layouts, self.option.full, self.option.largest)
        squares = State(self.model, self.learned, self.moments, self.plan, self.source)
        found = measure(squares, inputs, target, generator, index, gatherer.see)
        return FactorMoments(found.sums, found.count, gatherer.factors(), gatherer.reasons)

    def forms(self) -> dict[str, Form]:
        """Forms so far, by name.

        Raises:
            CalibrationError: nothing was seen.
        """
        diagonals = self.moments.forms(self.learned.layouts, factor=self.source.factor, unit=self.source.unit)
        return {name: self._form(name, diagonal) for name, diagonal in diagonals.items()}

    def _form(self, name: str, diagonal: DiagonalForm) -> Form:
        layout = self.learned.layouts[name]
        if len(layout.shape) < 2:
            return diagonal
        reason = self.moments.reasons.get(name)
        if reason is None and name in self.moments.factors:
            exact = layout.to_matrix(self.moments.sums[name].numpy() / self.moments.count)
            factors = self.moments.factors[name]
            if factors.inputs.ndim == 2:
                return replace(diagonal, values=_of_tokens(exact, factors))
            return replace(factors.form(exact), factor=diagonal.factor, unit=diagonal.unit)
        return UnfactoredForm(diagonal.values, reason or UNUSED, factor=diagonal.factor, unit=diagonal.unit)


def _of_tokens(exact: Doubles, factors: Factors) -> Floats:
    """The form of a table of tokens: no two of them come at one position, so it has no cross terms between them."""
    counts = factors.inputs[0].numpy()
    found = expected(exact.T, counts).T if factors.turned else expected(exact, counts)
    values: Floats = found.astype(np.float32)
    return values
