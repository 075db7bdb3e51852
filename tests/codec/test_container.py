import hashlib
import random
import subprocess
import sys
import zlib

import numpy as np
import pytest
import slow_decoder
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from with_tables import WithTables

import waterfill
from waterfill import cli
from waterfill.codec import container
from waterfill.compression.encoder import Encoder, mean_zero_cost
from waterfill.files import WaterfillFile, decompress
from waterfill.models import torch_module
from waterfill.models.arrays import exact_bytes
from waterfill.quantize import KMeans, Scalar, Trellis, Vector
from waterfill.records import Codebook, Entry, Layout, NormMean, NormVariance, Weight

SCALAR = Scalar()
SPARSE = WithTables()


class Mixed(torch.nn.Module):
    """A little of everything that can be in a state dict."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6, dtype=dtype)
        self.conv = torch.nn.Conv2d(4, 6, 3, groups=2, dtype=dtype)
        self.up = torch.nn.ConvTranspose1d(4, 6, 3, groups=2, dtype=dtype)
        self.norm = torch.nn.BatchNorm2d(6, dtype=dtype)
        self.bare = torch.nn.BatchNorm2d(5, affine=False, dtype=dtype)
        self.head = torch.nn.Linear(6, 11, dtype=dtype)
        self.head.weight = self.embedding.weight
        self.scalar = torch.nn.Parameter(torch.tensor(0.7, dtype=dtype))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("empty", torch.zeros(0, 3, dtype=dtype))
        self.register_buffer("indices", torch.arange(12).reshape(3, 4))


def pack(model, level=-5.0, quantizer=SCALAR, *, plain=False, **options):
    inventory = torch_module.inventory(model, **options)
    cost = mean_zero_cost(Encoder(quantizer).jobs(inventory.weights, {}))
    encoder = Encoder(quantizer, zero_cost=cost)
    quantized = encoder.quantize(encoder.jobs(inventory.weights, {}), cost * 2.0**level)
    exact = {name: exact_bytes(tensor) for name, tensor in inventory.exact.items()}
    return container.pack(inventory.entries, quantized, exact, "test", plain=plain)


def same(a, b):
    return (a.shape, a.dtype, exact_bytes(a)) == (b.shape, b.dtype, exact_bytes(b))


@pytest.mark.parametrize("quantizer", [SCALAR, KMeans(9), SPARSE], ids=str)
def test_a_plain_file_has_the_same_tensors_and_its_exact_bytes_as_they_are(quantizer):
    model = Mixed()
    packed, plain = (pack(model, quantizer=quantizer, plain=each) for each in (False, True))
    with WaterfillFile(packed.data) as one, WaterfillFile(plain.data) as other:
        assert (one.container.is_plain, other.container.is_plain) == (False, True)
        assert [same(a, other[name]) for name, a in one.items()] == [True] * len(one)
        (index,) = other.container.indices("x")
        exact = other.container.exact(index)
    assert plain.data.endswith(exact) and len(exact) == 12 * 8 + 3 + 2 * 8
    assert sum(plain.tensor_bytes.values()) + plain.overhead_bytes == pytest.approx(len(plain.data))
    assert plain.tensor_bytes["indices"] == 12 * 8


def residual_network():
    """Convolutions and norms with the names of ResNet-20, of few channels."""
    torch.manual_seed(0)
    net = torch.nn.Module()
    net.conv1, net.bn1 = torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8)
    channels = 8
    for stage, width in enumerate((8, 16, 32), 1):
        blocks = torch.nn.Sequential(*(torch.nn.Module() for _ in range(3)))
        for block in blocks:
            block.conv1, block.bn1 = torch.nn.Conv2d(channels, width, 3, bias=False), torch.nn.BatchNorm2d(width)
            block.conv2, block.bn2 = torch.nn.Conv2d(width, width, 3, bias=False), torch.nn.BatchNorm2d(width)
            channels = width
        net.add_module(f"layer{stage}", blocks)
    net.linear = torch.nn.Linear(channels, 10)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return net


def test_a_plain_directory_is_less_than_twice_as_long():
    net = residual_network()
    packed, plain = (pack(net, quantizer=Trellis(states=8), plain=each).data for each in (False, True))
    sizes = [int.from_bytes(data[12:16], "little") for data in (packed, plain)]
    assert len(net.state_dict()) == 116
    assert sizes[1] <= 1.9 * sizes[0]
    with WaterfillFile(packed) as one, WaterfillFile(plain) as other:
        assert [same(a, other[name]) for name, a in one.items()] == [True] * len(one)


def test_plain_bytes_are_not_in_version_1_2():
    data = bytearray(pack(Mixed(), plain=True).data)
    data[10] = 2
    data[20:24] = zlib.crc32(data[:20] + data[24 : 24 + int.from_bytes(data[12:16], "little")]).to_bytes(4, "little")
    with pytest.raises(container.FormatError, match=r"plain bytes, which format version 1\.2 has not"):
        container.Container(bytes(data))


@pytest.mark.parametrize("quantizer", [SCALAR, KMeans(3), KMeans(300), SPARSE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_round_trip_is_strict_and_the_slow_decoder_agrees_bit_for_bit(dtype, quantizer):
    torch.manual_seed(0)
    model = Mixed(dtype)
    packed = pack(model, quantizer=quantizer)
    tensors = dict(WaterfillFile(packed.data).tensors())
    state = model.state_dict()
    assert list(tensors) == list(state)
    slow = slow_decoder.decode(packed.data)
    for name, tensor in tensors.items():
        assert tensor.shape == state[name].shape
        assert tensor.dtype == state[name].dtype
        twin = torch.tensor(np.ascontiguousarray(slow[name])).reshape(tensor.shape)
        assert same(tensor, twin.to(dtype) if dtype == torch.bfloat16 and twin.is_floating_point() else twin), name
    assert tensors["head.weight"] is tensors["embedding.weight"]
    assert torch.equal(tensors["indices"], state["indices"])
    assert torch.equal(tensors["mask"], state["mask"])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_variances_and_means_that_no_number_holds_are_the_largest_one_in_both_decoders(dtype):
    layout = Layout((4,))
    entries = (
        Entry("mean", (4,), dtype, NormMean(layout, "var")),
        Entry("var", (4,), dtype, NormVariance(layout, 1e-5)),
    )
    shift, scale = np.float32([[1e30, -1e30, 1, 0]]), np.float32([[1e-30, 1e-30, 0, 1]])
    quantized = {
        "mean": Vector().quantize(Weight("mean", shift, layout), None, 1e-9),
        "var": Vector().quantize(Weight("var", scale, layout), None, 1e-9),
    }
    data = container.pack(entries, quantized, {}, "test").data
    found, slow = WaterfillFile(data), slow_decoder.decode(data)
    largest = min(torch.finfo(getattr(torch, dtype)).max, torch.finfo(torch.float32).max)
    assert found["var"].tolist()[:3] == [largest] * 3
    assert found["mean"].tolist() == [-largest, largest, 0, 0]
    for name in ("mean", "var"):
        assert found[name].double().tolist() == slow[name].astype(np.float64).tolist()


@given(st.integers(0, 2**32 - 1), st.floats(-16, 8))
@settings(max_examples=15, deadline=None)
def test_any_water_level_decodes_to_what_was_encoded(seed, level):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Conv2d(3, 4, 2), torch.nn.LayerNorm(9))
    packed = pack(model, level)
    slow = slow_decoder.decode(packed.data)
    for name, tensor in WaterfillFile(packed.data).tensors():
        assert (tensor.numpy() == slow[name]).all()


@pytest.mark.parametrize("quantizer", [SCALAR, KMeans(3), SPARSE], ids=str)
def test_shares_and_overhead_add_up_to_the_file(quantizer):
    packed = pack(Mixed(), quantizer=quantizer)
    assert WaterfillFile(packed.data).container.tensor_bytes() == pytest.approx(packed.tensor_bytes)
    assert sum(packed.tensor_bytes.values()) + packed.overhead_bytes == pytest.approx(len(packed.data))
    assert all(share >= 0 for share in packed.tensor_bytes.values())


@pytest.mark.parametrize("quantizer", [SCALAR, KMeans(9), SPARSE], ids=str)
@pytest.mark.parametrize("threads", [1, 5])
def test_large_tensors_are_cut_and_small_ones_share_chunks(monkeypatch, quantizer, threads):
    monkeypatch.setattr(container, "SMALL_CHUNK", 40)
    monkeypatch.setattr(container, "LARGE_CHUNK", 64)
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(30, 21), torch.nn.Linear(200, 2), torch.nn.Linear(3, 3))
    packed = pack(model, quantizer=quantizer)
    file = WaterfillFile(packed.data, threads=threads)
    assert len(file.container.indices("s")) > 10
    with_tables = [name for name, (_, spread) in file.container.rules.items() if spread.tables]
    assert with_tables or quantizer is not SPARSE
    slow = slow_decoder.decode(packed.data)
    names = list(file)
    random.Random(0).shuffle(names)
    for name in names:
        assert (file[name].numpy() == slow[name]).all()


def test_codebooks_lie_in_a_chunk_of_their_own_as_they_are():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(30, 21), torch.nn.Linear(21, 2))
    packed = pack(model, quantizer=KMeans(9))
    container_ = WaterfillFile(packed.data).container
    (index,) = container_.indices("c")
    rules = [rule for rule, _ in container_.rules.values() if isinstance(rule, Codebook)]
    assert container_.chunk(index) == b"".join(rule.values.astype("<f4").tobytes() for rule in rules)
    assert len(container_.chunk(index)) == 2 * 9 * 4
    assert not WaterfillFile(pack(model).data).container.indices("c")


def test_another_process_another_thread_count_another_order(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "SMALL_CHUNK", 100)
    torch.manual_seed(2)
    path = tmp_path / "m.wf"
    path.write_bytes(pack(Mixed()).data)
    here = decompress(path, threads=1)
    with WaterfillFile(path, threads=7) as file:
        for name in reversed(list(file)):
            assert same(file[name], here[name])
    script = (
        "import sys, waterfill, hashlib\n"
        "from waterfill.models.arrays import exact_bytes\n"
        "for name, t in waterfill.decompress(sys.argv[1], threads=3).items():\n"
        "    print(name, hashlib.sha256(exact_bytes(t)).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True).stdout
    expected = "".join(f"{n} {hashlib.sha256(exact_bytes(t)).hexdigest()}\n" for n, t in here.items())
    assert there == expected


def test_the_same_input_gives_the_same_file():
    torch.manual_seed(3)
    model = Mixed()
    assert pack(model).data == pack(model).data


def test_a_lazy_read_touches_only_its_chunks(monkeypatch):
    monkeypatch.setattr(container, "SMALL_CHUNK", 1)
    torch.manual_seed(4)
    packed = pack(torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.Linear(9, 9)))
    damaged = bytearray(packed.data)
    damaged[-1] ^= 1
    file = WaterfillFile(bytes(damaged))
    assert file["0.weight"].shape == (9, 9)
    with pytest.raises(container.FormatError, match="damaged"):
        file["1.bias"]
    with pytest.raises(KeyError):
        file["2.weight"]


@pytest.fixture
def reads(monkeypatch):
    """Where what is read begins and ends, and the sizes of what checksums are computed of."""
    spans, sums = [], []
    read, crc32 = container.Container._read, zlib.crc32

    def noted(self, start, size):
        spans.append((start, start + size))
        return read(self, start, size)

    monkeypatch.setattr(container.Container, "_read", noted)
    monkeypatch.setattr(zlib, "crc32", lambda data: sums.append(len(data)) or crc32(data))
    return spans, sums


def verified_at_the_end(path):
    with waterfill.open(path) as file:
        dict(file.tensors())
        file.verify()
        assert not file.container._fetched


def inspected(path):
    typer.main.get_command(cli.app)(["inspect", str(path)], standalone_mode=False)


WAYS = {
    "decompress": waterfill.decompress,
    "load": lambda path: waterfill.load(path, into=Mixed()),
    "verify": verified_at_the_end,
    "inspect": inspected,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("quantizer", "kinds"), [(SPARSE, "asx"), (KMeans(9), "csx")], ids=["tables", "codebook"])
def test_every_byte_is_read_and_checked_once(tmp_path, monkeypatch, reads, quantizer, kinds, way):
    monkeypatch.setattr(container, "SMALL_CHUNK", 100)
    path = tmp_path / "m.wf"
    path.write_bytes(pack(Mixed(), quantizer=quantizer).data)
    with WaterfillFile(path) as file:
        chunks = len(file.container._directory.chunks)
        assert all(file.container.indices(kind) for kind in kinds) and len(file.container.indices("s")) > 1
    spans, sums = reads
    spans.clear()
    sums.clear()
    way(path)
    spans.sort()
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == path.stat().st_size
    assert len(sums) == 1 + chunks


def test_a_file_is_checked_whole_before_anything_is_decoded(tmp_path, monkeypatch):
    data = bytearray(pack(Mixed()).data)
    data[-1] ^= 1
    path = tmp_path / "m.wf"
    path.write_bytes(data)
    monkeypatch.setattr(container.Container, "symbols", lambda *_: pytest.fail("decoded"))
    with pytest.raises(container.FormatError, match="damaged"):
        decompress(path)
