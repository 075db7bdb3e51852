"""The experiments of the paper: figures, and its claims beside what we measure.

`python benchmarks/paper.py` runs what is missing (hours on two cores: mnist minutes, cifar10 and cifar100 an hour each)
and goes on where it was stopped, in `build/paper`. `python benchmarks/paper.py page` only writes the page again, from
the JSON files in docs/results/paper.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from results import FOLDER, Section, write_page

from waterfill.progress import progress_bar
from waterfill.reproduce import EXPERIMENTS, reproduce
from waterfill.reproduce.claims import GRID, WORTH, compare, curve, ranking, smallest_within
from waterfill.reproduce.figures import draw

WORK = Path("build/paper")
JSON = FOLDER / "paper"
PICTURES = FOLDER.parent / "pictures" / "paper"
VERBS = {"prune": "pruning", "quantize": "quantization"}
RATIOS = {"paper_ratio": "formula", "file_ratio": "bytes"}
Results = Mapping[str, Any]


def main() -> None:
    names = [name for name in EXPERIMENTS if name in sys.argv[1:]] or list(EXPERIMENTS)
    if "page" not in sys.argv:
        for name in names:
            run(name)
    everything = {
        name: json.loads((JSON / f"{name}.json").read_text())
        for name in EXPERIMENTS
        if (JSON / f"{name}.json").exists()
    }
    page(everything)


def run(name: str) -> None:
    with progress_bar() as progress:
        reproduce(EXPERIMENTS[name], WORK / name, progress=progress)
    JSON.mkdir(parents=True, exist_ok=True)
    shutil.copy(WORK / name / "results.json", JSON / f"{name}.json")


def page(everything: Mapping[str, Results]) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    sections = [
        Section("The networks", NETWORKS, [network(results) for results in everything.values()]),
        Section("Cross-entropy below the baseline at every ratio", BELOW, list(rows(everything, "cross_entropy"))),
        Section("Accuracy above the baseline", ABOVE, list(rows(everything, "accuracy"))),
        Section("Which objective is best", BEST, list(best(everything))),
        Section("Temperature", TEMPERATURE, list(temperatures(everything))),
        Section("What the temperature changes", SWEPT, list(sweeps(everything, "temperature", 1.0))),
        Section("Regulariser", REGULARISER, list(sweeps(everything, "mu", 0.0))),
        Section("Exact k-means instead of Lloyd's", EXACT, list(exact(everything))),
        Section("One water level instead of the same ratio in every layer", LEVEL, list(levels(everything))),
        Section("Smallest files within one point of accuracy", SMALLEST, list(smallest(everything))),
    ]
    for name, results in everything.items():
        sections += figures(name, results)
    write_page("paper", "The experiments of the paper", INTRODUCTION, sections)


def network(results: Results) -> dict[str, Any]:
    original = results["original"]
    return {
        "data set": EXPERIMENTS[results["experiment"]].title,
        "width": results["width"] or "",
        "weights": results["weights"],
        "values in matrices": results["matrix_values"],
        "bytes": results["original_bytes"],
        "top-1, %": 100 * original["accuracy"],
        "top-5, %": 100 * original["top5"],
        "cross-entropy": original["cross_entropy"],
        "importance on": results["samples"],
        "T, mu chosen on": results["validation_samples"],
        "tested on": results["test_samples"],
    }


def objectives(results: Results) -> list[str]:
    return list(dict.fromkeys(row["objective"] for row in results["points"]))


def rows(everything: Mapping[str, Results], quality: str) -> Iterator[dict[str, Any]]:
    for name, results in everything.items():
        for task in VERBS:
            baseline = curve(results, task, "baseline")
            for objective in objectives(results)[1:]:
                points = curve(results, task, objective)
                row: dict[str, Any] = {"data set": EXPERIMENTS[name].title, "": VERBS[task], "objective": objective}
                for ratio, label in RATIOS.items():
                    found = compare(points, baseline, quality, ratio)
                    row |= {
                        f"better / equal / worse ({label})": f"{found.better} / {found.equal} / {found.worse}",
                        f"median gain ({label})": f"{100 * found.median_gain:.1f} {'%' if 'cross' in quality else 'points'}",
                        f"worse at ({label})": ", ".join(f"{amount:g}" for amount in found.exceptions),
                    }
                yield row


def best(everything: Mapping[str, Results]) -> Iterator[dict[str, Any]]:
    """At how many of equally spaced ratios each objective has the least cross-entropy."""
    for name, results in everything.items():
        for task in VERBS:
            for ratio, label in RATIOS.items():
                curves = {each: curve(results, task, each) for each in objectives(results)}
                ranked = ranking(curves, "cross_entropy", ratio)
                row = {"data set": EXPERIMENTS[name].title, "": VERBS[task], "ratio": label}
                for each in ("baseline", "kl", "gradient", "hessian", "gradient+hessian"):
                    row[each] = f"{ranked[each][0]} ({100 * ranked[each][1]:+.0f} %)" if each in ranked else "not run"
                yield row


def temperatures(everything: Mapping[str, Results]) -> Iterator[dict[str, Any]]:
    """Which T were chosen, and what T = 1 gives instead where it was measured."""
    for name, results in everything.items():
        for task in VERBS:
            row: dict[str, Any] = {"data set": EXPERIMENTS[name].title, "": VERBS[task]}
            for each in ("kl", "gradient", "hessian", "gradient+hessian"):
                chosen = [point["temperature"] for point in curve(results, task, each)]
                row[f"T of {each}"] = " ".join(f"{value:g}" for value in chosen) or "not run"
            yield row


def sweeps(everything: Mapping[str, Results], option: str, plain: float) -> Iterator[dict[str, Any]]:
    """The best value of an option on the test set, the chosen one and the plain one, from the sweep over it."""
    for name, results in everything.items():
        found: dict[tuple[str, float], list[dict[str, Any]]] = {}
        for point in results.get(option, ()):
            found.setdefault((point["objective"], point["amount"]), []).append(point)
        for (objective, amount), points in found.items():
            at = {point[option]: point["cross_entropy"] for point in points}
            (chosen,) = (p[option] for p in curve(results, "prune", objective) if p["amount"] == amount)
            least = min(at, key=lambda value: at[value])
            yield {
                "data set": EXPERIMENTS[name].title,
                "objective": objective,
                "kept": amount,
                f"cross-entropy at {plain:g}": at[plain],
                "chosen": chosen,
                "its cross-entropy": at[chosen],
                "best on the test set": least,
                "cross-entropy there": at[least],
            }


def exact(everything: Mapping[str, Results]) -> Iterator[dict[str, Any]]:
    """The global optimum against Lloyd's iterations, at the same number of centroids, T and mu."""
    for name, results in everything.items():
        for objective in objectives(results):
            lloyd = curve(results, "quantize", objective)
            pairs = list(zip(lloyd, curve(results, "quantize", objective, "exact"), strict=True))
            row = {"data set": EXPERIMENTS[name].title, "objective": objective}
            row |= counts([(new["cross_entropy"], old["cross_entropy"]) for old, new in pairs])
            row["median bytes"] = (
                f"{100 * median([new['size_bytes'] / old['size_bytes'] - 1 for old, new in pairs]):+.1f} %"
            )
            for ratio, label in RATIOS.items():
                found = compare([new for _, new in pairs], lloyd, "cross_entropy", ratio)
                row[f"at equal {label}: lower / equal / higher"] = f"{found.better} / {found.equal} / {found.worse}"
            yield row


