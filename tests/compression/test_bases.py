"""The choice of a basis, by what tensors of known structure need."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import waterfill
from waterfill.bases.turning import coefficients
from waterfill.codec.container import Container
from waterfill.codec.lines import RotationsLine, SharedLine
from waterfill.compression import bases, tensor_slices
from waterfill.compression.bases import Bases
from waterfill.compression.encoder import Encoder, decoded_matrix
from waterfill.files import WaterfillFile
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import DiagonalForm, QuarticForm
from waterfill.processes import Processes
from waterfill.quantize import Feedback, Prune, Trellis
from waterfill.records import CHANNELS, OUT, TAPS, Cosines, Flips, Layout, Rotations, Weight
from waterfill.report.file_table import file_summary


def smooth(length, rho=0.9):
    """Covariance of an autoregression."""
    every = np.arange(length)
    return rho ** np.abs(every[:, None] - every)


def gaussian(shape, covariance, axis, seed=0):
    """A tensor whose values are related along one axis of the normal form."""
    layout = Layout(shape)
    values = np.random.default_rng(seed).normal(size=layout.axes)
    values = np.moveaxis(np.moveaxis(values, axis, -1) @ np.linalg.cholesky(covariance).T, -1, axis)
    return Weight("w", values.reshape(layout.axes[0], -1).astype(np.float32), layout)


def kernels(seed=0):
    """Kernels of 3 x 3 taps related as no cosines are, the same way under flips."""
    roots = np.random.default_rng(5).normal(size=(3, 3, 2))
    flipped = [root[::up, ::left].reshape(9, 2) for root in [roots] for up in (1, -1) for left in (1, -1)]
    covariance = sum(each @ each.T for each in flipped) / 4 + 0.02 * np.eye(9)
    return gaussian((32, 16, 3, 3), covariance, TAPS, seed)


def table(rank=6, tokens=3000, width=24):
    """A long table near to a few directions."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(tokens, rank)) @ rng.normal(size=(rank, width)) + 0.2 * rng.normal(size=(tokens, width))
    return Weight("w", values.astype(np.float32), Layout((tokens, width)))


def two_lumps():
    """Signs that change from place to place, about 1."""
    rng, every = np.random.default_rng(0), np.arange(112)
    values = (1 - 2.0 * ((every[:, None] + every) % 2)) * (1 + 0.05 * rng.normal(size=(112, 112)))
    return Weight("w", values.astype(np.float32), Layout((112, 112)))


def level_of(weight, bits=2):
    return float(np.square(weight.matrix, dtype=float).mean()) * 4.0**-bits


def basis_of(weight, form=None, quantizer=None, bits=2):
    return Bases(quantizer or Trellis(8), level_of(weight, bits)).of(weight, lambda: form)


STRUCTURED = {
    "taps": (kernels(), Flips, TAPS),
    "long taps": (gaussian((8, 4, 64), smooth(64), TAPS), Cosines, TAPS),
    "channels": (gaussian((64, 96), smooth(96), CHANNELS), Cosines, CHANNELS),
    "rows": (gaussian((96, 64), smooth(96), OUT), Cosines, OUT),
    "table": (table(), Rotations, CHANNELS),
    "table, the other way": (
        replace(table(), matrix=table().matrix.T.copy(), layout=Layout((24, 3000))),
        Rotations,
        OUT,
    ),
}


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("bits", [1.5, 3])
def test_structure_is_found_and_saves_bits(name, bits):
    weight, kind, axis = STRUCTURED[name]
    basis = basis_of(weight, bits=bits)
    assert isinstance(basis, kind) and basis.axis == axis
    encoder = Encoder(Trellis(8), bases=Bases(Trellis(8), level_of(weight, bits)))
    level = level_of(weight, bits)
    before, after = (
        each.quantize({"w": each.job(weight, None)}, level)["w"] for each in (Encoder(Trellis(8)), encoder)
    )
    assert before.basis is None and type(after.basis) is kind
    rates = [item.bits + weight.matrix.size / 2 * math.log2(item.distortion / level) for item in (before, after)]
    assert rates[1] < rates[0] - 0.1 * weight.matrix.size
    error = decoded_matrix(weight.layout, after) - weight.matrix
    assert np.square(error, dtype=float).sum() == pytest.approx(after.distortion, rel=1e-4)


