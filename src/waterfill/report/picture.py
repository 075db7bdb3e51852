"""Pictures as files."""

from __future__ import annotations

import io
from pathlib import Path

from waterfill.compression.bound import ModelBound
from waterfill.errors import UsageError

FORMATS = ("png", "svg", "pdf")
BLUE, ORANGE = "#0072B2", "#D55E00"
LONGEST_NAME = 40
MOST_TENSORS = 80
"""Most tensors that have a bar each; of a larger model the largest ones."""


def picture_format(path: Path) -> str:
    """The format that the ending of a file name asks for.

    Raises:
        UsageError: there is no such format.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise UsageError(f"Picture {path} has the ending {path.suffix!r}; expected .png, .svg or .pdf.")
    return kind


def bound_picture(bound: ModelBound, rate: float, name: str, kind: str) -> bytes:
    """Rate against distortion of a model, and the rates of its tensors at one of them.

    Args:
        bound: the curve.
        rate: bits per value at which the tensors are shown.
        name: of the model, for the title.
        kind: `png`, `svg` or `pdf`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    every = [row for row in bound.tensors(rate) if row.rate is not None]
    shown = {row.name for row in sorted(every, key=lambda row: -row.numel)[:MOST_TENSORS]}
    rows = [row for row in every if row.name in shown]
    figure = Figure(figsize=(12, max(4.5, 1.5 + 0.16 * len(rows))), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = bound.usual_rates([each / 10 for each in range(1, 81)])
    points = [(each, distortion) for each, distortion in bound.curve(rates) if distortion > 0]
    left.plot([each for each, _ in points], [distortion for _, distortion in points], color=BLUE)
    left.plot(rate, bound.distortion(rate), "o", color=ORANGE)
    left.annotate(
        f"{rate:g} bit: {bound.distortion(rate):.3g}",
        (rate, bound.distortion(rate)),
        (8, 6),
        textcoords="offset points",
    )
    left.set(
        yscale="log" if points else "linear",
        xlabel="rate of the whole file, bit per value",
        ylabel=f"distortion, {bound.unit}",
    )
    left.set_title(f"{_short(name)}: no code does better on average (under the source model)", fontsize=10)
    left.grid(alpha=0.3)
    right.barh(range(len(rows)), [row.rate or 0.0 for row in rows], color=BLUE)
    right.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=7)
    more = "" if len(rows) == len(every) else f" (the {len(rows)} largest of {len(every)} tensors)"
    right.set_title(f"where the bits go at {rate:.4g} bit per value{more}", fontsize=10)
    right.set_xlabel("bit per value")
    right.grid(alpha=0.3, axis="x")
    data = io.BytesIO()
    undated = {"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same picture, the same bytes
    with rc_context({"svg.hashsalt": "waterfill"}):
        figure.savefig(data, format=kind, facecolor="white", dpi=120, metadata=undated[kind])
    return data.getvalue()


def _short(name: str) -> str:
    """A name without its middle, where it is long; no character starts a formula."""
    text = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 :]}"
    return text.replace("$", r"\$")
