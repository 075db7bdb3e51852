"""A bound on what a compressed network has learnt of its training data alone, from the length of its file."""

from __future__ import annotations

from math import log, sqrt

from waterfill.theory.checks import number, whole


def generalization_bound(bits: float, samples: int, sub_gaussian: float) -> float:
    """Bound the mean of test loss minus training loss: `sqrt(2 sigma^2 ln 2 * bits / N)`.

    A file that is made of a trained network, and of nothing else, has `I(S; W_hat) <= min(I(S; W), I(W; W_hat))`, and
    no more than its length. Compression lowers the bound while the training loss rises.

    Args:
        bits: `I(S; W_hat)`, or the length of the file.
        samples: N, at least 1.
        sub_gaussian: sigma, such that the loss of a fixed network on a random sample is sigma-sub-Gaussian; half of
            the range of a bounded loss.

    Raises:
        UsageError: an argument is negative or not finite, or there is no sample.

    Source:
        Xu and Raginsky 2017, "Information-theoretic analysis of generalization capability of learning algorithms"; Bu,
        Gao, Zou and Veeravalli 2020, "Information-theoretic understanding of population risk improvement with model
        compression" (arXiv 1901.09421).

    Example:
        >>> round(generalization_bound(1000, 60_000, 0.5), 4)  # error rates
        0.076
    """
    nats = log(2) * number("bits", bits)
    return number("sub_gaussian", sub_gaussian) * sqrt(2 * nats / whole("samples", samples, 1))
