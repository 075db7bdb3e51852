"""Forms of the tensors of one piece of a model, from the gradients at its output, without the rest of the model.

A piece is a transformer block, or what lies before the first or behind the last one. Signals u that stand for the
importance at the output of the model (Eq. 6 of the paper for logits, Eq. 5 for values) have come back to the output of
the piece; one more step gives the gradients at every product in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from waterfill.compression.gram_panels import gram_panels, take_gram
from waterfill.importance.exact_sum import ExactSum
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.factors import expected
from waterfill.importance.forms import DiagonalForm, Doubles
from waterfill.importance.kronecker import LARGEST
from waterfill.importance.squares import square_sum
from waterfill.models.capture import Tape, Variables
from waterfill.models.placement import name_of
from waterfill.models.uses import Dense, Tokens, Use
from waterfill.protocols import QuadraticForm
from waterfill.records import Layout

ROWS = 1 << 25
"""Products of a sample's gradients that are in memory at once."""

UNKNOWN = "how the model uses it is not known: its importance is that of whole batches"
TIED = "layers read it in different ways"
UNUSED = "nothing of the calibration data reaches it"


@dataclass(frozen=True, eq=False)
class OutputGradient:
    """Gradient at the output of a piece in one batch.

    Attributes:
        signal: of the shape of the output.
        count: of how many predictions: positions with logits, or samples with values.
    """

    signal: Tensor
    count: float

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.signal)

    def has_all(self, rows: int) -> bool:
        """Whether so many rows are of whole samples; positions of several that are routed to an expert are not."""
        positions = math.prod(self.signal.shape[:-1])
        return self.samples == 1 or rows % (positions if self.signal.ndim > 2 else self.samples) == 0


def add_batch(
    sums: ExactSum, parameters: Mapping[str, Tensor], run: Callable[[], Tensor], back: OutputGradient, at: Tensor
) -> Tensor:
    """Take in one batch, and send its gradient back.

    Args:
        sums: what is added to.
        parameters: of the part, by name.
        run: computes the output of the part.
        back: what comes back to that output.
        at: the input of the part; it requires gradients.

    Returns:
        The gradient at the input.
    """
    return _add(sums, parameters, run, back, [at])[0]


def add_last_batch(
    sums: ExactSum, parameters: Mapping[str, Tensor], run: Callable[[], Tensor], back: OutputGradient
) -> None:
    """Take in one batch of a part whose input has no gradient; arguments as of `add_batch`."""
    _add(sums, parameters, run, back, [])


def _add(
    sums: ExactSum,
    parameters: Mapping[str, Tensor],
    run: Callable[[], Tensor],
    back: OutputGradient,
    inputs: list[Tensor],
) -> tuple[Tensor, ...]:
    """Take in one batch; gives the gradients at the inputs."""
    layouts = {name: Layout(tuple(tensor.shape)) for name, tensor in parameters.items()}
    for tensor in parameters.values():
        tensor.requires_grad_()
    with torch.enable_grad(), Tape(Variables(parameters, layouts, {})) as tape:
        output = run()
    sites = list(tape.sites)
    unknown = [name for name in parameters if name in tape.missed]
    wanted = [*sites, *(parameters[name] for name in unknown), *inputs]
    found = torch.autograd.grad(output, wanted, back.signal.to(output), allow_unused=True)
    for tensor in parameters.values():
        tensor.requires_grad_(False)
    values: dict[str, Tensor] = {}
    for name, gradient in zip(unknown, found[len(sites) :], strict=False):
        if gradient is not None:
            values |= {f"squares:{name}": gradient.square(), f"unknown:{name}": torch.ones(1)}
    for name, uses in tape.uses.items():
        reached = [(use, g) for use in uses if (g := found[use.site]) is not None]
        if reached and name not in tape.missed:
            values |= _statistics(name, [use for use, _ in reached], [g for _, g in reached], back)
    values["count:"] = torch.tensor([back.count])
    sums.add(values)
    return found[len(found) - len(inputs) :]


def _statistics(name: str, uses: list[Use], gradients: list[Tensor], back: OutputGradient) -> dict[str, Tensor]:
    """Terms that one tensor adds to the sums."""
    if all(isinstance(use.view, Dense) and use.view.sizes[2] <= LARGEST for use in uses):
        parts = zip(uses, gradients, strict=True)
        return _sum([_products(name, use, g, back.samples if back.has_all(use.rows) else use.rows) for use, g in parts])
    whole = back.samples if all(map(back.has_all, (use.rows for use in uses))) else 1
    found = {f"squares:{name}": square_sum(uses, [[g] for g in gradients], whole, "major")}
    if all(isinstance(use.view, Tokens) for use in uses):
        counts = [_tokens(use, g) for use, g in zip(uses, gradients, strict=True)]
        found[f"tokens:{name}"] = torch.stack(counts).sum(0).double()
    return found


def _tokens(use: Use, gradient: Tensor) -> Tensor:
    """How often each token came where it has a part in the output; padding has none."""
    assert use.x is not None
    alive = gradient.reshape(use.rows, -1).ne(0).any(1)
    return torch.bincount(use.x.reshape(-1)[alive], minlength=use.view.layout.shape[0])