def levels(everything: Mapping[str, Results]) -> Iterator[dict[str, Any]]:
    """One level for the whole model against the same ratio in every layer; k-means at its optimum in both."""
    for name, results in everything.items():
        for task, variant in (("prune", "paper"), ("quantize", "exact")):
            for objective in objectives(results):
                same = {point["amount"]: point for point in curve(results, task, objective, variant)}
                level = curve(results, task, objective, "one level")
                found = compare(level, list(same.values()), "cross_entropy", "file_ratio")
                hits = compare(level, list(same.values()), "accuracy", "file_ratio")
                yield {
                    "data set": EXPERIMENTS[name].title,
                    "": VERBS[task],
                    "objective": objective,
                    "cross-entropy lower / equal / higher": f"{found.better} / {found.equal} / {found.worse}",
                    "median gain": f"{100 * found.median_gain:.1f} %",
                    "higher at": ", ".join(f"{amount:g}" for amount in found.exceptions),
                    "accuracy higher / equal / lower": f"{hits.better} / {hits.equal} / {hits.worse}",
                }


def smallest(everything: Mapping[str, Results]) -> Iterator[dict[str, Any]]:
    """The smallest file of every compressor that loses at most one point."""
    variants = {"prune": ("paper", "one level"), "quantize": ("paper", "exact", "one level")}
    for name, results in everything.items():
        for task, kinds in variants.items():
            for kind in kinds:
                row: dict[str, Any] = {"data set": EXPERIMENTS[name].title, "": VERBS[task], "variant": kind}
                for each in ("baseline", "kl", "gradient", "hessian", "gradient+hessian"):
                    least = smallest_within(results, curve(results, task, each, kind), 1.0)
                    row[each] = (
                        "none" if least is None else f"{least['size_bytes']:,} ({100 * least['file_ratio']:.1f} %)"
                    )
                yield row


def figures(name: str, results: Results) -> Iterator[Section]:
    """Every figure with the points in it."""
    paths = {path.stem: path for path in draw(EXPERIMENTS[name], results, PICTURES)}
    for plot in EXPERIMENTS[name].plots:
        yield Section(
            f"Figure {plot.number}, {EXPERIMENTS[name].title}",
            f"{VERBS[plot.task].capitalize()}; cross-entropy and top-1 in percent of every objective, with the bytes of its file.",
            list(points(results, plot.task, plot.objectives)),
            f"paper/{paths[f'figure-{plot.number}-{name}'].name}",
        )
    for sweep in EXPERIMENTS[name].sweeps:
        yield Section(
            f"Figure {sweep.number}, {EXPERIMENTS[name].title}",
            f"Supervised pruning; cross-entropy at every {sweep.option}.",
            list(swept(results, sweep.option)),
            f"paper/{paths[f'figure-{sweep.number}-{name}'].name}",
        )


def points(results: Results, task: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    head = "kept" if task == "prune" else "centroids"
    for each in zip(*(curve(results, task, name) for name in names), strict=True):
        row: dict[str, Any] = {head: each[0]["amount"]}
        for point in each:
            row[point["objective"]] = (
                f"{point['cross_entropy']:.4f}, {100 * point['accuracy']:.2f} %, {point['size_bytes']:,} B"
            )
        yield row


def swept(results: Results, option: str) -> Iterator[dict[str, Any]]:
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for point in results[option]:
        key = (point["objective"], point["amount"])
        row = found.setdefault(key, {"objective": key[0], "kept": key[1]})
        row[f"{point[option]:g}"] = point["cross_entropy"]
    yield from found.values()


def counts(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    better = sum(new < old - WORTH for new, old in pairs)
    worse = sum(new > old + WORTH for new, old in pairs)
    gain = median([1 - new / old for new, old in pairs])
    return {
        "at equal k: cross-entropy lower / equal / higher": f"{better} / {len(pairs) - better - worse} / {worse}",
        "median gain": f"{100 * gain:.1f} %",
    }


if __name__ == "__main__":
    main()
