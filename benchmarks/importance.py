"""Importances: what they cost in forward and backward passes, and how noisy they are.

`python benchmarks/importance.py [images]`, with $WATERFILL_DATA; 1,024 images by default.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from results import Section, write_page
from waterfill import zoo
from waterfill.importance import DrawnForm, QuarticForm, gradient, gradient_hessian, hessian, kl, regression

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


def row(importance: Any, model: nn.Module, data: Batches) -> dict[str, Any]:
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
    drawn = [form.standard_errors for form in forms.values() if isinstance(form, DrawnForm)]
    found["error by draws, %"] = round(relative(drawn, diagonals(forms)), 2) if drawn else "-"
    read = [form.fourth if isinstance(form, QuarticForm) else form.diagonal() for form in forms.values()]
    found["negative entries, %"] = round(100 * sum(int((v < 0).sum()) for v in read) / sum(v.size for v in read), 2)
    return found


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
    text = (
        "Passes: CPU seconds over those of one forward and backward pass on the same images, the mean of one just "
        f"before and one just after; {torch.get_num_threads()} thread(s) of a shared machine. Errors are standard "
        "errors: root mean square over the entries of a tensor as a share of that of the values, median over tensors. "
        "By samples: half the difference between the two halves of the images. By draws: what the importance says of "
        "itself; 0 where nothing had to be drawn. Negative entries: of the fourth powers where there are any. T = 1."
    )
    sections = [
        Section("ResNet-20", f"{images:,} CIFAR-10 images.", [row(each, model, data) for each in importances]),
        Section(
            "The same with GELU",
            f"GELU in place of ReLU, weights as they were, which makes it a worse network but a curved one; "
            f"{sum(len(y) for _, y in few):,} images.",
            [row(each, smooth, few) | {"draws": getattr(each, "draws", None) or "-"} for each in curved],
        ),
    ]
    write_page("importance", "Importances", text, sections)


if __name__ == "__main__":
    main()
