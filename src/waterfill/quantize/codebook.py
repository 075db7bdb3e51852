"""Codebooks: k-means by importance, the quantizer of the paper's experiments, entropy-coded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from waterfill.errors import UsageError
from waterfill.protocols import QuadraticForm, QuantizerTraits, Quartic
from waterfill.quantize import spread as spreads
from waterfill.quantize.scalar import finish
from waterfill.records import Codebook, Quantized, Uniform, Weight

LARGEST_CODEBOOK = 1 << 16
STARTS = ("exact", "quantile", "linear", "kmeans++")


@dataclass(frozen=True)
class KMeans:
    """At most k centroids a tensor, which minimise `I (w - c)^2`, or `I (w - c)^2 + H (w - c)^4` where a form has H.

    The number of centroids sets the rate, so the water level is ignored: there is one file, and a target cannot move
    it. The centroids (4 bytes each) are in the file, the symbols are entropy-coded, mostly with a table of their own.

    Attributes:
        k: most centroids; those that no weight takes are left out.
        start: `exact` for the global optimum; `quantile` (like the authors of the paper), `linear` or `kmeans++` for
            Lloyd's iterations from there.
        iterations: most iterations of Lloyd; unused by `exact`.
        seed: of `kmeans++`.

    Raises:
        UsageError: an option is out of its range.

    Source:
        Section 5.3, Corollary 2 and Algorithm 2 of the paper.
    """

    k: int = 16
    start: Literal["exact", "quantile", "linear", "kmeans++"] = "exact"
    iterations: int = 30
    seed: int = 0

    traits: ClassVar[QuantizerTraits] = QuantizerTraits(fixed=True, tempered=False)

    def __post_init__(self) -> None:
        if not 1 <= self.k <= LARGEST_CODEBOOK:
            raise UsageError(f"KMeans of k={self.k} is out of range; expected 1 to {LARGEST_CODEBOOK} centroids.")
        if self.start not in STARTS:
            raise UsageError(f"KMeans from start={self.start!r} is unknown; expected one of {', '.join(STARTS)}.")
        if self.iterations < 1 or self.seed < 0:
            raise UsageError(
                f"KMeans of iterations={self.iterations}, seed={self.seed} is out of range; expected at least 1 and 0."
            )

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:  # noqa: ARG002
        """Quantize one weight.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
            water_level: ignored.

        Raises:
            UsageError: an importance is below zero.
        """
        if not weight.matrix.size:
            symbols = np.zeros(weight.matrix.shape, np.int32)
            return finish(weight, form, symbols, Uniform(0), spreads.fit(symbols, weight.layout))
        centroids, labels = self._clusters(weight, form)
        used, index = np.unique(labels.reshape(-1), return_inverse=True)
        values = centroids[used].astype(np.float32)
        nearest = int(np.abs(values).argmin())
        symbols = (index.reshape(weight.matrix.shape) - nearest).astype(np.int32)
        return finish(weight, form, symbols, Codebook(values, -nearest), spreads.fit(symbols, weight.layout))

    def _clusters(self, weight: Weight, form: QuadraticForm | None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Centroids and labels."""
        from waterfill.quantize import kmeans

        importance = None if form is None else form.diagonal()
        quartic = form.quartic() if isinstance(form, Quartic) else None
        if self.start == "exact":
            return kmeans.exact_kmeans(weight.matrix, importance, self.k, quartic=quartic)
        return kmeans.lloyd(
            weight.matrix, importance, self.k,
            start=self.start, quartic=quartic, iterations=self.iterations, seed=self.seed,
        )  # fmt: skip
