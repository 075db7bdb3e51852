"""A decoded network's divergence taken apart: second order, matrices, vectors, data and arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import waterfill
from waterfill.results import CompressionResult

SHORT = 0.01
"""How far to go towards the decoded weights where the divergence is still quadratic."""

DRAWS = 2
"""Of random signs of rows."""

Row = dict[str, Any]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Data:
    """Batches of (input, target).

    Attributes:
        calibration: that compression sees.
        test: that it does not.
        taken: how many batches of the former errors are taken apart on.
        few: how many of these layers are looked at alone on.
    """

    calibration: Sequence[Any]
    test: Sequence[Any]
    taken: int
    few: int


def parts(model: nn.Module, compressed: nn.Module, result: CompressionResult, data: Data) -> Row:
    """Divergences, nats, and what of the file belongs to no matrix."""
    original, final = folded(model), folded(compressed)
    own = matrices(result)
    on_calibration, on_test = Divergence(original, data.calibration[: data.taken]), Divergence(original, data.test)
    start, end = original.state_dict(), final.state_dict()
    vectors = set(end) - own
    return {
        "predicted": result.predicted_distortion,
        "second order, calibration": on_calibration.second_order(start, end),
        "second order, test": on_test.second_order(start, end),
        "KL, test": on_test.of(end),
        "in 32 bits": waterfill.evaluate(compressed, data.test, reference=model).kl,
        "matrices alone": on_test.of(replaced(start, end, own)),
        "others alone": on_test.of(replaced(start, end, vectors)),
        "share of others, %": round(100 - 100 * _bytes(result, own) / result.size_bytes, 2),
    }


def layers(model: nn.Module, compressed: nn.Module, result: CompressionResult, data: Data) -> Row:
    """The second order of matrices one by one and all at once, beside their forms."""
    original, final = folded(model), folded(compressed)
    own, start, end = matrices(result), original.state_dict(), final.state_dict()
    measure = Divergence(original, data.calibration[: data.few])
    signed = [signs(start, end, own, seed) for seed in range(DRAWS)]
    return {
        "predicted, matrices": sum(row.distortion or 0.0 for row in result.tensors if row.name in own),
        "each alone, random signs": sum(
            measure.second_order(start, replaced(start, other, {name})) / DRAWS
            for name in sorted(own)
            for other in signed
        ),
        "each alone": sum(measure.second_order(start, replaced(start, end, {name})) for name in sorted(own)),
        "all at once": measure.second_order(start, replaced(start, end, own)),
    }


def signs(start: State, end: State, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """The decoded matrices, the error of each row with a random sign."""
    draw = torch.Generator().manual_seed(seed)
    found = dict(end)
    for name in sorted(names):
        error = end[name] - start[name]
        sign = 2.0 * torch.randint(0, 2, (len(error),), generator=draw) - 1
        found[name] = start[name] + sign.view(-1, *[1] * (error.ndim - 1)) * error
    return found


def matrices(result: CompressionResult) -> set[str]:
    return {row.name for row in result.tensors if len(row.shape) > 1}


def replaced(start: State, end: State, names: Collection[str]) -> dict[str, Tensor]:
    """Some tensors of one state, all others of the other."""
    return {name: end[name] if name in names else value for name, value in start.items()}


def folded(model: nn.Module) -> nn.Module:
    """A copy in 64 bits whose batch norms have a scale and a shift alone: mean 0, variance 1 - eps."""
    copy = deepcopy(model).double().eval()
    for norm in copy.modules():
        if isinstance(norm, nn.BatchNorm2d):
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None and variance is not None
            scale = norm.weight.data / (variance + norm.eps).sqrt()
            norm.bias.data -= mean * scale
            norm.weight.data = scale
            mean.zero_()
            variance.fill_(1 - norm.eps)
    return copy


class Divergence:
    """Mean KL divergence of networks from one, in 64 bits."""

    def __init__(self, original: nn.Module, batches: Sequence[Any]) -> None:
        """Take the original and what it is compared on."""
        self._copy, self._inputs = deepcopy(original), [_as_double(x) for x, _ in batches]
        self._references = [self._logs(x) for x in self._inputs]

    @torch.no_grad()
    def of(self, state: State) -> float:
        """The divergence of the network with this state, nats per prediction."""
        self._copy.load_state_dict(state)
        total, count = 0.0, 0
        for x, log_p in zip(self._inputs, self._references, strict=True):
            each = (log_p.exp() * (log_p - self._logs(x))).sum(-1)
            total, count = total + float(each.sum()), count + each.numel()
        return total / count

    def second_order(self, start: State, end: State) -> float:
        """The divergence near the start on the way to the end, times the square of what is left out of the way."""
        near = {name: torch.lerp(start[name], end[name], SHORT) if _moves(start, name) else start[name] for name in end}
        return self.of(near) / SHORT**2

    @torch.no_grad()
    def _logs(self, x: Tensor) -> Tensor:
        logits: Tensor = self._copy(x)
        return logits.log_softmax(-1)


def _moves(state: State, name: str) -> bool:
    return state[name].is_floating_point()


def _as_double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _bytes(result: CompressionResult, names: Collection[str]) -> float:
    return sum(row.size_bytes for row in result.tensors if row.name in names)
