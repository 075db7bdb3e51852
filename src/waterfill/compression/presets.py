"""How long to search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from waterfill.errors import UsageError

DEFAULT_RATE = 4.0
"""Bits per value where no target is given."""

Effort: TypeAlias = Literal["fast", "default", "best", "max"]
STATES: Mapping[str, int] = {"fast": 8, "default": 64, "best": 256, "max": 2048}
"""States of the trellis."""

POWERS: Mapping[str, tuple[float, ...]] = {
    "fast": (0.5,),
    "default": (0.5, 1.0, 0.0),
    "best": (0.5, 1.0, 0.0, 0.75),
    "max": (0.5, 1.0, 0.0, 0.75, 0.25),
}
"""Powers of the importances to try; the first is the one to use where nothing can be measured.

Where there are several, curves are measured, too.
"""


def check_effort(effort: str) -> None:
    """Check that an effort is known.

    Raises:
        UsageError: it is not.
    """
    if effort not in STATES:
        raise UsageError(f"Effort {effort!r} is unknown; expected one of {', '.join(STATES)}.")
