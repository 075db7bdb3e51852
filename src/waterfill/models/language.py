"""What batches of tokens mean: which predictions there are, and what each should be.

Text is a dict with `input_ids` [texts, tokens], and `attention_mask` of the same shape where some are padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import CalibrationError
from waterfill.models.batches import IGNORED, Inputs, is_integer, split
from waterfill.models.embedder import Embedder
from waterfill.protocols import Output


def tokens_of(inputs: Inputs) -> Tensor | None:
    """Token numbers of text, [texts, tokens]; None where the inputs are something else."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    return ids if isinstance(ids, Tensor) and ids.ndim == 2 and is_integer(ids) else None


def mask_of(inputs: Mapping[str, Any]) -> Tensor:
    """Where text has tokens and no padding: bool [texts, tokens]."""
    mask = inputs.get("attention_mask")
    ids: Tensor = inputs["input_ids"]
    return mask.bool() if isinstance(mask, Tensor) and mask.shape == ids.shape else torch.ones_like(ids).bool()


def next_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """Target of every position: the token that follows it; `IGNORED` at the end and beside padding.

    Args:
        inputs: text.

    Returns:
        int64 [texts, tokens].
    """
    ids, mask = inputs["input_ids"].to(torch.int64), mask_of(inputs)
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = torch.where(mask[:, :-1] & mask[:, 1:], ids[:, 1:], IGNORED)
    return targets


def predicts_next(model: nn.Module) -> bool:
    """Whether a model's logits are of the next token of its inputs.

    Those of transformers are not that cannot generate, or whose decoder has inputs of its own.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True:
        return False
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate()) if callable(can_generate) else True


def output_of_text(model: nn.Module, batches: Any) -> Output | None:
    """Tell what a model of text without targets returns; None where it does not tell, or the batches are no such text.

    Args:
        model: the network.
        batches: batches that can be iterated over again; only the first is looked at.
    """
    inputs, target = split(next(iter(batches)))
    if target is None and tokens_of(inputs) is not None:
        if _has_vocabulary_head(model):
            return "logits"
        if isinstance(model, Embedder) or getattr(model, "base_model", None) is model:
            return "values"
    return None


def _has_vocabulary_head(model: nn.Module) -> bool:
    head = getattr(model, "get_output_embeddings", None)
    return callable(head) and head() is not None


def is_unlabelled_text(inputs: Inputs, target: Tensor | None, output: Tensor) -> bool:
    """Whether a batch is text without a target, and its output has one entry for every token.

    Args:
        inputs: of the batch.
        target: of the batch.
        output: of a model.
    """
    ids = tokens_of(inputs)
    return ids is not None and target is None and output.ndim == 3 and output.shape[:2] == ids.shape


def check_vocabulary(inputs: Inputs, size: int | None, index: int | None = None) -> None:
    """Check that all tokens of a batch are in the vocabulary.

    Args:
        inputs: of the batch; only text is looked at.
        size: of the vocabulary; None where that is not known.
        index: number of the batch, for the error message.

    Raises:
        CalibrationError: one is not.
    """
    ids = tokens_of(inputs)
    if ids is None or size is None or not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise CalibrationError(
            f"{'A batch' if index is None else f'Batch {index}'} has the token {low if low < 0 else high}; expected "
            f"0 to {size - 1}, the vocabulary of the model. Use the tokenizer of this model."
        )


def vocabulary_of(model: nn.Module) -> int | None:
    """How many tokens a model of transformers has embeddings for; None where it does not tell."""
    model = model.model if isinstance(model, Embedder) else model
    embeddings = getattr(model, "get_input_embeddings", None)
    weight = getattr(embeddings() if callable(embeddings) else None, "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else None
