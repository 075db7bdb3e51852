"""Estimators of what an error in each weight costs: frozen option objects with a method `estimate`."""

from waterfill.importance.data_free import identity, weight_scale
from waterfill.importance.fisher import kl, regression
from waterfill.importance.forms import DiagonalForm
from waterfill.importance.moments import Moments
from waterfill.importance.state import State

__all__ = ["DiagonalForm", "Moments", "State", "identity", "kl", "regression", "weight_scale"]
