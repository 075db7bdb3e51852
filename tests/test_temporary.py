"""What dead processes leave is removed by the next run to the same output; what lives and what is not theirs stays."""

import os
import signal
import subprocess
import sys

import pytest

from waterfill import temporary
from waterfill.atomic import write_atomically
from waterfill.temporary import Lock, locked, remove_leftovers, set_aside_path, temporary_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def left_by_the_dead(out, *, folder=False):
    """A temporary file or folder of an output, of a process that has ended."""
    code = (
        "import sys; from pathlib import Path; from waterfill.temporary import locked, temporary_path\n"
        f"out = Path({str(out)!r}); path = temporary_path(out)\n"
        f"path.mkdir() if {folder} else path.write_bytes(b'half'); held = locked(path); print(path)"
    )
    path = out.with_name(subprocess.check_output([sys.executable, "-c", code], text=True).strip().rpartition("/")[2])
    if folder:
        (path / "inside").write_text("half")
    return path


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no locks on this file system")

    monkeypatch.setattr(Lock, "take", refuse)


def test_files_of_a_killed_process_go_with_the_next_run(tmp_path):
    out = tmp_path / "m.wf"
    code = (
        "import os, signal; from pathlib import Path; from waterfill.atomic import write_atomically\n"
        "def parts():\n    yield b'half'\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_atomically(Path({str(out)!r}), parts())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    write_atomically(out, [b"whole"])
    assert names(tmp_path) == ["m.wf"] and out.read_bytes() == b"whole"


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_of_the_dead_goes(tmp_path, folder):
    left = left_by_the_dead(tmp_path / "out", folder=folder)
    remove_leftovers(tmp_path / "other")
    assert names(tmp_path) == [left.name]
    remove_leftovers(tmp_path / "out")
    assert not names(tmp_path)


@pytest.mark.parametrize("folder", [False, True])
def test_what_lives_stays(tmp_path, folder):
    path = temporary_path(tmp_path / "out")
    path.mkdir() if folder else path.write_bytes(b"")
    lock = locked(path)
    remove_leftovers(tmp_path / "out")
    assert path.exists()
    lock.release()
    remove_leftovers(tmp_path / "out")
    assert not path.exists()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_process_decides(tmp_path):
    left = left_by_the_dead(tmp_path / "out")
    mine = temporary_path(tmp_path / "out")
    mine.write_bytes(b"")
    owner = left.name.split(".")[-3]
    far = left.with_name(left.name.replace(owner, owner[:-8] + "0" * 8))  # of another system
    far.write_bytes(b"")
    again = left.with_name(left.name.replace(owner, f"{os.getpid()}-1-{owner[-8:]}"))  # a number that came again
    again.write_bytes(b"")
    remove_leftovers(tmp_path / "out")
    assert names(tmp_path) == sorted([mine.name, far.name])


def test_only_its_own_names_are_touched(tmp_path, monkeypatch):
    left = left_by_the_dead(tmp_path / "out")
    others = [".out.part", ".out.abc123.part", left.name + ".txt", left.name[1:], ".out.0.part"]
    for name in others:
        (tmp_path / name).write_text("mine")
    link = left.with_name(left.name[:-13] + "00000000.part")
    link.symlink_to(tmp_path / ".out.part")
    with monkeypatch.context() as patch:
        patch.setattr(temporary, "_user", lambda: os.geteuid() + 1)
        remove_leftovers(tmp_path / "out")
    assert left.exists()
    remove_leftovers(tmp_path / "out")
    assert names(tmp_path) == sorted([*others, link.name])


def test_an_output_that_was_set_aside_comes_back(tmp_path):
    out = tmp_path / "out"
    aside = set_aside_path(left_by_the_dead(out, folder=True))
    aside.mkdir()
    (aside / "old").write_text("")
    remove_leftovers(out)
    assert names(tmp_path) == ["out"] and names(out) == ["old"]
    aside.mkdir()
    remove_leftovers(out)
    assert names(tmp_path) == ["out"] and names(out) == ["old"]


def test_a_name_that_a_remover_took_is_not_used(tmp_path):
    path = temporary_path(tmp_path / "out")
    path.write_bytes(b"")
    remover = Lock(path)
    assert remover.is_there
    path.unlink()
    assert not remover.is_there and locked(path) is None
    path.write_bytes(b"")
    assert not remover.is_there  # another file of that name
    remover.release()


@pytest.mark.parametrize("name", ["x" * 255, "\N{GRINNING FACE}" * 63, "a b[1]*.wf"])
def test_any_name_has_temporary_ones(tmp_path, name):
    left_by_the_dead(tmp_path / name)
    write_atomically(tmp_path / name, [b"a"])
    assert names(tmp_path) == [name]
