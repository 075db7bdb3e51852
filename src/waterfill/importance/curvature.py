"""Second derivatives of a loss by every weight: exact where nothing is curved, else unbiased from random draws.

Let the output of every layer (a site) be moved by an e. The loss of one sample has the second derivative

    d2L / de de' = J^T C J + R,   C = d2L / dz dz',   R = sum_c dL/dz_c d2z_c / de de'

with J the derivative of the model's outputs z. The first part (Gauss-Newton) is a sum of squares of signals, as for the
KL importance. The second is zero where z is piecewise linear in all the e together, as for ReLU, max-pool and norms in
evaluation mode at any depth, although the weights of such layers multiply each other. Elsewhere it is the sum of what
every curved function adds, and random signs give its diagonal without bias, in two ways:

- Elementwise functions y = f(x), such as tanh and GELU (`bends`): their part is `sum_k eps_k J_k J_k^T` over all their
  inputs, `eps = dL/dy f''(x)`, J_k the derivative of x_k. From all x at once, `sqrt|eps| v` and `sign(eps) sqrt|eps| v`
  go back (two backward passes for each draw), and `E s_i t_i` of what comes back is that diagonal. The variance of
  `s_i t_i` is at most twice the square of `sum_k |eps_k| J_ki^2`: only the weight's own influence is in it.
- Everything else, such as attention, layer norms and products of activations: `E v (R v) = diag R` with random signs v
  at all sites, and one exact product `R v`: a second backward pass, for all samples at once, through elementwise
  functions with constant slopes. The variance is the sum of the squares of the whole row of that R, over all layers: a
  deep network of such functions needs very many samples or draws.

A layer `y = W x` is linear in its weights, so that their diagonal is the same form of x:

    d2L / dw_oi^2 = sum_k (sum_p u_k[o,p] x[i,p])^2 + E (sum_p s[o,p] x[i,p]) (sum_p t[o,p] x[i,p])

with u_k the signals at the site, (s, t) the pairs there, and (v, R v) as further pairs. That fails only where x depends
on W itself (recurrent layers, tied tables). Such tensors, and those whose uses are not known, are moved themselves,
sample by sample: their R is by the tensor, and all of it is drawn by `R v`.

Whether a part is zero is not guessed from the kinds of layers: eps is looked at, and one product with a v of continuous
distribution is zero with probability 1 only if R is. That is asked for every few samples, and signs are drawn only
where the answer is no.

Source: Martens, Sutskever, Swersky 2012, "Estimating the Hessian by back-propagating curvature", section 3 (`s t`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from waterfill.distortion.losses import Response
from waterfill.distortion.probe_vectors import random_signs
from waterfill.importance import functional
from waterfill.importance.backward import check_twice, gradients
from waterfill.importance.bends import BendingTape, Roots, roots
from waterfill.importance.blocks import Block, blocks, written_out
from waterfill.importance.plan import VMAP_ERRORS, Method
from waterfill.models.batches import Inputs, num_samples, take
from waterfill.models.capture import Variables

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
        block: gradients under all signals: the exact ones, the drawn ones, the slope, all first of a pair, all second.
        exact: how many of the first.
        drawn: how many of the second.
        kinds: how many kinds of pairs there are: 0 where nothing is curved.
        draws: how many pairs of each kind.
    """

    block: Block
    exact: int
    drawn: int
    kinds: int
    draws: int

    def estimate(self) -> Estimate:
        """Put them together, unit by unit."""
        pairs = self.kinds * self.draws
        exact, drawn, slope, one, two = torch.split(self.block.gradients, [self.exact, self.drawn, 1, pairs, pairs])
        parts = [drawn.square()] if self.drawn else []
        parts += torch.split(one * two, self.draws) if pairs else ()
        return Estimate(slope[0], exact.square().sum(0), torch.stack(parts).sum(0) if parts else one)


@dataclass(frozen=True, eq=False)
class Estimate:
    """Derivatives of every sample's loss, [units, ...], see `Block`.

    Attributes:
        slope: the first one.
        known: the part of the second one that is exact.
        draws: draws of the other part, [draws, units, ...]; none where there is no other part.
    """

    slope: Tensor
    known: Tensor
    draws: Tensor

    @property
    def curvature(self) -> Tensor:
        """The second derivative, the mean of the draws."""
        return self.known + self.draws.mean(0) if len(self.draws) else self.known

    @property
    def noise(self) -> Tensor:
        """The variance of that mean, without bias."""
        return self.draws.var(0) / len(self.draws)

    @property
    def square(self) -> Tensor:
        """The square of the second derivative, without bias: the mean product of two different draws."""
        square = self.curvature.square()
        return square - self.noise if len(self.draws) else square

    @property
    def square_noise(self) -> Tensor:
        """The variance of that mean product: its square less the mean product of four different draws.

        With m the mean of n draws, N its variance and p_k the sums of the powers of their distances to m, that is
        `4 m^2 N + N^2 - 8 m p_3 / (n (n-1) (n-2)) - 3 (p_2^2 - 2 p_4) / (n (n-1) (n-2) (n-3))`, without bias. Below
        four draws it is `4 m^2 N`: right for two that are normal, too large for three and where tails are heavy.
        """
        n, mean, noise = len(self.draws), self.curvature.double(), self.noise.double()
        if n < 4:
            return 4 * mean.square() * noise
        away = self.draws.double() - self.draws.double().mean(0)
        triples = 2 * away.pow(3).sum(0) / (n * (n - 1) * (n - 2))
        fours = 3 * (away.square().sum(0).square() - 2 * away.pow(4).sum(0)) / (n * (n - 1) * (n - 2) * (n - 3))
        return 4 * mean.square() * noise + noise.square() - 4 * mean * triples - fours


