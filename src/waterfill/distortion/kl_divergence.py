"""Outputs that are logits: their distance is the KL divergence of the softmax.

A few rows at a time go to double precision, and of every prediction only its divergence is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from waterfill.distortion import probe_vectors
from waterfill.distortion.base import Distortion, Measures
from waterfill.distortion.losses import Loss, check_classes, cross_entropy
from waterfill.distortion.probe_vectors import DRAWS, Signals
from waterfill.models.batches import IGNORED, Inputs, is_integer
from waterfill.models.language import mask_of, next_tokens, predicts_next
from waterfill.models.predictions import as_predictions, class_axis, prediction_rows
from waterfill.protocols import Output

TOP5_CLASSES = 10
"""Top-5 accuracy is given from this number of classes on."""

_VALUES_AT_ONCE = {"cpu": 2**17, "others": 2**24}
"""Logits in double precision at a time: few enough to stay in the cache of a processor, many for other devices."""


class _KLDivergence(Distortion):
    """Mean of D(original || other) per prediction, nats (Eq. 6)."""

    name: ClassVar[Output] = "logits"
    factor: ClassVar[float] = 0.5
    unit: ClassVar[str] = "nats of KL"
    measure: ClassVar[str] = "kl"
    has_classes: ClassVar[bool] = True

    def allowed(self, outputs: Tensor) -> Tensor:
        """All but NaN and infinity; the logit of a class that cannot be is minus infinity."""
        return outputs.isfinite() | (outputs == -torch.inf)

    def count(self, reference: Tensor, target: Tensor | None) -> int:
        """Number of predictions that count."""
        return len(as_predictions(reference, target)[0])

    def per_output(self, reference: Tensor, result: Tensor, target: Tensor | None) -> Tensor:
        """Divergence of every prediction that counts, nats, float64 [predictions]."""
        return divergence(as_predictions(reference, target)[0], as_predictions(result, target)[0])

    def training_loss(self, reference: Tensor, result: Tensor, target: Tensor | None) -> Tensor:
        """Mean divergence of the predictions that count."""
        logits, _ = as_predictions(result, target)
        wanted, _ = as_predictions(reference, target)
        log_q, log_p = logits.log_softmax(-1), wanted.log_softmax(-1)
        return nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    def measures(self, result: Tensor, target: Tensor | None, reference: Tensor | None) -> Iterator[Measures]:
        """Losses and hits of every prediction."""
        logits, labels = prediction_rows(result, target)
        rows = [logits]
        rows += [] if labels is None else [labels]
        rows += [] if reference is None else [prediction_rows(reference, target)[0]]
        for part in _chunks(*rows):
            wanted = None if labels is None else part[1]
            counted, classes = as_predictions(part[0], wanted)
            log_q, best = counted.double().log_softmax(-1), counted.argmax(-1)
            found = {"predictions": torch.ones(len(counted))}
            if classes is not None:
                found |= _label_losses(counted, classes[:, None], log_q, best)
            if reference is not None:
                found |= _reference_losses(as_predictions(part[-1], wanted)[0], log_q, best)
            yield found

    def counted(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """Logits [predictions, classes] of the positions that are no padding."""
        return outputs.reshape(-1, outputs.shape[-1])[mask]

    def read_text(self, model: nn.Module, inputs: Inputs, outputs: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        """The next tokens as target where the model predicts them; else the logits [predictions, vocabulary]."""
        if predicts_next(model):
            return next_tokens(inputs), outputs
        mask = mask_of(inputs)
        return None, [each[mask.to(each.device)] for each in outputs]

    def probe_vectors(
        self, output: Tensor, target: Tensor | None, temperature: float, draws: int | None, generator: torch.Generator
    ) -> Signals:
        """Vectors for logits, which stand for predictions; 0 for those that do not count."""
        check_classes(output)
        axis = class_axis(output, target)
        logits = output.movedim(axis, -1)
        rows = logits.reshape(-1, logits.shape[-1])
        counted = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
        if target is not None and is_integer(target) and target.numel() == len(rows):
            counted = (target.reshape(-1, 1) != IGNORED).to(rows.device)
        positions = len(rows) // max(1, len(output))
        exact = draws is None and positions == 1 and rows.shape[-1] <= probe_vectors.EXACT_SIGNALS
        if exact:
            sent, number = probe_vectors.softmax_exact(rows, temperature), rows.shape[-1] - 1
        else:
            number = draws or DRAWS
            sent = probe_vectors.softmax_drawn(rows, temperature, number, generator)
        shaped = ((row * counted).reshape(logits.shape).movedim(-1, axis) for row in sent)
        return Signals(shaped, number, int(counted.sum()), drawn=not exact)

    def probe_powers(self, output: Tensor, target: Tensor | None, temperature: float) -> Tensor:
        """`(1 - sum_c f_c^2) / T^2` of every prediction; 0 for those that do not count."""
        logits = output.movedim(class_axis(output, target), -1)
        rows = logits.reshape(-1, logits.shape[-1])
        powers = torch.cat(
            [1 - (part.double() / temperature).softmax(-1).square().sum(-1) for (part,) in _chunks(rows)]
        )
        if target is not None and is_integer(target) and target.numel() == len(rows):
            powers = powers * (target.reshape(-1) != IGNORED).to(powers.device)
        return powers.clamp_min(0).reshape(len(output), -1) / temperature**2

    def draw(
        self, output: Tensor, mask: Tensor, temperature: float, generator: torch.Generator
    ) -> tuple[Tensor, float]:
        """A vector for the predictions at the positions that count."""
        rows = output.reshape(-1, output.shape[-1])
        drawn = next(probe_vectors.softmax_drawn(rows, temperature, 1, generator)).float()
        signal = drawn * mask.to(rows.device)[:, None]
        return signal.reshape(output.shape), float(mask.sum())

    def labelled_loss(self, temperature: float) -> Loss:
        """Cross-entropy of the right class."""
        return partial(cross_entropy, temperature=temperature)


KL_DIVERGENCE = _KLDivergence()
"""Of logits: D(original || other) of the softmax, nats per prediction."""


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """D(p || q) = sum p (log p - log q) of the softmax p of the reference and q of the logits, row by row.

    Args:
        reference: [predictions, classes].
        logits: [predictions, classes].

    Returns:
        Nats, float64 [predictions].
    """
    parts = _chunks(reference, logits)
    return torch.cat([_divergence(p.double().log_softmax(-1), q.double().log_softmax(-1)) for p, q in parts])


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p == -torch.inf, 0.0, terms).sum(-1)  # 0 log 0 = 0


def _chunks(*rows: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The same rows of every tensor, few enough at a time for copies in double precision."""
    most = _VALUES_AT_ONCE["cpu" if rows[0].device.type == "cpu" else "others"]
    size = max(1, most // max(1, rows[0].shape[-1]))
    return zip(*(torch.split(part, size) for part in rows), strict=True)


def _label_losses(logits: Tensor, labels: Tensor, log_q: Tensor, best: Tensor) -> dict[str, Tensor]:
    """Losses of logits [predictions, classes] against labels [predictions, 1], from their log-softmax and largest."""
    found = {
        "accuracy": (best == labels[:, 0]).double(),
        "cross_entropy": -log_q.gather(1, labels)[:, 0],
    }
    if logits.shape[-1] >= TOP5_CLASSES:
        found["top5"] = (logits.topk(5, dim=-1).indices == labels).any(-1).double()
    return found


def _reference_losses(reference: Tensor, log_q: Tensor, best: Tensor) -> dict[str, Tensor]:
    """Distances of logits, as in `_label_losses`, from those of a reference [predictions, classes]."""
    log_p = reference.double().log_softmax(-1)
    return {
        "kl": _divergence(log_p, log_q),
        "agreement": (best == reference.argmax(-1)).double(),
        "total_variation": (log_p.exp() - log_q.exp()).abs().sum(-1) / 2,
    }
