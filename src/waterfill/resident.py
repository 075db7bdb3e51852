"""Networks whose blocks stay compressed in memory: each is decoded just before it runs and let go of after.

```
block 0 runs | wait | block 1 runs | wait | block 2 runs      a forward pre-hook waits for the weights of a block
 decode 1 ---------> | decode 2 ---------> | decode 3 ->      threads decode those that came next the last time
             | decode 2 ----   ...  | decode 3 ----           the one after begins as soon as a block has run
```
Decoded blocks stay while they fit in a budget; what goes first is what will be needed last. With room for two blocks
no core waits: while the last chunks of one block are decoded, the next is under way.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from waterfill.errors import UsageError, WaterfillError

AHEAD = 2
"""How many blocks are decoded ahead where none runs, if there is room; one less while one runs."""

Values = dict[str, Tensor]
"""Decoded weights by their name in the model."""

_ATTRIBUTE = "_waterfill_residency"


@dataclass(frozen=True)
class Held:
    """What a network holds, in bytes.

    Attributes:
        compressed: the payloads, which are read from the files whenever they are needed.
        kept: parameters and buffers that are always there: embeddings, norms, biases.
        decoded: weights of blocks that are decoded at the moment.
    """

    compressed: int
    kept: int
    decoded: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.compressed + self.kept + self.decoded


class Block:
    """A part of a network whose weights come and go.

    Attributes:
        module: the part, which holds placeholders without elements while its weights are away.
        size: bytes of its weights when decoded.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: Mapping[str, Tensor],
        decode: Callable[[], Values],
        device: torch.device | None = None,
    ) -> None:
        """Take the weights of a part away.

        Args:
            module: the part.
            weights: names of its parameters within it, each with a tensor of its shape and type, without values.
            decode: gives their values by those names, the same each time.
            device: where they are to be.
        """
        self.module, self._decode = module, decode
        self.size = sum(like.numel() * like.element_size() for like in weights.values())
        self._homes = {
            name: (module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in weights
        }
        self.lock = threading.Lock()
        self.users = 0
        self.charged = False
        self.arriving: Future[Values] | None = None
        self.installed = False
        for name, like in weights.items():
            self._put(name, torch.empty(0, dtype=like.dtype, device=device or "cpu"))

    def values(self) -> Values:
        """Decode the weights, to the device and type that the module has now."""
        with torch.inference_mode(False), torch.no_grad():
            found = self._decode()
            return {name: self._fitted(name, found[name]) for name in self._homes}

    def _fitted(self, name: str, value: Tensor) -> Tensor:
        home, attribute = self._homes[name]
        like = getattr(home, attribute)
        return value.to(like.device, like.dtype)

    def install(self, values: Values) -> None:
        """Put weights into the module."""
        for name, value in values.items():
            self._put(name, self._fitted(name, value))
        self.installed = True

    def remove(self) -> None:
        """Put placeholders of the same device and type in the place of the weights."""
        for name, (home, attribute) in self._homes.items():
            like = getattr(home, attribute)
            self._put(name, torch.empty(0, dtype=like.dtype, device=like.device))
        self.installed = False

    def _put(self, name: str, value: Tensor) -> None:
        home, attribute = self._homes[name]
        home._parameters[attribute] = nn.Parameter(value, requires_grad=False)

    @property
    def parameters(self) -> set[int]:
        """Identities of the parameters that come and go."""
        return {id(getattr(home, attribute)) for home, attribute in self._homes.values()}


class Residency:
    """Which blocks of a network are decoded at the moment.

    Several threads may run the network at once; a block that one of them is in stays.
    """

    def __init__(self, blocks: Sequence[Block], cache_bytes: int | None, compressed_bytes: int) -> None:
        """Take over blocks; `attach` makes the network use them.

        Args:
            blocks: in the order in which they run.
            cache_bytes: how many bytes of decoded weights may stay; by default two of the largest block, so that one
                runs while the next is decoded. The blocks that run are there in any case.
            compressed_bytes: bytes of all payloads.

        Raises:
            UsageError: the budget is negative.
        """
        if cache_bytes is not None and cache_bytes < 0:
            raise UsageError(f"cache_bytes={cache_bytes} is negative; expected bytes of decoded weights that may stay.")
        self.blocks = tuple(blocks)
        largest = max((block.size for block in self.blocks), default=0)
        self.cache_bytes = 2 * largest if cache_bytes is None else cache_bytes
        self.compressed_bytes = compressed_bytes
        self._after = dict(zip(self.blocks, (*self.blocks[1:], *self.blocks[:1]), strict=True))
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="waterfill-prefetch")
        self._thread = threading.local()

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled.

        Raises:
            WaterfillError: always.
        """
        raise WaterfillError(
            "A network whose blocks stay compressed cannot be copied or pickled; load it again, or without "
            "resident=True."
        )

    def attach(self, model: nn.Module) -> None:
        """Let a network decode its blocks when they run."""
        for block in self.blocks:
            block.module.register_forward_pre_hook(self._enter_hook(block), prepend=True)
            block.module.register_forward_hook(self._leave_hook(block), always_call=True)
        model.register_forward_pre_hook(self._forget, prepend=True)
        model.register_state_dict_pre_hook(_refuse_state_dict)  # type: ignore[no-untyped-call]
        setattr(model, _ATTRIBUTE, self)

    def _enter_hook(self, block: Block) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, args: object) -> None:
            del module, args
            self.enter(block)

        return hook

    def _leave_hook(self, block: Block) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            del module, args
            self.leave(block)
            if output is not None:  # it is None after an exception
                self._look_ahead(block, AHEAD)

        return hook

    def _forget(self, module: nn.Module, args: object) -> None:
        """Leave blocks in which this thread was interrupted."""
        del module, args
        for block in list(self._inside):
            self.leave(block)

    @property
    def _inside(self) -> list[Block]:
        """The blocks that this thread is in."""
        if not hasattr(self._thread, "inside"):
            self._thread.inside, self._thread.last = [], None
        inside: list[Block] = self._thread.inside
        return inside

    def enter(self, block: Block) -> None:
        """Have the weights of a block there until `leave`, and decode the next block meanwhile.

        Raises:
            FormatError: a payload is damaged; the block is as before.
        """
        inside = self._inside
        with self._lock:
            block.users += 1
            if self._thread.last is not None:
                self._after[self._thread.last] = block
            self._thread.last = block
        inside.append(block)
        try:
            with block.lock:
                if not block.installed:
                    self._bring(block)
        except BaseException:
            self.leave(block)
            raise
        self._look_ahead(block, AHEAD - 1)

    def leave(self, block: Block) -> None:
        """Allow the weights of a block to go; nothing happens where this thread has not entered it."""
        inside = self._inside
        if block not in inside:
            return
        inside.remove(block)
        with self._lock:
            block.users -= 1
            self._make_room(0, block)

    def held(self) -> int:
        """Bytes of decoded weights at the moment, and of those on their way."""
        with self._lock:
            return self._charged()

    def _charged(self) -> int:
        return sum(block.size for block in self.blocks if block.charged)

    def _bring(self, block: Block) -> None:
        with self._lock:
            arriving = block.arriving
            if not block.charged:
                self._make_room(block.size, block)
                block.charged = True
        try:
            values = None if arriving is None or arriving.exception() else arriving.result()
            block.install(block.values() if values is None else values)
        finally:
            with self._lock:
                if not _busy(block):  # else an interruption while it was on its way, as it still is
                    block.charged, block.arriving = block.installed, None

    def _make_room(self, size: int, current: Block) -> None:
        """Let go of blocks that nobody is in until so many bytes fit into the budget, or nothing is left to go."""
        order = self._order(current)
        while self._charged() + size > self.cache_bytes:
            idle = [block for block in self.blocks if block.charged and not block.users and not _busy(block)]
            if not idle:
                return
            self._drop(max(idle, key=lambda block: order.get(block, len(self.blocks))))

    def _order(self, current: Block) -> dict[Block, int]:
        """In how many blocks each will be needed again, as it went the last time; what is not there, never."""
        order: dict[Block, int] = {}
        while current not in order:
            order[current] = len(order)
            current = self._after[current]
        del order[next(iter(order))]
        order.setdefault(current, len(order) + 1)
        return order

    def _drop(self, block: Block) -> None:
        block.charged, block.arriving = False, None
        if block.installed:
            block.remove()

    def _look_ahead(self, current: Block, count: int) -> None:
        """Begin to decode the blocks that come next, as far as there is room beside what is needed before them."""
        with self._lock:
            order = self._order(current)
            for block in itertools.islice(order, count):
                if block.charged:
                    continue
                sooner = [each for each in self.blocks if each.charged and self._is_sooner(each, block, order)]
                if sum(each.size for each in sooner) + block.size > self.cache_bytes:
                    return
                self._make_room(block.size, current)
                block.charged = True
                block.arriving = self._pool.submit(block.values)

    def _is_sooner(self, one: Block, other: Block, order: Mapping[Block, int]) -> bool:
        """Whether a block that is there may not go for another one."""
        return bool(one.users) or _busy(one) or order.get(one, len(self.blocks)) < order[other]


def _busy(block: Block) -> bool:
    return block.arriving is not None and not block.arriving.done()


def _refuse_state_dict(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    del prefix, keep_vars
    raise WaterfillError(
        f"The weights of this {type(module).__name__} stay compressed, so that it has no state dict; expected a "
        "network with its weights. Load it without resident=True, or decompress its directory."
    )


def held(model: nn.Module) -> Held:
    """What a network holds; without compressed blocks all of it is kept.

    Example:
        >>> held(torch.nn.Linear(3, 2))
        Held(compressed=0, kept=32, decoded=0)
    """
    residency: Residency | None = getattr(model, _ATTRIBUTE, None)
    blocks = () if residency is None else residency.blocks
    away = set().union(*(block.parameters for block in blocks))
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    kept = sum(tensor.numel() * tensor.element_size() for key, tensor in tensors.items() if key not in away)
    if residency is None:
        return Held(0, kept, 0)
    return Held(residency.compressed_bytes, kept, residency.held())


def resident_bytes(model: nn.Module) -> int:
    """Bytes that a network holds: compressed, always there, and decoded at the moment; see `held`."""
    return held(model).total
