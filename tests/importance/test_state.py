"""States as values: merging, and models that are left as they were."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import OUT, Function, image_net
from torch import nn

from waterfill.errors import CalibrationError, UnsupportedModelError, UsageError
from waterfill.importance import Moments, functional, kl, regression, squares, state
from waterfill.models.batches import evaluation


def net():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.running_var.copy_(torch.rand(3) + 0.5)
    attention = Function(lambda self, x: self.w * x.cumsum(-1), w=nn.Parameter(torch.randn(3, 1, 1)))
    return nn.Sequential(nn.Conv2d(2, 3, 2), norm, attention, nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(12, OUT))


def batches(count=4, size=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size + number % 2, 2, 3, 3, generator=generator) for number in range(count)]


def same(one, other, rtol=1e-6):
    assert one.keys() == other.keys()
    for name, form in one.items():
        np.testing.assert_allclose(form.values, other[name].values, rtol=rtol, atol=1e-12 + 1e-7 * form.values.max())


@pytest.mark.parametrize("importance", [kl(), kl(draws=2), regression(), regression(draws=2)])
@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(4)), cuts=st.sets(st.integers(1, 3)), backwards=st.booleans())
def test_states_merge_in_any_order(importance, order, cuts, backwards):
    model, data = net(), batches()
    bounds = [0, *sorted(cuts), 4]
    parts = []
    for first, last in itertools.pairwise(bounds):
        part = importance.begin(model)
        for number in order[first:last]:
            part = part.update(data[number])
        parts.append(part)
    parts = parts[::-1] if backwards else parts
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    whole = importance.estimate(model, data, "logits" if importance.name == "kl" else "values")
    same(merged.forms(), whole)


def test_update_leaves_the_state_before_it_alone():
    before = regression().begin(net())
    after = before.update(batches()[0])
    assert before.moments.count == 0
    assert not any(total.any() for total in before.moments.sums.values())
    assert after.moments.count == 3


def test_states_of_other_models_do_not_merge():
    with pytest.raises(UsageError, match="same model"):
        regression().begin(net()).merge(regression().begin(nn.Linear(2, 2)))


def test_a_state_that_has_seen_nothing_has_no_forms():
    with pytest.raises(CalibrationError, match="No prediction was seen"):
        Moments({"a": torch.zeros(2)}).forms({})
    with pytest.raises(CalibrationError, match="ignored"):
        kl().estimate(nn.Linear(2, 3), [(torch.randn(2, 2), torch.tensor([-100, -100]))])


def test_the_model_is_left_as_it_was():
    model = net().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    handle = model[6].register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    kl().estimate(model, batches(), "logits")
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 6
    assert [p.grad is None for p in model.parameters()] == [True] * 5 + [False, True]
    assert list(model[6]._forward_hooks) == [handle.id]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_left_so_after_an_error_too():
    model = net().train()
    with pytest.raises(CalibrationError, match="Batch 1"):
        kl().estimate(model, [batches()[0], torch.randn(3, 5, 3, 3)], "logits")
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_are_priced_as_well():
    model = net()
    expected = kl().estimate(model, batches(), "logits")
    same(kl().estimate(model.requires_grad_(False), batches(), "logits"), expected)
    with torch.no_grad():
        same(kl().estimate(model, batches(), "logits"), expected)


def test_training_mode_makes_no_difference():
    same(kl().estimate(net().train(), batches(), "logits"), kl().estimate(net().eval(), batches(), "logits"))


def test_small_budgets_make_no_difference(monkeypatch):
    data = [torch.cat(batches())]
    expected = kl().estimate(net(), data, "logits")
    monkeypatch.setattr(squares, "CHUNK_BYTES", 1)
    monkeypatch.setattr(functional, "CHUNK_BYTES", 1)
    monkeypatch.setattr(state, "SITE_BYTES", 1)
    monkeypatch.setattr(state, "_SAMPLES_TOGETHER", 2)
    same(kl().estimate(net(), data, "logits"), expected, rtol=1e-5)


def test_no_gradient_of_a_whole_layer_is_written_out(monkeypatch):
    sizes = []
    original = squares.products
    monkeypatch.setattr(squares, "products", lambda g, x: sizes.append(original(g, x)) or sizes[-1])
    monkeypatch.setattr(squares, "CHUNK_BYTES", 2**16)
    model, x = image_net(nn.Conv2d(8, 8, 3), 8, 6, 6)
    regression().estimate(model, [x.repeat(8, 1, 1, 1)], "values")
    assert max(size.nbytes for size in sizes) <= 2**16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_estimated_in_single(dtype):
    half = net().to(dtype)
    before = {name: value.clone() for name, value in half.state_dict().items()}
    data = [x.to(dtype) for x in batches()]
    single = net().to(dtype).float()
    same(kl().estimate(half, data, "logits"), kl().estimate(single, [x.float() for x in data], "logits"))
    assert all(value.dtype == before[name].dtype for name, value in half.state_dict().items())


def test_autocast_inside_a_model():
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.a(self.conv(x).relu().flatten(1)).float()

    torch.manual_seed(0)
    model = Function(forward, conv=nn.Conv2d(2, 3, 2), a=nn.Linear(12, OUT))
    plain = Function(lambda self, x: self.a(self.conv(x).relu().flatten(1)), conv=model.conv, a=model.a)
    same(kl().estimate(model, batches(), "logits"), kl().estimate(plain, batches(), "logits"), rtol=0.2)


def test_positional_and_keyword_inputs():
    model = Function(lambda self, a, b, c=1.0: self.w(a * c) + self.w(b), w=nn.Linear(3, OUT))
    a, b = torch.randn(2, 4, 3)
    expected = regression().estimate(model, [((a, b), None)], "values")
    same(regression().estimate(model, [{"a": a, "b": b}], "values"), expected)
    same(regression().estimate(model, [({"b": b, "a": a}, None)], "values"), expected)
    same(regression().estimate(model, [(a, b, torch.tensor(1.0))], "values"), expected)


def test_targets_do_not_matter():
    data = batches()
    expected = kl().estimate(net(), data, "logits")
    labelled = [(x, torch.randint(0, OUT, (len(x),))) for x in data]
    same(kl().estimate(net(), labelled), expected)
    same(kl().estimate(net(), [(x, torch.rand(len(x), 7)) for x in data], "logits"), expected)
    same(kl().estimate(net(), [(x, torch.tensor(1)) for x in data], "logits"), expected)
    same(kl().estimate(net(), data), expected)


def test_progress_is_told():
    told = []
    kl().estimate(net(), batches(), "logits", progress=lambda *step: told.append(step))
    assert told == [("importance", done, 4) for done in range(1, 5)]


def test_seeds_draw_differently_and_repeatably():
    one = kl(draws=2, seed=1).estimate(net(), batches(), "logits")
    same(kl(draws=2, seed=1).estimate(net(), batches(), "logits"), one)
    other = kl(draws=2, seed=2).estimate(net(), batches(), "logits")
    assert not np.allclose(one["0.weight"].values, other["0.weight"].values)


def test_what_is_drawn_depends_on_the_batch():
    seeds = []

    class Spy:
        seed = 5

        def signals(self, output, target, generator):
            seeds.append(generator.initial_seed())
            return regression().signals(output, target, generator)

    one, other = batches(2)
    first = state.begin(net(), Spy())
    for batch in (one, other, one, {"input": one}):
        first.update(batch)
    assert seeds[0] == seeds[2] == seeds[3] != seeds[1]
    assert seeds[0] == 5 ^ state.checksum(one)


def test_buffers_have_no_form():
    model = net()
    model.register_buffer("table", torch.randn(3))
    folded = kl().estimate(model, batches(), "logits")
    assert list(folded) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.w", "6.weight", "6.bias"]
    assert kl().estimate(model, batches(), "logits", fold_norms=False).keys() == folded.keys()


def broken(forward, **attributes):
    return Function(forward, a=nn.Linear(3, OUT), **attributes)


def in_place(self, x):
    y = self.a(x).exp()
    y.mul_(0)
    return y


def inference(self, x):
    with torch.inference_mode():
        return self.a(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (broken(lambda self, x: self.a(x).sum()), "expected \\[samples"),
        (broken(lambda self, x: self.a(x).sum(0, keepdim=True)), "expected \\[samples"),
        (broken(lambda self, x: self.a(x).argmax(-1)), "does not depend on its parameters"),
        (broken(in_place), "backward pass"),
        (broken(lambda self, x: self.n(self.a(x)), n=nn.BatchNorm1d(OUT, track_running_stats=False)), "statistics"),
        (broken(lambda self, x: {"y": str(self.a(x))}), "without a tensor"),
    ],
)
def test_models_without_importances_per_sample_are_refused(model, message):
    with pytest.raises(UnsupportedModelError, match=message):
        regression().estimate(model, [torch.randn(4, 3)], "values")
    with evaluation(model):
        pass


def test_inference_mode_inside_of_a_model_is_not_obeyed():
    model = broken(inference)
    plain = Function(lambda self, x: self.a(x), a=model.a)
    found, wanted = (regression().estimate(each, [torch.randn(4, 3)], "values") for each in (model, plain))
    assert found["a.bias"].diagonal().all()
    np.testing.assert_array_equal(found["a.bias"].diagonal(), wanted["a.bias"].diagonal())
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize("importance", [kl, regression])
def test_options_out_of_range_are_refused(importance):
    with pytest.raises(UsageError, match="Draws is 0; expected at least 1"):
        importance(draws=0)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="Temperature"):
            kl(temperature=temperature)


def test_data_that_do_not_fit_the_importance_are_refused():
    x = torch.randn(4, 2, 3, 3)
    with pytest.raises(CalibrationError, match="there are none"):
        kl().estimate(net(), None)
    with pytest.raises(CalibrationError, match="expected the regression importance"):
        kl().estimate(net(), [x], "values")
    with pytest.raises(CalibrationError, match="expected the kl importance"):
        regression().estimate(net(), [(x, torch.zeros(4, dtype=torch.long))])
    with pytest.raises(CalibrationError, match="output="):
        kl().estimate(net(), [(x, torch.rand(4, 3))])
    with pytest.raises(CalibrationError, match="no axis of classes"):
        kl().begin(Function(lambda self, x: self.a(x)[:, 0], a=nn.Linear(3, 1))).update(torch.randn(2, 3))
    with pytest.raises(UsageError, match="expected 'logits', 'values', 'probabilities' or None"):
        kl().estimate(net(), [x], "classes")


def test_names_tell_the_options_that_matter():
    assert [kl().name, kl(temperature=4).name, regression().name] == ["kl", "kl(temperature=4)", "regression"]
