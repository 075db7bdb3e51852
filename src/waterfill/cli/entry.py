"""Where the process starts, and how it ends: signals, expected errors, exit codes."""

from __future__ import annotations

import signal
import sys

from waterfill.cli.commands import app
from waterfill.errors import UsageError, WaterfillError


def main() -> None:
    """Entry point of the command: expected errors become one line and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwind the stack, so that temporary files go
    try:
        app()
    except WaterfillError as error:
        print(f"waterfill: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"waterfill: {where}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from error
