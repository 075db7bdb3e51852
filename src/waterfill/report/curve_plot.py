"""The picture of rate against distortion: curves of the limit, with the files on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from waterfill.report.saved import SavedResult
from waterfill.report.svg import Shown, share, shortened, svg, text_at, ticks
from waterfill.report.words import fixed, safe

HEIGHT, FOOT, TOP = 430, 34, 16
"""Pixels of a plot, those below its axis, and those above its highest line."""


@dataclass(frozen=True)
class Plane:
    """Rates from 0 to `high` against shares of the distortion from 1 down to `10^-depth`, in logarithms."""

    high: float
    depth: float

    def x(self, rate: float) -> float:
        """Part of the width."""
        return rate / self.high

    def y(self, share: float) -> float:
        """Pixels from the top."""
        return TOP + (HEIGHT - FOOT - TOP) * -math.log10(share) / self.depth


def curve_plot(shown: Sequence[Shown]) -> str:
    """Curves of the limit with the files on them; empty when no result has a curve."""
    drawn = [each for each in shown if each.result.curve]
    if not drawn:
        return ""
    lowest = min(each.result.curve_distortion for each in drawn)
    high = 1.75 * max(max(each.result.rate, each.result.curve[0][0]) for each in drawn)
    plane = Plane(high, max(0.5, -math.log10(lowest) * 1.35))
    body = [*_grid(plane)]
    longest = max(drawn, key=lambda each: each.result.curve[-1][0])
    different = [longest] if all(_same_limit(each.result, longest.result) for each in drawn) else drawn
    for each in different:
        body.append(_limit_line(plane, each, alone=len(different) == 1))
    places = _label_places(plane, drawn)
    body += [_file_mark(plane, each, below) for each, below in zip(drawn, places, strict=True)]
    words = "; ".join(
        f"{safe(each.label)} at {fixed(each.result.rate, 3)} bit per value, limit {fixed(each.result.limit, 3)}"
        for each in drawn
    )
    return svg(HEIGHT, f"Rate against distortion: {words}", body)


def _same_limit(one: SavedResult, other: SavedResult) -> bool:
    """Whether two limits are one curve, drawn at other points: of the same measure, and from the same start."""
    starts = zip(one.limit_curve[0], other.limit_curve[0], strict=True)
    near = all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in starts)
    return one.limit_measure == other.limit_measure and near


def _grid(plane: Plane) -> Iterable[str]:
    floor, stride = HEIGHT - FOOT, max(1, math.ceil(plane.depth / 6))
    for power in range(0, int(plane.depth) + 1, stride):
        y = plane.y(10.0**-power)
        yield f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield text_at(1, y - 4, f"{100 * 10.0**-power:.10g} %", "tick", "end")
    yield f'<line class="axis" x1="0" x2="100%" y1="{floor}" y2="{floor}"/>'
    for rate in ticks(plane.high):
        x = plane.x(rate)
        if x < 0.84:  # there the unit begins, where the picture is narrow
            yield text_at(x, floor + 16, f"{rate:.10g}", "tick", "middle" if rate else "start")
    yield text_at(1, floor + 16, "bit / value", "tick", "end")


def _limit_line(plane: Plane, each: Shown, *, alone: bool) -> str:
    """The curve, and beneath it what no code reaches."""
    points = [(plane.x(rate), plane.y(share)) for rate, share in each.result.curve]
    floor = HEIGHT - FOOT
    line = " L".join(f"{1000 * x:.1f},{y:.1f}" for x, y in points)
    first, last = 1000 * points[0][0], 1000 * points[-1][0]
    area = f'<path class="beyond" d="M{line} L{last:.1f},{floor} L{first:.1f},{floor}Z"/>' if alone else ""
    kind = "limit" if alone else f"limit tone-{each.tone}"
    label = text_at(0.02, floor - 12, "out of reach, on average", "note") if alone else ""
    return (
        f'<svg width="100%" height="{floor}" viewBox="0 0 1000 {floor}" preserveAspectRatio="none" aria-hidden="true">'
        f'{area}<path class="{kind}" vector-effect="non-scaling-stroke" d="M{line}"/></svg>{label}'
    )


def _label_places(plane: Plane, drawn: Sequence[Shown]) -> list[bool]:
    """Whether the label of each file is below its mark: where another one's would be in the way."""
    if len(drawn) < 2:
        return [False]
    heights = [plane.y(each.result.curve_distortion) for each in drawn]
    near = abs(heights[0] - heights[1]) < 48
    return [near and heights[0] >= heights[1], near and heights[0] < heights[1]]


def _file_mark(plane: Plane, each: Shown, below: bool) -> str:
    result = each.result
    x, y = plane.x(result.rate), plane.y(result.curve_distortion)
    title = f"{safe(each.label)}: {fixed(result.rate, 3)} bit per value"
    gap, words = "", f"{fixed(result.rate, 3)} bit"
    if result.limit is not None and result.gap is not None:
        left = plane.x(result.limit)
        gap = f'<line class="gap tone-{each.tone}" x1="{share(left)}" x2="{share(x)}" y1="{y:.1f}" y2="{y:.1f}"/>'
        words += f", gap {fixed(result.gap, 3)}"
        title += f", limit {fixed(result.limit, 3)}, gap {fixed(result.gap, 3)}"
    anchor, shift = ("start", 10) if x < 0.62 else ("end", -10)
    lines = (y + 22, y + 38) if below else (y - 24, y - 8)
    return (
        f'<g><title>{title}</title>{gap}<circle class="file tone-{each.tone}" cx="{share(x)}" cy="{y:.1f}" r="6.5"/>'
        f"{text_at(x, lines[0], shortened(each.label, 20), 'name', anchor, shift)}"
        f"{text_at(x, lines[1], words, 'value', anchor, shift)}</g>"
    )
