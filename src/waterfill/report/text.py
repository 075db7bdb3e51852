"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from waterfill.evaluate import Evaluation
from waterfill.files import WaterfillFile
from waterfill.reconstruct import step_sizes
from waterfill.records import CompressionResult, Entry, Exact, Relative, Tied, Uniform


def result_table(result: CompressionResult, name: str) -> Group:
    """Every tensor of a compression, and the whole file."""
    table = _table(
        ("tensor", "left"), ("shape", "left"), ("bytes", "right"), ("bit/value", "right"), ("distortion", "right"),
        ("stored as", "left"), ("why", "left"),
    )  # fmt: skip
    for row in result.tensors:
        loss = "" if row.distortion is None else f"{row.distortion:.3g}"
        size, rate = (f"{row.size_bytes:,.0f}", f"{row.rate:.2f}") if row.size_bytes else ("", "")
        cells = (row.name, _shape(row.shape), size, rate, loss, row.reconstruction, row.reason)
        table.add_row(*map(_literal, cells))
    table.add_section()
    table.add_row("header, directory, checksums", "", f"{result.overhead_bytes:,.0f}")
    lines = [
        f"{name}: {result.size_bytes:,} bytes, {result.rate:.3f} bit/value over {result.floating_values:,} values, "
        f"{result.ratio:.1f} times smaller than {result.original_bytes:,} bytes",
        f"importance {result.importance}, water level {result.water_level:.3g}",
    ]
    if result.distortion is not None:
        lines[1] += f", measured distortion on the calibration data {result.distortion:.4g}"
    return Group(table, *(Text(line) for line in lines))


def file_rows(file: WaterfillFile) -> list[dict[str, Any]]:
    """What a file says about each of its tensors."""
    return [_file_row(file, entry) for entry in file.entries]


def _file_row(file: WaterfillFile, entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "shape": list(entry.shape), "dtype": entry.dtype}
    rule = file.container.rules.get(entry.name, (None, None))[0]
    match entry.origin:
        case Exact(reason):
            return row | {"reconstruction": "exact", "detail": reason}
        case Tied(to):
            return row | {"reconstruction": "tied", "detail": f"the same tensor as {to}"}
    if isinstance(rule, Relative):
        return row | {"reconstruction": "relative", "detail": f"{rule.mantissa} mantissa bits"}
    if isinstance(rule, Uniform):
        layout = file.container.layouts[entry.name]
        steps = step_sizes(rule, layout, 0, layout.numel)
        low, high = (float(steps.min()), float(steps.max())) if steps.size else (0.0, 0.0)
        detail = f"step {low:.3g}" if math.isclose(low, high) else f"steps {low:.3g} to {high:.3g}"
        return row | {"reconstruction": "uniform", "detail": detail}
    return row | {"reconstruction": "constant", "detail": "folded into scale and shift of its norm"}


def file_table(file: WaterfillFile, rows: Sequence[dict[str, Any]]) -> Group:
    """The rows of a file, and the whole of it."""
    table = _table(("tensor", "left"), ("type", "left"), ("shape", "left"), ("stored as", "left"), ("detail", "left"))
    for row in rows:
        cells = (row["name"], row["dtype"], _shape(row["shape"]), row["reconstruction"], row["detail"])
        table.add_row(*map(_literal, cells))
    size, values = file.container.size, file.floating_values
    line = (
        f"{file.container.name}: {size:,} bytes, {8 * size / max(1, values):.3f} bit/value over {values:,} values, "
        f"{file.original_bytes / size:.1f} times smaller than {file.original_bytes:,} bytes; "
        f"written by {file.container.producer}; all checksums are right"
    )
    return Group(table, Text(line))


def evaluation_table(before: Evaluation, after: Evaluation | None) -> Table:
    """Measured qualities of a model, and of its compressed copy beside it."""
    names = ("original",) if after is None else ("original", "compressed")
    table = _table(("", "left"), *((name, "right") for name in names))
    measured = [before.to_dict()] + ([] if after is None else [after.to_dict()])
    for key in measured[-1]:
        values = [column.get(key) for column in measured]
        if any(value is not None for value in values):
            table.add_row(key.replace("_", " "), *("" if value is None else f"{value:.6g}" for value in values))
    return table


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in columns:
        wraps = name in ("tensor", "why")
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=not wraps, overflow="fold")
    return table


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _literal(text: str) -> Text:
    """Text as it is: no markup, and no control characters for the terminal."""
    return Text(text if text.isprintable() else repr(text)[1:-1])
