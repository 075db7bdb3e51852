"""Sentence encoders: a model that gives a vector for every token, and the pooling that makes one of them.

```
input_ids, attention_mask --model--> last_hidden_state [texts, tokens, width] --pool--> embeddings [texts, width]
```
Such a network is compressed and measured by its embeddings (`output="values"`), so that padding costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.errors import FormatError, UnsupportedModelError
from waterfill.file_system import is_file
from waterfill.io.configuration import inside, read_json, read_object
from waterfill.models.outputs import first_tensor


def mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are no padding: hidden [texts, tokens, width], mask [texts, tokens] of 0 and 1."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def first_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first token that is no padding, such as `[CLS]`: shapes as in `mean_of_tokens`."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.to(torch.int64).argmax(1)]


def last_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last token that is no padding: shapes as in `mean_of_tokens`."""
    last = mask.shape[1] - 1 - mask.to(torch.int64).flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


_KINDS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean_of_tokens,
    "cls": first_of_tokens,
    "lasttoken": last_of_tokens,
}
_MODE_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Pooling:
    """How vectors of tokens become one of the text.

    Attributes:
        kind: `mean` over the tokens that are no padding, `cls` (the first of them) or `lasttoken`.
        normalize: whether the embedding is divided by its length.
    """

    kind: str = "mean"
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise UnsupportedModelError(
                f"Pooling {self.kind!r} is not known; expected one of {', '.join(_KINDS)}. "
                "Wrap the model in a module of your own that returns its embeddings."
            )

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Embeddings of texts.

        Args:
            hidden: vectors of the tokens, [texts, tokens, width].
            mask: 1 for a token and 0 for padding, [texts, tokens].

        Returns:
            [texts, width], in the dtype of `hidden`.
        """
        pooled = _KINDS[self.kind](hidden, mask)
        return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


class Embedder(nn.Module):
    """A model that returns vectors of tokens, with its pooling: one embedding for every text.

    Args:
        model: takes `input_ids` and `attention_mask` and returns an object with `last_hidden_state`, or the tensor.
        pooling: how its vectors become one.
    """

    def __init__(self, model: nn.Module, pooling: Pooling | None = None) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling or Pooling()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        """Embeddings [texts, width] of token ids [texts, tokens]; the mask is 1 for a token and 0 for padding."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        output = self.model(input_ids=input_ids, attention_mask=mask, **inputs)
        found = getattr(output, "last_hidden_state", None)
        hidden = found if isinstance(found, Tensor) else first_tensor(output)
        if hidden.ndim != 3 or hidden.shape[:2] != mask.shape:
            raise UnsupportedModelError(
                f"The model returns {list(hidden.shape)} for tokens {list(mask.shape)}; expected a vector for every "
                "token, to be pooled. Wrap it in a module that returns what is to be kept, and use waterfill.compress."
            )
        return self.pooling.pool(hidden, mask)


def is_embedder(directory: Path) -> bool:
    """Whether a model directory says how to pool, as those of sentence-transformers do."""
    return is_file(directory / "modules.json") or is_file(directory / "1_Pooling" / "config.json")


def pooling_of(directory: Path) -> Pooling:
    """Pooling that a model directory asks for; the mean over all tokens where it does not say.

    Args:
        directory: a model directory, with `modules.json` and `1_Pooling/config.json` of sentence-transformers or not.

    Raises:
        FormatError: one of the two is no JSON of the known form, or outside the directory.
        UnsupportedModelError: the pooling is another one, or a layer follows it.
    """
    modules = _modules(directory)
    for kind in modules.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise UnsupportedModelError(
            f"{directory / 'modules.json'} has a module {kind}; expected Transformer, Pooling and Normalize. "
            "Wrap the model in a module of your own that returns its embeddings."
        )
    path = inside(directory / modules.get("Pooling", "1_Pooling") / "config.json", directory)
    kind = _pooling_kind(read_object(path), path) if is_file(path) else "mean"
    return Pooling(kind, normalize="Normalize" in modules)


def _modules(directory: Path) -> dict[str, str]:
    """Folders of the modules of sentence-transformers, by the last word of their type."""
    path = directory / "modules.json"
    if not is_file(path):
        return {}
    listed = read_json(path)
    try:
        return {str(each["type"]).rpartition(".")[2]: str(each["path"]) for each in listed}
    except (KeyError, TypeError) as error:
        raise FormatError(f"{path} is no list of modules with type and path; copy the file again.") from error


def _pooling_kind(config: Mapping[str, Any], path: Path) -> str:
    if "pooling_mode" in config:
        return str(config["pooling_mode"])
    asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(asked) != 1 or asked[0] not in _MODE_KEYS:
        raise UnsupportedModelError(
            f"{path} asks for {' and '.join(asked) or 'no pooling'}; expected one of {', '.join(_MODE_KEYS)}. "
            "Wrap the model in a module of your own that returns its embeddings."
        )
    return _MODE_KEYS[asked[0]]
