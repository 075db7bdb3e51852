"""Fixtures: an empty data folder to fill, and the real one where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from waterfill.zoo.folder import DATA_VARIABLE, data_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def real_data() -> Path:
    """The folder of real data; skips the test where there is none."""
    root = data_folder()
    if not (root / "models").is_dir():
        pytest.skip(f"needs real data: {root} has no folder 'models'; set {DATA_VARIABLE}")
    return root
