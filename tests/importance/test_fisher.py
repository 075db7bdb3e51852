"""Closed forms against per-sample derivatives taken one at a time, in double precision."""

import numpy as np
import pytest
import slow_importance
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import parametrizations

from waterfill.importance import kl, regression
from waterfill.importance.plan import Plan, extend
from waterfill.importance.state import differentiable
from waterfill.models import inventory
from waterfill.models.capture import variables

OUT = 3


class Function(nn.Module):
    """Any forward, with modules and parameters as attributes."""

    def __init__(self, forward, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)
        self.function = forward

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def head(features):
    return nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(features, OUT))


def image_net(layer, *size):
    """A layer on images, then a linear layer."""
    torch.manual_seed(0)
    layer = layer.double().eval()
    with torch.no_grad():
        features = layer(torch.zeros(1, *size, dtype=torch.float64)).numel()
    return nn.Sequential(layer, head(features).double()), torch.randn(4, *size, dtype=torch.float64)


IMAGES = {
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 6)),
    "strided": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2)), (2, 6, 5)),
    "dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=2), (2, 6, 5)),
    "same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(2, 1)), (2, 6, 5)),
    "valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 6, 5)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 5)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2, padding=1), (4, 5, 5)),
    "pointwise": (lambda: nn.Conv2d(4, 3, 1, bias=False), (4, 3, 3)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, stride=(1, 2, 1)), (2, 3, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3), (2, 4, 3)),
    "transposed strided": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 4, 3)),
    "transposed cut": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2, padding=2), (2, 4, 5)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, stride=(1, 2)), (4, 3, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=3), (2, 4)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 2, 2, stride=2), (2, 2, 3, 2)),
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear on sequences": (lambda: nn.Linear(5, 4), (6, 5)),
    "linear on grids": (lambda: nn.Linear(5, 4), (2, 3, 5)),
    "layer norm": (lambda: scrambled(nn.LayerNorm(5)), (3, 5)),
    "layer norm over two axes": (lambda: scrambled(nn.LayerNorm((3, 5))), (2, 3, 5)),
    "rms norm": (lambda: scrambled(nn.RMSNorm(5)), (3, 5)),
    "group norm": (lambda: scrambled(nn.GroupNorm(2, 4)), (4, 3, 3)),
    "instance norm": (lambda: scrambled(nn.InstanceNorm2d(4, affine=True)), (4, 3, 3)),
    "prelu": (lambda: nn.PReLU(), (4, 3)),
    "prelu by channel": (lambda: scrambled(nn.PReLU(4)), (4, 3)),
    "bilinear": (lambda: Function(lambda self, x: self.b(x, x.flip(-1)), b=nn.Bilinear(3, 3, 4)), (2, 3)),
    "scale and shift": (
        lambda: Function(
            lambda self, x: self.a * x + x * self.b + self.c, a=param(3, 1), b=param(4), c=param(1, 3, 4)
        ),
        (3, 4),
    ),
    "matmul": (lambda: Function(lambda self, x: x @ self.w + self.b, w=param(4, 5), b=param(5)), (3, 4)),
    "addmm": (lambda: Function(lambda self, x: torch.addmm(self.b, x, self.w), w=param(4, 5), b=param(5)), (4,)),
    "view of a parameter": (lambda: Function(lambda self, x: F.linear(x, self.w.t(), self.w[0]), w=param(4, 5)), (4,)),
    "rows of samples apart": (
        lambda: Function(
            lambda self, x: self.a(x.transpose(0, 1)).tanh().transpose(0, 1), a=nn.Linear(4, 5)
        ),
        (3, 4),
    ),
    "rows of samples together": (
        lambda: Function(lambda self, x: self.a(x.reshape(-1, 4)).reshape(len(x), -1), a=nn.Linear(4, 5)),
        (3, 4),
    ),
    "called twice": (lambda: Function(lambda self, x: self.a(self.a(x).tanh()), a=nn.Linear(4, 4)), (4,)),
    "called on two sizes": (
        lambda: Function(lambda self, x: self.a(x).mean((2, 3)) + self.a(x[:, :, 1:]).amax((2, 3)), a=nn.Conv2d(2, 3, 2)),
        (2, 4, 5),
    ),
    "attention": (
        lambda: Function(lambda self, x: self.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, batch_first=True)),
        (3, 4),
    ),
    "attention, time first": (
        lambda: Function(lambda self, x: self.a(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), a=nn.MultiheadAttention(4, 2)),
        (3, 4),
    ),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 5)), (4,)),
    "in place": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2)), (2, 4, 4)),
    "no grad inside": (lambda: Function(frozen_forward, a=nn.Linear(4, 5)), (4,)),
}  # fmt: skip


def frozen_forward(self, x):
    with torch.no_grad():
        return self.a(x)


def param(*shape):
    return nn.Parameter(torch.randn(*shape))


def scrambled(module):
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.copy_(torch.randn(tensor.shape))
    return module


def values(forms, model):
    """Forms as tensors of the shape of the parameters."""
    layouts = {name: weight.layout for name, weight in inventory(model).weights.items()}
    return {name: torch.from_numpy(layouts[name].from_matrix(form.values)) for name, form in forms.items()}


