"""Pictures of saved results as inline SVG, which takes its colours from the style sheet of the page.

Places along the width are percentages, so that a picture fits a telephone and a sheet of paper with letters of one
size; places along the height are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from waterfill.report.saved import SavedResult, SavedTensor
from waterfill.report.words import NONE, TIMES, fixed, plain, printable, safe, shape_text, short, size_text

HEIGHT, FOOT, TOP = 430, 34, 16
"""Pixels of a plot, those below its axis, and those above its highest line."""

BINS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Bits per value where one colour ends and the next begins."""

MOST_BARS = 40
"""Most tensors that have bars of their own."""

OCTAVES = 6.0
"""How far a column reaches at most, in factors of two above or below the mean."""

COLUMNS = 0.9
"""Part of the width that columns take; the rest is for what the lines mean."""


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


def _share(part: float) -> str:
    return f"{100 * part:.2f}%"


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start", shift: int = 0) -> str:
    """A line of text; `words` are safe already."""
    return f'<text class="{kind}" x="{_share(x)}" y="{y:.0f}" dx="{shift}" text-anchor="{anchor}">{words}</text>'


def _svg(height: int, label: str, body: Iterable[str]) -> str:
    return f'<svg class="plot" role="img" aria-label="{label}" width="100%" height="{height}">{"".join(body)}</svg>'


def ticks(high: float, count: int = 6) -> list[float]:
    """Round numbers from 0 to `high`, about so many."""
    raw = high / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    return [step * index for index in range(int(high / step + 1e-9) + 1)]


# Rate against distortion


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
    return _svg(HEIGHT, f"Rate against distortion: {words}", body)


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
        yield _text(1, y - 4, f"{100 * 10.0**-power:.10g} %", "tick", "end")
    yield f'<line class="axis" x1="0" x2="100%" y1="{floor}" y2="{floor}"/>'
    for rate in ticks(plane.high):
        x = plane.x(rate)
        if x < 0.93:
            yield _text(x, floor + 16, f"{rate:.10g}", "tick", "middle" if rate else "start")
    yield _text(1, floor + 16, "bit / value", "tick", "end")


def _limit_line(plane: Plane, each: Shown, *, alone: bool) -> str:
    """The curve, and beneath it what no code reaches."""
    points = [(plane.x(rate), plane.y(share)) for rate, share in each.result.curve]
    floor = HEIGHT - FOOT
    line = " L".join(f"{1000 * x:.1f},{y:.1f}" for x, y in points)
    first, last = 1000 * points[0][0], 1000 * points[-1][0]
    area = f'<path class="beyond" d="M{line} L{last:.1f},{floor} L{first:.1f},{floor}Z"/>' if alone else ""
    kind = "limit" if alone else f"limit tone-{each.tone}"
    label = _text(0.02, floor - 12, "out of reach, on average", "note") if alone else ""
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
        gap = f'<line class="gap tone-{each.tone}" x1="{_share(left)}" x2="{_share(x)}" y1="{y:.1f}" y2="{y:.1f}"/>'
        words += f", gap {fixed(result.gap, 3)}"
        title += f", limit {fixed(result.limit, 3)}, gap {fixed(result.gap, 3)}"
    anchor, shift = ("start", 10) if x < 0.62 else ("end", -10)
    lines = (y + 22, y + 38) if below else (y - 24, y - 8)
    return (
        f'<g><title>{title}</title>{gap}<circle class="file tone-{each.tone}" cx="{_share(x)}" cy="{y:.1f}" r="6.5"/>'
        f"{_text(x, lines[0], _cut(each.label, 20), 'name', anchor, shift)}"
        f"{_text(x, lines[1], words, 'value', anchor, shift)}</g>"
    )


def _cut(name: str, most: int) -> str:
    """A name without its middle, where it is long; safe."""
    text = printable(name)
    return safe(text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}")


# Bytes as areas


def colour(rate: float) -> str:
    """Class of the colour of so many bits per value."""
    return f"q{sum(rate >= edge for edge in BINS)}"


def bytes_map(each: Shown) -> str:
    """Every tensor as an area of its bytes, darker the more bits a value takes."""
    rows = sorted((row for row in each.result.tensors if row.size_bytes > 0), key=lambda row: -row.size_bytes)
    extra = max(0.0, each.result.overhead_bytes) if math.isfinite(each.result.overhead_bytes) else 0.0
    if not rows and not extra:
        return ""
    items: list[SavedTensor | None] = [*rows]
    place = next((index for index, row in enumerate(rows) if row.size_bytes < extra), len(rows))
    if extra:
        items.insert(place, None)
    whole = sum(row.size_bytes for row in rows) + extra
    areas = [(extra if row is None else row.size_bytes) / whole for row in items]
    body = [_tile(row, extra, box, whole) for row, box in zip(items, squarified(areas, 2.4), strict=True)]
    label = f"Bytes of the {len(rows)} tensors of {safe(each.label)} that take any"
    return f'<div class="map" role="img" aria-label="{label}">{"".join(body)}</div>'


