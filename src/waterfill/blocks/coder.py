"""The tensors of a group become a payload: quantized at one level, priced, packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from waterfill import allocate
from waterfill.allocate import Job
from waterfill.blocks.outlook import Volumes
from waterfill.blocks.parts import Part
from waterfill.blocks.ranks import Ranks
from waterfill.blocks.sample import Sample
from waterfill.codec import container
from waterfill.files import exact_bytes
from waterfill.limits import fit_sources, fit_spectra, rectangles
from waterfill.protocols import QuadraticForm, Quantizer
from waterfill.quantize import Vector
from waterfill.reconstruct import errors
from waterfill.records import Entry, Exact, Quantized, Weight
from waterfill.resume.folder import NOTHING_KEPT, Memo
from waterfill.workshop import PRODUCER


@dataclass(frozen=True)
class Told:
    """What is told of an entry.

    Attributes:
        loss: what its errors cost by the importance, to no power; None where that is not known.
        limit: the least bits of any code at its distortion; None without a source model.
        limit_error: standard error of that, bits.
        source_model: what the weights are taken to be drawn from.
        reason: why it is stored in a special way; else empty.
    """

    loss: float | None = None
    limit: float | None = None
    limit_error: float = 0.0
    source_model: str = ""
    reason: str = ""


@dataclass(eq=False)
class Done:
    """What is coded of a group so far.

    Attributes:
        entries: by name.
        quantized: of the coded ones.
        exact: bytes of the others.
        told: by name.
        volumes: of the matrices, for the distortion of the limit.
        distortion: of the matrices, by the same measure.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    quantized: dict[str, Quantized] = field(default_factory=dict)
    exact: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    volumes: Volumes = field(default_factory=Volumes.none)
    distortion: float = 0.0

    @property
    def matrix_bits(self) -> float:
        """Bits of all matrices."""
        return sum(item.bits for name, item in self.quantized.items() if len(self.entries[name].shape) > 1)

    def pack(self) -> container.Packed:
        """The payload."""
        return container.pack(tuple(self.entries.values()), self.quantized, self.exact, PRODUCER)


@dataclass(frozen=True, eq=False)
class Coder:
    """Codes tensors at a level.

    Attributes:
        quantizer: of the matrices.
        mean: of the importances, about which they are taken to a power.
        power: the power.
        team: the processes, which share the work.
        memo: of what is quantized already.
    """

    quantizer: Quantizer
    mean: float
    power: float
    team: Ranks
    memo: Memo = NOTHING_KEPT

    def code(self, done: Done, parts: Sequence[Part], level: float, targets: Mapping[str, Weight]) -> None:
        """Code some tensors of a group.

        Args:
            done: what they are added to.
            parts: the tensors.
            level: water level.
            targets: weights to aim at, by name of the entry; of others their own values.
        """
        vectors, jobs = Vector(self.mean), {}
        for part in parts:
            name = part.entry.name
            done.entries[name] = part.entry
            if part.weight is None:
                continue
            quantizer = vectors if part.weight.is_vector else self.quantizer
            jobs[name] = Job(targets.get(name, part.weight), quantizer, self._tempered(part.weight, part.form))
        done.quantized |= self._quantized(jobs, level)
        priced = {part.entry.name: part for part in parts if part.entry.name in jobs}
        done.told |= self._told(done, jobs, priced)

    def keep(self, done: Done, part: Part, tensor: Tensor) -> None:
        """Store a part of a tensor without loss."""
        name, origin = part.entry.name, part.entry.origin
        assert isinstance(origin, Exact)
        done.entries[name] = part.entry
        done.exact[name] = exact_bytes(tensor[part.rows] if tensor.ndim else tensor)
        done.told[name] = Told(reason=origin.reason)

    def note(self, done: Done, tensor: str, reason: str) -> None:
        """Say something of all entries of a tensor."""
        for name in done.told:
            if reason and (name == tensor or name.startswith(f"{tensor}[")):
                done.told[name] = replace(done.told[name], reason=reason)

    def _tempered(self, weight: Weight, form: QuadraticForm | None) -> QuadraticForm | None:
        if form is None or weight.is_vector or self.power == 1:
            return form
        return form.tempered(self.mean, self.power)

    def _quantized(self, jobs: Mapping[str, Job], level: float) -> dict[str, Quantized]:
        """Everyone quantizes some of the tensors, about as many weights as the others."""
        order = sorted(jobs, key=lambda name: -jobs[name].weight.matrix.size)
        mine = {name: jobs[name] for name in order[self.team.rank :: self.team.count]}
        found: dict[str, Quantized] = {}
        for some in self.team.everyones(allocate.quantize(mine, level, memo=self.memo)):
            found |= some
        return {name: found[name] for name in jobs}

    def _told(self, done: Done, jobs: Mapping[str, Job], parts: Mapping[str, Part]) -> dict[str, Told]:
        """Losses and limits."""
        found = {}
        for name, part in parts.items():
            item, aim = done.quantized[name], jobs[name].weight
            found[name] = Told(_loss(part.form, aim, item))
        samples = {
            name: Sample.of(part.weight, jobs[name].form)
            for name, part in parts.items()
            if part.weight is not None and not part.weight.is_vector and done.quantized[name].distortion > 0
        }
        weights = {name: sample.weight for name, sample in samples.items()}
        forms = {name: sample.form for name, sample in samples.items()}
        sources = fit_sources(weights)
        for name, volumes in rectangles(weights, sources, forms, fit_spectra(weights, sources, forms)):
            distortion, times, source = done.quantized[name].distortion, samples[name].times, sources[name]
            done.volumes += Volumes.of(volumes.volumes, times)
            done.distortion += distortion
            found[name] = replace(
                found[name],
                limit=times * volumes.rate_at_distortion(distortion / times),
                limit_error=source.standard_error * jobs[name].weight.matrix.size,
                source_model=source.name,
            )
        return found


def _loss(form: QuadraticForm | None, aim: Weight, quantized: Quantized) -> float | None:
    if form is None:
        return None
    return float(quantized.distortion) if aim.is_vector else form.cost(errors(aim, quantized.symbols, quantized.rule))


def values(entry: Entry, aim: Weight, quantized: Quantized) -> Tensor:
    """The values of a coded entry, as they will be decoded, in single precision."""
    matrix = aim.matrix - errors(aim, quantized.symbols, quantized.rule)
    found = torch.from_numpy(np.ascontiguousarray(aim.layout.from_matrix(matrix)).reshape(entry.shape))
    return found.to(getattr(torch, entry.dtype)).float()
