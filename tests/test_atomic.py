import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from waterfill import atomic
from waterfill.atomic import check_destination, write_atomically
from waterfill.errors import WaterfillError
from waterfill.file_system import FileSystem


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_parts_are_written_in_order(tmp_path):
    path = tmp_path / "m.wf"
    write_atomically(path, (part for part in (b"ab", b"", b"c")))
    assert path.read_bytes() == b"abc"
    assert names(tmp_path) == ["m.wf"]


def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "m.wf"
    plain.write_bytes(b"")
    write_atomically(path, [b"a"])
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_file_is_replaced_or_refused(tmp_path):
    path = tmp_path / "m.wf"
    path.write_bytes(b"old")
    with pytest.raises(WaterfillError, match=r"m\.wf exists and is not overwritten; use --force"):
        write_atomically(path, [b"new"], force=False)
    assert path.read_bytes() == b"old"
    write_atomically(path, [b"new"])
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["m.wf"]
    write_atomically(tmp_path / "other", [b"new"], force=False)


def test_a_missing_folder_is_named(tmp_path):
    for force in (True, False):
        with pytest.raises(WaterfillError, match="missing does not exist; create it"):
            write_atomically(tmp_path / "missing" / "m.wf", [b"a"], force=force)
    assert names(tmp_path) == []


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(WaterfillError, match="is a folder; expected a file name"):
        write_atomically(tmp_path, [b"a"])


def test_devices_and_pipes_are_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(WaterfillError, match="device or a pipe"):
        write_atomically(pipe, [b"a"])
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_a_link_stays_and_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "link.wf", tmp_path / "far" / "m.wf"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, [b"new"])
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "far") == ["m.wf"]


def test_a_relative_path_is_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically(Path("m.wf"), [b"a"])
    assert names(tmp_path) == ["m.wf"]


def test_a_folder_that_is_not_writable_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "access", lambda *_: False)
    with pytest.raises(WaterfillError, match="is not writable; change its permissions"):
        check_destination(tmp_path / "m.wf", force=True)


def test_a_folder_that_looks_writable_but_is_not(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileSystem, "make_file", refuse)
    with pytest.raises(WaterfillError, match="cannot be written: Permission denied"):
        write_atomically(tmp_path / "m.wf", [b"a"])


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failing_write_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path, monkeypatch, where, existing):
    path = tmp_path / "m.wf"
    if existing:
        path.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((atomic.os, "fsync") if where == "fsync" else (Path, "replace")), fail)
    with pytest.raises(WaterfillError, match=r"Writing .*m\.wf failed: No space left on device; nothing was written"):
        write_atomically(path, [b"new" * 1000])
    assert names(tmp_path) == (["m.wf"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


def test_parts_that_fail_leave_nothing_behind(tmp_path):
    path = tmp_path / "m.wf"
    path.write_bytes(b"old")

    def parts():
        yield b"new"
        raise RuntimeError("the encoder failed")

    with pytest.raises(RuntimeError, match="the encoder failed"):
        write_atomically(path, parts())
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["m.wf"]


def test_what_appears_meanwhile_is_kept_without_force(tmp_path):
    path = tmp_path / "m.wf"

    def parts():
        path.write_bytes(b"of others")
        yield b"new"

    with pytest.raises(WaterfillError, match=r"m\.wf has appeared meanwhile and is kept.*use --force"):
        write_atomically(path, parts(), force=False)
    assert path.read_bytes() == b"of others"
    assert names(tmp_path) == ["m.wf"]


def test_of_several_writers_one_wins_and_the_others_are_told(tmp_path):
    path, gate, told = tmp_path / "m.wf", threading.Barrier(8), []

    def work(number):
        def parts():
            gate.wait()
            yield b"%d" % number

        try:
            write_atomically(path, parts(), force=False)
        except WaterfillError as error:
            told.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 7 and all("has appeared meanwhile" in text for text in told)
    assert names(tmp_path) == ["m.wf"] and len(path.read_bytes()) == 1


def test_the_mask_of_modes_is_never_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda *_: pytest.fail("umask belongs to the whole process"))
    write_atomically(tmp_path / "m.wf", [b"a"])
    assert names(tmp_path) == ["m.wf"]


@pytest.mark.parametrize("force", [True, False])
def test_links_that_lead_to_themselves_and_impossible_names_are_one_line(tmp_path, force):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in (
        ("loop", "link that leads to itself"),
        ("x" * 300, "too long"),
        ("a\0b", "null"),
        ("\ud800", "surr"),
    ):
        with pytest.raises(WaterfillError, match=words) as error:
            write_atomically(tmp_path / name, [b"a"], force=force)
        assert "\n" not in str(error.value)
    assert names(tmp_path) == ["loop"]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_then(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(FileSystem, "step", lambda _, change, path: done.append((change, path.name)))
    write_atomically(tmp_path / "m.wf", [b"a"])
    changes = [change for change, _ in done]
    assert changes.index("sync") < changes.index("replace") < changes.index("sync_path")
    assert done[-1] == ("sync_path", tmp_path.name)


def test_a_key_press_while_a_file_is_begun_leaves_nothing(tmp_path, monkeypatch):
    def pressed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "locked", pressed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "m.wf", [b"a"])
    assert names(tmp_path) == []
