"""The picture of the water level: distortions of tensors about their mean."""

from __future__ import annotations

import math

from waterfill.report.svg import Shown, share, svg, text_at
from waterfill.report.words import TIMES, safe, short
from waterfill.results import TensorReport

OCTAVES = 6.0
"""How far a column reaches at most, in factors of two above or below the mean."""

COLUMNS = 0.9
"""Part of the width that columns take; the rest is for what the lines mean."""


def level_plot(each: Shown) -> str:
    """Distortion per value of every tensor in the order of the model, against the mean; empty when none has any."""
    rows = [row for row in each.result.tensors if row.numel and row.distortion and 0 < row.distortion < math.inf]
    if not rows:
        return ""
    values, total = sum(row.numel for row in rows), math.fsum(row.distortion or 0.0 for row in rows)
    mean = total / values
    heights = [math.log2((row.distortion or 0.0) / row.numel / mean) for row in rows]
    reach = min(OCTAVES, max(2.0, math.ceil(max(map(abs, heights)))))
    widths = [max(row.numel / values, 0.25 / len(rows)) for row in rows]
    whole, middle, unit = sum(widths) / COLUMNS, 120.0, 104.0 / reach
    body = []
    for power in range(-int(reach), int(reach) + 1, 2 if reach > 3 else 1):
        y = middle - unit * power
        body.append(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
    x = 0.0
    for row, width, height in zip(rows, widths, heights, strict=True):
        body.append(_column(row, x / whole, width / whole, unit * max(-reach, min(reach, height)), total, middle))
        x += width
    body.append(f'<line class="level" x1="0" x2="100%" y1="{middle}" y2="{middle}"/>')
    for power in range(-int(reach), int(reach) + 1, 2 if reach > 3 else 1):
        words = "mean" if not power else f"{2**power}{TIMES}" if power > 0 else f"1/{2**-power}"
        body.append(text_at(1, middle - unit * power - 4, words, "tick", "end"))
    return svg(240, f"Distortion per value of {len(rows)} tensors against their mean, {safe(each.label)}", body)


def _column(row: TensorReport, x: float, width: float, height: float, total: float, middle: float) -> str:
    ratio = short((row.distortion or 0.0) / row.numel)
    top = middle - height if height > 0 else middle
    kind = "above" if height > 0 else "under"
    title = (
        f"{safe(row.name)}: {ratio} per value, {100 * (row.distortion or 0.0) / total:.1f} % of the whole, "
        f"{row.numel:,} values"
    )
    size = f'width="{share(width)}" height="{max(1.0, abs(height)):.1f}"'
    return f'<rect class="{kind}" x="{share(x)}" y="{top:.1f}" {size}><title>{title}</title></rect>'
