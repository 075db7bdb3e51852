"""Recurrent layers step by step, written with `F.linear` so that every use of their weights can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from waterfill.models.recorder import SubstitutingRecorder

Function = Callable[..., Any]

State: TypeAlias = tuple[Tensor, ...]
"""(h, c) of an LSTM, (h,) of the others, each [batch, features]."""

Step: TypeAlias = Callable[[Tensor, State, Sequence[Tensor | None]], State]
"""(input part of the pre-activations [batch, gates * hidden], state, (w_hh, b_hh, w_hr)) to the next state."""


def lstm_step(from_input: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """One step of `torch.nn.LSTM`: gates in the order input, forget, cell, output; an optional projection of h."""
    h, c = state
    w_hh, b_hh, w_hr = weights
    i, f, g, o = (from_input + _linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if w_hr is None else F.linear(h, w_hr)), c


def gru_step(from_input: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """One step of `torch.nn.GRU`: gates in the order reset, update, new."""
    (h,) = state
    w_hh, b_hh, _ = weights
    input_r, input_z, input_n = from_input.chunk(3, dim=-1)
    hidden_r, hidden_z, hidden_n = _linear(h, w_hh, b_hh).chunk(3, dim=-1)
    z = (input_z + hidden_z).sigmoid()
    n = (input_n + (input_r + hidden_r).sigmoid() * hidden_n).tanh()
    return ((1 - z) * n + z * h,)


def tanh_step(from_input: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """One step of `torch.nn.RNN` with tanh."""
    return ((from_input + _linear(state[0], weights[0], weights[1])).tanh(),)


def relu_step(from_input: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """One step of `torch.nn.RNN` with ReLU."""
    return ((from_input + _linear(state[0], weights[0], weights[1])).relu(),)


def cell(step: Step, x: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """One step from an input [batch, features].

    Args:
        step: the kind of cell.
        x: [batch, features].
        state: the state before.
        weights: w_ih, w_hh, b_ih, b_hh, w_hr; None where there is none.

    Returns:
        The state after.
    """
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    return step(_linear(x, w_ih, b_ih), state, (w_hh, b_hh, w_hr))


def layers(
    step: Step,
    x: Tensor,
    state: State,
    weights: Sequence[Sequence[Tensor | None]],
    *,
    bidirectional: bool,
    dropout: float,
) -> tuple[Tensor, State]:
    """Run all layers of a recurrent module over a sequence.

    Args:
        step: the kind of cell.
        x: [time, batch, features].
        state: the state before, each [layers * directions, batch, features].
        weights: for each layer and direction what `cell` takes.
        bidirectional: whether every layer also runs backwards.
        dropout: probability of dropout between layers, 0 in evaluation mode.

    Returns:
        The outputs of the last layer [time, batch, directions * features], and the state after, as `state`.
    """
    directions = 2 if bidirectional else 1
    finals: list[State] = []
    for first in range(0, len(weights), directions):
        if first and dropout:
            x = F.dropout(x, dropout)
        outputs = []
        for direction in range(directions):
            begin = tuple(part[first + direction] for part in state)
            output, final = _run(step, x, begin, weights[first + direction], backwards=direction == 1)
            outputs.append(output)
            finals.append(final)
        x = torch.cat(outputs, dim=-1)
    return x, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def _run(
    step: Step, x: Tensor, state: State, weights: Sequence[Tensor | None], *, backwards: bool
) -> tuple[Tensor, State]:
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    outputs: list[Tensor] = []
    from_input = _linear(x, w_ih, b_ih).unbind(0)
    for at_time in reversed(from_input) if backwards else from_input:
        state = step(at_time, state, (w_hh, b_hh, w_hr))
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _linear(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    assert weight is not None
    return F.linear(x, weight, bias)


# Handlers, see `functions`


def sequence_handler(step: Step) -> Function:
    """Make the handler of a recurrent layer. Packed sequences, which have no axis of samples, are missed."""

    def handler(tape: SubstitutingRecorder, func: Function, input: Tensor, hx: Any, params: Any, *options: Any) -> Any:
        if _is_packed(hx, params):
            return tape.pass_through(func, input, hx, params, *options)
        has_biases, num_layers, dropout, train, bidirectional, batch_first = options
        weights = _by_layer([tape.value(p) for p in params], num_layers * (2 if bidirectional else 1), has_biases)
        x = input.transpose(0, 1) if batch_first else input
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        with tape:
            rate = dropout if train else 0.0
            y, final = layers(step, x, state, weights, bidirectional=bidirectional, dropout=rate)
        return (y.transpose(0, 1) if batch_first else y, *final)

    return handler


def _is_packed(hx: Any, params: Any) -> bool:
    """Whether the arguments behind the input are those of a packed sequence: its lengths, and the state."""
    has_lengths = isinstance(hx, Tensor) and hx.dtype == torch.int64
    return has_lengths or not isinstance(params, tuple | list)


def _by_layer(params: Sequence[Tensor], parts: int, has_biases: bool) -> list[list[Tensor | None]]:
    """Sort (w_ih, w_hh, b_ih, b_hh, w_hr) for each layer and direction."""
    each = len(params) // parts
    found: list[list[Tensor | None]] = []
    for first in range(0, len(params), each):
        own: list[Tensor | None] = list(params[first : first + each])
        biases = own[2:4] if has_biases else [None, None]
        projection = own[4:5] if has_biases else own[2:3]
        found.append([*own[:2], *biases, *(projection or [None])])
    return found


def cell_handler(step: Step) -> Function:
    """Make the handler of a recurrent cell that a model calls step by step."""

    def handler(
        tape: SubstitutingRecorder,
        func: Function,
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        *biases: Tensor | None,
    ) -> Any:
        del func
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        b_ih, b_hh = biases or (None, None)
        with tape:
            after = cell(step, input, state, (w_ih, w_hh, b_ih, b_hh, None))
        return after[0] if len(after) == 1 else after

    return handler
