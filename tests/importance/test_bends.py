"""Curvature of elementwise functions, sent back on its own: against dense derivatives, and against `R v` for all."""

import itertools

import numpy as np
import pytest
import slow_importance
import torch
import torch.nn.functional as F
from small_nets import OUT, Function, check, deviations, labels, mean, native
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

from waterfill.importance import bends, gradient_hessian, hessian, kl
from waterfill.models.capture import Tape, variables


def everything_by_products(monkeypatch):
    """The estimator in which no function is elementwise."""
    monkeypatch.setattr(bends, "ELEMENTWISE", frozenset())


@pytest.mark.parametrize("function", sorted(bends.ELEMENTWISE, key=str), ids=lambda f: f.__qualname__)
def test_derivatives_of_every_function_on_the_list(function):
    x = torch.cat([torch.linspace(-4.03, 4, 40, dtype=torch.float64), torch.tensor([0.0, 30, -30]).double()])
    y, first, second = bends.derivatives(function, x)
    torch.testing.assert_close(y, torch.stack([function(one) for one in x]))  # it is elementwise
    torch.testing.assert_close(first, vmap(grad(function))(x))
    h = 1e-5
    _, above, _ = bends.derivatives(function, x + h)
    _, below, _ = bends.derivatives(function, x - h)
    away = x != 0  # where the second derivative of some jumps
    torch.testing.assert_close(second[away], (above - below)[away] / (2 * h), rtol=1e-5, atol=1e-5)


def deep(activation, depth, width=12):
    torch.manual_seed(0)
    widths = [5] + [width] * depth
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers, nn.Linear(width, OUT)).double()


def swiglu(self, x):
    return self.out(F.silu(self.a(x)) * self.b(x))


def two_branches(self, x):
    h = self.a(x)
    return self.out(torch.cat([h.tanh(), h.sigmoid(), torch.tanh(h)], 1) + F.gelu(self.b(h.sin()), approximate="tanh"))


def by_options(self, x):
    return self.out(F.softplus(F.elu(self.a(x), 0.7), beta=2.0, threshold=0.3) + F.celu(self.b(x), alpha=0.4))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, 3, padding=1), nn.GELU(),
        nn.AvgPool2d(2), nn.Conv2d(4, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(3, OUT),
    )  # fmt: skip


def normed():
    return nn.Sequential(
        nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 6), nn.Mish(), nn.LayerNorm(6), nn.Linear(6, OUT)
    )


ONLY_ELEMENTWISE = {
    "tanh": (lambda: deep(nn.Tanh, 3), (5,)),
    "gelu convolutions": (convolutions, (2, 4, 4)),
    "one input, several functions": (
        lambda: Function(two_branches, a=nn.Linear(5, 4), b=nn.Linear(4, 12), out=nn.Linear(12, OUT)),
        (5,),
    ),
    "options": (lambda: Function(by_options, a=nn.Linear(5, 4), b=nn.Linear(5, 4), out=nn.Linear(4, OUT)), (5,)),
    "a function of the outputs": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Hardswish(), nn.Linear(4, OUT), nn.SELU()),
        (5,),
    ),
}  # fmt: skip
MIXED = {
    "swiglu": (
        lambda: Function(swiglu, a=nn.Linear(5, 6), b=nn.Linear(5, 6), out=nn.Linear(6, OUT)),
        (5,),
    ),
    "layer norm": (normed, (5,)),
}
CASES = ONLY_ELEMENTWISE | MIXED


def made(case):
    make, size = CASES[case]
    torch.manual_seed(0)
    model = make().double().eval()
    x = torch.randn(5, *size, dtype=torch.float64)
    return model, x, labels(x)


@pytest.mark.parametrize("case", CASES)
def test_dense_second_derivatives(case):
    model, x, y = made(case)
    expected = mean(slow_importance.curvatures(model, x, y))
    forms = hessian(draws=200).estimate(model, [(x, y)], fold_norms=False)
    off = deviations(forms, model, expected)
    together = torch.cat([each.flatten() for each in off.values()])
    assert float(together.max()) < 5
    assert float(together.square().mean()) < 1.7
    assert any(form.standard_errors.any() for form in forms.values())


