"""MobileNet v1 with the layer names and the one-sided padding of its Keras weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from torch import nn

_POINTWISE_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_STRIDED_BLOCKS = (2, 4, 6, 12)


def mobilenet_v1(width: float = 0.25, classes: int = 1000) -> nn.Sequential:
    """MobileNet v1: a convolution, 13 depthwise-separable blocks, average pool, a 1x1 convolution.

    470,072 parameters at width 0.25. A convolution of stride 2 is padded with one row at the bottom and one column at
    the right only, the others by one on all sides.

    Source: Howard et al., "MobileNets" (2017), table 1.

    Args:
        width: factor of all channel counts, above 0.
        classes: number of outputs.

    Returns:
        A network from images `[batch, 3, 224, 224]` to logits `[batch, classes]`.
    """
    return nn.Sequential(OrderedDict(_layers(width, classes)))


def _layers(width: float, classes: int) -> Iterator[tuple[str, nn.Module]]:
    channels = int(32 * width)
    yield from _convolution("conv1", 3, channels, kernel=3, stride=2)
    for block, full_width in enumerate(_POINTWISE_CHANNELS, start=1):
        stride = 2 if block in _STRIDED_BLOCKS else 1
        yield from _convolution(f"conv_dw_{block}", channels, channels, kernel=3, stride=stride, groups=channels)
        yield from _convolution(f"conv_pw_{block}", channels, int(full_width * width), kernel=1)
        channels = int(full_width * width)
    yield "pool", nn.AdaptiveAvgPool2d(1)
    yield "conv_preds", nn.Conv2d(channels, classes, 1)
    yield "flatten", nn.Flatten()


def _convolution(
    name: str, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> Iterator[tuple[str, nn.Module]]:
    if stride == 2:
        yield f"{name}_pad", nn.ZeroPad2d((0, 1, 0, 1))
    padding = kernel // 2 if stride == 1 else 0
    yield name, nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    yield f"{name}_bn", nn.BatchNorm2d(out_channels, eps=1e-3)
    yield f"{name}_relu", nn.ReLU6()
