"""New directories: whole or not there, never in the place of what appeared meanwhile, nothing left after a kill."""

import itertools
import os
import signal
import stat
import warnings
from pathlib import Path

import pytest

from waterfill import file_system
from waterfill.bundle import BundleWriter
from waterfill.errors import FormatError, WaterfillError
from waterfill.io import folder
from waterfill.io.folder import NewFolder, companions
from waterfill.temporary import set_aside_path, temporary_path


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_text("{}")
    return tmp_path / "source"


@pytest.fixture
def without_renameat2(monkeypatch):
    def unsupported(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(file_system, "_rename", unsupported)


@pytest.fixture(params=["renameat2", "without"])
def _way(request):
    if request.param == "without":
        request.getfixturevalue("without_renameat2")


def listed(place):
    return sorted(path.name for path in place.iterdir())


def model(place, text="{}"):
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(text)


def write(out, source, *, force=False, meanwhile=lambda: None):
    with NewFolder(out, source=source, force=force) as new:
        file_system.DISK.save(new.path / "config.json", b"new")
        meanwhile()
        new.commit()


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("kind", ["model", "folder", "empty", "file", "link"])
def test_what_appears_meanwhile_is_kept_without_force(tmp_path, source, kind):
    out = tmp_path / "out"
    appear = {
        "model": lambda: model(out, "of others"),
        "folder": lambda: (out.mkdir(), (out / "letter").write_text("dear")),
        "empty": out.mkdir,
        "file": lambda: out.write_text("of others"),
        "link": lambda: out.symlink_to(tmp_path / "nowhere"),
    }
    with pytest.raises(WaterfillError, match=r"out has appeared meanwhile and is kept.*use --force"):
        write(out, source, meanwhile=appear[kind])
    assert listed(tmp_path) == ["out", "source"]
    assert not (out / "config.json").is_file() or (out / "config.json").read_text() == "of others"


@pytest.mark.usefixtures("_way")
def test_an_empty_directory_is_taken_unless_it_fills_meanwhile(tmp_path, source):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write(tmp_path / "one", source)
    assert (tmp_path / "one/config.json").read_text() == "new"
    with pytest.raises(WaterfillError, match="appeared meanwhile"):
        write(tmp_path / "two", source, meanwhile=lambda: (tmp_path / "two/letter").write_text("dear"))
    assert listed(tmp_path / "two") == ["letter"] and listed(tmp_path) == ["one", "source", "two"]


@pytest.mark.usefixtures("_way")
def test_with_force_a_model_is_replaced_and_nothing_else(tmp_path, source):
    out = tmp_path / "out"
    model(out, "old")
    (out / "more").write_text("")
    write(out, source, force=True)
    assert listed(tmp_path) == ["out", "source"] and listed(out) == ["config.json"]
    with pytest.raises(WaterfillError, match="no model directory and is never replaced"):
        write(out, source, force=True, meanwhile=lambda: (out / "config.json").rename(out / "letter"))
    assert listed(tmp_path) == ["out", "source"] and listed(out) == ["letter"]


@pytest.mark.usefixtures("_way")
def test_of_two_runs_one_wins_and_the_other_is_told(tmp_path, source):
    with pytest.raises(WaterfillError, match="appeared meanwhile"):
        write(tmp_path / "out", source, meanwhile=lambda: write(tmp_path / "out", source))
    assert listed(tmp_path) == ["out", "source"] and (tmp_path / "out/config.json").read_text() == "new"


@pytest.mark.usefixtures("without_renameat2")
def test_an_interrupted_exchange_brings_the_old_one_back(tmp_path, source, monkeypatch):
    model(tmp_path / "out", "old")
    done = []

    def step(_, change, __):
        done.append(change)
        if done.count("rename_new") == 2 and change == "rename_new":
            interrupt()

    monkeypatch.setattr(file_system.FileSystem, "step", step)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", source, force=True)
    assert listed(tmp_path) == ["out", "source"] and (tmp_path / "out/config.json").read_text() == "old"


def test_a_whole_directory_is_on_the_disk_before_it_has_its_name(tmp_path, source, monkeypatch):
    done = []
    monkeypatch.setattr(file_system.FileSystem, "step", lambda _, change, path: done.append((change, path.name)))
    write(tmp_path / "out", source)
    moved = done.index(("rename_new", "out"))
    assert {("sync_path", "config.json"), ("sync_path", done[0][1])} <= set(done[:moved])
    assert done[moved + 1] == ("sync_path", tmp_path.name)


@pytest.mark.parametrize("name", ["locked", "payloads"])
def test_a_key_press_while_one_begins_leaves_nothing(tmp_path, source, monkeypatch, name):
    if name == "locked":
        monkeypatch.setattr(folder, "locked", lambda _: interrupt())
    monkeypatch.setattr(file_system.FileSystem, "step", lambda _, __, path: path.name == name and interrupt())
    with pytest.raises(KeyboardInterrupt), BundleWriter(tmp_path / "out", source):
        pass
    assert listed(tmp_path) == ["source"]


def test_an_old_one_that_comes_back_is_not_replaced_without_force(tmp_path, source):
    model(set_aside_path(temporary_path(tmp_path / "out")), "old")
    with pytest.raises(WaterfillError, match="exists and is not overwritten"):
        write(tmp_path / "out", source)
    assert listed(tmp_path) == ["out", "source"] and (tmp_path / "out/config.json").read_text() == "old"


def killed_before(step, out, source):
    """Whether a process that writes a directory was killed before a step of that number, from 0; else it has done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where there are threads
        child = os.fork()
    if child == 0:
        count = itertools.count()
        file_system.FileSystem.step = lambda *_: os.kill(os.getpid(), signal.SIGKILL) if next(count) == step else None
        try:
            write(out, source, force=True)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


@pytest.mark.usefixtures("_way")
def test_a_kill_before_any_step_leaves_nothing_to_the_next_run(tmp_path, source):
    out = tmp_path / "out"
    for step in itertools.count():
        model(out, "old")
        killed = killed_before(step, out, source)
        with NewFolder(out, source=source, force=True):
            assert (out / "config.json").read_text() in ("old", "new")
        assert listed(tmp_path) == ["out", "source"] and listed(out) == ["config.json"]
        if not killed:
            break
    assert step > 3


def test_the_mask_of_modes_is_never_touched(tmp_path, source, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda *_: pytest.fail("umask belongs to the whole process"))
    (tmp_path / "plain").mkdir()
    write(tmp_path / "out", source)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_folder_behind_a_link_out_is_not_walked(source, monkeypatch):
    (source / "all").symlink_to("/")
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("walked"))
    with pytest.raises(FormatError, match="leads out of the model directory"):
        companions(source)


def test_a_link_that_leads_to_itself_is_no_place(tmp_path, source):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(WaterfillError, match="link that leads to itself"):
        NewFolder(tmp_path / "loop", source=source, force=True)
    with pytest.raises(WaterfillError, match="link that leads to itself"):
        NewFolder(tmp_path / "out", source=tmp_path / "loop", force=True)
