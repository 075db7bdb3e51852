"""Importances the slow, obvious way: one sample, one output, one backward pass at a time."""

import torch
from torch import nn


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
