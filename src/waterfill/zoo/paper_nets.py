"""The networks of the paper's experiments.

Source: Gao, Liu, Wang, Oh, "Rate Distortion For Model Compression: From Theory To Practice" (2019), section 6.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from torch import nn


def paper_mlp(dropout: float = 0.2) -> nn.Sequential:
    """Multilayer perceptron 784-256-256-10 with ReLU and dropout, for MNIST: 269,322 parameters.

    Args:
        dropout: probability of dropping a hidden unit while training, in [0, 1).

    Returns:
        A network from images `[batch, 1, 28, 28]` or rows `[batch, 784]` to logits `[batch, 10]`.
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 256),
            relu1=nn.ReLU(),
            drop1=nn.Dropout(dropout),
            fc2=nn.Linear(256, 256),
            relu2=nn.ReLU(),
            drop2=nn.Dropout(dropout),
            fc3=nn.Linear(256, 10),
        )
    )


def paper_conv(width: int = 128, classes: int = 10) -> nn.Sequential:
    """Convolutional network w, w, M, 2w, 2w, M, 4w, 4w, M, 8w (no padding), M and one linear layer, for CIFAR.

    Every 3x3 convolution has a bias and is followed by batch norm without affine parameters and ReLU; M is a 2x2
    max-pool.

    Args:
        width: w, the channels of the first convolution; 128 in the paper.
        classes: number of outputs; 10 for CIFAR-10, 100 for CIFAR-100.

    Returns:
        A network from images `[batch, 3, 32, 32]` to logits `[batch, classes]`.
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            features=nn.Sequential(*_features(width)),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(nn.Linear(8 * width, classes)),
        )
    )


def paper_conv_w32() -> nn.Sequential:
    """`paper_conv` for CIFAR-10 at a quarter of its width: 584,746 parameters."""
    return paper_conv(width=32, classes=10)


def paper_conv_w32_cifar100() -> nn.Sequential:
    """`paper_conv` for CIFAR-100 at a quarter of its width: 607,876 parameters."""
    return paper_conv(width=32, classes=100)


def _features(width: int) -> Iterator[nn.Module]:
    channels = 3
    for factor in (1, 2, 4):
        yield from _convolution(channels, factor * width, padding=1)
        yield from _convolution(factor * width, factor * width, padding=1)
        yield nn.MaxPool2d(2)
        channels = factor * width
    yield from _convolution(channels, 8 * width, padding=0)
    yield nn.MaxPool2d(2)


def _convolution(in_channels: int, out_channels: int, padding: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(in_channels, out_channels, 3, padding=padding)
    yield nn.BatchNorm2d(out_channels, affine=False)
    yield nn.ReLU()
