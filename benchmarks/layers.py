"""Layers of real networks with the importance of their real inputs: how near files come to reverse water-filling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch

import minilm
import rounding
from measure import Measured, at_rate, limit, power, say
from rounding import Nearest, OneStep
from waterfill import importance, zoo
from waterfill.importance.factored import KroneckerForm
from waterfill.models import torch_module
from waterfill.protocols import Quantizer
from waterfill.quantize import Feedback, Scalar
from waterfill.records import Layout, Weight

DAMPING = 1e-4
FFN, QUERY = "encoder.layer.0.intermediate.dense", "encoder.layer.0.attention.self.query"
SHORT = {FFN: "FFN-in", QUERY: "query"}
NEAREST, ONE_STEP, GAUSSIAN = "nearest", "feedback, one step", "Gaussian weights, 256 states"

_FFN_BARS: Mapping[str, Sequence[float]] = {
    NEAREST: (0.80, 0.84, 0.82, 0.89),
    ONE_STEP: (0.57, 0.58, 0.54, 0.53),
    "1 state": (0.30, 0.28, 0.25, 0.25),
    "8 states": (0.117, 0.086, 0.073, 0.072),
    "64 states": (0.087, 0.056, 0.043, 0.042),
    "256 states": (0.08, 0.05, 0.035, 0.035),
    "2048 states": (0.066, 0.034, 0.021, 0.020),
    GAUSSIAN: (0.08, 0.05, 0.035, 0.035),
}
_QUERY_BARS = {
    NEAREST: 0.85,
    ONE_STEP: 0.47,
    "1 state": 0.30,
    "8 states": 0.124,
    "64 states": 0.096,
    "256 states": 0.086,
    "2048 states": 0.078,
    GAUSSIAN: 0.086,
}
RATES = (1.55, 2.0, 3.0, 4.0)
BARS = {(SHORT[FFN], rate, way): bars[place] for way, bars in _FFN_BARS.items() for place, rate in enumerate(RATES)} | {
    (SHORT[QUERY], 3.0, way): bar for way, bar in _QUERY_BARS.items()
}

CHOSEN: Mapping[str, Sequence[str]] = {
    "resnet20": ("conv1", "layer1.0.conv1", "layer2.1.conv1", "layer3.2.conv2", "linear"),
    "mobilenet_v1": ("conv1", "conv_dw_1", "conv_dw_12", "conv_pw_1", "conv_pw_7", "conv_pw_13", "conv_preds"),
    "charlstm": ("lstm0", "lstm1", "softmax"),
}
LOADERS = {
    "resnet20": zoo.cifar10_calibration,
    "mobilenet_v1": zoo.imagenet_calibration,
    "charlstm": zoo.charlstm_calibration,
}


def transformer(sentences: int, states: Sequence[int], rates: Sequence[float] = RATES) -> list[dict[str, Any]]:
    """Two layers of MiniLM under all ways to round."""
    rounding.check()
    model = minilm.pretrained()
    minilm.check(model)
    means = products(model, minilm.batches(sentences), (FFN, QUERY))
    ways: dict[str, Quantizer] = {NEAREST: Nearest(), ONE_STEP: OneStep()}
    ways |= {f"{count} state{'s' if count > 1 else ''}": Feedback(count) for count in (1, *states)}
    rows = []
    for layer, rate in [*product((FFN,), rates), (QUERY, 3.0)]:
        matrix = model.get_submodule(layer).weight.detach().numpy()
        form = KroneckerForm(np.ones(len(matrix)), means[layer][None]).damped(DAMPING)
        weight = Weight("w", matrix, Layout(matrix.shape))
        for way, quantizer in ways.items():
            rows.append(_row(SHORT[layer], rate, way, weight, form, at_rate(weight, quantizer, form, rate)))
        drawn = np.random.default_rng(0).normal(size=matrix.shape) * np.sqrt(power(weight))
        weight = Weight("w", drawn.astype(np.float32), weight.layout)
        rows.append(_row(SHORT[layer], rate, GAUSSIAN, weight, form, at_rate(weight, Feedback(256), form, rate)))
    return rows


def _row(layer: str, rate: float, way: str, weight: Weight, form: KroneckerForm, found: Measured) -> dict[str, Any]:
    bound = limit(weight, form, found.distortion)
    relative = found.distortion / form.diagonal().sum(dtype=np.float64) / power(weight)
    row = {
        "layer": layer,
        "asked bit/weight": rate,
        "rounding": way,
        "bit/weight": round(found.rate, 3),
        "limit": round(bound, 3),
        "gap": round(found.rate - bound, 4),
        "bar": BARS.get((layer, rate, way), ""),
        "error, dB": round(10 * float(np.log10(relative)), 2),
        "search, Mweight/s CPU": round(weight.matrix.size / found.seconds / 1e6, 2),
    }
    say(f"minilm {row}")
    return row


def products(
    model: torch.nn.Module, batches: Sequence[torch.Tensor], layers: Sequence[str]
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Mean of `x x^T` over all inputs x of linear layers, by name."""
    sums: dict[str, torch.Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add(name: str, x: torch.Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1]).double()
        sums[name] = sums.get(name, 0) + flat.T @ flat
        counts[name] += len(flat)

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
        for name in layers
    ]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for hook in hooks:
        hook.remove()
    return {name: (sums[name] / counts[name]).numpy() for name in layers}


def small_networks(samples: int, windows: int, rates: Sequence[float] = (2.0, 3.0)) -> list[dict[str, Any]]:
    """Some layers of every kind of the zoo's networks, with both factors of their importance."""
    ways = {"scalar, diagonal": Scalar(), "1 state": Feedback(1), "64 states": Feedback(64)}
    rows = []
    for net, layers in CHOSEN.items():
        say(f"layers: importance of {net}")
        model = zoo.pretrained(net)
        data = LOADERS[net](samples=windows if net == "charlstm" else samples)
        forms = importance.kronecker().estimate(model, data)
        weights = torch_module.inventory(model).weights
        for layer, rate, way in product(layers, rates, ways):
            weight, form = weights[f"{layer}.weight"], forms[f"{layer}.weight"]
            if not isinstance(form, KroneckerForm):
                raise TypeError(f"{net} {layer} has a {type(form).__name__}; expected one with cross terms.")
            form = replace(form.damped(DAMPING), positions=math.inf)  # what the bound takes it for
            found = at_rate(weight, ways[way], form, rate)
            bound = limit(weight, form, found.distortion)
            rows.append(
                {
                    "network": net,
                    "layer": layer,
                    "shape": "x".join(map(str, weight.layout.shape)),
                    "asked bit/weight": rate,
                    "rounding": way,
                    "bit/weight": round(found.share, 3),
                    "limit": round(bound, 3),
                    "gap": round(found.share - bound, 3),
                    "gap of a file of its own": round(found.rate - bound, 3),
                }
            )
            say(f"layers {rows[-1]}")
    return rows
