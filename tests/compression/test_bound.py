"""The curve of a model before it is compressed."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_nets import batches, net
from torch import nn

import waterfill
from waterfill.compression.bound import GRID
from waterfill.errors import CalibrationError, TargetError, UsageError
from waterfill.importance import hessian, identity, kl, random_inputs, regression
from waterfill.report.picture import MOST_TENSORS, bound_picture, picture_format


@pytest.fixture(scope="module")
def found():
    return waterfill.bound(net(), batches())


def test_rate_and_distortion_are_inverse(found):
    for rate in (0.2, 1.0, 3.3, 8.0):
        assert found.rate(found.distortion(rate)) == pytest.approx(rate, rel=1e-9)
    assert found.rate(2 * found.largest_distortion) == found.lowest_rate
    assert found.distortion(found.lowest_rate) == pytest.approx(found.largest_distortion)


def test_the_curve_falls_and_is_convex(found):
    rates = [0.1 * k + found.lowest_rate for k in range(60)]
    distortions = [distortion for _, distortion in found.curve(rates)]
    steps = [b - a for a, b in pairwise(distortions)]
    assert max(steps) < 0
    assert all(b > a for a, b in pairwise(steps))


def test_tensors_add_up_to_the_whole(found):
    for rate in (0.3, 2.0, 5.0):
        rows = found.tensors(rate)
        bits = sum(row.rate * row.numel for row in rows if row.rate is not None)
        assert bits + found.exact_bits == pytest.approx(rate * found.floating_values)
        distortions = sum(row.distortion for row in rows if row.distortion is not None)
        assert distortions == pytest.approx(found.distortion(rate), rel=1e-9)


def test_with_a_kl_importance_the_distortion_is_half_the_form():
    model, data = net(), batches()
    form = waterfill.importance.kl().estimate(model, data)
    bound = waterfill.bound(model, data, importance=waterfill.importance.kl())
    assert (bound.unit, bound.importance) == ("nats of KL", "kl")
    assert waterfill.bound(model, data).importance == "kronecker"
    assert bound.largest_distortion < 0.5 * sum(
        form[name].cost(weight.matrix - weight.matrix.mean())
        for name, weight in waterfill.models.torch_module.inventory(model).weights.items()
    )
    same = waterfill.bound(model, data, importance=hessian())
    assert same.unit == "loss" and same.largest_distortion == pytest.approx(bound.largest_distortion, rel=1e-4)
    half = waterfill.bound(model, data, importance=regression(), output="values")
    assert half.unit == "squared output"


class Named:
    """An estimator of somebody else, which returns forms of another one."""

    name = "mine"

    def __init__(self, change=lambda _, form: form):
        self.change = change

    def estimate(self, *args, **options):
        return {name: self.change(name, form) for name, form in kl().estimate(*args, **options).items()}


def test_forms_are_priced_alike_under_any_name():
    known, own = (waterfill.bound(net(), batches(), importance=each) for each in (kl(), Named()))
    assert (own.unit, own.importance) == ("nats of KL", "mine")
    assert own.curve() == known.curve()
    options = {"quantizers": [waterfill.quantize.KMeans(16)]}  # one file, whose size no name moves
    first, second = (waterfill.compress(net(), batches(), importance=each, **options) for each in (kl(), Named()))
    assert first.predicted_distortion == pytest.approx(second.predicted_distortion, rel=1e-3)
    assert second.distortion_unit == "nats of KL"


def test_forms_of_two_units_are_refused():
    mixed = Named(lambda name, form: replace(form, factor=1.0) if name == "0.bias" else form)
    with pytest.raises(UsageError, match=r"mine are in 'nats of KL' \(factor 0.5\) and 'nats of KL' \(factor 1\)"):
        waterfill.bound(net(), batches(), importance=mixed)


def test_the_limit_of_a_file_is_on_the_curve():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40, bias=False), nn.Linear(40, 30, bias=False))
    bound = waterfill.bound(model, importance=identity())
    for rate in (1.0, 3.0, 6.0):
        result = waterfill.compress(model, rate=rate, importance=identity())
        distortion = sum(row.distortion for row in result.tensors)
        assert result.limit == pytest.approx(bound.rate(distortion), rel=1e-6)
        assert result.rate > bound.rate(distortion)


def test_without_data_vectors_are_left_out():
    bound = waterfill.bound(net())
    assert bound.importance == random_inputs().name and bound.unit == "I e^2"
    assert set(bound.left_out) == {"0.bias", "1.weight", "1.bias", "3.bias"}
    rows = {row.name: row for row in bound.tensors(4.0)}
    assert rows["0.bias"].rate is None and rows["0.bias"].reason == "sensitivity unknown"
    assert rows["3.bias"].reason == "no spread, or fewer than 8 values"
    assert rows["0.weight"].reason == ""


def test_most_weights_being_zero_moves_the_usual_rates():
    model = nn.Linear(100, 100, bias=False)
    assert waterfill.bound(model).usual_rates() == list(GRID)
    model.weight.data[torch.rand(100, 100, generator=torch.Generator().manual_seed(0)) < 0.9] = 0
    live = int((model.weight != 0).sum()) / 10_000
    assert waterfill.bound(model).usual_rates([4.0]) == pytest.approx([4 * live], rel=0.01)  # shares are rounded


def test_what_is_stored_without_loss_is_in_every_rate():
    model = net()
    model.register_buffer("table", torch.randn(400, generator=torch.Generator().manual_seed(0)))
    bound = waterfill.bound(model, exclude=["table"])
    assert bound.exact_bits > 8 * 1200
    with pytest.raises(
        TargetError, match=r"Rate 0\.01 is below the .* bit/value of the tensors that are stored without"
    ):
        bound.distortion(0.01)
    assert all(rate >= bound.lowest_rate for rate, _ in bound.curve())


def test_a_model_without_floating_point_values_has_no_rate():
    model = nn.Module()
    model.register_buffer("table", torch.arange(9))
    with pytest.raises(TargetError, match="no floating-point values; expected at least one"):
        waterfill.bound(model)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_values_out_of_range_are_refused(found, value):
    with pytest.raises(UsageError, match=r"Rate .* is out of range; expected a number above zero"):
        found.distortion(value)
    with pytest.raises(UsageError, match=r"Distortion .* is out of range; expected a number above zero"):
        found.rate(value)


def test_an_importance_that_needs_data_says_so():
    with pytest.raises(CalibrationError, match="Importance kl is estimated on data, but there are none"):
        waterfill.bound(net(), importance=kl())


def test_json_has_the_curve_and_the_tensors(found):
    parsed = json.loads(found.to_json(2.0))
    assert [point["rate"] for point in parsed["curve"]] == list(GRID)
    assert parsed["distortion"] == found.distortion(2.0)
    assert [row["name"] for row in parsed["tensors"]] == [row.name for row in found.tensors(2.0)]


# Pictures


def test_a_picture_is_the_same_every_time(found):
    for kind, magic in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        data = bound_picture(found, 2.0, "net", kind)
        assert data.startswith(magic)
        assert data == bound_picture(found, 2.0, "net", kind)


def test_a_picture_of_many_tensors_shows_the_largest():
    model = nn.ParameterDict({f"t{k:03}": nn.Parameter(torch.randn(4, 4 + k // 50)) for k in range(100)})
    text = bound_picture(waterfill.bound(model), 3.0, "many", "svg").decode()
    assert f"the {MOST_TENSORS} largest of 100 tensors" in text
    assert "t099" in text and "t049" not in text


def test_a_picture_of_long_and_odd_names_fits():
    long = [f"{'n' * 200}{k}" for k in range(2)]
    model = nn.Module()
    for name in ("a$b", *long):
        model.register_parameter(name, nn.Parameter(torch.randn(9, 9)))
    text = bound_picture(waterfill.bound(model), 3.0, "x" * 300, "svg").decode()
    assert "a$b" in text and f"{'n' * 20}…{'n' * 19}0" in text and f"{'n' * 20}…{'n' * 19}1" in text


def test_a_model_without_any_density_has_a_curve_all_the_same():
    model = nn.Linear(8, 8, bias=False)
    nn.init.zeros_(model.weight)
    bound = waterfill.bound(model)
    assert bound.curve() == [(rate, 0.0) for rate in GRID]
    assert bound_picture(bound, 4.0, "zeros", "svg")


def test_the_format_of_a_picture_is_its_ending(tmp_path):
    assert picture_format(tmp_path / "a.PNG") == "png"
    with pytest.raises(UsageError, match=r"has the ending '\.jpg'; expected \.png, \.svg or \.pdf"):
        picture_format(tmp_path / "a.jpg")


def test_a_bound_knows_the_bases_of_files():
    """Kernels that go on smoothly have a lower limit than independent weights, and the row says why."""
    every = np.arange(9)
    root = np.linalg.cholesky(0.9 ** np.abs(every[:, None] - every))
    conv = nn.Conv1d(16, 32, 9, bias=False)
    conv.weight.data = torch.from_numpy(np.random.default_rng(0).normal(size=(32, 16, 9)) @ root.T).float()
    found = waterfill.bound(nn.Sequential(conv), importance=identity())
    (row,) = found.tensors(2.0)
    assert row.source_model.endswith("of taps")
    variance = float(conv.weight.detach().square().mean())
    assert row.distortion / row.numel < 0.3 * variance / 16


# Directories


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    pytest.importorskip("transformers").utils.logging.disable_progress_bar()
    import families

    place = tmp_path_factory.mktemp("bound") / "lm"
    families.model("llama").save_pretrained(place)
    return place


def test_a_directory_without_data_has_the_bound_of_its_file(directory):
    found, file = waterfill.bound(directory), waterfill.bound(directory / "model.safetensors")
    assert (found.importance, found.unit) == (file.importance, "I e^2")
    assert found.floating_values == file.floating_values
    np.testing.assert_allclose(found.curve(), file.curve(), rtol=1e-9)
    assert found.left_out == file.left_out and len(found.left_out) == 7
    assert any("No data were given" in note for note in found.notes)


def test_a_directory_with_data_is_priced_by_what_it_sees(directory):
    import families

    found = waterfill.bound(directory, families.batches(2))
    assert (found.importance, found.unit, found.factor) == ("kronecker", "nats of KL", 0.5)
    assert found.left_out == () and set(found.models) == set(found.shapes)
    assert found.rate(found.distortion(3.0)) == pytest.approx(3.0)


def test_a_directory_says_itself_what_it_returns(directory):
    with pytest.raises(UsageError, match=r"Got output='values' for .*; a directory says itself what it returns"):
        waterfill.bound(directory, output="values")
