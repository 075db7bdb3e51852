"""A result, or two beside each other, as one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from itertools import pairwise

from waterfill.errors import UsageError
from waterfill.report.asked_plot import asked_plot
from waterfill.report.bars import MOST_BARS, bars
from waterfill.report.bytes_map import BINS, bytes_map
from waterfill.report.curve_plot import curve_plot
from waterfill.report.level_plot import level_plot
from waterfill.report.saved import SavedResult
from waterfill.report.summary import details, lead, tiles
from waterfill.report.svg import Shown
from waterfill.report.table import one_table, two_tables
from waterfill.report.words import NONE, fixed, safe

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""What a browser lets the page do: show its own style, run its own script, and call nobody."""

CAVEAT = (
    "The limit is that of the fitted source: a lower bound under a source model of every tensor. It is proven for the "
    "average over networks drawn from such sources, not for this one network; structure that the model lacks can put a "
    "tensor below."
)


def page(results: Mapping[str, SavedResult]) -> str:
    """One page of HTML about one result, or about two.

    Args:
        results: by the name that the page gives to each, one or two; the first is what the second is compared with.

    Returns:
        The whole document. The same results make the same text; it names no address outside itself.

    Raises:
        UsageError: there is no result, or there are more than two.
    """
    if len(results) not in (1, 2):
        raise UsageError(f"Got {len(results)} results; expected one, or two to compare.")
    shown = [Shown(name, tone, result) for tone, (name, result) in zip("ab", results.items(), strict=False)]
    names = " and ".join(safe(each.label) for each in shown)
    body = "".join((_header(shown), _trade(shown), _maps(shown), _bars(shown), _levels(shown), _table(shown)))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<title>{names} · waterfill</title>\n'
        f"<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n<main>\n{body}"
        f"<footer>{CAVEAT}</footer>\n</main>\n<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files("waterfill.report").joinpath(name).read_text(encoding="utf-8")


def _header(shown: list[Shown]) -> str:
    title = ' <span class="against">against</span> '.join(
        f'<span class="tone-{each.tone}">{safe(each.label)}</span>' if len(shown) > 1 else safe(each.label)
        for each in (shown[1:] + shown[:1] if len(shown) > 1 else shown)
    )
    return (
        f'<header><p class="brand">waterfill report</p><h1>{title}</h1><p class="lead">{lead(shown)}</p></header>\n'
        f"{tiles(shown)}{_notes(shown)}"
    )


def _notes(shown: list[Shown]) -> str:
    """What has to be said about the results, a line each; nothing where there is nothing."""
    several = len(shown) > 1
    told = [
        f"{safe(each.label)}: {safe(note)}" if several else safe(note) for each in shown for note in each.result.notes
    ]
    lines = "".join(f'<p class="note-line">{text}</p>' for text in told)
    return f'<div class="notes">{lines}</div>' if lines else ""


def _section(title: str, text: str, body: str, kind: str = "") -> str:
    return f'<section class="card {kind}"><h2>{title}</h2><p class="why">{text}</p>{body}</section>\n'


def _keys(items: Iterable[tuple[str, str]]) -> str:
    return '<p class="keys">' + "".join(f'<span><i class="{kind}"></i>{text}</span>' for kind, text in items) + "</p>"


def _files(shown: list[Shown], kind: str) -> list[tuple[str, str]]:
    """Keys of the colours of two files; none are needed for one."""
    return [(f"{kind} tone-{each.tone}", safe(each.label)) for each in shown] if len(shown) > 1 else []


def _trade(shown: list[Shown]) -> str:
    plot, lines = curve_plot(shown), []
    lacking = [safe(each.label) for each in shown if not each.result.curve]
    if lacking:
        lines.append(f"{' and '.join(lacking)} has no curve of the limit; compress again to get one.")
    measures = {each.result.limit_measure for each in shown if each.result.curve}
    if len(measures) > 1:
        named = " and ".join(safe(measure) for measure in sorted(measures))
        lines.append(f"The limits are measured by {named}: hold each file against its own curve only.")
    elif measures:
        lines.append(f"Distortion as measured by {safe(next(iter(measures)))}, of what no bits at all would cost.")
    notes = f'<p class="note-line">{" ".join(lines)}</p>'
    keys = _keys([("key-limit", "the limit"), *(_files(shown, "dot") or [("dot tone-a", "this file")])]) if plot else ""
    curve = _section(
        "Bits against loss",
        "The curve is the least distortion that any code can have at a rate. A file lies to its right by the gap.",
        keys + (plot or _no_curve(shown)) + notes,
    )
    return f'<div class="pair">{curve}<div class="stack">{_asked(shown)}{details(shown)}</div></div>\n'


