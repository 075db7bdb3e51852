"""What is in a file, as a table for the terminal; and what other tables share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from waterfill.codec.order import places
from waterfill.io.file import FileReader
from waterfill.reconstruct import step_table
from waterfill.records import Codebook, Entry, Exact, Relative, Tied, Uniform
from waterfill.report.words import printable, shape_text
from waterfill.results import percent_above

OVERHEAD = "header, directory"
BELOW = "below it: chance in the fit, or structure that the source model lacks"
CAVEAT = (
    "A limit is a lower bound under a source model that is fitted to every tensor: proven for the average over such "
    "networks, not for this one."
)


def file_summary(path: str, file: FileReader[Any]) -> dict[str, Any]:
    """What a file says about itself and each of its tensors; decodes all symbols."""
    size, values, limit = file.container.size, max(1, file.floating_values), file.container.limit
    shares = file.container.tensor_bytes()
    return {
        "file": path,
        "size_bytes": size,
        "floating_values": file.floating_values,
        "original_bytes": file.original_bytes,
        "rate": 8 * size / values,
        "limit": None if limit is None else limit.bits / values,
        "limit_measure": None if limit is None else limit.measure,
        "producer": file.container.producer,
        "plain": file.container.is_plain,
        "overhead_bytes": size - sum(shares.values()),
        "tensors": [_file_row(file, entry, shares.get(entry.name, 0.0)) for entry in file.entries],
    }


def _file_row(file: FileReader[Any], entry: Entry, size: float) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "shape": list(entry.shape), "dtype": entry.dtype}
    row |= {"size_bytes": size, "rate": 8 * size / max(1, math.prod(entry.shape))}
    row["limit"] = None if file.container.limit is None else file.container.limit.rates.get(entry.name)
    rule, spread = file.container.rules.get(entry.name, (None, None))
    basis = file.container.bases.get(entry.name)
    row |= {} if basis is None else {"basis": basis.name}
    match entry.origin:
        case Exact(reason):
            return row | {"reconstruction": "exact", "detail": reason}
        case Tied(to):
            return row | {"reconstruction": "tied", "detail": f"the same tensor as {to}"}
    if isinstance(rule, Relative):
        return row | {"reconstruction": "relative", "detail": f"{rule.mantissa} mantissa bits"}
    below = row["limit"] is not None and row["rate"] < row["limit"]
    if isinstance(rule, Codebook):
        return row | {"reconstruction": "codebook", "detail": BELOW if below else "", "values": len(rule.values)}
    if isinstance(rule, Uniform):
        layout = file.container.layouts[entry.name]
        steps = step_table(rule, places(layout, rule.scales, 0, layout.numel), 1)  # the least one first
        low, high = (float(steps[0]), float(steps[-1])) if layout.numel else (0.0, 0.0)
        return row | {
            "reconstruction": spread.levels if spread else "uniform",
            "detail": BELOW if below else "",
            "steps": [low, high],
        }
    return row | {"reconstruction": "constant", "detail": "folded into scale and shift of its norm"}


def file_table(summary: Mapping[str, Any]) -> Group:
    """The rows of a summary, and the whole of it."""
    table = plain_table(
        ("tensor", "left"), ("shape", "left"), ("bytes", "right"), ("rate", "right"), ("limit", "right"),
        ("gap", "right"), ("stored as", "left"),
    )  # fmt: skip
    for row in summary["tensors"]:
        rates = rate_cells(row["size_bytes"], row["rate"], row["limit"])
        shape = shape_text(row["shape"]) + ("" if row["dtype"] == "float32" else f" {row['dtype']}")
        stored = ", ".join(filter(None, (row["reconstruction"], row.get("basis"))))
        table.add_row(literal(row["name"]), shape, *rates, stored)
    table.add_section()
    table.add_row(OVERHEAD, "", f"{summary['overhead_bytes']:,.0f}")
    size, original = summary["size_bytes"], summary["original_bytes"]
    plain = " as a plain file" if summary["plain"] else ""
    lines = [
        f"{summary['file']}: {size:,} bytes, {summary['rate']:.3f} bit/value over {summary['floating_values']:,} "
        f"values, {original / size:.1f} times smaller than {original:,} bytes; "
        f"written by {printable(summary['producer'])}{plain}; all checksums are right"
    ]
    if summary["limit"] is not None:
        lines.append(limit_line(summary["rate"], summary["limit"], summary["limit_measure"]))
    notes = notes_of((row["reconstruction"], row["detail"], row["name"]) for row in summary["tensors"])
    return Group(table, *map(Text, (*notes, *lines)))


def rate_cells(size: float, rate: float, limit: float | None) -> tuple[str, str, str, str]:
    """Bytes, bits per value, the limit, and the gap between them in bits per value and percent; empty for none."""
    sizes = (f"{size:,.0f}", f"{rate:.2f}") if size else ("", "")
    if limit is None:
        return *sizes, "", ""
    percent = percent_above(rate, limit)
    return *sizes, f"{limit:.2f}", f"{rate - limit:.2f}" + ("" if percent is None else f" {percent:.0f}%")


def notes_of(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """Why tensors are stored as they are: a line for every reason, from (how, reason, name)."""
    names: dict[tuple[str, str], list[str]] = {}
    for kind, reason, name in rows:
        if reason:
            names.setdefault((kind, reason), []).append(printable(name))
    return [
        f"{kind}, {printable(reason)}: {found[0]}" + (f" and {len(found) - 1} more" if len(found) > 1 else "")
        for (kind, reason), found in names.items()
    ]


def limit_line(rate: float, limit: float, measure: str) -> str:
    """How far a file is from its limit, in a line."""
    percent = percent_above(rate, limit)
    share = "" if percent is None else f" ({percent:.1f} %)"
    where = f"{abs(rate - limit):.3f} bit/value {BELOW if rate < limit else f'above it{share}'}"
    by = f"at this distortion (measured by {printable(measure)})"
    return f"limit of the fitted source {limit:.3f} bit/value {by}; the file is {where}. {CAVEAT}"


def plain_table(*columns: tuple[str, str]) -> Table:
    """A table without lines, of columns (name, side); names of tensors wrap."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    for name, side in columns:
        wraps = name in ("tensor", "source model")
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=not wraps, overflow="fold")
    return table


def literal(text: str) -> Text:
    """Text as it is: no markup, and no control characters for the terminal."""
    return Text(printable(text))
