"""Importances the slow, obvious way: one sample, one output, one backward pass at a time."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def jacobians(model, x):
    """For every sample, the derivative of all outputs by every parameter: a list of dicts of [outputs, *shape]."""
    model = model.eval()
    names = dict(model.named_parameters())
    samples = []
    for one in x.split(1):
        out = model(one).reshape(-1)
        rows = [torch.autograd.grad(o, list(names.values()), retain_graph=True, allow_unused=True) for o in out]
        stacked = {
            name: torch.stack([torch.zeros_like(p) if row[i] is None else row[i] for row in rows])
            for i, (name, p) in enumerate(names.items())
        }
        samples.append((out.detach(), stacked))
    return samples


def regression(model, x):
    """Eq. 5: mean over samples of the sum over outputs of squared derivatives."""
    samples = [{name: d.square().sum(0) for name, d in by_name.items()} for _, by_name in jacobians(model, x)]
    return {name: torch.stack([s[name] for s in samples]).mean(0) for name in samples[0]}


def kl(model, x, temperature=1.0):
    """Eq. 6: mean over samples of sum_c f_c (d log f_c / dw)^2, f the softmax of the outputs at a temperature."""
    scaled = LogSoftmax(model, temperature)
    samples = [
        {name: torch.einsum("c,c...->...", log_f.exp(), d.square()) for name, d in by_name.items()}
        for log_f, by_name in jacobians(scaled, x)
    ]
    return {name.removeprefix("model."): torch.stack([s[name] for s in samples]).mean(0) for name in samples[0]}


class LogSoftmax(nn.Module):
    def __init__(self, model, temperature):
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, x):
        return torch.log_softmax(self.model(x) / self.temperature, -1)


def loss(model, x, target, temperature=1.0):
    """Cross-entropy of one sample for integer targets, squared error for others."""
    output = model(x)
    if target.dtype == torch.int64:
        return F.cross_entropy(output / temperature, target, reduction="sum")
    return (output - target).square().sum()


def slopes(model, x, target, temperature=1.0):
    """For every parameter the first derivative of every sample's loss, [samples, *shape]."""
    model = model.eval()
    parameters = dict(model.named_parameters())
    rows = []
    for one, answer in zip(x.split(1), target.split(1), strict=True):
        found = torch.autograd.grad(loss(model, one, answer, temperature), list(parameters.values()))
        rows.append(found)
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(parameters)}


def curvatures(model, x, target, temperature=1.0):
    """For every parameter the diagonal of the dense second derivative of every sample's loss, [samples, *shape]."""
    model = model.eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def of_vector(vector, one, answer):
        parts = vector.split(sizes)
        named = {n: part.reshape(p.shape) for (n, p), part in zip(parameters.items(), parts, strict=True)}
        return loss(lambda x: functional_call(model, named, x), one, answer, temperature)

    vector = torch.cat([p.reshape(-1) for p in parameters.values()])
    rows = []
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        for one, answer in zip(x.split(1), target.split(1), strict=True):
            rows.append(torch.func.jacrev(torch.func.grad(of_vector))(vector, one, answer).diagonal().split(sizes))
    return {
        name: torch.stack([row[i].reshape(p.shape) for row in rows]) for i, (name, p) in enumerate(parameters.items())
    }
