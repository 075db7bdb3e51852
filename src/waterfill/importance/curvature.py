"""Second derivatives of a loss by every weight: exact where nothing is curved, else unbiased from random draws.

Let the output of every layer (a site) be moved by an e. The loss of one sample has the second derivative

    d2L / de de' = J^T C J + R,   C = d2L / dz dz',   R = sum_c dL/dz_c d2z_c / de de'

with J the derivative of the model's outputs z. The first part (Gauss-Newton) is a sum of squares of signals, as for the
KL importance. The second is zero where z is piecewise linear in all the e together, as for ReLU, max-pool and norms in
evaluation mode at any depth, although the weights of such layers multiply each other. Elsewhere `E v (R v) = diag R`
with random signs v at all sites, and one exact product `R v`: a second backward pass, for all samples at once.

A layer `y = W x` is linear in its weights, so that their diagonal is the same form of x:

    d2L / dw_oi^2 = sum_k (sum_p u_k[o,p] x[i,p])^2 + E (sum_p v[o,p] x[i,p]) (sum_p (R v)[o,p] x[i,p])

with u_k the signals at the site. That fails only where x depends on W itself (recurrent layers, tied tables). Such
tensors, and those whose uses are not known, are moved themselves, sample by sample: their R is by the tensor.

Whether R is zero is not guessed from the kinds of layers. One product with a v of continuous distribution is zero with
probability 1 only if R is: that is asked for every few samples, and signs are drawn only where the answer is no.

Curvature propagation (Martens, Sutskever, Swersky 2012) draws at every nonlinear unit instead. Both have no noise for
piecewise linear networks; but it needs a factor of the second derivative of every function that a model may call, and
`R v` needs only autograd. The price: the variance of `v_i (R v)_i` is the sum of the squares of the whole row i of R,
over all layers, so that a deep curved network needs very many samples or draws, and would need fewer there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from waterfill.importance import functional
from waterfill.importance.backward import check_twice, gradients
from waterfill.importance.blocks import Block, blocks, written_out
from waterfill.importance.losses import Response
from waterfill.importance.plan import VMAP_ERRORS, Method
from waterfill.importance.signals import random_signs
from waterfill.models.batches import Inputs, num_samples, take
from waterfill.models.capture import Tape, Variables

AtSites: TypeAlias = Sequence[Tensor | None]
"""One value at every site; None where the output does not depend on it."""


@dataclass(frozen=True, eq=False)
class Sent:
    """What goes back from the outputs of some samples.

    Attributes:
        exact: signals whose squares add up to the Gauss-Newton part, [exact, *shape of the output].
        drawn: signals the square of each of which is that part in expectation; one of the two is empty.
        slope: derivative of the loss.
        draws: how many signs are drawn.
        generator: source of the signs.
    """

    exact: Tensor
    drawn: Tensor
    slope: Tensor
    draws: int
    generator: torch.Generator


def sent(response: Response, output: Tensor, draws: int, generator: torch.Generator) -> Sent:
    """Make what goes back.

    Args:
        response: how the loss responds to the outputs.
        output: the outputs.
        draws: how many signals and signs are drawn where something has to be.
        generator: source of what is drawn.
    """
    none = output.new_zeros(0, *output.shape)
    slope = response.gradient.to(output)
    if response.factors is not None:
        return Sent(torch.cat([none, *(u.to(output)[None] for u in response.factors())]), none, slope, draws, generator)
    drawn = torch.stack([response.factor(generator) for _ in range(draws)]).to(output)
    return Sent(none, drawn, slope, draws, generator)


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Derivatives of the loss by one tensor, as a part of the samples give them.

    Attributes:
        block: gradients under all signals: the exact ones, the drawn ones, the slope, all v, all `R v`.
        exact: how many of the first.
        drawn: how many of the second.
        pairs: how many v; 0 where R is zero.
    """

    block: Block
    exact: int
    drawn: int
    pairs: int

    def estimate(self) -> Estimate:
        """Put them together, unit by unit."""
        sizes = [self.exact, self.drawn, 1, self.pairs, self.pairs]
        exact, drawn, slope, v, turned = torch.split(self.block.gradients, sizes)
        known = exact.square().sum(0)
        draws = drawn.square() if self.drawn else v.new_zeros(v.shape)
        if self.pairs:
            draws = draws + v * turned
        if not len(draws):
            return Estimate(slope[0], known, torch.zeros_like(known))
        return Estimate(slope[0], known + draws.mean(0), draws.var(0) / len(draws))


@dataclass(frozen=True, eq=False)
class Estimate:
    """Derivatives of every sample's loss, [units, ...], see `Block`.

    Attributes:
        slope: the first one.
        curvature: the second one, mean of the draws.
        noise: the variance of that mean, estimated without bias.
    """

    slope: Tensor
    curvature: Tensor
    noise: Tensor


