"""Second derivatives against dense ones in double precision, and against the KL importance where they coincide."""

import itertools

import numpy as np
import pytest
import slow_importance
import torch
import torch.nn.functional as F
from small_nets import (
    IMAGES,
    OUT,
    Function,
    check,
    close,
    deviations,
    head,
    image_net,
    labels,
    mean,
    native,
    values,
)
from torch import nn

from waterfill.errors import CalibrationError, UnsupportedModelError, UsageError
from waterfill.importance import functional, gradient, gradient_hessian, hessian, kl, squares

# Networks that are piecewise linear in each weight


def relu_net(folded=True):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, affine=folded)
    norm.running_mean.copy_(torch.randn(4))
    norm.running_var.copy_(torch.rand(4) + 0.5)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, OUT),
    )  # fmt: skip
    x = torch.randn(9, 2, 6, 6, dtype=torch.float64)
    return model.double().eval(), x, labels(x)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("fold_norms", [True, False])
def test_piecewise_linear_networks_have_the_kl_importance(temperature, fold_norms):
    model, x, y = relu_net()
    options = {"fold_norms": fold_norms}
    expected = native(kl(temperature=temperature).estimate(model, [x], "logits", **options), model, "values")
    for answers in (y, (y + 1) % OUT):
        forms = hessian(temperature=temperature).estimate(
            model, [(x[:4], answers[:4]), (x[4:], answers[4:])], **options
        )
        close(values(forms, model), expected)
        assert not any(form.standard_errors.any() for form in forms.values())
        assert {form.count for form in forms.values()} == {9}
    if not fold_norms:
        close(values(forms, model), mean(slow_importance.curvatures(model, x, y, temperature)))


def test_nothing_is_drawn_for_them(monkeypatch):
    model, x, y = relu_net()
    monkeypatch.setattr("waterfill.importance.curvature.random_signs", None)
    monkeypatch.setattr("waterfill.importance.bends.random_signs", None)
    hessian().estimate(model, [(x, y)])


def test_a_network_that_is_curved_at_one_sample_is_not_taken_for_linear():
    model = nn.Sequential(nn.Linear(3, 4), nn.Softshrink(1.0), nn.CELU(), nn.Linear(4, OUT)).double()
    x = torch.tensor([[0.0, 0, 0], [0, 0, 0], [-9, 9, -9]], dtype=torch.float64)
    y = labels(x)
    forms = hessian(draws=200).estimate(model, [(x, y)])
    assert forms["0.weight"].standard_errors.any()
    check(forms, model, mean(slow_importance.curvatures(model, x, y)))


# Smooth networks


def attention(self, x):
    q, k, v = (layer(x) for layer in (self.q, self.k, self.v))
    mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)
    return self.out(F.gelu(mixed[:, 0])).mean(1)


SMOOTH = {
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, OUT)), (4,)),
    "gelu": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, OUT)), (4,)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(12, OUT)), (2, 3, 3)),
    "attention": (
        lambda: Function(attention, **{name: nn.Linear(4, 4) for name in "qkv"}, out=nn.Linear(4, OUT)),
        (3, 4),
    ),
}


@pytest.mark.parametrize("case", SMOOTH)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_smooth_networks_are_estimated_within_the_standard_error(case, temperature):
    make, size = SMOOTH[case]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(6, *size, dtype=torch.float64)
    y = labels(x)
    expected = mean(slow_importance.curvatures(model, x, y, temperature))
    forms = hessian(temperature=temperature, draws=100).estimate(model, [(x, y)])
    check(forms, model, expected)
    error = sum(np.square(form.standard_errors).sum() for form in forms.values())
    error /= sum(np.square(form.values).sum() for form in forms.values())
    assert (error < 1e-12) if case == "gelu" else (0 < error < 0.01)  # R is diagonal where one layer alone is curved