def _tile(row: SavedTensor | None, extra: float, box: tuple[float, float, float, float], whole: float) -> str:
    x, y, width, height = box
    size = extra if row is None else row.size_bytes
    name = "header, directory" if row is None else _cut(row.name, 60)
    told = f"{size:,.0f} bytes, {100 * size / whole:.1f} % of the file"
    told += "" if row is None else f", {fixed(row.rate)} bit per value"
    kind = "over" if row is None else colour(row.rate)
    inner = ""
    if width > 0.06 and height > 0.07:
        detail = size_text(size) if row is None else f"{size_text(size)} · {fixed(row.rate, 1)} bit"
        inner = f"<b>{name}</b>" + (f"<span>{detail}</span>" if height > 0.13 else "")
    place = f"left:{_share(x)};top:{_share(y)};width:{_share(width)};height:{_share(height)}"
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


# Bytes and bits as bars


def bars(shown: Sequence[Shown]) -> str:
    """Bytes, bits per value with the limit, and the share of the loss of the largest tensors."""
    rows = [{row.name: row for row in each.result.tensors} for each in shown]
    largest = {name: max(found[name].size_bytes for found in rows if name in found) for found in rows for name in found}
    names = [name for name in sorted(largest, key=lambda name: -largest[name]) if largest[name] > 0]
    kept = names[:MOST_BARS]
    some = [found[name] for name in kept for found in rows if name in found]
    most_bytes = max((row.size_bytes for row in some), default=1.0)
    most_bits = _top([row.rate for row in some] + [row.limit or 0.0 for row in some])
    totals = [each.result.predicted or 0.0 for each in shown]
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


def _loss(row: SavedTensor | None, total: float) -> float | None:
    known = row is not None and row.distortion is not None and math.isfinite(row.distortion) and total > 0
    return row.distortion / total if known and row is not None and row.distortion is not None else None


def _lane(tone: str, part: float, number: str, title: str, extra: str = "") -> str:
    return (
        f'<span class="lane"><svg class="lane-plot" height="12" width="100%"><title>{title}</title>'
        f'<rect class="track" width="100%" height="12" rx="2"/>'
        f'<rect class="fill tone-{tone}" width="{_share(min(1.0, max(0.0, part)))}" height="12" rx="2"/>{extra}</svg>'
        f"<i>{number}</i></span>"
    )


def _bytes_bar(each: Shown, row: SavedTensor | None, most: float) -> str:
    if row is None:
        return _lane(each.tone, 0, NONE, f"not in {safe(each.label)}")
    title = f"{row.size_bytes:,.0f} bytes of {safe(each.label)}, shape {shape_text(row.shape)}"
    return _lane(each.tone, row.size_bytes / most, size_text(row.size_bytes), title)


def _bits_bar(each: Shown, row: SavedTensor | None, most: float) -> str:
    if row is None:
        return _lane(each.tone, 0, NONE, f"not in {safe(each.label)}")
    title, mark = f"{fixed(row.rate, 3)} bit per value", ""
    if row.limit is not None and math.isfinite(row.limit):
        title += f", limit {fixed(row.limit, 3)}"
        x = _share(min(1.0, max(0.0, row.limit / most)))
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


# The water level


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
        body.append(_text(1, middle - unit * power - 4, words, "tick", "end"))
    return _svg(240, f"Distortion per value of {len(rows)} tensors against their mean, {safe(each.label)}", body)


def _column(row: SavedTensor, x: float, width: float, height: float, total: float, middle: float) -> str:
    ratio = short((row.distortion or 0.0) / row.numel)
    top = middle - height if height > 0 else middle
    kind = "above" if height > 0 else "under"
    title = (
        f"{safe(row.name)}: {ratio} per value, {100 * (row.distortion or 0.0) / total:.1f} % of the whole, "
        f"{row.numel:,} values"
    )
    size = f'width="{_share(width)}" height="{max(1.0, abs(height)):.1f}"'
    return f'<rect class="{kind}" x="{_share(x)}" y="{top:.1f}" {size}><title>{title}</title></rect>'


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
        body.append(f'<line class="grid" x1="{_share(x)}" x2="{_share(x)}" y1="4" y2="{floor}"/>')
        body.append(_text(x, floor + 16, plain(value), "tick", "middle"))
    for index, (each, marks) in enumerate(told):
        y = 38 + 58 * index
        places = {name: (math.log10(value) - low) / (high - low) for name, value in marks}
        ends = sorted(places.values())
        if ends:
            body.append(
                f'<line class="gap tone-{each.tone}" x1="{_share(ends[0])}" x2="{_share(ends[-1])}" y1="{y}" y2="{y}"/>'
            )
        body += [_told_mark(each, name, value, places[name], y) for name, value in marks]
    return _svg(floor + 24, "Distortion: asked, predicted and measured", body)


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
        "asked": f'<line class="asked" x1="{_share(x)}" x2="{_share(x)}" y1="{y - 11}" y2="{y + 11}"/>',
        "predicted": f'<circle class="hollow tone-{each.tone}" cx="{_share(x)}" cy="{y}" r="6"/>',
        "measured": f'<circle class="file tone-{each.tone}" cx="{_share(x)}" cy="{y}" r="6.5"/>',
    }[name]
    below = {"asked": y + 26, "predicted": y + 22, "measured": y - 13}[name]
    words = _text(x, below, f"{name} {short(value)}", "value", _anchor(x))
    return f"<g><title>{name}: {short(value)}</title>{shape}{words}</g>"


def _anchor(x: float) -> str:
    """The end of a text that keeps it inside the picture."""
    return "start" if x < 0.25 else "end" if x > 0.75 else "middle"
