"""Every extension point on one page: implement one of these and pass the object in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from waterfill.records import Layout, Quantized, Turn, Weight
from waterfill.theory.scaled_source import ScaledSource
from waterfill.theory.spectra import Products

Output: TypeAlias = Literal["logits", "values", "probabilities"]
"""What a model returns: scores of classes, real values, or probabilities of classes."""


class Progress(Protocol):
    """Called as work goes on."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of `stage` are finished."""
        ...


class QuadraticForm(Protocol):
    """What an error in one weight costs: `e^T I_w e`, per sample.

    With a KL importance (Eq. 6) half of it is the KL divergence in nats to second order; with a regression
    importance (Eq. 5) it is the squared error of the outputs.

    A form of which only `diagonal` and `cost` are there is completed where an estimator hands it over.
    """

    @property
    def factor(self) -> float:
        """By what `e^T I_w e` is multiplied to be a distortion of the model: 1/2 for second derivatives, such as KL."""
        ...

    @property
    def unit(self) -> str:
        """Unit of that distortion, for tables."""
        ...

    @property
    def has_cross_terms(self) -> bool:
        """Whether an error in one column of a matrix can be made up for in another."""
        ...

    @property
    def scale_total(self) -> float:
        """Sum over all weights of what `tempered` takes to a power."""
        ...

    def rows_of(self, rows: slice) -> QuadraticForm:
        """The form of some rows of the matrix."""
        ...

    def turned(self, basis: Turn, layout: Layout) -> QuadraticForm:
        """The form of the coefficients of a matrix of a layout in a basis."""
        ...

    def scaled(self, factor: float) -> QuadraticForm:
        """The form with every price multiplied by a factor above 0."""
        ...

    def tempered(self, mean: float, power: float) -> QuadraticForm:
        """The form with the scale s of every weight taken to a power about a mean: `mean (s / mean)^power`."""
        ...

    def shrunk(self) -> QuadraticForm:
        """The form as more samples would show it; itself where nothing is to be expected of more."""
        ...

    def products(self, source: ScaledSource, matrix: NDArray[np.float32]) -> list[Products]:
        """`component_variances` as products of one number of a row and one of a column, which take less memory."""
        ...

    def component_variances(self, source: ScaledSource, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Variances of independent components whose reverse water-filling is the limit at every distortion.

        Args:
            source: fitted to the matrix.
            matrix: the weights [out, in]; those that are known have no component, or one without variance.
        """
        ...

    def conditional_variances(
        self, source: ScaledSource, matrix: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Variances of components, each given those before it: they are cheaper, and a limit at high rates.

        Returns:
            Factors [k] and [m], whose products are the variances.
        """
        ...

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
class DataFree(Estimator, Protocol):
    """An estimator that looks only at the weights."""

    def forms(self, weights: Mapping[str, Weight]) -> Mapping[str, QuadraticForm]:
        """Forms of the weights, by name; a tensor that has none is unknown."""
        ...


class ModuleTrial(Protocol):
    """What an estimator without data found out about a module by running it."""

    @property
    def note(self) -> str:
        """One sentence about what the prices go by."""
        ...

    def forms(self, weights: Mapping[str, Weight]) -> Mapping[str, QuadraticForm]:
        """Forms of the module's weights, by name."""
        ...


@runtime_checkable
class ModuleDriven(DataFree, Protocol):
    """An estimator without data that runs the module where there is one."""

    def trial(self, model: torch.nn.Module) -> ModuleTrial:
        """See whether a copy of the module can be run."""
        ...


@dataclass(frozen=True)
class QuantizerTraits:
    """What compression has to know of a quantizer beside its method.

    Attributes:
        fixed: whether the result does not depend on the water level, so that there is one file and nothing to search.
        tempered: whether importances may be taken to powers, which are compared on the data; else they are wanted as
            they are estimated.
        uses_cross_terms: whether cross terms of a form are used, so that an importance that has them is the default.
        any_basis: whether it may be given coefficients in another basis, in which they take fewer bits; else it is for
            the weights themselves, such as zeros or a grid among them.
    """

    fixed: bool = False
    tempered: bool = True
    uses_cross_terms: bool = False
    any_basis: bool = False


class Quantizer(Protocol):
    """A search for symbols: any method, as long as its result is one of the reconstructions of the format.

    An attribute `traits`, a `QuantizerTraits`, may be there; `traits_of` reads it.
    """

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one weight.

        Args:
            weight: the weight in normal form.
            form: what an error costs; None when unknown.
            water_level: mean of `I_w e^2` per weight at which to work; the same for the whole model.
        """
        ...


def traits_of(quantizer: Quantizer) -> QuantizerTraits:
    """The traits of a quantizer: its `traits`; without any, those of the attributes that release 0.1 had for them.

    Args:
        quantizer: which may have the attributes `fixed`, `tempered` and `crossed` instead.
    """
    found = getattr(quantizer, "traits", None)
    if isinstance(found, QuantizerTraits):
        return found
    usual = QuantizerTraits()
    return QuantizerTraits(
        fixed=getattr(quantizer, "fixed", usual.fixed),
        tempered=getattr(quantizer, "tempered", usual.tempered),
        uses_cross_terms=getattr(quantizer, "crossed", usual.uses_cross_terms),
    )


class Metric(Protocol):
    """A quality that is measured on a model over data; larger is better."""

    def __call__(self, model: torch.nn.Module, data: Iterable[Any]) -> float:
        """Measure it."""
        ...
