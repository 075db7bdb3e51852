"""Closed forms against per-sample derivatives taken one at a time, in double precision."""

import numpy as np
import pytest
import slow_importance
import torch
import torch.nn.functional as F
from small_nets import IMAGES, OUT, Function, close, head, image_net, scrambled, values
from torch import nn
from torch.func import functional_call, jacrev, vmap

from waterfill.importance import kl, regression


@pytest.mark.parametrize("case", IMAGES)
def test_layers_agree_with_the_slow_twin(case):
    make, size = IMAGES[case]
    torch.manual_seed(1)
    model, x = image_net(make(), *size)
    expected = slow_importance.regression(model, x) if case != "no grad inside" else None
    if expected is None:
        plain = nn.Sequential(model[0].a, *model[1:])
        expected = slow_importance.regression(plain, x)
        expected = {name.replace("0.", "0.a.", 1): value for name, value in expected.items()}
    close(values(regression().estimate(model, [x], "values"), model), expected)


@pytest.mark.parametrize("case", ["conv2d", "grouped", "linear on sequences", "called twice", "attention"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_agrees_with_the_slow_twin(case, temperature):
    make, size = IMAGES[case]
    model, x = image_net(make(), *size)
    found = kl(temperature=temperature).estimate(model, [x[:3], x[3:]], "logits")
    close(values(found, model), slow_importance.kl(model, x, temperature))


def test_the_slow_twin_agrees_with_torch_func():
    model, x = image_net(nn.Conv2d(2, 3, 3, stride=2, padding=1), 2, 5, 5)
    parameters = dict(model.named_parameters())
    derivative = vmap(jacrev(lambda p, one: functional_call(model, p, one[None])[0]), (None, 0))(parameters, x)
    expected = {name: d.square().sum(1).mean(0).detach() for name, d in derivative.items()}
    close(slow_importance.regression(model, x), expected, rtol=1e-9)


class Affine(nn.Module):
    """A folded norm as a layer of its own."""

    def __init__(self, norm):
        super().__init__()
        scale = 1 / (norm.running_var + norm.eps).sqrt()
        shift = -norm.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        self.s, self.t = nn.Parameter(scale.detach()), nn.Parameter(shift.detach())

    def forward(self, x):
        shape = (-1, *(1,) * (x.ndim - 2))
        return x * self.s.reshape(shape) + self.t.reshape(shape)


def norm_net(affine):
    torch.manual_seed(0)
    norm = scrambled(nn.BatchNorm2d(3, affine=affine)).double()
    norm.running_mean.copy_(torch.randn(3))
    norm.running_var.copy_(torch.rand(3) + 0.5)
    return nn.Sequential(nn.Conv2d(2, 3, 2).double(), norm, head(12).double()).eval()


@pytest.mark.parametrize("affine", [True, False])
def test_folded_norms_are_priced_by_scale_and_shift(affine):
    model = norm_net(affine)
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    twin = nn.Sequential(model[0], Affine(model[1]), model[2])
    expected = slow_importance.regression(twin, x)
    names = ("1.weight", "1.bias") if affine else ("1.running_var", "1.running_mean")
    expected = {{"1.s": names[0], "1.t": names[1]}.get(name, name): value for name, value in expected.items()}
    close(values(regression().estimate(model, [x], "values"), model), expected)


def test_unfolded_norms_are_priced_by_weight_and_bias():
    model = norm_net(affine=True)
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    forms = regression().estimate(model, [x], "values", fold_norms=False)
    close(values(forms, model), slow_importance.regression(model, x))


def test_folded_norms_are_priced_where_rows_are_mixed():
    model = norm_net(affine=True)

    def forward(self, x):
        h = self.net[0](x)
        h = self.net[1](torch.cat([h, 2 * h.flip(0)]))
        return self.net[2]((h[: len(x)] + 2 * h[len(x) :].flip(0)).tanh())

    wrapped = Function(forward, net=model)
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    twin = Function(forward, net=nn.Sequential(model[0], Affine(model[1]), model[2]))
    swap = {"net.1.s": "net.1.weight", "net.1.t": "net.1.bias"}
    expected = {swap.get(name, name): value for name, value in slow_importance.regression(twin, x).items()}
    close(values(regression().estimate(wrapped, [x], "values"), wrapped), expected)


def test_a_linear_model_has_the_second_moment_of_its_inputs():
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4, bias=False), torch.randn(50, 6)
    (form,) = regression().estimate(model, [x[:20], x[20:]], "values").values()
    np.testing.assert_allclose(form.values, np.tile(x.square().mean(0).numpy(), (4, 1)), rtol=1e-6)


def test_kl_is_the_divergence_to_second_order():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    sizes = [p.numel() for p in model.parameters()]

    def log_f(vector, one):
        parts = vector.split(sizes)
        named = {n: part.reshape(p.shape) for (n, p), part in zip(model.named_parameters(), parts, strict=True)}
        return functional_call(model, named, one).log_softmax(-1)

    d = vmap(jacrev(log_f), (None, 0))(flat, x)
    dense = torch.einsum("bc,bci,bcj->ij", log_f(flat, x).exp(), d, d) / len(x)
    diagonal = torch.cat([v.reshape(-1) for v in values(kl().estimate(model, [x], "logits"), model).values()])
    torch.testing.assert_close(dense.diagonal(), diagonal.double(), rtol=1e-5, atol=1e-9)
    error = 1e-3 * torch.randn(len(flat), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p, q = log_f(flat, x), log_f(flat + error, x)
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    assert float(error @ dense @ error / 2) == pytest.approx(float(divergence), rel=5e-3)


@pytest.mark.parametrize(("importance", "output"), [(kl, "logits"), (regression, "values")])
def test_drawn_signals_agree_with_the_exact_sum(importance, output):
    model, x = image_net(nn.Conv2d(2, 3, 3), 2, 5, 6)
    exact = importance().estimate(model, [x], output)
    drawn = [importance(draws=16, seed=seed).estimate(model, [x], output) for seed in range(12)]
    for name, form in exact.items():
        each = np.stack([d[name].values for d in drawn]).astype(float)
        error = each.std(0, ddof=1) / np.sqrt(len(drawn)) + 1e-9
        assert np.mean(np.abs(each.mean(0) - form.values) < 3 * error) > 0.85
        assert np.all(np.abs(each.mean(0) - form.values) < 7 * error)


def test_sequences_are_priced_per_prediction():
    torch.manual_seed(0)
    model = Function(lambda self, t: self.out(self.table(t).cumsum(1)), table=nn.Embedding(7, 4), out=nn.Linear(4, OUT))
    model = model.double()
    t = torch.randint(0, 5, (3, 5))
    expected = [slow_importance.kl(Function(lambda self, x, p=p: self.m(x)[:, p], m=model), t) for p in range(5)]
    expected = {name: torch.stack([e[f"m.{name}"] for e in expected]).mean(0) for name, _ in model.named_parameters()}
    drawn = [values(kl(draws=64, seed=seed).estimate(model, [t], "logits"), model) for seed in range(10)]
    for name, value in expected.items():
        each = torch.stack([d[name] for d in drawn]).double()
        error = each.std(0) / 10**0.5 + 1e-9
        assert bool(((each.mean(0) - value).abs() < 7 * error).all())


def test_ignored_predictions_do_not_count():
    model, x = image_net(nn.Linear(5, 4), 5)
    target = torch.tensor([0, -100, 1, -100])
    close(values(kl().estimate(model, [(x, target)]), model), slow_importance.kl(model, x[::2]))


def test_pixels_have_their_classes_on_axis_1():
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 1).double()
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    target = torch.zeros(2, 4, 5, dtype=torch.long)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 2)
    twin = Function(
        lambda self, r: F.linear(r, self.weight[:, :, 0, 0], self.bias), weight=model.weight, bias=model.bias
    )
    expected = slow_importance.kl(twin, rows)
    drawn = [values(kl(draws=64, seed=seed).estimate(model, [(x, target)]), model) for seed in range(10)]
    for name, value in expected.items():
        each = torch.stack([d[name] for d in drawn]).double()
        assert bool(((each.mean(0) - value).abs() < 7 * each.std(0) / 10**0.5 + 1e-9).all())
