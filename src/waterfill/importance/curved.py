"""States of importances that look at second derivatives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from waterfill.distortion.losses import Loss, Response
from waterfill.errors import CalibrationError
from waterfill.importance.bends import BendingTape
from waterfill.importance.curvature import Estimate, by_tensor, by_uses, sent
from waterfill.importance.forms import DrawnForm, DrawnQuarticForm
from waterfill.importance.moments import Moments
from waterfill.importance.plan import Method, Plan, check_output, without_series
from waterfill.importance.state import Seen, in_full_precision, methods_for, nothing
from waterfill.models.batches import Inputs, call, describe, num_samples
from waterfill.models.capture import Tape, variables

_SIGNALS_TOGETHER = 10


class Curved(Protocol):
    """What a state has to know of its importance."""

    @property
    def draws(self) -> int:
        """Independent draws for each sample, at least 2."""
        ...

    @property
    def seed(self) -> int:
        """Seed of everything that is drawn."""
        ...

    @property
    def mu(self) -> float:
        """What the forms are regularised by."""
        ...


@dataclass(frozen=True, eq=False)
class CurvatureState(Seen):
    """Sums over samples of products of derivatives of the loss, [KINDS, *shape] for every tensor.

    Attributes:
        source: the importance.
        loss: what is differentiated.
    """

    KINDS: ClassVar[int]

    source: Curved
    loss: Loss

    @classmethod
    def begin(cls, model: nn.Module, source: Curved, loss: Loss, *, fold_norms: bool) -> Self:
        """Make the state before the first batch.

        Args:
            model: the network.
            source: the importance.
            loss: what is differentiated.
            fold_norms: whether batch norms are priced as a scale and a shift.
        """
        model = in_full_precision(model)
        learned = variables(model, fold_norms=fold_norms)
        return cls(model, learned, nothing(learned, cls.KINDS), Plan(), source, loss)

    @property
    def seed(self) -> int:
        """Seed of the source."""
        return self.source.seed

    @property
    def together(self) -> int:
        """Exact signals, and two pairs for every draw."""
        return _SIGNALS_TOGETHER + 4 * self.source.draws

    @abstractmethod
    def products(self, found: Estimate) -> Sequence[tuple[Tensor, int]]:
        """What is summed: products of derivatives, and of how many gradients each is a product.

        The last of the KINDS are left out where they are zero.
        """

    def check(self, response: Response, output: Tensor) -> None:
        """Check that these outputs have what is summed."""

    def planned(self, inputs: Inputs, index: int | None) -> Plan:
        """The plan, in which tensors used in series have a method of their own."""
        plan = super().planned(inputs, index)
        return plan if plan is self.plan else without_series(plan, self.model, self.learned, inputs)

    def measure(self, inputs: Inputs, target: Tensor | None, generator: torch.Generator, index: int | None) -> Moments:
        """Sum over a few samples; attention by plain products, since fused kernels have no second derivatives."""
        with sdpa_kernel(SDPBackend.MATH):
            samples = num_samples(inputs)
            tape = BendingTape(self.learned)
            with tape:
                output = call(self.model, inputs, index=index)
            check_output(output, samples)
            response = self.loss(output.detach(), target)
            self.check(response, output)
            goes_back = sent(response, output, self.source.draws, generator)
            methods = self._methods(tape, output, samples)
            sums = nothing(self.learned, self.KINDS).sums
            for name, found in chain(
                by_uses(tape, methods, output, samples, goes_back),
                by_tensor(self.model, self.learned, methods, inputs, goes_back),
            ):
                for total, (product, power) in zip(sums[name], self.products(found.estimate()), strict=False):
                    total += found.block.total(product, power)
        return Moments(sums, response.count)

    def _methods(self, tape: Tape, output: Tensor, samples: int) -> Mapping[str, Method]:
        methods = methods_for(self.plan, self.learned, tape, output, samples)
        unforeseen = [name for name in tape.in_series() if methods.get(name) in ("major", "minor")]
        return {**methods, **dict.fromkeys(unforeseen, "loop")}

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Means so far in normal form, [KINDS, out, in], by name.

        Raises:
            CalibrationError: nothing was seen.
        """
        self.moments.check()
        count, layouts = self.moments.count, self.learned.layouts
        return {
            name: np.stack([layouts[name].to_matrix(each.cpu().numpy() / count) for each in total])
            for name, total in self.moments.sums.items()
        }


@dataclass(frozen=True, eq=False)
class HessianState(CurvatureState):
    """Sums of second derivatives, and of the variances of what was drawn for them."""

    KINDS = 2

    def products(self, found: Estimate) -> Sequence[tuple[Tensor, int]]:
        """Second derivatives and variances."""
        return [(found.curvature, 2), *([(found.noise, 4)] if len(found.draws) else [])]

    def forms(self) -> dict[str, DrawnForm]:
        """Means so far, by name.

        Raises:
            CalibrationError: nothing was seen.
        """
        count = self.moments.count
        return {
            name: DrawnForm(
                curvature.astype(np.float32), _error(noise, count), count, factor=0.5, unit="loss"
            ).regularised(self.source.mu)
            for name, (curvature, noise) in self.means().items()
        }


@dataclass(frozen=True, eq=False)
class QuarticState(CurvatureState):
    """Sums of squared first and of squared second derivatives, and of the variances of what was drawn for these.

    The square of a mean of draws is too large in expectation, by the variance of that mean. Its estimate is taken off,
    which leaves the mean product of two different draws.
    """

    KINDS = 3

    def products(self, found: Estimate) -> Sequence[tuple[Tensor, int]]:
        """Squares of first and second derivatives, and the variances of the latter."""
        drawn = [(found.square_noise, 8)] if len(found.draws) else []
        return [(found.slope.square(), 2), (found.square, 4), *drawn]

    def check(self, response: Response, output: Tensor) -> None:
        """Check that each sample has one prediction: the square of a sum is not the sum of squares.

        Raises:
            CalibrationError: it has more.
        """
        if not response.single:
            raise CalibrationError(
                f"The model returns {describe(output)}, several predictions for each sample; expected one, since the "
                "gradient_hessian importance squares the second derivative of every prediction. Use the gradient or "
                "the hessian importance."
            )

    def forms(self) -> dict[str, DrawnQuarticForm]:
        """Means so far, by name.

        Raises:
            CalibrationError: nothing was seen.
        """
        count = self.moments.count
        forms = {}
        for name, (slopes, squares, noise) in self.means().items():
            values, fourth = slopes.astype(np.float32), (squares / 4).astype(np.float32)
            form = DrawnQuarticForm(values, fourth, _error(noise / 16, count), count)
            forms[name] = form.regularised(self.source.mu)
        return forms


def _error(noise: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """Standard errors of means over samples, of which `noise` is the mean variance; below zero it is chance."""
    return np.sqrt(np.maximum(noise, 0) / count).astype(np.float32)
