"""Compressions on a device that is none; `test_devices` runs them in a process of their own."""

import dataclasses
import filecmp
import os

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

import pretended_device
import waterfill
from directories import LLAMA, saved
from pretended_device import COPIED, DEVICE, FREE_BYTES, NAME
from waterfill import cli, linear_algebra
from waterfill.errors import UsageError
from waterfill.importance.exact_sum import ExactSum
from waterfill.importance.kronecker import FactorMoments
from waterfill.models.cloning import clone
from waterfill.models.placement import _of_process, device_name
from waterfill.processes import ALONE, Processes, _sharing

pretended_device.register()

RARE = pytest.mark.skipif(os.environ.get("DEVICES") != "all", reason="DEVICES=all for all of them: two minutes more")

MOST_BITS = 0.002
"""By which files of a device may differ from those of the processor, bits per value."""


def rarely(value):
    """A value that is tried only where all are."""
    return pytest.param(value, marks=RARE)


class Convolutions(nn.Module):
    """Every kind of layer of a small network for images; a table beside it that is no buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.deep, self.grouped = nn.Conv2d(16, 24, 3, stride=2, bias=False), nn.Conv2d(24, 24, 3, groups=24)
        self.last = nn.Linear(24, 10)
        self.table = torch.linspace(0.5, 1.5, 24)

    def forward(self, x):
        """Logits of images [samples, 3, height, width]."""
        x = self.deep(self.norm(self.first(x)).relu()).relu()
        return self.last(self.grouped(x).mean((2, 3)) * self.table)


def net(kind):
    torch.manual_seed(0)
    if kind == "convolutions":
        return Convolutions().eval()
    return nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))


def images(kind, count=8):
    torch.manual_seed(1)
    shape = (3, 12, 12) if kind == "convolutions" else (20,)
    return [(torch.randn(16, *shape), torch.randint(0, 5, (16,))) for _ in range(count)]


def near(found, expected, distortion=0.05):
    """Whether a result of a device is that of the processor, but for roundings."""
    assert abs(found.size_bytes - expected.size_bytes) * 8 <= MOST_BITS * expected.floating_values + 8
    if expected.distortion is not None:
        assert found.distortion == pytest.approx(expected.distortion, rel=distortion)


def state_of(model):
    return {name: (each.data_ptr(), each.clone()) for name, each in model.state_dict().items()}


def untouched(model, before):
    for name, each in model.state_dict().items():
        assert each.device.type == "cpu" and each.data_ptr() == before[name][0] and torch.equal(each, before[name][1])


# The device


def test_the_device_refuses_what_a_device_refuses():
    here, there = torch.ones(3, 4), torch.ones(3, 4, device=NAME)
    for mixed in (lambda: there + here, lambda: there @ here.T, lambda: torch.cat([there, here])):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=NAME, generator=torch.Generator())
    assert torch.equal((there + torch.tensor(1.0))[torch.tensor([0, 2])].cpu(), torch.full((2, 4), 2.0))


def test_a_device_is_named_with_its_number():
    assert device_name(NAME) == DEVICE
    with pytest.raises(UsageError, match=f"expected one of cpu, {DEVICE}"):
        device_name("cuda")


def test_a_copy_on_a_device_has_the_ties_the_views_and_the_tables_of_the_model():
    model = net("convolutions")
    model.tied = model.last.weight
    flat = torch.randn(48)
    model.left, model.right = nn.Parameter(flat[:24]), nn.Parameter(flat[24:])
    found = clone(model, torch.device(DEVICE))
    assert {each.device.type for each in (*found.parameters(), *found.buffers(), found.table)} == {NAME}
    assert found.tied is found.last.weight
    assert found.left.untyped_storage().data_ptr() == found.right.untyped_storage().data_ptr()
    for one, other in zip(model.state_dict().values(), found.state_dict().values(), strict=True):
        assert torch.equal(one, other.cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_the_same_whole_numbers_on_a_device(dtype):
    batches = [{"gram:a": torch.randn(7, 5, dtype=dtype) * 3**k, "count:": torch.ones(1)} for k in range(4)]
    here, there = ExactSum(ALONE), ExactSum(ALONE)
    for batch in batches:
        here.add(batch)
        there.add({**batch, "gram:a": batch["gram:a"].to(DEVICE)})
    expected, found = here.totals(), there.totals()
    assert found["gram:a"].device.type == NAME
    assert all(torch.equal(found[name].cpu(), expected[name]) for name in expected)


def test_what_is_not_finite_is_refused_on_a_device(name="gram:a"):
    sums = ExactSum(ALONE)
    sums.add({name: torch.ones(3, device=NAME)})
    with pytest.raises(waterfill.errors.CalibrationError, match="'a' are not finite"):
        sums.add({name: torch.tensor([1.0, torch.nan, 2.0], device=NAME)})


class TwoAlike(Processes):
    """A process beside another one that has the same batches; tensors go to it from the processor alone."""

    def __init__(self):
        super().__init__(0, 2)

    def broadcast(self, value):
        return value

    def all_gather(self, value):
        moments = [each for each in value if isinstance(each, FactorMoments)] if isinstance(value, tuple) else []
        for made in [each[0] for each in value if isinstance(each, tuple)] if isinstance(value, list) else moments:
            assert all(each.device.type == "cpu" for each in made.sums.values())
            assert all(each.total.device.type == "cpu" for each in made.rows.values())
            assert all(each.inputs.device.type == "cpu" for each in made.factors.values())
        return [value, value]

    def all_reduce(self, tensors):
        assert all(each.device.type == "cpu" for each in tensors.values())
        return {name: 2 * each for name, each in tensors.items()}


def test_processes_exchange_what_is_on_the_processor():
    sums = ExactSum(TwoAlike())
    sums.add({"gram:a": torch.ones(3, device=NAME)})
    assert torch.equal(sums.totals()["gram:a"].cpu(), torch.full((3,), 2.0, dtype=torch.float64))
    model, data = net("convolutions"), images("convolutions", 2)
    importance = waterfill.importance.kronecker()
    with _sharing(TwoAlike()):
        expected = importance.estimate(model, [data[0], data[0]])
        found = importance.estimate(clone(model, torch.device(DEVICE)), [data[0], data[0]])
    for name, form in found.items():
        np.testing.assert_allclose(form.diagonal(), expected[name].diagonal(), rtol=1e-3, atol=1e-9, err_msg=name)


def test_processes_of_a_machine_have_devices_of_their_own(monkeypatch):
    monkeypatch.setattr(torch.pretended, "device_count", lambda: 3)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_name(NAME) == DEVICE
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _of_process(torch.device(NAME)) == torch.device(NAME, 1)
    assert _of_process(torch.device("cpu")) == torch.device("cpu")
    assert device_name(DEVICE) == DEVICE


# Modules


@pytest.mark.parametrize("kind", ["convolutions", "layers"])
@pytest.mark.parametrize("target", [rarely({"rate": 3.0}), rarely({"distortion": 1e-3}), {"rate": 3.0, "tune": True}])
def test_a_module_is_compressed_on_a_device(kind, target):
    model, data = net(kind), images(kind)
    if kind == "convolutions":  # whose table of attributes a device does not get by itself
        assert model.table.device.type == "cpu"
    before = state_of(model)
    expected = waterfill.compress(model, data, effort="fast", **target)
    found = waterfill.compress(model, data, effort="fast", device=NAME, **target)
    near(found, expected)
    untouched(model, before)
    assert model.training == (kind == "layers")


def test_only_sums_and_outputs_come_to_the_processor():
    model, data = net("convolutions"), images("convolutions")
    COPIED.clear()
    waterfill.compress(model, data, rate=3.0, effort="fast", device=NAME)
    largest = max(each.numel() for each in model.parameters())
    outputs = max(len(target) * 10 for _, target in data)
    factors = (16 * 9) ** 2  # of the products of inputs of the second layer
    assert COPIED and max(size for size, _ in COPIED) <= 8 * max(largest, outputs, factors)
    assert max(size for size, where in COPIED if "target_correction" in where) <= 4 * largest


def test_large_factors_are_found_on_the_device(monkeypatch):
    monkeypatch.setattr(linear_algebra, "SMALL", 2)
    model, data = net("convolutions"), images("convolutions")
    expected = waterfill.compress(model, data, rate=3.0, effort="fast")
    monkeypatch.setattr(linear_algebra, "BLOCK", 0)  # of the processor's way, which nothing takes now
    near(waterfill.compress(model, data, rate=3.0, effort="fast", device=NAME), expected)


@pytest.mark.parametrize("name", ["kl", "regression", "gradient", "hessian", "gradient_hessian", "kronecker"])
@pytest.mark.parametrize("kind", ["convolutions", rarely("layers")])
def test_importances_are_estimated_on_a_device(name, kind):
    model, data = net(kind), images(kind)
    data = [inputs for inputs, _ in data] if name == "regression" else data
    importance = getattr(waterfill.importance, name)()
    expected = importance.estimate(model, data)
    found = importance.estimate(clone(model, torch.device(DEVICE)), data)
    assert found.keys() == expected.keys()
    for tensor, form in found.items():
        values = expected[tensor].diagonal()
        np.testing.assert_allclose(form.diagonal(), values, rtol=1e-3, atol=1e-5 * np.abs(values).max(), err_msg=tensor)


class Recurrent(nn.Module):
    """An LSTM over steps, and a table of letters before it."""

    def __init__(self):
        super().__init__()
        self.letters, self.cells, self.last = nn.Embedding(20, 12), nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 20)

    def forward(self, x):
        """Logits [samples, letters, steps] of letters [samples, steps]."""
        return self.last(self.cells(self.letters(x))[0]).transpose(1, 2)


def test_recurrent_layers_and_tables_are_compressed_on_a_device():
    torch.manual_seed(0)
    model, data = Recurrent(), [(torch.randint(20, (8, 6)), torch.randint(20, (8, 6))) for _ in range(6)]
    expected = waterfill.compress(model, data, rate=4.0, effort="fast", tune=True)
    near(waterfill.compress(model, data, rate=4.0, effort="fast", tune=True, device=NAME), expected)
    near(waterfill.compress(model, rate=4.0, device=NAME), waterfill.compress(model, rate=4.0))


@pytest.mark.parametrize("kind", ["convolutions", rarely("layers")])
def test_without_data_random_inputs_run_on_a_device(kind):
    expected = waterfill.compress(net(kind), rate=3.0, effort="fast")
    near(waterfill.compress(net(kind), rate=3.0, effort="fast", device=NAME), expected)


def test_values_are_compressed_on_a_device():
    model, data = net("layers"), [inputs for inputs, _ in images("layers")]
    expected = waterfill.compress(model, data, rate=3.0, effort="fast", output="values")
    near(waterfill.compress(model, data, rate=3.0, effort="fast", output="values", device=NAME), expected)


def test_qualities_and_bounds_are_those_of_the_processor():
    model, other, data = net("convolutions"), net("convolutions"), images("convolutions")
    with torch.no_grad():
        other.last.weight += 0.1
    before = state_of(model)
    expected = waterfill.evaluate(other, data, model)
    found = waterfill.evaluate(other, data, model, device=NAME)
    for name, value in dataclasses.asdict(expected).items():
        assert getattr(found, name) == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)
    bounds = [waterfill.bound(model, data, device=device).rate(0.01) for device in (None, NAME)]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-4)
    untouched(model, before)


def test_a_work_folder_is_of_one_device(tmp_path):
    model, data = net("layers"), images("layers")
    first = waterfill.compress(model, data, rate=3.0, effort="fast", device=NAME, work=tmp_path)
    again = waterfill.compress(model, data, rate=3.0, effort="fast", device=NAME, work=tmp_path)
    assert first.data == again.data
    with pytest.raises(UsageError, match="option device is not there, was 'pretended'"):
        waterfill.compress(model, data, rate=3.0, effort="fast", work=tmp_path)


# Directories

KINDS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    ),
    "bert": lambda: hf.BertModel(
        hf.BertConfig(
            vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64,
        )
    ),
    "experts": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**LLAMA | {"num_hidden_layers": 2}, num_local_experts=4)),
}  # fmt: skip
OFTEN = "gpt2", "experts"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Makes directories of models, each once."""
    place = tmp_path_factory.mktemp("models")

    def of(kind):
        if not (place / kind).exists():
            torch.manual_seed(0)
            saved(KINDS[kind](), place / kind)
        return place / kind

    return of


