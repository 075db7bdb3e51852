"""An original directory: lazy, in natural order, with errors that say what to do."""

import json

import pytest
import safetensors
import safetensors.torch
import torch

from directories import compressed, original
from waterfill.bundle import Checkpoint
from waterfill.errors import FormatError, UnsupportedModelError, WaterfillError

torch.manual_seed(0)
TENSORS = {
    "layers.10.w": torch.randn(3, 4),
    "layers.2.w": torch.randn(3, 4).bfloat16(),
    "layers.2.flag": torch.tensor(True),
    "half": torch.randn(5, 7).half(),
    "ids": torch.arange(6),
    "none": torch.empty(0, 3),
}


def sharded(folder, weight_map=None):
    """Two shards and their index."""
    original(folder, {"x": torch.zeros(1)})
    (folder / "model.safetensors").unlink()
    safetensors.torch.save_file({"a": torch.ones(2), "b": torch.ones(3)}, folder / "one.safetensors")
    safetensors.torch.save_file({"c": torch.ones(4)}, folder / "two.safetensors")
    weight_map = weight_map or {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_tensors_types_and_shapes_are_those_of_the_file(tmp_path):
    checkpoint = Checkpoint(original(tmp_path / "m", TENSORS, {"a": 1}))
    assert list(checkpoint) == ["half", "ids", "layers.2.flag", "layers.2.w", "layers.10.w", "none"]
    assert len(checkpoint) == 6 and "ids" in checkpoint and "x" not in checkpoint and checkpoint.config == {"a": 1}
    for name, tensor in TENSORS.items():
        assert checkpoint[name].equal(tensor) and checkpoint.shapes[name] == tuple(tensor.shape)
        assert checkpoint.dtypes[name] == tensor.dtype == checkpoint[name].dtype
    assert checkpoint.size_bytes == sum(tensor.numel() * tensor.element_size() for tensor in TENSORS.values())
    with pytest.raises(KeyError):
        checkpoint["x"]


def test_nothing_is_read_before_it_is_asked_for(tmp_path, monkeypatch):
    folder, opened = sharded(tmp_path / "m"), []
    real = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda path, **how: opened.append(path.name) or real(path, **how))
    checkpoint = Checkpoint(folder)
    assert checkpoint.shapes == {"a": (2,), "b": (3,), "c": (4,)} and not opened
    assert checkpoint["c"].equal(torch.ones(4)) and opened == ["two.safetensors"]


def test_a_tensor_that_the_index_forgot_is_there_as_in_transformers(tmp_path):
    assert set(Checkpoint(sharded(tmp_path / "m", {"a": "one.safetensors", "c": "two.safetensors"}))) == {"a", "b", "c"}


def broken(tmp_path, change):
    folder = original(tmp_path / "m", {"w": torch.ones(4, 4)})
    change(folder)
    return folder


def only(name):
    def change(folder):
        (folder / "model.safetensors").rename(folder / name)

    return change


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), WaterfillError, "no config.json"),
        (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), WaterfillError, "PEFT"),
        (lambda folder: (folder / "config.json").write_text("{"), FormatError, "config.json is no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), FormatError, "no JSON object"),
        (only("pytorch_model.bin"), FormatError, r"safetensors.torch.save_file\(.*weights_only=True"),
        (only("x"), WaterfillError, "neither model.safetensors nor"),
        (only("model.fp16.safetensors"), WaterfillError, "has model.fp16.safetensors, but"),
        (cut, FormatError, "cut or damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), FormatError, "no safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 99), FormatError, "no safetensors file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        Checkpoint(broken(tmp_path, change))


def test_pickles_in_shards_get_the_line_that_converts_them(tmp_path):
    folder = original(tmp_path / "m", {"w": torch.ones(2)}, {"architectures": ["GPT2LMHeadModel"]})
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin.index.json")
    with pytest.raises(FormatError, match=r"transformers.GPT2LMHeadModel.from_pretrained\(.*\).save_pretrained"):
        Checkpoint(folder)


def test_a_missing_directory_is_said(tmp_path):
    with pytest.raises(WaterfillError, match="does not exist"):
        Checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "three.safetensors"}, "names the shard three.safetensors, which is missing"),
        ({"a": "two.safetensors"}, "lacks the tensor 'a'"),
        ({"a": "../one.safetensors"}, "same directory"),
        ({"a": 3}, "no weight_map"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path, weight_map, words):
    with pytest.raises(FormatError, match=words):
        Checkpoint(sharded(tmp_path / "m", weight_map))


@pytest.mark.parametrize("place", [lambda found: found, lambda found: {"text_config": found}])
def test_a_quantized_model_is_refused(tmp_path, place):
    config = place({"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(UnsupportedModelError, match="quantized already, by 'fp8'"):
        Checkpoint(original(tmp_path / "m", {"w": torch.ones(2)}, config))


def test_a_compressed_directory_gets_the_command_that_undoes_it(tmp_path):
    compressed(original(tmp_path / "m", {"w": torch.randn(8, 8)}), tmp_path / "out")
    with pytest.raises(UnsupportedModelError, match="waterfill decompress"):
        Checkpoint(tmp_path / "out")


def test_a_name_like_that_of_a_part_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="rename"):
        Checkpoint(original(tmp_path / "m", {"w[3]": torch.ones(2)}))
