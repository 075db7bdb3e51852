"""What results say about the claims of the paper: one curve against another at equal ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = Mapping[str, Any]

WORTH = 1e-4
"""Cross-entropies (nats) and accuracies (fractions, one image of 10,000) that differ by less count as equal."""

GRID = 25
"""Ratios at which curves are ranked."""


@dataclass(frozen=True)
class Comparison:
    """A curve against a reference, at the ratios of the curve that the reference covers.

    Attributes:
        better: at how many of them it is better.
        equal: at how many they are equal.
        worse: at how many it is worse.
        exceptions: the amounts of those.
        median_gain: median of (reference - curve) / reference for cross-entropy, of the difference for accuracies.
    """

    better: int
    equal: int
    worse: int
    exceptions: tuple[float, ...]
    median_gain: float

    @property
    def count(self) -> int:
        """Ratios that were compared."""
        return self.better + self.equal + self.worse


def curve(results: Mapping[str, Any], task: str, objective: str, variant: str = "paper") -> list[Row]:
    """The points of one objective, by rising amount."""
    wanted = {"task": task, "objective": objective, "variant": variant}
    rows = [row for row in results["points"] if all(row[name] == value for name, value in wanted.items())]
    return sorted(rows, key=lambda row: float(row["amount"]))


def compare(rows: Sequence[Row], reference: Sequence[Row], quality: str, ratio: str) -> Comparison:
    """Compare two curves at equal ratios.

    The reference is interpolated linearly between its points: accuracies themselves, cross-entropies by their
    logarithms.

    Args:
        rows: points of the curve.
        reference: points of the other one.
        quality: `accuracy`, `top5` or `cross_entropy`.
        ratio: `paper_ratio` or `file_ratio`.
    """
    loss = quality == "cross_entropy"
    points = sorted((row[ratio], np.log(row[quality]) if loss else row[quality]) for row in reference)
    places, values = [point[0] for point in points], [point[1] for point in points]
    covered = [row for row in rows if places[0] <= row[ratio] * (1 + 1e-9) and row[ratio] <= places[-1] * (1 + 1e-9)]
    found = np.interp([row[ratio] for row in covered], places, values)
    other = np.exp(found) if loss else found
    own = np.array([row[quality] for row in covered])
    gain = (other - own) if loss else (own - other)
    worse = gain <= -WORTH
    relative = gain / other if loss else gain
    return Comparison(
        better=int((gain >= WORTH).sum()),
        equal=int((np.abs(gain) < WORTH).sum()),
        worse=int(worse.sum()),
        exceptions=tuple(float(row["amount"]) for row, bad in zip(covered, worse, strict=True) if bad),
        median_gain=float(np.median(relative)) if relative.size else 0.0,
    )


def smallest_within(results: Mapping[str, Any], rows: Sequence[Row], points: float) -> Row | None:
    """The smallest file that loses at most so many points of top-1 accuracy; None if none does."""
    least = results["original"]["accuracy"] - points / 100 - 1e-9
    good = [row for row in rows if row["accuracy"] >= least]
    return min(good, key=lambda row: int(row["size_bytes"]), default=None)


def ranking(curves: Mapping[str, Sequence[Row]], quality: str, ratio: str) -> dict[str, tuple[int, float]]:
    """Rank curves at equally spaced ratios that all of them cover.

    Args:
        curves: points by name; the first one is the reference.
        quality: as for `compare`.
        ratio: as for `compare`.

    Returns:
        By name: at how many of `GRID` ratios it is the best, and its mean distance from the reference: for
        cross-entropy the geometric mean of the quotients minus one, for accuracies the mean difference.
    """
    loss = quality == "cross_entropy"
    points = {name: sorted((row[ratio], row[quality]) for row in rows) for name, rows in curves.items()}
    low = max(each[0][0] for each in points.values())
    high = min(each[-1][0] for each in points.values())
    grid = np.linspace(low, high, GRID)
    lines = []
    for each in points.values():
        values = np.array([value for _, value in each])
        lines.append(np.interp(grid, [place for place, _ in each], -np.log(values) if loss else values))
    table = np.array(lines)
    wins = np.bincount(table.argmax(0), minlength=len(table))
    means = (table - table[0]).mean(1)
    return {
        name: (int(won), float(np.expm1(-mean) if loss else mean))
        for name, won, mean in zip(points, wins, means, strict=True)
    }
