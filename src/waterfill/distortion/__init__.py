"""How far outputs are from those of the original: one object for every kind of output, with all that depends on it."""

from waterfill.distortion.base import Distortion, Measures
from waterfill.distortion.kl_divergence import KL_DIVERGENCE, divergence
from waterfill.distortion.squared_error import SQUARED_ERROR
from waterfill.protocols import Output

__all__ = [  # noqa: RUF022 - in plain order, as everywhere
    "Distortion",
    "KL_DIVERGENCE",
    "Measures",
    "SQUARED_ERROR",
    "distortion_for",
    "divergence",
]

_BY_OUTPUT: dict[Output, Distortion] = {
    "logits": KL_DIVERGENCE,
    "values": SQUARED_ERROR,
    "probabilities": KL_DIVERGENCE,  # they are read as logits, see `OutputReading`
}


def distortion_for(output: Output) -> Distortion:
    """The distortion of a kind of output.

    Args:
        output: the kind, such as `OutputReading.kind` tells it.
    """
    return _BY_OUTPUT[output]
