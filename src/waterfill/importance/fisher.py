"""The importances of the paper: the Fisher information under the model's own predictions, and squared outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from waterfill.distortion import KL_DIVERGENCE, SQUARED_ERROR, Distortion, distortion_for
from waterfill.distortion.probe_vectors import Signals
from waterfill.errors import CalibrationError, UsageError
from waterfill.importance.forms import DiagonalForm
from waterfill.importance.state import State, begin, run
from waterfill.models.arrangement import arranged
from waterfill.models.batches import split
from waterfill.models.kept_batches import as_batches
from waterfill.models.output_reading import OutputReading
from waterfill.models.output_rules import reading_of
from waterfill.models.surroundings import in_ordinary_surroundings
from waterfill.protocols import Output, Progress
from waterfill.threads import one_thread


@dataclass(frozen=True)
class kl:
    """KL importance: half of `e^T I e` is the divergence D(original || compressed) in nats, to second order.

        I_i = E_x sum_c f_c (d log f_c / d w_i)^2,   f = softmax(z / T)

    The mean is over predictions: samples, or positions for outputs [samples, positions, classes]. It needs no labels;
    a prediction whose integer target is -100 does not count. With at most 32 classes and one prediction per sample the
    sum over classes is exact, otherwise random signals stand for it (see `probe_vectors.softmax_drawn`), without bias.

    Source: Eq. 6 of the paper; temperature: its appendix C.

    Attributes:
        temperature: T, above 0.
        draws: how many random signals for each sample; None for an exact sum where it is short, else 8.
        seed: of what is drawn.
    """

    temperature: float = 1.0
    draws: int | None = None
    seed: int = 0

    distortion: ClassVar[Distortion] = KL_DIVERGENCE
    factor: ClassVar[float] = distortion.factor
    unit: ClassVar[str] = distortion.unit

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_draws(self.draws)

    @property
    def name(self) -> str:
        """`kl`, with the temperature where it is not 1."""
        return "kl" if self.temperature == 1 else f"kl(temperature={self.temperature:g})"

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
    ) -> dict[str, DiagonalForm]:
        """Estimate it for every learned tensor of a model.

        Args:
            model: the network; it is left as it was.
            data: batches.
            output: what the model returns, which has to be logits or probabilities.
            fold_norms: whether batch norms are priced as a scale and a shift.
            progress: called with ("importance", done, total) after every batch.

        Returns:
            Forms by name in the state dict. Buffers have none, unless they are a folded norm's.

        Raises:
            CalibrationError: there are no data, or they do not fit the model or this importance.
            UnsupportedModelError: the model cannot be differentiated or taken apart by sample.
        """
        return _estimate(self, model, data, output, fold_norms=fold_norms, progress=progress)

    def begin(self, model: nn.Module, *, fold_norms: bool = True) -> State:
        """Make the state before the first batch, for data that come in parts.

        Args:
            model: the network.
            fold_norms: as in `estimate`.
        """
        return begin(model, self, fold_norms=fold_norms)

    def signals(self, output: Tensor, target: Tensor | None, generator: torch.Generator) -> Signals:
        """Give the signals for logits; they stand for predictions."""
        return KL_DIVERGENCE.probe_vectors(output, target, self.temperature, self.draws, generator)


@dataclass(frozen=True)
class regression:
    """Regression importance: `e^T I e` is the mean squared distance of the outputs, to second order.

        I_i = E_x sum_o (d f_o / d w_i)^2

    The sum is over all values of a sample's output, the mean over samples. With at most 32 values it is exact,
    otherwise random signs stand for it, without bias.

    Source: Eq. 5 of the paper.

    Attributes:
        draws: how many random signals for each sample; None for an exact sum where it is short, else 8.
        seed: of what is drawn.
    """

    draws: int | None = None
    seed: int = 0

    distortion: ClassVar[Distortion] = SQUARED_ERROR
    factor: ClassVar[float] = distortion.factor
    unit: ClassVar[str] = distortion.unit

    def __post_init__(self) -> None:
        check_draws(self.draws)

    @property
    def name(self) -> str:
        """`regression`."""
        return "regression"

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
    ) -> dict[str, DiagonalForm]:
        """Estimate it for every learned tensor of a model; as `kl.estimate`, for outputs that are values."""
        return _estimate(self, model, data, output, fold_norms=fold_norms, progress=progress)

    def begin(self, model: nn.Module, *, fold_norms: bool = True) -> State:
        """Make the state before the first batch; as `kl.begin`."""
        return begin(model, self, fold_norms=fold_norms)

    def signals(self, output: Tensor, target: Tensor | None, generator: torch.Generator) -> Signals:
        """Give the signals for values; they stand for samples."""
        return SQUARED_ERROR.probe_vectors(output, target, 1.0, self.draws, generator)


@dataclass(frozen=True)
class Probes:
    """Sends back the probe vectors of any distortion, for importances that are for all kinds of output.

    Attributes:
        distortion: whose importance it is.
        temperature: of a softmax.
        draws: how many random signals for each sample, as in `kl`.
        seed: of what is drawn.
    """

    distortion: Distortion
    temperature: float
    draws: int | None
    seed: int

    @property
    def factor(self) -> float:
        """Of the forms: that of the distortion."""
        return self.distortion.factor

    @property
    def unit(self) -> str:
        """Of the forms: that of the distortion."""
        return self.distortion.unit

    def signals(self, output: Tensor, target: Tensor | None, generator: torch.Generator) -> Signals:
        """Give the signals for outputs of this kind."""
        return self.distortion.probe_vectors(output, target, self.temperature, self.draws, generator)


def of_distortion(distortion: Distortion, seed: int = 0) -> kl | regression:
    """The importance that is a distortion of the outputs, to second order.

    Args:
        distortion: which.
        seed: of what is drawn.
    """
    return next(each(seed=seed) for each in (kl, regression) if each.distortion is distortion)


def check_temperature(temperature: float) -> None:
    """Check the temperature of a softmax.

    Raises:
        UsageError: it is not a number above 0.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise UsageError(f"Temperature is {temperature}; expected a number above 0. The plain softmax has 1.")


