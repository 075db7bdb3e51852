"""Sums of what goes into a layer and of the gradients that come back to its output: the factors of its importance.

The gradient of a layer's matrix under one signal is a sum over the positions p that use it: rows of the batch, pixels,
steps of a sequence, and all calls of the layer. With the input x_p (a patch for convolutions) and the gradient g_p at
the output, and if both were independent of each other and g_p of other positions,

    E sum_p (g_p x_p^T) (x) (g_p x_p^T)  =  (number of positions) G (x) A,    A = E[x x^T],  G = E[g g^T].

Only positions with a gradient count: what is ignored or padded has no part in the importance, and none in A.

Source: Martens and Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature", section 3;
Grosse and Martens 2016, "A Kronecker-factored approximate Fisher matrix for convolution layers", section 3 (there A is
a sum over positions; how scale is shared by both factors makes no difference here).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import Doubles
from waterfill.importance.shifted_products import ShiftedAxis
from waterfill.importance.squares import single
from waterfill.models.placement import name_of
from waterfill.models.uses import Convolution, Dense, Tokens, Use
from waterfill.records import Layout

CHUNK_BYTES = 2**25
SHIFTED_BYTES = 2**28
"""Most memory for the inputs that are written out at once, and for those that products of shifts are taken of."""

ENOUGH_POSITIONS = 512
"""Positions for each input of a layer that its factor is the mean over, where there are many more.

