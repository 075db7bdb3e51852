"""Which way gradients are taken, and that it is noticed when the fast way does not hold."""

import pytest
from small_nets import IMAGES, image_net

from waterfill.importance.plan import Plan, extend
from waterfill.importance.state import differentiable
from waterfill.models.capture import variables


def methods(model, x):
    with differentiable(model):
        return extend(Plan(), model, variables(model), x).methods


@pytest.mark.parametrize("case", [name for name in IMAGES if name not in ("bilinear", "view of a parameter", "attention", "attention, time first", "weight norm")])  # fmt: skip
def test_common_layers_are_captured(case):
    make, size = IMAGES[case]
    model, x = image_net(make(), *size)
    assert set(methods(model, x).values()) <= {"major", "minor"}


def test_fallbacks_are_vectorised_where_they_can_be():
    model, x = image_net(IMAGES["attention"][0](), 3, 4)
    assert methods(model, x)["0.a.in_proj_weight"] == "vmap"
    assert methods(model, x)["0.a.out_proj.weight"] != "loop"
