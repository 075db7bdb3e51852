"""Output whose reader goes away, and names of outputs that say something else than what is written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import waterfill
from waterfill import cli
from waterfill.atomic import check_destination
from waterfill.cli.streams import _outliving
from waterfill.errors import UsageError, WaterfillError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text("import torch\n\ndef net():\n    return torch.nn.Linear(64, 64)\n")
    return tmp_path


def closed_pipe(folder, *words):
    """Run a command whose output nobody reads: its exit status and what it says of errors."""
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "waterfill", *words]
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        line, stdout=writer, stderr=subprocess.PIPE, cwd=folder, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    os.close(writer)
    return done.returncode, done.stderr.decode()


def test_a_closed_pipe_is_no_failure_and_everything_is_written(folder):
    assert closed_pipe(folder, "compress", "mynet:net", "-o", "a.wf", "--json", "a.json") == (0, "")
    assert json.loads((folder / "a.json").read_bytes())["size_bytes"] == (folder / "a.wf").stat().st_size
    assert closed_pipe(folder, "inspect", "a.wf", "--json", "i.json") == (0, "")
    assert (folder / "i.json").is_file()
    assert closed_pipe(folder, "compress", "--help") == (0, "")


def test_a_stream_loses_what_nobody_reads():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        outliving = _outliving(stream)
        print("seen", file=outliving)
        assert os.read(reader, 9) == b"seen\n"
        os.close(reader)
        for _ in range(3):
            print("lost", file=outliving, flush=True)


def test_a_full_disk_fails_once():
    with Path("/dev/full").open("w") as stream:
        outliving = _outliving(stream)
        with pytest.raises(OSError, match="No space"):
            print("lost", file=outliving)
        outliving.flush()


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["waterfill", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


@pytest.mark.parametrize("name", ["y.onnx", "y.safetensors", "y.PTH", "y.bin", "a.b.gguf"])
def test_a_name_of_another_kind_is_refused(folder, monkeypatch, capsys, name):
    assert run(monkeypatch, "compress", "mynet:net", "-o", name) == 2
    assert "expected .wf" in capsys.readouterr().err and not (folder / name).exists()
    result = waterfill.compress(torch.nn.Linear(64, 64), rate=6.0, effort="fast")
    with pytest.raises(UsageError, match=r"expected \.wf"):
        result.save(name)


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.bin", "x.onnx", "x.wf"])
def test_decompress_writes_safetensors_alone(folder, monkeypatch, capsys, name):
    waterfill.compress(torch.nn.Linear(64, 64), rate=6.0, effort="fast").save("net.wf")
    assert run(monkeypatch, "decompress", "net.wf", "-o", name) == 2
    assert "expected .safetensors" in capsys.readouterr().err and not (folder / name).exists()


def test_other_suffixes_are_taken(tmp_path):
    result = waterfill.compress(torch.nn.Linear(64, 64), rate=6.0, effort="fast")
    for name in ("net", "net.v2", "net.WF", "net.compressed"):
        result.save(tmp_path / name)
        assert len(waterfill.decompress(tmp_path / name)) == 2


def test_a_full_disk_is_found_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0})())
    with pytest.raises(WaterfillError, match="no space left"):
        check_destination(tmp_path / "x.wf", force=False)
