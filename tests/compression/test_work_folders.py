"""A compression that was killed goes on from its work folder, and makes the same files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import waterfill
from families import batches
from waterfill.errors import UsageError
from waterfill.quantize import Feedback

TESTS = str(Path(__file__).parents[1])


@pytest.fixture
def count(monkeypatch):
    """How often a matrix was quantized."""
    calls, quantize = [], Feedback.quantize

    def counted(self, *args):
        calls.append(args[0].name)
        return quantize(self, *args)

    monkeypatch.setattr(Feedback, "quantize", counted)
    return calls


def compress(directory, out, seed=0, **options):
    return waterfill.compress_directory(directory, out, batches(seed=seed), effort="fast", **options)


def weights(out):
    return (out / "waterfill.safetensors").read_bytes()


def test_after_a_kill_the_same_files_with_less_work(directories, tmp_path, count):
    directory, work = directories("llama"), tmp_path / "work"
    script = (
        f"import os, sys\nsys.path[:0] = [{TESTS!r}]\n"
        "import waterfill\nfrom families import batches\nfrom waterfill.quantize import Feedback\n"
        "quantize, calls = Feedback.quantize, []\n"
        "def killed(self, *args):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == 20: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "    return quantize(self, *args)\n"
        "Feedback.quantize = killed\n"
        f"waterfill.compress_directory({str(directory)!r}, {str(tmp_path / 'out')!r}, batches(), effort='fast',\n"
        f"    rate=4, work={str(work)!r})\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists()
    compress(directory, tmp_path / "out", rate=4, work=work)
    after = len(count)
    compress(directory, tmp_path / "plain", rate=4)
    fresh = len(count) - after
    assert weights(tmp_path / "out") == weights(tmp_path / "plain")
    assert fresh - 20 <= after <= fresh - 17, "two may have been on their way"

    done = len(count)
    compress(directory, tmp_path / "again", rate=4, work=work)
    assert len(count) == done, "everything is known"
    assert weights(tmp_path / "again") == weights(tmp_path / "plain")

    other = compress(directory, tmp_path / "other", rate=3, work=work)
    plain = compress(directory, tmp_path / "other-plain", rate=3)
    assert weights(tmp_path / "other") == weights(tmp_path / "other-plain")
    assert other.distortion == plain.distortion

    for changed in ({"seed": 1}, {"exclude": ["*q_proj*"]}):
        with pytest.raises(UsageError, match="work"):
            compress(directory, tmp_path / "changed", rate=4, work=work, **changed)
    with pytest.raises(UsageError, match="work"):
        compress(directories("tied"), tmp_path / "changed", rate=4, work=work)
    assert not (tmp_path / "changed").exists()


def test_without_data_too(directories, tmp_path, count):
    for name in ("one", "two"):
        waterfill.compress_directory(directories("llama"), tmp_path / name, rate=4, effort="fast", work=tmp_path / "w")
        if name == "one":
            first = len(count)
    assert first > 0
    assert len(count) == first
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