@pytest.mark.parametrize("case", CASES)
def test_the_mean_over_seeds_has_no_bias(case):
    model, x, y = made(case)
    expected = mean(slow_importance.curvatures(model, x, y))
    seeds, batches = 50, 3 * [(x, y)]  # each of the batches has draws of its own
    runs = [
        native(hessian(draws=2, seed=seed).estimate(model, batches, fold_norms=False), model, "values")
        for seed in range(seeds)
    ]
    for name, value in expected.items():
        each = torch.stack([run[name] for run in runs])
        off = ((each.mean(0) - value).abs() - 1e-6).clamp_min(0) / (each.std(0) / seeds**0.5).clamp_min(1e-30)
        assert float(off.max()) < 4.5, name


@pytest.mark.parametrize("case", CASES)
def test_products_are_asked_for_only_where_something_else_is_curved(case, monkeypatch):
    model, x, y = made(case)
    monkeypatch.setattr("waterfill.importance.curvature.random_signs", None)
    if case in MIXED:
        with pytest.raises(TypeError, match="not callable"):
            hessian(draws=2).estimate(model, [(x, y)], fold_norms=False)
    else:
        hessian(draws=2).estimate(model, [(x, y)], fold_norms=False)


def test_nothing_is_sent_from_functions_that_are_not_curved_here(monkeypatch):
    model = nn.Sequential(nn.Linear(3, 4), nn.CELU(), nn.Linear(4, OUT)).double()
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.abs_()
    x = torch.rand(4, 3, dtype=torch.float64)
    monkeypatch.setattr("waterfill.importance.bends.random_signs", None)
    monkeypatch.setattr("waterfill.importance.curvature.random_signs", None)
    forms = hessian().estimate(model, [(x, labels(x))])
    for name, form in kl().estimate(model, [x], "logits").items():
        np.testing.assert_allclose(forms[name].values, form.values, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_stay_as_they_are(case):
    model, x, _ = made(case)
    found = []
    known = variables(model, fold_norms=False)
    learned = list(known.tensors.values())
    for tape in (Tape(known), bends.BendingTape(known)):
        with tape:
            output = model(x)
        found.append((output.detach(), *torch.autograd.grad(output.square().sum(), learned)))
    for plain, bent in zip(*found, strict=True):
        torch.testing.assert_close(bent, plain, rtol=1e-12, atol=1e-14)


def test_functions_that_are_not_elementwise_calls_pass():
    model = Function(
        lambda self, x: self.a(x) + self.t.tanh() + F.gelu(input=self.a(x)),
        a=nn.Linear(4, OUT),
        t=nn.Parameter(torch.randn(OUT)),
    )
    model, x = model.double(), torch.randn(5, 4, dtype=torch.float64)
    tape = bends.BendingTape(variables(model))
    with tape:
        model(x)
        x.tanh()
    assert tape.bends == [] and tape.missed == {"t"}
    check(
        hessian(draws=200).estimate(model, [(x, labels(x))]),
        model,
        mean(slow_importance.curvatures(model, x, labels(x))),
    )


IN_PLACE = {
    "module": (lambda: nn.SiLU(inplace=True), lambda: nn.SiLU()),
    "positional": (lambda: Function(lambda _, h: F.elu(h, 0.7, True)), lambda: nn.ELU(0.7)),
    "result not used": (
        lambda: Function(lambda _, h: (F.mish(h, inplace=True), h)[1]),
        lambda: nn.Mish(),
    ),
    "method": (lambda: Function(lambda _, h: h.tanh_()), nn.Tanh),
    "torch.sigmoid_": (lambda: Function(lambda _, h: torch.sigmoid_(h)), nn.Sigmoid),
    "before": (lambda: Function(lambda _, h: h.tanh() + h.mul_(0.5)),
               lambda: Function(lambda _, h: h.tanh() + h * 0.5)),
    "after": (lambda: Function(lambda _, h: F.gelu(h).mul_(2).relu_()),
              lambda: Function(lambda _, h: (F.gelu(h) * 2).relu())),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_PLACE)
def test_functions_in_place(case):
    def net(part):
        torch.manual_seed(0)
        layers = (nn.Linear(4, 5), part, nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, OUT))
        return nn.Sequential(*layers).double()

    model, twin = (net(make()) for make in IN_PLACE[case])
    x = torch.randn(6, 4, dtype=torch.float64)
    y = labels(x)
    check(hessian(draws=200).estimate(model, [(x, y)]), model, mean(slow_importance.curvatures(twin, x, y)))


