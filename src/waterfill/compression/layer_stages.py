"""Matrices of a transformer block in the order in which it uses them, and what they see.

Matrices that read the same input are a stage, such as query, key and value; so are all experts. All batches go through
the original once, and through the compressed block from stage to stage; the products of both inputs say what an error
costs now, and where the target is, see `target_correction`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from waterfill.compression.block_forward import Reached
from waterfill.compression.gram_panels import gram_panels, take_gram
from waterfill.compression.resumed_pass import BUDGET_BYTES, KeptResults, ResumedPass
from waterfill.compression.sensitivity import CrossedSensitivity
from waterfill.compression.target_correction import DampedInputs, InputChange, LayerInputs
from waterfill.importance import factored
from waterfill.importance.exact_sum import ExactSum
from waterfill.importance.factored import KroneckerForm
from waterfill.models.uses import Dense, View
from waterfill.models.watch import ProductWatch
from waterfill.records import Floats

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
        columns: mean of `x' x'^T` over its trace, shrunk, as the factor over columns of a form with one row of 1.
        change: mean of `(x - x') x'^T` over that trace, float64 or float32 [in, in]; None where positions of both do
            not correspond, or where products with matrices take its place.
        missed: mean of `W (x - x') x'^T` over that trace, [out, in], of the matrices W of a stage that have fewer rows
            than columns together, by name.
        means: means of x and of x', float64 [in] each; None where positions do not correspond.
        positions: over how many.
        device: where targets are solved for.
    """

    columns: KroneckerForm
    change: Tensor | None
    missed: Mapping[str, Tensor]
    means: tuple[Tensor, Tensor] | None
    positions: float
    device: torch.device

    def form(self, known: CrossedSensitivity) -> KroneckerForm:
        """The importance for these inputs.

        Args:
            known: factor over rows that goes with a trace of 1, and the unit.
        """
        return self.columns.for_matrix(known.rows, self.positions, known.form)

    def damped(self) -> DampedInputs:
        """The inputs as targets are solved for."""
        there = factored.SHRINKAGE  # of which the mean diagonal has its share, too
        share = (SHRINKAGE - there) / (self.positions + there * self.columns.columns.shape[1])
        return DampedInputs(torch.from_numpy(self.columns.columns).to(self.device), share)

    def compared(self, rows: int) -> DampedInputs | InputChange:
        """The inputs as targets are solved for, with how they changed where that is known for any matrix.

        Args:
            rows: how many the matrices have together.
        """
        return self.damped() if self.change is None else InputChange(self.damped(), self.change[None], rows)


@dataclass(frozen=True, eq=False)
class VisitedMatrix:
    """A matrix of the checkpoint that is visited.

    Attributes:
        parameter: name of the parameter that has it.
        rows: which of its rows.
        matrix: the values in the original, float32 [out, in].
        known: what its errors cost.
    """

    parameter: str
    rows: slice
    matrix: Floats
    known: CrossedSensitivity


def layer_inputs(visited: Mapping[str, VisitedMatrix], moments: Mapping[str, InputMoments]) -> dict[str, LayerInputs]:
    """Find the targets of the matrices of a stage, and the forms for their inputs.

    Args:
        visited: the matrices, by name in the checkpoint.
        moments: of their inputs, by name of the parameter.
    """
    rows: Counter[InputMoments] = Counter()
    for each in visited.values():
        rows[moments[each.parameter]] += len(each.matrix)
    changes = {seen: seen.compared(count) for seen, count in rows.items()}
    found = {}
    for key, each in visited.items():
        seen = moments[each.parameter]
        found[key] = LayerInputs(each.known.layout, _moves(each, seen, changes[seen]), seen.form(each.known))
    return found


def _moves(visited: VisitedMatrix, seen: InputMoments, compared: DampedInputs | InputChange) -> Floats | None:
    if isinstance(compared, InputChange):
        return compared.shift(visited.matrix)
    missed = seen.missed.get(visited.parameter)
    if missed is None:
        return None
    rows = visited.rows if len(missed) > len(visited.matrix) else slice(None)
    return compared.moves(visited.matrix, missed[None, rows])


