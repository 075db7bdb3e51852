"""Norms with a forward of their own are folded only where a scale and a shift are the same function."""

import pytest
import torch
from torch import nn

from waterfill.models import folded_norms


class Centred(nn.BatchNorm1d):
    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, 1 + self.weight, self.bias, False, 0.0, self.eps
        )


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + self.running_mean.mean()


class OtherEps(nn.BatchNorm2d):
    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, 0.1)


class Failing(nn.BatchNorm3d):
    def forward(self, x):
        raise KeyError(x.shape)


class Rectified(nn.BatchNorm2d):
    def forward(self, x):
        return torch.relu(super().forward(x))


class Flattening(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x.flatten(0, -2)).view(x.shape) if x.shape[-1] == 3 else super().forward(x)


class Named(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.label = "norm"


def patched(channels):
    norm = nn.BatchNorm2d(channels)
    norm.forward = lambda x: x * norm.weight[:, None, None]
    return norm


def reading_hook(channels):
    norm = nn.BatchNorm2d(channels)
    norm.register_forward_hook(lambda module, _inputs, output: output * module.running_var.mean())
    return norm


def reading_hook_before(channels):
    norm = nn.BatchNorm2d(channels)
    norm.register_forward_pre_hook(lambda module, inputs: inputs[0] - module.running_mean.mean())
    return norm


def watching_hook(channels):
    norm = nn.BatchNorm2d(channels)
    norm.register_forward_hook(lambda _module, _inputs, output: output.mean() and None)
    return norm


@pytest.mark.parametrize("norm", [Centred, Doubled, OtherEps, Failing, patched, reading_hook, reading_hook_before])
def test_norms_of_another_function_are_not_folded(norm):
    assert not folded_norms(nn.Sequential(norm(3)))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm, Rectified, Flattening, Named, watching_hook]
)
def test_norms_of_the_same_function_are_folded(norm):
    assert len(folded_norms(nn.Sequential(norm(3)))) == 1


def test_norms_without_momentum_or_affine_parameters_are_folded():
    assert len(folded_norms(nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.BatchNorm2d(3, affine=False)))) == 2


@pytest.mark.parametrize(
    ("affine", "changes"),
    [
        (True, {"weight": 1e30}),
        (True, {"running_mean": 1e30}),
        (True, {"running_var": 1e-60, "eps": 0.0}),
        (False, {"running_var": 1e300}),
        (False, {"running_mean": -1e300, "running_var": 1e290}),
        (False, {"running_mean": 1e28}),
    ],
)
def test_norms_of_values_that_no_step_reaches_are_not_folded(affine, changes):
    norm = nn.BatchNorm1d(3, affine=affine, eps=changes.get("eps", 1e-5), dtype=torch.float64)
    assert len(folded_norms(nn.Sequential(norm))) == 1
    with torch.no_grad():
        for name in changes.keys() - {"eps"}:
            getattr(norm, name)[1] = changes[name]
    assert not folded_norms(nn.Sequential(norm))


def test_looking_at_a_norm_changes_neither_it_nor_the_random_numbers():
    norm = Centred(3)
    state, generator = {n: t.clone() for n, t in norm.state_dict().items()}, torch.get_rng_state()
    folded_norms(norm)
    assert all(torch.equal(state[name], tensor) for name, tensor in norm.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
