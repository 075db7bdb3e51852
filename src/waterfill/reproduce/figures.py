"""The figures of the paper, drawn from results."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from waterfill.atomic import write_atomically
from waterfill.reproduce.claims import curve
from waterfill.reproduce.experiments import Experiment, Plot, Sweep

COLORS = {
    "baseline": "#555555",
    "kl": "#0072B2",
    "gradient": "#E69F00",
    "hessian": "#009E73",
    "gradient+hessian": "#D55E00",
    "gradient+hessian, means 1": "#CC79A7",
}
MARKERS = dict(zip(COLORS, "os^vDP", strict=True))
QUALITIES = {"accuracy": "top-1 accuracy, %", "top5": "top-5 accuracy, %", "cross_entropy": "cross-entropy, nats"}
RATIOS = {"paper_ratio": "compression ratio by the paper's formula, %", "file_ratio": "file / original, bytes, %"}
VERBS = {"prune": "pruning", "quantize": "quantization"}

Row = Mapping[str, Any]


def draw(experiment: Experiment, results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every figure of an experiment as SVG; the same results make the same bytes.

    Args:
        experiment: with the figures.
        results: what `reproduce` returned, or its JSON file.
        folder: where to write.

    Returns:
        The files, in the order of their numbers.
    """
    figures = {plot.number: _plot(experiment, plot, results) for plot in experiment.plots}
    figures |= {sweep.number: _sweep(experiment, sweep, results) for sweep in experiment.sweeps}
    paths = []
    for number, figure in sorted(figures.items()):
        paths.append(folder / f"figure-{number}-{experiment.name}.svg")
        data = io.BytesIO()
        with rc_context({"svg.hashsalt": "waterfill"}):
            figure.savefig(data, format="svg", facecolor="white", metadata={"Date": None})
        write_atomically(paths[-1], [data.getvalue()])
    return paths


def _plot(experiment: Experiment, plot: Plot, results: Mapping[str, Any]) -> Figure:
    """Qualities in rows, the two ratios in columns."""
    qualities = [name for name in QUALITIES if name != "top5" or plot.top5]
    figure = Figure(figsize=(11, 3.3 * len(qualities) + 0.6), layout="constrained")
    grid = figure.subplots(len(qualities), len(RATIOS), squeeze=False, sharex="col")
    for axes_row, quality in zip(grid, qualities, strict=True):
        for axes, ratio in zip(axes_row, RATIOS, strict=True):
            for name in plot.objectives:
                rows = curve(results, plot.task, name)
                if not rows:
                    continue
                _line(axes, name, [100 * row[ratio] for row in rows], [row[quality] for row in rows], quality)
            _finish(axes, results["original"][quality], quality)
        axes_row[0].set_ylabel(QUALITIES[quality])
    for axes, label in zip(grid[-1], RATIOS.values(), strict=True):
        axes.set_xlabel(label)
    grid[0, 0].legend(frameon=False)
    kind = "supervised" if "gradient" in plot.objectives else "unsupervised"
    figure.suptitle(f"Figure {plot.number}: {kind} {VERBS[plot.task]}, {experiment.title}")
    return figure


def _sweep(experiment: Experiment, sweep: Sweep, results: Mapping[str, Any]) -> Figure:
    """Qualities in rows, the objectives in columns, a line for every fraction that is kept."""
    qualities = [name for name in QUALITIES if name != "top5"]
    panels = list(_panels(sweep, results[sweep.option]))
    figure = Figure(figsize=(3.9 * len(panels), 6.6), layout="constrained")
    grid = figure.subplots(len(qualities), len(panels), squeeze=False, sharex="col", sharey="row")
    for axes_row, quality in zip(grid, qualities, strict=True):
        for axes, (title, rows) in zip(axes_row, panels, strict=True):
            values = sorted({row[sweep.option] for row in rows})
            for keep in sweep.keeps:
                own = {row[sweep.option]: row[quality] for row in rows if row["amount"] == keep}
                places = [place for place, value in enumerate(values) if value in own]
                factor = 1 if quality == "cross_entropy" else 100
                scaled = [factor * own[values[place]] for place in places]
                axes.plot(places, scaled, marker="o", markersize=4, label=f"{100 * keep:g} % kept")
            axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
            axes.grid(alpha=0.3)
            if quality == "accuracy":
                axes.set_title(title, fontsize=10)
        axes_row[0].set_ylabel(QUALITIES[quality])
    for axes in grid[-1]:
        axes.set_xlabel("temperature T" if sweep.option == "temperature" else "regulariser μ")
    grid[0, 0].legend(frameon=False, fontsize=9)
    what = "temperature" if sweep.option == "temperature" else "regulariser"
    figure.suptitle(f"Figure {sweep.number}: effect of the {what}, supervised pruning, {experiment.title}")
    return figure


def _panels(sweep: Sweep, rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """A title and rows for every objective that was measured: on the axis of the paper, where it is, and on ours."""
    for name in sweep.objectives:
        own = [row for row in rows if row["objective"] == name]
        paper = [row for row in own if row[sweep.option] in sweep.axis]
        if len(paper) > len(sweep.keeps):
            yield f"{name}, as in the paper", paper
        if wide := [row for row in own if row not in paper or row[sweep.option] == 0]:
            yield name, wide


def _line(axes: Axes, name: str, ratios: Sequence[float], values: Sequence[float], quality: str) -> None:
    scaled = [value if quality == "cross_entropy" else 100 * value for value in values]
    axes.plot(ratios, scaled, color=COLORS[name], marker=MARKERS[name], markersize=4, linewidth=1.3, label=name)


def _finish(axes: Axes, original: float, quality: str) -> None:
    """The original as a dashed line; cross-entropy on a logarithmic scale."""
    axes.axhline(original if quality == "cross_entropy" else 100 * original, color="black", linestyle=":", linewidth=1)
    if quality == "cross_entropy":
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.set_xlim(left=0)
