from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from waterfill import zoo
from waterfill.errors import FormatError, UnsupportedModelError, WaterfillError


def write(folder: Path, filename: str, weights: dict[str, torch.Tensor]) -> None:
    (folder / "models").mkdir(exist_ok=True)
    save_file(weights, folder / "models" / filename)


def test_pretrained_has_the_weights_of_the_file(folder: Path) -> None:
    weights = zoo.lenet300().state_dict()
    write(folder, "mnist_lenet300100.safetensors", weights)
    model = zoo.pretrained("lenet300")
    assert not model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_num_batches_tracked_may_be_missing_and_nothing_else(folder: Path) -> None:
    weights = zoo.resnet20().state_dict()
    counted = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    assert len(counted) < len(weights)
    write(folder, "x.safetensors", weights)
    zoo.load_pretrained(zoo.resnet20(), "x.safetensors")
    write(folder, "x.safetensors", counted)
    zoo.load_pretrained(zoo.resnet20(), "x.safetensors")
    del counted["bn1.running_mean"]
    write(folder, "x.safetensors", counted)
    with pytest.raises(UnsupportedModelError, match=r"does not fit CifarResNet: it lacks \['bn1\.running_mean'\]"):
        zoo.load_pretrained(zoo.resnet20(), "x.safetensors")


def test_surplus_names_and_other_shapes_are_named_and_change_nothing(folder: Path) -> None:
    weights = zoo.lenet5().state_dict()
    write(folder, "x.safetensors", weights | {"more": torch.zeros(2), "conv1.bias": torch.zeros(3)})
    model = zoo.lenet5()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError) as caught:
        zoo.load_pretrained(model, "x.safetensors")
    assert "it has also ['more']" in str(caught.value)
    assert "'conv1.bias' has shape (3,), expected (20,)" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "models").mkdir()
    (folder / "models" / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"x\.safetensors is damaged or no safetensors file"):
        zoo.load_pretrained(zoo.lenet5(), "x.safetensors")


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(
        WaterfillError, match=rf"'models/cifar10_resnet20\.safetensors' not found in the folder {folder}"
    ):
        zoo.pretrained("resnet20")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"No trained weights 'resnet18': expected one of charlstm, .*stories"
    ):
        zoo.pretrained("resnet18")
