"""The networks and data sets of the paper and of the benchmarks: architectures in code, weights and data from files.

Factories of networks take no obligatory argument and return a freshly initialised `nn.Module`; `pretrained` fills one.
Loaders take no obligatory argument and return `Batches` of (input, target), prepared as the network of their name wants
it: `*_calibration` of training samples, `*_test` of the test set. All read from the folder `$WATERFILL_DATA`.
"""

from __future__ import annotations

from waterfill.zoo.batches import Batches
from waterfill.zoo.character_lstm import CharLstm, LstmState, charlstm, charlstm_bronte
from waterfill.zoo.cifar_data import (
    cifar10_calibration,
    cifar10_test,
    paper_cifar10_calibration,
    paper_cifar10_test,
    paper_cifar100_calibration,
    paper_cifar100_test,
)
from waterfill.zoo.folder import data_folder
from waterfill.zoo.imagenet_data import (
    imagenet_calibration,
    imagenet_squeezenet_calibration,
    imagenet_squeezenet_test,
    imagenet_test,
)
from waterfill.zoo.lenet import lenet5, lenet300
from waterfill.zoo.llama import Llama, LlamaShape, stories260k
from waterfill.zoo.mnist_data import (
    fashion_mnist_calibration,
    fashion_mnist_test,
    mnist_calibration,
    mnist_test,
    paper_mnist_calibration,
    paper_mnist_test,
)
from waterfill.zoo.mobilenet import mobilenet_v1
from waterfill.zoo.paper_nets import paper_conv, paper_conv_w32, paper_conv_w32_cifar100, paper_mlp
from waterfill.zoo.resnet import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from waterfill.zoo.squeezenet_v1 import squeezenet
from waterfill.zoo.text_data import (
    charlstm_bronte_calibration,
    charlstm_bronte_test,
    charlstm_calibration,
    charlstm_test,
    stories_calibration,
    stories_test,
)
from waterfill.zoo.weights import PRETRAINED, load_pretrained, pretrained

__all__ = [  # noqa: RUF022 (in the order of sorted(), which is tested)
    "Batches",
    "CharLstm",
    "CifarResNet",
    "Llama",
    "LlamaShape",
    "LstmState",
    "PRETRAINED",
    "charlstm",
    "charlstm_bronte",
    "charlstm_bronte_calibration",
    "charlstm_bronte_test",
    "charlstm_calibration",
    "charlstm_test",
    "cifar10_calibration",
    "cifar10_test",
    "data_folder",
    "fashion_mnist_calibration",
    "fashion_mnist_test",
    "imagenet_calibration",
    "imagenet_squeezenet_calibration",
    "imagenet_squeezenet_test",
    "imagenet_test",
    "lenet300",
    "lenet5",
    "load_pretrained",
    "mnist_calibration",
    "mnist_test",
    "mobilenet_v1",
    "paper_cifar100_calibration",
    "paper_cifar100_test",
    "paper_cifar10_calibration",
    "paper_cifar10_test",
    "paper_conv",
    "paper_conv_w32",
    "paper_conv_w32_cifar100",
    "paper_mlp",
    "paper_mnist_calibration",
    "paper_mnist_test",
    "pretrained",
    "resnet110",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "squeezenet",
    "stories260k",
    "stories_calibration",
    "stories_test",
]
