"""The networks of the comparison: their directories, calibration data, and how good a copy is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hf_models
import minilm
import smollm
import waterfill
from waterfill import zoo
from waterfill.evaluation import reference_outputs

Row = dict[str, Any]

KL, PERPLEXITY, AGREEMENT = "KL (nats)", "perplexity", "top-1 agreement %"
ERROR, COSINE = "relative squared error", "1 - cosine"
TEST_WINDOWS, SENTENCES, TEST_SENTENCES, TEXT_WINDOWS = 144, 128, 500, 32


@dataclass(frozen=True)
class Task:
    """A network and what it is for.

    Attributes:
        key: on the command line, and of files.
        title: heading on the page.
        tested: what quality is measured on.
        make: write its directory.
        auto: name of the class of transformers that loads it.
        calibration: batches without targets, for the network of a directory.
        output: what the network returns, as `waterfill.compress` names it.
        loss: the quality by which files are compared; the smaller the better.
        measure: how good a copy is, against the original of a directory.
        unused: a module that does not matter for it; the others need no bytes for it.
        note: what else is to be known of its tables.
    """

    key: str
    title: str
    tested: str
    make: Callable[[Path], Path]
    auto: str
    calibration: Callable[[Path], Iterable[Any]]
    output: waterfill.protocols.Output
    loss: str
    measure: Callable[[nn.Module, nn.Module, Path], Row]
    unused: str = ""
    note: str = ""

    def load(self, folder: Path) -> nn.Module:
        """The network of a directory, in float32 and evaluation mode."""
        import transformers

        model: nn.Module = getattr(transformers, self.auto).from_pretrained(folder, dtype=torch.float32)
        return model.eval()


def filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put tensors into a network; all its parameters must be there, tied ones once."""
    missing = {name for name, _ in model.named_parameters()} - set(tensors)
    unknown = model.load_state_dict(dict(tensors), strict=False).unexpected_keys
    if missing or unknown:
        raise ValueError(f"Tensors do not fit: without {sorted(missing)}, unknown are {unknown}.")
    return model


# stories260K


@cache
def _story_test() -> tuple[Any, ...]:
    return tuple(zoo.stories_test(samples=TEST_WINDOWS))


@cache
def _story_outputs(original: nn.Module) -> Sequence[Tensor]:
    return reference_outputs(original, _story_test())


def story_quality(model: nn.Module, original: nn.Module, _: Path) -> Row:
    """Divergence from the original per token, perplexity, and how often both have the same most likely token."""
    return _language_quality(waterfill.evaluate(model, _story_test(), reference=_story_outputs(original)))


def _language_quality(found: Any) -> Row:
    return {
        KL: float(found.kl or 0),
        PERPLEXITY: exp(float(found.cross_entropy or 0)),
        AGREEMENT: 100 * float(found.agreement or 0),
    }


# all-MiniLM-L6-v2


def sentence_batches(count: int, part: str) -> list[dict[str, Tensor]]:
    """Tokens of sentences of WikiText-2; those of a batch are equally long, without padding."""
    tokens = minilm.batches(count, part=part)
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in tokens]


def embeddings(model: nn.Module) -> Tensor:
    """Mean of the tokens of every test sentence, float64 [sentences, width]."""
    with torch.no_grad():
        found = [
            hf_models.pooled(model(**batch).last_hidden_state, batch["attention_mask"]) for batch in _test_sentences()
        ]
    return torch.cat(found).double()


@cache
def _test_sentences() -> tuple[dict[str, Tensor], ...]:
    return tuple(sentence_batches(TEST_SENTENCES, "test"))


@cache
def _embeddings(original: nn.Module) -> Tensor:
    return embeddings(original)


def sentence_quality(model: nn.Module, original: nn.Module, _: Path) -> Row:
    """Squared error of the embeddings over their squared length, and one minus their mean cosine."""
    expected, found = _embeddings(original), embeddings(model)
    error = (found - expected).square().sum() / expected.square().sum()
    cosine = torch.nn.functional.cosine_similarity(found, expected).mean()
    return {ERROR: float(error), COSINE: float(1 - cosine)}


# SmolLM2-135M-Instruct


def text_quality(model: nn.Module, original: nn.Module, folder: Path) -> Row:
    """The same on windows of WikiText-2."""
    windows = smollm.windows(folder, TEXT_WINDOWS, "test")
    pairs = [(tokens[:, :-1], tokens[:, 1:]) for tokens in windows]
    return _language_quality(waterfill.evaluate(model, pairs, reference=original))


STORIES = Task(
    "stories",
    "stories260K",
    f"{TEST_WINDOWS} windows of 511 tokens, after calibration on 48 others",
    hf_models.stories,
    "AutoModelForCausalLM",
    lambda _: [tokens for tokens, _ in zoo.stories_calibration()],
    "logits",
    KL,
    story_quality,
)
MINILM = Task(
    "minilm",
    "all-MiniLM-L6-v2",
    f"{TEST_SENTENCES} sentences of WikiText-2 test, after calibration on {SENTENCES} of its validation set",
    hf_models.sentences,
    "AutoModel",
    lambda _: sentence_batches(SENTENCES, "valid"),
    "values",
    ERROR,
    sentence_quality,
    "pooler",
)
SMOLLM = Task(
    "smollm",
    "SmolLM2-135M-Instruct",
    f"{TEXT_WINDOWS} windows of {smollm.LENGTH} tokens of WikiText-2 test, after calibration on as many of its "
    "validation set",
    smollm.directory,
    "AutoModelForCausalLM",
    lambda folder: smollm.windows(folder, TEXT_WINDOWS, "valid"),
    "logits",
    KL,
    text_quality,
    note="The network is what a package has in four bits with a scale and a least value for every 32 weights of a row: "
    "integers of four bits with zero points stand for it almost as it is, and rates near theirs mean little.",
)
TASKS = (STORIES, MINILM, SMOLLM)
