"""The experiments of the paper: figures, and its claims beside what we measure.

`python benchmarks/paper.py` runs what is missing (hours on two cores: mnist minutes, cifar10 and cifar100 an hour each)
and goes on where it was stopped, in `build/paper`. `python benchmarks/paper.py page` only writes the page again, from
the JSON files in docs/results/paper, and `python benchmarks/paper.py regression` measures the section of regression
alone. `paper_rows.py` measures rows that these files lack.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import paper_regression
from results import FOLDER, Section, write_page
from waterfill.progress import progress_bar
from waterfill.quantize import KMeans, Prune
from waterfill.reproduce import EXPERIMENTS, Options, reproduce
from waterfill.reproduce.claims import WORTH, compare, curve, ranking, smallest_within
from waterfill.reproduce.experiments import EVERY
from waterfill.reproduce.figures import draw
from waterfill.reproduce.importances import Setting
from waterfill.reproduce.run import open_lab
from waterfill.reproduce.subject import measure

INTRODUCTION = """\
Section 6 and appendix C of "Rate Distortion For Model Compression: From Theory To Practice" (Gao, Liu, Wang, Oh,
2019), run again: every objective at every ratio, on complete test sets. Every point is a file that was written and
decoded again; matrices are compressed as in the paper (the same fraction or number of centroids in every layer,
Lloyd from quantiles, 30 iterations), biases and batch norms are stored without loss. Ratios are given by the
formulas of the paper (matrices only, kept weights and table of centroids at 32 bits, whole-bit code lengths,
positions of zeros for nothing) and in real bytes of the file over the bytes of the original. Kept weights are
rounded as `Prune` says.

The temperature T (1 to 9; on CIFAR-100 1, 2, 3, 5 and 9) and the regulariser mu are chosen for every point, as in
the paper's appendix C.3: the T of 1 to 9 that gives the best result, then a mu by a search. What is best is told here
by training images that the importances have not seen: by the divergence from the original for `kl`, which knows no
labels, by the cross-entropy for the others. The test set chooses nothing; what its own best T and mu would have given
is below, at the ratios of the paper's figures 11 and 12.

`gradient+hessian, means 1` is what the authors' code has: the coefficients of squares and of fourth powers both
divided by their means in every matrix. It was run for CIFAR-10: worse than no importance at all when pruning, between
the gradient alone and the unscaled sum when quantizing.

All numbers are from `paper/mnist.json`, `paper/cifar10.json`, `paper/cifar100.json` and `paper/why.json` in this
folder; `python benchmarks/paper.py page` makes this page from them."""

NETWORKS = """\
The perceptron is trained by `zoo.training` when the run starts; the convolutional networks are those of the paper
at a quarter of its width. Half the width was not run: there are trained weights for a quarter only, 20,000 and 10,000
of the 50,000 training images are at hand, and 16 epochs on 20,000 take 3 x 10^14 multiplications and additions (some
three hours of a core), the figures four times as long as at a quarter."""

BELOW = """\
The paper: the proposed objective has a lower cross-entropy than the baseline at every ratio. Every point is
compared with the curve of the baseline at the same ratio (interpolated, logarithms linear); differences below 1e-4
are equal. The gain is relative. Amounts (fractions kept, numbers of centroids) at which it is worse are named."""

ABOVE = """\
The paper: higher accuracy at most ratios. As above; differences below one image in 10,000 are equal."""

BEST = """\
The paper: gradient+hessian is best overall. At 25 ratios that all curves cover, how often each objective has the
lowest cross-entropy, and its mean cross-entropy against the baseline's (geometric)."""

REASON = """\
The divergence of CIFAR-10's network by the diagonal of the importance matrix alone, which is what the objective
minimises; by the whole matrix, measured by going a short way towards the compressed weights; and as it is, on the
test set. While few weights are lost the three are close together, and the objective does what it promises: the
divergence from the original is a third lower than for pruning by magnitude (and the cross-entropy, which is with
the labels, the same to a thousandth). At half of the weights the diagonal is still lower, but the whole matrix is
much higher than for magnitudes, and the true divergence three times that again; at a quarter it is ten times the
whole matrix. So what breaks the claim are products of errors and terms beyond second order, about which no
diagonal can know; it is not the estimate of the importance. Codebooks make smaller errors at these ratios, and
there the objective gains in all three columns. A regulariser, which leads back towards magnitudes, repairs most of
it (figure 12), and so does one level for all layers (below). Whether the paper's network, four times as wide,
stays closer to second order was not measured here."""

TEMPERATURE = """\
T as chosen for every point, from the lowest ratio to the highest."""

