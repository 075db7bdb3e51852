"""Open files, of which parts are read where and when they are needed."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path

from waterfill.errors import FormatError


class OpenFile:
    """A file that any number of threads read at places of their own; it is closed with the last reference to it.

    Attributes:
        size: its bytes when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            OSError: it cannot be opened.
        """
        self._file = path.open("rb", buffering=0)
        self.close = weakref.finalize(self, self._file.close)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, size: int) -> bytes:
        """Read at a place; less where the file ends.

        Raises:
            OSError: the system cannot read it.
            ValueError: it is closed.
        """
        return os.pread(self._file.fileno(), size, start)


@dataclass(frozen=True)
class FilePart:
    """Bytes of an open file, which are read when they are asked for: a slice is what there is of `bytes`.

    Mapped into memory, a file that is cut meanwhile would end the process with SIGBUS; here that is an error.

    Attributes:
        file: where they are.
        start: the first one.
        size: how many.
    """

    file: OpenFile
    start: int
    size: int

    @classmethod
    def whole(cls, file: OpenFile) -> FilePart:
        """All of a file."""
        return cls(file, 0, file.size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, span: slice) -> bytes:
        """Read some of them.

        Raises:
            FormatError: the file has been cut since it was opened, or cannot be read.
            ValueError: it is closed.
        """
        start, stop, _ = span.indices(self.size)
        pieces: list[bytes] = []
        while start < stop:
            try:
                pieces.append(self.file.read(self.start + start, stop - start))
            except OSError as error:
                raise FormatError(f"the file cannot be read ({error.strerror})") from error
            if not pieces[-1]:
                raise FormatError("the file was cut while it was open; copy it again")
            start += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
