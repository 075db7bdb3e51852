"""From tensors of a checkpoint to parameters of a model of transformers, by the rules that transformers has for it.

Architectures change names on the way (`bert.` comes or goes), and join tensors: the experts of a layer, one by one in
the checkpoint, are one parameter. transformers has a list of transforms for each; here they are planned on names alone,
so that only what is needed is decoded.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from waterfill.errors import UnsupportedModelError

RULES = "transformers.core_model_loading"
"""The module of transformers 5 that has the rules from checkpoints to models."""


@dataclass(frozen=True)
class Unit:
    """Tensors of the checkpoint that become one or several parameters together.

    Attributes:
        targets: names of the parameters; the first one is what transformers calls the unit.
        transform: the rule, without tensors.
        sources: names of the tensors, in order, each with the pattern of the rule that it matched.
        dtype: the type that the model has for them.
    """

    targets: tuple[str, ...]
    transform: Any
    sources: tuple[tuple[str, str], ...]
    dtype: torch.dtype

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return [name for name, _ in self.sources]


@dataclass(frozen=True)
class Plan:
    """What the tensors of a checkpoint become.

    Attributes:
        units: in the order in which transformers would load them.
        unexpected: names that the model has no place for.
    """

    units: tuple[Unit, ...]
    unexpected: tuple[str, ...]


def plan(names: Iterable[str], model: Any, transforms: Collection[Any], dtype: torch.dtype | None) -> Plan:
    """Plan how tensors are loaded, as `convert_and_load_state_dict_in_model` of transformers does.

    Args:
        names: the tensors of the checkpoint.
        model: the model, still without values.
        transforms: its renamings and conversions.
        dtype: the type that was asked for.

    Raises:
        UnsupportedModelError: the model is distributed over processes.
    """
    rules = import_module(RULES)
    state = model.state_dict()
    _check_local(state)
    renamings = [each for each in transforms if isinstance(each, rules.WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, rules.WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix = model.base_model_prefix
    found: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    unexpected: list[str] = []
    for name in sorted(names, key=rules.dot_natural_key):
        target, pattern = _renamed(name, renamings, converters, prefix, state)
        if target not in state:
            unexpected += _targets(target, None if pattern is None else by_pattern[pattern])
            continue
        rule = rules.WeightRenaming(name, target) if pattern is None else by_pattern[pattern]
        found.setdefault(target, (rule, []))[1].append((name, name if pattern is None else pattern))
    types = _types(model, dtype, state)
    units = (
        Unit(tuple(_targets(target, rule)), rule, tuple(sources), types[target])
        for target, (rule, sources) in found.items()
    )
    return Plan(tuple(units), tuple(unexpected))


def _renamed(
    name: str, renamings: list[Any], converters: list[Any], prefix: str, state: Mapping[str, Tensor]
) -> tuple[str, str | None]:
    """The parameter that a tensor goes to, and the pattern of the converter that it matched, if any."""
    rename_source_key = import_module(RULES).rename_source_key
    found: tuple[str, str | None] = rename_source_key(name, renamings, converters, prefix, state)
    if found[0] not in state and name in state:  # it has its name already, but for the prefix of the base model
        found = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=state)
    return found


def _targets(target: str, rule: Any) -> list[str]:
    """All parameters of a unit, given the first one."""
    patterns = [] if rule is None else rule.target_patterns
    if len(patterns) < 2:
        return [target]
    return [target.replace(patterns[0], pattern) for pattern in patterns]


def _types(model: Any, dtype: torch.dtype | None, state: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The type of every parameter; some parts of some models stay in float32."""
    types = {name: tensor.dtype for name, tensor in state.items() if isinstance(tensor, Tensor)}
    planned = {} if dtype is None else model._get_dtype_plan(dtype)
    if planned:
        expression, by_group, _ = import_module(RULES).build_glob_alternation(list(planned))
        for name in types:
            match = expression.search(name)
            if match is not None:
                types[name] = planned[by_group[match.lastgroup]]
    return types


def _check_local(state: Mapping[str, Any]) -> None:
    for name, tensor in state.items():
        if type(tensor).__name__ == "DTensor":
            raise UnsupportedModelError(
                f"Parameter {name!r} is distributed over processes (a DTensor), which compressed directories do not "
                "support yet; load without tp_plan or distributed_config, or decompress the directory first."
            )


def convert(
    unit: Unit, tensors: Mapping[str, Tensor], model: Any, loading_info: Any = None
) -> Iterator[tuple[str, Tensor]]:
    """The parameters that tensors become.

    Args:
        unit: what is converted.
        tensors: the tensors of the unit, by name.
        model: a model with the right shapes; its values are not looked at.
        loading_info: where transformers is to keep errors of conversion; without it they are raised.

    Raises:
        SkipParameters: of transformers, when it has kept an error.
    """
    transform = copy.deepcopy(unit.transform)
    for name, pattern in unit.sources:
        transform.add_tensor(unit.targets[0], name, pattern, tensors[name].to(unit.dtype))
    done = transform.convert(unit.targets[0], model=model, config=model.config, loading_info=loading_info)
    for name, value in done.items():
        yield name, value[0] if isinstance(value, list) else value
