"""Every change that this package makes to files and folders: one object, with a method for each; and what is there."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

_NO_REPLACE = 1
_EXCHANGE = 2
_HERE = -100
"""What `renameat2` calls the working directory, AT_FDCWD of Linux."""


def is_file(path: Path) -> bool:
    """Whether there is a file, behind all links; False for what cannot be looked at, such as too long a name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder, behind all links; False for what cannot be looked at."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


class FileSystem:
    """Changes files and folders. New ones have the modes that the process gives to any new one.

    Before every change `step` is called: a test counts the changes there, or ends the process before one.
    """

    def step(self, change: str, path: Path) -> None:
        """Called before every change, with the name of its method and what is changed; nothing happens."""

    def make_file(self, path: Path) -> BinaryIO:
        """Make a file that is not there yet, and open it to be written.

        Raises:
            FileExistsError: something of that name is there.
        """
        self.step("make_file", path)
        return path.open("xb")

    def make_folder(self, path: Path) -> None:
        """Make a folder that is not there yet.

        Raises:
            FileExistsError: something of that name is there.
        """
        self.step("make_folder", path)
        path.mkdir()

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        """Write to an open file."""
        self.step("write", Path(file.name))
        file.write(data)

    def sync(self, file: BinaryIO) -> None:
        """Have all of an open file on the disk."""
        self.step("sync", Path(file.name))
        file.flush()
        os.fsync(file.fileno())

    def sync_path(self, path: Path) -> None:
        """Have a file on the disk, or the names in a folder; these as far as the system can."""
        self.step("sync_path", path)
        try:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError:
            if not path.is_dir():
                raise

    def save(self, path: Path, data: bytes | memoryview) -> None:
        """Write a whole file, in the place of one that is there; for files in a folder that nobody reads yet."""
        self.step("save", path)
        path.write_bytes(data)

    def copy(self, source: Path, target: Path) -> None:
        """Copy the contents of a file; folders on the way to the target are made."""
        self.step("copy", target)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, in the place of a file or an empty folder that is there."""
        self.step("replace", target)
        source.replace(target)

    def rename_new(self, source: Path, target: Path) -> None:
        """Rename to what is not there yet; whatever is there stays.

        Raises:
            FileExistsError: something of that name is there.
        """
        self.step("rename_new", target)
        try:
            _rename(source, target, _NO_REPLACE)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            _claim_and_rename(source, target)

    def exchange(self, one: Path, other: Path) -> bool:
        """Exchange the names of two files or folders at once; False where the file system cannot."""
        self.step("exchange", other)
        try:
            _rename(one, other, _EXCHANGE)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return False
        return True

    def remove_file(self, path: Path) -> None:
        """Remove a file, if it is there."""
        self.step("remove_file", path)
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder with all in it, as far as that is possible; a key press meanwhile is heard after it."""
        try:
            self.step("remove_folder", path)
            shutil.rmtree(path, ignore_errors=True)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


DISK = FileSystem()
"""What all of this package writes with."""

_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
"""What systems and file systems say that do not know a flag of `renameat2`."""


def _rename(source: Path, target: Path, flags: int) -> None:
    """`renameat2` of Linux.

    Raises:
        OSError: it failed; `ENOSYS` on other systems.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), ctypes.c_uint(flags)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


def _claim_and_rename(source: Path, target: Path) -> None:
    """Rename to what is not there yet without `renameat2`: a folder replaces the empty one that was made for it.

    Raises:
        FileExistsError: something of that name is there.
    """
    if source.is_dir():
        target.mkdir()
        source.replace(target)
        return
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:  # no links on this file system
        target.open("xb").close()
        source.replace(target)
        return
    source.unlink()