def by_uses(
    tape: BendingTape, methods: Mapping[str, Method], output: Tensor, samples: int, sent: Sent
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
    at_sites, kinds = _at_sites(tape, output, sent)
    for name, order in orders.items():
        uses = [use for use in tape.uses.get(name, ()) if at_sites[0][use.site] is not None]
        if uses:
            found = [[at for signal in at_sites if (at := signal[use.site]) is not None] for use in uses]
            for block in blocks(uses, found, samples, order):
                yield name, Derivatives(block, len(sent.exact), len(sent.drawn), kinds, sent.draws)


def _at_sites(tape: BendingTape, output: Tensor, sent: Sent) -> tuple[list[AtSites], int]:
    """What is multiplied with the inputs of the layers, in the order of `Derivatives`; and the kinds of pairs."""
    squared: list[AtSites] = [gradients(output, tape.sites, u) for u in (*sent.exact, *sent.drawn)]
    outputs = [bend.y for bend in tape.bends]
    found = gradients(output, [*tape.sites, *outputs], sent.slope, differentiable=True)
    slopes, at_outputs = found[: len(tape.sites)], found[len(tape.sites) :]
    slope = [None if at is None else at.detach() for at in slopes]
    ones: list[AtSites] = []
    twos: list[AtSites] = []
    kinds = 0
    for pairs in (_sent_back(tape, roots(tape.bends, at_outputs), slope, sent), _products(tape, slopes, slope, sent)):
        if pairs:
            one, two = zip(*pairs, strict=True)
            ones, twos, kinds = [*ones, *one], [*twos, *two], kinds + 1
    return [*squared, slope, *ones, *twos], kinds


def _sent_back(tape: BendingTape, bent: Roots, slope: AtSites, sent: Sent) -> list[tuple[AtSites, AtSites]]:
    """For every draw the two signals from curved elementwise functions, at all sites; none where nothing is curved."""
    return [
        (_filled(gradients(bent.at, tape.sites, one), slope), _filled(gradients(bent.at, tape.sites, two), slope))
        for one, two in (bent.signals(sent.generator) for _ in range(sent.draws if bent.at else 0))
    ]


def _products(tape: BendingTape, slopes: AtSites, slope: AtSites, sent: Sent) -> list[tuple[AtSites, AtSites]]:
    """For every draw v and `R v` of everything else, at all sites; none where that R is zero."""
    probe = [None if at is None else _uniform(at, sent.generator) for at in slope]
    if not any(bool(at.any()) for at in _turned(tape, slopes, probe) if at is not None):
        return []
    signs = [[None if at is None else random_signs(at, sent.generator) for at in slope] for _ in range(sent.draws)]
    return [(v, _turned(tape, slopes, v)) for v in signs]


def _turned(tape: BendingTape, slopes: AtSites, v: AtSites) -> AtSites:
    """`R v` at all sites."""
    parts = [(slope * at).sum() for slope, at in zip(slopes, v, strict=True) if slope is not None and at is not None]
    total = torch.stack(parts).sum() if parts else torch.zeros(())
    if not total.requires_grad:
        return _filled([None] * len(v), v)
    check_twice(total)
    return _filled(gradients(total, tape.sites, torch.ones_like(total)), v)


def _filled(found: AtSites, like: AtSites) -> AtSites:
    """Zero where nothing comes back, but None where the output does not depend on a site."""
    return [
        None if there is None else torch.zeros_like(there) if at is None else at
        for at, there in zip(found, like, strict=True)
    ]


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
        kinds = int(bool(self.turned(signals[-1], probe).any()))
        v = random_signs(found[:1].expand(kinds * sent.draws, *found.shape[1:]), sent.generator)
        block = written_out(torch.cat([found, v, self.turned(signals[-1], v) if kinds else v]))
        return Derivatives(block, len(sent.exact), len(sent.drawn), kinds, sent.draws)

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
