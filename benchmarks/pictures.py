"""Pictures of the theory, drawn from what a benchmark measured; SVG in docs/pictures, the same in every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from results import DOCS

FOLDER = DOCS / "pictures"
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"  # Okabe and Ito
STYLES = tuple(zip((BLUE, RED, GREEN, PURPLE, ORANGE, "#56B4E9", "#555555"), "osD^vP*", strict=True))

Curve = tuple[Sequence[float], Sequence[float]]


def save(figure: Figure, name: str) -> str:
    """Write `docs/pictures/<name>.svg`; returns the file name."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "waterfill"}):
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    return f"{name}.svg"


def fill_levels(
    widths: Sequence[float],
    heights: Sequence[float],
    levels: Mapping[float, tuple[float, Sequence[float]]],
    rate: Curve,
) -> str:
    """Rectangles filled to `D_i` at a few distortions, beside R(D).

    Args:
        widths: `lambda_i`.
        heights: `E W_i^2`.
        levels: distortion to (mu, the `D_i`).
        rate: distortions and rates of the curve.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    *boxes, plot = figure.subplots(1, len(levels) + 1, width_ratios=[1] * len(levels) + [1.9])
    for axes, (distortion, (mu, filled)) in zip(boxes, levels.items(), strict=True):
        left = np.concatenate([[0.0], np.cumsum(widths)[:-1]])
        axes.bar(left, filled, widths, align="edge", color=BLUE, alpha=0.55)
        axes.bar(left, heights, widths, align="edge", fill=False, edgecolor="black", linewidth=1.3)
        for start, width, height, depth in zip(left, widths, heights, filled, strict=True):
            place = depth + 0.06 if depth < height else height + 0.06
            axes.text(start + width / 2, place, f"{depth:.3g}", ha="center", fontsize=9)
        axes.set(title=f"D = {distortion:g}, μ = {mu:.3g}", xlabel="width $λ_i$", ylim=(0, max(heights) + 0.5))
        axes.set_xticks(left + np.array(widths) / 2, [f"{width:g}" for width in widths])
    boxes[0].set_ylabel("height E$W_i^2$, filled to $D_i$")
    _segments(plot, list(levels), rate)
    return save(figure, "fill-levels")


def _segments(axes: Axes, ends: list[float], rate: Curve) -> None:
    distortions, rates = np.array(rate[0]), np.array(rate[1])
    starts = [0.0, *ends[:-1]]
    for number, (start, end, color) in enumerate(zip(starts, ends, (BLUE, RED, GREEN), strict=True)):
        inside = (distortions >= start) & (distortions <= end)
        label = f"{len(ends) - number} not full" if number < len(ends) - 1 else "1 not full"
        axes.plot(distortions[inside], rates[inside], color=color, linewidth=2.2, label=label)
        axes.plot(end, np.interp(end, distortions, rates), "o", color=color)
        axes.annotate(f"D = {end:g}", (end, np.interp(end, distortions, rates)), (-4, 9), textcoords="offset points")
    axes.set(xlabel="distortion D", ylabel="R(D), bit for three weights", xlim=(0, 1.2 * ends[-1]), ylim=(-0.15, None))
    axes.legend(title="rectangles", frameon=False)
    axes.grid(alpha=0.3)


def theorem_4(curve: Curve, pruned: Curve, codebooks: Curve, paths: Mapping[str, tuple[Curve, Curve, Curve]]) -> str:
    """True error against objective: all masks on one curve, codebooks of any length beside it; and what length does.

    Args:
        curve: objectives and errors under rule 1, in units of the power.
        pruned: those of all masks.
        codebooks: those of all partitions, each with a random length.
        paths: label to (a direction at all lengths, its least objective, its least error).
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*codebooks, ".", color=ORANGE, markersize=4, label="codebooks of two values, any length")
    left.plot(*curve, color="black", linewidth=1, label="rule 1 holds")
    left.plot(*pruned, "o", color=BLUE, markersize=4, fillstyle="none", label="all masks, weights as they are")
    left.set(xlim=(0, 1.5), ylim=(0, 0.62))
    right.plot(*curve, color="black", linewidth=1, label="rule 1 holds")
    for (label, (path, least_objective, least_error)), color in zip(paths.items(), (BLUE, GREEN, RED), strict=True):
        right.plot(*path, color=color, linewidth=1.6, label=label)
        right.plot(*least_objective, "o", color=color, fillstyle="none", markersize=7)
        right.plot(*least_error, "*", color=color, markersize=10)
    right.plot([], [], "o", color="grey", fillstyle="none", label=r"least objective: length $n(w)\,\rho$")
    right.plot([], [], "*", color="grey", markersize=10, label=r"least error: length $n(w)\,J(\rho)$")
    right.set(xlim=(0.35, 1.1), ylim=(0.15, 0.5))
    for axes, title in ((left, "all candidates of a unit of 8 weights"), (right, "one direction, all lengths")):
        axes.set(
            xlabel="objective $(w-\\hat w)^T Σ (w-\\hat w)\\ /\\ n(w)^2$", ylabel="true error / $n(w)^2$", title=title
        )
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9, loc="lower right" if axes is left else "upper left")
    return save(figure, "theorem-4")


