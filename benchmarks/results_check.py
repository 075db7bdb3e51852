"""Find pages of results that fell behind the code: make one cheap row of each again, and compare README with pages.

Made for `make results-check`: minutes on two cores. Times are never compared. Data are found through `$WATERFILL_DATA`;
rows are not sampled without.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import commits
import readme_numbers
import results
import stamps
from measure import say
from samples import SAMPLES, Sample
from waterfill import zoo
from waterfill.threads import one_thread

AS_RECORDED, BEHIND, FAILED, UNKNOWN, NOT_SAMPLED = "as recorded", "behind", "failed", "not on the page", "not sampled"
BAD = (BEHIND, FAILED, UNKNOWN)
Row = dict[str, Any]


def main() -> int:
    """Print a row for every number; 1 where a page or README is behind."""
    options = _options()
    rows = [] if options.readme else [row for page in options.only for row in checked(page)]
    if rows:
        print(results.table(rows))
    different = readme()
    print("\n".join(different or ["README says what the pages say."]))
    return int(bool(different) or any(row["verdict"].startswith(BAD) for row in rows))


def checked(page: str) -> Iterator[Row]:
    """Compare numbers of a page.

    Args:
        page: its name.

    Yields:
        A row for each number: recorded, now, the verdict; the commit of the row, or the oldest of the page, and how
        many changed the library since.
    """
    sample = SAMPLES.get(page, f"{FAILED}: it has no line in benchmarks/samples.py")
    if isinstance(sample, str):
        verdict = sample if sample.startswith(FAILED) else f"{NOT_SAMPLED}: {sample}"
        yield {"page": page, "row": "", "recorded": "", "now": "", "verdict": verdict} | age(page)
        return
    data = results.read(sample.source or page)
    end = age(page, recorded_row(sample, data).get("commit"))
    for name, recorded, now, verdict in compared(sample, data):
        yield {"page": page, "row": f"{sample.row}: {name}", "recorded": recorded, "now": now, "verdict": verdict} | end


def compared(sample: Sample, data: Row) -> Iterator[tuple[str, Any, Any, str]]:
    """Make a row again; gives column, recorded number, the one of now and the verdict.

    Args:
        sample: which row.
        data: of the page.
    """
    recorded = recorded_row(sample, data)
    made = _why_not(recorded) or _made(sample)
    if isinstance(made, str):
        yield ", ".join(sample.columns), "", "", made
        return
    for name, within in sample.columns.items():
        before, now = number(recorded[name]), made[name]
        yield name, before, now, AS_RECORDED if within.holds(before, now) else BEHIND


def _why_not(recorded: Row) -> str:
    """Why a row is not made again; empty where it is."""
    if not recorded:
        return UNKNOWN
    return "" if zoo.data_folder().is_dir() else f"{NOT_SAMPLED}: $WATERFILL_DATA has no data"


def _made(sample: Sample) -> dict[str, float] | str:
    """The numbers of a row as it is made now, or why it cannot be."""
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    try:
        with one_thread():  # which is not slower for networks so small, and much faster on a busy machine
            made = sample.make()
        found = {name: number(made[name]) for name in sample.columns}
    except Exception as error:  # noqa: BLE001 (the other pages are checked all the same)
        return f"{FAILED}: {type(error).__name__}: {error}"
    say(f"{sample.row}: {time.perf_counter() - start:.1f} s, {sum(os.times()[:4]) - cpu:.1f} CPU s")
    return found


def recorded_row(sample: Sample, data: Row) -> Row:
    """The row as the page has it; empty where it has none."""
    return dict(next(filter(sample.where, data.get(sample.section, [])), {}))


def number(cell: Any) -> float:
    """A number, or the first one of a text like `KL (nats) 0.02, top-1 % 91`."""
    return cell if isinstance(cell, int | float) else float(cell.split(",")[0].split()[-1])


def age(page: str, commit: str | None = None) -> Row:
    """How many commits changed the library since a commit, by default the oldest of a page."""
    found = [commit] if commit else stamps.of_pages(results.made(page))
    since = {commit: commits.behind(commit) for commit in found}
    known = {commit: count for commit, count in since.items() if count is not None}
    oldest = max(known, key=lambda commit: known[commit], default="unknown")
    return {"commit": oldest, "commits since": known.get(oldest, "")}


def readme() -> list[str]:
    """Lines that say where README differs from its pages, or has numbers of no page."""
    different = [
        f"README, {claim.start!r}: {claim.page} says {'; '.join(texts)}"
        for claim in readme_numbers.CLAIMS
        if (texts := readme_numbers.missing(claim))
    ]
    return different + [f"README has a row of no page: {row}" for row in readme_numbers.unclaimed()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pages: Sequence[str] = results.pages()
    parser.add_argument("--only", nargs="+", choices=pages, default=pages, metavar="PAGE", help=", ".join(pages))
    parser.add_argument("--readme", action="store_true", help="only README, which runs nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
