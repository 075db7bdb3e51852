"""The command, with the small experiment in place of MNIST's."""

import json
import sys

import pytest

from waterfill import cli
from waterfill.reproduce import EXPERIMENTS


@pytest.fixture
def run(tiny, tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder: exit code, standard output and standard error."""
    monkeypatch.setitem(EXPERIMENTS, "mnist", tiny)
    monkeypatch.chdir(tmp_path)

    def one(line):
        monkeypatch.setattr(sys, "argv", ["waterfill", "reproduce", *line.split()])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        told = capsys.readouterr()
        return code, told.out, told.err

    return one


def test_a_run_writes_figures_and_json_and_shows_a_table(run, tmp_path, finished):
    code, out, err = run("mnist --samples 64 --json more.json")
    assert (code, err) == (0, "")
    folder = tmp_path / "reproduce-mnist"
    assert (folder / "results.json").read_bytes() == (finished[0] / "results.json").read_bytes()
    assert json.loads((tmp_path / "more.json").read_text()) == finished[1]
    assert {path.name for path in folder.glob("*.svg")} == {f"figure-{n}-mnist.svg" for n in (2, 3, 4, 5, 11, 12)}
    assert "gradient+hessian" in out and "results.json" in out


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("imagenet", 2, "DATASET 'imagenet' is unknown; expected one of mnist, cifar10, cifar100."),
        ("mnist --width 3", 2, "Width 3 is out of range"),
        ("mnist --samples 0", 2, "samples=0"),
        ("mnist --samples 1000", 1, "mnist.npz has 512; ask for"),
        ("mnist --samples 64 --test-samples 0", 1, "samples=0 is wrong"),
        ("mnist --samples 64 --weights none.safetensors", 1, "none.safetensors does not exist"),
        ("mnist --samples 64 --json no/such.json", 1, "does not exist"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(run, tmp_path, line, code, text):
    found, out, err = run(line)
    assert (found, out) == (code, "") and text in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
