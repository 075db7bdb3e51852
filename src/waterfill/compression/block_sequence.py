"""Pieces of a model that are coded matrix by matrix, on the activations of what is coded already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from waterfill.compression.coder import Coder, Done, values
from waterfill.compression.loaded_parts import Piece
from waterfill.compression.sensitivity import Known
from waterfill.compression.stages import Inputs, Side, agreed, inputs_of, stages
from waterfill.compression.tensor_slices import Part, parts_of
from waterfill.importance.exact_sum import Sums
from waterfill.records import Layout, Weight

AT_ONCE = 1 << 25
"""Weights that are coded at once, about."""


@dataclass(frozen=True, eq=False)
class Tensors:
    """Codes tensors of a checkpoint.

    Attributes:
        coder: what codes them.
        tensor: gives the values of one, by name.
        known: what is known of them, by name.
        kept: why some are stored without loss, by name of the whole tensor.
    """

    coder: Coder
    tensor: Callable[[str], Tensor]
    known: Mapping[str, Known]
    kept: Mapping[str, str]

    def plainly(self, done: Done, keys: Sequence[str], level: float, piece: Piece | None = None) -> None:
        """Code tensors without looking at activations.

        Args:
            done: what they are added to.
            keys: their names.
            level: water level.
            piece: is filled with them, and has its own values of vectors; None for none.
        """
        waiting: list[Part] = []
        for key in keys:
            tensor, known = self.tensor(key), self.known.get(key)
            if piece is not None and key in piece.places and tensor.ndim < 2:
                tensor = piece.rows(key).to(tensor.dtype).reshape(tensor.shape)
            layout = Layout(tuple(tensor.shape)) if known is None else known.layout
            for part in parts_of(key, tensor, layout, None if known is None else known.diagonal, self._why(key)):
                if part.weight is None:
                    self.coder.keep(done, part, tensor)
                    continue
                waiting.append(part)
                if sum(each.weight.matrix.size for each in waiting if each.weight is not None) >= AT_ONCE:
                    self._code(done, waiting, level, {}, piece)
                    waiting = []
        self._code(done, waiting, level, {}, piece)
        for key in keys:
            if known := self.known.get(key):
                self.coder.note(done, key, known.reason)

    def in_sequence(
        self, done: Done, keys: Sequence[str], sides: tuple[Side, Side], pieces: tuple[Piece, Piece], level: float
    ) -> list[str]:
        """Code the matrices with cross terms stage by stage, and fill the compressed piece with them.

        Args:
            done: what they are added to.
            keys: names of the tensors of the piece.
            sides: the original piece and the compressed one, as they run.
            pieces: the same, as they are stored.
            level: water level.

        Returns:
            The names of those that are done.
        """
        places = pieces[0].places
        crossed = [key for key in keys if self._is_crossed(key) and key in places]
        names = list(dict.fromkeys(places[key].parameter for key in crossed))
        coded = {places[key].parameter for key in keys if key in places and not self._why(key)}
        finished: list[str] = []
        for stage in agreed(self.coder.team.everyones(stages(sides[0], names))):
            inputs = inputs_of(stage, *sides, Sums(self.coder.team))
            mine = [key for key in crossed if places[key].parameter in inputs]
            self._stage(done, mine, inputs, pieces, level)
            for name, key in {places[key].parameter: key for key in mine}.items():
                if _bias_of(name) in coded:
                    _correct_bias(name, self.known[key].layout, inputs, pieces)
            finished += mine
        return finished

    def _stage(
        self, done: Done, keys: Sequence[str], inputs: Mapping[str, Inputs], pieces: tuple[Piece, Piece], level: float
    ) -> None:
        parts: list[Part] = []
        aims: dict[str, Weight] = {}
        for key in keys:
            known, found = self.known[key], inputs[pieces[0].places[key].parameter]
            assert known.rows is not None
            each = list(parts_of(key, self.tensor(key), known.layout, found.form(known.rows)))
            aims |= {
                part.entry.name: replace(part.weight, matrix=found.target(part.weight.matrix))
                for part in each
                if part.weight is not None
            }
            parts += each
        self._code(done, parts, level, aims, pieces[1])

    def _code(
        self, done: Done, parts: Sequence[Part], level: float, aims: Mapping[str, Weight], piece: Piece | None
    ) -> None:
        self.coder.code(done, parts, level, aims)
        for part in parts:
            if piece is not None and part.tensor in piece.places and part.weight is not None:
                name, rows = part.entry.name, piece.rows(part.tensor)
                found = values(part.entry, aims.get(name, part.weight), done.quantized[name])
                some = rows[part.rows] if rows.ndim else rows
                some.copy_(found.reshape(some.shape))

    def _is_crossed(self, key: str) -> bool:
        known = self.known.get(key)
        return known is not None and known.rows is not None and not self._why(key)

    def _why(self, key: str) -> str:
        return self.kept.get(key) or self.kept.get(key.partition("[")[0], "")


def _bias_of(name: str) -> str:
    return f"{name.removesuffix('weight')}bias"


def _correct_bias(name: str, layout: Layout, inputs: Mapping[str, Inputs], pieces: tuple[Piece, Piece]) -> None:
    """Move the bias of a compressed layer so that its outputs keep their means."""
    bias, means = _bias_of(name), inputs[name].means
    if means is None or not name.endswith("weight"):
        return
    before, now = (each.float() for each in means)
    original, compressed = (piece.parameters[name].data for piece in pieces)
    if layout.transposed:
        original, compressed = original.T, compressed.T
    pieces[1].parameters[bias].data.add_(original @ before - compressed @ now)
