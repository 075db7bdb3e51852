"""What the pictures of a page are made of: inline SVG, which takes its colours from the style sheet of the page.

Places along the width are percentages, so that a picture fits a telephone and a sheet of paper with letters of one
size; places along the height are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from waterfill.report.saved import SavedResult
from waterfill.report.words import printable, safe


@dataclass(frozen=True)
class Shown:
    """A result on a page.

    Attributes:
        label: what the page calls it.
        tone: `a` or `b`, its colour.
        result: what is shown.
    """

    label: str
    tone: str
    result: SavedResult


def share(part: float) -> str:
    """A part as a percentage."""
    return f"{100 * part:.2f}%"


def text_at(x: float, y: float, words: str, kind: str = "", anchor: str = "start", shift: int = 0) -> str:
    """A line of text; `words` are safe already."""
    return f'<text class="{kind}" x="{share(x)}" y="{y:.0f}" dx="{shift}" text-anchor="{anchor}">{words}</text>'


def svg(height: int, label: str, body: Iterable[str]) -> str:
    """A picture as wide as there is room; the label, which is safe already, says what it is."""
    return f'<svg class="plot" role="img" aria-label="{label}" width="100%" height="{height}">{"".join(body)}</svg>'


def ticks(high: float, count: int = 6) -> list[float]:
    """Round numbers from 0 to `high`, about so many."""
    raw = high / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    return [step * index for index in range(int(high / step + 1e-9) + 1)]


def shortened(name: str, most: int) -> str:
    """A name without its middle, where it is long; safe."""
    text = printable(name)
    return safe(text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}")
