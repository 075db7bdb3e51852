"""The table of a page: a row for every tensor; the script of the page sorts and filters it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from waterfill.report.svg import Shown
from waterfill.report.words import NONE, fixed, safe, shape_text, short, signed
from waterfill.results import TensorReport


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by; a number of None is last in any order."""

    text: str
    number: float | None = None
    is_number: bool = True
    kind: str = ""


def _words(text: str, kind: str = "") -> Cell:
    return Cell(safe(text), None, False, kind)


def _number(value: float | None, text: str, kind: str = "") -> Cell:
    known = value if value is not None and math.isfinite(value) else None
    return Cell(text if value is not None else NONE, known, True, kind)


def _head(title: str, unit: str = "") -> tuple[str, bool]:
    """The head of a column of numbers."""
    return title + (f"<small>{unit}</small>" if unit else ""), True


FIRST = (("#", True), ("Tensor", False), ("Shape", True))


def one_table(each: Shown) -> str:
    """Everything about every tensor."""
    heads = (
        *FIRST, _head("Values"), _head("Bytes"), _head("Rate", "bit/value"), _head("Limit", "bit/value"),
        _head("Gap", "bit/value"), _head("Gap", "%"), _head("Distortion"), _head("Loss", "% of all"),
        ("Stored as", False), ("Remark", False),
    )  # fmt: skip
    total = each.result.sum_of_tensors or 0.0
    rows = [_one_row(index, row, total) for index, row in enumerate(each.result.tensors, 1)]
    return _table("Every tensor of the file", heads, rows)


def _one_row(index: int, row: TensorReport, total: float) -> list[Cell]:
    share = 100 * row.distortion / total if row.distortion is not None and total > 0 else None
    gap, percent = row.gap, row.gap_percent
    remark = "; ".join(filter(None, (row.source_model, row.source_note, row.reason)))
    return [
        _number(index, f"{index}"),
        _words(row.name, "name"),
        Cell(shape_text(row.shape), row.numel, True, "shape"),
        _number(row.numel, f"{row.numel:,}"),
        _number(row.size_bytes, f"{row.size_bytes:,.0f}"),
        _number(row.rate, fixed(row.rate)),
        _number(row.limit, fixed(row.limit)),
        _number(gap, fixed(gap), "below" if gap is not None and gap < 0 else ""),
        _number(percent, fixed(percent, 0)),
        _number(row.distortion, short(row.distortion)),
        _number(share, fixed(share, 1)),
        _words(row.reconstruction, "kind"),
        _words(remark, "remark"),
    ]


def two_tables(first: Shown, second: Shown) -> str:
    """Differences of every tensor: the second result less the first."""
    a, b = (f'<span class="tone-{each.tone}">{each.tone.upper()}</span>' for each in (first, second))
    heads = (
        *FIRST,
        _head(f"Bytes {a}"), _head(f"Bytes {b}"), _head("Bytes", "difference"),
        _head(f"Rate {a}", "bit/value"), _head(f"Rate {b}", "bit/value"), _head("Rate", "difference"),
        _head(f"Gap {a}", "bit/value"), _head(f"Gap {b}", "bit/value"),
        _head(f"Distortion {a}"), _head(f"Distortion {b}"), _head("Distortion", f"{b} / {a}"),
    )  # fmt: skip
    found = [{row.name: row for row in each.result.tensors} for each in (first, second)]
    names = list(dict.fromkeys([*found[0], *found[1]]))
    rows = [_two_row(index, name, found[0].get(name), found[1].get(name)) for index, name in enumerate(names, 1)]
    caption = f"{a} is {safe(first.label)}, {b} is {safe(second.label)}; differences are {b} less {a}"
    return _table(caption, heads, rows)


def _two_row(index: int, name: str, a: TensorReport | None, b: TensorReport | None) -> list[Cell]:
    sizes = [None if row is None else row.size_bytes for row in (a, b)]
    rates = [None if row is None else row.rate for row in (a, b)]
    gaps = [None if row is None else row.gap for row in (a, b)]
    losses = [None if row is None else row.distortion for row in (a, b)]
    some = next(row for row in (a, b) if row is not None)  # the name is of one of them
    more, faster = _difference(sizes), _difference(rates)
    quotient = losses[1] / losses[0] if losses[0] and losses[1] is not None else None
    return [
        _number(index, f"{index}"),
        _words(name, "name"),
        Cell(shape_text(some.shape), some.numel, True, "shape"),
        *(_number(size, fixed(size, 0)) for size in sizes),
        _number(more, signed(more, 0), _kind(more)),
        *(_number(rate, fixed(rate)) for rate in rates),
        _number(faster, signed(faster), _kind(faster)),
        *(_number(gap, fixed(gap)) for gap in gaps),
        *(_number(loss, short(loss)) for loss in losses),
        _number(quotient, short(quotient)),
    ]


def _difference(pair: Sequence[float | None]) -> float | None:
    return None if pair[0] is None or pair[1] is None else pair[1] - pair[0]


def _kind(change: float | None) -> str:
    return "" if not change else "more" if change > 0 else "less"


def _table(caption: str, heads: Sequence[tuple[str, bool]], rows: Sequence[Sequence[Cell]]) -> str:
    head = "".join(f'<th scope="col" class="{"number" if numeric else "words"}">{text}</th>' for text, numeric in heads)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return (
        f'<table class="sortable"><caption>{caption}</caption><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )


def _cell(cell: Cell) -> str:
    """A cell; its number is told exactly for the script, where the text is rounded."""
    kind = " ".join(filter(None, ("number" if cell.is_number else "words", cell.kind)))
    value = "" if not cell.is_number else f' data-value="{"" if cell.number is None else repr(cell.number)}"'
    if cell.kind == "name":
        return f'<th scope="row" class="{kind}">{cell.text}</th>'
    return f'<td class="{kind}"{value}>{cell.text}</td>'
