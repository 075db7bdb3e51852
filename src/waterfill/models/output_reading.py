"""How a model's output is read: which tensor of it counts, and what its numbers are.

```
output --path--> tensor --axis, values--> logits [samples, ..., classes], or values
target ----------------------- --labels--> class numbers
```
Everything is decided on the first batch, and said in words. Whatever measures or differentiates a model sees logits or
values, for a hook reads the output: probabilities p become logits `log p`, so that a signal u for logits goes back as
`u / p`, and one number for yes or no becomes two classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from waterfill.models.batches import split
from waterfill.models.kept_batches import OnePass, RepeatableBatches
from waterfill.models.output_values import as_it_is
from waterfill.models.outputs import Path, first_tensor, select
from waterfill.protocols import Output

Change: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class OutputReading:
    """How the output of a model is read.

    Attributes:
        kind: what the model returns.
        path: to the tensor that counts; empty where it is the one that `first_tensor` finds.
        axis: of the classes, which becomes the last one; None where they are, or the targets say where.
        values: makes logits or values of the tensor.
        labels: makes class numbers of targets.
        notes: what has to be said about all this, a sentence each.
    """

    kind: Output
    path: Path = ()
    axis: int | None = None
    values: Change = as_it_is
    labels: Change = as_it_is
    notes: tuple[str, ...] = ()

    @property
    def form(self) -> Output:
        """What there is after reading: logits, or values."""
        return "values" if self.kind == "values" else "logits"

    @property
    def changes(self) -> bool:
        """Whether reading does anything to an output."""
        return bool(self.path) or self.axis is not None or self.values is not as_it_is

    def of_tensor(self, tensor: Tensor) -> Tensor:
        """Read the tensor that counts."""
        return self.values(tensor if self.axis is None else tensor.movedim(self.axis, -1))

    def tensor_in(self, output: Any) -> Tensor:
        """The tensor of an output that counts."""
        return select(output, self.path) if self.path else first_tensor(output)

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Tensor:
        """Read an output, as a forward hook."""
        return self.of_tensor(self.tensor_in(output))

    @contextmanager
    def of(self, *models: object) -> Iterator[None]:
        """Let modules return what is read of their outputs; those that do already, and what is no module, stay."""
        with ExitStack() as stack:
            for model in models:
                if isinstance(model, nn.Module) and self.changes and active(model) is None:
                    hook = nn.Module.register_forward_hook(model, self)  # scripted modules have none of their own
                    stack.callback(hook.remove)
            yield

    def batch(self, batch: Any) -> Any:
        """A batch with class numbers as target."""
        inputs, target = split(batch)
        return batch if target is None else (inputs, self.labels(target))

    def batches(self, batches: Sequence[Any]) -> Sequence[Any]:
        """The batches with class numbers as targets."""
        return batches if self.labels is as_it_is else _ReadBatches(batches, self)

    def one_pass(self, batches: OnePass) -> OnePass:
        """The same pass with class numbers as targets."""
        if self.labels is as_it_is:
            return batches
        return OnePass(self.batch(batches.first), map(self.batch, batches.rest), batches.total)


@dataclass(frozen=True, eq=False)
class _ReadBatches(RepeatableBatches):
    """Batches whose targets are read."""

    batches: Sequence[Any]
    reading: OutputReading

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return map(self.reading.batch, self.batches)

    def __getitem__(self, index: Any) -> Any:
        return self.reading.batch(self.batches[index])


def active(model: nn.Module) -> OutputReading | None:
    """The reading whose result a module returns, within `OutputReading.of`; None elsewhere."""
    return next((hook for hook in model._forward_hooks.values() if isinstance(hook, OutputReading)), None)
