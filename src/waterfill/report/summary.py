"""The head of a page: what a result is, in numbers and in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from waterfill.report.saved import SavedResult
from waterfill.report.svg import Shown
from waterfill.report.words import NONE, TIMES, fixed, plain, safe, short, signed, size_text

Tell = Callable[[SavedResult], str]

TARGETS = {
    "rate": "{} bit per value",
    "size_bytes": "{} bytes",
    "distortion": "distortion {}",
    "tolerance": "loss of quality {}",
}
"""How a target is told."""

BEFORE, HELD_OUT = "measured before tuning", "on held-out batches"
OPTIONAL: dict[str, Callable[[SavedResult], float | None]] = {
    BEFORE: lambda result: result.untuned_distortion,
    HELD_OUT: lambda result: result.held_out,
}
"""Terms that have a line only where there is a number."""


def unit(result: SavedResult) -> str:
    """Of the measured distortion, as far as it is known."""
    return safe(result.distortion_unit) if result.comparable and result.distortion_unit else "distortion"


def lead(shown: Sequence[Shown]) -> str:
    """What there is to say in a sentence."""
    first = shown[0].result
    if len(shown) == 1:
        text = (
            f"{first.size_bytes:,} bytes hold {first.floating_values:,} values: "
            f"{fixed(first.ratio, 1)} times smaller than the {first.original_bytes:,} bytes before."
        )
        return text + _near(first)
    second = shown[1].result
    change = second.size_bytes / first.size_bytes - 1
    words = "has the same size as" if not change else f"is {abs(100 * change):.1f} % {_side(change)} than"
    text = f"{safe(shown[1].label)} {words} {safe(shown[0].label)}"
    if first.distortion and second.distortion and first.comparable == second.comparable:
        text += f", and its measured distortion is {short(second.distortion / first.distortion)} times as high"
    return text + "."


def _side(change: float) -> str:
    return "larger" if change > 0 else "smaller"


def _near(result: SavedResult) -> str:
    if result.gap is None or result.gap_percent is None:
        return ""
    if result.gap < 0:
        return " That is below the limit of the fitted source: the network has structure that the source lacks."
    return f" No code is expected to save more than {100 * result.gap / result.rate:.0f} % of that at the same loss."


def tiles(shown: Sequence[Shown]) -> str:
    """The five numbers that matter, each with a line that says what it is."""
    told: tuple[tuple[str, Tell, Tell, str], ...] = (
        ("file", lambda r: size_text(r.size_bytes), lambda r: f"{r.size_bytes:,} bytes", "all of it, headers included"),
        ("rate", lambda r: fixed(r.rate, 3), lambda _: "bit per value", "of the whole file"),
        ("ratio", lambda r: f"{fixed(r.ratio, 1)}{TIMES}", lambda r: f"from {size_text(r.original_bytes)}",
         "smaller than before"),
        ("limit of the fitted source", lambda r: fixed(r.limit, 3), _gap_words, "what codes need at this loss"),
        ("measured loss", lambda r: short(r.distortion), lambda r: unit(r) if r.distortion is not None else "no data",
         "on the calibration data"),
    )  # fmt: skip
    cells = []
    for name, value, detail, why in told:
        numbers = "".join(
            f'<p class="number{f" tone-{each.tone}" if len(shown) > 1 else ""}">{value(each.result)} '
            f"<small>{detail(each.result)}</small></p>"
            for each in shown
        )
        cells.append(f'<div class="tile"><h2>{name}</h2>{numbers}<p class="why">{why}</p></div>')
    return f'<div class="tiles">{"".join(cells)}</div>\n'


def _gap_words(result: SavedResult) -> str:
    if result.gap is None:
        return "bit per value"
    percent = "" if result.gap_percent is None else f" ({signed(result.gap_percent, 1)} %)"
    return f"gap {signed(result.gap, 3)} bit{percent}"


def _asked(result: SavedResult) -> str:
    if not result.target:
        return "nothing: a quantizer of fixed rate"
    return ", ".join(
        TARGETS[name].format(f"{value:,.0f}" if name == "size_bytes" else plain(value))
        for name, value in result.target.items()
        if name in TARGETS and math.isfinite(value)
    )


def _reached(result: SavedResult) -> str:
    reached = {
        "rate": fixed(result.rate, 3),
        "size_bytes": f"{result.size_bytes:,}",
        "distortion": short(result.distortion),
    }
    return ", ".join(reached.get(name, "not in the file") for name in result.target) or NONE


def _error(result: SavedResult) -> str:
    return NONE if result.limit is None else f"{fixed(result.limit, 3)} ± {fixed(result.limit_error, 3)}"


def details(shown: Sequence[Shown]) -> str:
    """Everything else about the file, as a list of terms."""
    told: tuple[tuple[str, Tell], ...] = (
        ("asked", _asked),
        ("reached", _reached),
        ("predicted distortion", lambda r: short(r.predicted)),
        (BEFORE, lambda r: short(r.untuned_distortion)),
        ("measured distortion", lambda r: short(r.distortion)),
        (HELD_OUT, lambda r: short(r.held_out)),
        ("measured / predicted", _quotient),
        ("importance", lambda r: safe(r.importance)),
        ("its power", lambda r: f"{r.importance_power:g}"),
        ("water level", lambda r: short(r.water_level)),
        ("limit", _error),
        ("gap", lambda r: signed(r.gap, 3)),
        ("header, directory", lambda r: f"{fixed(r.overhead_bytes, 0)} B"),
    )
    head = "".join(f'<th scope="col" class="tone-{each.tone}">{safe(each.label)}</th>' for each in shown)
    known = {name for name, number in OPTIONAL.items() if any(number(each.result) is not None for each in shown)}
    rows = "".join(
        f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{tell(each.result)}</td>" for each in shown) + "</tr>"
        for name, tell in told
        if name in known or name not in OPTIONAL
    )
    top = f"<thead><tr><td></td>{head}</tr></thead>" if len(shown) > 1 else ""
    why = "What was asked for, what came out, and how errors were weighed."
    return (
        f'<section class="card"><h2>How it was made</h2><p class="why">{why}</p>'
        f'<table class="facts">{top}<tbody>{rows}</tbody></table></section>\n'
    )


def _quotient(result: SavedResult) -> str:
    if not (result.predicted and result.distortion and result.comparable):
        return NONE
    return f"{short(result.distortion / result.predicted)}"
