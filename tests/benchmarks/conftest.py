"""Benchmarks are scripts that find each other in their folder, and so do these tests; pages go to temporary folders."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """A folder for pages, and a script that writes them at commit `aaaaaaa`."""
    import commits
    import results

    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(commits, "commit", lambda root=None, also=(): "aaaaaaa")  # noqa: ARG005
    monkeypatch.setattr("sys.argv", ["/here/benchmarks/sweep.py", "--only", "x", "/there/folder", "--keep=/there"])
    return tmp_path