def _no_curve(shown: list[Shown]) -> str:
    told = ", ".join(
        f"{safe(each.label)}: {fixed(each.result.rate, 3)} bit per value, limit {fixed(each.result.limit, 3)}"
        for each in shown
    )
    return f'<p class="empty">No curve to draw. {told}.</p>'


def _asked(shown: list[Shown]) -> str:
    plot = asked_plot(shown)
    if not plot:
        return _section("Predicted and measured", "Nothing to show: no distortion was measured or predicted.", "")
    why = "The prediction is what the importance says; the measurement is on the calibration data."
    if any(each.result.distortion is not None and not each.result.comparable for each in shown):
        why += " This importance predicts another quantity, so its prediction is not on this axis."
    if any(each.result.held_out is not None for each in shown):
        why += " Held out are those batches of them that nothing was fitted to."
    if all(each.result.distortion is None for each in shown):
        why = "There were no data, so nothing was measured: this is the error of the weights that the importance sees."
    return _section("Predicted and measured", why, _keys(_files(shown, "dot")) + plot)


def _maps(shown: list[Shown]) -> str:
    edges = [f"under {BINS[0]:g}", *(f"{low:g}{NONE}{high:g}" for low, high in pairwise(BINS))]
    scale = '<p class="scale" aria-hidden="true"><span>bit per value</span>' + "".join(
        f'<span class="step q{index}">{text}</span>' for index, text in enumerate([*edges, f"over {BINS[-1]:g}"])
    )
    maps = "".join(
        (f'<h3 class="tone-{each.tone}">{safe(each.label)}</h3>' if len(shown) > 1 else "") + bytes_map(each)
        for each in shown
    )
    return _section(
        "Where the bytes are", "Every tensor is an area of its bytes; the colour says how many bits a value takes.",
        f"{scale}</p>{maps}",
    )  # fmt: skip


def _bars(shown: list[Shown]) -> str:
    heads = '<div class="bar heads" aria-hidden="true"><b>tensor</b><span>bytes</span><span>bit per value</span>'
    heads += "<span>share of the predicted loss</span></div>"
    why = (
        f"The {MOST_BARS} tensors with the most bytes; the table has them all."
        if _many(shown)
        else "From the most bytes to the least."
    )
    keys = _keys([*_files(shown, "block"), ("key-mark", "limit of the tensor at its own distortion")])
    return _section("Tensor by tensor", why, f'{keys}<div class="bars">{heads}{bars(shown)}</div>')


def _many(shown: list[Shown]) -> bool:
    return any(len(each.result.tensors) > MOST_BARS for each in shown)


def _levels(shown: list[Shown]) -> str:
    plots = [(each, level_plot(each)) for each in shown]
    if not any(plot for _, plot in plots):
        return ""
    body = "".join(
        (f'<h3 class="tone-{each.tone}">{safe(each.label)}</h3>' if len(shown) > 1 else "") + plot
        for each, plot in plots
    )
    keys = _keys([("block above", "more loss per value than the mean"), ("block under", "less")])
    return _section(
        "The water level",
        "Distortion per value, in the order of the model; a column is as wide as its tensor has values. Where bits "
        "are shared out well, the tensors stand near one level, except those cheaper to drop and those coded finely.",
        keys + body,
    )


def _table(shown: list[Shown]) -> str:
    table = one_table(shown[0]) if len(shown) == 1 else two_tables(shown[0], shown[1])
    filter_box = (
        '<p class="filter" hidden><label for="filter">Filter</label> <input id="filter" type="search" '
        'placeholder="name, shape or kind" autocomplete="off" spellcheck="false"> <output for="filter"></output></p>'
    )
    return _section(
        "All tensors",
        "Bytes in the file, bits per value, and the distortion that the importance predicts.",
        f'{filter_box}<div class="scroll" role="region" aria-label="All tensors" tabindex="0">{table}</div>',
        "wide",
    )  # fmt: skip
