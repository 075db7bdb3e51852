"""Mutant after mutant: each is made from a seed of the campaign and its own number, so that it can be made again."""

import json
import shutil
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzz import examine, files, folders, seeds
from fuzz.examine import Finding
from waterfill.errors import WaterfillError

KINDS = ("mixture", *files.KINDS, folders.PAYLOAD, *folders.KINDS)
MEMORY = Path("/dev/shm")
"""Where directories are written, if it is there."""

VERDICTS = ("refused", "large", "same", "other", "finding")


@dataclass
class Tally:
    """How many mutants of a kind had which verdict, and the findings: number, kind and text."""

    counts: Counter = field(default_factory=Counter)
    findings: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, other):
        self.counts += other.counts
        self.findings += other.findings

    @property
    def total(self):
        return sum(self.counts.values())

    def rows(self):
        """Rows of a table: kind, all, then one number for each verdict."""
        for kind in KINDS:
            numbers = [self.counts[kind, each] for each in VERDICTS]
            if sum(numbers):
                yield kind, sum(numbers), *numbers

    def table(self):
        """Markdown."""
        lines = [f"| kind of change | mutants | {' | '.join(VERDICTS)} |", f"| --- |{' ---: |' * (len(VERDICTS) + 1)}"]
        lines += [f"| {kind} | {' | '.join(f'{number:,}' for number in numbers)} |" for kind, *numbers in self.rows()]
        every = [sum(row[column] for row in self.rows()) for column in range(1, len(VERDICTS) + 2)]
        return "\n".join([*lines, f"| all | {' | '.join(f'{number:,}' for number in every)} |"])

    def as_json(self):
        """What a program reads."""
        rows = [dict(zip(("kind", "mutants", *VERDICTS), row, strict=True)) for row in self.rows()]
        return json.dumps({"mutants": self.total, "kinds": rows, "findings": self.findings}, indent=1)


class Campaign:
    """Seeds in memory, and a folder in which directories are written; used as a context manager."""

    def __init__(self, seed=0, keep=None):
        """Prepare it.

        Args:
            seed: of all random numbers.
            keep: a folder for the mutants of findings; None to keep none.
        """
        self.seed, self.keep = seed, keep
        self._files = seeds.files()

    def __enter__(self):
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
        self._directories = seeds.directories(self._folder)
        self._known = {name: examine.read_file(data, examine.Declared()) for name, data in self._files.items()}
        self._in_directories = {name: self._read(contents) for name, contents in self._directories.items()}
        self._groups = {name: self._files[name] for name in ("fine",)}
        self._groups |= {f"{name}.": seeds.renamed(self._files[name], f"{name}.") for name in ("sums", "adaptive")}
        return self

    def __exit__(self, *_):
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, contents):
        folder = self._folder / "seed"
        examine.write_out(folder, contents)
        found = examine.read_directory(folder, examine.Declared())
        shutil.rmtree(folder)
        return found

    def kind(self, number):
        """What the mutant of a number changes."""
        return KINDS[number % len(KINDS)]

    def run(self, number):
        """Make and examine a mutant: a tally of one."""
        kind, tally = self.kind(number), Tally()
        try:
            found = self._examined(kind, Random(f"{self.seed} {number}"), number)
        except Finding as finding:
            found = "finding"
            tally.findings.append((number, kind, str(finding)))
        tally.counts[kind, found] += 1
        return tally

    def _examined(self, kind, random, number):
        if kind == folders.PAYLOAD:
            return self._payload(random, number)
        if kind in folders.KINDS:
            return self._directory(kind, random, number)
        name = random.choice([name for name, data in self._files.items() if files.suits(kind, data)])
        data = files.changed(kind, random, self._files[name], list(self._files.values()))
        try:
            return examine.verdict(examine.read_file, data, self._known[name], examine.check_file)
        except Finding:
            self._kept(number, lambda path: path.with_suffix(".wf").write_bytes(data))
            raise

    def _directory(self, kind, random, number):
        name = random.choice(list(self._directories))
        contents, known = self._directories[name], self._in_directories[name]
        sealed = examine.is_sealed(contents["config.json"])
        changed = folders.KINDS[kind](random, contents)
        if sealed and kind in folders.RESEALED and random.random() < 0.5:
            check = examine.unchanged({name: known[name] for name in known if name != seeds.TIED}, whole=False)
            return self._of_folder(folders.resealed(changed), known, check, number)
        return self._of_folder(changed, known, examine.unchanged(known, whole=sealed), number)

    def _payload(self, random, number):
        groups = folders.payload(random, self._groups)
        folder = self._folder / "payload"
        try:
            contents = seeds.written(folder, groups, {}, random.choice((1 << 30, 1500)))
        except WaterfillError:  # a payload that is none is not written either
            return "refused"
        return self._of_folder(contents, {}, examine.check_payloads(groups), number)

    def _of_folder(self, contents, known, check, number):
        folder = self._folder / "mutant"
        examine.write_out(folder, contents)
        try:
            return examine.verdict(examine.read_directory, folder, known, check)
        except Finding:
            self._kept(number, lambda path: _zipped(path.with_suffix(".zip"), contents))
            raise
        finally:
            shutil.rmtree(folder)

    def _kept(self, number, write):
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            write(self.keep / f"{seeds.name_of_file(self.kind(number))}-{self.seed}-{number}")


def _zipped(path, contents):
    """Files of a directory in one; what is no file is named in the comment."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            if isinstance(data, bytes):
                archive.writestr(name, data)
        odd = {name: data for name, data in contents.items() if not isinstance(data, bytes)}
        archive.comment = json.dumps(odd).encode()


def unzipped(path):
    """Undo `_zipped`."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
        odd = json.loads(archive.comment or b"{}")
    return contents | {name: None if data is None else tuple(data) for name, data in odd.items()}
