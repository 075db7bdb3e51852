"""Live modules: what a model consists of, in normal form, and how values go back into it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from waterfill.errors import WaterfillError
from waterfill.models.arrays import dtype_name
from waterfill.models.module_state import checked_state, first_names, is_expanded, joined, memories_of, names_in
from waterfill.models.norms import foldable_norms
from waterfill.models.patterns import excluded, listed
from waterfill.models.shared_memory import check_memory, contradictions
from waterfill.models.state_dict import CODED_DTYPES, collect, origin_of
from waterfill.records import Coded, Exact, Inventory, Layout, Origin, Tied, Weight

_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def inventory(
    model: nn.Module, *, fold_norms: bool = True, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Inventory:
    """Sort every entry of a model's state dict into what is quantized and what is kept as it is.

    Args:
        model: a network on any device; it is not changed, and the inventory shares no memory with it.
        fold_norms: store batch norms as one scale and one shift per channel, see `folded_norms`.
        include: name patterns such as `layer1.*` (fnmatch); where there are any, only what matches is quantized.
            Without any, buffers other than the statistics of norms are stored without loss.
        exclude: name patterns of what is stored without loss. A tied tensor is meant by any of its names.

    Returns:
        One entry for every name of the state dict, in its order.

    Raises:
        WaterfillError: a pattern matches nothing, or a value to be quantized is NaN or infinite.
        UnsupportedModelError: an entry is no tensor with data, or of a type that cannot be stored, or shares elements
            with another one that is not the same tensor.
    """
    state = checked_state(model)
    left_out = excluded(first_names(state), include, exclude)
    if len(include) == 0:
        left_out = _plain_buffers(model, state) | left_out
    norms = foldable_norms(model, state, left_out) if fold_norms else ()
    layouts = _layouts(model, state)
    origins: dict[str, Origin] = {}
    for name, first in first_names(state).items():
        origin = origin_of(name, state[name], layouts.get(name, Layout(tuple(state[name].shape))))
        if isinstance(origin, Coded) and name in left_out:
            origin = Exact(left_out[name])
        origins[name] = origin if name == first else Tied(first)
    check_memory(state, [name for name, origin in origins.items() if isinstance(origin, Coded)])
    folded: dict[str, Weight] = {}
    for norm in norms:
        origins |= norm.origins()
        folded |= norm.weights()
    return collect(state, origins, folded)


def _layouts(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Layout]:
    """Layouts of the tensors whose second axis, not the first, is the output."""
    layouts = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        groups = module.groups if isinstance(module, _TRANSPOSED_CONVOLUTIONS) else int(isinstance(module, _EMBEDDINGS))
        name = joined(prefix, "weight")
        if groups and name in state and state[name].ndim > 1 and state[name].shape[0] % groups == 0:
            layouts[name] = Layout(tuple(state[name].shape), transposed=True, groups=groups)
    return layouts


def _plain_buffers(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """The reason for every floating-point buffer that is no statistic of a norm, and no parameter by another name."""
    learned = memories_of(model.parameters())
    norms = (module for module in model.modules() if isinstance(module, _NormBase))
    learned |= memories_of(each for norm in norms for each in norm.buffers(recurse=False))
    names = state.keys() - names_in(state, learned)
    return {
        name: f"a buffer, stored exactly; include={name!r} quantizes it"
        for name in state
        if name in names and state[name].dtype in CODED_DTYPES
    }


# Filling


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, missing_ok: Iterable[str] = ()) -> None:
    """Load a state dict in place: strict in names and shapes, and all or nothing.

    The model's tensors keep their memory, device, type and ties, so optimizers and references to them stay valid.

    Args:
        model: the network to fill.
        tensors: a value for every name of its state dict, of the same shape; types are converted within real
            floating-point numbers, complex numbers, and integers.
        missing_ok: name patterns of what may be missing and then stays as it is, such as `*num_batches_tracked`.

    Raises:
        WaterfillError: names, shapes or types differ; the text has the first few of each, and the model is untouched.
        UnsupportedModelError: an entry of the model's state dict is no tensor with data.
    """
    state = checked_state(model)
    tolerated = {name for name in state if any(fnmatchcase(name, pattern) for pattern in missing_ok)}
    problems = _problems(state, tensors, tolerated)
    if problems:
        raise WaterfillError(
            f"The tensors do not fit the model: {'; '.join(problems)}. Nothing was changed; expected the names and "
            "shapes of its state dict. Build the model as it was when the tensors were saved."
        )
    with torch.inference_mode(any(value.is_inference() for value in state.values())):  # such take no values outside
        _write(model, state, {name: tensors[name] for name in state if name in tensors})


def _write(model: nn.Module, state: MutableMapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Give a model values that fit it; where its state dict has names of its own, by the memory that they mean."""
    parameters, buffers = (every(remove_duplicate=False) for every in (model.named_parameters, model.named_buffers))
    own = {name for name, _ in (*parameters, *buffers)}
    changed = {name: value for name, value in values.items() if not is_expanded(state[name])}
    if own.issuperset(state):
        for name in set(values) - set(changed):
            del state[name]
        state.update(changed)
        model.load_state_dict(state, strict=False)
        return
    with torch.no_grad():
        for name, value in changed.items():
            state[name].copy_(value)


def _problems(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], tolerated: Collection[str]) -> list[str]:
    """Everything that keeps `tensors` from being loaded, a few words for each kind."""
    both = [name for name in state if name in tensors]
    shapes = [
        f"{name} is {list(tensors[name].shape)}, not {list(state[name].shape)}"
        for name in both
        if tensors[name].shape != state[name].shape
    ]
    types = [
        f"{name} is {dtype_name(tensors[name].dtype)}, not {dtype_name(state[name].dtype)}"
        for name in both
        if _number(tensors[name]) != _number(state[name])
    ]
    found = {
        "missing": [name for name in state if name not in tensors and name not in tolerated],
        "unexpected": [name for name in tensors if name not in state],
        "of another shape": shapes,
        "of another kind of number": types,
        "expanded, so that its elements share memory": [
            name for name in both if is_expanded(state[name]) and not torch.equal(state[name], tensors[name])
        ],
    }
    if not shapes and not types:
        found["of two values in memory that the model shares"] = contradictions(state, tensors)
    return [f"{len(names)} {problem} ({listed(names)})" for problem, names in found.items() if names]


def _number(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_complex(), tensor.is_floating_point()
