"""Factors of a layer's importance the slow, obvious way: unit weights show its inputs, one backward pass at a time."""

import numpy as np
import torch
from torch.func import functional_call


def kl_signals(temperature=1.0):
    """Square roots of Eq. 6: one scalar for every class."""

    def scalars(output):
        log_f = (output / temperature).log_softmax(-1).reshape(-1)
        return list(log_f.detach().exp().sqrt() * log_f)

    return scalars


def value_signals(output):
    """Square roots of Eq. 5: one scalar for every value."""
    return list(output.reshape(-1))


def patches(layer, x, layout, groups, axis):
    """What multiplies each column of the layer's matrix at each position: [groups, in, positions], by unit weights."""
    out, channels, taps = layout.axes
    bias = {} if getattr(layer, "bias", None) is None else {"bias": torch.zeros_like(layer.bias)}
    rows = []
    for group in range(groups):
        for column in range(channels * taps):
            unit = np.zeros((out, channels * taps))
            unit[group * (out // groups), column] = 1
            weights = {"weight": torch.from_numpy(layout.from_matrix(unit)), **bias}
            y = functional_call(layer, weights, x).movedim(axis, 0)
            rows.append(y[group * (out // groups)].reshape(-1))
    return torch.stack(rows).reshape(groups, channels * taps, -1).detach()


def calls_of(model, layers, x):
    """Run the model; give its output and all (layer, input, output) of the layers."""
    calls = []
    handles = [layer.register_forward_hook(lambda m, args, y: calls.append((m, args[0], y))) for layer in layers]
    output = model(x)
    for handle in handles:
        handle.remove()
    return output, calls


def factors(model, x, layers, layout, signals, groups=1, axis=1):
    """Means of `x x^T` and `g g^T` over the positions with a gradient: [groups, in, in] and [groups, out, out]."""
    inputs, outputs, positions = 0, 0, torch.zeros(groups)
    for one in x.split(1):
        output, calls = calls_of(model, layers, one)
        scalars = signals(output)
        for layer, x_in, y in calls:
            seen = patches(layer, x_in, layout, groups, axis)
            every = [torch.autograd.grad(s, y, retain_graph=True)[0].movedim(axis, 0) for s in scalars]
            g = torch.stack(every).reshape(len(scalars), groups, layout.axes[0] // groups, -1)
            alive = (g != 0).any(0).any(1)
            seen = seen * alive[:, None]
            inputs = inputs + torch.einsum("gip,gjp->gij", seen, seen)
            outputs = outputs + torch.einsum("sgop,sgqp->goq", g, g)
            positions += alive.sum(1)
    return (inputs / positions[:, None, None]).numpy(), (outputs / positions[:, None, None]).numpy()


def scaled(inputs, outputs, exact):
    """Scale rows and columns of G until every row of the product has the total of the exact diagonal [out, in]."""
    groups, out, _ = outputs.shape
    totals = np.asarray(exact, np.float64).reshape(groups, out, -1).sum(2)
    result = np.zeros_like(outputs)
    for group in range(groups):
        found = np.diagonal(outputs[group]) * np.trace(inputs[group])
        scales = np.sqrt(np.divide(totals[group], found, out=np.zeros(out), where=found > 0))
        for o, p in np.ndindex(out, out):
            result[group, o, p] = scales[o] * outputs[group, o, p] * scales[p]
    return result


def dense(form):
    """The form as a matrix over the flattened weights [out * in]."""
    groups, n = form.columns.shape[:2]
    out = len(form.rows)
    rows = np.diag(form.rows) if form.rows.ndim == 1 else form.rows
    whole = np.zeros((out, n, out, n))
    for o in range(out):
        for q in range(out):
            group = o * groups // out
            if group == q * groups // out:
                columns = form.columns[group]
                whole[o, :, q, :] = rows[o, q] * (np.diag(columns) if columns.ndim == 1 else columns)
    return whole.reshape(out * n, out * n)
