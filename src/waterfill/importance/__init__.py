"""Estimators of what an error in each weight costs: frozen option objects with a method `estimate`."""

from waterfill.importance.data_free import identity, row_scale, weight_scale
from waterfill.importance.factored import KroneckerForm, UnfactoredForm, has_cross_terms
from waterfill.importance.fisher import kl, of_distortion, regression
from waterfill.importance.forms import COST_UNIT, DiagonalForm, DrawnForm, DrawnQuarticForm, QuarticForm, completed
from waterfill.importance.kronecker import kronecker
from waterfill.importance.moments import Moments
from waterfill.importance.random_inputs import random_inputs
from waterfill.importance.state import State
from waterfill.importance.supervised import gradient, gradient_hessian, hessian

__all__ = [
    "COST_UNIT",
    "DiagonalForm",
    "DrawnForm",
    "DrawnQuarticForm",
    "KroneckerForm",
    "Moments",
    "QuarticForm",
    "State",
    "UnfactoredForm",
    "completed",
    "gradient",
    "gradient_hessian",
    "has_cross_terms",
    "hessian",
    "identity",
    "kl",
    "kronecker",
    "of_distortion",
    "random_inputs",
    "regression",
    "row_scale",
    "weight_scale",
]
