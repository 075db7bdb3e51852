"""Measure losses of codes to the limit, bits of orderings of units, and losses of networks on training and test data.

`--only` measures some sections and keeps what the others had in the JSON file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import feedback_gaps
import pictures
import population
import results
from measure import say
from results import Section

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """One section: its name on the command line, what it says, how it is measured and drawn."""

    key: str
    title: str
    text: str
    measure: Callable[[], Rows]
    picture: Callable[[Rows], str] | None = None


PARTS = (
    Part(
        "feedback",
        "Feedback against the limit, form by form",
        f"Gaussian weights, {feedback_gaps.OUTPUTS:,} outputs, under `tr(E A E^T)`: A = I, an autoregressive process "
        f"of {feedback_gaps.INPUTS} inputs, the 300 inputs of the second layer of LeNet-300-100, and "
        f"{feedback_gaps.INPUTS} eigenvalues over six decades in a random basis. Files of `Feedback(1)` (uniform "
        f"steps) and `Feedback({feedback_gaps.STATES})` (a trellis), all bytes counted. *Gap*: above reverse "
        "water-filling at the distortion of the decoded weights. *Theorem*: what dithered steps with an ideal coder "
        "lose at most there. *Price of A*: the gap minus that of A = I at the same rate, which is what a decoder pays "
        "that does not know A and gets a scale for each column. *Isotropic codebook*: what one Gaussian codebook for "
        "all A loses, at the distortion of the trellis.",
        feedback_gaps.gaps,
        lambda rows: pictures.feedback(rows),
    ),
    Part(
        "orderings",
        "Orderings of hidden units",
        "`log2 n!` summed over sets of units that can change places, and its share of files.",
        population.orderings,
    ),
    Part(
        "population",
        "Training and test loss of compressed networks",
        "LeNet-300-100 through `compress(..., effort='fast')`: the network of the model zoo, trained on all 60,000 "
        f"images, and one trained for {population.EPOCHS} epochs on {population.FEW:,} of them, a fifth of which got "
        "random labels. Cross-entropy in nats and errors on all images (and labels) that it was trained on and on all "
        "10,000 test images. *Bound*: of the mean difference of the errors, `sqrt(2 sigma^2 ln 2 * bits / N)` with "
        "sigma = 1/2 and all bits of the file. The divergences are of test images, nats.",
        population.risks,
        lambda rows: pictures.population(rows),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[part.key for part in PARTS], default=[p.key for p in PARTS])
    options = parser.parse_args()
    known = results.read("losses")
    for part in PARTS:
        if part.key in options.only:
            say(f"{part.title} ...")
            known[part.title] = part.measure()
    text = "Measurements for [the theory](../theory.md). Rates are in bits a weight unless said otherwise."
    sections = [_section(part, known[part.title]) for part in PARTS if part.title in known]
    measured = [part.title for part in PARTS if part.key in options.only]
    results.write_page("losses", "What codes lose and what files know", text, sections, measured)


def _section(part: Part, rows: Rows) -> Section:
    return Section(part.title, part.text, rows, part.picture(rows) if part.picture else "")


if __name__ == "__main__":
    main()
