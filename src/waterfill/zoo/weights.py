"""The networks of the zoo with their trained weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import safetensors
from safetensors.torch import load_file
from torch import Tensor, nn

from waterfill.errors import FormatError, UnsupportedModelError
from waterfill.zoo.character_lstm import charlstm, charlstm_bronte
from waterfill.zoo.folder import require_file
from waterfill.zoo.lenet import lenet5, lenet300
from waterfill.zoo.llama import stories260k
from waterfill.zoo.mobilenet import mobilenet_v1
from waterfill.zoo.paper_nets import paper_conv_w32, paper_conv_w32_cifar100
from waterfill.zoo.resnet import resnet20, resnet32
from waterfill.zoo.squeezenet_v1 import squeezenet


@dataclass(frozen=True)
class Pretrained:
    """A factory and the file under the folder `models` that fills what it makes."""

    factory: Callable[[], nn.Module]
    filename: str


PRETRAINED = {
    "charlstm": Pretrained(charlstm, "lm_charlstm_shakespeare.safetensors"),
    "charlstm_bronte": Pretrained(charlstm_bronte, "lm_charlstm_charlotte_bronte.safetensors"),
    "lenet300": Pretrained(lenet300, "mnist_lenet300100.safetensors"),
    "lenet300_dns": Pretrained(lenet300, "mnist_lenet300100_dns_pruned.safetensors"),
    "lenet5": Pretrained(lenet5, "mnist_lenet5.safetensors"),
    "lenet5_dns": Pretrained(lenet5, "mnist_lenet5_dns_pruned.safetensors"),
    "mobilenet_v1": Pretrained(mobilenet_v1, "imagenet_mobilenet_v1_025.safetensors"),
    "paper_conv_w32": Pretrained(paper_conv_w32, "cifar10_paperconv_w32.safetensors"),
    "paper_conv_w32_cifar100": Pretrained(paper_conv_w32_cifar100, "cifar100_paperconv_w32.safetensors"),
    "resnet20": Pretrained(resnet20, "cifar10_resnet20.safetensors"),
    "resnet32": Pretrained(resnet32, "cifar10_resnet32.safetensors"),
    "squeezenet": Pretrained(squeezenet, "imagenet_squeezenet_deepcompressed.safetensors"),
    "stories260k": Pretrained(stories260k, "lm_stories260k.safetensors"),
}


def pretrained(name: str) -> nn.Module:
    """Build a network of the zoo, fill it with its trained weights and put it in evaluation mode.

    Args:
        name: a key of `PRETRAINED`; those ending in `_dns` are the LeNets pruned by Dynamic Network Surgery.

    Returns:
        The network.

    Raises:
        WaterfillError: there are no weights of that name, or their file is missing, damaged or does not fit.
    """
    if name not in PRETRAINED:
        raise UnsupportedModelError(f"No trained weights '{name}': expected one of {', '.join(sorted(PRETRAINED))}.")
    entry = PRETRAINED[name]
    model = entry.factory()
    load_pretrained(model, entry.filename)
    return model.eval()


def load_pretrained(model: nn.Module, filename: str) -> None:
    """Fill a network in place from a safetensors file, strict in names and shapes.

    Batch norm counts the batches of its training in `num_batches_tracked`; a file without it is accepted.

    Args:
        model: the network, whose names must be those of the file.
        filename: name of the file in the folder `models` of the data folder.

    Raises:
        WaterfillError: the file is missing.
        FormatError: the file is damaged.
        UnsupportedModelError: the names or shapes of the file and the network differ.
    """
    path = require_file(f"models/{filename}")
    try:
        weights = load_file(path)
    except safetensors.SafetensorError as error:
        raise FormatError(f"{path} is damaged or no safetensors file ({error}); copy the file again.") from error
    differences = _differences(model.state_dict(), weights)
    if differences:
        raise UnsupportedModelError(f"{path} does not fit {type(model).__name__}: {'; '.join(differences)}.")
    model.load_state_dict(weights, strict=False)


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in found and not name.endswith(".num_batches_tracked")]
    surplus = [name for name in found if name not in expected]
    return [
        *([f"it lacks {missing}"] if missing else []),
        *([f"it has also {surplus}"] if surplus else []),
        *(
            f"'{name}' has shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ),
    ]
