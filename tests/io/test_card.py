"""Model cards: what was done, how to load, and what the original says."""

import json

import pytest
import torch

import waterfill
from directories import original
from waterfill.bundle import Bundle, write_plain

FRONT = """---
license: llama3
license_name: "a name: with a colon"
language:
- en
base_model: someone/else
tags: [text, 'two words']
model-index:
- name: x
  results: []
---

# The original

Its text.
"""
CARDS = {
    "front matter": FRONT,
    "Windows": FRONT.replace("\n", "\r\n"),
    "text alone": "# The original\n\nIts text.\n",
    "a rule that is no front matter": "---\n\nIts text.\n",
    "front matter that is no mapping": "---\nsome words\n---\nIts text.\n",
    "tags in lines": FRONT.replace("tags: [text, 'two words']", "tags:\n- text\n- 'two words'"),
}


@pytest.fixture
def compressed(tmp_path):
    def make(card, config=None, folder="net", **files):
        tensors = {"a": torch.randn(16, 16), "b": torch.randn(16, 16)}
        source = original(tmp_path / folder, tensors, config)
        if card is not None:
            (source / "README.md").write_bytes(card.encode())
        for name, text in files.items():
            (source / name).write_text(text)
        result = waterfill.compress_directory(source, tmp_path / "out", rate=5.0, effort="fast")
        return result, (tmp_path / "out" / "README.md").read_text()

    return make


def metadata(text):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(text.split("---")[1])


def test_it_says_what_was_done_and_how_to_load(compressed):
    result, card = compressed(None)
    for words in (f"{result.rate:.3f} bit", f"{result.size_bytes:,} bytes", "2,048 bytes", "not measured: no data"):
        assert words in card
    assert "import waterfill" in card and 'AutoModel.from_pretrained("' in card
    assert metadata(card) == {
        "base_model": "net", "base_model_relation": "quantized", "library_name": "transformers",
        "tags": ["waterfill", "compressed"],
    }  # fmt: skip


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_the_card_of_the_original_is_kept(compressed, card):
    _, text = compressed(card)
    assert "Its text." in text
    found = metadata(text)
    assert found["base_model"] == "net" and "waterfill" in found["tags"] and "model-index" not in found
    if "license" in card:
        assert found["license"] == "llama3" and found["license_name"] == "a name: with a colon"
        assert found["tags"] == ["text", "two words", "waterfill", "compressed"] and found["language"] == ["en"]


@pytest.mark.parametrize(
    ("config", "folder", "base"),
    [
        ({"_name_or_path": "meta/Llama-3"}, "net", "meta/Llama-3"),
        ({"_name_or_path": "/home/me/secret"}, "net", "net"),
        ({"_name_or_path": 3}, "a net of mine", None),
        ({}, "models--org--name", "org/name"),
    ],
)
def test_the_base_model_is_a_name_that_the_hub_takes(compressed, config, folder, base):
    _, text = compressed(None, {"model_type": "none"} | config, folder)
    assert metadata(text).get("base_model") == base and "/home/me" not in text


def test_sentence_transformers_load_it_in_their_way(compressed):
    _, text = compressed(None, **{"modules.json": "[]"})
    assert 'SentenceTransformer("' in text


def test_a_decompressed_directory_has_the_text_of_the_original(compressed, tmp_path):
    compressed(FRONT, LICENSE="do as you like")
    with Bundle(tmp_path / "out") as bundle:
        write_plain(bundle, tmp_path / "plain")
    text = (tmp_path / "plain" / "README.md").read_text()
    assert "Its text." in text and "import waterfill" not in text and metadata(text)["license"] == "llama3"
    assert (tmp_path / "plain" / "LICENSE").read_text() == "do as you like"
    assert json.loads((tmp_path / "plain" / "config.json").read_bytes()) == {"model_type": "none"}
