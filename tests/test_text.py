"""Text to batches of tokens, with tokenizers that are plain functions and with small ones of transformers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill import sentence_batches, text_batches
from waterfill.errors import CalibrationError, FormatError, UsageError, WaterfillError
from waterfill.models.kept_batches import as_batches
from waterfill.text import as_tokens
from waterfill.text.sources import blocks

NUMBERS = np.arange(5000)
"""A text whose tokens are their places."""


def letters(text):
    return list(text.encode())


def windows(batches):
    return torch.cat([batch["input_ids"] for batch in batches]).numpy()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with a tokenizer of words: `<s>` in front, padding 1, unknown words 2."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<s>": 0, "<pad>": 1, "<unk>": 2, "a": 3, "b": 4, "c": 5}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    place = tmp_path_factory.mktemp("tokenizer")
    names = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(place)
    return place


@settings(deadline=None)
@given(
    total=st.integers(1, 400), length=st.integers(1, 40), count=st.integers(1, 12), seed=st.integers(0, 5),
    batch_size=st.integers(1, 5),
)  # fmt: skip
def test_windows_are_pieces_of_the_text_and_share_no_token_where_they_can(total, length, count, seed, batch_size):
    def draw():
        return text_batches([NUMBERS[:total]], length=length, count=count, seed=seed, batch_size=batch_size)

    if total < length + count - 1:
        with pytest.raises(CalibrationError, match=f"has {total} tokens; expected at least {length + count - 1}"):
            draw()
        return
    found = windows(draw())
    assert found.shape == (count, length)
    assert (found == found[:, :1] + np.arange(length)).all()
    assert found.min() >= 0
    assert found.max() < total
    assert len(set(found[:, 0])) == count
    if total >= count * length:
        assert len(set(found.ravel())) == count * length
    assert (found == windows(draw())).all()
    assert [len(batch["input_ids"]) for batch in draw()] == [batch_size] * (count // batch_size) + [
        left for left in [count % batch_size] if left
    ]


def test_every_place_is_as_likely_as_any_other():
    hits = np.zeros(20)
    for seed in range(400):
        for start in windows(text_batches([NUMBERS[:24]], length=5, count=2, seed=seed))[:, 0]:
            hits[start] += 1
    # two disjoint windows of 5 in 24: 120 pairs of places, the first and last in 15, one in the middle in 10 to 15
    pairs = [(a, b) for a in range(20) for b in range(a + 5, 20)]
    expected = np.bincount(np.ravel(pairs), minlength=20) * 400 / len(pairs)
    assert ((hits - expected) ** 2 / expected).sum() < 43.8  # chi squared, 19 degrees of freedom, one in a thousand


def test_windows_are_the_same_on_every_machine():
    found = windows(text_batches([NUMBERS], length=3, count=4, seed=7))
    assert found[:, 0].tolist() == [3119, 4482, 3416, 4720]


def test_pieces_are_read_as_one_text():
    whole = text_batches(["abcdefghij" * 30], letters, length=7, count=5)
    parts = text_batches(iter(["abc", "defgh", "ij"] * 30), letters, length=7, count=5)
    ids = text_batches([letters("abcdefghij")] * 30, length=7, count=5)
    tensors = text_batches([torch.tensor(letters("abcdefghij" * 30), dtype=torch.int32)], length=7, count=5)
    for other in (parts, ids, tensors):
        assert (windows(whole) == windows(other)).all()
    assert all((batch["attention_mask"] == 1).all() and batch["input_ids"].dtype == torch.int64 for batch in tensors)


def test_long_texts_are_tokenized_in_blocks(monkeypatch):
    monkeypatch.setattr(sys.modules["waterfill.text.sources"], "_BLOCK", 10)
    assert list(blocks(["abcd"] * 7)) == ["abcdabcdabcd", "abcdabcdabcd", "abcd"]
    with pytest.raises(UsageError, match="A piece of the text is a int; expected strings"):
        list(blocks(["a", 3]))


def test_files_of_text(tmp_path):
    lines = [f"line {i}\n" for i in range(50)]
    (tmp_path / "t.txt").write_text("".join(lines))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": line[:-1], "n": 1}) + "\n" for line in lines))
    expected = windows(text_batches(lines, letters, length=9, count=6))
    for path in (tmp_path / "t.txt", str(tmp_path / "t.jsonl")):
        assert (windows(text_batches(path, letters, length=9, count=6)) == expected).all()


def test_arrays_of_tokens(tmp_path):
    np.savez(tmp_path / "stream.npz", tokens=NUMBERS.astype(np.uint16), other=np.zeros(3))
    expected = windows(text_batches([NUMBERS], length=9, count=6))
    assert (windows(text_batches(tmp_path / "stream.npz", length=9, count=6)) == expected).all()
    np.savez(tmp_path / "windows.npz", NUMBERS.reshape(50, 100))
    for make in (text_batches, sentence_batches):
        found = make(tmp_path / "windows.npz", batch_size=20)
        assert [len(batch["input_ids"]) for batch in found] == [20, 20, 10]
        assert (windows(found) == NUMBERS.reshape(50, 100)).all()


def test_batches_pass_through():
    pair = (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64))
    whole = {"input_ids": torch.ones(2, 3, dtype=torch.int64)}
    for make in (text_batches, sentence_batches):
        tensor, same, kept = make(iter([torch.arange(6, dtype=torch.int32).reshape(2, 3), pair, whole]))
        assert tensor["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert tensor["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
        assert same is pair
        assert kept is whole
    with pytest.raises(CalibrationError, match=r"A batch of tokens is float32\[2, 3\]; expected integers"):
        text_batches([torch.zeros(2, 3)])


def test_sentences_are_padded_beside_others_of_their_length():
    texts = ["x" * n for n in range(1, 21)] + ["", "  \n"]
    found = sentence_batches(texts, letters, length=15, count=20, batch_size=5)
    assert len(as_batches(found)) == 4
    lengths: list[int] = []
    for batch in found:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        counts = mask.sum(1)
        assert (mask == (torch.arange(mask.shape[1]) < counts[:, None])).all()
        assert ((ids == ord("x")) == (mask == 1)).all()
        assert ids.shape[1] == counts.max() <= counts.min() + 4
        lengths += counts.tolist()
    assert sorted(lengths) == [*range(1, 15)] + [15] * 6
    assert lengths != sorted(lengths)
    again = sentence_batches(iter(texts), letters, length=15, count=20, batch_size=5)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(found, again, strict=True))


def test_sentences_are_chosen_without_replacement_and_by_the_seed(tmp_path):
    (tmp_path / "t.txt").write_text("".join(f"{chr(i)}\n\n" for i in range(40, 100)))

    def chosen(seed, count=30):
        return sorted(windows(sentence_batches(tmp_path / "t.txt", letters, count=count, seed=seed)).ravel())

    assert len(set(chosen(0))) == 30
    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)
    assert chosen(0, 60) == list(range(40, 100))
    with pytest.raises(CalibrationError, match=r"has 60 sentences; expected at least 61.*count=60"):
        chosen(0, 61)
    rows = sentence_batches([[1, 2, 3, 4], [5]], length=3, count=2)
    assert rows[0]["input_ids"].tolist() == [[5, 0, 0], [1, 2, 3]]


def test_a_tokenizer_of_transformers_adds_its_tokens(directory):
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(directory)
    tokens = as_tokens(loaded)
    assert (tokens.prefix, tokens.padding, tokens.size) == ((0,), 1, 6)
    for tokenizer in (loaded, directory, str(directory)):
        found = windows(text_batches(["a b c " * 40], tokenizer, length=5, count=9))
        assert (found[:, 0] == 0).all()
        assert set(found[:, 1:].ravel()) == {3, 4, 5}
        rows = sentence_batches(["a b c a", "d"], tokenizer, length=3, count=2)[0]
        assert rows["input_ids"].tolist() == [[0, 2, 1], [0, 3, 4]]
        assert rows["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    with pytest.raises(UsageError, match="length=1 leaves no room after 1 tokens"):
        text_batches(["a b c"], directory, length=1)
    with pytest.raises(CalibrationError, match=r"has the token 6; expected 0 to 5"):
        text_batches([[3, 6]], directory, length=2, count=1)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(WaterfillError, match=r"has no tokenizer; expected a directory with tokenizer.json"):
        text_batches(["a"], tmp_path)
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(WaterfillError, match=r"The tokenizer in .* cannot be read"):
        text_batches(["a"], tmp_path)


@pytest.mark.parametrize(
    ("source", "tokenizer", "error", "words"),
    [
        (["a"], None, UsageError, "text without a tokenizer"),
        (["a"], 3, UsageError, "Tokenizer is a int; expected one of transformers"),
        (["a"], lambda _: "ab", CalibrationError, "gives tokens of type str; expected a sequence of integers"),
        (["a"], lambda _: [0.5], CalibrationError, "expected a sequence of integers"),
        ([[1, -1]], None, CalibrationError, "has the token -1; expected 0 or more"),
        ([], None, CalibrationError, "empty"),
        (3, None, UsageError, "Text is a int"),
        (torch.zeros(3), None, UsageError, "Text is a Tensor"),
        ("missing.txt", letters, WaterfillError, "missing.txt is no file that exists"),
        ("to be\nor not", letters, UsageError, "string of 12 characters, which is read as a path"),
    ],
)
def test_what_is_no_text_is_refused(source, tokenizer, error, words):
    for make in (text_batches, sentence_batches):
        with pytest.raises(error, match=words):
            make(source, tokenizer, length=1, count=1)


def test_files_that_are_not_what_they_say_are_refused(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(FormatError, match="no UTF-8 text"):
        text_batches(tmp_path / "t.txt", letters)
    for line in ('{"txt": 1}', '{"text": 1}', "[", "[1]"):
        (tmp_path / "t.jsonl").write_text('{"text": "a"}\n' + line)
        with pytest.raises(FormatError, match=r"Line 2 of .* is no JSON object with a string 'text'"):
            text_batches(tmp_path / "t.jsonl", letters)
    (tmp_path / "t.npz").write_bytes(b"PK nothing")
    with pytest.raises(FormatError, match=r"damaged or no \.npz file"):
        text_batches(tmp_path / "t.npz")
    for arrays in (
        {"a": np.zeros(3)},
        {"a": np.zeros(3, int), "b": np.zeros(3, int)},
        {"tokens": np.zeros((1, 1, 1), int)},
    ):
        np.savez(tmp_path / "t.npz", **arrays)
        with pytest.raises(FormatError, match="expected integers 'input_ids' or 'tokens'"):
            text_batches(tmp_path / "t.npz")


@pytest.mark.parametrize("name", ["length", "count", "batch_size"])
def test_sizes_are_positive(name):
    for make in (text_batches, sentence_batches):
        with pytest.raises(UsageError, match=f"{name}=0 is wrong; expected at least 1"):
            make([NUMBERS], **{name: 0})


def test_transformers_is_not_imported_before_it_is_needed():
    script = (
        "import sys, waterfill; waterfill.text_batches([[1] * 999], length=9); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