def _curves(curves: Mapping[str, Curve], level: float, label: str) -> tuple[Figure, Axes]:
    """Curves over the rate, and a dashed line at a level."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for (name, curve), color, marker in zip(curves.items(), (BLUE, RED, GREEN, PURPLE), "osD^", strict=False):
        axes.plot(*curve, color=color, marker=marker, markersize=5, label=name)
    axes.axhline(level, color="black", linestyle="--", linewidth=1, label=label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure, axes


def looseness(curves: Mapping[str, Curve], accuracy: float) -> str:
    """R(D) above the Shannon lower bound against that bound, a curve per shape, and how exactly it is computed."""
    figure, axes = _curves(curves, accuracy, f"accuracy of the computation: {accuracy:g}")
    axes.set(xlabel="Shannon lower bound, bit per weight", ylabel="R(D) above it, bit per weight")
    axes.set(yscale="log", ylim=(accuracy / 2, 0.3))
    return save(figure, "shannon-gap")


def gaps(curves: Mapping[str, Curve], plain: float) -> str:
    """Gap of codes to R(D) against their rate, a curve per source, and that of plain uniform steps at high rate."""
    figure, axes = _curves(curves, plain, f"uniform steps at high rate: {plain:.3f}")
    axes.set(xlabel="rate, bit per weight", ylabel="rate above R(D), bit per weight", ylim=(0, None))
    return save(figure, "code-gap")


def independent(rows: Sequence[Mapping[str, Any]]) -> str:
    """Gap against rate, a picture per source, a line per number of states."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    sources = list(dict.fromkeys(row["source"] for row in rows))
    for axes, source in zip(figure.subplots(1, len(sources), sharey=True), sources, strict=True):
        for states, (color, marker) in zip(sorted({row["states"] for row in rows}), STYLES, strict=False):
            own = [row for row in rows if row["source"] == source and row["states"] == states]
            label = f"{states} states" if states > 1 else "uniform steps"
            axes.plot(*_columns(own, "bit/weight", "gap"), color=color, marker=marker, label=label)
        axes.set(title=f"{source} weights", xlabel="rate, bit per weight", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("rate above R(D), bit per weight")
    figure.axes[-1].legend(frameon=False)
    return save(figure, "limits-independent")


def rounding(rows: Sequence[Mapping[str, Any]], layer: str, left_out: str) -> str:
    """Errors of all ways to round one layer, beside the bound through all these errors; and the gaps between."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    (plot, gaps), rows = figure.subplots(1, 2), [row for row in rows if row["layer"] == layer]
    bound = sorted((row["limit"], row["error, dB"]) for row in rows if row["rounding"] != left_out)
    plot.plot(*zip(*bound, strict=True), color="black", linewidth=1.5, label="reverse water-filling")
    ways = [way for way in dict.fromkeys(row["rounding"] for row in rows) if way != left_out]
    for way, (color, marker) in zip(ways, STYLES, strict=False):
        own = [row for row in rows if row["rounding"] == way]
        for axes, column in ((plot, "error, dB"), (gaps, "gap")):
            axes.plot(*_columns(own, "bit/weight", column), color=color, marker=marker, linewidth=1, label=way)
    plot.set(xlabel="rate, bit per weight", ylabel="error at the layer's outputs, dB", xlim=(0.8, None))
    gaps.set(xlabel="rate, bit per weight", ylabel="rate above the bound, bit per weight")
    gaps.axhline(0, color="black", linewidth=1.5)
    for axes in (plot, gaps):
        axes.grid(alpha=0.3)
    plot.legend(frameon=False)
    return save(figure, "limits-rounding")


def quality(rows: Sequence[Mapping[str, Any]]) -> str:
    """KL and top-1 of a whole network against the size of its file, a line per quantizer."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2), ("KL (nats)", "top-1 %"), strict=True):
        for way, (color, marker) in zip(dict.fromkeys(row["quantizer"] for row in rows), STYLES, strict=False):
            own = [row for row in rows if row["quantizer"] == way]
            sizes, values = _columns(own, "bytes", column)
            axes.plot(np.array(sizes) / 1000, values, color=color, marker=marker, label=way)
        axes.set(xlabel="file, kB", ylabel=column)
        axes.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    figure.axes[0].legend(frameon=False)
    return save(figure, "limits-resnet20")


def peers(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], codecs: Sequence[str], name: str) -> str:
    """Quality of a network against the size of its file, a line per codec through what no smaller file is as good as.

    Args:
        rows: all settings, by size.
        columns: of top-1, of KL, and of another loss if there is one.
        codecs: in the order of colors.
        name: of the file, without ending.
    """
    figure = Figure(figsize=(6 * len(columns), 4.6), layout="constrained")
    before = next(row for row in rows if row["codec"] == "original")
    for axes, column in zip(figure.subplots(1, len(columns)), columns, strict=True):
        sign = 1 if column == columns[0] else -1
        for codec, (color, marker) in zip(codecs, STYLES, strict=False):
            own = [row for row in rows if row["codec"] == codec]
            if own:
                sizes, values = (np.array(each) for each in _columns(own, "bytes", column))
                best = np.flatnonzero(np.diff(np.maximum.accumulate(sign * values), prepend=-np.inf) > 0)
                axes.plot(sizes / 1000, values, marker, color=color, markersize=4, alpha=0.4)
                axes.plot(sizes[best] / 1000, values[best], marker + "-", color=color, markersize=4, label=codec)
        axes.set(xlabel="file, kB", ylabel=column, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.axhline(before[column], color="black", linestyle="--", linewidth=1, label="original")
    top, divergence, *others = figure.axes
    top.set_ylim(before[columns[0]] - 8, before[columns[0]] + 0.5)
    divergence.set(yscale="log", ylim=(1e-3, 2))
    for axes, column in zip(others, columns[2:], strict=True):
        axes.set_ylim(0.995 * before[column], 1.15 * before[column])
    top.legend(frameon=False, loc="lower right")
    return save(figure, name)


def _columns(rows: Sequence[Mapping[str, Any]], *names: str) -> tuple[Any, ...]:
    return tuple([row[name] for row in rows] for name in names)


def feedback(rows: Sequence[Mapping[str, Any]]) -> str:
    """Gap against rate, a line per form; uniform steps with what the theorem allows, and a trellis."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, (color, marker) in zip(dict.fromkeys(row["A"] for row in rows), STYLES, strict=False):
        own = [row for row in rows if row["A"] == name]
        left.plot(*_columns(own, "bit/weight, steps", "gap, steps"), color=color, marker=marker, label=name)
        left.plot(*_columns(own, "bit/weight, steps", "theorem, steps"), color=color, linestyle=":", linewidth=1)
        right.plot(*_columns(own, "bit/weight, 64 states", "gap, 64 states"), color=color, marker=marker, label=name)
    left.set(title="uniform steps (dotted: the theorem)", ylabel="rate above the limit, bit per weight", ylim=(0, None))
    right.set(title="64 states")
    for axes in (left, right):
        axes.set(xlabel="rate, bit per weight")
        axes.grid(alpha=0.3)
    right.legend(frameon=False)
    return save(figure, "feedback-loss")


def population(rows: Sequence[Mapping[str, Any]]) -> str:
    """Training and test loss of networks against the size of their files; dashed lines are the originals'."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    names = dict.fromkeys(row["trained on"] for row in rows)
    for axes, name, limits in zip(figure.subplots(1, 2), names, ((-0.03, 0.25), (-0.95, 2.2)), strict=True):
        *files, original = [row for row in rows if row["trained on"] == name]
        for column, (color, marker) in zip(("training loss", "test loss", "test - training"), STYLES, strict=False):
            axes.plot(*_columns(files, "bytes", column), color=color, marker=marker, markersize=4, label=column)
            axes.axhline(original[column], color=color, linestyle="--", linewidth=1)
        axes.set(title=f"trained on {name}", xlabel="file, bytes", xscale="log", ylim=limits)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("cross-entropy, nats (dashed: original)")
    figure.axes[0].legend(frameon=False)
    return save(figure, "population-risk")


def slopes(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], per_bit: float) -> str:
    """Distortions in dB against the rate, a picture per network, with lines of the slope at high rate.

    Args:
        rows: of all networks.
        columns: the curves.
        per_bit: the slope, dB a bit.
    """
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(4 * len(names), 4.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = [row for row in rows if row["network"] == name]
        for column, (color, marker) in zip(columns, STYLES, strict=False):
            rates, values = (np.array(each) for each in _columns(own, "bit/value", column))
            axes.plot(rates, values, color=color, marker=marker, markersize=4, label=column)
            axes.plot(rates, values[-1] + per_bit * (rates[-1] - rates), color=color, linestyle=":", linewidth=1)
        axes.set(title=name, xlabel="rate, bit per value")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"dB above 1 nat (dotted: {per_bit:.2f} dB a bit)")
    figure.axes[0].legend(frameon=False)
    return save(figure, "slope")
