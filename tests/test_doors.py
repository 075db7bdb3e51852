"""Reading without PyTorch: the doors, the commands, and what others need to be told."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import waterfill
from waterfill.bundle import Bundle
from waterfill.errors import FormatError
from waterfill.numpy import load, load_file
from waterfill.torch import load as load_tensors
from waterfill.torch import load_file as load_tensors_file

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(path.name for path in GOLDEN.glob("*.wf"))
DIRECTORIES = ("directory", "directory2")
WITHOUT = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent / "decoders")!r})
import alone
sys.path.pop(0)
alone.begin()
"""
"""Makes a process one in which only what reading needs is installed."""


def run(script, *words, code=0):
    """What a script prints in a process without PyTorch, and what its errors are."""
    done = subprocess.run([sys.executable, "-c", WITHOUT + script, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def command(*words, code=0):
    return run("from waterfill.cli import main\nmain()", *words, code=code)


def numbers(tensor):
    """The values of a tensor in a type of NumPy."""
    wide = torch.complex64 if tensor.dtype == torch.complex32 else torch.float32
    try:
        return tensor.numpy()
    except TypeError:
        return tensor.to(wide).numpy()


@pytest.mark.parametrize("name", [*FILES, *DIRECTORIES])
def test_arrays_have_the_values_of_tensors(name):
    found, expected = load_file(GOLDEN / name), waterfill.decompress(GOLDEN / name)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], numbers(tensor), strict=True)
        assert load_tensors_file(GOLDEN / name)[key].equal(tensor)


def test_bytes_are_read_as_files_are():
    data = (GOLDEN / "exact.wf").read_bytes()
    for found, expected in ((load(data), load_file(GOLDEN / "exact.wf")),):
        assert all((found[key] == expected[key]).all() for key in expected)
    tensors, expected = load_tensors(data, "cpu"), waterfill.decompress(GOLDEN / "exact.wf")
    assert all(tensors[key].equal(expected[key]) for key in expected)


def test_what_is_tied_is_one():
    state = {"a": torch.randn(4, 4, dtype=torch.bfloat16)}
    model = torch.nn.Module()
    model.a = torch.nn.Parameter(state["a"])
    model.b = model.a
    data = waterfill.compress(model, rate=8).data
    found, tensors = load(data), load_tensors(data)
    assert found["a"] is found["b"] and found["a"].dtype == np.float32
    assert tensors["a"] is tensors["b"] and tensors["a"].dtype == torch.bfloat16


def test_too_many_bytes_are_refused():
    with pytest.raises(FormatError, match="at most 10 are allowed"):
        load_file(GOLDEN / "exact.wf", max_bytes=10)
    with pytest.raises(FormatError, match="at most 10 are allowed"):
        load((GOLDEN / "exact.wf").read_bytes(), max_bytes=10)


def test_files_are_read_without_pytorch():
    script = "import hashlib, sys\nfrom waterfill.numpy import load_file\n"
    script += "for path in sys.argv[1:]:\n"
    script += "    for name, values in load_file(path).items():\n"
    script += "        print(name, values.dtype, values.shape, hashlib.sha256(values.tobytes()).hexdigest())\n"
    paths = [GOLDEN / name for name in (*FILES, *DIRECTORIES)]
    found = run(script, *paths)
    expected = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    assert found == expected.stdout and len(found.splitlines()) > 50


def test_commands_that_read_need_no_pytorch(tmp_path):
    out, plain, page = tmp_path / "out.safetensors", tmp_path / "plain", tmp_path / "page.html"
    result, seen = tmp_path / "result.json", tmp_path / "seen.json"
    assert "tensors" in command("decompress", GOLDEN / "exact.wf", "-o", out)
    found, expected = waterfill.models.load_tensors(out), waterfill.decompress(GOLDEN / "exact.wf")
    assert found.keys() == expected.keys() and all(found[key].equal(expected[key]) for key in expected)
    assert "checksums are right" in command("inspect", GOLDEN / "paths.wf", "--json", seen)
    assert json.loads(seen.read_text())["tensors"]
    assert "tensors" in command("decompress", GOLDEN / "directory2", "-o", plain)
    with Bundle(GOLDEN / "directory2") as bundle:
        written = waterfill.models.load_tensors(plain / "model.safetensors")
        assert all(written[key].equal(bundle[key]) for key in written)
    assert "bytes" in command("inspect", GOLDEN / "directory2")
    result.write_text(waterfill.compress(torch.nn.Linear(8, 8), rate=4).to_json())
    command("report", result, "-o", page)
    assert "<html" in page.read_text()
    assert command("--version").startswith("waterfill ")


def test_the_rest_says_what_to_install(tmp_path):
    told = command("compress", "x.safetensors", "-o", tmp_path / "x.wf", code=1)
    assert told.startswith("waterfill: ") and "pip install 'waterfill[compress]'" in told and told.count("\n") == 1
    for name in ("compress", "decompress", "load", "open", "evaluate", "zoo"):
        told = run(f"import waterfill\nwaterfill.{name}", code=1).splitlines()[-1]
        assert f"waterfill.{name} needs" in told and "waterfill[compress]" in told, told
    told = run("import waterfill.torch", code=1).splitlines()[-1]
    assert "waterfill.torch needs torch" in told and "waterfill[compress]" in told