def close(found, expected, rtol=2e-5):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(
            found[name].double(), value, rtol=rtol, atol=1e-6 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


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


RECURRENT = {
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "lstm, two layers, both ways": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True),
    "lstm without biases": lambda: nn.LSTM(3, 4, num_layers=2, bias=False, batch_first=True),
    "lstm with projection": lambda: nn.LSTM(3, 4, proj_size=2, num_layers=2, bidirectional=True, batch_first=True),
    "lstm with projection without biases": lambda: nn.LSTM(3, 4, proj_size=2, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(3, 4, num_layers=2, batch_first=True),
    "rnn with relu": lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("case", RECURRENT)
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_agree_with_the_slow_twin(case, batch_first):
    torch.manual_seed(0)
    layer = RECURRENT[case]().double()
    layer.batch_first = batch_first

    def forward(self, x):
        outputs, _ = self.layer(x if batch_first else x.transpose(0, 1))
        return self.out(outputs.select(1 if batch_first else 0, 2).tanh())

    with torch.no_grad():
        features = layer(torch.zeros(1, 1, 3, dtype=torch.float64))[0].shape[-1]
    model = Function(forward, layer=layer, out=nn.Linear(features, OUT).double())
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    close(values(regression().estimate(model, [x], "values"), model), slow_importance.regression(model, x))
    assert set(methods(model, x).values()) <= {"major", "minor"}


@pytest.mark.parametrize(
    "kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda i, h: nn.RNNCell(i, h, nonlinearity="relu")]
)
def test_recurrent_cells_agree_with_the_slow_twin(kind):
    torch.manual_seed(0)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)

    model = Function(forward, cell=kind(3, 4), out=nn.Linear(4, OUT)).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    close(values(regression().estimate(model, [x], "values"), model), slow_importance.regression(model, x))


def test_packed_sequences_agree_with_the_slow_twin():
    torch.manual_seed(0)

    def forward(self, x):
        lengths = (x[:, :, 0] != 0).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.layer(packed)[1].squeeze(0))

    model = Function(forward, layer=nn.GRU(3, 4), out=nn.Linear(4, OUT)).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    x[1, 3:] = 0
    x[2, 1:] = 0
    close(values(regression().estimate(model, [x], "values"), model), slow_importance.regression(model, x))
    assert methods(model, x)["layer.weight_hh_l0"] == "loop"


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


def tokens(batch=4, length=6):
    return torch.randint(0, 5, (batch, length), generator=torch.Generator().manual_seed(0))


def text_net(**options):
    torch.manual_seed(0)
    return Function(
        lambda self, t: self.out(self.table(t).cumsum(1).tanh().sum(1)),
        table=nn.Embedding(7, 4, **options), out=nn.Linear(4, OUT),
    ).double()  # fmt: skip


def test_embeddings_agree_with_the_slow_twin():
    model = text_net()
    close(
        values(regression().estimate(model, [tokens()], "values"), model), slow_importance.regression(model, tokens())
    )


def test_an_error_in_the_padding_row_counts():
    model, plain = text_net(padding_idx=1), text_net()
    plain.load_state_dict(model.state_dict())
    close(
        values(regression().estimate(model, [tokens()], "values"), model), slow_importance.regression(plain, tokens())
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_embedding_tied_to_the_output_layer(sparse):
    torch.manual_seed(0)
    table = nn.Embedding(6, 4, sparse=sparse)
    model = Function(lambda self, t: F.linear(self.table(t).tanh().mean(1), self.table.weight), table=table).double()
    twin = Function(model.function, table=nn.Embedding(6, 4).double())
    twin.load_state_dict(model.state_dict())
    close(values(regression().estimate(model, [tokens()], "values"), model), slow_importance.regression(twin, tokens()))


def test_tied_modules_are_summed_before_squaring():
    torch.manual_seed(0)
    table, out = nn.Embedding(6, 4), nn.Linear(4, 6)
    out.weight = table.weight
    model = Function(lambda self, t: self.out(self.table(t).tanh().mean(1)), table=table, out=out).double()
    close(
        values(regression().estimate(model, [tokens()], "values"), model), slow_importance.regression(model, tokens())
    )


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


def test_folded_norms_are_priced_where_fallbacks_are_needed():
    model = norm_net(affine=True)
    apart = Function(lambda self, x: self.net[1:](self.net[0](x).repeat(1, 1, 1, 1)), net=model)
    grown = Function(lambda self, x: self.net[2](self.pool(self.net[1](torch.cat([self.net[0](x)] * 2)))), net=model)
    grown.pool = Function(lambda self, y: (y[: len(y) // 2] + 2 * y[len(y) // 2 :]).tanh())
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    for wrapped in (apart, grown):
        twin = Function(wrapped.function, net=nn.Sequential(model[0], Affine(model[1]), model[2]))
        twin.pool = grown.pool
        expected = slow_importance.regression(twin, x)
        swap = {"net.1.s": "net.1.weight", "net.1.t": "net.1.bias"}
        expected = {swap.get(name, name): value for name, value in expected.items()}
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
    t = tokens(3, 5)
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
