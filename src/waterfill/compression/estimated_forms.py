"""Forms of estimators, as compressing needs them: in one unit, finite, not negative, as more positions show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import nn

import waterfill.importance as importances
from waterfill.compression.settings import Settings
from waterfill.distortion import Distortion
from waterfill.errors import CalibrationError, UsageError
from waterfill.importance.data_free import LARGEST
from waterfill.importance.forms import DiagonalForm
from waterfill.protocols import DataFree, Estimator, ModuleDriven, QuadraticForm, Quartic
from waterfill.records import Floats, Inventory, Weight

WEIGHTS_ALONE = "No data were given, and no module: errors are priced by the sizes of rows and tensors."
"""Said where only weights are known."""


def without_module(settings: Settings) -> DataFree:
    """An estimator that needs weights alone; the default where none is given, which a note says.

    Raises:
        CalibrationError: it needs data.
    """
    if settings.importance is None:
        settings.notes.add(WEIGHTS_ALONE)
    found = settings.importance or importances.row_scale()
    if not isinstance(found, DataFree):
        raise CalibrationError(f"Importance {found.name} is estimated on data, but there are none; pass data.")
    return found


def forms_by_running(
    estimator: ModuleDriven, model: nn.Module | None, inventory: Inventory, settings: Settings
) -> Callable[[], Mapping[str, QuadraticForm]]:
    """Make what gives the forms by running a module without data; a note says what they go by."""
    if model is None:
        settings.notes.add(WEIGHTS_ALONE)
        return lambda: data_free_forms(estimator, inventory.weights)
    trial = estimator.trial(model)
    settings.notes.add(trial.note)
    return lambda: trial.forms(inventory.weights)


def data_free_forms(estimator: DataFree, weights: Mapping[str, Weight]) -> dict[str, QuadraticForm]:
    """Estimate the forms of some weights by an estimator that looks at them alone."""
    return {name: importances.completed(form) for name, form in estimator.forms(weights).items()}


def free_form(weight: Weight, distortion: Distortion) -> QuadraticForm:
    """A form by which no error costs anything, in the unit of a distortion."""
    return DiagonalForm(np.zeros(weight.matrix.shape, np.float32), factor=distortion.factor, unit=distortion.unit)


def checked_forms(estimator: Estimator, found: Mapping[str, QuadraticForm]) -> dict[str, QuadraticForm]:
    """Check the forms of an estimator, and give them as more positions would show them.

    Raises:
        CalibrationError: a coefficient is not finite, too large, or negative.
        UsageError: they are in several units.
    """
    forms = {name: importances.completed(form) for name, form in found.items()}
    _check_units(estimator, forms)
    for name, form in forms.items():
        _check(form.diagonal(), f"Importance {estimator.name} of tensor {name!r}")
        if isinstance(form, Quartic):
            _check(form.quartic(), f"The fourth power of importance {estimator.name} of tensor {name!r}")
    return {name: form.shrunk() for name, form in forms.items()}


def _check_units(estimator: Estimator, forms: Mapping[str, QuadraticForm]) -> None:
    """Check that all forms price errors in one unit, for they are added up.

    Raises:
        UsageError: they do not.
    """
    units = list(dict.fromkeys((form.unit, form.factor) for form in forms.values()))
    if len(units) > 1:
        (unit, factor), (other, another) = units[:2]
        raise UsageError(
            f"Forms of the importance {estimator.name} are in {unit!r} (factor {factor:g}) and {other!r} (factor "
            f"{another:g}); expected one unit, in which errors of all tensors add up. Give all of them the same."
        )


def _check(values: Floats, what: str) -> None:
    """Check the coefficients of a form.

    Raises:
        CalibrationError: some are not finite, so large that products with weights are not, or negative.
    """
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"{what} is NaN or infinite on the data; expected finite gradients. Check the range of the data and of the "
            "weights, or use weight_scale()."
        )
    if float(values.max(initial=0.0)) > LARGEST:
        raise CalibrationError(
            f"{what} is {float(values.max()):.2g} on the data; expected at most {LARGEST:g}, for products with weights "
            "are then finite. Check the range of the data and of the weights, or use weight_scale()."
        )
    negative = int((values < 0).sum())
    if negative:
        raise CalibrationError(
            f"{what} is negative for {negative} of {values.size} weights; expected none, or the search would seek "
            "errors there. Use kl() or gradient(), or outweigh them by hessian(mu=...) or gradient_hessian(mu=...)."
        )