def texts(count=8):
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        mask = torch.ones(4, 16, dtype=torch.int64)
        mask[0, 12:] = 0
        batches.append({"input_ids": torch.randint(0, 96, (4, 16), generator=generator), "attention_mask": mask})
    return batches


@pytest.mark.parametrize("kind", [kind if kind in OFTEN else rarely(kind) for kind in KINDS])
def test_a_directory_is_compressed_on_a_device(directory, tmp_path, kind):
    data = texts()
    expected = waterfill.compress_directory(directory(kind), tmp_path / "here", data, rate=4, effort="fast")
    COPIED.clear()
    found = waterfill.compress_directory(directory(kind), tmp_path / "there", data, rate=4, effort="fast", device=NAME)
    near(found, expected, 0.2 if kind == "experts" else 0.05)  # positions go to another expert by a rounding
    assert not [where for size, where in COPIED if "block_forward" in where or "sensitivity" in where]


@pytest.mark.parametrize(
    "options",
    [
        rarely({"distortion": 1e-3}),
        {"rate": 4, "tune": True},
        rarely({"rate": 4, "importance": waterfill.importance.kl()}),
    ],
)
def test_all_ways_to_compress_a_directory_go_on_a_device(directory, tmp_path, options):
    expected = waterfill.compress_directory(directory("gpt2"), tmp_path / "a", texts(), effort="fast", **options)
    near(
        waterfill.compress_directory(
            directory("gpt2"), tmp_path / "b", texts(), effort="fast", device=NAME, **options
        ),
        expected,
    )  # fmt: skip


