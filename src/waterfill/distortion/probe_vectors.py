"""Signals to send back from the outputs, so that squared gradients add up to an importance.

The importances of the paper have the form `I = E[J^T C J]`, with J the derivative of a sample's outputs by the weights
and C a matrix over its outputs. Signals u with `sum u u^T = C` (or in expectation) give the diagonal as
`E sum (J^T u)^2`: one backward pass each. Every function here returns an iterator of signals of the shape of the
outputs, in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_SIGNALS = 32
"""Most signals that are sent exactly; beyond them signals are drawn."""

DRAWS = 8
"""Signals drawn for each sample where there are too many to send exactly."""


@dataclass(frozen=True, eq=False)
class Signals:
    """What is sent back from an output.

    Attributes:
        sent: the signals, each of the shape of the output.
        number: how many there are.
        count: the number of predictions or samples that they stand for.
        drawn: whether they are random.
    """

    sent: Iterator[Tensor]
    number: int
    count: int
    drawn: bool = False


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
    root = f.sqrt() / (temperature * math.sqrt(draws))
    for _ in range(draws):
        spoken = root * random_signs(root, generator)
        yield spoken - f * spoken.sum(-1, keepdim=True)


def values_exact(rows: Tensor) -> Iterator[Tensor]:
    """One signal for every output: Eq. 5, whose C is the identity.

    Args:
        rows: outputs [samples, values].

    Yields:
        `values` signals [samples, values].
    """
    for k in range(rows.shape[-1]):
        signal = torch.zeros_like(rows, dtype=torch.float64)
        signal[:, k] = 1
        yield signal


def values_drawn(rows: Tensor, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random signs s, for which `E s s^T` is the identity.

    Args:
        rows: outputs [samples, values].
        draws: number of signals.
        generator: source of the signs, on the CPU.

    Yields:
        `draws` signals [samples, values].
    """
    for _ in range(draws):
        yield random_signs(rows.double(), generator) / math.sqrt(draws)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw 1 or -1 with equal probability, of the shape, type and device of `like`."""
    bits = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(like)
