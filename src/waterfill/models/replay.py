"""Run a model on one batch again and again, each time with other values in a few tensors, from their first use on.

```
first pass --Recorder--> results of all function calls, where each tensor is used first, what is written over when
later ones --Suffix----> calls before the first use of what changed give their results again; the others are computed
```
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from waterfill.models.batches import Inputs, call, tensors_in

BUDGET_BYTES = 1 << 30
"""Memory for the results of a pass; calls after those that fit are always computed."""


class Replay:
    """A model in evaluation mode on one batch.

    What Python does between the calls of torch functions is done every time; it has to be the same every time.

    Args:
        model: the network. Tensors may change between passes only in place.
        inputs: of one batch.
        tensors: those that will change, by name.

    Attributes:
        output: of the first pass.
        calls: number of function calls of a pass.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor]) -> None:
        self._model, self._inputs = model, inputs
        with Recorder(tensors) as recorder:
            self.output = call(model, inputs)
        self.calls = recorder.count
        self._recorder = recorder

    def start(self, changed: Collection[str]) -> int:
        """Index of the first function call to compute when tensors have changed.

        It is the first use of one of them; where a result from before is written over later on, the call that made it.
        A tensor that was not seen may be used anywhere.
        """
        start: int = min((self._recorder.first_use(name) for name in changed), default=self.calls)
        start = min(start, len(self._recorder.results))
        moved = True
        while moved:
            moved = False
            for made, written in self._recorder.overwritten:
                if made < start <= written:
                    start, moved = made, True
        return start

    def run(self, changed: Collection[str]) -> Tensor:
        """The output now that these tensors have changed since the first pass."""
        with Suffix(self._recorder.results, self.start(changed)):
            return call(self._model, self._inputs)


class Recorder(TorchFunctionMode):
    """Keeps the results of all function calls of a pass.

    Attributes:
        results: of the first calls, as many as fit into `BUDGET_BYTES`.
        count: number of calls.
        overwritten: (call that made a result, later call that wrote over it); a call that wrote over something else
            counts as if every later one did.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.results: list[Any] = []
        self.count = 0
        self.overwritten: list[tuple[int, int]] = []
        self._places = {name: _memory(tensor) for name, tensor in tensors.items()}
        self._first: dict[int, int] = {}
        self._makers: dict[int, list[int]] = defaultdict(list)
        self._bytes = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function and keep its result."""
        del types
        given = tensors_in((*args, *(kwargs or {}).values()))
        before = [_version(each) for each in given]
        result = func(*args, **(kwargs or {}))
        for each, version in zip(given, before, strict=True):
            self._first.setdefault(_memory(each), self.count)
            if version is None or _version(each) != version:
                self.overwritten += [(maker, self.count) for maker in self._makers[_memory(each)]]
            if version is not None and _version(each) != version and not self._makers[_memory(each)]:
                self.overwritten.append((self.count, sys.maxsize))  # a buffer, which is as it was before every pass
        self._keep(result)
        self.count += 1
        return result

    def first_use(self, name: str) -> int:
        """Index of the first call with a tensor, or one that shares its memory, among its arguments; 0 for none."""
        return self._first.get(self._places.get(name, -1), 0)

    def _keep(self, result: Any) -> None:
        if any(map(is_functorch_wrapped_tensor, tensors_in((result,)))):
            return  # of a transformation such as vmap, outside of which it is nothing; what comes after is computed
        for each in tensors_in((result,)):
            made = self._makers[_memory(each)]
            self._bytes += 0 if made else each.untyped_storage().nbytes()
            made.append(self.count)
        if self._bytes <= BUDGET_BYTES and len(self.results) == self.count:
            self.results.append(_as_it_is(result))


class Suffix(TorchFunctionMode):
    """Gives the results of the first calls of a pass, and computes the others.

    Args:
        results: of the first calls, at least `start`.
        start: the first call to compute.
    """

    def __init__(self, results: Sequence[Any], start: int) -> None:
        super().__init__()
        self._results, self._start, self._count = results, start, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Give a result again, or call a function."""
        del types
        self._count += 1
        if self._count <= self._start:
            return _as_it_is(self._results[self._count - 1])
        return func(*args, **(kwargs or {}))


def _version(tensor: Tensor) -> int | None:
    """How often the memory of a tensor was written to; tensors of inference mode do not tell, and any call may."""
    return None if tensor.is_inference() else tensor._version


def _as_it_is(result: Any) -> Any:
    """A result that stays when the model goes on to change a list that it was given."""
    return list(result) if type(result) is list else result


def _memory(tensor: Tensor) -> int:
    plain = tensor.layout is torch.strided and not is_functorch_wrapped_tensor(tensor)
    return tensor.untyped_storage().data_ptr() if plain else id(tensor)
