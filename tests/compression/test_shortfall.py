"""A file far from what was asked, or one of zeros, says so and why; among files of one size the finest is taken."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import waterfill
from waterfill.cli import main
from waterfill.compression.shortfall import (
    CONSTANT,
    ZEROED,
    check_tolerance,
    is_constant,
    shortfall_of_quality,
    shortfall_of_size,
)
from waterfill.compression.target import Target
from waterfill.errors import TargetError
from waterfill.importance import weight_scale


def module(values):
    found = nn.Module()
    found.w = nn.Parameter(values)
    return found


def single(rows, columns):
    values = torch.zeros(rows, columns)
    values[rows // 2, columns // 3] = 2.0
    return values


def relative_error(values, tmp_path, **target):
    result = waterfill.compress(module(values), effort="fast", **target)
    result.save(tmp_path / "net.wf")
    back = waterfill.decompress(tmp_path / "net.wf")["w"]
    return result, float(((back - values) ** 2).sum() / (values**2).sum())


@pytest.mark.parametrize(
    "values",
    [torch.full((40, 60), 0.3), torch.eye(64), torch.eye(48)[torch.arange(48) * 5 % 48], single(40, 60)],
    ids=["constant", "identity", "permutation", "single"],
)
@pytest.mark.parametrize("rate", [1.0, 3.0, 8.0])
def test_what_takes_no_bits_comes_back(values, rate, tmp_path):
    result, error = relative_error(values, tmp_path, rate=rate)
    assert error < 1e-8
    assert result.rate <= rate


@pytest.mark.parametrize("rate", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["two values and noise", "two values", "three values"])
def test_bits_between_zeros_and_a_few_values_are_shared_by_rows(kind, rate, tmp_path):
    generator = torch.Generator().manual_seed(0)
    values = {
        "two values and noise": lambda g: (
            torch.randn(64, 256, generator=g).sign() + 0.1 * torch.randn(64, 256, generator=g)
        ),
        "two values": lambda g: torch.randn(64, 256, generator=g).sign(),
        "three values": lambda g: torch.randint(-1, 2, (64, 256), generator=g).float(),
    }[kind](generator)
    result, error = relative_error(values, tmp_path, rate=rate, importance=weight_scale())
    assert 0.95 * rate < result.rate <= rate or (result.rate <= rate and error < 0.35)
    assert error < (0.5 if rate == 1.0 else 0.75)
    assert result.tensors[0].distortion == pytest.approx(error * float((values**2).mean().sqrt()) * 64 * 256, rel=0.02)
    assert not any(ZEROED in note or ("not reached" in note and error > 0.35) for note in result.notes)


@pytest.mark.parametrize(
    ("net", "target", "words"),
    [
        (nn.Linear(300, 300), {"size_bytes": 10_000_000}, "finest"),
        (
            module(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).sign()),
            {"rate": 8.0},
            "next finer one",
        ),
    ],
    ids=["too much", "jump"],
)
def test_a_size_that_is_not_reached_is_said_with_its_cause(net, target, words):
    result = waterfill.compress(net, effort="fast", **target)
    assert any("not reached" in note and words in note for note in result.notes)
    assert json.loads(result.to_json())["notes"] == list(result.notes)


@pytest.mark.parametrize(("shape", "rate"), [((20, 6), 4.0), ((8, 8), 6.0), ((6, 12), 8.0)])
def test_a_rate_of_few_values_is_spent_beside_the_header(shape, rate):
    torch.manual_seed(0)
    result = waterfill.compress(nn.Linear(*shape), rate=rate, effort="fast")
    assert result.tensors[0].rate > rate / 3
    assert any("spent beside" in note for note in result.notes)
    with pytest.raises(TargetError, match="below the floor"):
        waterfill.compress(nn.Linear(*shape), size_bytes=rate * shape[0] * shape[1] // 8, effort="fast")


def test_a_file_of_zeros_says_so():
    result = waterfill.compress(module(torch.randn(40, 60)), size_bytes=145)
    assert ZEROED in result.notes
    zeros = waterfill.compress(module(torch.zeros(40, 60)), rate=2.0)
    assert ZEROED not in zeros.notes


def labelled_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 6))
    inputs = torch.randn(256, 20)
    labels = net(inputs).argmax(1)
    return net, [(inputs[k : k + 32], labels[k : k + 32]) for k in range(0, 256, 32)]


def test_a_distortion_that_allows_zeros_says_so():
    net, data = labelled_net()
    result = waterfill.compress(net, data, distortion=100.0, effort="fast")
    assert any(ZEROED in note and "distortion" in note for note in result.notes)


def saturated_net():
    net, data = labelled_net()
    with torch.no_grad():
        net[2].weight.mul_(1e4)
        net[2].bias.mul_(1e4)
    return net, data


@pytest.mark.parametrize("target", [{"rate": 3.0}, {"distortion": 0.01}, {"size_bytes": 2000}])
def test_saturated_logits_are_named(target):
    net, data = saturated_net()
    result = waterfill.compress(net, data, effort="fast", **target)
    assert any("saturated" in note for note in result.notes)
    ordinary = waterfill.compress(*labelled_net(), effort="fast", rate=5.0)
    assert not ordinary.notes


def test_saturation_is_seen_along_the_classes_that_the_targets_tell():
    torch.manual_seed(0)
    net = nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        net.weight.copy_(1 + 1e-3 * net.weight)
    ramp = 100 * torch.arange(8.0).expand(4, 1, 8, 8)
    data = [(ramp + torch.randn(4, 1, 8, 8), torch.randint(3, (4, 8, 8))) for _ in range(2)]
    result = waterfill.compress(net, data, size_bytes=1000, effort="fast")
    assert not any("saturated" in note for note in result.notes)


def test_a_file_that_answers_all_samples_alike_says_so():
    net, data = labelled_net()
    with torch.no_grad():
        net[0].weight.mul_(1e-5)
    result = waterfill.compress(net, data, rate=1.2, effort="fast", importance=waterfill.importance.identity())
    rows = {row.name: row.reason for row in result.tensors}
    assert CONSTANT in result.notes
    assert "every value is zero" in rows["0.weight"]


def test_outputs_are_alike_only_where_those_of_the_original_are_not():
    same, other = torch.ones(4, 3), torch.randn(4, 3)
    assert is_constant(same, other)
    assert not is_constant(other, other)
    assert not is_constant(same, same)


def test_a_distortion_far_below_its_target_names_the_next_file():
    target = Target("distortion", 0.1)
    assert "the next smaller file that was found has 0.3" in shortfall_of_quality(target, 0.01, 0.3)
    assert shortfall_of_quality(target, 0.06, 0.3) == shortfall_of_quality(target, 0.01, None) == ""


@pytest.mark.parametrize("tolerance", [0.99, 1.5, 1000.0])
def test_a_tolerance_above_all_there_is_to_lose_is_refused(tolerance):
    net, data = labelled_net()
    with pytest.raises(TargetError, match="above all there is to lose"):
        waterfill.compress(net, data, tolerance=tolerance, effort="fast")


def test_a_metric_that_nothing_moves_is_named():
    net, data = labelled_net()
    result = waterfill.compress(net, data, tolerance=0.01, metric=lambda *_: 1.0, effort="fast")
    assert any(ZEROED in note and "loss of quality is 0" in note for note in result.notes)


@pytest.mark.parametrize(
    ("tolerance", "accuracy", "constant", "refused"),
    [(0.5, 0.4, 0.6, True), (0.3, 0.4, 0.6, False), (0.31, 0.9, 0.6, True), (0.29, 0.9, 0.6, False)],
)
def test_what_there_is_to_lose_is_what_a_constant_answer_lacks(tolerance, accuracy, constant, refused):
    target = Target("tolerance", tolerance)
    with pytest.raises(TargetError, match="above all") if refused else contextlib.nullcontext():
        check_tolerance(target, accuracy, constant)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("llama") / "in"
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    LlamaForCausalLM(config).save_pretrained(place)
    return place


def test_directories_say_so_too(directory, tmp_path):
    data = [torch.randint(64, (2, 16)) for _ in range(4)]
    result = waterfill.compress_directory(directory, tmp_path / "a", size_bytes=10_000_000, effort="fast")
    assert any("not reached" in note and "finest" in note for note in result.notes)
    result = waterfill.compress_directory(directory, tmp_path / "b", data, distortion=50.0, effort="fast")
    assert any(ZEROED in note for note in result.notes)
    with pytest.raises(TargetError, match="above all there is to lose"):
        waterfill.compress_directory(directory, tmp_path / "c", data, tolerance=0.9, effort="fast")
    assert not (tmp_path / "c").exists()


def test_the_command_tells_what_was_not_reached(tmp_path, capsys, monkeypatch):
    net = tmp_path / "net.safetensors"
    save_file({"w": torch.randn(40, 50)}, net)
    line = ["waterfill", "compress", str(net), "-o", str(tmp_path / "net.wf"), "--size", "10MB"]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "note: The target of 10,000,000 bytes is not reached" in capsys.readouterr().out


def test_a_file_near_its_target_says_nothing():
    assert shortfall_of_size(1000, 951, is_finest=True) == ""
    assert shortfall_of_size(1000, 949, 1100, is_finest=False).endswith("the next finer one takes 1,100.")
    assert shortfall_of_size(1000, 949, is_finest=False).endswith("no finer one was found that fits.")


@pytest.mark.parametrize("values", [1.0, -0.5, 0.0])
def test_a_vector_of_one_value_is_not_said_to_be_zero(values):
    net = nn.Sequential(nn.Linear(20, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 6))
    nn.init.constant_(net[1].weight, values)
    data = [(torch.randn(16, 20), torch.randint(6, (16,))) for _ in range(2)]
    rows = {row.name: row.reason for row in waterfill.compress(net, data, rate=5.0, effort="fast").tensors}
    assert "every value is zero" not in rows["1.weight"]