def _products(name: str, use: Use, gradient: Tensor, samples: int) -> dict[str, Tensor]:
    """Of a product `y = x W^T`: the second moments of x, and of every output the squared gradients of its row."""
    assert use.x is not None
    g, x = gradient.reshape(use.rows, -1).float(), use.x.float()
    alive = g.ne(0).any(1)
    if not bool(alive.all()):
        g, x = g * alive[:, None], x * alive[:, None]
    turned = "turned" if use.view.layout.transposed else "plain"
    return {
        **gram_panels(name, x),
        f"{turned}:{name}": _row_squares(g, x, samples),
        f"positions:{name}": alive.sum().double()[None],
    }


def _row_squares(g: Tensor, x: Tensor, samples: int) -> Tensor:
    """`sum_n sum_i (sum_p g_npo x_npi)^2` over samples n, inputs i and their positions p, [out].

    With `K_n = x_n x_n^T` that is `sum_n g_no^T K_n g_no`: cheaper where a sample has fewer positions than either side
    has rows or columns.
    """
    if samples == len(g):
        return g.square().T.double() @ x.square().sum(1).double()
    g, x = g.reshape(samples, -1, g.shape[1]), x.reshape(samples, -1, x.shape[1])
    positions, inputs, out = x.shape[1], x.shape[2], g.shape[2]
    of_sample = _by_positions if positions * (inputs + out) < inputs * out else _by_inputs
    return torch.stack([of_sample(one, other).double() for one, other in zip(g, x, strict=True)]).sum(0)


def _by_positions(g: Tensor, x: Tensor) -> Tensor:
    """`_row_squares` of a sample, by products of positions."""
    return torch.einsum("po,po->o", x @ x.T @ g, g).clamp(min=0)


def _by_inputs(g: Tensor, x: Tensor) -> Tensor:
    """`_row_squares` of a sample, by its gradients, some rows at a time."""
    step = max(1, ROWS // x.shape[1])
    return torch.cat([(part.T @ x).square().sum(1) for part in torch.split(g, step, 1)])


def _sum(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([part[name] for part in parts]).sum(0) if len(parts) > 1 else parts[0][name]
        for name in parts[0]
    }


# Forms


@dataclass(frozen=True, eq=False)
class ParameterStatistics:
    """Form and layout of a tensor of a piece, from the sums.

    Attributes:
        form: what errors cost.
        layout: how the model reads the tensor as a matrix.
        rows: of a matrix with cross terms, the factor over its rows for a factor over columns of the trace 1, [out].
        reason: why the form is coarser than it could be.
    """

    form: QuadraticForm
    layout: Layout
    rows: Doubles | None = None
    reason: str = ""


def parameter_statistics(
    totals: MutableMapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], factor: float, unit: str
) -> dict[str, ParameterStatistics]:
    """The forms of all tensors of a part that some batch reached.

    Args:
        totals: from `add_batch`; large ones are taken out of them.
        shapes: of the tensors.
        factor: of the forms, see `QuadraticForm`.
        unit: likewise.
    """
    count = float(totals["count:"])
    of = _Reader(totals, count, factor, unit)
    found = {name: of.statistics(name, shape) for name, shape in shapes.items()}
    return {name: each for name, each in found.items() if each is not None}


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads forms out of sums."""

    totals: MutableMapping[str, Tensor]
    count: float
    factor: float
    unit: str

    def statistics(self, name: str, shape: tuple[int, ...]) -> ParameterStatistics | None:
        """Form and layout of one tensor; None where the sums say nothing."""
        squares, gram = self.totals.get(f"squares:{name}"), take_gram(name, self.totals)
        if gram is None or not float(gram.trace()) > 0:
            return None if squares is None else self._diagonal(name, squares, shape)
        turned = f"turned:{name}" in self.totals
        row_squares = self.totals[f"turned:{name}" if turned else f"plain:{name}"]
        columns, rows = gram.cpu().numpy(), row_squares.cpu().numpy() / self.count
        columns /= float(gram.trace())
        if squares is not None and not turned:  # a table of tokens that is the last layer, too: errors are looked up
            exact = rows[:, None] * np.diagonal(columns) + squares.cpu().numpy() / self.count
            return ParameterStatistics(self._form(exact), Layout(shape), reason=TIED)
        positions = float(self.totals[f"positions:{name}"])
        unit: dict[str, Any] = {"factor": self.factor, "unit": self.unit}
        form = KroneckerForm(rows, columns[None], "", positions, device=name_of(gram), **unit)
        return ParameterStatistics(form.shrunk(), Layout(shape, transposed=turned), rows)

    def _diagonal(self, name: str, squares: Tensor, shape: tuple[int, ...]) -> ParameterStatistics:
        layout = Layout(shape)
        exact = (squares / self.count).cpu().numpy().reshape(shape)
        tokens = self.totals.get(f"tokens:{name}")
        if tokens is not None:
            exact = expected(np.ascontiguousarray(exact.T), tokens.cpu().numpy()).T
        reason = UNKNOWN if f"unknown:{name}" in self.totals else ""
        return ParameterStatistics(self._form(layout.to_matrix(exact)), layout, reason=reason)

    def _form(self, values: Doubles) -> DiagonalForm:
        return DiagonalForm(values.astype(np.float32), factor=self.factor, unit=self.unit)
