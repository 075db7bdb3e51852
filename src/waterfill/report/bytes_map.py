"""The picture of bytes as areas."""

from __future__ import annotations

import math
from collections.abc import Sequence

from waterfill.report.svg import Shown, share, shortened
from waterfill.report.words import fixed, safe, size_text
from waterfill.results import TensorReport

BINS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Bits per value where one colour ends and the next begins."""


def colour(rate: float) -> str:
    """Class of the colour of so many bits per value."""
    return f"q{sum(rate >= edge for edge in BINS)}"


def bytes_map(each: Shown) -> str:
    """Every tensor as an area of its bytes, darker the more bits a value takes."""
    rows = sorted((row for row in each.result.tensors if row.size_bytes > 0), key=lambda row: -row.size_bytes)
    extra = max(0.0, each.result.overhead_bytes) if math.isfinite(each.result.overhead_bytes) else 0.0
    if not rows and not extra:
        return ""
    items: list[TensorReport | None] = [*rows]
    place = next((index for index, row in enumerate(rows) if row.size_bytes < extra), len(rows))
    if extra:
        items.insert(place, None)
    whole = sum(row.size_bytes for row in rows) + extra
    areas = [(extra if row is None else row.size_bytes) / whole for row in items]
    body = [_tile(row, extra, box, whole) for row, box in zip(items, squarified(areas, 2.4), strict=True)]
    label = f"Bytes of the {len(rows)} tensors of {safe(each.label)} that take any"
    return f'<div class="map" role="img" aria-label="{label}">{"".join(body)}</div>'


def _tile(row: TensorReport | None, extra: float, box: tuple[float, float, float, float], whole: float) -> str:
    x, y, width, height = box
    size = extra if row is None else row.size_bytes
    name = "header, directory" if row is None else shortened(row.name, 60)
    told = f"{size:,.0f} bytes, {100 * size / whole:.1f} % of the file"
    told += "" if row is None else f", {fixed(row.rate)} bit per value"
    kind = "over" if row is None else colour(row.rate)
    inner = ""
    if width > 0.06 and height > 0.07:
        detail = size_text(size) if row is None else f"{size_text(size)} · {fixed(row.rate, 1)} bit"
        inner = f"<b>{name}</b>" + (f"<span>{detail}</span>" if height > 0.13 else "")
    place = f"left:{share(x)};top:{share(y)};width:{share(width)};height:{share(height)}"
    return f'<div class="{kind}" style="{place}" title="{name}: {told}">{inner}</div>'


def squarified(areas: Sequence[float], aspect: float) -> list[tuple[float, float, float, float]]:
    """Boxes (x, y, width, height) in the unit square with these areas, each as near to a square as it goes.

    Args:
        areas: falling, above zero, of sum 1.
        aspect: how many times wider than high the picture is.

    Source:
        Bruls, Huizing and van Wijk 2000, "Squarified treemaps".
    """
    boxes: list[tuple[float, float, float, float]] = []
    x, y, width, height = 0.0, 0.0, aspect, 1.0
    left = [area * aspect for area in areas]
    while left:
        side = min(width, height)
        count, row = 1, left[0]
        while count < len(left) and _worst(left[0], left[count], row + left[count], side) <= _worst(
            left[0], left[count - 1], row, side
        ):
            row, count = row + left[count], count + 1
        depth, along = row / side, 0.0
        for area in left[:count]:
            length = area / depth
            box = (x, y + along, depth, length) if width > height else (x + along, y, length, depth)
            boxes.append((box[0] / aspect, box[1], box[2] / aspect, box[3]))
            along += length
        if width > height:
            x, width = x + depth, max(width - depth, 1e-12)
        else:
            y, height = y + depth, max(height - depth, 1e-12)
        left = left[count:]
    return boxes


def _worst(largest: float, smallest: float, row: float, side: float) -> float:
    """The longest shape, as long side over short side, in a row of areas."""
    return max(side * side * largest / (row * row), row * row / (side * side * smallest))