@pytest.mark.parametrize("case", [case for case in IMAGES if case != "no grad inside"])
def test_layers_agree_with_dense_second_derivatives(case):
    make, size = IMAGES[case]
    model, x = image_net(make(), *size)
    y = labels(x)
    forms = hessian(draws=64).estimate(model, [(x, y)])
    off = deviations(forms, model, mean(slow_importance.curvatures(model, x, y)))
    together = torch.cat([each.flatten() for each in off.values()])
    assert float(together.max()) < 5
    assert float(together.square().mean()) < 1.7


def recurrent(self, x):
    return self.out(self.layer(x)[0][:, -1])


SERIES = {
    "lstm": (lambda: Function(recurrent, layer=nn.LSTM(3, 3, batch_first=True), out=nn.Linear(3, OUT)), (4, 3)),
    "gru": (lambda: Function(recurrent, layer=nn.GRU(3, 3, batch_first=True), out=nn.Linear(3, OUT)), (4, 3)),
    "relu rnn": (
        lambda: Function(recurrent, layer=nn.RNN(3, 3, nonlinearity="relu", batch_first=True), out=nn.Linear(3, OUT)),
        (4, 3),
    ),
    "tied": (
        lambda: Function(
            lambda self, x: F.linear(F.linear(x, self.w).tanh(), self.w)[:, :OUT], w=nn.Parameter(torch.randn(4, 4))
        ),
        (4,),
    ),
    "twice without curvature": (
        lambda: Function(lambda self, x: self.out(self.a(self.a(x))), a=nn.Linear(4, 4), out=nn.Linear(4, OUT)),
        (4,),
    ),
    "cannot be vectorised": (
        lambda: Function(
            lambda self, x: self.out(self.a(self.a(x).tanh())) * (1 if float(x.detach().sum()) > -1e9 else 2),
            a=nn.Linear(4, 4),
            out=nn.Linear(4, OUT),
        ),
        (4,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SERIES)
def test_tensors_that_meet_themselves_are_moved_themselves(case):
    make, size = SERIES[case]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(5, *size, dtype=torch.float64)
    y = labels(x)
    twin = model
    if case == "cannot be vectorised":
        twin = Function(lambda self, x: self.out(self.a(self.a(x).tanh())), a=model.a, out=model.out)
    if case in ("lstm", "gru", "relu rnn"):
        twin = Function(unrolled(case), layer=model.layer, out=model.out)
    forms = hessian(draws=100).estimate(model, [(x, y)])
    check(forms, model, mean(slow_importance.curvatures(twin, x, y)))


def test_they_are_vectorised_where_that_is_right():
    make, size = SERIES["lstm"]
    model, x = make().double(), torch.randn(5, *size, dtype=torch.float64)
    methods = hessian().begin(model).update((x, labels(x))).plan.methods
    assert [name for name, method in methods.items() if method == "vmap"] == ["layer.weight_hh_l0"]
    assert set(methods.values()) == {"major", "minor", "vmap"}


def test_a_series_that_only_a_later_batch_has():
    def forward(self, x):
        h = x[:, 0]
        for _ in range(x.shape[1]):
            h = self.a(h).tanh()
        return self.out(h)

    torch.manual_seed(0)
    model = Function(forward, a=nn.Linear(4, 4), out=nn.Linear(4, OUT)).double()
    state, expected = hessian(draws=100).begin(model), []
    for length in (1, 3):
        x = torch.randn(4, length, 4, dtype=torch.float64)
        state = state.update((x, labels(x)))
        expected.append(mean(slow_importance.curvatures(model, x, labels(x))))
    check(state.forms(), model, {name: (value + expected[1][name]) / 2 for name, value in expected[0].items()})


def unrolled(case):
    """Recurrent layers written out, since `torch.func` has no second derivatives of them."""

    def step(layer, x, h, c):
        from_input = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)
        from_state = F.linear(h, layer.weight_hh_l0, layer.bias_hh_l0)
        if case == "relu rnn":
            return (from_input + from_state).relu(), c
        if case == "gru":
            (ir, iz, n), (hr, hz, hn) = from_input.chunk(3, -1), from_state.chunk(3, -1)
            z = (iz + hz).sigmoid()
            return (1 - z) * (n + (ir + hr).sigmoid() * hn).tanh() + z * h, c
        i, f, g, o = (from_input + from_state).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def forward(self, x):
        h = c = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            h, c = step(self.layer, x[:, t], h, c)
        return self.out(h)

    return forward


def test_a_table_that_is_also_the_last_layer():
    torch.manual_seed(0)
    table = nn.Embedding(OUT, 4)
    model = Function(lambda self, t: F.linear(self.table(t).mean(1).tanh(), self.table.weight), table=table).double()
    t = torch.randint(0, OUT, (4, 3))
    y = labels(t)
    check(hessian(draws=200).estimate(model, [(t, y)]), model, mean(slow_importance.curvatures(model, t, y)))


def test_models_that_vmap_differentiates_only_once(monkeypatch):
    make, size = SERIES["lstm"]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(5, *size, dtype=torch.float64)
    expected = hessian(draws=3).estimate(model, [(x, labels(x))])

    def refuse(*_):
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(functional, "vmap_curvatures", refuse)
    for name, form in hessian(draws=3).estimate(model, [(x, labels(x))]).items():
        np.testing.assert_allclose(form.values, expected[name].values, rtol=1e-5, atol=1e-9)


# Other outputs


def test_many_classes_are_drawn_as_well():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 40)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    y = labels(x, 40)
    check(hessian(draws=200).estimate(model, [(x, y)]), model, mean(slow_importance.curvatures(model, x, y)))


