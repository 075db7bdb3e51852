"""Bytes, bits and losses of the largest tensors as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

from waterfill.report.svg import Shown, share
from waterfill.report.words import NONE, fixed, safe, shape_text, size_text
from waterfill.results import TensorReport

MOST_BARS = 40
"""Most tensors that have bars of their own."""


def bars(shown: Sequence[Shown]) -> str:
    """Bytes, bits per value with the limit, and the share of the loss of the largest tensors."""
    rows = [{row.name: row for row in each.result.tensors} for each in shown]
    largest = {name: max(found[name].size_bytes for found in rows if name in found) for found in rows for name in found}
    names = [name for name in sorted(largest, key=lambda name: -largest[name]) if largest[name] > 0]
    kept = names[:MOST_BARS]
    some = [found[name] for name in kept for found in rows if name in found]
    most_bytes = max((row.size_bytes for row in some), default=1.0)
    most_bits = _top([row.rate for row in some] + [row.limit or 0.0 for row in some])
    totals = [each.result.sum_of_tensors or 0.0 for each in shown]
    shares = [_loss(found.get(name), total) for name in kept for found, total in zip(rows, totals, strict=True)]
    most_loss = max((share for share in shares if share), default=1.0)
    lines = []
    for name in kept:
        cells = ["", "", ""]
        for each, found, total in zip(shown, rows, totals, strict=True):
            row = found.get(name)
            cells[0] += _bytes_bar(each, row, most_bytes)
            cells[1] += _bits_bar(each, row, most_bits)
            cells[2] += _loss_bar(each, _loss(row, total), most_loss)
        lines.append(f'<div class="bar"><b>{safe(name)}</b>' + "".join(f"<span>{cell}</span>" for cell in cells))
        lines.append("</div>")
    more = len(names) - len(kept)
    rest = sum(largest[name] for name in names[MOST_BARS:])
    if more > 0:
        lines.append(f'<p class="more">and {more:,} smaller tensors with {size_text(rest)} together, in the table</p>')
    return "".join(lines)


def _top(rates: Sequence[float]) -> float:
    """Where the axis of bits ends: a few tensors of 32 bits and more do not make all others invisible."""
    known = sorted(rate for rate in rates if math.isfinite(rate))
    if not known:
        return 1.0
    usual = known[int(0.9 * (len(known) - 1))]
    return max(1.0, min(known[-1], 2.0 * usual))


def _loss(row: TensorReport | None, total: float) -> float | None:
    known = row is not None and row.distortion is not None and math.isfinite(row.distortion) and total > 0
    return row.distortion / total if known and row is not None and row.distortion is not None else None


def _lane(tone: str, part: float, number: str, title: str, extra: str = "") -> str:
    return (
        f'<span class="lane"><svg class="lane-plot" height="12" width="100%"><title>{title}</title>'
        f'<rect class="track" width="100%" height="12" rx="2"/>'
        f'<rect class="fill tone-{tone}" width="{share(min(1.0, max(0.0, part)))}" height="12" rx="2"/>{extra}</svg>'
        f"<i>{number}</i></span>"
    )


def _bytes_bar(each: Shown, row: TensorReport | None, most: float) -> str:
    if row is None:
        return _lane(each.tone, 0, NONE, f"not in {safe(each.label)}")
    title = f"{row.size_bytes:,.0f} bytes of {safe(each.label)}, shape {shape_text(row.shape)}"
    return _lane(each.tone, row.size_bytes / most, size_text(row.size_bytes), title)


def _bits_bar(each: Shown, row: TensorReport | None, most: float) -> str:
    if row is None:
        return _lane(each.tone, 0, NONE, f"not in {safe(each.label)}")
    title, mark = f"{fixed(row.rate, 3)} bit per value", ""
    if row.limit is not None and math.isfinite(row.limit):
        title += f", limit {fixed(row.limit, 3)}"
        x = share(min(1.0, max(0.0, row.limit / most)))
        lines = (f'<line class="{kind}" x1="{x}" x2="{x}" y1="0" y2="12"/>' for kind in ("halo", "mark"))
        mark = "".join(lines)
    if row.rate > most:
        title += "; longer than the picture"
        mark += '<path class="cut" d="M0,0"/>'
    return _lane(each.tone, row.rate / most, fixed(row.rate), title, mark)


def _loss_bar(each: Shown, share: float | None, most: float) -> str:
    if share is None:
        return _lane(each.tone, 0, NONE, "no prediction")
    shown = f"{100 * share:.1f} %" if share >= 5e-4 or not share else "< 0.1 %"
    return _lane(each.tone, share / most, shown, f"{100 * share:.2f} % of the predicted distortion")
