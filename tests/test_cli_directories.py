"""Model directories on the command line: text to batches, and both columns of `evaluate`."""

import json

import numpy as np
import pytest
import torch

from waterfill import compress, evaluate, sentence_batches, text_batches
from waterfill.cli.directories import Sampling, as_text_data, compared, read_model, reads_windows, size_of
from waterfill.errors import CalibrationError, UsageError, WaterfillError
from waterfill.models.embedder import Embedder

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["<s>", "<pad>", "<unk>", *"abcdefghijkl"]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tokenizer(place):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(place)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Directories of a language model and of an encoder, each with a noisy copy, and a text."""
    place = tmp_path_factory.mktemp("directories")
    torch.manual_seed(0)
    llama = transformers.LlamaConfig(vocab_size=15, max_position_embeddings=40, **SIZES)
    bert = transformers.BertConfig(vocab_size=15, max_position_embeddings=12, **SIZES)
    for name, model in (("lm", transformers.LlamaForCausalLM(llama)), ("encoder", transformers.BertModel(bert))):
        for copy in (name, name + "_noisy"):
            model.save_pretrained(place / copy)
            save_tokenizer(place / copy)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
    for copy in ("encoder", "encoder_noisy"):
        (place / copy / "1_Pooling").mkdir()
        (place / copy / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    letters = np.random.default_rng(0).choice(list("abcdefghijkl"), (200, 12))
    (place / "text.txt").write_text("".join(" ".join(row) + "\n" for row in letters))
    np.savez(place / "tokens.npz", np.random.default_rng(0).integers(0, 15, 3000))
    np.savez(place / "beyond.npz", np.arange(3000))
    return place


def test_evaluate_a_language_model_and_its_copy(run, place):
    code, out, err = run("evaluate lm lm_noisy --data text.txt --length 20 --count 6 --seed 3 --json e.json")
    assert (code, err) == (0, "")
    found = json.loads((place / "e.json").read_text())
    data = text_batches(place / "text.txt", place / "lm", length=20, count=6, seed=3)
    model, copy = read_model(place / "lm"), read_model(place / "lm_noisy")
    for name, expected in (("original", evaluate(model, data)), ("compressed", evaluate(copy, data, model))):
        size = found[name].pop("size_bytes")
        assert found[name] == expected.to_dict()
        assert f"{expected.perplexity:.6g}" in out
        assert f"{size:,}" in out
    assert found["compressed"]["predictions"] == 6 * 19
    assert found["compressed"]["kl"] > 0
    assert f"{1 - found['compressed']['total_variation']:.6g}" in out
    assert [line.split()[0] for line in out.splitlines()][-1] == "bytes"
    assert size == (place / "lm" / "model.safetensors").stat().st_size


def test_evaluate_an_encoder_alone_and_with_its_copy(run, place):
    code, out, _ = run("evaluate encoder encoder_noisy --data text.txt --count 40 --json e.json")
    assert code == 0
    assert "cosine" in out
    data = sentence_batches(place / "text.txt", place / "encoder", length=12, count=40)
    expected = evaluate(read_model(place / "encoder_noisy"), data, read_model(place / "encoder"))
    found = json.loads((place / "e.json").read_text())["compressed"]
    assert found.pop("size_bytes") > 0
    assert found == expected.to_dict()
    assert 0 < found["cosine"] < 1
    code, out, _ = run("evaluate encoder --data tokens.npz --count 1")
    assert code == 0
    assert "samples" in out
    assert "compressed" not in out


def test_evaluate_a_file_against_a_directory(run, place):
    for name in ("lm", "encoder"):
        model = read_model(place / name)
        inner = model.model if isinstance(model, Embedder) else model
        compress(inner, rate=6, effort="fast").save(place / f"{name}.wf", force=True)
        code, _, err = run(f"evaluate {name} {name}.wf --data text.txt --count 9 --json e.json --length 10")
        assert (code, err) == (0, "")
        found = json.loads((place / "e.json").read_text())["compressed"]
        assert found["size_bytes"] == (place / f"{name}.wf").stat().st_size
        assert 0 < (found["kl"] or found["squared_error"]) < 0.1
        assert compared(place / f"{name}.wf", model, max_bytes=1 << 30) is not model


@pytest.mark.parametrize("name", ["lm", "encoder"])
def test_evaluate_a_compressed_directory_against_its_original(run, place, name):
    code, _, _ = run(f"compress {name} -o {name}_out --rate 8 --effort fast")
    assert code == 0
    code, _, err = run(f"evaluate {name} {name}_out --data text.txt --count 9 --json e.json")
    assert (code, err) == (0, "")
    found = json.loads((place / "e.json").read_text())
    assert found["compressed"]["size_bytes"] < found["original"]["size_bytes"]
    assert found["compressed"].keys() == found["original"].keys()
    assert 0 < (found["compressed"]["kl"] or found["compressed"]["squared_error"]) < 0.1


def test_text_data_fits_the_model_of_the_directory(place):
    text = str(place / "text.txt")
    windows = as_text_data(text, place / "lm")
    assert windows[0]["input_ids"].shape == (1, 40)
    assert len(windows) == 128
    assert all(int(batch["input_ids"][0, 0]) == 0 for batch in windows)
    sentences = as_text_data(text, place / "encoder", Sampling(count=50))
    assert [len(batch["input_ids"]) for batch in sentences] in ([32, 18], [18, 32])
    assert all(batch["input_ids"].shape[1] <= 12 for batch in sentences)
    (place / "encoder" / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    assert all(b["input_ids"].shape[1] == 7 for b in as_text_data(text, place / "encoder", Sampling(count=50)))
    (place / "encoder" / "sentence_bert_config.json").unlink()
    first = as_text_data(str(place / "tokens.npz"), place / "lm", Sampling(length=9, count=3))[0]
    assert first["input_ids"].shape == (1, 9)


def test_a_language_model_that_is_pooled_reads_sentences(place, tmp_path):
    for file in (place / "lm").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert reads_windows(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer", "path": ""}]')
    assert not reads_windows(tmp_path)
    assert not reads_windows(place / "encoder")


def test_a_factory_gives_data_for_a_directory_too(run, place):
    (place / "made.py").write_text(
        "import waterfill\ndef data():\n    return waterfill.text_batches([list(range(15)) * 9], length=9, count=4)\n"
    )
    code, out, _ = run("evaluate lm --data made:data")
    assert code == 0
    assert "perplexity" in out


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("evaluate lm --data text.txt --length 41", 2, "--length 41 is more than the 40 tokens that lm takes"),
        ("evaluate lm --data text.txt --weights w.safetensors", 2, "leave --weights out"),
        ("evaluate lm --data missing.txt", 1, "missing.txt is no file that exists"),
        ("evaluate lm --data text.txt --count 9999", 1, "The text has 2,400 tokens; expected at least"),
        ("evaluate encoder --data text.txt --count 201", 1, "The text has 200 sentences; expected at least 201"),
        ("evaluate lm --data beyond.npz", 1, "expected 0 to 14, the vocabulary of the model"),
        ("evaluate lm", 2, "evaluate needs --data"),
        ("evaluate lm --data text.txt --json lm/model.safetensors", 2, "model.safetensors is an input"),
        ("compress lm -o out --rate 4 --json lm/model.safetensors", 2, "model.safetensors is an input"),
        ("inspect lm --json lm/config.json", 2, "config.json is an input"),
        ("evaluate nets:net --data text.txt", 1, "No module named 'nets'"),
        ("evaluate json:JSONDecoder --data text.txt", 1, "expected a torch.nn.Module"),
        ("evaluate torch.nn:Identity --data text.txt", 2, "is no directory with a tokenizer"),
        ("evaluate empty --data text.txt", 1, "has no config.json; expected a model directory"),
        ("evaluate lm empty --data text.txt", 1, "has no config.json; expected a model directory"),
    ],
)
def test_what_does_not_fit_is_refused(run, place, command, code, words):
    (place / "empty").mkdir(exist_ok=True)
    found, _, err = run(command)
    assert words in err
    assert found == code
    assert len(err.splitlines()) == 1


def test_the_vocabulary_is_that_of_the_language_model_inside(place, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((place / "lm" / name).read_bytes())
    config = json.loads((place / "lm" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "text_config": config}))
    assert as_text_data(str(place / "text.txt"), tmp_path)[0]["input_ids"].shape == (1, 40)
    with pytest.raises(CalibrationError, match="expected 0 to 14, the vocabulary of the model"):
        as_text_data(str(place / "beyond.npz"), tmp_path)
    with pytest.raises(UsageError, match="more than the 40 tokens"):
        as_text_data(str(place / "text.txt"), tmp_path, Sampling(length=60))


def test_bytes_are_those_of_all_weight_files(tmp_path):
    for name, size in (("model-00001-of-00002.safetensors", 5), ("model-00002-of-00002.safetensors", 7)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(100))
    (tmp_path / "config.json").write_bytes(bytes(100))
    assert size_of(tmp_path) == 12
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert size_of(tmp_path) == 100


def test_a_directory_without_a_tokenizer_needs_token_ids(place, tmp_path):
    (tmp_path / "config.json").write_bytes((place / "lm" / "config.json").read_bytes())
    with pytest.raises(WaterfillError, match="has no tokenizer"):
        as_text_data(str(place / "text.txt"), tmp_path)
    assert len(as_text_data(str(place / "tokens.npz"), tmp_path, Sampling(count=5))) == 5


def test_a_directory_and_its_json_have_two_names(run, place):
    code, _, err = run("compress lm -o both --json both --rate 3")
    assert code == 2
    assert "--out and --json both name both" in err
    assert not (place / "both").exists()
