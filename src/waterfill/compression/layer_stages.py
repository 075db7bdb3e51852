"""Matrices of a transformer block in the order in which it uses them, and what they see.

Matrices that read the same input are a stage, such as query, key and value; so are all experts. All batches go through
the original once, and through the compressed block from stage to stage; the products of both inputs say what an error
costs now, and where the target is, see `target_correction`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from waterfill.compression.block_forward import Reached
from waterfill.compression.resumed_pass import BUDGET_BYTES, KeptResults, ResumedPass
from waterfill.compression.sensitivity import CrossedSensitivity
from waterfill.compression.target_correction import InputChange, LayerInputs
from waterfill.importance.exact_sum import ExactSum
from waterfill.importance.factored import KroneckerForm
from waterfill.models.uses import Dense, View
from waterfill.models.watch import ProductWatch

SHRINKAGE = 1.5
"""Share of the mean diagonal that is added to the products of inputs where a target is sought, times inputs over
positions: more than an importance gets, for a target follows every accident of the text that it was fitted to."""


class InputsFound(Reached):
    """The inputs of all matrices have been seen."""


class InputWatch(ProductWatch):
    """While it is entered, the first inputs of matrices are recorded; it stops before the last product is computed.

    Args:
        tensors: the matrices, by name.

    Attributes:
        inputs: of those that were used, [positions, in].
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors, self._take)
        self.inputs: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._left = set(tensors)

    @property
    def overwritten(self) -> list[str]:
        """Names of matrices whose inputs were written over since."""
        return [name for name, x in self.inputs.items() if x._version != self._versions[name]]

    def _take(self, name: str, view: View, x: Tensor) -> None:
        if isinstance(view, Dense) and name in self._left:
            self.inputs[name] = x
            self._versions[name] = x._version
            self._left.remove(name)
        if not self._left:
            raise InputsFound


@dataclass(frozen=True, eq=False)
class BlockRun:
    """The original or the compressed block, to be run on calibration data.

    Attributes:
        parameters: by name.
        run: lets the batch of a number through.
        masks: which positions count, bool [positions], for every batch that is fitted to.
    """

    parameters: Mapping[str, Tensor]
    run: Callable[[int], Tensor]
    masks: Mapping[int, Tensor]
    _kept: dict[int, KeptResults] = field(default_factory=dict)

    def inputs(self, names: Collection[str], batch: int) -> dict[str, Tensor]:
        """Inputs [positions, in] of matrices in a batch; of those that it reaches."""
        return self._inputs(names, batch, None)

    def resumed_inputs(self, names: Collection[str], batch: int) -> dict[str, Tensor]:
        """The same, in a pass that goes on from where it was when the last matrices changed."""
        most = BUDGET_BYTES // max(1, len(self.masks))
        return self._inputs(names, batch, self._kept.setdefault(batch, KeptResults(most)))

    def _inputs(self, names: Collection[str], batch: int, kept: KeptResults | None) -> dict[str, Tensor]:
        watch = InputWatch({name: self.parameters[name] for name in names})
        with suppress(InputsFound), torch.no_grad(), _resuming(kept), watch:
            self.run(batch)
        again = [self._inputs([name], batch, kept) for name in watch.overwritten if len(names) > 1]
        return watch.inputs | {name: x for each in again for name, x in each.items()}

    def output(self, batch: int) -> Tensor:
        """What comes out of the block, in such a pass to its end, the last one of the batch."""
        with torch.no_grad(), _resuming(self._kept.pop(batch, None)):
            return self.run(batch)

    def changed(self, names: Iterable[str]) -> None:
        """Take note that matrices have changed."""
        tensors = [self.parameters[name] for name in names]
        for kept in self._kept.values():
            kept.cut(tensors)

    def forget(self) -> None:
        """Let go of all results, so that passes begin anew."""
        self._kept.clear()


def _resuming(kept: KeptResults | None) -> ResumedPass | nullcontext[None]:
    return nullcontext() if kept is None else ResumedPass(kept)


BlockInputs: TypeAlias = Mapping[int, dict[str, Tensor]]
"""By number of the batch, and by name: the inputs of matrices of the original block."""


def stages(inputs: BlockInputs, names: Sequence[str]) -> list[list[str]]:
    """Group matrices that read the same inputs, in the order of their first use."""
    order: dict[str, int] = {}
    kinds: dict[str, int] = {}
    for of_batch in inputs.values():
        by_input: dict[int, int] = {}
        for name, x in of_batch.items():
            if name in order or name not in names:
                continue
            kind = _kind(name)
            stage = by_input.setdefault(x.data_ptr(), kinds.get(kind, len(set(kinds.values()))))
            order[name] = kinds.setdefault(kind, stage)
    return [[name for name, stage in order.items() if stage == each] for each in sorted(set(order.values()))]


