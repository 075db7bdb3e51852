"""One-dimensional k-means: time, and cost above the optimum, of exact, binned and Lloyd's clustering."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results import Section, write_page
from waterfill import importance, zoo
from waterfill.quantize.kmeans import Labels, cost, exact_kmeans, lloyd

Array = NDArray[Any]
Found = tuple[NDArray[np.float64], Labels]

CLUSTERS = (16, 64, 256)
REPEATS = 3


def timed(function: Callable[[], Found], repeats: int) -> tuple[float, Found]:
    """The best time, and what came out."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = function()
        times.append(time.perf_counter() - start)
    return min(times), found


def compare(
    weights: Array, weighing: Array, quartic: Array | None = None, clusters: Sequence[int] = CLUSTERS
) -> list[dict[str, Any]]:
    rows = []
    for k in clusters:
        arguments: dict[str, Any] = {"weights": weights, "importance": weighing, "k": k, "quartic": quartic}
        runs: list[tuple[str, int, Callable[..., Found], dict[str, Any]]] = [
            ("exact", 1, exact_kmeans, {"exact": True}),
            ("bins", REPEATS, exact_kmeans, {}),
            ("Lloyd from k-means++", REPEATS, lloyd, {"start": "kmeans++"}),
            ("Lloyd from quantiles", REPEATS, lloyd, {"start": "quantile"}),
            ("Lloyd from equal distances", REPEATS, lloyd, {"start": "linear"}),
        ]
        best = 0.0
        for name, repeats, function, options in runs:
            seconds, found = timed(partial(function, **arguments, **options), repeats)
            measured = cost(weights, weighing, *found, quartic)
            best = best or measured
            rows.append(
                {
                    "k": k,
                    "method": name,
                    "seconds": round(seconds, 3),
                    "excess cost, %": 0.0 if name == "exact" else 100 * (measured / best - 1),
                    "empty clusters": k - len(np.unique(found[1])),
                }
            )
    return rows


def drawn(name: str, clusters: Sequence[int] = CLUSTERS) -> Section:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=1_000_000) if name == "Gaussian" else rng.laplace(size=1_000_000)
    rows = compare(weights, rng.lognormal(size=weights.size), clusters=clusters)
    return Section(f"{name}, 1,000,000 weights", "Importances are lognormal with sigma 1.", rows)


def network() -> list[Section]:
    model = zoo.pretrained("resnet20")
    forms = importance.kl().estimate(model, list(zoo.cifar10_calibration()), output="logits")
    layers = {name: p.detach().numpy().ravel() for name, p in model.named_parameters() if p.ndim > 1}
    weights = np.concatenate(list(layers.values()))
    fisher = np.concatenate([forms[name].diagonal().ravel() for name in layers])
    lognormal = np.random.default_rng(0).lognormal(sigma=2.0, size=weights.size)
    count = f"ResNet-20, {weights.size:,} weights of all convolutions and the linear layer in one codebook"
    return [
        Section(f"{count}, lognormal importances", "Sigma 2.", compare(weights, lognormal)),
        Section(f"{count}, KL importances", "Of 1,024 training images (Eq. 6).", compare(weights, fisher)),
        Section(
            f"{count}, quartic cost",
            "The lognormal importances `I`, and `H = I / 4 rms^2`, where a weight is wrong by the rms of all.",
            compare(weights, lognormal, lognormal / (4 * np.square(weights).mean())),
        ),
    ]


def main() -> None:
    small = np.linspace(0, 1, 100)
    for quartic in (None, small):  # compiles
        exact_kmeans(small, None, 3, quartic=quartic)
        lloyd(small, None, 3, start="kmeans++", quartic=quartic)
    text = (
        "Least cost `sum I (w - c)^2 + H (w - c)^4`. *Exact* keeps all distinct weights apart, *bins* merges them to "
        "65,536 points and polishes; Lloyd has 30 iterations, k-means++ one seed. Sorting is part of every time. Best "
        f"of {REPEATS} runs on one core of a shared 2-core machine, exact once."
    )
    write_page("kmeans", "One-dimensional k-means", text, [drawn("Gaussian"), drawn("Laplace"), *network()])


if __name__ == "__main__":
    main()
