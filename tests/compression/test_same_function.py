"""Networks that are the same function get nearly the same files, however their tensors are scaled."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import waterfill


def network(octaves, layers=2):
    """A network whose layers are scaled by powers of two, so that the function stays."""
    torch.manual_seed(0)
    found = []
    for layer in range(layers):
        found += [nn.Linear(24, 24 if layer + 1 < layers else 6, bias=False), nn.ReLU()]
    model = nn.Sequential(*found[:-1])
    with torch.no_grad():
        model[-1].weight *= 2.0**octaves * 4
        model[0].weight *= 2.0**-octaves
    return model


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(64, 24, generator=generator), torch.zeros(64, dtype=torch.long)) for _ in range(2)]


@torch.no_grad()
def relative_error(result, model, path):
    result.save(path)
    copy = deepcopy(model)
    waterfill.load(path, into=copy)
    inputs = torch.cat([each for each, _ in batches()])
    wanted = model(inputs)
    return float((copy(inputs) - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize(("octaves", "layers"), [(20, 2), (-20, 2), (10, 3)])
def test_no_layer_is_lost_for_its_scale(octaves, layers):
    plain, scaled = (
        waterfill.compress(network(each, layers), batches(), rate=6, effort="fast") for each in (0, octaves)
    )
    assert scaled.size_bytes == pytest.approx(plain.size_bytes, rel=0.02)
    assert scaled.distortion < 2 * plain.distortion
    assert all(row.rate > 3 for row in scaled.tensors)


@pytest.mark.parametrize("octaves", [20, -20])
def test_no_layer_is_lost_for_its_scale_without_data(octaves, tmp_path):
    errors = [
        relative_error(waterfill.compress(network(each), rate=6, effort="fast"), network(each), tmp_path / "model.wf")
        for each in (0, octaves)
    ]
    assert errors[1] < 2 * errors[0]
