"""The last step of a network before its output, from the graph of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from waterfill.errors import WaterfillError
from waterfill.models.batches import Inputs, evaluation, whole_output

End: TypeAlias = Literal["sigmoid", "softmax", "linear", "unknown"]

_ENDS: dict[str, End] = {
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    **dict.fromkeys(("Addmm", "Mm", "Bmm", "Baddbmm", "Addbmm", "Mv", "Addmv", "Linear", "MkldnnLinear"), "linear"),
    **dict.fromkeys(("Convolution", "Add", "Sub", "NativeBatchNorm", "NativeLayerNorm", "Embedding"), "linear"),
}
"""Steps by their names in autograd, without `Backward0`."""

_PASSED = (
    "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Transpose", "T", "Permute",
    "Expand", "Clone", "ToCopy", "Alias", "AsStrided", "Unbind", "Split", "Mean", "AvgPool2D", "AdaptiveAvgPool2D",
)  # fmt: skip
"""Steps that only move numbers, or take means; what comes before them is looked at."""


def graph_end(model: nn.Module, inputs: Inputs, read: Callable[[Any], Tensor]) -> End:
    """Tell by which step a model's output was computed.

    Args:
        model: the network; it is left as it was.
        inputs: of one batch.
        read: takes the tensor out of the output.

    Returns:
        The kind of the step; `unknown` for all others, and where gradients do not reach the output.
    """
    with evaluation(model), torch.enable_grad():
        try:
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
            step = read(whole_output(model, inputs)).grad_fn
        except (WaterfillError, RuntimeError):  # it runs without gradients only, or was made in inference mode
            return "unknown"
    while step is not None:
        name = step.name().removesuffix("0").removesuffix("1").removesuffix("Backward")
        if name not in _PASSED:
            return _ENDS.get(name, "unknown")
        step = step.next_functions[0][0] if step.next_functions else None
    return "unknown"
