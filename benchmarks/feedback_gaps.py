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
WAYS = {"steps": 1, f"{STATES} states": STATES}
STEPS = step_loss()
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
    flat = {rate: files(IDENTITY, np.eye(INPUTS), rate) for rate in RATES}
    rows = []
    for name, columns in forms().items():
        for rate in RATES:
            found = flat[rate] if name == IDENTITY else files(name, columns, rate)
            prices = {f"price of A, {way}": round(found[f"gap, {way}"] - flat[rate][f"gap, {way}"], 4) for way in WAYS}
            rows.append(found | prices)
    return rows


def files(name: str, columns: Array, rate: float) -> dict[str, Any]:
    """Measure files of Gaussian weights under one form near one rate."""
    drawn = np.random.default_rng(0).normal(size=(OUTPUTS, len(columns))).astype(np.float32)
    weight, form = Weight("w", drawn, Layout(drawn.shape)), KroneckerForm(np.ones(OUTPUTS), columns[None])
    row: dict[str, Any] = {"A": name}
    for way, states in WAYS.items():
        found = at_rate(weight, Feedback(states), form, rate)
        excess = universal_gap(weight, form, found)
        row |= {
            f"bit/weight, {way}": round(found.rate, 3),
            f"gap, {way}": round(found.rate - limit(weight, form, found.distortion), 4),
        }
        row |= {"isotropic codebook": round(excess, 4)} if states > 1 else {f"theorem, {way}": round(STEPS + excess, 4)}
    say(f"feedback {row}")
    return row


def universal_gap(weight: Weight, form: KroneckerForm, found: Measured) -> float:
    """What one isotropic Gaussian codebook loses to reverse water-filling at the distortion of a file, bit a weight."""
    spectrum = volumes(form, power(weight))
    g = spectrum.volumes

    def missing(log_noise: float) -> float:
        return universal_distortion(g, float(np.exp(log_noise))) - found.distortion

    noise = float(np.exp(brentq(missing, np.log(g[0]) - 40, np.log(g[-1]) + 40, xtol=1e-12)))
    return (universal_rate(g, noise) - spectrum.rate_at_distortion(found.distortion)) / weight.matrix.size
