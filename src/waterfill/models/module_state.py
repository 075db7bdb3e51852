"""The state dict of a module: checked, and which of its names mean the same memory."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, MutableMapping

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.parameter import is_lazy

from waterfill.errors import UnsupportedModelError


def checked_state(model: nn.Module) -> MutableMapping[str, Tensor]:
    """The model's state dict, where every entry is a parameter or a buffer with data, whatever its name.

    Raises:
        UnsupportedModelError: an entry is extra state, is no tensor of the model, or is not initialised or on the meta
            device.
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
    _check_origin(model, state)
    return state


def _check_origin(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that what the state dict gives is the memory that the model computes with.

    Raises:
        UnsupportedModelError: an entry is made by the state dict itself.
    """
    own = {storage_key(each) for each in (*model.parameters(), *model.buffers()) if has_storage(each)}
    for name, value in state.items():
        if has_storage(value) and storage_key(value) not in own:
            raise UnsupportedModelError(
                f"State dict entry {name!r} {list(value.shape)} is no parameter and no buffer, it is made "
                "by a hook or by a state_dict of the model's own; expected the tensors that the model computes with. "
                "Leave the hook out while compressing, or register the tensor."
            )


def joined(prefix: str, field: str) -> str:
    """Name in the state dict of a tensor of the module `prefix`, which is empty for the model itself."""
    return f"{prefix}.{field}" if prefix else field


def has_storage(tensor: Tensor) -> bool:
    """Whether a tensor has elements in a memory of its own or shared with others."""
    if is_lazy(tensor) or is_functorch_wrapped_tensor(tensor):
        return False
    return tensor.layout is torch.strided and tensor.numel() > 0 and not tensor.is_meta


def is_expanded(tensor: Tensor) -> bool:
    """Whether elements along an axis are one value in memory, as `Tensor.expand` makes them: nothing writes to such."""
    return any(stride == 0 < size - 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


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
        name: firsts.setdefault(storage_key(tensor), name) if has_storage(tensor) else name
        for name, tensor in state.items()
    }


def memories_of(tensors: Iterable[Tensor]) -> set[Hashable]:
    """The memories of some tensors."""
    return {storage_key(each) for each in tensors if has_storage(each)}


def names_in(state: Mapping[str, Tensor], keys: Collection[Hashable]) -> set[str]:
    """Names of the entries of a state dict that are one of these memories."""
    return {name for name, value in state.items() if has_storage(value) and storage_key(value) in keys}
