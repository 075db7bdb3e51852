"""SqueezeNet v1.0, as Caffe defines it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# fire module -> (input channels, squeezed channels, channels of each of the two expansions)
_FIRES = {
    "fire2": (96, 16, 64),
    "fire3": (128, 16, 64),
    "fire4": (128, 32, 128),
    "fire5": (256, 32, 128),
    "fire6": (256, 48, 192),
    "fire7": (384, 48, 192),
    "fire8": (384, 64, 256),
    "fire9": (512, 64, 256),
}
_POOLED_FIRES = ("fire4", "fire8")


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 convolutions side by side.

    ```
                        .--expand1x1--.
    x --squeeze--relu--<               >--concatenate--relu-->
                        `--expand3x3--'
    ```
    """

    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in_channels, height, width]` to `[batch, 2 * expanded, height, width]`."""
        squeezed = F.relu(self.squeeze(x))
        return F.relu(torch.cat((self.expand1x1(squeezed), self.expand3x3(squeezed)), dim=1))


def squeezenet(classes: int = 1000) -> nn.Sequential:
    """SqueezeNet v1.0: a 7x7 convolution, eight fire modules, a 1x1 convolution; 1,248,424 parameters.

    Source: Iandola et al., "SqueezeNet" (2016), table 1.

    Args:
        classes: number of outputs.

    Returns:
        A network from images `[batch, 3, 224, 224]` (227 works too) to logits `[batch, classes]`.
    """
    return nn.Sequential(OrderedDict(_layers(classes)))


def _layers(classes: int) -> Iterator[tuple[str, nn.Module]]:
    yield "conv1", nn.Conv2d(3, 96, 7, stride=2)
    yield "relu1", nn.ReLU()
    yield "pool1", nn.MaxPool2d(3, stride=2, ceil_mode=True)
    for name, (in_channels, squeezed, expanded) in _FIRES.items():
        yield name, Fire(in_channels, squeezed, expanded)
        if name in _POOLED_FIRES:
            yield f"{name}_pool", nn.MaxPool2d(3, stride=2, ceil_mode=True)
    yield "conv10", nn.Conv2d(512, classes, 1, padding=1)
    yield "relu10", nn.ReLU()
    yield "pool10", nn.AdaptiveAvgPool2d(1)
    yield "flatten", nn.Flatten()
