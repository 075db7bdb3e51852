"""Model directories on the command line: compress, decompress, inspect."""

import json

import numpy as np
import pytest
import safetensors.torch

from families import WORDS, batches, loaded, model, output
from waterfill.bundle import Bundle

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model with a tokenizer of as many words, and a text of them."""
    place = tmp_path_factory.mktemp("commands")
    model("llama").save_pretrained(place / "lm")
    words = {"<unk>": 0} | {f"w{number}": number for number in range(1, WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(place / "lm")
    drawn = np.random.default_rng(0).integers(1, WORDS, (100, 10))
    (place / "text.txt").write_text("".join(" ".join(f"w{word}" for word in row) + "\n" for row in drawn))
    return place


def test_there_and_back(run, place):
    code, out, err = run(
        "compress lm -o small --data text.txt --length 16 --count 6 --rate 4 --effort fast --json r.json"
    )
    assert (code, err) == (0, "")
    assert "lm: about" in out
    assert "GiB of memory" in out
    report = json.loads((place / "r.json").read_text())
    assert report["size_bytes"] == (place / "small" / "waterfill.safetensors").stat().st_size
    assert report["rate"] <= 4
    assert (place / "small" / "tokenizer.json").read_bytes() == (place / "lm" / "tokenizer.json").read_bytes()

    code, out, err = run("inspect small --json i.json")
    assert (code, err) == (0, "")
    assert "model.layers.2" in out
    assert json.loads((place / "i.json").read_text())

    code, out, err = run("decompress small -o plain")
    assert (code, err) == (0, "")
    plain = safetensors.torch.load_file(place / "plain" / "model.safetensors")
    with Bundle(place / "small") as bundle:
        assert plain.keys() == set(bundle)
        assert all(bundle[name].equal(tensor) for name, tensor in plain.items())
    ids = batches(1)[0]
    assert output("llama", loaded("llama", place / "plain"), ids).equal(
        output("llama", loaded("llama", place / "small"), ids)
    )

    code, _, err = run("compress lm -o small --data text.txt --rate 4")
    assert code == 1
    assert "--force" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("compress lm -o new --distortion 0.1", 1, "Target distortion=0.1 is measured on data, but there are none"),
        ("compress lm -o new --weights w.safetensors", 2, "--weights is not for model directories"),
        ("compress lm -o new --plain", 2, "--plain is not for model directories"),
        ("compress lm -o new --rate 4 --size 10kB", 2, "--rate and --size were given; expected one target"),
        ("compress lm -o new --rate 0.2 --effort fast", 1, "is below the floor of about"),
        ("compress lm -o new --data missing.txt", 1, "missing.txt"),
        ("compress lm -o lm --rate 4 --force", 2, "lm"),
        ("inspect lm", 1, "says of no compression by waterfill"),
        ("decompress lm -o new", 1, "says of no compression by waterfill"),
    ],
)
def test_wrong_calls_are_one_line(run, place, command, code, words):
    found, _, err = run(command)
    assert words in err
    assert found == code
    assert len(err.splitlines()) == 1
    assert not (place / "new").exists()
