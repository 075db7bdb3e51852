"""Tensors that are stored without loss come back bit for bit, and take what they have to."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import waterfill
from waterfill.compression.lossless import shorter_symbols
from waterfill.models.arrays import dtype_name
from waterfill.records import Codebook, Entry, Exact, Uniform

DRAWN = torch.Generator().manual_seed(0)


def with_buffer(tensor):
    torch.manual_seed(0)
    net = nn.Linear(30, 20)
    net.register_buffer("table", tensor)
    return net


def row_and_tensor(model, tmp_path, name="table", data=None, **options):
    result = waterfill.compress(model, data, size_bytes=10**6 if data is None else 10**5, effort="fast", **options)
    result.save(tmp_path / "net.wf")
    return next(row for row in result.tensors if row.name == name), waterfill.decompress(tmp_path / "net.wf")[name]


def tables():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(64, 32, generator=generator)
    return {
        "indices": torch.randperm(500, generator=generator).float(),
        "mask": (uniform < 0.1).float(),
        "causal": torch.full((40, 40), -math.inf).triu(1),
        "bins": torch.linspace(-3, 3, 101),
        "signs": torch.where(uniform < 0.5, -1.0, 1.0),
        "negative zeros": torch.where(uniform < 0.5, -0.0, 0.0),
        "nan": torch.where(uniform < 0.5, math.nan, 1.0),
        "halves": (uniform < 0.2).half(),
        "brain": (uniform * 4).floor().bfloat16(),
        "double": (uniform < 0.2).double(),
        "fine double": uniform.double() / 3,
        "constant": torch.full((200,), 0.3),
        "counter": torch.tensor(3.0),
        "large": (uniform * 1e9).floor(),
        "waves": torch.polar(uniform, uniform),
    }


@pytest.mark.parametrize("name", tables())
def test_buffers_come_back_bit_for_bit(name, tmp_path):
    table = tables()[name]
    row, found = row_and_tensor(with_buffer(table), tmp_path)
    assert found.dtype == table.dtype
    assert torch.equal(found.reshape(-1).view(torch.uint8), table.reshape(-1).view(torch.uint8))
    assert row.reason in ("a buffer, stored exactly; include='table' quantizes it", "complex tensor")


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
def test_a_mask_costs_its_entropy(density):
    mask = (torch.rand(200, 300, generator=torch.Generator().manual_seed(0)) < density).float()
    found = shorter_symbols(Entry("mask", tuple(mask.shape), "float32", Exact("")), mask)
    share = float(mask.mean())
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert found.bits / mask.numel() == pytest.approx(entropy, rel=0.03, abs=0.003)


@pytest.mark.parametrize(
    ("tensor", "rule"),
    [
        (torch.randint(0, 3, (500,), generator=DRAWN) * 0.3, Codebook),
        (torch.randn(5000, generator=DRAWN).mul(1000).round() + 0.0, Uniform),
        (torch.randn(500, generator=DRAWN), None),
        (torch.ones(5), None),
        (torch.arange(500), None),
    ],
)
def test_the_shortest_way_is_taken(tensor, rule):
    entry = Entry("it", tuple(tensor.shape), dtype_name(tensor.dtype), Exact(""))
    found = shorter_symbols(entry, tensor)
    assert (None if found is None else type(found.rule)) is rule


def test_bytes_that_are_not_compressed_are_sooner_longer_than_symbols():
    values = torch.arange(256.0).repeat(3)
    entry = Entry("it", tuple(values.shape), "float32", Exact(""))
    assert shorter_symbols(entry, values) is None
    assert shorter_symbols(entry, values, plain=True) is not None


def test_masks_of_pruned_layers_stay_masks(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 6))
    prune.l1_unstructured(net[0], "weight", 0.8)
    data = [(torch.randn(16, 40), torch.randint(6, (16,))) for _ in range(4)]
    row, found = row_and_tensor(net, tmp_path, "0.weight_mask", data)
    assert torch.equal(found, net[0].weight_mask)
    assert row.rate < 0.8


def test_a_pattern_quantizes_a_buffer(tmp_path):
    table = torch.rand(64, 32, generator=torch.Generator().manual_seed(0))
    result = waterfill.compress(with_buffer(table), rate=4.0, include=["table", "weight", "bias"], effort="fast")
    result.save(tmp_path / "net.wf")
    assert not torch.equal(waterfill.decompress(tmp_path / "net.wf")["table"], table)
    assert next(row for row in result.tensors if row.name == "table").rate < 8


def test_statistics_of_norms_are_quantized_as_before():
    net = nn.Sequential(nn.BatchNorm1d(80), nn.InstanceNorm1d(80, track_running_stats=True))
    result = waterfill.compress(net, size_bytes=10**5, fold_norms=False, effort="fast")
    kinds = {row.name: row.reconstruction for row in result.tensors}
    assert kinds["0.running_var"] == kinds["1.running_mean"] == "relative"


def test_masks_in_a_bare_file_stay_masks(tmp_path):
    from safetensors.torch import save_file

    mask = (torch.rand(64, 32, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    save_file({"w": torch.randn(64, 32), "mask": mask, "ones": torch.ones(64)}, tmp_path / "net.safetensors")
    result = waterfill.compress(tmp_path / "net.safetensors", rate=3.0, effort="fast")
    result.save(tmp_path / "net.wf")
    assert torch.equal(waterfill.decompress(tmp_path / "net.wf")["mask"], mask)
    rows = {row.name: row for row in result.tensors}
    assert rows["mask"].reason == "zeros and ones, stored exactly"
    assert rows["mask"].rate < 1
    assert rows["ones"].reason != rows["mask"].reason
