"""Every extension point on one page: implement one of these and pass the object in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from waterfill.records import Quantized, Weight

Output: TypeAlias = Literal["logits", "values"]


class Progress(Protocol):
    """Called as work goes on."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of `stage` are finished."""
        ...


class QuadraticForm(Protocol):
    """What an error in one weight costs: `e^T I_w e`, per sample.

    With a KL importance (Eq. 6) half of it is the KL divergence in nats to second order; with a regression
    importance (Eq. 5) it is the squared error of the outputs.
    """

    def diagonal(self) -> NDArray[np.float32]:
        """The diagonal of `I_w` in normal form [out, in]."""
        ...

    def cost(self, error: NDArray[np.float32]) -> float:
        """`e^T I_w e` of an error [out, in]."""
        ...


@runtime_checkable
class Quartic(Protocol):
    """A form that also prices fourth powers: `sum_i I_i e_i^2 + H_i e_i^4` (gradient and Hessian of section 5.3)."""

    def diagonal(self) -> NDArray[np.float32]:
        """I in normal form [out, in]."""
        ...

    def quartic(self) -> NDArray[np.float32]:
        """H in normal form [out, in]."""
        ...

    def cost(self, error: NDArray[np.float32]) -> float:
        """The price of an error [out, in]."""
        ...


class Estimator(Protocol):
    """Options of an importance, as an object that can estimate it."""

    @property
    def name(self) -> str:
        """Short name for tables and files."""
        ...

    def estimate(
        self,
        model: torch.nn.Module,
        data: Iterable[Any] | None,
        output: Output | None = None,
        *,
        fold_norms: bool = True,
        progress: Progress | None = None,
    ) -> Mapping[str, QuadraticForm]:
        """One form for every tensor of `Inventory.weights`, by name in the state dict.

        Args:
            model: the network; its mode, hooks and gradients are left as they were.
            data: batches, or None where the estimator needs none.
            output: what the model returns; None to tell from the targets.
            fold_norms: whether the forms of a batch norm are those of its folded scale and shift.
            progress: called with (stage, done, total).
        """
        ...


@runtime_checkable
class DataFree(Protocol):
    """An estimator that looks only at the weights."""

    def forms(self, weights: Mapping[str, Weight]) -> Mapping[str, QuadraticForm]:
        """Forms of the weights, by name; a tensor that has none is unknown."""
        ...


class Quantizer(Protocol):
    """A search for symbols: any method, as long as its result is one of the reconstructions of the format.

    Three attributes may be there. `fixed = True` says that the result does not depend on the water level, so that there
    is one file and nothing to search. `tempered = False` says that importances are wanted as they are estimated, not
    to powers that are compared on the data. `crossed = True` says that cross terms of a form are used, so that an
    importance that has them is the default.
    """

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one weight.

        Args:
            weight: the weight in normal form.
            form: what an error costs; None when unknown.
            water_level: mean of `I_w e^2` per weight at which to work; the same for the whole model.
        """
        ...


class Metric(Protocol):
    """A quality that is measured on a model over data; larger is better."""

    def __call__(self, model: torch.nn.Module, data: Iterable[Any]) -> float:
        """Measure it."""
        ...