def input_moments(
    names: Sequence[str], original: BlockInputs, compressed: BlockRun, sums: ExactSum
) -> dict[str, InputMoments]:
    """Compare the inputs of the matrices of a stage; those that no batch reaches are left out.

    Args:
        names: of the matrices.
        original: their inputs in the block as it was, on what its own blocks before hand on.
        compressed: the block as far as it is compressed; these matrices are still those of the original.
        sums: to add up with.
    """
    alias: dict[str, str] = {}
    matrices = {name: compressed.parameters[name].data for name in names}
    for batch, mask in compressed.masks.items():
        before, now = original[batch], compressed.resumed_inputs({alias.get(name, name) for name in names}, batch)
        first: dict[int, str] = {}
        for name, x in now.items():
            alias.setdefault(name, first.setdefault(x.data_ptr(), name))
        values: dict[str, Tensor] = {"batches:": torch.ones(1)}
        for key in now.keys() & set(alias.values()):
            readers = {name: matrices[name] for name, of_name in alias.items() if of_name == key}
            values |= _compared(key, before.get(key), now[key], mask, _flat(readers, now[key].shape[1]))
        sums.add(values)
    totals = sums.totals()
    moments = {key: _moments(key, [name for name in names if alias.get(name, name) == key], totals) for key in names}
    found = {name: moments[alias.get(name, name)] for name in names}
    return {name: each for name, each in found.items() if each is not None}


def _flat(matrices: Mapping[str, Tensor], inputs: int) -> dict[str, Tensor]:
    """Matrices that read the same inputs as [out, in], where they have fewer rows than columns together; else none."""
    if any(each.ndim != 2 for each in matrices.values()) or sum(map(torch.numel, matrices.values())) >= inputs**2:
        return {}
    return {name: each if each.shape[1] == inputs else each.T for name, each in matrices.items()}


def _compared(
    name: str, before: Tensor | None, now: Tensor, mask: Tensor, matrices: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Terms that one batch adds. Positions that are routed to an expert are others in the compressed model."""
    aligned = before is not None and len(before) == len(now) == len(mask)
    if len(now) == len(mask) and not bool(mask.all()):
        now, before = now[mask], before[mask] if before is not None and aligned else None
    positions = torch.tensor([float(len(now))])
    found = {f"positions:{name}": positions}
    found |= gram_panels(name, now)
    if before is not None and aligned:
        change = before - now
        found |= {f"aligned:{name}": positions, f"before:{name}": before.sum(0), f"now:{name}": now.sum(0)}
        if matrices:
            found |= {f"matrices:{each}": positions for each in matrices}
            found |= {f"missed:{each}": (change @ matrix.T).T @ now for each, matrix in matrices.items()}
        else:
            found |= {f"changed:{name}": positions, f"change:{name}": change.T @ now}
    return found


def _moments(name: str, readers: Sequence[str], totals: MutableMapping[str, Tensor]) -> InputMoments | None:
    """Moments of the inputs of some matrices from sums over all batches, which are taken out of them."""
    gram = take_gram(name, totals)
    trace = 0.0 if gram is None else float(gram.trace())
    if gram is None or not trace > 0:
        return None
    positions = float(totals[f"positions:{name}"])
    device = gram.device
    factor = gram.div_(trace).cpu().numpy()[None]
    columns = KroneckerForm(np.ones(1), factor, "", positions, device=None if device.type == "cpu" else str(device))

    def mean(what: str, of: str, counted: str, over: float) -> Tensor | None:
        """A sum over all positions; None without some, for these would count as unchanged."""
        complete = float(totals.get(f"{counted}:{of}", 0.0)) == positions
        return totals.pop(f"{what}:{of}").div_(over) if complete else None

    before, now = (mean(what, name, "aligned", positions) for what in ("before", "now"))
    missed = {each: mean("missed", each, "matrices", trace) for each in readers}
    return InputMoments(
        columns.shrunk(),
        mean("change", name, "changed", trace),
        {each: products for each, products in missed.items() if products is not None},
        None if before is None or now is None else (before, now),
        positions,
        device,
    )
