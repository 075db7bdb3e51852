"""Temporary files and folders beside an output: locked while their process lives, removed after it by the next one.

Names are `.OUT.HASH.PID-START-BOOT.RANDOM.part`: of the output, and of the process that writes. Whether that lives is
told by the lock alone; where a file system has none, by the process, if it is one of the same system since it was
started.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from waterfill.file_system import DISK

_SHOWN = 32
"""Letters of the name of an output in that of its temporary files; four bytes each fit into any name."""


class Lock:
    """A file or folder that other processes see to be in use, until it is released or the process ends in any way.

    Attributes:
        path: of the file or folder.
    """

    def __init__(self, path: Path) -> None:
        """Open a file or folder, without a lock yet.

        Raises:
            OSError: it is not there, or cannot be opened.
        """
        self.path = path
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))

    def take(self, *, wait: bool) -> None:
        """Lock.

        Args:
            wait: until nobody else has it.

        Raises:
            BlockingIOError: somebody else has it.
            OSError: the file system has no locks.
        """
        try:
            import fcntl  # here, for there is none on Windows
        except ImportError as error:
            raise OSError("no locks on this system") from error
        fcntl.flock(self._handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to what was opened."""
        try:
            return os.path.samestat(os.fstat(self._handle), self.path.lstat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others have it."""
        os.close(self._handle)


def temporary_path(out: Path) -> Path:
    """A new name beside an output, of this process."""
    return out.with_name(f"{_beginning(out)}{_owner()}.{secrets.token_hex(4)}.part")


def set_aside_path(temporary: Path) -> Path:
    """Where an old output waits while the new one of that temporary name takes its place."""
    return temporary.with_suffix(".before")


def locked(path: Path) -> Lock | None:
    """Lock a new file or folder; None where another process took it for a leftover and removes it.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        lock = Lock(path)
    except FileNotFoundError:
        return None
    try:
        lock.take(wait=True)
    except OSError:
        return lock  # told by the process instead
    if lock.is_there:
        return lock
    lock.release()
    return None


def remove_leftovers(out: Path) -> None:
    """Remove what processes that ended before their time have left beside an output; an old output comes back.

    What lives, what belongs to other users or outputs, and what cannot be removed stays.
    """
    for path in _leftovers(out):
        try:
            lock = Lock(path)
        except OSError:
            continue
        try:
            if _is_left(lock):
                _clear(path, out)
        except OSError:
            continue
        finally:
            lock.release()


def _leftovers(out: Path) -> Iterator[Path]:
    """Files and folders of this user with names of temporary ones of an output; no links."""
    pattern = re.compile(re.escape(_beginning(out)) + r"[0-9]+-[0-9]+-[0-9a-f]{8}\.[0-9a-f]{8}\.(part|before)")
    with os.scandir(out.parent) as found:
        names = [each.name for each in found if pattern.fullmatch(each.name)]
    for name in sorted(names, reverse=True):  # what was set aside comes last
        status = out.with_name(name).lstat()
        if status.st_uid == _user() and stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFDIR):
            yield out.with_name(name)


def _is_left(lock: Lock) -> bool:
    """Whether the process that made something is gone; the lock is taken then."""
    try:
        lock.take(wait=False)
    except BlockingIOError:
        return False
    except OSError:
        return _is_gone(lock.path.name.split(".")[-3])
    return lock.is_there


def _clear(path: Path, out: Path) -> None:
    if path.suffix == ".before" and not os.path.lexists(out):
        DISK.rename_new(path, out)
    elif path.is_dir():
        DISK.remove_folder(path)
    else:
        DISK.remove_file(path)


def _beginning(out: Path) -> str:
    """What the names of all temporary files of an output begin with."""
    digest = hashlib.sha256(os.fsencode(out.name)).hexdigest()[:8]
    return f".{out.name[:_SHOWN]}.{digest}."


# Processes


def _user() -> int:
    """Number of the user; 0 on systems without."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _owner() -> str:
    """This process: its number, when it was started, and the system that it is on."""
    return f"{os.getpid()}-{_started(os.getpid()) or 0}-{_system()}"


def _is_gone(owner: str) -> bool:
    """Whether a process of this system is gone; False for those of other systems, of which nothing is known."""
    number, started, system = owner.split("-")
    return system == _system() and int(started) > 0 and _started(int(number)) != int(started)


def _started(number: int) -> int | None:
    """When a process was started, in ticks since the system was; None where there is none, or nothing says it."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


@functools.cache
def _system() -> str:
    """Eight letters for the time that this system has been running, and the processes that are seen in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        seen = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot, seen = "", ""
    return hashlib.sha256(f"{boot}{seen}".encode()).hexdigest()[:8]
