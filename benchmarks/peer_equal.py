"""Files of several codecs at equal quality: between two neighbours of a codec's own sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from peer_networks import CODECS, FREE, KL, NNCODEC, ORIGINAL, TOP1, TUNED, WATERFILL, Network

Row = dict[str, Any]
Rows = list[Row]

DROPS, DIVERGENCES = (0.5, 1.0), (0.01, 0.05)
TINY = 1e-9

Loss = Callable[[Row], float]
Point = tuple[float, float]
Pair = tuple[Point, Point]


@dataclass(frozen=True)
class Target:
    """A loss at which files are compared, and in what it is taken to be linear between two of them."""

    name: str
    loss: Loss
    value: float
    scale: Callable[[float], float] = float


def front(rows: Sequence[Row], loss: Loss) -> list[Point]:
    """(bytes, loss) of the settings that no smaller file is as good as, by size."""
    found: list[Point] = []
    for size, value in sorted((row["bytes"], loss(row)) for row in rows):
        if not found or value < found[-1][1]:
            found.append((size, value))
    return found


def neighbours(points: Sequence[Point], target: Target) -> Pair | None:
    """The last worse and the first better file; None where the settings do not reach around the target."""
    for worse, better in pairwise(points):
        if better[1] <= target.value <= worse[1]:
            return worse, better
    return None


def interpolated(pair: Pair | None, target: Target) -> float | None:
    """Bytes at the target, between the neighbours."""
    if pair is None:
        return None
    (small, worse), (large, better) = pair
    worse, aim, better = (target.scale(max(each, TINY)) for each in (worse, target.value, better))
    return small + (worse - aim) / (worse - better) * (large - small)


def targets(rows: Rows) -> list[Target]:
    """What files of a network are compared at."""
    top1 = next(row[TOP1] for row in rows if row["codec"] == ORIGINAL)
    drops = [Target(f"top-1 -{drop:g}", lambda row: top1 - row[TOP1], drop) for drop in DROPS]
    return drops + [Target(f"KL {kl:g}", lambda row: row[KL], kl, math.log) for kl in DIVERGENCES]


def pairs(rows: Rows, target: Target) -> dict[str, Pair | None]:
    """The neighbours of the target in each codec's sweep."""
    return {c: neighbours(front([r for r in rows if r["codec"] == c], target.loss), target) for c in CODECS}


def sizes(rows: Rows, target: Target) -> dict[str, float | None]:
    """Bytes of each codec at the target."""
    return {codec: interpolated(pair, target) for codec, pair in pairs(rows, target).items()}


# Tables


def ratios(network: Network, rows: Rows) -> Rows:
    """A row for each way to call waterfill that was measured: its bytes over NNCodec's, at every target."""
    found = [(target.name, sizes(rows, target)) for target in targets(rows)]
    measured = {row["codec"] for row in rows}
    return [
        {
            "network": network.title,
            "codec": codec,
            **{name: _ratio(of[codec], of[NNCODEC]) for name, of in found},
        }
        for codec in (TUNED, WATERFILL, FREE)
        if codec in measured
    ]


def _ratio(ours: float | None, theirs: float | None) -> str:
    return "" if ours is None or theirs is None else f"{ours / theirs:.3f}"


def equal(network: Network, rows: Rows, codecs: Sequence[str]) -> Rows:
    """A row for each target: bytes of the codecs."""
    return [
        {
            "network": network.title,
            "quality": target.name,
            **{codec: _bytes(found[codec]) for codec in codecs},
        }
        for target in targets(rows)
        for found in [sizes(rows, target)]
    ]


def _bytes(size: float | None) -> int | str:
    return "" if size is None else round(size)


def between(network: Network, rows: Rows, codecs: Sequence[str]) -> Rows:
    """A row for each target: the two files of each codec that it lies between."""
    return [
        {
            "network": network.title,
            "quality": target.name,
            **{codec: _text(found[codec]) for codec in codecs},
        }
        for target in targets(rows)
        for found in [pairs(rows, target)]
    ]


def _text(pair: Pair | None) -> str:
    return "" if pair is None else " and ".join(f"{size:,} ({loss:.3g})" for size, loss in pair)
