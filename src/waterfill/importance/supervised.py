"""The importances of the paper that know the labels: first and second derivatives of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from waterfill.distortion import distortion_for
from waterfill.distortion.losses import Loss
from waterfill.distortion.probe_vectors import DRAWS, Signals
from waterfill.errors import CalibrationError, UsageError
from waterfill.importance.curved import HessianState, QuarticState
from waterfill.importance.fisher import check_draws, check_temperature, needed
from waterfill.importance.forms import COST_UNIT, DiagonalForm, DrawnForm, DrawnQuarticForm, check_mu
from waterfill.importance.state import State, begin, run
from waterfill.models.batches import split
from waterfill.models.output_reading import OutputReading
from waterfill.models.output_rules import reading_of
from waterfill.models.surroundings import in_ordinary_surroundings
from waterfill.protocols import Output, Progress
from waterfill.threads import one_thread


@dataclass(frozen=True)
class gradient:
    """Gradient importance, `I_i = E (dL / d w_i)^2`: the empirical Fisher information.

    L is the cross-entropy of the right class under `softmax(z / T)`, for values the squared error `|f - y|^2`. The mean
    is over predictions, of which those with the target -100 do not count. It is exact with one prediction per sample;
    with several, random signs for each keep their cross terms out, without bias. If the labels are as probable as the
    model says, it is `kl` in expectation; a network that is right and certain has hardly any gradient at T = 1.

    Source: objective "gradient" of the paper, section 6; temperature: its appendix C.

    Attributes:
        temperature: T, above 0.
        draws: how many random signals for each sample with several predictions.
        seed: of what is drawn.
    """

    temperature: float = 1.0
    draws: int = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_draws(self.draws)

    @property
    def name(self) -> str:
        """`gradient`, with the temperature where it is not 1."""
        return _named("gradient", temperature=(self.temperature, 1.0))

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
            data: batches of (input, target).
            output: what the model returns; None to tell from the targets.
            fold_norms: whether batch norms are priced as a scale and a shift.
            progress: called with ("importance", done, total) after every batch.

        Returns:
            Forms by name in the state dict. Buffers have none, unless they are a folded norm's.

        Raises:
            CalibrationError: there are no data or no targets, or they do not fit the model.
            UnsupportedModelError: the model cannot be differentiated or taken apart by sample.
        """
        batches = needed(self.name, model, data)
        reading = _reading(self.name, model, batches, output)
        with reading.of(model):
            state = self.begin(model, reading.form, fold_norms=fold_norms)
            return run(state, reading.batches(batches), progress).forms()

    def begin(self, model: nn.Module, output: Output = "logits", *, fold_norms: bool = True) -> State:
        """Make the state before the first batch, for data that come in parts.

        Args:
            model: the network.
            output: what it returns.
            fold_norms: as in `estimate`.
        """
        return begin(model, _Slope(_loss(output, self.temperature), self.draws, self.seed), fold_norms=fold_norms)


@dataclass(frozen=True)
class hessian:
    """Hessian importance, `I_i = E d2L / d w_i^2`: the diagonal that optimal brain damage prunes by.

    L is that of `gradient`. For networks that are piecewise linear in each weight (ReLU, max-pool, norms in evaluation
    mode) it is exactly `kl` at the same temperature, whatever the labels; then nothing is drawn for up to 32 classes.
    Otherwise the part from curved functions is drawn at random, without bias, and the forms carry the standard error of
    every entry. The curvature of elementwise functions (tanh, sigmoid, GELU, SiLU, softplus, ELU and the like) is sent
    back on its own, with noise from the weight's own influence only; that of everything else, such as attention, layer
    norms and products of activations, by exact products, with noise from all layers (see `curvature`). Look at the
    errors: 2 to 31 % of the entries for a small trained network of convolutions, norms and GELU at 256 images and 8
    draws, but more than the entries themselves where the model is wrong and certain, or deep and not elementwise.
    Networks with fused layers that autograd cannot differentiate twice are refused.

    Entries may be negative, where the loss curves down along a weight or by the noise of an entry that is nearly zero.
    Sorted by `I_i w_i^2`, such weights are pruned first: the form says that an error gains, which holds for small
    errors only. Clusters of k-means are contiguous, and their centroids means, only where no entry is negative;
    compression refuses forms with negative entries. A `mu` that outweighs them, or zero in their place, makes the form
    usable.

    Source: objective "hessian" of the paper, section 6; temperature and `mu`: its appendix C.

    Attributes:
        temperature: T, above 0.
        draws: independent draws for each sample of what is not exact, at least 2.
        seed: of what is drawn.
        mu: times the mean of the absolute diagonal of a tensor is added to it, see `DiagonalForm.regularised`.
    """

    temperature: float = 1.0
    draws: int = DRAWS
    seed: int = 0
    mu: float = 0.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        _check_pairs(self.draws)
        check_mu(self.mu)

    @property
    def name(self) -> str:
        """`hessian`, with the temperature where it is not 1 and mu where it is not 0."""
        return _named("hessian", temperature=(self.temperature, 1.0), mu=(self.mu, 0.0))

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
    ) -> dict[str, DrawnForm]:
        """Estimate it for every learned tensor of a model; as `gradient.estimate`."""
        batches = needed(self.name, model, data)
        reading = _reading(self.name, model, batches, output)
        with reading.of(model):
            state = self.begin(model, reading.form, fold_norms=fold_norms)
            return run(state, reading.batches(batches), progress).forms()

    def begin(self, model: nn.Module, output: Output = "logits", *, fold_norms: bool = True) -> HessianState:
        """Make the state before the first batch; as `gradient.begin`."""
        return HessianState.begin(model, self, _loss(output, self.temperature), fold_norms=fold_norms)


