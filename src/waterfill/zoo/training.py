"""How the networks of the paper are trained where no weights are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from waterfill.protocols import Progress
from waterfill.zoo.batches import Batches

LEAST_MOMENTUM, MOST_MOMENTUM = 0.85, 0.95
"""Of Nesterov: the most at the ends of the cycle, the least where the learning rate is highest."""


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with Nesterov's momentum, and one cycle of the learning rate and the momentum.

    Attributes:
        epochs: passes over the training samples.
        batch_size: samples in a step.
        learning_rate: the highest.
        weight_decay: of all parameters.
        flip: whether half of the images are mirrored.
        shift: images are moved by up to so many pixels, the border is zero.
    """

    epochs: int = 16
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    flip: bool = False
    shift: int = 0


def train(model: nn.Module, data: Batches, recipe: Recipe, seed: int = 0, progress: Progress | None = None) -> None:
    """Train a classifier in place, from the weights it has; it is left in evaluation mode.

    Args:
        model: the network, from images [batch, channels, height, width] to logits.
        data: training samples; their batch size is not used.
        recipe: how.
        seed: of the order of the samples, the augmentation and dropout. The state of PyTorch's own generator is put
            back afterwards.
        progress: called with ("train", done, total) after every epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * -(-len(data.samples.labels) // recipe.batch_size)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=MOST_MOMENTUM,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=steps,
        pct_start=0.25,
        base_momentum=LEAST_MOMENTUM,
        max_momentum=MOST_MOMENTUM,
    )
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for epoch in range(recipe.epochs):
            order = torch.randperm(len(data.samples.labels), generator=generator).numpy()
            for start in range(0, len(order), recipe.batch_size):
                rows = order[start : start + recipe.batch_size]
                images = _augmented(data.prepare(data.samples.inputs[rows]), recipe, generator)
                labels = torch.tensor(data.samples.labels[rows], dtype=torch.int64)
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(images), labels))
                optimizer.step()
                schedule.step()
            if progress is not None:
                progress("train", epoch + 1, recipe.epochs)
    model.eval()


def _augmented(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Mirror and move images at random."""
    if recipe.flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if recipe.shift:
        height, width = images.shape[-2:]
        padded = nn.functional.pad(images, [recipe.shift] * 4)
        corners = torch.randint(2 * recipe.shift + 1, (2, len(images)), generator=generator)
        rows = corners[0, :, None, None] + torch.arange(height)[None, :, None]
        columns = corners[1, :, None, None] + torch.arange(width)[None, None, :]
        moved = padded[torch.arange(len(images))[:, None, None], :, rows, columns]
        images = moved.permute(0, 3, 1, 2).contiguous()
    return images
