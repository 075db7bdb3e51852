from __future__ import annotations

import inspect

from torch import nn

from waterfill import zoo

FACTORIES = (
    "charlstm",
    "charlstm_bronte",
    "lenet300",
    "lenet5",
    "mobilenet_v1",
    "paper_conv",
    "paper_conv_w32",
    "paper_conv_w32_cifar100",
    "paper_mlp",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "squeezenet",
    "stories260k",
)


def test_public_names_are_sorted_and_exist() -> None:
    assert zoo.__all__ == sorted(zoo.__all__)
    assert all(hasattr(zoo, name) for name in zoo.__all__)


def test_factories_need_no_argument_and_train() -> None:
    for name in FACTORIES:
        model = getattr(zoo, name)()
        assert isinstance(model, nn.Module)
        assert model.training


def test_every_loader_needs_no_argument_and_has_a_partner() -> None:
    loaders = [name for name in zoo.__all__ if name.endswith(("_calibration", "_test"))]
    assert len(loaders) == 22
    for name in loaders:
        parameters = inspect.signature(getattr(zoo, name)).parameters
        assert list(parameters) == ["samples", "batch_size"]
        assert all(parameter.default is not parameter.empty for parameter in parameters.values())
        stem, _, split = name.rpartition("_")
        assert f"{stem}_{'test' if split == 'calibration' else 'calibration'}" in loaders
