"""The limits: one function is one equation of the paper or of its correction, over float64 arrays; rates in bits."""

from waterfill.theory.gaussian import (
    GaussianTestChannel,
    distortion_at_rate,
    linear_lower_bound,
    linear_rate_distortion,
)
from waterfill.theory.generalization import generalization_bound
from waterfill.theory.golden_rules import golden_rules
from waterfill.theory.kronecker import KroneckerTestChannel, kronecker_rate_distortion
from waterfill.theory.shannon_bound import lemma1, shannon_lower_bound
from waterfill.theory.symmetry import permutation_bits
from waterfill.theory.waterfilling import WaterLevels, weighted_waterfilling

__all__ = [
    "GaussianTestChannel",
    "KroneckerTestChannel",
    "WaterLevels",
    "distortion_at_rate",
    "generalization_bound",
    "golden_rules",
    "kronecker_rate_distortion",
    "lemma1",
    "linear_lower_bound",
    "linear_rate_distortion",
    "permutation_bits",
    "shannon_lower_bound",
    "weighted_waterfilling",
]
