"""What depends on the kind of a model's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from waterfill.distortion.losses import Loss
from waterfill.distortion.probe_vectors import Signals
from waterfill.models.batches import Inputs
from waterfill.protocols import Output

Measures: TypeAlias = Mapping[str, Tensor]
"""Values of measures by name, of some outputs; their sums and numbers are what a mean is made of."""


class Distortion(ABC):
    """A distance of outputs from those of the original, and what importances, tuning and reports make of it.

    Attributes:
        name: of the kind of output.
        factor: by what forms of its importance are multiplied to be this distortion, to second order.
        unit: of the distortion, for tables.
        measure: name of the distance of every output among `measures`.
        has_classes: whether outputs are scores of classes, with a prediction at every position.
    """

    name: ClassVar[Output]
    factor: ClassVar[float]
    unit: ClassVar[str]
    measure: ClassVar[str]
    has_classes: ClassVar[bool]

    # Distances

    @abstractmethod
    def allowed(self, outputs: Tensor) -> Tensor:
        """Which outputs of an original can be compared with; boolean, in their shape."""

    @abstractmethod
    def count(self, reference: Tensor, target: Tensor | None) -> int:
        """How many outputs of a batch count: predictions or samples."""

    @abstractmethod
    def per_output(self, reference: Tensor, result: Tensor, target: Tensor | None) -> Tensor:
        """Distance of every output that counts.

        Args:
            reference: outputs of the original.
            result: outputs of the other model, of the same shape.
            target: what they should be, which says what counts; None where that is not known.

        Returns:
            Float64 [outputs].
        """

    def total(self, reference: Tensor, result: Tensor, target: Tensor | None) -> Tensor:
        """Sum of `per_output`, with the same arguments, float64."""
        return self.per_output(reference, result, target).sum()

    @abstractmethod
    def training_loss(self, reference: Tensor, result: Tensor, target: Tensor | None) -> Tensor:
        """Mean distance in the precision of the outputs, to be differentiated; arguments of `per_output`."""

    @abstractmethod
    def measures(self, result: Tensor, target: Tensor | None, reference: Tensor | None) -> Iterator[Measures]:
        """What the outputs of a batch allow to measure, a part of them at a time.

        Args:
            result: outputs of the model.
            target: what they should be; None where that is not known.
            reference: outputs of the original; None where there are none.

        Raises:
            CalibrationError: the targets do not fit.
        """

    # Positions of text

    @abstractmethod
    def counted(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """The outputs of a batch that count.

        Args:
            outputs: [samples, ...].
            mask: which positions are no padding, bool [samples * positions].
        """

    @abstractmethod
    def read_text(self, model: nn.Module, inputs: Inputs, outputs: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        """Leave out padding from outputs for every token, and say what should follow each.

        Args:
            model: the network.
            inputs: a batch of text.
            outputs: of the model, and of others with the same shape, [texts, tokens, ...].

        Returns:
            The target, None where there is none, and the outputs.
        """

    # Importances

    @abstractmethod
    def probe_vectors(
        self, output: Tensor, target: Tensor | None, temperature: float, draws: int | None, generator: torch.Generator
    ) -> Signals:
        """Vectors whose squares add up to the importance of the outputs, exactly or in expectation.

        Args:
            output: [samples, ...].
            target: what they should be, which says what counts; None where that is not known.
            temperature: of a softmax, above 0.
            draws: how many are drawn for each sample; None for an exact sum where it is short.
            generator: source of what is drawn, on the CPU.

        Raises:
            CalibrationError: the outputs are not of this kind.
        """

    @abstractmethod
    def probe_powers(self, output: Tensor, target: Tensor | None, temperature: float) -> Tensor:
        """Mean squared lengths of the vectors of `probe_vectors`: how much of the importance can come from each output.

        Args:
            output: as in `probe_vectors`.
            target: as in `probe_vectors`.
            temperature: as in `probe_vectors`.

        Returns:
            Float64 [samples, predictions or values].
        """

    @abstractmethod
    def draw(
        self, output: Tensor, mask: Tensor, temperature: float, generator: torch.Generator
    ) -> tuple[Tensor, float]:
        """One random vector that stands for the importance of the outputs, and how many outputs it stands for.

        Args:
            output: [samples, ...].
            mask: which positions count, bool [samples * positions].
            temperature: of a softmax, above 0.
            generator: source of what is drawn, on the CPU.

        Returns:
            Float32 in the shape of the output, and a count.
        """

    @abstractmethod
    def labelled_loss(self, temperature: float) -> Loss:
        """The loss that compares outputs with the right answer.

        Args:
            temperature: of a softmax, above 0.
        """