@dataclass(frozen=True)
class gradient_hessian:
    """Both derivatives, for errors that are not small: `sum_i E(dL/dw_i)^2 e_i^2 + 1/4 E(d2L/dw_i^2)^2 e_i^4`.

    It is the mean square of the change of the loss, `dL/dw_i e_i + 1/2 d2L/dw_i^2 e_i^2`, weight by weight, without the
    product of the two terms. L and its derivatives are those of `gradient` and `hessian`. Where the second one is drawn
    its square is taken as the product of different draws, so that noise does not raise it; that is without bias, has a
    standard error in the form, and is negative here and there by chance. Searches need a convex form: `mu` outweighs
    such entries, and `QuarticForm.clipped` puts zero in their place.

    What compression does with it: `KMeans`, `Prune` and `Threshold` price both powers. `Scalar` rounds by the squares
    alone, so that its file is that of `gradient`; its steps are small where fourth powers would count, and it tempers
    the squares instead (see `allocate.temper`). The loss of each tensor in the report has both. Forms with a negative
    entry are refused, whatever reads them; those of piecewise linear networks have none.

    Source: objective "gradient+hessian" of the paper, section 6, and its Algorithm 2.

    Attributes:
        temperature: T, above 0.
        draws: independent draws for each sample of what is not exact, at least 2.
        seed: of what is drawn.
        mu: times the mean of the absolute fourth-power coefficients of a tensor is added to them.
    """

    temperature: float = 1.0
    draws: int = DRAWS
    seed: int = 0
    mu: float = 0.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        _check_pairs(self.draws)
        check_mu(self.mu)

    @property
    def name(self) -> str:
        """`gradient_hessian`, with the temperature where it is not 1 and mu where it is not 0."""
        return _named("gradient_hessian", temperature=(self.temperature, 1.0), mu=(self.mu, 0.0))

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
    ) -> dict[str, DrawnQuarticForm]:
        """Estimate it for every learned tensor of a model with one prediction per sample; as `gradient.estimate`."""
        batches = needed(self.name, model, data)
        reading = _reading(self.name, model, batches, output)
        with reading.of(model):
            state = self.begin(model, reading.form, fold_norms=fold_norms)
            return run(state, reading.batches(batches), progress).forms()

    def begin(self, model: nn.Module, output: Output = "logits", *, fold_norms: bool = True) -> QuarticState:
        """Make the state before the first batch; as `gradient.begin`."""
        return QuarticState.begin(model, self, _loss(output, self.temperature), fold_norms=fold_norms)


@dataclass(frozen=True)
class _Slope:
    """Sends back the derivative of a loss."""

    loss: Loss
    draws: int
    seed: int

    factor: ClassVar[float] = 1.0
    unit: ClassVar[str] = COST_UNIT

    def signals(self, output: Tensor, target: Tensor | None, generator: torch.Generator) -> Signals:
        """Give it, times random signs for predictions that share a sample."""
        response = self.loss(output, target)
        if response.single:
            return Signals(iter([response.gradient]), 1, response.count)
        scaled = response.gradient / math.sqrt(self.draws)
        sent = (scaled * response.signs(generator) for _ in range(self.draws))
        return Signals(sent, self.draws, response.count)


def _loss(output: Output, temperature: float) -> Loss:
    return distortion_for(output).labelled_loss(temperature)


def _reading(name: str, model: nn.Module, batches: Iterable[Any], output: Output | None) -> OutputReading:
    """Tell how the model's output is read.

    Raises:
        CalibrationError: there are no targets.
    """
    _, target = split(next(iter(batches)))
    if target is None:
        raise CalibrationError(
            f"The {name} importance compares outputs with the right answer, but the first batch has no target; "
            "expected batches of (input, target). Give targets, or use the kl or regression importance."
        )
    return reading_of(model, batches, output)


def _check_pairs(draws: int) -> None:
    if draws < 2:
        raise UsageError(f"Draws is {draws}; expected at least 2. Their differences tell the standard error.")


def _named(name: str, **options: tuple[float, float]) -> str:
    """The name with every option that is not the default, given as (value, default)."""
    said = [f"{option}={value:g}" for option, (value, default) in options.items() if value != default]
    return f"{name}({', '.join(said)})" if said else name
