"""Set-up of all tests: where twins lie, and one thread for the tiny networks, in other processes as well."""

import os
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent / "twins"), str(Path(__file__).parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is: kernels of devices run on its interpreter
pytest.register_assert_rewrite("conformance")


@pytest.fixture
def run(place, capsys, monkeypatch):
    """Run a command line in the folder `place` of a module: exit code, standard output and standard error."""
    from waterfill import cli  # here, for variables are to be set before PyTorch is imported

    def call(command):
        monkeypatch.chdir(place)
        monkeypatch.setattr("sys.argv", ["waterfill", *command.split()])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        told = capsys.readouterr()
        return code or 0, told.out, told.err

    return call
