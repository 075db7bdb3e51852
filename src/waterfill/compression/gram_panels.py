"""Sums of products `x x^T` over positions: what is above the diagonal is neither computed nor added up again."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor

PANEL = 2048
"""Rows of a sum of products that are computed at once, of each as many columns as there are up to the last of them."""


def gram_panels(name: str, inputs: Tensor) -> dict[str, Tensor]:
    """Terms of `ExactSum` for the sum of `x x^T`: some of its rows each, up to their last one.

    Args:
        name: of the matrix that reads the inputs.
        inputs: x, [positions, in].
    """
    found = {}
    for number, start in enumerate(range(0, inputs.shape[1], PANEL)):
        some = inputs[:, : start + PANEL]
        found[f"gram {number}:{name}"] = some[:, start:].T @ some
    return found


def take_gram(name: str, totals: MutableMapping[str, Tensor]) -> Tensor | None:
    """Take the sum of `x x^T` out of the totals of `gram_panels`, [in, in]; None where nothing was added up.

    Args:
        name: as it was given.
        totals: of `ExactSum`, from which the panels are taken.
    """
    panels: list[Tensor] = []
    while f"gram {len(panels)}:{name}" in totals:
        panels.append(totals.pop(f"gram {len(panels)}:{name}"))
    return _symmetric(panels) if panels else None


def _symmetric(panels: list[Tensor]) -> Tensor:
    """The whole of a symmetric matrix from its rows, each panel of them up to its last one; panels are let go."""
    inputs = panels[-1].shape[1]
    whole = panels[0].new_empty(inputs, inputs)
    while panels:
        panel = panels.pop()
        stop = panel.shape[1]
        start = stop - len(panel)
        whole[start:stop, :start] = panel[:, :start]
        whole[:start, start:stop] = panel[:, :start].T
        square = panel[:, start:]
        torch.add(square, square.T, out=whole[start:stop, start:stop]).div_(2)
    return whole
