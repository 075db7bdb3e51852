"""A plain file of everything at once: every rule, origin and coding, a basis, and names beyond ASCII."""

from dataclasses import replace

import torch
import with_bases
from with_adaptive import WithAdaptive
from with_tables import TABLES

from waterfill.bases.fitting import fitted_flips
from waterfill.bases.turning import coefficients
from waterfill.codec import container
from waterfill.compression.encoder import Encoder, mean_zero_cost
from waterfill.models import torch_module
from waterfill.models.arrays import exact_bytes
from waterfill.quantize import KMeans, Scalar, Trellis
from waterfill.records import TAPS, Layout, Limits, TensorLimit, Weight

QUANTIZERS = {
    "été.weight": KMeans(5),
    "路径.weight": Trellis(states=8),
    "路途.weight": Trellis(states=4),
    "drift.weight": WithAdaptive(),
}
TURNED = "kernel.weight", "étè.weight"
"""Names of tensors with one basis."""


def model():
    """A network with a tied layer, norms with and without weights, and buffers of all kinds."""
    generator = torch.Generator().manual_seed(5)
    net = torch.nn.Module()
    net.kernel = torch.nn.Conv2d(3, 8, (3, 5), bias=False)
    net.norm = torch.nn.BatchNorm2d(8)
    net.centred = torch.nn.BatchNorm2d(4, affine=False)
    net.add_module("été", torch.nn.Linear(9, 7))
    net.add_module("étè", torch.nn.Conv2d(4, 5, (3, 5)))
    net.add_module("路径", torch.nn.Linear(12, 10))
    net.add_module("路途", torch.nn.Linear(6, 20))
    net.drift = torch.nn.Linear(8, 6, bias=False)
    net.table = torch.nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False)
    net.head = torch.nn.Linear(12, 10, bias=False)
    net.head.weight = net.get_submodule("路径").weight
    net.register_buffer("mask", torch.arange(11) % 3 == 0)
    net.register_buffer("steps", torch.tensor(1000))
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(drawn.abs() + 0.1 if tensor.dim() == 1 else drawn)
    return net.eval()


def packed():
    """The file."""
    inventory = torch_module.inventory(model())
    encoder = Encoder(Scalar())
    jobs = encoder.jobs(inventory.weights, {})
    for name, quantizer in QUANTIZERS.items():
        jobs[name] = replace(jobs[name], quantizer=quantizer)
    cost = mean_zero_cost(jobs)
    quantized = Encoder(Scalar(), zero_cost=cost).quantize(jobs, cost * 2.0**-6)
    spread = replace(quantized["table.weight"].spread, tables=TABLES)
    quantized["table.weight"] = replace(quantized["table.weight"], spread=spread)
    basis = fitted_flips(with_bases.covariance(Layout((90, 1, 3, 5)), TAPS, 7), (3, 5))
    for name in TURNED:
        weight = inventory.weights[name]
        turned = Weight(name, coefficients(weight.matrix, basis, weight.layout), weight.layout)
        quantized[name] = replace(Scalar().quantize(turned, None, with_bases.FINE), basis=basis)
    exact = {name: exact_bytes(tensor) for name, tensor in inventory.exact.items()}
    bits = {name: quantized[name].bits for name, weight in inventory.weights.items() if not weight.is_vector}
    known = {name: TensorLimit(0.01 * some, "Gaussian", 0.01) for name, some in bits.items()}
    limits = Limits(known, 0.9 * sum(bits.values()), 1.0, "identity")
    return container.pack(inventory.entries, quantized, exact, "test", limits, plain=True).data