SWEPT = """\
Figure 11: supervised pruning. What T = 1 gives, what the chosen T gives, and the best T on the test set."""

REGULARISER = """\
Figure 12: supervised pruning, with the T that was chosen. Curves choose among 0, .3, 1, 3, 10 and 30 (with fourth
powers: 0 and 1e3 to 1e7). On the paper's own axis, 0 to .25, which was run later for `hessian` with .4 kept and, to
.15, with .5 kept, the cross-entropy falls all the way, at .4 from 2.11 to 1.21; larger mu gain more.
For `gradient+hessian` mu times their mean is added to
the coefficients of the fourth powers. When a whole weight is lost these cost 1e2 to 1e6 times less than the
squares, so that without a large mu the objective is `gradient` to a fraction of a percent."""

EXACT = """\
Not in the paper: k-means at its global optimum by dynamic programming, with the T and mu that were chosen for
Lloyd. The optimum always has the lower objective (and here files that are a little smaller), but not always the
lower cross-entropy: for the plain squares it gains on both CIFAR networks; with importances, whose T was chosen
for Lloyd's centroids, gains and losses are about even. At these few centroids Lloyd from quantiles is not far from
the optimum; it is at many that it fails (see the page on k-means)."""

LEVEL = """\
Not in the paper: one threshold, or one price of a bit, for all layers, in a file of as many bytes; at every second
amount. T and mu are those of the file it is compared with."""

SMALLEST = """\
Bytes of the smallest file among the points that loses at most one point of top-1 accuracy on the test set, and its
share of the original; none where no point loses so little (codebooks end at 14, 12 and 16 values)."""

REGRESSION = "Regression, by Eq. 5"
NAMES = [objective.name for objective in EVERY]
WORK = Path("build/paper")
JSON = FOLDER / "paper"
PICTURES = FOLDER.parent / "pictures" / "paper"
VERBS = {"prune": "pruning", "quantize": "quantization"}
RATIOS = {"paper_ratio": "formula", "file_ratio": "bytes"}
Results = Mapping[str, Any]

WHY = ((0.25, 0.5, 0.8), (3, 5, 8))
"""Fractions and numbers of centroids at which errors are taken apart."""

SHORT = 0.03
"""How far to go towards the compressed weights where the divergence is still quadratic."""


def main() -> None:
    measured: Sequence[str] | None = None
    if sys.argv[1:] == ["page"]:
        measured = []
    elif sys.argv[1:] == ["regression"]:
        measured = [REGRESSION]
        keep("regression", list(paper_regression.rows()))
    else:
        for name in EXPERIMENTS:
            run(name)
        keep("why", list(why("cifar10")))
        keep("regression", list(paper_regression.rows()))
    page({name: known(name) for name in EXPERIMENTS}, measured)


