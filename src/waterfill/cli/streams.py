"""Standard output and error whose reader may go away, as in `waterfill inspect model.wf | head`."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any, TextIO


class _Pipe(io.FileIO):
    """A stream that takes what nobody reads any more for written, and fails once, as on a full disk, not again."""

    _failed = False

    def write(self, data: Any, /) -> int:
        """Write, or lose what is written to a closed pipe.

        Raises:
            OSError: for the first time, something else went wrong.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes
        except OSError:
            if self._failed:
                return memoryview(data).nbytes
            self._failed = True
            raise


def outlive_readers() -> None:
    """Let this process go on, and end as if all had been read, where the reader of its output is gone.

    Streams without a file, such as those of tests, and those that the shell has closed are left alone.
    """
    sys.stdout = _outliving(sys.stdout)
    sys.stderr = _outliving(sys.stderr)


def _outliving(stream: TextIO) -> TextIO:
    try:
        number, encoding = stream.fileno(), stream.encoding
    except (AttributeError, OSError, ValueError):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw = io.BufferedWriter(_Pipe(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, stream.errors, line_buffering=True)
