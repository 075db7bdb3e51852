"""Live modules: what a model consists of, in normal form, and how values go back into it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from waterfill.errors import UnsupportedModelError, WaterfillError
from waterfill.models.patterns import excluded, listed
from waterfill.models.state_dict import CODED_DTYPES, collect, dtype_name, origin_of
from waterfill.records import Coded, Constant, Exact, Inventory, Layout, NormMean, NormVariance, Origin, Tied, Weight

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
        exclude: name patterns of what is stored without loss. A tied tensor is meant by any of its names.

    Returns:
        One entry for every name of the state dict, in its order.

    Raises:
        WaterfillError: a pattern matches nothing, or a value to be quantized is NaN or infinite.
        UnsupportedModelError: an entry is no tensor with data, or of a type that cannot be stored.
    """
    state = checked_state(model)
    left_out = excluded(first_names(state), include, exclude)
    norms = _foldable_norms(model, state, left_out) if fold_norms else ()
    layouts = _layouts(model, state)
    origins: dict[str, Origin] = {}
    for name, first in first_names(state).items():
        origin = origin_of(name, state[name], layouts.get(name, Layout(tuple(state[name].shape))))
        if isinstance(origin, Coded) and name in left_out:
            origin = Exact(left_out[name])
        origins[name] = origin if name == first else Tied(first)
    folded: dict[str, Weight] = {}
    for norm in norms:
        origins |= norm.origins()
        folded |= norm.weights()
    return collect(state, origins, folded)


def checked_state(model: nn.Module) -> MutableMapping[str, Tensor]:
    """The model's state dict, where every entry is a tensor with data.

    Raises:
        UnsupportedModelError: an entry is extra state, is no tensor, or is not initialised or on the meta device.
    """
    state: MutableMapping[str, Tensor] = model.state_dict()
    for name, value in state.items():
        if name.rpartition(".")[2] == "_extra_state" or not isinstance(value, Tensor):
            raise UnsupportedModelError(
                f"State dict entry {name!r} is a {type(value).__name__} outside the parameters and buffers; expected "
                "only tensors. Keep this state elsewhere (for example without get_extra_state) and save it on its own."
            )
        if is_lazy(value):
            raise UnsupportedModelError(
                f"Tensor {name!r} is not initialised and has no shape; expected values. Run the model on one batch."
            )
        if value.is_meta:
            raise UnsupportedModelError(
                f"Tensor {name!r} {list(value.shape)} has no data, it is on the meta device; expected values. "
                "Load the checkpoint into the model first."
            )
    return state


def storage_key(tensor: Tensor) -> Hashable:
    """What two tensors have in common that are the same memory, read in the same way."""
    address = tensor.untyped_storage().data_ptr()
    return tensor.device, address, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For every name the first name of the same tensor: itself, unless it is tied to an earlier one.

    Views of the same memory that are not identical are tensors of their own, and so are tensors without elements.
    """
    firsts: dict[Hashable, str] = {}
    return {
        name: firsts.setdefault(storage_key(tensor), name)
        if tensor.layout is torch.strided and tensor.numel()
        else name
        for name, tensor in state.items()
    }


def _layouts(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Layout]:
    """Layouts of the tensors whose second axis, not the first, is the output."""
    layouts = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        groups = module.groups if isinstance(module, _TRANSPOSED_CONVOLUTIONS) else int(isinstance(module, _EMBEDDINGS))
        name = joined(prefix, "weight")
        if groups and name in state and state[name].ndim > 1 and state[name].shape[0] % groups == 0:
            layouts[name] = Layout(tuple(state[name].shape), transposed=True, groups=groups)
    return layouts


# Batch norms


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """A batch norm that is stored as a scale s and a shift t per channel: `s x + t` in evaluation mode.

    Attributes:
        name: of the module.
        scale: s, float64 [channels].
        shift: t, float64 [channels].
        eps: what the module adds to its variance.
        affine: whether it has a weight and a bias.
    """

    name: str
    scale: Tensor
    shift: Tensor
    eps: float
    affine: bool

    def entry(self, field: str) -> str:
        """Name of `weight`, `bias`, `running_mean` or `running_var` in the state dict."""
        return joined(self.name, field)

    @property
    def scale_name(self) -> str:
        """The entry whose weight is the scale."""
        return self.entry("weight" if self.affine else "running_var")

    @property
    def shift_name(self) -> str:
        """The entry whose weight is the shift."""
        return self.entry("bias" if self.affine else "running_mean")

    @property
    def names(self) -> tuple[str, ...]:
        """The four entries of a norm with affine parameters, or the two of one without."""
        return tuple(self.entry(field) for field in norm_fields(self.affine))

    def origins(self) -> dict[str, Origin]:
        """Where the values of its entries come from."""
        layout = Layout(tuple(self.scale.shape))
        if not self.affine:
            return {
                self.shift_name: NormMean(layout, self.scale_name),
                self.scale_name: NormVariance(layout, self.eps),
            }
        constants = {self.entry("running_mean"): Constant(0.0), self.entry("running_var"): Constant(1.0 - self.eps)}
        return {self.scale_name: Coded(layout), self.shift_name: Coded(layout), **constants}

    def weights(self) -> dict[str, Weight]:
        """Scale and shift in normal form, by the names of their entries."""
        layout = Layout(tuple(self.scale.shape))
        values = {self.scale_name: self.scale, self.shift_name: self.shift}
        return {
            name: Weight(name, layout.to_matrix(value.to(torch.float32).numpy()), layout)
            for name, value in values.items()
        }


def norm_fields(affine: bool) -> tuple[str, ...]:
    """The tensors of a batch norm that decide what it does in evaluation mode."""
    return ("weight", "bias", "running_mean", "running_var") if affine else ("running_mean", "running_var")


def joined(prefix: str, field: str) -> str:
    """Name in the state dict of a tensor of the module `prefix`, which is empty for the model itself."""
    return f"{prefix}.{field}" if prefix else field


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm does in evaluation mode: `s x + t`, `s = weight / sqrt(var + eps)`, `t = bias - mean s`.

    Args:
        norm: a batch norm with running statistics, with or without affine parameters.

    Returns:
        s and t, float64 [channels] on the CPU.
    """
    mean, variance = _double(norm.running_mean), _double(norm.running_var)
    scale = 1 / (variance + norm.eps).sqrt()
    if norm.weight is not None:
        scale = scale * _double(norm.weight)
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + _double(norm.bias)


