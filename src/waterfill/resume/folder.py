"""A work folder: one file for every finished result, found again by what it depends on."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar, cast

from waterfill.atomic import write_file
from waterfill.errors import UsageError, WaterfillError
from waterfill.file_system import DISK
from waterfill.processes import ALONE, Processes
from waterfill.protocols import QuadraticForm
from waterfill.resume.description import digest
from waterfill.resume.facts import Fingerprint
from waterfill.resume.storage import Unstorable, pack, seal, unpack, unseal

T = TypeVar("T")

LOCK, FINGERPRINT, SUFFIX = "lock", "fingerprint.json", ".result"


class Memo:
    """Remembers nothing: every result is computed."""

    def claim(self, fingerprint: Callable[[Mapping[str, Any]], Fingerprint]) -> None:
        """Say what all results depend on, before the first one.

        Args:
            fingerprint: makes it of the options that the memo knows; called only where it is needed.

        Raises:
            UsageError: there are results already that depend on something else; the text names it.
        """
        del fingerprint

    def once(self, key: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """The result of a key, which is computed and kept where there is none; from several threads at once, too.

        Args:
            key: the name of what it is, and everything that it depends on but the fingerprint: see `describe`.
            compute: makes it, see `pack` for what can be kept.

        Raises:
            Unstorable: it cannot be kept.
            UsageError: nothing says what an object in the key holds.
            WaterfillError: it cannot be written.
        """
        del key
        return compute()

    def forms(
        self, compute: Callable[[], Mapping[str, QuadraticForm]], processes: Processes = ALONE
    ) -> Mapping[str, QuadraticForm]:
        """What errors cost, by name. Forms of other classes than the package's are not kept but computed again.

        Args:
            compute: makes them.
            processes: those that make them together, or none of which does: each has a folder of its own.
        """
        del processes
        return compute()


NOTHING_KEPT = Memo()


class WorkFolder(Memo):
    """Remembers in a folder. Files that are missing, torn or damaged are made again."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        """Of a folder that is there and locked, see `work_folder`."""
        self.folder = folder
        self._options = options
        self._fingerprint: str | None = None
        self._writing = Lock()

    def claim(self, fingerprint: Callable[[Mapping[str, Any]], Fingerprint]) -> None:
        """See `Memo`."""
        now, path = fingerprint(self._options), self.folder / FINGERPRINT
        before = Fingerprint.from_json(path.read_bytes()) if path.is_file() else None
        differences = [] if before is None else now.differences(before)
        if differences:
            raise UsageError(
                f"Work folder {self.folder} has results of another compression: {'; '.join(differences)}. Go on with "
                "what it was made with, name another folder, or delete this one."
            )
        if before is None:
            write_file(path, [now.to_json()])
        self._fingerprint = now.digest

    def once(self, key: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """See `Memo`. A result is given as it will be given again, whether it was there or not."""
        name = self._name(key)
        found = self._recall(name)
        return cast(T, found[0] if found else self._keep(name, pack(compute())))

    def forms(
        self, compute: Callable[[], Mapping[str, QuadraticForm]], processes: Processes = ALONE
    ) -> Mapping[str, QuadraticForm]:
        """See `Memo`."""
        names = self._recall(self._name(("forms",)))
        found = {name: self._recall(self._name(("form", name))) for name in (names[0] if names else ())}
        if all(processes.all_gather(bool(names and all(found.values())))):
            return {name: form[0] for name, form in found.items() if form}
        computed = compute()
        try:
            kept = {name: self._keep(self._name(("form", name)), pack(form)) for name, form in computed.items()}
        except Unstorable:
            return computed
        self._keep(self._name(("forms",)), pack(list(computed)))
        return kept

    def _name(self, key: tuple[Any, ...]) -> str:
        assert self._fingerprint is not None, "results before their fingerprint"
        return digest((self._fingerprint, *key))

    def _recall(self, name: str) -> tuple[Any] | None:
        """What is kept under a name, alone in a tuple; None for nothing."""
        try:
            data = unseal((self.folder / f"{name}{SUFFIX}").read_bytes(), name)
            return None if data is None else (unpack(data),)
        except (OSError, ValueError):
            return None

    def _keep(self, name: str, data: bytes) -> Any:
        """Keep a packed result; returns it unpacked."""
        with self._writing:
            write_file(self.folder / f"{name}{SUFFIX}", seal(data, name))
        return unpack(data)


@contextmanager
def work_folder(path: str | Path | None, options: Mapping[str, Any]) -> Iterator[Memo]:
    """Open a folder for results, alone: nobody else can while it is open.

    Args:
        path: of the folder, which is made where it is missing; None to remember nothing.
        options: on which results depend, by name.

    Raises:
        UsageError: there are other files in it.
        WaterfillError: it is in use, or cannot be made, read or written.
    """
    if path is None:
        yield NOTHING_KEPT
        return
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_contents(folder)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise WaterfillError(
            f"Work folder {folder} cannot be used: {error.strerror}. Name a folder that can be made and written."
        ) from error
    try:
        _lock(handle, folder)
        for left in folder.glob(".*.part"):
            DISK.remove_file(left)  # of one that was killed while it wrote
        yield WorkFolder(folder, options)
    finally:
        os.close(handle)  # which unlocks it


def _check_contents(folder: Path) -> None:
    """Check that the folder is a work folder, or empty, for it is to be deleted when it is no longer wanted.

    Raises:
        UsageError: it is not.
    """
    for path in folder.iterdir():
        if path.name not in (LOCK, FINGERPRINT) and path.suffix != SUFFIX and not path.name.startswith("."):
            raise UsageError(
                f"Work folder {folder} has other files, such as {path.name}; expected a new or empty folder, or one "
                "that --work (work=) has made. Name another one."
            )


def _lock(handle: int, folder: Path) -> None:
    """Lock an open file until it is closed or the process ends, in whatever way.

    Raises:
        WaterfillError: somebody else has locked it.
    """
    try:
        import fcntl  # here, for there is none on Windows

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(handle, 256, 0).decode(errors="replace").strip() or "another process"
        raise WaterfillError(
            f"Work folder {folder} is in use by {owner}; wait until that ends, or name another folder."
        ) from error
    except (OSError, ImportError) as error:
        raise WaterfillError(
            f"Work folder {folder} cannot be locked: {error}. Name one on another file system, or none."
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {platform.node()}".encode(), 0)