def check_draws(draws: int | None) -> None:
    """Check the number of random signals.

    Raises:
        UsageError: there is none.
    """
    if draws is not None and draws < 1:
        raise UsageError(f"Draws is {draws}; expected at least 1, or None. Give the number of random signals.")


def needed(name: str, model: nn.Module, data: Iterable[Any] | None) -> Sequence[Any]:
    """Check that there are data; gives them as the model takes them, to be iterated over again and again.

    Raises:
        CalibrationError: there are none.
    """
    if data is None:
        raise CalibrationError(
            f"The {name} importance is measured on data, but there are none; expected batches. Pass data, or use the "
            "identity importance."
        )
    return arranged(model, as_batches(data))


def _estimate(
    importance: kl | regression,
    model: nn.Module,
    data: Iterable[Any] | None,
    output: Output | None,
    *,
    fold_norms: bool,
    progress: Progress | None,
) -> dict[str, DiagonalForm]:
    batches = needed(importance.name, model, data)
    reading = _reading(importance, model, batches, output)
    with reading.of(model):
        state = importance.begin(model, fold_norms=fold_norms)
        return run(state, reading.batches(batches), progress).forms()


def _reading(
    importance: kl | regression, model: nn.Module, batches: Sequence[Any], output: Output | None
) -> OutputReading:
    """Tell how the model's output is read; without targets the importance itself says so.

    Raises:
        CalibrationError: the importance is for other outputs.
    """
    _, target = split(next(iter(batches)))
    kind = importance.distortion.name
    found = reading_of(model, batches, kind if output is None and target is None else output)
    if found.form != kind:
        other = of_distortion(distortion_for(found.kind)).name
        raise CalibrationError(
            f"The {importance.name} importance is for outputs that are {kind}, but the data or output= say "
            f"{found.kind}; expected the {other} importance. Use it, or give output={kind!r} to the estimate."
        )
    return found
