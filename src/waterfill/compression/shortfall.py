"""What a target did not get: a file far from what was asked, or one of zeros, and why."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from waterfill.compression.target import Target
from waterfill.errors import TargetError
from waterfill.records import Codebook, Quantized, Relative, Uniform

FAR = 0.05
"""A file that is smaller than its target by more than this fraction says so."""

FAR_BELOW = 0.5
"""A distortion below its target by this factor says so."""

SATURATED = 50.0
"""Lead of the best logit from which on no error in single precision shows."""

CONSTANT = (
    "The compressed model answers all samples of a batch alike: nothing that tells them apart is left. Ask for more."
)
"""What is said of such a file."""

HEADER_BITS = 1.0
"""From this rate on it is spent beside the header where that alone takes more."""

ZEROED = "Every matrix is zero in this file: nothing of the model is left but vectors and what is stored without loss."
"""What is said of such a file."""


def is_zero(quantized: Quantized) -> bool:
    """Whether all values of a matrix are zero by their symbols."""
    rule = quantized.rule
    around_zero = not isinstance(rule, Codebook | Relative) and not (isinstance(rule, Uniform) and rule.offset)
    return around_zero and not quantized.symbols.any()


def shortfall_of_size(limit: float, size: int, finer: int | None = None, *, is_finest: bool) -> str:
    """Say that a file is far smaller than it might be; empty where it is not.

    Args:
        limit: bytes that the target allows.
        size: of the file.
        finer: bytes of the next finer file that was tried and is too large; None where there was none.
        is_finest: whether the file has the finest steps that there are.
    """
    if size >= limit * (1 - FAR):
        return ""
    why = "no finer one was found that fits" if finer is None else f"the next finer one takes {finer:,}"
    why = "its steps are the finest there are" if is_finest else why
    return f"The target of {limit:,.0f} bytes is not reached, the file has {size:,}: {why}."


def saturation(rows: Iterable[Tensor]) -> str:
    """Say that the original is so certain that KL divergence hardly tells errors; empty where it is not.

    Args:
        rows: logits of the original, [predictions, classes] for every batch.
    """
    gaps = [gap_of_best_two(each) for each in rows if each.shape[-1] > 1]
    if not gaps or float(torch.cat(gaps).median()) < SATURATED:
        return ""
    return (
        f"The logits are saturated: in half of the predictions the best class leads by more than {SATURATED:g}, so "
        "that no divergence shows an error before a class changes, and then it is huge. Scale the logits, or ask for "
        "output='values'."
    )


def gap_of_best_two(logits: Tensor) -> Tensor:
    """By how much the largest logit leads the next one, for every prediction of logits [predictions, classes]."""
    best = logits.double().topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


def is_constant(outputs: Tensor, reference: Tensor) -> bool:
    """Whether outputs are the same for all samples of a batch [samples, ...], and those of the original are not."""
    same = bool((outputs == outputs[:1]).all())
    return same and not bool((reference == reference[:1]).all())


def shortfall_of_quality(target: Target, loss: float, coarser: float | None) -> str:
    """Say that a file is far better than a target of quality asks; empty where it is not.

    Args:
        target: of quality.
        loss: of the file.
        coarser: the least loss of a smaller file that was tried and loses too much; None where there was none.
    """
    if target.name != "distortion" or loss >= FAR_BELOW * target.value or coarser is None:
        return ""
    return (
        f"The distortion is {loss:.3g}, far below the {target.value:.3g} that was allowed: the next smaller file that "
        f"was found has {coarser:.3g}."
    )


def rate_beside_header(limit: float, floor: int, rate: float) -> str:
    """Say that a rate was spent beside a header that is larger than what it allows.

    Args:
        limit: bytes that the rate allows for the whole file.
        floor: bytes of the file in which every matrix is zero.
        rate: bits per value.
    """
    return (
        f"The rate of {rate:g} allows {limit:,.0f} bytes, of which nothing is left beside the header of so small a "
        f"model: with every matrix zero the file has {floor:,}. The rate was spent beside these."
    )


def zeroed_by(target: Target, loss: float) -> str:
    """Say that a target of quality allows to zero every matrix.

    Args:
        target: of quality.
        loss: of the file in which every matrix is zero.
    """
    what = "loss of quality" if target.name == "tolerance" else target.name
    return f"{ZEROED} Its {what} is {loss:.3g}, and {target.value:.3g} was allowed."


def check_tolerance(target: Target, accuracy: float, constant: float = 0.0) -> None:
    """Check that there is more to lose than a target tolerates; a model that is no better than a constant passes.

    Args:
        target: of quality.
        accuracy: of the original.
        constant: accuracy of the best answer that is always the same.

    Raises:
        TargetError: there is not, so that the target decides nothing.
    """
    least = constant if accuracy > constant else 0.0
    if target.name == "tolerance" and target.value >= accuracy - least:
        what = f"an accuracy of {accuracy:.4g}" + (f", where a constant answer has {least:.4g}" if least else "")
        raise TargetError(
            f"A tolerance of {target.value:g} is above all there is to lose: the model has {what} on these data. Ask "
            f"for less than {accuracy - least:.4g}."
        )
