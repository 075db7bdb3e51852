"""The inputs that a fuzzer has found to reach every part of the reader in C, with sanitizers: nothing is wrong."""

import shutil
import subprocess
from pathlib import Path

import pytest

from decoders import c_reader
from decoders.c_reader import SANITIZED
from decoders.fuzz import corpus

FOLDER = Path(__file__).with_name("fuzz")
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
@pytest.mark.parametrize("build", [[], ["-DWF_SMALL"]], ids=["whole chunks", "small"])
def test_nothing_is_wrong_with_inputs_that_are_kept(tmp_path, build):
    options = [*c_reader.supported(tmp_path, COMPILER, SANITIZED), *build, "-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION"]
    program = c_reader.built(tmp_path, COMPILER, [*options, str(FOLDER / "fuzz.c")], FOLDER / "replay.c")
    inputs = corpus.kept()
    done = subprocess.run([program], input=corpus.stream(inputs), capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:].decode(errors="replace")
    assert int(done.stdout) == len(inputs) > 1000


def test_seeds_are_read_or_refused_in_every_form(tmp_path):
    corpus.write(corpus.seeds(), tmp_path / "seeds")
    kinds = {path.read_bytes()[0] for path in (tmp_path / "seeds").iterdir()}
    assert kinds == {corpus.PARTS, corpus.FILE, corpus.SHARD, corpus.FRAME, corpus.PLAIN}