A feedback by a factor that is a mean over N of many positions costs `n / 2 N log2 e` bits per weight more than by the
mean over all, for n inputs; so .0014 bit. Measured on three layers of ResNet-20 for N from 7 n to 1,800 n.
"""

SHIFTED_FROM = 512
LEAST_ALIVE = 0.9
"""Products of the inputs of a convolution are taken by shifts from so many inputs on, where nearly all places have a
gradient: then all of them count. Else the patches are written out, and only places with a gradient count."""

LEAST_THINNED = 0.75
"""Where a larger share of the positions is wanted, all are taken."""

SINGLE_FROM = 1024
"""Sums of products of more inputs than these are kept in single precision."""

BLOCK = 192
"""Rows of products at a time: those below the blocks of the diagonal are not computed."""

UNKNOWN = "how the model uses it is not known"


@dataclass(frozen=True, eq=False)
class Factors:
    """Sums over the positions that use one tensor, on its device.

    Attributes:
        inputs: of `x x^T`, [groups, in, in], float32 where there are many; or float64 [groups, in] of its diagonal.
        outputs: of `g g^T` over all signals, float64 [groups, out, out]; None where its diagonal is enough, for that is
            taken from the exact importance.
        positions: how many, float64 [groups].
        turned: whether the layer reads the tensor's normal form with rows and columns exchanged.
        reason: why a factor is coarser than it was asked for.
    """

    inputs: Tensor
    outputs: Tensor | None
    positions: Tensor
    turned: bool = False
    reason: str = ""

    def merge(self, other: Factors, *, reuse: bool = False) -> Factors:
        """Add the sums of other positions.

        Args:
            other: those.
            reuse: whether the others are of no use after that, so that their memory may be taken.

        Raises:
            UsageError: they are of another kind.
        """
        mine, its = ((f.inputs.shape, f.outputs is not None, f.turned) for f in (self, other))
        if mine != its:
            raise UsageError(
                f"Factors {mine} cannot be merged with {its}; expected the same shapes. Merge states of the same model "
                "and importance."
            )
        outputs = _sum([found for found in (self.outputs, other.outputs) if found is not None])
        inputs = other.inputs.add_(self.inputs) if reuse else self.inputs + other.inputs
        positions = self.positions + other.positions
        return Factors(inputs, outputs, positions, self.turned, max(self.reason, other.reason))

    def on_host(self) -> Factors:
        """The same sums on the CPU."""
        outputs = None if self.outputs is None else self.outputs.cpu()
        return Factors(self.inputs.cpu(), outputs, self.positions.cpu(), self.turned, self.reason)

    def form(self, totals: Doubles, standard_error: float = 0.0) -> KroneckerForm:
        """Make the form whose diagonal has the row totals of the exact one.

        Independence of positions is far from true: gradients of neighbours agree or cancel, so that the number of
        positions times `G (x) A` may be off by any factor, another one for every output. The exact diagonal is known
        from the same passes, and G is scaled from both sides so that each row of the product has its total:
        `G' = S G S` with `G'_oo tr(A) = sum_i I_oi`.

        Args:
            totals: those of the matrix as the layer reads it, [groups * out].
            standard_error: of these, relative.
        """
        groups = len(self.inputs)
        inputs = self.inputs / self.positions.clamp_min(1).reshape(-1, *(1,) * (self.inputs.ndim - 1))
        if inputs.ndim == 3:
            _make_symmetric(inputs)
        traces = inputs.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64)
        of_groups = torch.from_numpy(totals).to(traces.device).reshape(groups, -1)
        outputs = torch.where(traces[:, None] > 0, of_groups / traces[:, None], 0.0)
        if self.outputs is not None:
            outputs = _with_diagonal(self.outputs, outputs)
        columns, rows = (outputs, inputs) if self.turned else (inputs, outputs)
        positions = math.inf if self.turned else float(self.positions.mean())
        if self.turned:
            rows = rows.double()
        factors = _joined(rows).cpu().numpy(), columns.cpu().numpy()
        return KroneckerForm(*factors, self.reason, positions, standard_error, name_of(inputs))


def expected(exact: Doubles, counts: NDArray[np.float64]) -> Doubles:
    """The importance of a table of tokens, with what those that were not seen are expected to come to.

    What a text holds of tokens that were never seen before is about what those make up that were seen once: so all
    unseen ones together get the importance that these have, feature by feature, and none of them more than one of
    these. Where none came once, half an average token is taken for it.

    Args:
        exact: the exact diagonal [features, tokens].
        counts: how often each token came [tokens].

    Source: Good 1953, "The population frequencies of species and the estimation of population parameters".
    """
    unseen, once = counts == 0, counts == 1
    if not unseen.any() or unseen.all():
        return exact
    mass = exact[:, once].sum(1) if once.any() else exact.sum(1) / (2 * counts.sum())
    return np.where(unseen, (mass / max(unseen.sum(), once.sum()))[:, None], exact)


def _make_symmetric(matrices: Tensor) -> None:
    """Take the means of matrices [groups, n, n] and their transposes, in place."""
    for start in range(0, matrices.shape[1], BLOCK):
        rows = matrices[:, start : start + BLOCK, start:]
        columns = matrices[:, start:, start : start + BLOCK]
        mean = (rows + columns.transpose(1, 2)) / 2
        rows.copy_(mean)
        columns.copy_(mean.transpose(1, 2))


def _with_diagonal(matrices: Tensor, wanted: Tensor) -> Tensor:
    """Scale matrices [groups, n, n] from both sides until they have a diagonal [groups, n]."""
    found = matrices.diagonal(dim1=1, dim2=2)
    scales = torch.where(found > 0, wanted / found, 0.0).sqrt()
    scaled = scales[:, :, None] * matrices * scales[:, None, :]
    return torch.diagonal_scatter(scaled, wanted, dim1=1, dim2=2)


def _sum(found: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(list(found)).sum(0) if found else None


def _joined(blocks: Tensor) -> Tensor:
    """Blocks [groups, n, n] on the diagonal of one matrix, or vectors [groups, n] as one vector."""
    if blocks.ndim == 2:
        return blocks.flatten()
    groups, n, _ = blocks.shape
    whole = blocks.new_zeros(groups, n, groups, n)
    every = torch.arange(groups)
    whole[every, :, every, :] = blocks
    return whole.reshape(groups * n, groups * n)


class Gatherer:
    """Gathers the factors of all matrices in one pass: gradients as they come, inputs at the end.

    Args:
        layouts: of all learned tensors.
        full: whether G is a matrix.
        largest: most rows of a factor that is a matrix, see `kronecker`.
        share: of all data, what is gathered here.
        generator: source of the choice of positions, on the CPU.

    Attributes:
        reasons: why matrices have no factors, by name.
    """

    def __init__(
        self, layouts: Mapping[str, Layout], full: bool, largest: int, share: float, generator: torch.Generator
    ) -> None:
        self.reasons: dict[str, str] = {}
        self._layouts = layouts
        self._full = full
        self._largest = largest
        self._share = share
        self._generator = generator
        self._uses: dict[str, Sequence[Use]] = {}
        self._outputs: dict[str, Tensor | None] = {}
        self._powers: dict[str, list[Tensor]] = {}

    def see(self, name: str, uses: Sequence[Use], gradients: Sequence[Sequence[Tensor]]) -> None:
        """Take in the gradients of some signals; arguments as `square_sum` has them."""
        if not self._has_factors(name, uses):
            return
        found = [_at_output(use, signals, self._is_full(uses[0])) for use, signals in zip(uses, gradients, strict=True)]
        grams = [gram for gram, _ in found] + [self._outputs.get(name)]
        outputs = _sum([gram for gram in grams if gram is not None])
        powers = [power for _, power in found]
        if name in self._uses:
            powers = [one + more for one, more in zip(self._powers[name], powers, strict=True)]
        self._uses[name], self._outputs[name], self._powers[name] = uses, outputs, powers

    def takes_rows(self, name: str, uses: Sequence[Use]) -> bool:
        """Whether the totals of rows are all that is needed of the exact importance of a tensor."""
        return self._has_factors(name, uses) and not isinstance(uses[0].view, Tokens)

    def _has_factors(self, name: str, uses: Sequence[Use]) -> bool:
        layout = self._layouts[name]
        if len(layout.shape) < 2 or name in self.reasons:
            return False
        reason = _why_not(layout, uses, self._largest)
        if reason:
            self.reasons[name] = reason
        return not reason

    def factors(self) -> dict[str, Factors]:
        """Factors by name."""
        return {name: self._factors(name) for name in self._uses}

    def _factors(self, name: str) -> Factors:
        uses = self._uses[name]
        alive = [power > 0 for power in self._powers[name]]
        there = sum(counts.shape[0] * counts.shape[2] for counts in alive)
        kept = ENOUGH_POSITIONS * uses[0].view.sizes[2] * self._share / max(1, there)
        inputs, positions = _at_inputs(uses, alive, kept if kept < LEAST_THINNED else 1.0, self._generator)
        missed = self._full and not self._is_full(uses[0])
        reason = f"a full matrix over its {uses[0].view.sizes[1]} outputs would be too large" if missed else ""
        turned = uses[0].view.layout != self._layouts[name]
        outputs = self._outputs[name]
        return Factors(inputs, outputs, positions, turned, reason)

    def _is_full(self, use: Use) -> bool:
        groups, out, _ = use.view.sizes
        return self._full and groups * out**2 <= self._largest**2


def _why_not(layout: Layout, uses: Sequence[Use], largest: int) -> str:
    """Why a matrix has no factors; empty where it has."""
    if not uses:
        return UNKNOWN
    first = uses[0].view
    if any(use.view.layout != first.layout or use.view.sizes != first.sizes for use in uses):
        return "layers read it in different ways"
    tokens = [isinstance(use.view, Tokens) for use in uses]
    if not all(tokens) and not all(isinstance(use.view, Dense | Convolution) for use in uses):
        return "it is not the matrix of a layer"
    if first.layout != layout and len(layout.shape) > 2:
        return "the layer reads its axes in another order"
    groups, _, inputs = first.sizes
    if not all(tokens) and groups * inputs**2 > largest**2:
        return f"a matrix over its {inputs} inputs would be too large"
    return ""


def _at_output(use: Use, signals: Sequence[Tensor], full: bool) -> tuple[Tensor | None, Tensor]:
    """Sums of `g g^T` over signals and positions, and of `|g|^2` over signals and outputs.

    Args:
        use: the use.
        signals: gradients at its output.
        full: whether the first is wanted.

    Returns:
        Float64 [groups, out, out] or None, and [rows, groups, places].
    """
    g = _gradients(use, signals[0])
    total = _gram(g) if full else None
    squares = g.square()
    for signal in signals[1:]:
        g = _gradients(use, signal)
        squares.addcmul_(g, g)
        total = None if total is None else total + _gram(g)
    return None if total is None else total.double(), squares.sum(2)


def _gradients(use: Use, signal: Tensor) -> Tensor:
    """The gradient at the output of a use, [rows, groups, outputs, places]."""
    return use.view.gradients(single(signal.reshape(use.rows, *signal.shape[use.lead :])))


def _at_inputs(
    uses: Sequence[Use], alive: Sequence[Tensor], kept: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sum of `x x^T` over positions of all uses, and how many they are.

    Args:
        uses: of one tensor.
        alive: which positions count, [rows, groups, places] each.
        kept: share of the positions that is taken, by chance.
        generator: source of the choice.

    Returns:
        [groups, in, in], or [groups, in] for tokens; and float64 [groups].
    """
    total: Tensor | None = None
    positions = torch.zeros(alive[0].shape[1], dtype=torch.float64, device=alive[0].device)
    for use, counts in zip(uses, alive, strict=True):
        assert use.x is not None
        x, pixels, here = use.x, None, counts
        if isinstance(use.view, Tokens):
            found = torch.zeros(use.view.sizes[2], dtype=torch.float64, device=here.device)
            found = found.index_add_(0, x, here.flatten().double())[None]
        elif (shifted := _shifted_axis(use, here, kept)) is not None:
            here = torch.ones_like(here)
            found = _at_shifts(shifted, x, here)
        else:
            if kept < 1 and here.shape[2] > 1:
                pixels = _some(here.shape[2], kept, generator)
                here = here[:, :, pixels]
            elif kept < 1:
                rows = _some(here.shape[0], kept, generator)
                x, here = x[rows], here[rows]
            found = _at_input(use, x, here, pixels)
        positions += here.sum((0, 2), dtype=torch.float64)
        total = found if total is None else total.add_(found)
    assert total is not None
    return total, positions


