"""How far the output of a compressed model is from that of the original, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from waterfill.evaluation import divergence
from waterfill.processes import Ranks
from waterfill.protocols import Output


def distance(before: Tensor, now: Tensor, there: Tensor, output: Output) -> tuple[float, float]:
    """Sum of the distances of a batch, and of how many predictions.

    Args:
        before: output of the original.
        now: of the compressed model.
        there: which positions count, bool [positions]; for logits.
        output: logits (KL divergence in nats, position by position) or values (squared error, sample by sample).
    """
    if output == "values":
        return float((now.double() - before.double()).square().sum()), float(len(before))
    rows, logits = (each.reshape(-1, each.shape[-1])[there] for each in (before, now))
    return float(divergence(rows, logits).sum()), float(len(rows))


def mean_distance(found: Sequence[tuple[float, float]], team: Ranks) -> float:
    """The mean over the batches of all processes, in the order of the batches."""
    every = team.everyones(list(found))
    ordered = [part[index] for index in range(max(map(len, every))) for part in every if index < len(part)]
    return sum(total for total, _ in ordered) / max(1.0, sum(count for _, count in ordered))
