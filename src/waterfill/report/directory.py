"""What is in a compressed directory, as a table by group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from waterfill.codec.directory import LARGEST_NUMBER
from waterfill.io.directory import DirectoryReader
from waterfill.report.file_table import plain_table
from waterfill.report.words import printable


def bundle_summary(path: str, bundle: DirectoryReader[Any]) -> dict[str, Any]:
    """What a compressed directory says about itself and each of its groups; nothing is decoded."""
    rows = [_group_row(bundle, group) for group in bundle.groups]
    return {
        "directory": path,
        "size_bytes": bundle.size_bytes,
        "floating_values": bundle.floating_values,
        "original_bytes": sum(row["original_bytes"] for row in rows),
        "rate": 8 * bundle.size_bytes / max(1, bundle.floating_values),
        "limit": _number(bundle.facts.get("limit")),
        "producer": bundle.description.producer,
        "tied": bundle.tied,
        "facts": bundle.facts,
        "groups": rows,
    }


def _group_row(bundle: DirectoryReader[Any], group: str) -> dict[str, Any]:
    file = bundle.file(group)
    values, named = file.floating_values, bundle.facts.get("limits")
    limit = _number(named.get(group)) if isinstance(named, dict) else None
    return {
        "name": group,
        "tensors": len([name for name in bundle.names(group) if name not in bundle.tied]),
        "floating_values": values,
        "size_bytes": file.container.size,
        "original_bytes": file.original_bytes,
        "rate": 8 * file.container.size / max(1, values),
        "limit_bits": limit,
    }


def _number(value: Any) -> float | None:
    """A fact as a number; None for what is none, or too large for one."""
    known = isinstance(value, int | float) and abs(value) <= LARGEST_NUMBER
    return float(value) if known else None


def bundle_table(summary: Mapping[str, Any]) -> Group:
    """The groups of a summary, and the whole of it."""
    table = plain_table(
        ("group", "left"), ("tensors", "right"), ("values", "right"), ("bytes", "right"), ("rate", "right"),
        ("limit", "right"),
    )  # fmt: skip
    for row in summary["groups"]:
        bits = row["limit_bits"]
        limit = "" if bits is None else f"{bits / max(1, row['floating_values']):.2f}"
        numbers = f"{row['tensors']:,}", f"{row['floating_values']:,}", f"{row['size_bytes']:,}", f"{row['rate']:.2f}"
        table.add_row(Text(printable(row["name"])), *numbers, limit)
    size, original = summary["size_bytes"], summary["original_bytes"]
    lines = [f"{printable(name)} is {printable(to)}" for name, to in summary["tied"].items()]
    lines.append(
        f"{summary['directory']}: {size:,} bytes, {summary['rate']:.3f} bit/value over "
        f"{summary['floating_values']:,} values, {original / max(1, size):.1f} times smaller than {original:,} bytes; "
        f"written by {printable(summary['producer'])}; all checksums are right"
    )
    if summary["limit"] is not None:
        lines.append(f"limit of the fitted source {summary['limit']:.3f} bit/value at this distortion")
    return Group(table, *map(Text, lines))