def _shifted_axis(use: Use, alive: Tensor, kept: float) -> ShiftedAxis | None:
    """The axis along which products are shifted, where that is less work than to write the patches out."""
    if not isinstance(use.view, Convolution) or use.x is None or use.view.sizes[2] < SHIFTED_FROM:
        return None
    found = ShiftedAxis.of(use.view)
    rows, _, places = alive.shape
    written_out = kept * rows * places * use.view.sizes[2] ** 2 * (1 if use.view.sizes[2] <= BLOCK else 0.6)
    if found is None or found.work(use.x[:1].shape, rows, places) >= written_out:
        return None
    return found if float(alive.float().mean()) >= LEAST_ALIVE else None


def _at_shifts(axis: ShiftedAxis, rows: Tensor, alive: Tensor) -> Tensor:
    """Sum of `x x^T` over all places of a convolution, [groups, in, in]."""
    inputs = axis.view.sizes[2]
    row_bytes = alive[:1].numel() * inputs // axis.taps * single(rows[:0]).element_size()
    parts = torch.split(rows, max(1, SHIFTED_BYTES // max(1, row_bytes)))
    total = axis.products(single(parts[0])).to(_precision(inputs, rows))
    for x in parts[1:]:
        total += axis.products(single(x))
    return total


def _precision(inputs: int, x: Tensor) -> torch.dtype:
    """In which sums of products are kept."""
    return torch.float32 if inputs > SINGLE_FROM and single(x[:0]).dtype == torch.float32 else torch.float64


def _some(count: int, share: float, generator: torch.Generator) -> Tensor:
    """A share of the numbers below a count, drawn without repetition, in order."""
    return torch.randperm(count, generator=generator)[: math.ceil(count * share)].sort().values


def _at_input(use: Use, rows: Tensor, alive: Tensor, pixels: Tensor | None) -> Tensor:
    """Sum of `x x^T` over the positions [rows, groups, places] that are alive, [groups, in, in].

    Args:
        use: whose inputs they are.
        rows: of its input.
        alive: which positions count.
        pixels: which places of a convolution they are; None for all.
    """
    groups, _, inputs = use.view.sizes
    total = torch.zeros(groups, inputs, inputs, dtype=_precision(inputs, rows), device=alive.device)
    row_bytes = alive[:1].numel() * inputs * single(rows[:0]).element_size()
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    for x, counts in zip(torch.split(rows, step), torch.split(alive, step), strict=True):
        view = use.view
        written_out = view.inputs(single(x), pixels)
        if not bool(counts.all()):
            written_out = written_out.masked_fill(~counts[:, :, None, :], 0)
        total += _gram(written_out)
    return total


def _gram(t: Tensor) -> Tensor:
    """Sum over rows and places of the products of all features: [rows, groups, features, places] to squares."""
    rows, groups, features, places = t.shape
    if groups == 1 and features <= min(places, BLOCK):
        return torch.addbmm(t.new_zeros(features, features), t[:, 0], t[:, 0].transpose(1, 2))[None]
    flat = t.permute(1, 2, 0, 3).reshape(groups, features, rows * places)
    if features <= BLOCK:
        return torch.bmm(flat, flat.transpose(1, 2))
    result = flat.new_empty(groups, features, features)
    for start in range(0, features, BLOCK):
        stop = start + BLOCK
        part = torch.bmm(flat[:, start:stop], flat[:, start:].transpose(1, 2))
        result[:, start:stop, start:] = part
        result[:, stop:, start:stop] = part[:, :, BLOCK:].transpose(1, 2)
    return result
