"""Tensors that share elements: which are found, which are fine, and what may be loaded into them."""

import pytest
import torch
from torch import nn

from waterfill.errors import UnsupportedModelError, WaterfillError
from waterfill.models import fill, inventory
from waterfill.models.shared_memory import contradictions, overlaps


def holding(**tensors):
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor))
    return module


def turned(memory):
    return {"one": memory, "other": memory.t()}


def slice_of_another(memory):
    return {"one": memory, "other": memory[1]}


def crossing_strides(memory):
    return {"one": memory[:, :3], "other": memory[:, 2:]}


def other_type(memory):
    return {"one": memory, "other": memory.view(torch.float16)[:1]}


SHARED = [turned, slice_of_another, crossing_strides, other_type]


@pytest.mark.parametrize("views", SHARED, ids=lambda each: each.__name__)
def test_views_that_share_elements_are_refused(views):
    with pytest.raises(UnsupportedModelError, match=r"'o.*' \[.* and 'o.*' \[.*share memory.*own.*clone"):
        inventory(holding(**views(torch.randn(6, 6))))


@pytest.mark.parametrize(
    "tensor", [torch.randn(1).expand(4), torch.randn(8).as_strided((4, 3), (1, 2)), torch.randn(2, 1).expand(2, 3)]
)
def test_views_that_share_elements_with_themselves_are_refused(tensor):
    with pytest.raises(UnsupportedModelError, match=r"'one' \[.*elements share memory.*clone"):
        inventory(holding(one=tensor))


def columns(memory):
    return {"one": memory[:, :3], "other": memory[:, 3:]}


def flat_slices(memory):
    return {"one": memory.view(-1)[:9].view(3, 3), "other": memory.view(-1)[9:18].view(3, 3)}


def checkered(memory):
    return {"one": memory[::2], "other": memory[1::2]}


def identical(memory):
    return {"one": memory, "other": memory.view(6, 6)}


@pytest.mark.parametrize("views", [columns, flat_slices, checkered, identical], ids=lambda each: each.__name__)
def test_views_without_common_elements_and_ties_are_fine(views):
    model = holding(**views(torch.randn(6, 6)))
    assert not list(overlaps(model.state_dict()))
    assert len(inventory(model).weights) == (1 if views is identical else 2)


@pytest.mark.parametrize("views", SHARED, ids=lambda each: each.__name__)
def test_shared_buffers_that_are_exact_are_fine(views):
    model = nn.Module()
    for name, tensor in views(torch.randn(6, 6)).items():
        model.register_buffer(name, tensor)
    assert len(inventory(model).exact) == 2


def naive_conflict(model, values):
    """Write one tensor after the other, and see whether all are there in the end."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, value in values.items():
            model.state_dict()[name].copy_(value)
        lost = any(not torch.equal(model.state_dict()[name], value) for name, value in values.items())
        for name, value in before.items():
            model.state_dict()[name].copy_(value)
    return lost


@pytest.mark.parametrize("views", [*SHARED[:3], columns, checkered, identical], ids=lambda each: each.__name__)
@pytest.mark.parametrize("consistent", [True, False])
def test_contradictions_are_those_that_writing_one_after_the_other_shows(views, consistent):
    model = holding(**views(torch.randn(6, 6)))
    if consistent:
        values = {name: value.clone() for name, value in holding(**views(torch.randn(6, 6))).state_dict().items()}
    else:
        values = {name: torch.randn(value.shape) for name, value in model.state_dict().items()}
    assert bool(contradictions(model.state_dict(), values)) == naive_conflict(model, values)


@pytest.mark.parametrize("tie", ["weight", "transpose", "slice"])
def test_two_values_for_what_a_model_ties_are_refused(tie):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    weight = model[0].weight
    shared = {"weight": weight, "transpose": nn.Parameter(weight.data.t()), "slice": nn.Parameter(weight.data[:2])}
    model[1].weight = shared[tie]
    before = weight.detach().clone()
    values = {name: torch.randn(value.shape) for name, value in model.state_dict().items()}
    with pytest.raises(WaterfillError, match=r"two values in memory that the model shares \('1.weight .*0.weight'\)"):
        fill(model, values)
    assert torch.equal(weight, before)


def test_one_value_for_what_a_model_ties_is_loaded():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    value = torch.randn(3, 3)
    value[0, 0] = float("nan")
    fill(model, {"0.weight": value, "1.weight": value.t()})
    torch.testing.assert_close(model[0].weight.detach(), value, equal_nan=True)
