"""Names that are taken stay, with and without the system call for it; every change is a step."""

import errno
import os
import stat

import pytest

from waterfill import file_system
from waterfill.file_system import DISK, FileSystem


@pytest.fixture(params=["renameat2", "without renameat2", "without links"])
def way(request, monkeypatch):
    """The ways of file systems that can do less and less."""

    def unsupported(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    if request.param != "renameat2":
        monkeypatch.setattr(file_system, "_rename", unsupported)
    if request.param == "without links":
        monkeypatch.setattr(os, "link", unsupported)
    return request.param


@pytest.mark.usefixtures("way")
def test_a_new_name_is_taken_once(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    DISK.rename_new(tmp_path / "one", tmp_path / "out")
    with pytest.raises(FileExistsError):
        DISK.rename_new(tmp_path / "two", tmp_path / "out")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out": "one", "two": "two"}


@pytest.mark.usefixtures("way")
def test_a_folder_never_takes_the_place_of_another_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one/file").write_text("")
    DISK.rename_new(tmp_path / "one", tmp_path / "out")
    for there in ("out", "two"):  # one with a file, and an empty one
        (tmp_path / "three").mkdir()
        with pytest.raises(FileExistsError):
            DISK.rename_new(tmp_path / "three", tmp_path / there)
        (tmp_path / "three").rmdir()
    assert (tmp_path / "out/file").is_file()


def test_names_are_exchanged_at_once_or_not(tmp_path, way):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    done = DISK.exchange(tmp_path / "one", tmp_path / "two")
    assert done is (way == "renameat2")
    assert (tmp_path / "one" / ("two" if done else "one")).is_file()


def test_other_errors_come_out(tmp_path):
    for change in (DISK.rename_new, DISK.exchange):
        with pytest.raises(FileNotFoundError):
            change(tmp_path / "nothing", tmp_path / "other")


def test_modes_are_those_of_the_process(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "file").write_text("")
    DISK.make_folder(tmp_path / "new")
    DISK.make_file(tmp_path / "new/file").close()
    for one, other in (("plain", "new"), ("file", "new/file")):
        assert stat.S_IMODE((tmp_path / one).stat().st_mode) == stat.S_IMODE((tmp_path / other).stat().st_mode)


def test_every_change_is_a_step(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(FileSystem, "step", lambda _, change, path: seen.append((change, path.name)))
    DISK.make_folder(tmp_path / "a")
    with DISK.make_file(tmp_path / "a/b") as file:
        DISK.write(file, b"text")
        DISK.sync(file)
    DISK.sync_path(tmp_path / "a")
    DISK.save(tmp_path / "c", b"text")
    DISK.copy(tmp_path / "c", tmp_path / "d/e")
    DISK.replace(tmp_path / "c", tmp_path / "f")
    DISK.rename_new(tmp_path / "f", tmp_path / "g")
    DISK.exchange(tmp_path / "g", tmp_path / "d")
    DISK.remove_file(tmp_path / "d")
    DISK.remove_folder(tmp_path / "a")
    changes = [
        *("make_folder", "make_file", "write", "sync", "sync_path", "save", "copy", "replace", "rename_new"),
        *("exchange", "remove_file", "remove_folder"),
    ]
    assert [change for change, _ in seen] == changes
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["e", "g"]
    assert set(changes) == {name for name in vars(FileSystem) if not name.startswith("_")} - {"step"}


def test_names_go_to_the_disk_where_the_system_can_and_files_always(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("text")
    synced = []

    def fsync(handle):
        synced.append(stat.S_IFMT(os.fstat(handle).st_mode))
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    DISK.sync_path(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        DISK.sync_path(tmp_path / "file")
    assert synced == [stat.S_IFDIR, stat.S_IFREG]


def test_a_key_press_does_not_stop_a_removal(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FileSystem, "step", pressed)
    with pytest.raises(KeyboardInterrupt):
        DISK.remove_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()
