"""Where the data files are: `$WATERFILL_DATA`, or `../shared/data` beside the current directory."""

from __future__ import annotations

import os
from pathlib import Path

from waterfill.errors import WaterfillError

DATA_VARIABLE = "WATERFILL_DATA"
DEFAULT_FOLDER = Path("..") / "shared" / "data"


def data_folder() -> Path:
    """Return the root of the data files; it need not exist.

    Returns:
        `$WATERFILL_DATA` as an absolute path, or `../shared/data` where the variable is not set or empty.
    """
    return Path(os.environ.get(DATA_VARIABLE) or DEFAULT_FOLDER).expanduser().resolve()


def find_file(*candidates: str) -> Path | None:
    """Return the first of some files that exists under the data folder.

    Args:
        candidates: paths relative to the data folder, the preferred one first.

    Returns:
        The absolute path, or None where there is none of them.
    """
    root = data_folder()
    return next((root / name for name in candidates if (root / name).is_file()), None)


def require_file(*candidates: str) -> Path:
    """Return the first of some files that exists under the data folder, or say what is missing.

    Args:
        candidates: paths relative to the data folder, the preferred one first.

    Returns:
        The absolute path.

    Raises:
        WaterfillError: none of the files exists.
    """
    found = find_file(*candidates)
    if found is None:
        raise missing_file(*candidates)
    return found


def missing_file(*candidates: str, advice: str = "") -> WaterfillError:
    """Say which files were looked for, where, and how to name another folder.

    Args:
        candidates: paths relative to the data folder.
        advice: a sentence for this data set, put before the general one.

    Returns:
        The error, to be raised by the caller.
    """
    root = data_folder()
    origin = f"from {DATA_VARIABLE}" if os.environ.get(DATA_VARIABLE) else f"the default, {DATA_VARIABLE} is not set"
    state = "" if root.is_dir() else ", which does not exist"
    wanted = " or ".join(repr(name) for name in candidates)
    return WaterfillError(
        f"Data file {wanted} not found in the folder {root}{state} ({origin})."
        f" {advice}{' ' if advice else ''}Set the folder that holds it: export {DATA_VARIABLE}=/path/to/data"
    )
