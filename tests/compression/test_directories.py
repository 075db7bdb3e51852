"""Whole directories through the compressor: sizes, tensors, and the distortion that transformers measures."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import transformers as hf

import waterfill
from families import BERT, FAMILIES, batches, loaded, model, output, padded
from waterfill.bundle import Bundle, Checkpoint
from waterfill.compression import tensor_slices
from waterfill.compression.block_by_block import BlockWalk, encoder_of
from waterfill.compression.checkpoint_source import CheckpointSource
from waterfill.compression.layerwise import quantize_segment
from waterfill.compression.settings import Settings
from waterfill.errors import CalibrationError, TargetError, UnsupportedModelError, UsageError, WaterfillError
from waterfill.quantize import Feedback


def kl(before, now, there=None):
    """Mean over the positions that count, of logits, in double precision."""
    p, q = before.double().log_softmax(-1), now.double().log_softmax(-1)
    found = (p.exp() * (p - q)).sum(-1)
    return found.flatten() if there is None else found[there.bool()]


def measured(name, original, compressed, data):
    """The distortion of a directory, by transformers alone."""
    before, after = loaded(name, original), loaded(name, compressed)
    found = []
    for batch in data:
        one, other = (output(name, each, batch) for each in (before, after))
        mask = batch.get("attention_mask") if isinstance(batch, dict) else None
        found.append((one - other).double().square().sum(-1) if name == "bert" else kl(one, other, mask))
    return float(torch.cat(found).mean())


def fits(result, rate):
    """Whether a size is at most the target and near it."""
    limit = rate * result.floating_values / 8
    return limit - max(200, 0.01 * limit) <= result.size_bytes <= limit


def error(directory, out):
    """Squared error of all tensors relative to their squares."""
    with Bundle(out) as bundle:
        original = Checkpoint(directory)
        wrong = sum(float((bundle[name].double() - original[name].double()).square().sum()) for name in original)
        return wrong / sum(float(original[name].double().square().sum()) for name in original)


def same_tensors(directory, out):
    with Bundle(out) as bundle:
        original = Checkpoint(directory)
        assert set(bundle) == set(original)
        for name in original:
            found = bundle[name]
            assert (found.shape, found.dtype) == (original[name].shape, original[name].dtype), name
            assert found.isfinite().all()


def adds_up(result, out):
    """Whether the bytes of all tensors and of what is beside them are those of the payloads."""
    with Bundle(out) as bundle:
        found = sum(row.size_bytes for row in result.tensors) + result.overhead_bytes
        assert found == pytest.approx(bundle.size_bytes, abs=1)


def only(place, *names):
    """Nothing else is in a folder: no half-written directory."""
    assert sorted(each.name for each in place.iterdir()) == sorted(names)


def test_the_size_and_all_tensors(family, compressed):
    name, directory = family
    out, result = compressed(name)
    assert fits(result, 4)
    assert result.size_bytes == (out / "waterfill.safetensors").stat().st_size
    assert result.rate == 8 * result.size_bytes / result.floating_values
    same_tensors(directory, out)
    adds_up(result, out)
    original = Checkpoint(directory)
    assert [row.name for row in result.tensors] == list(original)
    assert result.floating_values == sum(row.numel for row in result.tensors)
    assert result.original_bytes == original.size_bytes
    assert 0 < result.limit < result.rate
    assert error(directory, out) < 0.08
    for row in result.tensors:
        assert row.shape == original.shapes[row.name]
        if len(row.shape) > 1:
            assert row.limit is not None
            assert row.distortion > 0


def test_the_distortion_is_what_transformers_measures(family, compressed):
    name, directory = family
    out, result = compressed(name)
    assert result.distortion == pytest.approx(measured(name, directory, out, batches()), rel=1e-3)
    assert result.distortion_unit == ("squared output" if name == "bert" else "nats of KL")
    assert 0.1 < result.predicted_distortion / result.distortion < 10


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_padding_is_not_measured(directories, tmp_path, name):
    result = waterfill.compress_directory(directories(name), tmp_path / "out", padded(), rate=4)
    assert fits(result, 4)
    assert result.distortion == pytest.approx(measured(name, directories(name), tmp_path / "out", padded()), rel=1e-3)
    noise = padded()
    for batch in noise:  # what stands at padding is nobody's business
        batch["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], 5)
    again = waterfill.compress_directory(directories(name), tmp_path / "again", noise, rate=4)
    assert 0.5 < again.distortion / result.distortion < 2


def test_batches_of_different_shapes(directories, tmp_path):
    data = [*batches(2), batches(1, 5)[0][:1, :7], {"input_ids": batches(1, 6)[0]}]
    result = waterfill.compress_directory(directories("llama"), tmp_path / "out", data, rate=4)
    plain = [each if isinstance(each, torch.Tensor) else each["input_ids"] for each in data]
    assert result.distortion == pytest.approx(
        measured("llama", directories("llama"), tmp_path / "out", plain), rel=1e-3
    )


@pytest.mark.parametrize("data", [None, "data"])
def test_the_same_call_makes_the_same_files_and_more_bits_less_distortion(directories, compressed, tmp_path, data):
    directory, given = directories("llama"), None if data is None else batches()
    one, other = (waterfill.compress_directory(directory, tmp_path / n, given, rate=3) for n in ("one", "other"))
    assert (tmp_path / "one" / "waterfill.safetensors").read_bytes() == (
        tmp_path / "other/waterfill.safetensors"
    ).read_bytes()
    assert fits(one, 3)
    assert one.distortion == other.distortion
    if data is None:
        assert one.distortion is None
    else:
        assert one.distortion > compressed("llama")[1].distortion


@pytest.mark.parametrize("name", FAMILIES)
def test_without_data(directories, tmp_path, name):
    result = waterfill.compress_directory(directories(name), tmp_path / "out", rate=4)
    assert fits(result, 4)
    same_tensors(directories(name), tmp_path / "out")
    assert error(directories(name), tmp_path / "out") < 0.02
    assert loaded(name, tmp_path / "out")


def test_without_data_transformers_is_not_needed(directories, tmp_path):
    script = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'transformers': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import torch, waterfill\n"
        f"source, out = {str(directories('llama'))!r}, {str(tmp_path / 'out')!r}\n"
        "print(waterfill.compress_directory(source, out, rate=4).size_bytes)\n"
        "try: waterfill.compress_directory(source, out + '2', [torch.zeros(1, 4, dtype=torch.long)])\n"
        "except waterfill.errors.WaterfillError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    size, text = done.stdout.strip().splitlines()
    assert int(size) == (tmp_path / "out" / "waterfill.safetensors").stat().st_size
    assert "need transformers, which is not installed; pip install 'waterfill[transformers]'" in text
    only(tmp_path, "out")


def test_sizes_in_bytes(directories, tmp_path):
    result = waterfill.compress_directory(directories("llama"), tmp_path / "out", batches(), size_bytes=17_000)
    assert 16_800 <= result.size_bytes <= 17_000
    assert result.target == {"size_bytes": 17_000}


# Experts that nothing goes to


@pytest.fixture(scope="module")
def lonely(tmp_path_factory):
    """A model whose hidden states have one large entry, which keeps everything away from the last expert."""
    network = model("mixtral")
    network.model.embed_tokens.weight[:, 0] = 0.5
    for layer in network.model.layers:
        layer.mlp.gate.weight[:, 0] = torch.tensor([0.0, 0.0, 0.0, -9.0])
        layer.self_attn.o_proj.weight[0] = 0.0
    path = tmp_path_factory.mktemp("lonely") / "model"
    network.save_pretrained(path)
    return path


def test_an_expert_that_nothing_reaches_is_priced_and_says_so(lonely, tmp_path):
    result = waterfill.compress_directory(lonely, tmp_path / "out", batches(), rate=4)
    assert fits(result, 4)
    rows = [row for row in result.tensors if "experts.3." in row.name]
    assert len(rows) == 6
    original = Checkpoint(lonely)
    with Bundle(tmp_path / "out") as bundle:
        for row in result.tensors:
            reached = "experts.3." not in row.name
            assert ("nothing of the calibration data reaches it" in row.reason) != reached, row.name
            if not reached:
                assert row.rate > 1
                off = (bundle[row.name] - original[row.name]).norm() / original[row.name].norm()
                assert 0 < off < 0.3, row.name
    assert result.distortion == pytest.approx(measured("mixtral", lonely, tmp_path / "out", batches()), rel=1e-3)


def test_an_expert_that_the_first_batch_does_not_reach(directories, tmp_path):
    """Of one position, which goes to two experts of four."""
    first = batches(1)[0][:1, :1]
    result = waterfill.compress_directory(directories("mixtral"), tmp_path / "out", [first, *batches()], rate=4)
    assert fits(result, 4)
    assert not any("nothing of the calibration" in row.reason for row in result.tensors)


def test_an_expert_that_only_padding_reaches_at_first(directories, tmp_path):
    data = padded(1)
    data[0]["attention_mask"][:, 1:] = 0
    result = waterfill.compress_directory(directories("mixtral"), tmp_path / "out", [*data, *padded()], rate=4)
    assert fits(result, 4)


# Kinds of checkpoints


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(directories, tmp_path, dtype):
    directory = directories("llama", dtype)
    result = waterfill.compress_directory(directory, tmp_path / "out", batches(), rate=4)
    assert fits(result, 4)
    same_tensors(directory, tmp_path / "out")
    assert result.original_bytes == 2 * result.floating_values
    before, after = (
        FAMILIES["llama"][0].from_pretrained(p, dtype=torch.float32) for p in (directory, tmp_path / "out")
    )
    expected = torch.cat([kl(output("llama", before, ids), output("llama", after, ids)) for ids in batches()])
    assert result.distortion == pytest.approx(float(expected.mean()), rel=1e-3)


def test_shards_are_the_same_model(directories, compressed, tmp_path):
    directory = directories("llama", max_shard_size="20KB")
    assert len(list(directory.glob("*.safetensors"))) > 3
    waterfill.compress_directory(directory, tmp_path / "out", batches(), rate=4)
    whole = compressed("llama")[0]
    assert (tmp_path / "out" / "waterfill.safetensors").read_bytes() == (whole / "waterfill.safetensors").read_bytes()
    assert not (tmp_path / "out" / "waterfill.safetensors.index.json").exists()


@pytest.mark.parametrize("name", ["llama", "tied", "mixtral", "gpt2"])
def test_large_tensors_are_cut(directories, compressed, tmp_path, monkeypatch, name):
    out, whole = compressed(name)
    monkeypatch.setattr(tensor_slices, "LARGEST_SLICE", 700)
    result = waterfill.compress_directory(directories(name), tmp_path / "out", batches(), rate=4)
    assert fits(result, 4)
    same_tensors(directories(name), tmp_path / "out")
    adds_up(result, tmp_path / "out")
    with Bundle(tmp_path / "out") as cut, Bundle(out) as plain:
        assert len(cut.entries) > len(plain.entries) + 5
        assert max(math.prod(entry.shape) for entry in cut.entries) <= (4096 if name == "gpt2" else 768)
    assert [row.name for row in result.tensors] == [row.name for row in whole.tensors]
    assert error(directories(name), tmp_path / "out") == pytest.approx(error(directories(name), out), rel=0.5)
    assert 0.5 < result.distortion / whole.distortion < 2
    assert result.distortion == pytest.approx(measured(name, directories(name), tmp_path / "out", batches()), rel=1e-3)


def test_tied_tensors_are_one(directories, tmp_path):
    """As in a checkpoint that has both."""
    directory = tmp_path / "model"
    shutil.copytree(directories("tied"), directory)
    tensors = dict(Checkpoint(directory).items())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    result = waterfill.compress_directory(directory, tmp_path / "out", batches(), rate=4)
    same_tensors(directory, tmp_path / "out")
    with Bundle(tmp_path / "out") as bundle:
        assert len(bundle.tied) == 1
        assert torch.equal(bundle["lm_head.weight"], bundle["model.embed_tokens.weight"])
    assert [row.reconstruction for row in result.tensors].count("tied") == 1
    assert result.floating_values == sum(t.numel() for n, t in tensors.items() if n != "lm_head.weight")
    assert result.distortion == pytest.approx(measured("tied", directory, tmp_path / "out", batches()), rel=1e-3)


# Patterns


@pytest.mark.parametrize("data", [None, "data"])
def test_what_is_excluded_comes_back_bit_for_bit(directories, tmp_path, data):
    directory, kept = directories("bert"), ["*.bias", "*key.weight", "*word_embeddings*"]
    given = None if data is None else batches()
    result = waterfill.compress_directory(directory, tmp_path / "out", given, rate=16, exclude=kept)
    original, count = Checkpoint(directory), 0
    with Bundle(tmp_path / "out") as bundle:
        for row in result.tensors:
            excluded = row.name.endswith(("bias", "key.weight")) or "word_embeddings" in row.name
            equal = torch.equal(bundle[row.name], original[row.name])
            assert equal == excluded, row.name
            assert (row.reconstruction == "exact") == excluded
            assert ("exclude" in row.reason) == excluded, row.name
            count += excluded
    assert count > 10
    if data:
        assert result.distortion == pytest.approx(measured("bert", directory, tmp_path / "out", given), rel=1e-3)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_only_what_is_included_is_quantized(directories, tmp_path, name):
    result = waterfill.compress_directory(
        directories(name), tmp_path / "out", batches(), rate=28, include=["*layers.1.*"], exclude=["*q_proj*"]
    )
    original = Checkpoint(directories(name))
    with Bundle(tmp_path / "out") as bundle:
        for row in result.tensors:
            coded = "layers.1." in row.name and "q_proj" not in row.name
            assert torch.equal(bundle[row.name], original[row.name]) != coded, row.name
            assert bool(row.reason) != coded
    assert result.distortion > 0


# What does not fit


def refused(directory, tmp_path, kind, words, data=(), **options):
    before = {each.name for each in tmp_path.iterdir()}
    with pytest.raises(kind, match=words) as caught:
        waterfill.compress_directory(directory, tmp_path / "out", list(data) or batches(), **options)
    assert len(str(caught.value).splitlines()) == 1
    only(tmp_path, *before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("data", [None, "data"])
def test_a_weight_that_is_not_finite_is_named(directories, tmp_path, name, value, data):
    directory = tmp_path / "model"
    shutil.copytree(directories("llama"), directory)
    tensors = dict(Checkpoint(directory).items())
    tensors[name].view(-1)[7] = value
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(WaterfillError, match=name) as caught:
        waterfill.compress_directory(directory, tmp_path / "out", batches() if data else None, rate=4)
    assert len(str(caught.value).splitlines()) == 1
    only(tmp_path, "model")


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.full((2, 16), 97), r"cannot be called with the batch .*input_ids.*\[2, 16\].*within its vocabulary"),
        (torch.full((2, 16), -1), r"cannot be called with the batch"),
        (torch.randn(2, 16), r"cannot be called with the batch"),
        ({"nonsense": torch.zeros(2, 16, dtype=torch.long)}, r"cannot be called with the batch .*nonsense"),
        ({"input_ids": [[1, 2]]}, "A batch is a dict; expected tokens"),
        ("text", "A batch is a str; expected tokens"),
        (torch.zeros(2, 0, dtype=torch.long), "batch"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_clear_error(directories, tmp_path, batch, words):
    refused(directories("llama"), tmp_path, CalibrationError, words, [*batches(2), batch])


def test_no_batch_at_all_is_refused(directories, tmp_path):
    with pytest.raises((UsageError, CalibrationError), match="batch"):
        waterfill.compress_directory(directories("llama"), tmp_path / "out", [])
    only(tmp_path)


def test_positions_beyond_the_model(directories, tmp_path):
    refused(directories("gpt2"), tmp_path, CalibrationError, r"\[1, 65\]", [torch.zeros(1, 65, dtype=torch.long)])


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"rate": 0.3}, TargetError, r"Target of 1105 bytes is below the floor of about \d+ bytes"),
        ({"rate": 4, "size_bytes": 9999}, UsageError, "Got the targets rate and size_bytes"),
        ({"rate": -1}, UsageError, "rate=-1.0 is out of range"),
        ({"rate": 33}, UsageError, "rate=33.0 is out of range"),
        ({"seed": -1}, UsageError, "Seed -1 is out of range"),
        ({"memory": 1000}, WaterfillError, r"takes about .* GiB of memory .*; expected at most 0.00 GiB"),
        ({"exclude": ["*nothing*"]}, WaterfillError, r"'\*nothing\*' of exclude matches no tensor"),
    ],
)
def test_arguments_out_of_their_range(directories, tmp_path, options, kind, words):
    refused(directories("llama"), tmp_path, kind, words, **options)


@pytest.mark.parametrize(
    "changes", [{"intermediate_size": 64}, {"num_hidden_layers": 4}, {"num_hidden_layers": 2}, {"model_type": "odd"}]
)
def test_a_config_that_does_not_belong_to_the_weights(directories, tmp_path, changes):
    directory = tmp_path / "model"
    shutil.copytree(directories("llama"), directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    refused(directory, tmp_path, UnsupportedModelError, "config|architecture")


def test_an_output_that_is_there_stays(directories, compressed):
    out, _ = compressed("llama")
    before = (out / "waterfill.safetensors").read_bytes()
    with pytest.raises(WaterfillError, match="force"):
        waterfill.compress_directory(directories("llama"), out, batches(), rate=3)
    assert (out / "waterfill.safetensors").read_bytes() == before


def test_another_try_of_a_segment_begins_with_what_there_was(tmp_path):
    """The last segment is quantized again and again; its biases are not to be moved again for that."""
    torch.manual_seed(0)
    network = hf.BertForMaskedLM(hf.BertConfig(**BERT, tie_word_embeddings=False))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    network.save_pretrained(tmp_path / "lm")
    source = CheckpointSource.of(Checkpoint(tmp_path / "lm"), (), (), ties=False)
    walk = BlockWalk(source, Settings(Feedback(8)), batches())
    encoder, moved = encoder_of(walk), 0
    for segment in walk.segments():
        tries = [quantize_segment(segment, 1e-5, encoder, walk.statistics.sources) for _ in range(2)]
        first, second = (each.pack().data for each in tries)
        assert first == second, segment.name
        segment.finish()
        moved += segment.name == "rest behind the blocks"
    assert moved


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_distortion_of_a_tuned_directory_is_that_of_what_is_written(directories, tmp_path, name):
    data = batches(6)
    result = waterfill.compress_directory(directories(name), tmp_path / "out", data, rate=3.5, tune=True, effort="fast")
    assert result.distortion == pytest.approx(measured(name, directories(name), tmp_path / "out", data), rel=1e-3)
    last = measured(name, directories(name), tmp_path / "out", data[5:])
    assert result.held_out_distortion == pytest.approx(last, rel=1e-3)
    assert result.untuned_distortion is not None
    adds_up(result, tmp_path / "out")


def test_directories_take_targets_of_quality_and_importances(directories, tmp_path):
    data = batches(6)
    loose = waterfill.compress_directory(directories("llama"), tmp_path / "a", data, distortion=0.05, effort="fast")
    assert 0.02 < loose.distortion <= 0.05
    tight = waterfill.compress_directory(directories("llama"), tmp_path / "b", data, tolerance=0.01, effort="fast")
    assert tight.target == {"tolerance": 0.01}
    by_kl = waterfill.compress_directory(
        directories("llama"), tmp_path / "c", data, rate=4, importance=waterfill.importance.kl(), effort="fast"
    )
    assert (by_kl.importance, by_kl.distortion_unit) == ("kl", "nats of KL")
    assert fits(by_kl, 4)


def test_a_metric_gets_the_loaded_compressed_model(directories, tmp_path):
    seen = []

    def size_of_logits(model, data):
        seen.append(type(model).__name__)
        with torch.no_grad():
            return -float(model(data[0]).logits.square().mean().sqrt())

    result = waterfill.compress_directory(
        directories("llama"), tmp_path / "out", batches(3), tolerance=10.0, metric=size_of_logits, effort="fast"
    )
    assert set(seen) == {"LlamaForCausalLM"}
    assert result.target == {"tolerance": 10.0}
    only(tmp_path, "out")


def test_targets_that_a_directory_cannot_meet(directories, tmp_path):
    with pytest.raises(CalibrationError, match="there are none"):
        waterfill.compress_directory(directories("llama"), tmp_path / "out", distortion=0.1)
    with pytest.raises(CalibrationError, match="does not predict"):
        waterfill.compress_directory(directories("bert"), tmp_path / "out", batches(), tolerance=0.1)
    only(tmp_path)


def test_directories_take_loaders_and_generators(directories, tmp_path):
    torch.manual_seed(0)
    ids = torch.randint(2, 50, (12, 8))
    mask = torch.ones_like(ids)
    mask[::3, 5:] = 0
    dicts = [{"input_ids": ids[i : i + 4], "attention_mask": mask[i : i + 4]} for i in (0, 4, 8)]
    kinds = {
        "list": dicts,
        "generator": (each for each in dicts),
        "pairs": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids, mask), batch_size=4),
        "shuffled": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids), batch_size=4, shuffle=True),
    }
    found = {
        name: waterfill.compress_directory(directories("llama"), tmp_path / name, data, rate=6.0, effort="fast")
        for name, data in kinds.items()
    }
    assert found["list"].distortion == found["generator"].distortion == found["pairs"].distortion
    assert found["list"].notes == found["shuffled"].notes == ()
    assert "read as (input_ids, attention_mask)" in found["pairs"].notes[0]