def test_two_thirds_of_what_an_autoregression_saves_at_two_bits_is_saved():
    """Rows of AR(0.9) have 1.19 bit less than independent weights of their variance."""
    weight = STRUCTURED["channels"][0]
    basis, level = basis_of(weight), level_of(weight)
    other = replace(weight, matrix=coefficients(weight.matrix, basis, weight.layout))
    bits = [Trellis(8).quantize(each, None, level).bits / weight.matrix.size for each in (weight, other)]
    assert bits[0] - bits[1] > 0.8


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (256, 64), (8, 1, 3, 3), (2000, 20), (12, 12)], ids=str)
def test_independent_weights_keep_their_basis(shape, seed):
    values = np.random.default_rng(seed).normal(size=Layout(shape).axes).reshape(shape[0], -1).astype(np.float32)
    assert basis_of(Weight("w", values, Layout(shape))) is None


def test_kernels_of_one_strong_tap_keep_their_basis():
    scales = np.float32([0.01, 0.01, 0.01, 0.01, 1, 0.01, 0.01, 0.01, 0.01])
    values = np.random.default_rng(0).normal(size=(32 * 16, 9)).astype(np.float32) * scales
    assert basis_of(Weight("w", values.reshape(32, 144), Layout((32, 16, 3, 3)))) is None


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_what_errors_cost_decides_too(bits):
    """Where one column of a table is all that counts, no mixture of columns is cheaper."""
    weight = table()
    prices = np.full(weight.matrix.shape, 1e-6, np.float32)
    prices[:, 5] = 1.0
    level = float((prices * np.square(weight.matrix)).mean()) * 4.0**-bits
    assert Bases(Trellis(8), level).of(weight, lambda: DiagonalForm(prices)) is None


def test_cross_terms_are_those_of_the_basis():
    weight = kernels()
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(144, 300))
    form = KroneckerForm(np.ones(32), (roots @ roots.T / 300)[None])
    level = level_of(weight)
    encoder = Encoder(Feedback(8), bases=Bases(Feedback(8), level))
    job = encoder.job(weight, form)
    assert isinstance(job.basis, Flips) and job.form.has_cross_terms
    item = encoder.quantize({"w": job}, level)["w"]
    assert job.loss(item) == pytest.approx(item.distortion * form.factor, rel=1e-3)
    error = decoded_matrix(weight.layout, item) - weight.matrix
    assert form.cost(error) == pytest.approx(item.distortion, rel=1e-3)


