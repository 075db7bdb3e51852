"""How each network is fed: stored bytes in, float32 or int64 tensors out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from waterfill.zoo.arrays import Bytes


def cifar_resnet_input(images: Bytes) -> Tensor:
    """(pixel / 255 - mean) / std with the means and deviations of ImageNet's channels.

    Args:
        images: RGB `[batch, height, width, 3]`.

    Returns:
        float32 `[batch, 3, height, width]`.
    """
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (_channels_first(images) / 255 - mean) / std


def paper_cifar_input(images: Bytes) -> Tensor:
    """(pixel / 255 - 0.5) / 0.5; RGB `[batch, height, width, 3]` to float32 `[batch, 3, height, width]`."""
    return (_channels_first(images) / 255 - 0.5) / 0.5


def lenet_input(images: Bytes) -> Tensor:
    """Pixel / 256, as Caffe trained the LeNets; `[batch, 28, 28]` to float32 `[batch, 1, 28, 28]`."""
    return torch.from_numpy(images.astype(np.float32)).unsqueeze(1) / 256


def paper_mnist_input(images: Bytes) -> Tensor:
    """(pixel / 255 - 0.1307) / 0.3081, MNIST's mean and deviation; `[batch, 28, 28]` to float32 `[batch, 1, 28, 28]`.

    The paper does not state its preprocessing; this is the usual one for MNIST in PyTorch.
    """
    return (torch.from_numpy(images.astype(np.float32)).unsqueeze(1) / 255 - 0.1307) / 0.3081


def mobilenet_input(images: Bytes) -> Tensor:
    """Pixel / 127.5 - 1; RGB `[batch, height, width, 3]` to float32 `[batch, 3, height, width]`."""
    return _channels_first(images) / 127.5 - 1


def squeezenet_input(images: Bytes) -> Tensor:
    """Pixel minus (104, 117, 123) in the order blue, green, red.

    Args:
        images: RGB `[batch, height, width, 3]`.

    Returns:
        BGR float32 `[batch, 3, height, width]`.
    """
    return _channels_first(images).flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)


def token_input(tokens: NDArray[Any]) -> Tensor:
    """Tokens `[batch, time]` of any integer type as int64."""
    return torch.tensor(tokens, dtype=torch.int64)


def _channels_first(images: Bytes) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32))