def test_hidden_states_without_room_on_the_device_are_kept_beside_it(directory, tmp_path, monkeypatch):
    waterfill.compress_directory(directory("gpt2"), tmp_path / "a", texts(), rate=4, effort="fast", device=NAME)
    monkeypatch.setitem(FREE_BYTES, 0, 0)
    COPIED.clear()
    waterfill.compress_directory(directory("gpt2"), tmp_path / "b", texts(), rate=4, effort="fast", device=NAME)
    assert [where for _, where in COPIED if "sensitivity" in where]
    assert filecmp.cmp(
        tmp_path / "a" / "waterfill.safetensors", tmp_path / "b" / "waterfill.safetensors", shallow=False
    )


def test_a_directory_is_bounded_on_a_device(directory):
    rates = [waterfill.bound(directory("gpt2"), texts(), device=device).rate(0.01) for device in (None, NAME)]
    assert rates[0] == pytest.approx(rates[1], abs=1e-3)


# Commands


def model_of_commands():
    return net("layers")


def data_of_commands():
    return images("layers")


def test_the_commands_take_a_device(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    here = "device_cases:model_of_commands"
    data = "--data device_cases:data_of_commands"
    for number, command in enumerate(
        (
            f"compress {here} {data} -o a.wf --rate 3 --effort fast --device {NAME}",
            f"compress {here} {data} -o b.wf --tolerance 5% --effort fast --device {NAME}",
            f"bound {here} {data} --device {NAME}",
            f"evaluate {here} a.wf {data} --device {NAME}",
            f"evaluate {here} {data} --device {NAME}",
            f"compress {here} {data} -o c.wf --device cuda",
        )
    ):
        monkeypatch.setattr("sys.argv", ["waterfill", *command.split()])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        told = capsys.readouterr()
        assert code == (2 if number == 5 else 0), told.err
    assert "Device 'cuda' cannot be used" in told.err and f"cpu, {DEVICE}" in told.err
    assert not (tmp_path / "c.wf").exists()
