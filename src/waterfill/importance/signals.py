"""Signals to send back from the outputs, so that squared gradients add up to an importance.

The importances of the paper have the form `I = E[J^T C J]`, with J the derivative of a sample's outputs by the weights
and C a matrix over its outputs. Signals u with `sum u u^T = C` (or in expectation) give the diagonal as
`E sum (J^T u)^2`: one backward pass each. Every function here returns an iterator of signals of the shape of the
outputs, in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

EXACT_SIGNALS = 32
"""Most signals that are sent exactly; beyond them signals are drawn."""


def softmax_exact(rows: Tensor, temperature: float) -> Iterator[Tensor]:
    """Signals whose squares add up to the covariance of the classes under the model, exactly.

    With `f = softmax(z / T)` and `d log f_c / dz = (e_c - f) / T`, Eq. 6 is the form of

        C = sum_c f_c (e_c - f) (e_c - f)^T / T^2 = (diag(f) - f f^T) / T^2,

    which has rank `classes - 1`; the signals are the columns of its Cholesky factor. With `r_k = sum_{j > k} f_j`
    column k has `sqrt(f_k r_k / r_{k-1})` at k, and `-f_j / r_k` times that at j > k: no differences, so nothing is
    lost when one class has nearly all the probability.

    Args:
        rows: logits [predictions, classes].
        temperature: T.

    Yields:
        `classes - 1` signals [predictions, classes].
    """
    f = (rows.double() / temperature).softmax(-1)
    rest = f.flip(-1).cumsum(-1).flip(-1)
    for k in range(rows.shape[-1] - 1):
        ahead = rest[:, k + 1 :]
        pivot = (f[:, k] * ahead[:, 0] / rest[:, k].clamp_min(torch.finfo(f.dtype).tiny)).sqrt() / temperature
        signal = torch.zeros_like(f)
        signal[:, k] = pivot
        signal[:, k + 1 :] = -pivot[:, None] * f[:, k + 1 :] / ahead[:, :1].clamp_min(torch.finfo(f.dtype).tiny)
        yield signal


def softmax_drawn(rows: Tensor, temperature: float, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random signals whose squares add up to the same covariance in expectation.

    With independent signs s, `u = sqrt(f) * s - f <sqrt(f), s>` has `E u u^T = diag(f) - f f^T`. All classes speak in
    every draw, so that the estimate is as good for a network that is nearly certain; drawing classes from f would
    mostly draw the certain one, whose gradient is nearly zero. Signs of different predictions are independent, so the
    cross terms between the positions of a sequence vanish in expectation.

    Args:
        rows: logits [predictions, classes].
        temperature: T.
        draws: number of signals.
        generator: source of the signs, on the CPU.

    Yields:
        `draws` signals [predictions, classes].
    """
    f = (rows.double() / temperature).softmax(-1)
    root = f.sqrt()
    for _ in range(draws):
        spoken = root * signs(f, generator)
        yield (spoken - f * (root * signs_of(spoken)).sum(-1, keepdim=True)) / (temperature * math.sqrt(draws))
