"""A whole round trip on the handwritten digits that scikit-learn carries: train, compress, load elsewhere, compare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from waterfill.errors import WaterfillError

RATE = 2.6
BATCH = 64


def digits_net() -> nn.Module:
    """A small convolutional network for 8 x 8 digits."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def digits() -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Batches of training digits, and of held-out ones.

    Raises:
        WaterfillError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise WaterfillError("The demo needs scikit-learn for its digits; pip install 'waterfill[demo]'.") from error
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(bunch.images, dtype=torch.float32)[order, None] / 16
    labels = torch.tensor(bunch.target)[order]
    batches = [(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(labels), BATCH)]
    return batches[:20], batches[20:]


def held_out() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of digits that the network never saw: `--data waterfill.demo:held_out`."""
    return digits()[1]


def calibration() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of training digits: `--data waterfill.demo:calibration`."""
    return digits()[0]


def train(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], epochs: int = 15) -> None:
    """Train with Adam, in place."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(images), labels))
            optimizer.step()
    model.eval()


def run(folder: Path) -> None:
    """Train, compress, load in another process, and print what became of it."""
    from rich.console import Console

    from waterfill.compression.api import compress
    from waterfill.models.state_dict import save_tensors
    from waterfill.progress import progress_bar
    from waterfill.report.text import result_table

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    weights, compressed = folder / "digits.safetensors", folder / "digits.wf"
    torch.manual_seed(0)
    torch.set_num_threads(1)  # on so small a network threads cost more than they give
    model = digits_net()
    console.print("Training a small convolutional network on scikit-learn's handwritten digits ...")
    train(model, calibration())
    save_tensors(weights, model.state_dict(), force=True)
    with progress_bar() as progress:
        result = compress(model, calibration(), rate=RATE, progress=progress)
    result.save(compressed)
    console.print(result_table(result, str(compressed)))
    command = [sys.executable, "-m", "waterfill", "evaluate", "waterfill.demo:digits_net", str(compressed)]
    command += ["--weights", str(weights), "--data", "waterfill.demo:held_out"]
    console.print("\nHeld-out digits, measured in another process that loads the file into a fresh network:")
    console.print(f"$ waterfill {' '.join(command[3:])}", soft_wrap=True)
    subprocess.run(command, check=True)
