"""The two LeNets on which the pruning literature compares itself, as Caffe defines them."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def lenet300() -> nn.Sequential:
    """LeNet-300-100: three linear layers with ReLU between, 266,610 parameters.

    Returns:
        A network from images `[batch, 1, 28, 28]` or rows `[batch, 784]` to logits `[batch, 10]`.
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            flatten=nn.Flatten(),
            ip1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            ip2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            ip3=nn.Linear(100, 10),
        )
    )


def lenet5() -> nn.Sequential:
    """LeNet-5: two convolutions without ReLU, two linear layers with ReLU between, 431,080 parameters.

    Returns:
        A network from images `[batch, 1, 28, 28]` to logits `[batch, 10]`.
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            ip1=nn.Linear(800, 500),
            relu1=nn.ReLU(),
            ip2=nn.Linear(500, 10),
        )
    )
