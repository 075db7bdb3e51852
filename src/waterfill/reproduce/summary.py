"""A table of results for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.text import Text

from waterfill.report.file_table import plain_table
from waterfill.reproduce.claims import compare, curve, smallest_within


def reproduction_table(results: Mapping[str, Any]) -> Group:
    """Every objective against the baseline at equal ratios, and the smallest file that is nearly as good."""
    table = plain_table(
        ("compressor", "left"), ("objective", "left"), ("cross-entropy lower", "right"),
        ("accuracy not lower", "right"), ("bytes within 1 point", "right"), ("T", "right"), ("mu", "right"),
    )  # fmt: skip
    for task in ("prune", "quantize"):
        baseline = curve(results, task, "baseline")
        for name in dict.fromkeys(row["objective"] for row in results["points"]):
            rows = curve(results, task, name)
            least = smallest_within(results, rows, 1.0)
            loss = compare(rows, baseline, "cross_entropy", "paper_ratio")
            hits = compare(rows, baseline, "accuracy", "paper_ratio")
            counts = (f"{loss.better} of {loss.count}", f"{hits.better + hits.equal} of {hits.count}")
            best = ("none", "", "")
            if least is not None:
                best = (f"{least['size_bytes']:,}", f"{least['temperature']:g}", f"{least['mu']:g}")
            table.add_row(task, name, *(("", "") if name == "baseline" else counts), *best)
    original = results["original"]
    line = (
        f"original: {results['original_bytes']:,} bytes, top-1 {100 * original['accuracy']:.2f} %, cross-entropy "
        f"{original['cross_entropy']:.4f}, on {results['test_samples']:,} test samples. Counts are over the ratios (by "
        "the paper's formula) that the baseline covers too."
    )
    return Group(table, Text(line))
