"""Readers under changed files and directories: what was found before, and `FUZZ_SECONDS` of new mutants."""

import contextlib
import copy
import json
import multiprocessing
import os
import time
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from fuzz import anatomy, examine, files, folders, program, seeds, values
from fuzz.campaign import KINDS, Campaign, Tally, unzipped
from fuzz.examine import Declared, Finding, verdict
from waterfill.errors import FormatError, WaterfillError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


@pytest.fixture(scope="module")
def campaign():
    with Campaign(seed=int(os.environ.get("FUZZ_SEED", "0"))) as found:
        yield found


def test_mutants_are_refused_or_read_as_the_reference_reads_them(campaign):
    tally, number, end = Tally(), 0, time.monotonic() + SECONDS
    while time.monotonic() < end or number < len(KINDS):
        tally.add(campaign.run(number))
        number += 1
    assert not tally.findings, "\n".join(f"{number} {kind}: {text}" for number, kind, text in tally.findings[:9])
    assert tally.total == number


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_was_found_before_stays_away(path, tmp_path):
    if path.suffix == ".wf":
        verdict(examine.read_file, path.read_bytes(), {}, examine.check_file)
        return
    examine.write_out(tmp_path / "mutant", unzipped(path))
    verdict(examine.read_directory, tmp_path / "mutant", {}, examine.unchanged({}, whole=False))


# The fuzzer itself


@pytest.mark.parametrize("name", seeds.files())
def test_a_file_in_parts_and_together_again_is_the_same(name):
    data = seeds.files()[name]
    again = anatomy.put_together(anatomy.take_apart(data))
    assert anatomy.take_apart(again) == anatomy.take_apart(data)
    found = examine.read_file(again, Declared())
    assert found == examine.read_file(data, Declared())
    examine.check_file(again, found)


def test_seeds_have_every_rule_origin_and_model():
    every = [anatomy.take_apart(data).directory for data in seeds.files().values()]
    assert {line[0] for each in every for line in each["tensors"]} == set("urcp")
    assert {line[3] if len(line) > 3 else "q" for each in every for line in each["entries"]} == set("qtx=cvm")
    assert {line[0] for each in every for line in each["chunks"]} == set("acsx")
    assert {key for each in every for key in each} >= {"tables", "adaptive", "limit", "bases", "lanes"}
    assert {line[0] for each in every for line in each.get("bases", [])} == set("cfrs")


@pytest.mark.parametrize("kind", files.KINDS)
def test_a_kind_changes_files_and_mends_their_checksums(kind):
    every = list(seeds.files().values())
    some, changed, mended = [data for data in every if files.suits(kind, data)], 0, 0
    for number in range(30):
        data = files.changed(kind, Random(f"{kind} {number}"), some[number % len(some)], every)
        size = int.from_bytes(data[12:16], "little")
        changed += data not in every
        mended += zlib.crc32(data[:20] + data[24 : 24 + size]) == int.from_bytes(data[20:24], "little")
    assert changed >= 15
    assert mended == 30 or kind in ("any_bytes", "zip_like", "header")


@pytest.mark.parametrize("kind", folders.KINDS)
def test_a_kind_changes_directories(kind, tmp_path):
    for contents in seeds.directories(tmp_path).values():
        found = [folders.KINDS[kind](Random(number), dict(contents)) for number in range(9)]
        assert any(each != contents for each in found)


def test_changes_of_directories_get_a_digest_that_suits_them(tmp_path):
    contents = seeds.directories(tmp_path)["two shards"]
    assert folders.resealed(contents) == contents
    config = json.loads(contents["config.json"])
    config["quantization_config"]["tied"] = {}
    changed = contents | {"config.json": json.dumps(config).encode()}
    for files_of_it, whole in ((changed, False), (folders.resealed(changed), True)):
        folder = tmp_path / f"{whole}"
        examine.write_out(folder, files_of_it)
        with contextlib.nullcontext() if whole else pytest.raises(FormatError, match="written together"):
            assert seeds.TIED not in examine.read_directory(folder, Declared())
    assert folders.resealed({"config.json": b"{}"}) == {"config.json": b"{}"}


def reading(result):
    """A reader that gives a result, or raises it."""

    def read(source, declared):
        declared.size_bytes = 9
        if isinstance(result, Exception):
            raise result
        return result(source) if callable(result) else result

    return read


def refuse(source, found):  # noqa: ARG001
    raise Finding("values: other")


class Wordy(WaterfillError):
    """One whose text is not cut."""

    def __str__(self):
        return "a" * 501


VALUES = {"a": ("float32", (1,), b"1234")}


