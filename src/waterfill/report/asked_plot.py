"""The picture of what was asked, predicted and measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from waterfill.report.saved import SavedResult
from waterfill.report.svg import Shown, share, svg, text_at
from waterfill.report.words import plain, short

KINDS = {
    "asked": "asked",
    "predicted": "hollow",
    "before tuning": "pale",
    "measured": "file",
    "held out": "file",
}
"""Classes of the marks, from the first line to the last."""

LINE, GROUP = 21, 6
"""Pixels of a line with one mark, and between the lines of two results."""


def asked_plot(shown: Sequence[Shown]) -> str:
    """What was asked, predicted and measured on one logarithmic axis of distortions; empty where nothing is known.

    Every number has a line of its own, so that labels cannot meet; numbers of two results are beneath each other.
    """
    told = [(each, _told(each.result)) for each in shown]
    names = [name for name in KINDS if any(name in numbers for _, numbers in told)]
    if not names:
        return ""
    known = [value for _, numbers in told for value in numbers.values()]
    low, high = math.log10(min(known)) - 0.35, math.log10(max(known)) + 0.35
    low, high = (low, high) if high - low > 1.2 else ((low + high) / 2 - 0.6, (low + high) / 2 + 0.6)
    marks, y = [], 0
    for name in names:
        for each, numbers in told:
            if name in numbers:
                y += LINE
                marks.append(_mark(each, name, numbers[name], (math.log10(numbers[name]) - low) / (high - low), y - 5))
        y += GROUP if len(shown) > 1 else 0
    floor, body = y + 6, []
    for value in decades(low, high):
        x = share((math.log10(value) - low) / (high - low))
        body.append(f'<line class="grid" x1="{x}" x2="{x}" y1="4" y2="{floor}"/>')
        body.append(text_at((math.log10(value) - low) / (high - low), floor + 16, plain(value), "tick", "middle"))
    return svg(floor + 24, f"Distortion: {', '.join(names)}", [*body, *marks])


def decades(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten, at least two: the powers, with 2 and 5 times where they are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1.0,) if high - low > 3 else (1.0, 3.0) if high - low > 1.5 else (1.0, 2.0, 5.0)
    found = [factor * 10.0**power for power in powers for factor in factors]
    inside = [value for value in found if low + 0.08 * (high - low) <= math.log10(value) <= high - 0.08 * (high - low)]
    return inside[:: max(1, len(inside) // 5)]


def _told(result: SavedResult) -> dict[str, float]:
    """What is known in one unit and above zero."""
    found = {"asked": result.target.get("distortion"), "measured": result.distortion, "held out": result.held_out}
    found |= {"predicted": result.predicted} if result.comparable or result.distortion is None else {}
    found |= {"before tuning": result.untuned_distortion}
    return {name: value for name, value in found.items() if value is not None and 0 < value < math.inf}


def _mark(each: Shown, name: str, value: float, x: float, y: int) -> str:
    """A mark with its words beside it, on the side where there is room."""
    kind = KINDS[name]
    shape = f'<circle class="{kind} tone-{each.tone}" cx="{share(x)}" cy="{y}" r="6"/>'
    if name == "asked":
        shape = f'<line class="{kind}" x1="{share(x)}" x2="{share(x)}" y1="{y - 8}" y2="{y + 8}"/>'
    side, shift = ("start", 12) if x < 0.5 else ("end", -12)
    words = text_at(x, y + 4, f"{name} {short(value)}", "value", side, shift)
    return f"<g><title>{name}: {short(value)}</title>{shape}{words}</g>"
