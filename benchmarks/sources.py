"""Limits of weights whose source is known, and how large the errors of limits of small tensors are."""

from __future__ import annotations

import known_sources
import results
from results import Section


def main() -> None:
    sections = [
        Section(
            "Sources that are known",
            f"Weights [{known_sources.OUT}, {known_sources.INPUTS}] through `compress(..., importance=identity())` at "
            "three rates, and the rate-distortion function of their source at the distortion of the file: by "
            "reverse water-filling where it is Gaussian given what its source says, else by Blahut-Arimoto. The last "
            "source has structure that no model has: its row says so. Where a limit is a Shannon lower bound, it is "
            "loose at low rates.",
            known_sources.known(),
        ),
        Section(
            "Errors of small tensors",
            f"{known_sources.TRIALS} Gaussian tensors of each shape, with one scale and with lognormal scales of rows: "
            "the fitted entropy, raised by what the fit lowers it, less the true one.",
            known_sources.errors(),
        ),
    ]
    text = "What a [limit of the fitted source](../theory.md#the-limit-we-print) is worth. Bits a weight."
    results.write_page("sources", "Limits of sources that are known", text, sections)


if __name__ == "__main__":
    main()
