"""Residual networks for 32 x 32 images with shortcuts that have no weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a parameter-free shortcut.

    ```
    x --conv1--bn1--relu--conv2--bn2--(+)--relu-->
     `--every stride-th pixel, zero channels--'
    ```
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def shortcut(self, x: Tensor) -> Tensor:
        """Keep every `stride`-th row and column and put half of the new, zero channels on each side.

        Args:
            x: `[batch, in_channels, height, width]`.

        Returns:
            `[batch, out_channels, height / stride, width / stride]`; `x` itself where nothing changes.
        """
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        picked = x[:, :, :: self.stride, :: self.stride]
        return F.pad(picked, (0, 0, 0, 0, before, self.new_channels - before))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in_channels, height, width]` to `[batch, out_channels, height / stride, width / stride]`."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of 16, 32 and 64 channels, global average pool, one linear layer.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2016), section 4.2, option A.

    Args:
        blocks: residual blocks in each stage; the network has `6 * blocks + 2` layers.
        classes: number of outputs.
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[batch, 3, height, width]` to logits `[batch, classes]`."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(hidden.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def resnet20() -> CifarResNet:
    """ResNet-20 for CIFAR-10: 269,722 parameters."""
    return CifarResNet(3)


def resnet32() -> CifarResNet:
    """ResNet-32 for CIFAR-10: 464,154 parameters."""
    return CifarResNet(5)


def resnet44() -> CifarResNet:
    """ResNet-44 for CIFAR-10: 658,586 parameters."""
    return CifarResNet(7)


def resnet56() -> CifarResNet:
    """ResNet-56 for CIFAR-10: 853,018 parameters."""
    return CifarResNet(9)


def resnet110() -> CifarResNet:
    """ResNet-110 for CIFAR-10: 1,727,962 parameters."""
    return CifarResNet(18)
