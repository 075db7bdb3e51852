from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from waterfill import zoo
from waterfill.errors import FormatError, WaterfillError

ALPHABET = "ab \u00e9\n"
WEIGHTS = "models/lm_charlstm_shakespeare.safetensors"


def write_weights(folder: Path, metadata: dict[str, str] | None) -> None:
    (folder / "models").mkdir(exist_ok=True)
    save_file({"x": torch.zeros(1)}, folder / WEIGHTS, metadata)


def write_text(folder: Path, text: str) -> None:
    (folder / "text").mkdir(exist_ok=True)
    (folder / "text" / "shakespeare.txt").write_bytes(text.encode())


@pytest.fixture
def tokens(folder: Path) -> np.ndarray:
    """A random text of 202,600 characters in the data folder."""
    tokens = np.random.default_rng(0).integers(0, len(ALPHABET), 202_600)
    write_text(folder, "".join(ALPHABET[token] for token in tokens))
    write_weights(folder, {"vocab": json.dumps({character: index for index, character in enumerate(ALPHABET)})})
    return tokens


def test_test_streams_are_the_end_of_the_text(tokens: np.ndarray) -> None:
    ((inputs, targets),) = zoo.charlstm_test()
    assert inputs.shape == targets.shape == (64, 3124)
    np.testing.assert_array_equal(torch.cat((inputs, targets[:, -1:]), dim=1).flatten(), tokens[-200_000:])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_calibration_windows_are_spread_over_the_beginning(tokens: np.ndarray) -> None:
    """2,600 characters make ten windows of 257; every second of them is taken."""
    ((inputs, targets),) = zoo.charlstm_calibration(samples=5)
    windows = tokens[:2570].reshape(10, 257)[::2]
    np.testing.assert_array_equal(inputs, windows[:, :-1])
    np.testing.assert_array_equal(targets, windows[:, 1:])


@pytest.mark.usefixtures("tokens")
def test_there_are_64_streams_and_as_many_windows_as_fit() -> None:
    assert len(zoo.charlstm_test(samples=3, batch_size=2)) == 2
    with pytest.raises(WaterfillError, match=r"samples=65 is wrong: text/shakespeare\.txt has 64"):
        zoo.charlstm_test(samples=65)
    with pytest.raises(WaterfillError, match=r"samples=11 is wrong: text/shakespeare\.txt has 10"):
        zoo.charlstm_calibration(samples=11)


def test_an_unknown_character_is_named(folder: Path) -> None:
    write_text(folder, "abc")
    write_weights(folder, {"vocab": '{"a": 0, "b": 1}'})
    with pytest.raises(FormatError, match="has the character 'c', which is not one of the 2"):
        zoo.charlstm_test()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "has no table of characters"),
        ({"vocab": "{"}, "has no table of characters"),
        ({"vocab": "[0]"}, "is wrong: expected each of 0, 1, 2"),
        ({"vocab": '{"a": 0, "b": 2}'}, "is wrong: expected each of 0, 1, 2"),
        ({"vocab": '{"a": 0, "b": "1"}'}, "is wrong: expected each of 0, 1, 2"),
    ],
)
def test_a_wrong_table_of_characters(folder: Path, metadata: dict[str, str] | None, message: str) -> None:
    write_text(folder, "ab")
    write_weights(folder, metadata)
    with pytest.raises(FormatError, match=message):
        zoo.charlstm_test()


def test_a_text_that_is_too_short_or_no_text(folder: Path) -> None:
    write_weights(folder, {"vocab": '{"a": 0, "b": 1}'})
    write_text(folder, "ab" * 20)
    with pytest.raises(FormatError, match=r"too short: 40 tokens here, expected at least 3125"):
        zoo.charlstm_test()


def test_a_text_that_is_not_utf8(folder: Path) -> None:
    write_weights(folder, {"vocab": '{"a": 0, "b": 1}'})
    (folder / "text").mkdir()
    (folder / "text" / "shakespeare.txt").write_bytes(b"ab\xff")
    with pytest.raises(FormatError, match="no UTF-8 text"):
        zoo.charlstm_test()


def test_damaged_weights(folder: Path) -> None:
    write_text(folder, "ab")
    (folder / "models").mkdir()
    (folder / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(FormatError, match="no safetensors file"):
        zoo.charlstm_test()


def test_story_windows_are_split(folder: Path) -> None:
    (folder / "text").mkdir()
    tokens = np.arange(512 * 6 + 100, dtype=np.uint16)
    np.savez(folder / "text" / "stories260k_tokens.npz", tokens=tokens)
    windows = []
    for batches in (zoo.stories_calibration(samples=2), zoo.stories_test(samples=4)):
        for inputs, targets in batches:
            assert inputs.shape[1] == targets.shape[1] == 511
            assert torch.equal(inputs + 1, targets)
            windows += (inputs[:, 0] // 512).tolist()
    assert sorted(windows) == [0, 1, 2, 3, 4, 5]
    assert sum(len(inputs) for inputs, _ in zoo.stories_test()) == 6
