"""What a fuzzer and changed files have found: `python benchmarks/reader_fuzzing.py LOG... --compared TEXT...`.

A log is what `make -C tests/decoders/fuzz run` prints, named `COMMIT-BUILD`, and a text what `python -m
decoders.differential` does, named `COMMIT-READER`; they are added to those that are on the page. Lines that the corpus
reaches are counted anew.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import results
from results import Section

Row = dict[str, Any]

FUZZER = Path(__file__).resolve().parent.parent / "tests" / "decoders" / "fuzz"

TEXT = """The reader in C (`decoders/c`) with address and undefined-behaviour sanitizers. A *finding* is a read or
write out of bounds, undefined behaviour, memory that is not given back or beyond the limit of the caller, an error
without a text, or two answers to one file."""

RUNS = """libFuzzer (clang), inputs of up to 8,192 bytes: files whose directory lies unpacked in the input, plain
files, whole files, shards of directories, frames of zstandard; from memory and through a callback that fails, with an
allocator that fails and has limits (`tests/decoders/fuzz`). One process; *seconds* are of the wall. *Build*: of whole
chunks, or small (`-DWF_SMALL`). *Deadly signal*: the fuzzer itself stopped, for it had not counted what a thread
keeps; *timeout*: the process had been suspended for minutes, and its input takes no time. Two more runs ended with a
finding, which was mended: in the first seconds of all an offset of 0 from a null pointer; in the first two minutes of
the small reader a place in a chunk that was kept from one call to the next, while the bytes of the chunk, which had
come through a callback, were not."""

COVERED = """Lines of the reader that the kept corpus reaches, by llvm-cov, in both builds."""

COMPARED = """Files that are changed at random, structure and all, read by the kernels of Python and by the reader in
C, as a program, a module of Python, the small reader, or that of plain files alone (of which those are seeds):
verdicts and all bits of all tensors. *Damaged frames*: zstandard frames in which a stream of a Huffman code does not
end where it should, which the library of zstandard reads and the reader refuses."""


def run_of(log: Path) -> Row:
    """A run of the fuzzer."""
    text = log.read_text(errors="replace")
    count = int(re.search(r"number_of_executed_units: (\d+)", text)[1])
    rate = int(re.search(r"average_exec_per_sec: +(\d+)", text)[1])
    findings = len(re.findall(r"SUMMARY: (?:Address|Undefined|Leak)", text))
    ended = re.search(r"SUMMARY: (.*?)(?: in|$)", text, re.MULTILINE)
    commit, build = log.stem.split("-", 1)
    row = {"commit": commit, "build": build, "executions": count, "seconds": round(count / max(1, rate))}
    return row | {"findings": findings, "ended by": ended[1] if ended else "the time that was asked for"}


def covered(build: str) -> list[Row]:
    """Lines of every file that the corpus reaches."""
    small = "1" if build == "small" else ""
    command = ["make", "-C", FUZZER, "cover", f"SMALL={small}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = []
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) > 9 and (words[0] == "TOTAL" or "decoders/c/" in words[0]):
            lines, missed = int(words[7]), int(words[8])
            share = 100 * (1 - missed / lines)
            rows.append({"build": build, "file": Path(words[0]).name, "lines": lines, "reached, %": share})
    return rows


def compared_of(path: Path) -> Row:
    """One comparison of readers."""
    commit, reader = path.stem.split("-")[:2]
    counts, *wrong = path.read_text().splitlines()
    found = ast.literal_eval(counts)
    frames = found.pop("damaged frames that Python reads", 0)
    return {
        "commit": commit, "reader in C": reader, "files": sum(found.values()), "refused by both": found["refused"],
        "read alike": found["read"] - frames, "damaged frames": frames, "other disagreements": len(wrong),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="*", type=Path)
    parser.add_argument("--compared", nargs="+", type=Path, default=[])
    options = parser.parse_args()
    known = results.read("reader_fuzzing")
    sections = [
        Section("Fuzzer", RUNS, known["Fuzzer"] + [run_of(log) for log in options.logs]),
        Section("Reached", COVERED, covered("whole chunks") + covered("small")),
        Section("Changed files", COMPARED, known["Changed files"] + [compared_of(path) for path in options.compared]),
    ]
    results.write_page("reader_fuzzing", "The reader in C, fuzzed", TEXT, sections)


if __name__ == "__main__":
    main()