def test_verdicts_of_what_readers_may_do():
    assert verdict(reading(FormatError("damaged")), b"", VALUES, refuse) == "refused"
    assert verdict(reading(None), b"", VALUES, refuse) == "large"
    assert verdict(reading(VALUES), b"", VALUES, refuse) == "same"
    assert verdict(reading({}), b"", VALUES, lambda *_: None) == "other"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (KeyError("a"), "exception: KeyError"),
        (Wordy(), "text: an error of 501 characters"),
        (FormatError("a\nb"), "text: an error of 3 characters in 2 lines"),
        ({}, "values: other"),
    ],
)
def test_findings(result, text):
    with pytest.raises(Finding, match=text):
        verdict(reading(result), b"", VALUES, refuse)


def test_time_and_memory_beyond_what_is_declared_are_findings(monkeypatch):
    monkeypatch.setattr(examine, "SLOW_SECONDS", 0.0)
    with pytest.raises(Finding, match="time"):
        verdict(reading(lambda _: sum(range(100_000)) and VALUES), b"", VALUES, refuse)
    monkeypatch.setattr(examine, "SLOW_SECONDS", 60.0)
    peaks = iter([0, 1 << 30])
    monkeypatch.setattr(examine, "_peak_bytes", lambda: next(peaks))
    with pytest.raises(Finding, match="memory: 1024 MiB more, where 9 bytes are declared"):
        verdict(reading(VALUES), b"", VALUES, refuse)


def test_values_that_are_not_those_of_the_reference_are_findings():
    data = seeds.files()["mixed"]
    found = examine.read_file(data, Declared())
    name, (dtype, shape, raw) = next(each for each in found.items() if each[1][0] == "bfloat16")
    with pytest.raises(Finding, match=f"'{name}' bfloat16"):
        examine.check_file(data, found | {name: (dtype, shape, bytes(len(raw)))})
    with pytest.raises(Finding, match="values: tensors"):
        examine.check_file(data, {name: found[name]})


def test_a_sealed_directory_is_whole():
    with pytest.raises(Finding, match="others"):
        examine.unchanged(VALUES, whole=True)("", {})
    examine.unchanged(VALUES, whole=False)("", {})
    with pytest.raises(Finding, match="'a'"):
        examine.unchanged(VALUES, whole=False)("", {"a": ("float32", (1,), b"0000")})


@pytest.mark.parametrize("kind", ["rule", "directory members", folders.PAYLOAD])
def test_findings_are_kept_and_read_again(campaign, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "keep", tmp_path / "kept")
    monkeypatch.setattr(examine, "read_file", reading(KeyError("a")))
    monkeypatch.setattr(examine, "read_directory", reading(KeyError("a")))
    numbers = range(KINDS.index(kind), 9 * len(KINDS), len(KINDS))
    tally = next(found for number in numbers if (found := campaign.run(number)).findings)
    ((number, found_kind, text),) = tally.findings
    assert (found_kind, text) == (kind, "exception: KeyError: 'a'")
    (path,) = (tmp_path / "kept").iterdir()
    assert path.stem.endswith(f"-{campaign.seed}-{number}")
    monkeypatch.undo()
    test_what_was_found_before_stays_away(path, tmp_path)


def test_changes_leave_nothing_behind_for_later_ones():
    before = copy.deepcopy(values.OTHERS)
    for number in range(300):
        random, tree = Random(number), {"a": [1, [2, 3], {"b": []}], "c": "d"}
        for _ in range(9):
            random.choice((values.change_value, values.change_structure))(random, tree)
        json.dumps(tree)
    assert before == values.OTHERS


def test_mutants_are_made_again_from_their_numbers():
    every = list(seeds.files().values())
    for kind in files.KINDS:
        data = next(each for each in every if files.suits(kind, each))
        first, second = (files.changed(kind, Random("0 7"), data, every) for _ in range(2))
        assert first == second


def test_a_campaign_in_processes_has_the_same_tally_as_here(campaign):
    here = Tally()
    for number in range(len(KINDS)):
        here.add(campaign.run(number))
    there = program.run(len(KINDS), 1, campaign.seed)
    assert there.counts == here.counts
    assert len(there.table().splitlines()) == len(KINDS) + 3
    assert json.loads(there.as_json())["mutants"] == len(KINDS)


def crashing(connection, seed, keep, numbers):  # noqa: ARG001
    """Process 7 ends without a word, and 11 never does."""
    for number in numbers:
        connection.send(number)
        if number == 7:
            os._exit(3)
        if number == 11:
            time.sleep(600)
        connection.send(Tally(Counter({(KINDS[number], "refused"): 1})))
    connection.send(None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_crash_or_hang_are_findings_and_the_rest_is_done(monkeypatch):
    monkeypatch.setattr(program, "CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(program, "work", crashing)
    monkeypatch.setattr(program, "HANG_SECONDS", 0.5)
    monkeypatch.setattr(program, "POLL_SECONDS", 0.05)
    tally = program.run(20, 2, 0)
    assert [(number, text[:5]) for number, _, text in tally.findings] == [(7, "crash"), (11, "hang:")]
    assert tally.total == 20
    assert [tally.counts[KINDS[number], "finding"] for number in (7, 11)] == [1, 1]
