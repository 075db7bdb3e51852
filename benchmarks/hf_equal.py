"""Rates at equal quality: on the curve of one method, at the loss of every file of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

Row = dict[str, Any]
Rows = list[Row]

RATE = "bit/value"
POWER_OF_A_BIT = 4.0
"""How much smaller a bit more per weight makes squared errors and divergences."""


def rate_at(curve: Sequence[Row], loss: str, value: float) -> float | str:
    """The rate at which a method has a loss, linear in its logarithm between neighbours.

    Args:
        curve: rows of the method.
        loss: name of the column.
        value: the loss.

    Returns:
        The rate; text with the end of the curve where it does not reach so far.
    """
    points = sorted((row[RATE], math.log(row[loss])) for row in curve)
    aim = math.log(value)
    for (low, worse), (high, better) in pairwise(points):
        if better <= aim <= worse:
            return low + (worse - aim) / (worse - better) * (high - low)
    return f"< {points[0][0]:.2f}" if aim > points[0][1] else f"> {points[-1][0]:.2f}"


def best(rows: Rows, loss: str) -> Rows:
    """For every number of bits (the first word of the setting) the row that loses the least for its rate."""
    found = sorted(rows, key=lambda row: row["setting"].split()[:2])
    groups = groupby(found, lambda row: row["setting"].split()[:2])
    return [
        min(group, key=lambda row: math.log(row[loss]) + row[RATE] * math.log(POWER_OF_A_BIT)) for _, group in groups
    ]


def equal(rows: Rows, ours: str, others: Sequence[str], loss: str) -> Rows:
    """A row for the best settings of the other methods: their rate, and that of ours at their loss.

    Args:
        rows: of all methods.
        ours: the method with the curve.
        others: methods to compare with.
        loss: name of the column.
    """
    curve = [row for row in rows if row["method"] == ours]
    if len(curve) < 2:
        return []
    return [
        {
            "method": row["method"],
            "setting": row["setting"],
            loss: row[loss],
            RATE: row[RATE],
            f"{ours}, {RATE}": found if isinstance(found, str) else round(found, 3),
            "less": _less(row[RATE], found),
        }
        for other in others
        for row in best([row for row in rows if row["method"] == other], loss)
        for found in [rate_at(curve, loss, row[loss])]
    ]


def _less(rate: float, found: float | str) -> str:
    if not isinstance(found, str):
        return _bits(rate - found)
    sign, end = found.split()
    return f"{'>' if sign == '<' else '<'} {_bits(rate - float(end))}"


def _bits(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no negative zero
