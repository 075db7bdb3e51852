"""Recurrent layers step by step, written with `F.linear` so that every use of their weights can be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

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