def test_sequences_are_priced_per_prediction():
    torch.manual_seed(0)
    model = Function(
        lambda self, t: self.out(self.table(t).cumsum(1).tanh()), table=nn.Embedding(7, 4), out=nn.Linear(4, OUT)
    ).double()
    t, y = torch.randint(0, 5, (3, 5)), torch.randint(0, OUT, (3, 5))
    y[0, 3:] = -100
    twin = Function(lambda self, x: self.m(x).transpose(1, 2), m=model)
    by_sample = slow_importance.curvatures(twin, t, y)
    expected = {name.removeprefix("m."): each.sum(0) / 13 for name, each in by_sample.items()}
    forms = hessian(draws=200).estimate(model, [(t, y)])
    check(forms, model, expected)
    assert forms["out.weight"].count == 13


def test_values_have_the_curvature_of_the_squared_error():
    model, x = image_net(nn.Conv2d(2, 3, 2), 2, 3, 3)
    y = torch.randn(len(x), OUT, dtype=torch.float64)
    forms = hessian(draws=100).estimate(model, [(x, y)], "values")
    check(forms, model, mean(slow_importance.curvatures(model, x, y)))


def test_ignored_predictions_do_not_count():
    model, x, y = relu_net()
    kept = y.clone()
    kept[::2] = -100
    found = hessian().estimate(model, [(x, kept)])
    close(values(found, model), native(hessian().estimate(model, [(x[1::2], y[1::2])]), model, "values"))


# Laws


def smooth():
    make, size = SMOOTH["convolution"]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(7, *size, dtype=torch.float64)
    return model, x, labels(x)


def test_standard_errors_are_those_of_other_seeds():
    model, x, y = smooth()
    runs = [hessian(draws=4, seed=seed).estimate(model, [(x, y)]) for seed in range(300)]
    for name in ("0.weight", "0.bias"):
        spread = np.stack([run[name].values for run in runs]).var(0, ddof=1)
        claimed = np.square([run[name].standard_errors for run in runs]).mean(0)
        assert claimed.sum() == pytest.approx(spread.sum(), rel=0.1)


def test_the_mean_over_seeds_has_no_bias():
    model, x, y = smooth()
    expected = mean(slow_importance.curvatures(model, x, y))
    runs = [native(hessian(draws=2, seed=seed).estimate(model, [(x, y)]), model, "values") for seed in range(200)]
    for name, value in expected.items():
        each = torch.stack([run[name] for run in runs])
        off = ((each.mean(0) - value).abs() - 1e-6) / (each.std(0) / 200**0.5).clamp_min(1e-30)
        assert float(off.max()) < 4