DEEP = {
    "8 x tanh": (lambda: deep(nn.Tanh, 8, 48), (5,), 1.4),
    "8 x GELU": (lambda: deep(nn.GELU, 8, 48), (5,), 2.0),
    "8 x GELU on images": (
        lambda: nn.Sequential(
            *(part for n in (2, *[8] * 7) for part in (nn.Conv2d(n, 8, 3, padding=1), nn.GELU())),
            nn.Flatten(),
            nn.Linear(8 * 36, OUT),
        ).double(),
        (2, 6, 6),
        1.4,
    ),
}


@pytest.mark.parametrize("case", DEEP)
def test_it_is_less_noisy_than_products_at_the_same_draws(case, monkeypatch):
    make, size, least = DEEP[case]
    torch.manual_seed(0)
    model, x = make(), torch.randn(8, *size, dtype=torch.float64)

    def errors():
        forms = hessian(draws=16).estimate(model, [(x, labels(x))])
        return [np.sqrt(np.square(form.standard_errors).mean(dtype=np.float64)) for form in list(forms.values())[:-4]]

    sent = errors()
    everything_by_products(monkeypatch)
    factors = np.divide(errors(), sent)
    print(f"{case}: smaller standard errors by {np.round(factors, 1)}, median {np.median(factors):.2f}")
    assert np.median(factors) > least


# Squares of second derivatives


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_the_variance_of_a_mean_product(n, skewed):
    from waterfill.importance.curvature import Estimate

    generator = torch.Generator().manual_seed(n)
    draws = torch.randn(n, 400_000, generator=generator, dtype=torch.float64)
    draws = draws.square() * 0.7 if skewed else draws
    found = Estimate(torch.zeros(()), torch.full((400_000,), 0.4, dtype=torch.float64), draws)
    spread, claimed = float(found.square.var()), float(found.square_noise.mean())
    mean_square = (0.4 + (0.7 if skewed else 0)) ** 2
    assert float(found.square.mean()) == pytest.approx(mean_square, abs=5 * (spread / 400_000) ** 0.5)
    if n >= 4 or (n == 2 and not skewed):
        assert claimed == pytest.approx(spread, rel=0.03)
    elif n == 3 and not skewed:
        assert spread < claimed < 2 * spread


@pytest.mark.parametrize("draws", [2, 5])
def test_errors_of_fourth_powers_are_those_of_other_seeds(draws):
    model, x, y = made("gelu convolutions")
    runs = [gradient_hessian(draws=draws, seed=seed).estimate(model, [(x, y)]) for seed in range(100)]
    for name in ("0.weight", "3.weight"):
        spread = np.stack([run[name].fourth.astype(float) for run in runs]).var(0, ddof=1)
        claimed = np.square([run[name].fourth_errors.astype(float) for run in runs]).mean(0)
        ratio = claimed.sum() / spread.sum()
        assert 0.65 < ratio < (1.35 if draws >= 4 else 5)  # below four draws, too large where tails are heavy
        assert runs[0][name].count == 5


def test_exact_fourth_powers_have_no_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, OUT)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    for form in gradient_hessian().estimate(model, [(x, labels(x))]).values():
        assert not form.fourth_errors.any() and form.fourth.min() >= 0


def test_it_is_no_elementwise_function_of_tensors():
    assert all(function not in bends.ELEMENTWISE for function in (torch.exp, Tensor.exp, Tensor.pow, torch.softmax))


def test_checkpointed_parts_are_drawn_by_products():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.again = nn.Linear(4, 6), nn.Linear(6, OUT), True

        def forward(self, x):
            h = self.first(x)
            bent = checkpoint(self.bend, h, use_reentrant=False) if self.again else self.bend(h)
            return self.second(bent)

        def bend(self, z):
            return torch.tanh(z) * 1.5

    torch.manual_seed(0)
    model = Checkpointed().double()
    x = torch.randn(12, 4, dtype=torch.float64)
    data = [(x, labels(x))]
    found = hessian(draws=2).estimate(model, data)["first.weight"].values
    model.again = False
    expected = hessian(draws=2).estimate(model, data)["first.weight"].values
    assert (found < 0).any()  # of one hidden layer both are exact
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
