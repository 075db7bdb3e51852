"""Feedback on Gaussian weights under forms from flat to badly conditioned, against reverse water-filling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

from measure import Measured, at_rate, limit, power, say, volumes
from waterfill import zoo
from waterfill.importance.factored import KroneckerForm
from waterfill.quantize import Feedback
from waterfill.records import Layout, Weight
from waterfill.theory.feedback_loss import step_loss
from waterfill.theory.universal_code import universal_distortion, universal_rate

Array = NDArray[np.float64]

OUTPUTS, INPUTS = 2048, 256
RATES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
STATES = 64
IDENTITY = "identity"


def forms() -> dict[str, Array]:
    """Forms over columns: none, an autoregressive process, real inputs of a layer, six decades of eigenvalues."""
    places = np.arange(INPUTS)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(INPUTS, INPUTS)))
    return {
        IDENTITY: np.eye(INPUTS),
        "AR(.9)": 0.9 ** np.abs(places[:, None] - places),
        "LeNet-300-100, ip2": _hidden_inputs(),
        "six decades": (turn * np.logspace(-3, 3, INPUTS)) @ turn.T,
    }


def _hidden_inputs() -> Array:
    """Second moments of the 300 inputs of the second layer, 1e-4 of their mean added to the diagonal."""
    layers = list(zoo.pretrained("lenet300").children())[:3]
    with torch.no_grad():
        hidden = torch.cat([torch.nn.Sequential(*layers)(x) for x, _ in zoo.mnist_calibration()]).double().numpy()
    moments = hidden.T @ hidden / len(hidden)
    return np.asarray(moments + 1e-4 * np.diag(moments).mean() * np.eye(len(moments)))


def gaps() -> list[dict[str, Any]]:
    """Gaps of files with uniform steps and with a trellis, beside what the theorem allows and what A = I has."""
    rows: list[dict[str, Any]] = []
    flat: dict[tuple[float, int], float] = {}
    for name, columns in forms().items():
        drawn = np.random.default_rng(0).normal(size=(OUTPUTS, len(columns))).astype(np.float32)
        weight, form = Weight("w", drawn, Layout(drawn.shape)), KroneckerForm(np.ones(OUTPUTS), columns[None])
        for rate in RATES:
            found = {states: at_rate(weight, Feedback(states), form, rate) for states in (1, STATES)}
            own = {states: each.rate - limit(weight, form, each.distortion) for states, each in found.items()}
            if name == IDENTITY:
                flat |= {(rate, states): gap for states, gap in own.items()}
            excess = universal_gap(weight, form, found[STATES])
            rows.append(
                {
                    "A": name,
                    "bit/weight, steps": round(found[1].rate, 3),
                    "gap, steps": round(own[1], 4),
                    "theorem, steps": round(step_loss() + universal_gap(weight, form, found[1]), 4),
                    f"bit/weight, {STATES} states": round(found[STATES].rate, 3),
                    f"gap, {STATES} states": round(own[STATES], 4),
                    "price of A, steps": round(own[1] - flat[rate, 1], 4),
                    f"price of A, {STATES} states": round(own[STATES] - flat[rate, STATES], 4),
                    "isotropic codebook": round(excess, 4),
                }
            )
            say(f"feedback {rows[-1]}")
    return rows


def universal_gap(weight: Weight, form: KroneckerForm, found: Measured) -> float:
    """What one isotropic Gaussian codebook loses to reverse water-filling at the distortion of a file, bit a weight."""
    spectrum = volumes(form, power(weight))
    g = spectrum.volumes

    def missing(log_noise: float) -> float:
        return universal_distortion(g, float(np.exp(log_noise))) - found.distortion

    noise = float(np.exp(brentq(missing, np.log(g[0]) - 40, np.log(g[-1]) + 40, xtol=1e-12)))
    return (universal_rate(g, noise) - spectrum.rate_at_distortion(found.distortion)) / weight.matrix.size