@pytest.mark.parametrize("importance", [gradient(), hessian(draws=2), gradient_hessian(draws=2)])
def test_states_merge_in_any_order(importance):
    model, x, y = smooth()
    data = [(x[:2], y[:2]), (x[2:5], y[2:5]), (x[5:], y[5:])]
    whole = importance.estimate(model, data)
    for order in itertools.permutations(range(3)):
        one, two, three = (importance.begin(model).update(data[number]) for number in order)
        for name, form in one.merge(two).merge(three).forms().items():
            np.testing.assert_allclose(form.values, whole[name].values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("importance", [hessian, gradient_hessian])
def test_seeds_draw_differently_and_repeatably(importance):
    model, x, y = smooth()
    one, again, other = (importance(draws=2, seed=seed).estimate(model, [(x, y)])["0.weight"] for seed in (1, 1, 2))
    part = "values" if importance is hessian else "fourth"
    assert (getattr(one, part) == getattr(again, part)).all()
    assert (getattr(one, part) != getattr(other, part)).any()


def test_small_chunks_make_no_difference(monkeypatch):
    model, x, y = smooth()
    expected = hessian(draws=3).estimate(model, [(x, y)])
    monkeypatch.setattr(squares, "CHUNK_BYTES", 1)
    for name, form in hessian(draws=3).estimate(model, [(x, y)]).items():
        np.testing.assert_allclose(form.values, expected[name].values, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(form.standard_errors, expected[name].standard_errors, rtol=1e-4, atol=1e-9)


def test_single_and_half_precision():
    model, x, y = relu_net()
    expected = hessian().estimate(model, [(x, y)])
    for dtype, rtol in ((torch.float32, 1e-3), (torch.bfloat16, 0.5)):
        found = hessian().estimate(model.to(dtype), [(x.to(dtype), y)])
        for name, form in found.items():
            np.testing.assert_allclose(form.values.sum(), expected[name].values.sum(), rtol=rtol)


def test_mu_is_added_to_the_mean_normalised_diagonal():
    model, x, y = relu_net()
    plain, regular = hessian().estimate(model, [(x, y)]), hessian(mu=0.5).estimate(model, [(x, y)])
    for name, form in plain.items():
        average = form.values.mean(dtype=np.float64)
        np.testing.assert_allclose(regular[name].values / average, form.values / average + 0.5, rtol=1e-5)


def test_mu_is_added_to_the_fourth_powers():
    model, x, y = relu_net()
    plain, regular = (gradient_hessian(mu=mu).estimate(model, [(x, y)]) for mu in (0, 0.5))
    for name, form in plain.items():
        np.testing.assert_array_equal(regular[name].values, form.values)
        np.testing.assert_allclose(regular[name].fourth, form.fourth + 0.5 * form.fourth.mean(), rtol=1e-5)


def test_the_model_is_left_as_it_was():
    model, x, y = relu_net()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hessian().estimate(model, [(x, y)])
    with pytest.raises(CalibrationError, match="Batch 1"):
        hessian().estimate(model, [(x, y), (x[:, :1], y)])
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Refusals


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def test_functions_that_can_be_differentiated_only_once_are_refused():
    model = Function(lambda self, x: self.b(Once.apply(self.a(x))), a=nn.Linear(3, 3), b=nn.Linear(3, OUT))
    x = torch.randn(4, 3)
    gradient().estimate(model, [(x, labels(x))])
    with pytest.raises(UnsupportedModelError, match="once_differentiable"):
        hessian().estimate(model, [(x, labels(x))])
    twice = Function(lambda self, x: self.a(Once.apply(self.a(x))), a=nn.Linear(3, 3))
    with pytest.raises(UnsupportedModelError, match="once_differentiable"):
        hessian().estimate(twice, [(x, labels(x))])


def test_options_out_of_range_are_refused():
    for importance in (hessian, gradient_hessian):
        with pytest.raises(UsageError, match="Draws is 1; expected at least 2"):
            importance(draws=1)
        with pytest.raises(UsageError, match="Temperature is -1"):
            importance(temperature=-1)
    for mu in (-0.1, float("nan"), float("inf")):
        for importance in (hessian, gradient_hessian):
            with pytest.raises(UsageError, match="mu is"):
                importance(mu=mu)


def test_data_without_the_right_answer_are_refused():
    model, x, _ = relu_net()
    for importance in (hessian(), gradient_hessian()):
        with pytest.raises(CalibrationError, match="no target"):
            importance.estimate(model, [x], "logits")
        with pytest.raises(CalibrationError, match="there are none"):
            importance.estimate(model, None)
        with pytest.raises(CalibrationError, match="needs the right class"):
            importance.estimate(model, [(x, torch.rand(9, OUT))], "logits")
        with pytest.raises(CalibrationError, match="No prediction was seen"):
            importance.estimate(model, [(x, torch.full((9,), -100))])


def test_names_tell_the_options_that_matter():
    assert hessian().name == "hessian"
    assert hessian(temperature=4, mu=0.1, draws=3).name == "hessian(temperature=4, mu=0.1)"
    assert gradient_hessian().name == "gradient_hessian"
    assert gradient_hessian(temperature=2, mu=0.5).name == "gradient_hessian(temperature=2, mu=0.5)"


# Both derivatives


def test_both_derivatives_of_a_piecewise_linear_network_are_exact():
    model, x, y = relu_net(folded=False)
    plain = Function(lambda self, x: self.net(x), net=model)
    slopes = slow_importance.slopes(plain, x, y, 2.0)
    curved = slow_importance.curvatures(plain, x, y, 2.0)
    forms = gradient_hessian(temperature=2.0).estimate(plain, [(x, y)])
    second = native(forms, plain, "values")
    fourth = native(forms, plain, "fourth")
    for name, each in slopes.items():
        torch.testing.assert_close(second[name], each.square().mean(0), rtol=2e-5, atol=1e-9)
        torch.testing.assert_close(fourth[name], curved[name].square().mean(0) / 4, rtol=2e-5, atol=1e-9)


def test_the_square_of_a_noisy_second_derivative_has_no_bias():
    model, x, y = smooth()
    curved = slow_importance.curvatures(model, x, y)
    number = 200
    runs = [
        native(gradient_hessian(draws=2, seed=seed).estimate(model, [(x, y)]), model, "fourth")
        for seed in range(number)
    ]
    for name, each in curved.items():
        found = 4 * torch.stack([run[name] for run in runs])
        error = (found.std(0) / number**0.5).clamp_min(1e-30)
        assert float((((found.mean(0) - each.square().mean(0)).abs() - 1e-6) / error).max()) < 4
    first = (x[:1], y[:1])
    naive = [native(hessian(draws=2, seed=seed).estimate(model, [first]), model, "values") for seed in range(number)]
    squares = torch.stack([run["0.weight"] for run in naive]).square()
    above = (squares.mean(0) - curved["0.weight"][0].square()) / (squares.std(0) / number**0.5)
    assert float(above.mean()) > 5


def test_the_slope_is_the_gradient_importance():
    model, x, y = smooth()
    expected = gradient(temperature=2).estimate(model, [(x, y)])
    for name, form in gradient_hessian(temperature=2).estimate(model, [(x, y)]).items():
        np.testing.assert_allclose(form.diagonal(), expected[name].diagonal(), rtol=1e-6)


def test_several_predictions_for_each_sample_are_refused():
    model = nn.Sequential(nn.Linear(4, OUT), head(3)[0])
    with pytest.raises(CalibrationError, match="several predictions for each sample"):
        gradient_hessian().estimate(model, [(torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.long))])
