"""What the caller has set for all of PyTorch, and what of it a call leaves at the door."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


P = ParamSpec("P")
R = TypeVar("R")


def in_ordinary_surroundings(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function work in `ordinary_surroundings` of the first module among its arguments."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        models = (each for each in (*args, *kwargs.values()) if isinstance(each, nn.Module))
        with ordinary_surroundings(next(models, None)):
            return function(*args, **kwargs)

    return call


@contextmanager
def ordinary_surroundings(model: nn.Module | None = None) -> Iterator[None]:
    """Work as if nothing was set: the same call gives the same bytes wherever it is made.

    Left at the door are inference mode and switched-off gradients, autocast, deterministic algorithms (some operations
    have none for their gradients), the stance of the compiler, and a default device or type that is not the model's.
    On GPUs products and convolutions of single precision are in all of it (no TF32): distortions of compressed models
    are below what that leaves out.

    Args:
        model: the network; a default device or type that its parameters have stays, for its forward may rely on it.
    """
    parameters = [] if model is None else list(model.parameters())
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_default_type(torch.get_default_dtype(), {each.dtype for each in parameters}))
        if torch.get_default_device().type not in {
            "cpu",
            *(each.device.type for each in parameters if not each.is_meta),
        }:
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_any_algorithms())
        stack.enter_context(_single_precision())
        if "torch._dynamo" in sys.modules:  # which takes seconds to import, and nothing is compiled without it
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def _default_type(now: torch.dtype, own: set[torch.dtype]) -> Iterator[None]:
    """Make single precision the default, where the default is no type of the model."""
    if now not in own:
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(now)


@contextmanager
def _any_algorithms() -> Iterator[None]:
    """Take any algorithm, deterministic or not."""
    mode = torch.get_deterministic_debug_mode()
    if mode:
        torch.set_deterministic_debug_mode(0)
    try:
        yield
    finally:
        if mode:
            torch.set_deterministic_debug_mode(mode)


@contextmanager
def _single_precision() -> Iterator[None]:
    """Let GPUs compute products of single precision in all of it, and convolutions the same way in every run."""
    cudnn: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    with ExitStack() as stack:

        def change(place: Any, name: str, value: Any) -> None:
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, value)

        change(cudnn, "deterministic", True)
        with suppress(RuntimeError):  # where precisions were set operator by operator
            change(cudnn, "allow_tf32", False)
        if not hasattr(products, "fp32_precision"):  # before PyTorch 2.9
            change(products, "allow_tf32", False)
        else:
            for place in (products, cudnn.conv, cudnn.rnn):
                if place.fp32_precision == "tf32":
                    change(place, "fp32_precision", "ieee")
        yield


@contextmanager
def differentiable_recurrence(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave cuDNN out of recurrent layers where gradients are taken: those that it has need training mode.

    Args:
        model: that is run.
        device: where it is.
    """
    cudnn: Any = torch.backends.cudnn
    enabled = cudnn.enabled
    if device.type == "cuda" and torch.is_grad_enabled():
        cudnn.enabled = enabled and not any(isinstance(each, nn.RNNBase) for each in model.modules())
    try:
        yield
    finally:
        cudnn.enabled = enabled


@contextmanager
def inference_mode_ignored() -> Iterator[None]:
    """While it is entered, inference mode is not obeyed in this thread: what a model does in it has gradients.

    `torch.no_grad` can be watched like a function, inference mode cannot.
    """
    mode = torch.inference_mode
    owner, enter, leave = threading.get_ident(), mode.__enter__, mode.__exit__

    def enter_elsewhere(self: torch.inference_mode) -> None:
        if threading.get_ident() != owner:
            enter(self)

    def leave_elsewhere(self: torch.inference_mode, *error: Any) -> None:
        if threading.get_ident() != owner:
            leave(self, *error)

    mode.__enter__, mode.__exit__ = enter_elsewhere, leave_elsewhere  # type: ignore[method-assign]
    try:
        yield
    finally:
        mode.__enter__, mode.__exit__ = enter, leave  # type: ignore[method-assign]
