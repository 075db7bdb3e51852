"""Estimators of what an error in each weight costs: frozen option objects with a method `estimate`."""

from waterfill.importance.data_free import identity, weight_scale
from waterfill.importance.factored import KroneckerForm, UnfactoredForm
from waterfill.importance.fisher import kl, regression
from waterfill.importance.forms import DiagonalForm, DrawnForm, DrawnQuarticForm, QuarticForm
from waterfill.importance.kronecker import kronecker
from waterfill.importance.moments import Moments
from waterfill.importance.state import State
from waterfill.importance.supervised import gradient, gradient_hessian, hessian

__all__ = [
    "DiagonalForm",
    "DrawnForm",
    "DrawnQuarticForm",
    "KroneckerForm",
    "Moments",
    "QuarticForm",
    "State",
    "UnfactoredForm",
    "gradient",
    "gradient_hessian",
    "hessian",
    "identity",
    "kl",
    "kronecker",
    "regression",
    "weight_scale",
]