REFUSED = {
    "pruning": (kernels(), None, Prune(keep=0.5)),
    "fourth powers": (kernels(), QuarticForm(*2 * [np.ones((32, 144), np.float32)]), None),
    "a vector": (Weight("w", kernels().matrix.reshape(1, -1), Layout((4608,))), None, None),
    "sparse": (replace(kernels(), matrix=kernels().matrix * (np.arange(144) % 3 == 0)), None, None),
    "one value": (replace(kernels(), matrix=np.full((32, 144), 0.3, np.float32)), None, None),
    "two lumps": (two_lumps(), None, None),
    "few values": (replace(kernels(), matrix=np.sign(kernels().matrix)), None, None),
    "very large": (replace(kernels(), matrix=kernels().matrix * np.float32(2.0**120)), None, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_for_the_weights_themselves_keeps_its_basis(name):
    weight, form, quantizer = REFUSED[name]
    assert basis_of(weight, form, quantizer) is None


def test_nothing_is_turned_beyond_single_precision():
    assert basis_of(kernels(), bits=10) is not None
    assert basis_of(kernels(), bits=20) is None


def test_a_basis_is_chosen_once_and_parts_of_a_table_share_it(monkeypatch):
    weight, chosen = table(), []
    known = Bases(Trellis(8), level_of(weight))
    monkeypatch.setattr(bases, "_candidates", lambda *args, real=bases._candidates: chosen.append(args) or real(*args))
    parts = [
        Weight(f"w[{start}:{start + 1000}]", weight.matrix[start : start + 1000], Layout((1000, 24)))
        for start in (0, 1000, 2000)
    ]
    found = [known.of(part, lambda: None) for part in parts]
    assert isinstance(found[0], Rotations) and found[0] is found[1] is found[2] and len(chosen) == 1


def test_all_processes_take_what_the_first_one_chooses():
    class Second(Processes):
        def broadcast_made(self, make):  # noqa: ARG002
            return Cosines(TAPS, 4)

    known = Bases(Trellis(8), 1.0, processes=Second(1, 2))
    assert known.of(kernels(), lambda: pytest.fail("is for the first one")) == Cosines(TAPS, 4)


class Smooth(nn.Module):
    """A convolution whose kernels go on smoothly."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 32, 9, padding=4)
        self.head = nn.Linear(32, 4)
        self.conv.weight.data = torch.from_numpy(gaussian((32, 8, 9), smooth(9), TAPS).matrix.reshape(32, 8, 9)) / 9

    def forward(self, x):
        return self.head(self.conv(x).relu().mean(2))


@pytest.mark.parametrize("data", [None, "data"])
def test_a_file_in_bases_decodes_to_what_was_measured(data, tmp_path):
    torch.manual_seed(0)
    model = Smooth().eval()
    batches = None if data is None else [torch.randn(32, 8, 20) for _ in range(4)]
    result = waterfill.compress(model, batches, rate=12, effort="fast", output=None if data is None else "values")
    row = next(row for row in result.tensors if row.name == "conv.weight")
    assert "of taps" in row.source_model
    result.save(tmp_path / "x.wf")
    with WaterfillFile(tmp_path / "x.wf") as file:
        basis = file.container.bases["conv.weight"]
        stored = {each["name"]: each.get("basis") for each in file_summary("x.wf", file)["tensors"]}
    assert basis is not None and stored["conv.weight"] == basis.name and stored["conv.bias"] is None
    found = waterfill.decompress(tmp_path / "x.wf")
    error = (found["conv.weight"] - model.conv.weight).norm() / model.conv.weight.norm()
    assert 0 < error < 0.2
    if batches is not None:
        other = Smooth().eval()
        waterfill.load(tmp_path / "x.wf", into=other)
        with torch.no_grad():
            squares = [(other(x) - model(x)).square().sum(1) for x in batches]
        assert float(torch.cat(squares).mean()) == pytest.approx(result.distortion, rel=1e-3)


def directory(folder, tensors):
    """A model directory of these tensors."""
    folder.mkdir()
    save_file({name: torch.from_numpy(each.matrix) for name, each in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    return folder


@pytest.mark.parametrize("rate", [2, 4])
def test_bits_of_a_directory_are_shared_by_what_tensors_take_in_their_bases(rate, tmp_path):
    """Forecasts of the weights themselves gave the first layer too many, and left too few for the last one."""
    tensors = {
        "model.layers.0.a.weight": gaussian((96, 96), np.eye(96), CHANNELS),
        "model.layers.1.a.weight": gaussian((96, 96), smooth(96, 0.95), CHANNELS),
    }
    source = directory(tmp_path / "source", tensors)
    result = waterfill.compress_directory(source, tmp_path / "out", rate=rate)
    assert result.rate == pytest.approx(rate, rel=0.05) and result.gap < 0.7
    found = waterfill.decompress(tmp_path / "out")
    errors = [float((found[name] - torch.from_numpy(each.matrix)).square().mean()) for name, each in tensors.items()]
    assert 0.25 < errors[0] / errors[1] < 4


def test_parts_of_a_table_have_their_angles_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_slices, "LARGEST_SLICE", 24_000)
    source = directory(tmp_path / "source", {"model.embed.weight": table()})
    waterfill.compress_directory(source, tmp_path / "out", rate=3)
    (shard_path,) = (tmp_path / "out").glob("*.safetensors")
    with safe_open(shard_path, "np") as shard:
        (payload,) = (shard.get_tensor(key) for key in shard.keys())  # noqa: SIM118 (no mapping)
    lines = Container(payload.tobytes())._directory.bases
    assert [type(line) for line in lines] == [RotationsLine, SharedLine, SharedLine]
    found = waterfill.decompress(tmp_path / "out")["model.embed.weight"]
    assert float((found - torch.from_numpy(table().matrix)).square().mean()) < 0.05


def test_rows_are_not_mixed_where_nobody_knows_which_are_used_most():
    weight = gaussian((96, 64), smooth(96), OUT)
    assert isinstance(Bases(Trellis(8), level_of(weight)).of(weight, lambda: None), Cosines)
    assert Bases(Trellis(8), level_of(weight), mixes_rows=False).of(weight, lambda: None) is None