def by_uses(
    tape: Tape, methods: Mapping[str, Method], output: Tensor, samples: int, sent: Sent
) -> Iterator[tuple[str, Derivatives]]:
    """Derivatives by the tensors whose uses are known.

    Args:
        tape: the forward pass.
        methods: by name; others than orders of rows are left out.
        output: its output.
        samples: how many.
        sent: what goes back.
    """
    orders = {name: method for name, method in methods.items() if method == "major" or method == "minor"}
    if not orders:
        return
    at_sites, pairs = _at_sites(tape, output, sent)
    for name, order in orders.items():
        uses = [use for use in tape.uses.get(name, ()) if at_sites[0][use.site] is not None]
        if uses:
            found = [[at for signal in at_sites if (at := signal[use.site]) is not None] for use in uses]
            for block in blocks(uses, found, samples, order):
                yield name, Derivatives(block, len(sent.exact), len(sent.drawn), pairs)


def _at_sites(tape: Tape, output: Tensor, sent: Sent) -> tuple[list[AtSites], int]:
    """What is multiplied with the inputs of the layers, in the order of `Derivatives`; and the number of v."""
    squared: list[AtSites] = [gradients(output, tape.sites, u) for u in (*sent.exact, *sent.drawn)]
    slopes = gradients(output, tape.sites, sent.slope, differentiable=True)
    slope = [None if at is None else at.detach() for at in slopes]
    probe = [None if at is None else _uniform(at, sent.generator) for at in slope]
    if not any(bool(at.any()) for at in _turned(tape, slopes, probe) if at is not None):
        return [*squared, slope], 0
    signs = [[None if at is None else random_signs(at, sent.generator) for at in slope] for _ in range(sent.draws)]
    return [*squared, slope, *signs, *(_turned(tape, slopes, v) for v in signs)], sent.draws


def _turned(tape: Tape, slopes: AtSites, v: AtSites) -> AtSites:
    """`R v` at all sites."""
    zeros = [None if at is None else torch.zeros_like(at) for at in v]
    parts = [(slope * at).sum() for slope, at in zip(slopes, v, strict=True) if slope is not None and at is not None]
    total = torch.stack(parts).sum() if parts else torch.zeros(())
    if not total.requires_grad:
        return zeros
    check_twice(total)
    found = gradients(total, tape.sites, torch.ones_like(total))
    return [zero if at is None else at for at, zero in zip(found, zeros, strict=True)]


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(like.shape, generator=generator) - 1).to(like)


# Tensors that are moved themselves


def by_tensor(
    model: nn.Module, learned: Variables, names: Mapping[str, Method], inputs: Inputs, sent: Sent
) -> Iterator[tuple[str, Derivatives]]:
    """Derivatives by tensors of any kind, one after the other, sample by sample.

    Args:
        model: the network.
        learned: its learned tensors.
        names: the method for each; others than "vmap" and "loop" are left out.
        inputs: on the model's device.
        sent: what goes back.
    """
    signals = torch.cat([sent.exact, sent.drawn, sent.slope.unsqueeze(0)])
    for name, method in names.items():
        if method in ("vmap", "loop"):
            size = (len(signals) + 2 * sent.draws) * learned.tensors[name].nbytes
            step = max(1, functional.CHUNK_BYTES // max(1, size))
            for start in range(0, num_samples(inputs), step):
                part = take(inputs, start, start + step)
                found = _Moved(model, learned, name, part, method == "vmap")
                yield name, found.derivatives(signals[:, start : start + step], sent)


@dataclass(frozen=True, eq=False)
class _Moved:
    """One tensor and a few samples."""

    model: nn.Module
    learned: Variables
    name: str
    inputs: Inputs
    vectorised: bool

    def derivatives(self, signals: Tensor, sent: Sent) -> Derivatives:
        """Everything that goes into an estimate."""
        gradients = functional.vmap_gradients if self.vectorised else functional.loop_gradients
        found = gradients(self.model, self.learned, [self.name], self.inputs, signals)[self.name].transpose(0, 1)
        probe = _uniform(found[:1], sent.generator)
        pairs = sent.draws if bool(self.turned(signals[-1], probe).any()) else 0
        v = random_signs(found[:1].expand(pairs, *found.shape[1:]), sent.generator)
        turned = self.turned(signals[-1], v) if pairs else v
        return Derivatives(written_out(torch.cat([found, v, turned])), len(sent.exact), len(sent.drawn), pairs)

    def turned(self, signal: Tensor, v: Tensor) -> Tensor:
        """`R v`, [directions, samples, *shape of the tensor], one direction at a time: each keeps a whole graph."""
        if self.vectorised:
            try:
                each = [
                    functional.vmap_curvatures(self.model, self.learned, self.name, self.inputs, signal, one)
                    for one in torch.split(v, 1)
                ]
            except VMAP_ERRORS:
                pass
            else:
                return torch.cat(each)
        return functional.loop_curvatures(self.model, self.learned, self.name, self.inputs, signal, v)
