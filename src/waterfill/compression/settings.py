"""Settings that all steps of a compression share, however it walks."""

from __future__ import annotations

from dataclasses import dataclass, field

from waterfill.processes import ALONE, Processes
from waterfill.protocols import Estimator, Progress, Quantizer
from waterfill.resume.folder import NOTHING_KEPT, Memo


class Notes:
    """What has to be said about a result as a whole: what was assumed, and what the target did not get."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}

    def add(self, text: str) -> None:
        """Take in a sentence; one that is there already is not repeated, and an empty text is none."""
        if text:
            self._texts[text] = None

    @property
    def texts(self) -> tuple[str, ...]:
        """All sentences, in the order in which they came."""
        return tuple(self._texts)


@dataclass(frozen=True, eq=False)
class Settings:
    """How a model is compressed.

    Attributes:
        quantizer: of the matrices.
        importance: what errors cost; None for the default.
        seed: of everything that is drawn.
        progress: called as work goes on; None in all processes but the first.
        memo: of results that are there already.
        processes: share the work.
        memory: bytes that may be used, about; None for any number.
        device: name of the device on which models run and large sums and factors are; None for where the model is.
        plain: whether a file is written without zstandard, for small devices.
        notes: what has to be said about the result.
    """

    quantizer: Quantizer
    importance: Estimator | None = None
    seed: int = 0
    progress: Progress | None = None
    memo: Memo = NOTHING_KEPT
    processes: Processes = ALONE
    memory: int | None = None
    device: str | None = None
    plain: bool = False
    notes: Notes = field(default_factory=Notes)

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is."""
        if self.progress is not None:
            self.progress(stage, done, total)
