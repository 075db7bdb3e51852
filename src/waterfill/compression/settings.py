"""Settings that all steps of a compression share, however it walks."""

from __future__ import annotations

from dataclasses import dataclass

from waterfill.processes import ALONE, Processes
from waterfill.protocols import Estimator, Progress, Quantizer
from waterfill.resume.folder import NOTHING_KEPT, Memo


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
    """

    quantizer: Quantizer
    importance: Estimator | None = None
    seed: int = 0
    progress: Progress | None = None
    memo: Memo = NOTHING_KEPT
    processes: Processes = ALONE
    memory: int | None = None

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is."""
        if self.progress is not None:
            self.progress(stage, done, total)
