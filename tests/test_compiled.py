"""Where compiled kernels are kept: beside the source, else for this user alone, else nowhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import waterfill
from waterfill import numba_cache

SCRIPT = """
import sys
import numpy as np
import waterfill.codec.kernels, waterfill.quantize.feedback_kernels, waterfill.quantize.kmeans_kernels
from waterfill.compiled import kernel

def double(x):
    return 2 * x

compiled = kernel(double)
assert compiled(21) == 42
print(waterfill.__file__, type(compiled._cache).__name__)
"""


@pytest.fixture
def installation(tmp_path):
    """A copy of the package beside whose sources nothing can be written, by whoever the tests are run."""
    package = tmp_path / "site" / "waterfill"
    shutil.copytree(Path(waterfill.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [package, *package.rglob("*")]:
        if folder.is_dir():
            (folder / "__pycache__").write_text("a file where numba and Python want a folder")
    (tmp_path / "temporary").mkdir()
    return tmp_path


def run(installation, temporary):
    home = {"HOME": "/dev/null/none", "XDG_CACHE_HOME": "/dev/null/none", "TMPDIR": str(temporary)}
    path = os.pathsep.join([str(installation / "site"), str(installation)])
    (installation / "probe.py").write_text(SCRIPT)
    (installation / "__pycache__").write_text("")
    line = [sys.executable, "-B", "-W", "error", "-c", "import probe"]
    env = {**os.environ, **home, "PYTHONPATH": path}
    env.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=installation)
    assert done.returncode == 0, done.stderr
    place, cache = done.stdout.split()
    assert place.startswith(str(installation))
    return cache


def test_a_read_only_installation_without_a_home_keeps_kernels_in_a_folder_of_its_user(installation):
    temporary = installation / "temporary"
    assert run(installation, temporary) == "KernelCache"
    (folder,) = temporary.glob("waterfill-*")
    assert list(folder.rglob("*.nbi")) and folder.stat().st_mode & 0o77 == 0


def test_a_folder_that_others_can_write_is_not_read(installation):
    folder = installation / "temporary" / f"waterfill-{os.getuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    assert run(installation, installation / "temporary") == "NullCache"
    assert not list(folder.iterdir())


def test_without_any_place_kernels_are_compiled_anew(installation):
    (installation / "temporary" / f"waterfill-{os.getuid()}").write_text("a file")
    assert run(installation, installation / "temporary") == "NullCache"


STALE = """
import pickle, sys
from pathlib import Path
import numba
from numba import njit
from waterfill.compiled import kernel

class Gone:
    pass

def double(x):
    return 2 * x

compiled = kernel(double)
index = Path(compiled._cache._cache_file._index_path)
if sys.argv[1:] == ["write"]:
    index.write_bytes(pickle.dumps(numba.__version__) + pickle.dumps((0, {Gone: "double"})))
else:
    del Gone
    assert b"Gone" in index.read_bytes()
    assert compiled(21) == 42
    assert b"Gone" not in index.read_bytes()
"""


def test_what_an_older_version_kept_is_compiled_again(tmp_path):
    """Its index may name classes that are no more; numba reads it before it looks whether it is old."""
    (tmp_path / "probe.py").write_text(STALE)
    for arguments in (["write"], []):
        line = [sys.executable, "-c", "import runpy, sys; runpy.run_path('probe.py', run_name='__main__')", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_code_of_a_kernel_is_old_when_a_file_with_others_has_changed(monkeypatch):
    before = numba_cache.KernelCache(compiled_here.py_func)._cache_file._source_stamp
    monkeypatch.setattr(numba_cache, "sources_stamp", lambda: (("kernels.py", 0, 0),))
    assert numba_cache.KernelCache(compiled_here.py_func)._cache_file._source_stamp != before


@numba_cache.kernel
def compiled_here(x):
    return x + 1
