"""Small networks of every kind of layer, and what tests of importances do with them."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from waterfill.models import inventory

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


def CONV():
    return nn.Conv2d(2, 3, 2)


def time_first(attention, x):
    turned = x.transpose(0, 1)
    return attention(turned, turned, turned)[0].transpose(0, 1)


SLOWER = {"bilinear", "view of a parameter", "attention", "attention, time first", "transformer", "weight norm"}
"""Layers with tensors that no view describes."""

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
        lambda: Function(lambda self, x: self.a(x).mean(3) + self.a(x[:, :, 1:]).amax((2, 3))[:, :, None], a=CONV()),
        (2, 4, 5),
    ),
    "attention": (
        lambda: Function(lambda self, x: self.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, batch_first=True)),
        (3, 4),
    ),
    "attention, time first": (
        lambda: Function(lambda self, x: time_first(self.a, x), a=nn.MultiheadAttention(4, 2)),
        (3, 4),
    ),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (3, 4)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 5)), (4,)),
    "in place": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2)), (2, 4, 4)),
    "no grad inside": (lambda: Function(frozen_forward, a=nn.Linear(4, 5)), (4,)),
}  # fmt: skip


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


def labels(x, classes=OUT):
    return torch.randint(0, classes, (len(x),), generator=torch.Generator().manual_seed(3))


def native(forms, model, part):
    """A part of every form as tensors of the shape of the parameters."""
    layouts = {name: weight.layout for name, weight in inventory(model).weights.items()}
    return {n: torch.from_numpy(layouts[n].from_matrix(getattr(form, part))).double() for n, form in forms.items()}


def deviations(forms, model, expected):
    """By name, how many standard errors every entry is off; rounding does not count."""
    found, errors = native(forms, model, "values"), native(forms, model, "standard_errors")
    assert found.keys() == expected.keys()
    return {
        name: ((found[name] - value).abs() - 1e-5 * value.abs().max() - 1e-9).clamp_min(0)
        / errors[name].clamp_min(1e-30)
        for name, value in expected.items()
    }


def check(forms, model, expected, most=4.0):
    for name, off in deviations(forms, model, expected).items():
        assert float(off.max()) < most, f"{name}: {float(off.max()):.2f} standard errors"


def mean(by_name):
    return {name: each.mean(0) for name, each in by_name.items()}


def net():
    """A classifier with a norm; the same weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5)).eval()


def batches():
    """Inputs with the labels that `net` gives them."""
    torch.manual_seed(1)
    return [(x, net()(x).argmax(1)) for x in torch.randn(3, 32, 16)]
