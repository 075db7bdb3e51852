"""Commands that are killed leave an old or a new output, and nothing at all once they have run again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
COMMANDS = (
    "compress", "compress, data", "compress DIR", "compress DIR, data", "decompress", "decompress DIR", "load",
    "load DIR",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What was seen of every command."""
    path = tmp_path_factory.mktemp("kills") / "rows.json"
    words = () if os.environ.get("KILLS") == "all" else ("--sample",)  # all of it takes a quarter of an hour
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    command = [sys.executable, "-m", "kills", *words, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert path.is_file(), done.stderr
    print(done.stdout)
    return {row["command"]: row for row in json.loads(path.read_text())}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_stopped_loses_nothing_and_leaves_nothing(rows, name):
    row = rows[name]
    assert not row["faults"], "\n".join(row["faults"])
    assert row["same"] == row["kills"] + row["moments"] > 0
    assert row["kills"] >= min(row["steps"], 3) and (row["steps"] > 0) is not name.startswith("load")
    assert sum(row["left"].values()) == row["same"] + row["signals"]


def test_every_command_is_stopped(rows):
    assert set(rows) == set(COMMANDS)
