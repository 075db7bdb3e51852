"""Importances: what they cost in forward and backward passes, and how noisy they are.

`python benchmarks/importance.py [images]`, with $WATERFILL_DATA; 1,024 images by default.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from results import Section, write_page
from waterfill import zoo
from waterfill.importance import DrawnForm, DrawnQuarticForm, bends, gradient, gradient_hessian, hessian, kl, regression

Batches = list[tuple[Tensor, Tensor]]


def one_pass(model: nn.Module, data: Batches) -> float:
    """CPU seconds for one forward and backward pass over the data, with the gradient of every parameter."""
    start = time.process_time()
    for x, y in data:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
    return time.process_time() - start


class Gelu(TorchFunctionMode):
    """Calls GELU in place of ReLU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return F.gelu(args[0]) if func in (F.relu, torch.relu, Tensor.relu) else func(*args, **(kwargs or {}))


class WithGelu(nn.Module):
    """A model with GELU in place of every ReLU."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with Gelu():
            output: Tensor = self.model(x)
        return output


def relative(errors: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> float:
    """Root mean square of errors over that of values, median over tensors, in percent."""
    pairs = zip(errors, values, strict=True)
    return 100 * float(np.median([np.sqrt(np.mean(np.square(e)) / np.mean(np.square(v))) for e, v in pairs]))


def diagonals(forms: dict[str, Any]) -> list[np.ndarray]:
    return [form.diagonal().astype(np.float64) for form in forms.values()]


def errors_by_draws(forms: dict[str, Any]) -> list[np.ndarray]:
    """Standard errors of what was drawn; empty where the form has none."""
    found = [
        form.fourth_errors if isinstance(form, DrawnQuarticForm) else form.standard_errors
        for form in forms.values()
        if isinstance(form, DrawnForm | DrawnQuarticForm)
    ]
    return [error.astype(np.float64) for error in found]


def measured(importance: Any, model: nn.Module, data: Batches) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of an importance, and its forms."""
    before, start = one_pass(model, data), time.process_time()
    halves = [importance.begin(model) for _ in range(2)]
    for number, batch in enumerate(data):
        halves[number % 2] = halves[number % 2].update(batch)
    forms = halves[0].merge(halves[1]).forms()
    seconds = time.process_time() - start
    passes = seconds / ((before + one_pass(model, data)) / 2)
    one, two = (diagonals(half.forms()) for half in halves)
    found: dict[str, Any] = {
        "importance": importance.name,
        "CPU seconds": round(seconds, 1),
        "passes": round(passes, 1),
        "error by samples, %": round(
            relative([(a - b) / 2 for a, b in zip(one, two, strict=True)], diagonals(forms)), 1
        ),
    }
    read = [form.fourth if isinstance(form, DrawnQuarticForm) else form.diagonal() for form in forms.values()]
    drawn = errors_by_draws(forms)
    found["error by draws, %"] = round(relative(drawn, read), 2) if drawn else "-"
    found["negative entries, %"] = round(100 * sum(int((v < 0).sum()) for v in read) / sum(v.size for v in read), 2)
    return found, forms


def curved_row(importance: Any, model: nn.Module, data: Batches, scale: Sequence[np.ndarray]) -> dict[str, Any]:
    """A row with errors in units of another importance: as shares of themselves they end at 100 % when noise is all."""
    found, forms = measured(importance, model, data)
    drawn = errors_by_draws(forms) if isinstance(importance, hessian) else []
    return found | {
        "error by draws, times kl": round(relative(drawn, scale) / 100, 2) if drawn else "-",
        "draws": getattr(importance, "draws", None) or "-",
    }


def by_products(importance: hessian, model: nn.Module, data: Batches, scale: Sequence[np.ndarray]) -> dict[str, Any]:
    """The row of an estimator to which no function is elementwise, so that everything is drawn by products `R v`."""
    with patch.object(bends, "ELEMENTWISE", frozenset()):
        return curved_row(importance, model, data, scale) | {"importance": f"{importance.name}, all by products"}


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    data: Batches = list(zoo.cifar10_calibration(samples=images))
    model = zoo.pretrained("resnet20").eval()
    smooth = WithGelu(model)
    assert not torch.equal(smooth(data[0][0]), model(data[0][0]))
    one_pass(model, data)
    importances = (kl(), regression(), gradient(), hessian(), gradient_hessian())
    curved = (kl(), gradient(), hessian(draws=2), hessian(), gradient_hessian())
    few = data[: max(2, len(data) // 4)]
    scale = diagonals(kl().estimate(smooth, few))
    text = (
        "Passes: CPU seconds over those of one forward and backward pass on the same images, the mean of one just "
        f"before and one just after; {torch.get_num_threads()} thread(s) of a shared machine. Errors are standard "
        "errors: root mean square over the entries of a tensor as a share of that of the values, median over tensors. "
        "By samples: half the difference between the two halves of the images. By draws: what the importance says of "
        "itself; 0 where nothing had to be drawn. Both negative entries and errors by draws are those of the fourth "
        "powers where there are any. T = 1."
    )
    sections = [
        Section("ResNet-20", f"{images:,} CIFAR-10 images.", [measured(each, model, data)[0] for each in importances]),
        Section(
            "The same with GELU",
            f"GELU in place of ReLU, weights as they were, which makes it a worse network but a curved one; "
            f"{sum(len(y) for _, y in few):,} images.",
            [*(curved_row(each, smooth, few, scale) for each in curved), by_products(hessian(), smooth, few, scale)],
        ),
    ]
    write_page("importance", "Importances", text, sections)


if __name__ == "__main__":
    main()