def agreed(every: Sequence[list[list[str]]]) -> list[list[str]]:
    """The stages of several processes as one list: matrices that the first has not seen are where their kind is."""
    first = [list(stage) for stage in every[0]]
    for other in every[1:]:
        for stage in other:
            for name in stage:
                if not any(name in known for known in first):
                    _home(first, name).append(name)
    return first


def _home(stages: list[list[str]], name: str) -> list[str]:
    for stage in stages:
        if any(_kind(other) == _kind(name) for other in stage):
            return stage
    stages.append([])
    return stages[-1]


def _kind(name: str) -> str:
    """The name without the numbers of experts, which are of one kind; all other matrices are of their own."""
    return re.sub(r"\.\d+$|(?<=experts)\.\d+", ".#", name)


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Moments of the inputs of matrices in the compressed block, beside those in the original.

    They are one object for all matrices that read the same inputs, and so is what follows from them.

    Attributes:
        seen: mean of `x' x'^T`, float64 or float32 [in, in].
        change: mean of `(x - x') x'^T` of the same shape; None where positions of both do not correspond.
        means: means of x and of x', float64 [in] each; None with `change`.
        positions: over how many.
    """

    seen: Tensor
    change: Tensor | None
    means: tuple[Tensor, Tensor] | None
    positions: float

    @cached_property
    def _columns(self) -> KroneckerForm:
        """The factor over columns, of the trace 1 but for what shrinkage adds, with one row of 1."""
        columns = self.seen.numpy()
        symmetric = columns + columns.T
        symmetric /= 2 * max(float(np.trace(columns, dtype=np.float64)), 1e-300)
        return KroneckerForm(np.ones(1), symmetric[None], "", self.positions).shrunk()

    @cached_property
    def _change(self) -> InputChange | None:
        if self.change is None:
            return None
        return InputChange(self.seen[None], self.change[None], SHRINKAGE / self.positions)

    def form(self, known: CrossedSensitivity) -> KroneckerForm:
        """The importance for these inputs.

        Args:
            known: factor over rows that goes with a trace of 1, and the unit.
        """
        return self._columns.for_matrix(known.rows, self.positions, known.form)

    def layer_inputs(self, known: CrossedSensitivity) -> LayerInputs:
        """Give the inputs by which a target is sought, with the form for them; argument as of `form`."""
        return LayerInputs(known.layout, self._change, self.form(known))


def input_moments(
    names: Sequence[str], original: BlockInputs, compressed: BlockRun, sums: ExactSum
) -> dict[str, InputMoments]:
    """Compare the inputs of the matrices of a stage; those that no batch reaches are left out.

    Args:
        names: of the matrices.
        original: their inputs in the block as it was, on what its own blocks before hand on.
        compressed: the block as far as it is compressed.
        sums: to add up with.
    """
    alias: dict[str, str] = {}
    for batch, mask in compressed.masks.items():
        before, now = original[batch], compressed.resumed_inputs({alias.get(name, name) for name in names}, batch)
        values: dict[str, Tensor] = {"batches:": torch.ones(1)}
        first: dict[int, str] = {}
        for name, x in now.items():
            key = alias.setdefault(name, first.setdefault(x.data_ptr(), name))
            if f"gram:{key}" not in values:
                values |= _compared(key, before.get(name), x, mask)
        sums.add(values)
    totals = sums.totals()
    moments = {key: _moments(key, totals) for key in {*alias.values(), *names}}
    found = {name: moments[alias.get(name, name)] for name in names}
    return {name: each for name, each in found.items() if each is not None}


def _compared(name: str, before: Tensor | None, now: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Terms that one batch adds. Positions that are routed to an expert are others in the compressed model."""
    aligned = before is not None and len(before) == len(now) == len(mask)
    if len(now) == len(mask) and not bool(mask.all()):
        now, before = now[mask], before[mask] if before is not None and aligned else None
    found = {f"gram:{name}": now.T @ now, f"positions:{name}": torch.tensor([float(len(now))])}
    if before is not None and aligned:
        found[f"aligned:{name}"] = found[f"positions:{name}"]
        found[f"change:{name}"] = (before - now).T @ now
        found[f"before:{name}"], found[f"now:{name}"] = before.sum(0), now.sum(0)
    return found


def _moments(name: str, totals: Mapping[str, Tensor]) -> InputMoments | None:
    gram = totals.get(f"gram:{name}")
    if gram is None or not float(gram.trace()) > 0:
        return None
    positions = float(totals[f"positions:{name}"])
    gram /= positions
    aligned = totals.get(f"aligned:{name}")  # in all batches, or the others would count as unchanged
    change = None if aligned is None or float(aligned) < positions else totals[f"change:{name}"].div_(positions)
    means = None if change is None else (totals[f"before:{name}"] / positions, totals[f"now:{name}"] / positions)
    return InputMoments(gram, change, means, positions)