def known(name: str) -> Any:
    return json.loads((JSON / f"{name}.json").read_text())


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    (JSON / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


def run(name: str) -> None:
    with progress_bar() as progress:
        reproduce(EXPERIMENTS[name], WORK / name, progress=progress)
    JSON.mkdir(parents=True, exist_ok=True)
    shutil.copy(WORK / name / "results.json", JSON / f"{name}.json")


def page(everything: Mapping[str, Results], measured: Sequence[str] | None) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    sections = [
        Section("The networks", NETWORKS, [network(results) for results in everything.values()]),
        Section("Cross-entropy below the baseline at every ratio", BELOW, list(rows(everything, "cross_entropy"))),
        Section("Accuracy above the baseline", ABOVE, list(rows(everything, "accuracy"))),
        Section("Which objective is best", BEST, list(best(everything))),
        Section("Why pruning by the diagonal fails on CIFAR-10", REASON, known("why")),
        Section("Temperature", TEMPERATURE, list(temperatures(everything))),
        Section("What the temperature changes", SWEPT, list(sweeps(everything, "temperature", 1.0))),
        Section("Regulariser", REGULARISER, list(sweeps(everything, "mu", 0.0))),
        Section("Exact k-means instead of Lloyd's", EXACT, list(exact(everything))),
        Section("One water level instead of the same ratio in every layer", LEVEL, list(levels(everything))),
        Section("Smallest files within one point of accuracy", SMALLEST, list(smallest(everything))),
    ]
    sections += [Section(REGRESSION, paper_regression.TEXT, known("regression"))]
    for name, results in everything.items():
        sections += figures(name, results)
    text = "\n\n".join([INTRODUCTION, *later(everything)])
    write_page("paper", "The experiments of the paper", text, sections, measured)


def later(everything: Mapping[str, Results]) -> Iterator[str]:
    """Say which rows `paper_rows.py` measured, and at which commit."""
    for name, results in everything.items():
        for part, what in (("points", "its points"), ("mu", "the values of mu up to .25")):
            rows = [row for row in results.get(part, ()) if "commit" in row]
            for objective, commit in dict.fromkeys((row["objective"], row["commit"]) for row in rows):
                yield f"{EXPERIMENTS[name].title}, `{objective}`: {what} by `paper_rows.py` at commit {commit}."


def why(name: str) -> Iterator[dict[str, Any]]:
    """Divergences as the diagonal predicts them, as the whole importance matrix does, and as they are.

    The whole quadratic form is measured: the divergence at `w + s (w_hat - w)` over s^2, for a small s.
    """
    experiment = EXPERIMENTS[name]
    lab = open_lab(experiment, WORK / name, Options(), None)
    subject, importance = lab.subject, lab.importances(Setting("kl"))
    original = subject.model.state_dict()
    quantizers = [Prune(keep) for keep in WHY[0]] + [KMeans(k, start="quantile") for k in WHY[1]]
    for quantizer in quantizers:
        for objective, forms in (("baseline", {}), ("kl", importance)):
            subject.fill(subject.quantize(quantizer, forms))
            true = measure(subject.copy, lab.test)["kl"]
            compressed = {key: value.clone() for key, value in subject.copy.state_dict().items()}
            errors = {
                key: weight.matrix - weight.layout.to_matrix(compressed[key].numpy())
                for key, weight in subject.inventory.weights.items()
            }
            short = {key: torch.lerp(original[key], compressed[key], SHORT) for key in errors}
            subject.copy.load_state_dict(short, strict=False)
            yield {
                "": f"pruning, {quantizer.keep:g} kept" if isinstance(quantizer, Prune) else f"{quantizer.k} centroids",
                "objective": objective,
                "diagonal": rounded(sum(importance[key].cost(error) for key, error in errors.items()) / 2),
                "whole matrix": rounded(measure(subject.copy, lab.test)["kl"] / SHORT**2),
                "KL as measured": rounded(true),
            }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


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


def objectives(results: Results, variant: str = "paper") -> list[str]:
    """The names of those that were measured, in their order."""
    found = {row["objective"] for row in results["points"] if row["variant"] == variant}
    return [name for name in NAMES if name in found]


def rows(everything: Mapping[str, Results], quality: str) -> Iterator[dict[str, Any]]:
    unit = "%" if quality == "cross_entropy" else "points"
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
                        f"median gain ({label})": f"{100 * found.median_gain:.1f} {unit}",
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
                for each in NAMES:
                    row[each] = (
                        f"{ranked[each][0]} ({100 * ranked[each][1] + 0.0:+.0f} %)" if each in ranked else "not run"
                    )
                yield row


def temperatures(everything: Mapping[str, Results]) -> Iterator[dict[str, Any]]:
    """Which T were chosen, and what T = 1 gives instead where it was measured."""
    for name, results in everything.items():
        for task in VERBS:
            row: dict[str, Any] = {"data set": EXPERIMENTS[name].title, "": VERBS[task]}
            for each in NAMES[1:]:
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
        for objective in objectives(results, "exact"):
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
            for objective in objectives(results, "one level"):
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
                for each in NAMES:
                    least = smallest_within(results, curve(results, task, each, kind), 1.0)
                    if each not in objectives(results):
                        row[each] = "not run"
                        continue
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
            f"{VERBS[plot.task].capitalize()}: cross-entropy, top-1 and bytes of the file of every objective.",
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
    curves = filter(None, (curve(results, task, name) for name in names))
    for each in zip(*curves, strict=True):
        row: dict[str, Any] = {head: each[0]["amount"]}
        for point in each:
            row[point["objective"]] = (
                f"{point['cross_entropy']:.4f}, {100 * point['accuracy']:.2f} %, {point['size_bytes']:,} B"
            )
        yield row


def swept(results: Results, option: str) -> Iterator[dict[str, Any]]:
    found: dict[tuple[str, float], list[str]] = {}
    for point in sorted(results[option], key=lambda point: point[option]):
        key = (point["objective"], point["amount"])
        found.setdefault(key, []).append(f"{point['cross_entropy']:.4f} at {point[option]:g}")
    for (objective, kept), texts in sorted(found.items(), key=lambda pair: (NAMES.index(pair[0][0]), pair[0][1])):
        yield {"objective": objective, "kept": kept, "cross-entropy": ", ".join(texts)}


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
