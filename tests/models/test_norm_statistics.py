"""Inputs that fit what batch norms remember."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from waterfill.models.norm_statistics import matched_inputs, remembering_norms


def net(mean=3.0, deviation=2.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4, 3)[:, :, None, None])
        model[0].weight[3] = 0.5
        model[1].running_mean.fill_(mean)
        model[1].running_mean[3] = 1.5 * mean
        model[1].running_var.fill_(deviation**2)
        model[1].running_var[3] = 0.75 * deviation**2
    return model


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 2.0), (-1.0, 0.5), (0.0, 1.0)])
def test_activations_come_near_to_what_the_norm_remembers(mean, deviation):
    model = net(mean, deviation)
    found = matched_inputs(model, torch.randn(8, 3, 8, 8))
    before, after = (abs(each.mean() - mean) for each in (torch.randn(8, 3, 8, 8), found))
    assert after < max(0.3, 0.7 * before)
    assert abs(found.std() / deviation - 1) < 0.8


def test_inputs_stay_where_no_norm_is_used_or_the_way_is_not_finite():
    inputs = torch.randn(4, 3, 5, 5)
    model = net()
    model[1] = nn.Identity()
    assert matched_inputs(model, inputs) is inputs
    model = net(float("nan"))
    assert matched_inputs(model, inputs) is inputs


def test_norms_without_statistics_and_other_norms_remember_nothing():
    assert remembering_norms(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))) == []
    assert len(remembering_norms(net())) == 1
    assert not any(module._forward_pre_hooks for module in net().modules())
