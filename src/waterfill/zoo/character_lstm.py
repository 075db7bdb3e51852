"""Character language model of two LSTM layers, written with linear layers that run once a time step."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

HIDDEN = 128
FORGET_BIAS = 1.0

LstmState: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""For each layer the output h and the cell c, each `[batch, 128]`."""


class CharLstm(nn.Module):
    """Embedding, two LSTM layers of 128 and a linear layer over the characters.

    `lstmK` are plain linear layers from (layer input, previous output) to the four gates in the order input,
    candidate, forget, output, so that code which knows `nn.Linear` knows this network.

    Args:
        vocabulary: number of different characters.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, HIDDEN)
        self.lstm0 = nn.Linear(2 * HIDDEN, 4 * HIDDEN)
        self.lstm1 = nn.Linear(2 * HIDDEN, 4 * HIDDEN)
        self.softmax = nn.Linear(HIDDEN, vocabulary)

    def forward(self, tokens: Tensor, state: LstmState | None = None) -> Tensor:
        """Predict the next character at each position.

        Args:
            tokens: int64 `[batch, time]`, values in [0, vocabulary).
            state: where an earlier `stream` ended; None is the zero state.

        Returns:
            Logits `[batch, time, vocabulary]`.
        """
        return self.stream(tokens, state)[0]

    def stream(self, tokens: Tensor, state: LstmState | None = None) -> tuple[Tensor, LstmState]:
        """Predict as `forward` does, and also return the state after the last character.

        Args:
            tokens: int64 `[batch, time]`, values in [0, vocabulary).
            state: where an earlier `stream` ended; None is the zero state.

        Returns:
            Logits `[batch, time, vocabulary]`, and the state to give with the characters that follow.
        """
        first, second = self.zero_state(len(tokens)) if state is None else state
        outputs = []
        for step in self.embedding(tokens).unbind(dim=1):
            first = _lstm_step(self.lstm0, step, first)
            second = _lstm_step(self.lstm1, first[0], second)
            outputs.append(second[0])
        return self.softmax(torch.stack(outputs, dim=1)), (first, second)

    def zero_state(self, batch: int) -> LstmState:
        """Return the state at the start of a text, for `batch` texts side by side."""
        zeros = self.softmax.weight.new_zeros(batch, HIDDEN)
        return ((zeros, zeros), (zeros, zeros))


def _lstm_step(gates: nn.Linear, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """C' = sigmoid(f + 1) c + sigmoid(i) tanh(j); h' = sigmoid(o) tanh(c')."""
    h, c = state
    i, j, f, o = gates(torch.cat((x, h), dim=1)).chunk(4, dim=1)
    c = torch.sigmoid(f + FORGET_BIAS) * c + torch.sigmoid(i) * torch.tanh(j)
    return torch.sigmoid(o) * torch.tanh(c), c


def charlstm(vocabulary: int = 65) -> CharLstm:
    """Character LSTM for Tiny Shakespeare: 279,873 parameters at the vocabulary of 65."""
    return CharLstm(vocabulary)


def charlstm_bronte() -> CharLstm:
    """Character LSTM for the novels of Charlotte Bronte: vocabulary 108, 290,924 parameters."""
    return CharLstm(108)
