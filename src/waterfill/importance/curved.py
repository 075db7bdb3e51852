"""States of importances that look at second derivatives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from waterfill.errors import CalibrationError
from waterfill.importance.curvature import Estimate, by_tensor, by_uses, sent
from waterfill.importance.forms import DrawnForm, QuarticForm
from waterfill.importance.losses import Loss, Response
from waterfill.importance.moments import Moments
from waterfill.importance.plan import Method, Plan, check_output, without_series
from waterfill.importance.state import Seen, methods_for, nothing
from waterfill.models.batches import Inputs, call, describe, num_samples
from waterfill.models.capture import Tape

_SIGNALS_TOGETHER = 10
_KINDS = 2


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


@dataclass(frozen=True, eq=False)
class CurvatureState(Seen):
    """Sums over samples of products of derivatives of the loss, [2, *shape] for every tensor.

    Attributes:
        source: the importance.
        loss: what is differentiated.
    """

    source: Curved
    loss: Loss

    @property
    def seed(self) -> int:
        """Seed of the source."""
        return self.source.seed

    @property
    def together(self) -> int:
        """Exact signals, and two for every draw."""
        return _SIGNALS_TOGETHER + 2 * self.source.draws

    @abstractmethod
    def products(self, found: Estimate) -> Sequence[tuple[Tensor, int]]:
        """What is summed: products of derivatives, and of how many gradients each is a product."""

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
            tape = Tape(self.learned)
            with tape:
                output = call(self.model, inputs, index=index)
            check_output(output, samples)
            response = self.loss(output.detach(), target)
            self.check(response, output)
            goes_back = sent(response, output, self.source.draws, generator)
            methods = self._methods(tape, output, samples)
            sums = nothing(self.learned, _KINDS).sums
            for name, found in chain(
                by_uses(tape, methods, output, samples, goes_back),
                by_tensor(self.model, self.learned, methods, inputs, goes_back),
            ):
                for total, (product, power) in zip(sums[name], self.products(found.estimate()), strict=True):
                    total += found.block.total(product, power).cpu()
        return Moments(sums, response.count)

    def _methods(self, tape: Tape, output: Tensor, samples: int) -> Mapping[str, Method]:
        methods = methods_for(self.plan, self.learned, tape, output, samples)
        unforeseen = [name for name in tape.in_series() if methods.get(name) in ("major", "minor")]
        return {**methods, **dict.fromkeys(unforeseen, "loop")}

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Means so far in normal form, [2, out, in], by name.

        Raises:
            CalibrationError: nothing was seen.
        """
        self.moments.check()
        return {
            name: np.stack([self.learned.layouts[name].to_matrix(each.numpy() / self.moments.count) for each in total])
            for name, total in self.moments.sums.items()
        }


@dataclass(frozen=True, eq=False)
class HessianState(CurvatureState):
    """Sums of second derivatives, and of the variances of what was drawn for them.

    Attributes:
        mu: what is added to their mean-normalised diagonal.
    """

    mu: float

    def products(self, found: Estimate) -> Sequence[tuple[Tensor, int]]:
        """Second derivatives and variances."""
        return (found.curvature, 2), (found.noise, 4)

    def forms(self) -> dict[str, DrawnForm]:
        """Means so far, by name.

        Raises:
            CalibrationError: nothing was seen.
        """
        forms = {}
        for name, (curvature, noise) in self.means().items():
            added = self.mu * np.abs(curvature).mean() if curvature.size else 0.0
            errors = np.sqrt(noise / self.moments.count)
            forms[name] = DrawnForm(
                (curvature + added).astype(np.float32), errors.astype(np.float32), self.moments.count
            )
        return forms


@dataclass(frozen=True, eq=False)
class QuarticState(CurvatureState):
    """Sums of squared first and of squared second derivatives.

    The square of a mean of draws is too large in expectation, by the variance of that mean. Its estimate is taken off,
    which leaves the mean product of two different draws.
    """

    def products(self, found: Estimate) -> Sequence[tuple[Tensor, int]]:
        """Squares of first and second derivatives."""
        return (found.slope.square(), 2), (found.curvature.square() - found.noise, 4)

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

    def forms(self) -> dict[str, QuarticForm]:
        """Means so far, by name.

        Raises:
            CalibrationError: nothing was seen.
        """
        return {
            name: QuarticForm(slopes.astype(np.float32), (curvatures / 4).astype(np.float32))
            for name, (slopes, curvatures) in self.means().items()
        }
