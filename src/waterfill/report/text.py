"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from waterfill.compression.bound import BoundRow, ModelBound
from waterfill.evaluation import Evaluation
from waterfill.report.file_table import CAVEAT, OVERHEAD, limit_line, literal, notes_of, plain_table, rate_cells
from waterfill.report.saved import MEASURED_UNITS
from waterfill.report.words import printable, shape_text
from waterfill.results import Outcome

BAR = 24
"""Characters of the longest bar."""

ASKED = {
    "rate": "{:g} bit/value",
    "size_bytes": "{:,.0f} bytes",
    "distortion": "{:g} {unit}",
    "tolerance": "a loss of {:g} in {metric}",
}
"""How a target is told."""


def result_table(result: Outcome, name: str, metric: str = "top-1 accuracy") -> Group:
    """Every tensor of a compression, the whole file, and what was asked of it, predicted and measured.

    Args:
        result: what to tell.
        name: of the file.
        metric: what a tolerance is about.
    """
    table = plain_table(
        ("tensor", "left"), ("shape", "left"), ("bytes", "right"), ("rate", "right"), ("limit", "right"),
        ("gap", "right"), ("distortion", "right"), ("stored as", "left"),
    )  # fmt: skip
    for row in result.tensors:
        loss = "" if row.distortion is None else f"{row.distortion:.3g}"
        rates = rate_cells(row.size_bytes, row.rate, row.limit)
        table.add_row(literal(row.name), shape_text(row.shape), *rates, loss, row.reconstruction)
    table.add_section()
    table.add_row(OVERHEAD, "", f"{result.overhead_bytes:,.0f}")
    lines = [
        f"{name}: {result.size_bytes:,} bytes, {result.rate:.3f} bit/value over {result.floating_values:,} values, "
        f"{result.ratio:.1f} times smaller than {result.original_bytes:,} bytes",
        f"importance {result.importance}, water level {result.water_level:.3g}",
    ]
    lines.append(limit_line(result.rate, result.limit, result.limit_measure))
    notes = notes_of((row.reconstruction, row.reason, row.name) for row in result.tensors)
    notes += _remarks({row.name: row.source_note for row in result.tensors})
    told = [f"note: {printable(note)}" for note in result.notes]
    return Group(table, *map(Text, (*notes, *lines, *told)), _told_table(result, metric))


def _told_table(result: Outcome, metric: str) -> Table:
    """What was asked, predicted and measured: a line for each that there is."""
    unit = result.distortion_unit
    measured = unit if unit in MEASURED_UNITS else "distortion"
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, number in result.target.items():
        table.add_row("asked", literal(ASKED[what].format(number, unit=measured, metric=metric)))
    told = (
        ("predicted", result.predicted_distortion, unit, ", by the importance" + _other(result)),
        ("measured", result.distortion, measured, " on the calibration data"),
        ("held out", _held_out(result), measured, " on those of its batches that nothing was fitted to"),
        ("before tuning", result.untuned_distortion, measured, " on the calibration data"),
    )
    for name, value, its_unit, where in told:
        if value is not None:
            table.add_row(name, literal(f"{value:.4g} {its_unit}{where}"))
    if result.importance_error is not None:
        table.add_row("price error", literal(f"{result.importance_error:.1%} of the importance of a row"))
    return table


def _other(result: Outcome) -> str:
    return "" if result.distortion is None or result.distortion_unit in MEASURED_UNITS else ": not what is measured"


def _held_out(result: Outcome) -> float | None:
    """Distortion on batches that were held out; None where there were so few that all of them were used."""
    return None if result.held_out_distortion == result.distortion else result.held_out_distortion


def _remarks(notes: Mapping[str, str]) -> list[str]:
    """A line that says how many limits have a note, with the first of them; none where all sources fit."""
    found = [f"{printable(name)}: {note}" for name, note in notes.items() if note]
    return [f"notes on limits (source_note of --json): {len(found)}, the first on {found[0]}"] if found else []


def bound_table(bound: ModelBound, rate: float) -> Group:
    """The curve of a model with a bar for every point, and its tensors at one rate."""
    curve = plain_table(
        ("bit/value", "right"), ("bytes", "right"), ("times smaller", "right"), ("distortion", "right"), ("", "left")
    )
    points = bound.curve()
    logs = [math.log10(max(distortion, 1e-300)) for _, distortion in points]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    for (each, distortion), log in zip(points, logs, strict=True):
        size = each * bound.floating_values / 8
        smaller = f"{bound.original_bytes / size:.1f}" if size else ""
        bar = "█" * (1 + round(BAR * (log - low) / max(high - low, 1e-12)))
        curve.add_row(f"{each:.3g}", f"{size:,.0f}", smaller, f"{distortion:.3g}", bar)
    return Group(
        Text(f"The least distortion ({bound.unit}) at every rate, bars in its logarithm:"),
        curve,
        Text(f"\nAt {rate:.4g} bit/value, distortion {bound.distortion(rate):.4g}:"),
        _bound_rows(bound.tensors(rate)),
        Text(_bound_line(bound)),
        *(Text(f"note: {printable(note)}") for note in bound.notes),
    )


def _bound_rows(rows: Sequence[BoundRow]) -> Table:
    table = plain_table(
        ("tensor", "left"), ("shape", "left"), ("bit/value", "right"), ("+-", "right"), ("distortion", "right"),
        ("source model", "left"),
    )  # fmt: skip
    for row in rows:
        name, shape = literal(row.name), shape_text(row.shape)
        if row.rate is None:
            table.add_row(name, shape, "", "", "", f"left out: {row.reason}")
        else:
            numbers = f"{row.rate:.2f}", f"{row.standard_error:.2f}", f"{row.distortion:.3g}"
            table.add_row(name, shape, *numbers, "; ".join(filter(None, (row.source_model, row.source_note))))
    return table


def _bound_line(bound: ModelBound) -> str:
    exact = f"{bound.exact_bits / 8:,.0f} bytes of tensors without loss are in every rate. " if bound.exact_bits else ""
    return (
        f"{bound.floating_values:,} values, {bound.original_bytes:,} bytes, importance {bound.importance}. {exact}"
        f"{CAVEAT} Distortions are those of the importance, true for small errors; nothing was compressed or measured."
    )


def evaluation_table(before: Evaluation, after: Evaluation | None, sizes: Sequence[int] = ()) -> Table:
    """Measured qualities of a model, and of its compressed copy beside it; bytes of both where they are known."""
    names = ("original",) if after is None else ("original", "compressed")
    table = plain_table(("", "left"), *((name, "right") for name in names))
    measured = [before.to_dict()] + ([] if after is None else [after.to_dict()])
    for key in [key for key in measured[-1] if key != "notes"]:
        values = [column.get(key) for column in measured]
        if any(value is not None for value in values):
            table.add_row(key.replace("_", " "), *("" if value is None else f"{value:.6g}" for value in values))
            if key == "total_variation":
                table.add_row("1 - total variation", *("" if value is None else f"{1 - value:.6g}" for value in values))
    if sizes:
        table.add_row("bytes", *(f"{size:,}" for size in sizes))
    return table


def evaluation_notes(before: Evaluation, after: Evaluation | None) -> list[str]:
    """Lines that say how outputs were read."""
    notes = dict.fromkeys((*before.notes, *(() if after is None else after.notes)))
    return [f"note: {printable(note)}" for note in notes]