def _double(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().to("cpu", torch.float64)


def folded_norms(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[FoldedNorm, ...]:
    """The batch norms that `inventory` stores as a scale and a shift.

    Not folded are those without running statistics, with a tensor that the patterns take out or that another module
    uses too, with a variance + eps that is not positive, or with a scale or shift that their type cannot hold.

    Args:
        model: a network.
        include: as in `inventory`.
        exclude: as in `inventory`.

    Raises:
        WaterfillError: a pattern matches nothing.
        UnsupportedModelError: an entry of the state dict is no tensor with data.
    """
    state = checked_state(model)
    return _foldable_norms(model, state, excluded(first_names(state), include, exclude))


def _foldable_norms(model: nn.Module, state: Mapping[str, Tensor], left_out: Collection[str]) -> tuple[FoldedNorm, ...]:
    uses: dict[str, set[str]] = defaultdict(set)
    for name, first in first_names(state).items():
        uses[first].add(name)
    prefixes: dict[_BatchNorm, list[str]] = defaultdict(list)
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm) and None not in (module.running_mean, module.running_var):
            prefixes[module].append(prefix)
    norms = (_folded(module, names, uses, state) for module, names in prefixes.items())
    return tuple(norm for norm in norms if norm is not None and not set(norm.names) & set(left_out))


def _folded(
    module: _BatchNorm, prefixes: Sequence[str], uses: Mapping[str, set[str]], state: Mapping[str, Tensor]
) -> FoldedNorm | None:
    """The folded norm of a module that the model holds under some names, or None where it cannot be folded."""
    affine = module.weight is not None
    if affine != (module.bias is not None) or not 0 <= module.eps < 1:
        return None
    for field in norm_fields(affine):
        names = [joined(prefix, field) for prefix in prefixes]
        if uses.get(names[0]) != set(names) or state[names[0]].dtype not in CODED_DTYPES:
            return None
    norm = FoldedNorm(prefixes[0], *scale_and_shift(module), float(module.eps), affine)
    types = [state[norm.scale_name].dtype, state[norm.shift_name].dtype] if affine else []
    limit = min(torch.finfo(dtype).max for dtype in (torch.float32, *types))
    fits = bool((norm.scale.abs() <= limit).all() and (norm.shift.abs() <= limit).all())
    return norm if fits and norm.scale.numel() else None


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
    made_in_inference_mode = any(value.is_inference() for value in state.values())
    state.update({name: tensors[name] for name in state if name in tensors})
    with torch.inference_mode(made_in_inference_mode):
        model.load_state_dict(state, strict=True)


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
            name
            for name in both
            if any(s == 0 < n - 1 for s, n in zip(state[name].stride(), state[name].shape, strict=True))
        ],
    }
    return [f"{len(names)} {problem} ({listed(names)})" for problem, names in found.items() if names]


def _number(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_complex(), tensor.is_floating_point()


def clone(model: nn.Module) -> nn.Module:
    """Copy a model for trial compressions; nothing that is done to the copy reaches the model.

    Modes and hooks are copied as they are (a hook that refers to the model itself goes on doing so); gradients are
    not. A tensor kept as a plain attribute that was computed from parameters, as in the old weight norm, is copied as
    a constant until the next forward pass computes it again.

    Raises:
        UnsupportedModelError: the model holds something that cannot be copied.
    """
    attributes = [value for module in model.modules() for value in vars(module).values()]
    computed = {id(v): v.detach().clone() for v in attributes if isinstance(v, Tensor) and not v.is_leaf}
    try:
        return copy.deepcopy(model, computed)
    except (TypeError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"The model {type(model).__name__} cannot be copied ({error}); expected one that copy.deepcopy accepts. "
            "Take what cannot be copied (locks, files, handles) out of its attributes."
        ) from error
