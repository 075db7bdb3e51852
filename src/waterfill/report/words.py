"""Names and numbers as text: for terminals and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

MINUS, NONE, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def printable(text: str) -> str:
    """Text with codes in the place of control characters and of others that are not shown."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def safe(text: str) -> str:
    """Text that is neither markup nor an end of an attribute."""
    return escape(printable(text))


def shape_text(shape: Sequence[int]) -> str:
    """A shape such as 64x3x3."""
    return "x".join(map(str, shape)) or "scalar"


def short(number: float | None) -> str:
    """Three significant digits, without the letter e."""
    if number is None:
        return NONE
    if not math.isfinite(number):
        return "not a number" if math.isnan(number) else "infinite"
    if number == 0 or 1e-3 <= abs(number) < 1e6:
        digits = 0 if number == 0 else max(0, 2 - math.floor(math.log10(abs(number))))
        return f"{number:,.{digits}f}".replace("-", MINUS)
    mantissa, _, power = f"{number:.2e}".partition("e")
    return f"{mantissa} {TIMES} 10{str(int(power)).translate(RAISED)}".replace("-", MINUS)


def plain(number: float) -> str:
    """The same for a round number, without the zeros after its digits."""
    return f"{number:.6f}".rstrip("0").rstrip(".") if 1e-3 <= number < 1e6 else short(number).replace(".00 ", " ")


def fixed(number: float | None, digits: int = 2) -> str:
    """So many digits after the point, with a true minus sign."""
    if number is None or not math.isfinite(number):
        return NONE
    return f"{number:,.{digits}f}".replace("-", MINUS)


def signed(number: float | None, digits: int = 2) -> str:
    """The same with a plus sign where it is due."""
    return ("+" if number is not None and number > 0 else "") + fixed(number, digits)


def size_text(count: float) -> str:
    """Bytes in a unit that people read."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.4g} {unit}"
    return f"{count:,.0f} B"
