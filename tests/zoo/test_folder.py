from __future__ import annotations

from pathlib import Path

import pytest

from waterfill.errors import WaterfillError
from waterfill.zoo.folder import DATA_VARIABLE, data_folder, find_file, missing_file, require_file


def test_the_variable_names_the_folder(folder: Path) -> None:
    assert data_folder() == folder.resolve()


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_is_beside_the_current_directory(tmp_path: Path, monkeypatch, value) -> None:
    if value is None:
        monkeypatch.delenv(DATA_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(DATA_VARIABLE, value)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert data_folder() == (tmp_path / "shared" / "data").resolve()
    with pytest.raises(
        WaterfillError, match=r"'x\.npz' not found .* does not exist \(the default, WATERFILL_DATA is not"
    ):
        require_file("x.npz")


def test_the_first_candidate_wins(folder: Path) -> None:
    (folder / "b").touch()
    assert require_file("a", "b", "c") == folder / "b"
    (folder / "a").touch()
    assert require_file("a", "b", "c") == folder / "a"


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "a").mkdir()
    assert find_file("a") is None


def test_a_missing_file_names_file_folder_and_remedy(folder: Path) -> None:
    with pytest.raises(WaterfillError) as caught:
        require_file("models/a.safetensors", "b")
    text = str(caught.value)
    assert "'models/a.safetensors' or 'b'" in text
    assert str(folder) in text
    assert "export WATERFILL_DATA=" in text


def test_advice_comes_before_the_remedy(folder: Path) -> None:
    assert folder.is_dir()
    assert "Do this. Set the folder" in str(missing_file("a", advice="Do this."))
