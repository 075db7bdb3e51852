"""Every error that waterfill raises on purpose."""

from __future__ import annotations

LONGEST = 500
"""Characters of a text, at most: what it quotes may be as long as a file wants."""


class WaterfillError(Exception):
    """Root of all errors of this library; its text is one clear line for the user, of at most 500 characters."""

    def __init__(self, *args: object) -> None:
        """Cut out the middle of texts that are too long: they begin with the place and end with what to do."""
        super().__init__(*(_shortened(each) if isinstance(each, str) else each for each in args))


def first_line(error: BaseException) -> str:
    """The first line of an error of others; the name of its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    left = (LONGEST - len(" ... ")) // 2
    return f"{text[:left]} ... {text[-left:]}"


class FormatError(WaterfillError):
    """A file is not what it says it is: damaged, truncated, of another version or of another kind."""


class TargetError(WaterfillError):
    """The asked rate, size, distortion or tolerance cannot be reached; the text names the floor."""


class CalibrationError(WaterfillError):
    """The calibration data do not fit the model, or there are none."""


class UnsupportedModelError(WaterfillError):
    """The model or one of its tensors cannot be compressed as it is."""


class MissingPackageError(WaterfillError, ImportError):
    """A package that only some of the work needs is not installed."""


EXTRA = ("matplotlib", "numba", "scipy", "threadpoolctl", "torch")
"""Packages that reading does without, and everything else needs."""


def missing_package(error: ModuleNotFoundError, what: str) -> Exception:
    """What to raise when an import failed: an error that says what to install, where that is one of `EXTRA`.

    Args:
        error: of the import.
        what: needs the package.
    """
    name = (error.name or "").partition(".")[0]
    if name not in EXTRA:
        return error
    return MissingPackageError(
        f"{what} needs {name}, which is not installed; only reading does without. Install the rest: "
        "pip install 'waterfill[compress]'"
    )


class UsageError(WaterfillError, ValueError):
    """An argument is out of its range, or arguments contradict each other."""
