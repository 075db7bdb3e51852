"""One command in a folder of its own: prepared, run in a process that gets a signal, and looked at."""

import itertools
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager

from waterfill.file_system import FileSystem

NOTHING, OLD, NEW = "nothing", "old", "new"
PREPARED = b"{}"
"""An old output, or the configuration in it."""


def contents(folder):
    """Bytes of all files of a folder by name, and None for folders."""
    paths = sorted(folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


@contextmanager
def silent():
    """Nothing is printed meanwhile."""
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    try:
        yield
    finally:
        for number, handle in zip((1, 2), kept, strict=True):
            os.dup2(handle, number)
        for handle in (nowhere, *kept):
            os.close(handle)


def ended(child):
    """Wait for a process: its exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Trial:
    """A command in a folder of its own.

    Attributes:
        case: the command.
        place: the folder, with one for the output and one for work.
        steps: names of the changes of the file system that it makes without a signal.
        seconds: its duration then.
        wanted: what is in the folder of the output then.
    """

    def __init__(self, case, place):
        self.case, self.place = case, place
        self.steps, self.seconds, self.wanted = [], 0.0, {}
        self._measure()

    @property
    def out(self):
        """Folder of the output."""
        return self.place / "out"

    def prepare(self, *, old=False):
        """Begin anew, with or without an old output."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.out.mkdir(parents=True)
        if old and self.case.out:
            self._old_output()

    def start(self, step=None, number=signal.SIGKILL):
        """Run the command in a process that gets a signal before a step of that number, from 0; returns the process."""
        count = itertools.count()
        return self._fork(lambda *_: os.kill(os.getpid(), number) if next(count) == step else None)

    def start_and_stop(self, share, number=signal.SIGKILL):
        """Run the command in a process that gets a signal at a share of its time, or when it has ended."""
        child, end = self.start(), time.monotonic() + share * self.seconds
        while time.monotonic() < end and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        os.kill(child, number)
        return child

    def output(self):
        """What is at the place of the output: nothing, the old one, the new one, or in words something else."""
        if not self.case.out:
            return NOTHING
        found = {name: data for name, data in contents(self.out).items() if name.split("/")[0] == self.case.out}
        old = {f"{self.case.out}/config.json" if self.case.is_directory else self.case.out: PREPARED}
        states = {NOTHING: {}, NEW: self.wanted, OLD: old | ({self.case.out: None} if self.case.is_directory else {})}
        return next((state for state, files in states.items() if files == found), f"other files: {sorted(found)}")

    def beside(self):
        """What is left beside the output, and what is no result in the work folder."""
        out = [name for name in contents(self.out) if name.split("/")[0] != self.case.out]
        work = [name for name in contents(self.place / "work") if name.startswith(".")]
        return out + work

    def _measure(self):
        self.prepare()
        reader, writer = os.pipe()
        begun = time.monotonic()
        child = self._fork(lambda _, change, __: os.write(writer, f"{change}\n".encode()))
        os.close(writer)
        with os.fdopen(reader) as told:
            self.steps = told.read().split()
        if ended(child):
            raise RuntimeError(f"{self.case.name} fails without a signal")
        self.seconds, self.wanted = time.monotonic() - begun, contents(self.out)

    def _old_output(self):
        target = self.out / self.case.out
        if self.case.is_directory:
            target.mkdir()
            target /= "config.json"
        target.write_bytes(PREPARED)

    def _fork(self, step):
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
            FileSystem.step = step
            with silent():
                self.case.run(self.place)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except KeyboardInterrupt:
            code = 130
        finally:
            # what threads write, they write to its end, as in any process that ends
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
            os._exit(code)
