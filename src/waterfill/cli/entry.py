"""Where the process starts, and how it ends: signals, expected errors, exit codes."""

from __future__ import annotations

import signal
import sys

from waterfill.cli.commands import app
from waterfill.cli.output import is_first, process_number
from waterfill.cli.streams import outlive_readers
from waterfill.errors import UsageError, WaterfillError, missing_package
from waterfill.report.words import printable


def main() -> None:
    """Entry point of the command: expected errors become one line and an exit code."""
    outlive_readers()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwind the stack, so that temporary files go
    try:
        app()
    except WaterfillError as error:
        _tell(" ".join(str(error).split()))
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from error
    except ModuleNotFoundError as error:
        missing = missing_package(error, f"waterfill {' '.join(sys.argv[1:2])}")
        if missing is error:
            raise
        _tell(str(missing))
        raise SystemExit(1) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _tell(f"{where}{error.strerror or error}")
        raise SystemExit(1) from error


def _tell(error: str) -> None:
    """Tell an error in a line; of several processes each but the first says its number.

    It may quote a file of a stranger, whose control characters are not for the terminal.
    """
    who = "waterfill" if is_first() else f"waterfill (process {process_number()})"
    print(f"{who}: {printable(error)}", file=sys.stderr)
