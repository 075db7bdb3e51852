"""The picture of what was asked, predicted and measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from waterfill.report.saved import SavedResult
from waterfill.report.svg import Shown, anchor, share, svg, text_at
from waterfill.report.words import plain, short


def asked_plot(shown: Sequence[Shown]) -> str:
    """What was asked, predicted and measured on one logarithmic axis of distortions; empty where nothing is known."""
    told = [(each, _told(each.result)) for each in shown]
    known = [value for _, marks in told for _, value in marks]
    if not known:
        return ""
    low, high = math.log10(min(known)) - 0.35, math.log10(max(known)) + 0.35
    low, high = (low, high) if high - low > 1.2 else ((low + high) / 2 - 0.6, (low + high) / 2 + 0.6)
    floor, body = 20 + 58 * len(shown), []
    for value in decades(low, high):
        x = (math.log10(value) - low) / (high - low)
        body.append(f'<line class="grid" x1="{share(x)}" x2="{share(x)}" y1="4" y2="{floor}"/>')
        body.append(text_at(x, floor + 16, plain(value), "tick", "middle"))
    for index, (each, marks) in enumerate(told):
        y = 38 + 58 * index
        places = {name: (math.log10(value) - low) / (high - low) for name, value in marks}
        ends = sorted(places.values())
        if ends:
            body.append(
                f'<line class="gap tone-{each.tone}" x1="{share(ends[0])}" x2="{share(ends[-1])}" y1="{y}" y2="{y}"/>'
            )
        body += [_told_mark(each, name, value, places[name], y) for name, value in marks]
    return svg(floor + 24, "Distortion: asked, predicted and measured", body)


def decades(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten, at least two: the powers, with 2 and 5 times where they are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1.0,) if high - low > 3 else (1.0, 3.0) if high - low > 1.5 else (1.0, 2.0, 5.0)
    found = [factor * 10.0**power for power in powers for factor in factors]
    inside = [value for value in found if low + 0.08 * (high - low) <= math.log10(value) <= high - 0.08 * (high - low)]
    return inside[:: max(1, len(inside) // 5)]


def _told(result: SavedResult) -> list[tuple[str, float]]:
    """What is known of (asked, predicted, measured) in one unit and above zero."""
    found = {"asked": result.target.get("distortion"), "measured": result.distortion}
    found |= {"predicted": result.predicted} if result.comparable or result.distortion is None else {}
    return [(name, value) for name, value in found.items() if value is not None and 0 < value < math.inf]


def _told_mark(each: Shown, name: str, value: float, x: float, y: int) -> str:
    shape = {
        "asked": f'<line class="asked" x1="{share(x)}" x2="{share(x)}" y1="{y - 11}" y2="{y + 11}"/>',
        "predicted": f'<circle class="hollow tone-{each.tone}" cx="{share(x)}" cy="{y}" r="6"/>',
        "measured": f'<circle class="file tone-{each.tone}" cx="{share(x)}" cy="{y}" r="6.5"/>',
    }[name]
    below = {"asked": y + 26, "predicted": y + 22, "measured": y - 13}[name]
    words = text_at(x, below, f"{name} {short(value)}", "value", anchor(x))
    return f"<g><title>{name}: {short(value)}</title>{shape}{words}</g>"
