"""The quantizer and its configuration that transformers finds for `"quant_method": "waterfill"`."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from waterfill.bundle import Bundle
from waterfill.errors import UnsupportedModelError
from waterfill.integrations.options import current
from waterfill.integrations.staying import Staying, staying
from waterfill.io.configuration import METHOD
from waterfill.io.directory import WEIGHTS
from waterfill.models.conversion import RULES, Unit, convert, plan


class Loading:
    """One model that is being loaded from a compressed directory.

    Attributes:
        bundle: the directory.
        transforms: the rules of the architecture from checkpoint to model.
    """

    def __init__(self, shards: list[str] | None, dtype: torch.dtype | None) -> None:
        """Open the directory.

        Args:
            shards: paths of its safetensors files.
            dtype: the type that was asked for.

        Raises:
            UnsupportedModelError: weights were given in another way than by files.
            FormatError: the directory is damaged.
        """
        if not shards or not all(str(shard).endswith(".safetensors") for shard in shards):
            raise UnsupportedModelError(
                "A compressed model is loaded from the safetensors files of its directory; expected them, without "
                "state_dict or another checkpoint. Name the directory alone."
            )
        self._options, self._dtype = current(), dtype
        self.bundle = Bundle(Path(shards[0]).parent, threads=self._options.threads)
        self.transforms: list[Any] = []
        self._staying: Staying | None = None

    @property
    def to_cpu(self) -> bool:
        """Whether parameters are given on the processor, so that transformers moves them to where they belong."""
        return self._options.device is None

    def parameters(self, model: Any, loading_info: Any) -> Iterator[tuple[str, Tensor]]:
        """The parameters of the model, decoded group by group; what the caller does not keep is freed."""
        planned = plan(self.bundle, model, self.transforms, self._dtype)
        loading_info.unexpected_keys.update(planned.unexpected)
        units = planned.units
        if self._options.resident:
            self._staying = staying(units, self.bundle, model)
            loading_info.missing_keys.difference_update(self._staying.names)
            units = self._staying.others
        bar = import_module(RULES).tqdm
        for group in bar(by_group(units, self.bundle).values(), desc="Decoding groups"):
            yield from self._decoded(group, model, loading_info)

    def _decoded(self, units: list[Unit], model: Any, loading_info: Any) -> Iterator[tuple[str, Tensor]]:
        skip = import_module(RULES).SkipParameters
        tensors = self.bundle.decode([name for unit in units for name in unit.names], self._options.device)
        for unit in units:
            mine = {name: tensors.pop(name) for name in unit.names}
            with contextlib.suppress(skip):  # transformers has kept the error, and reports it
                yield from convert(unit, mine, model, loading_info)

    def finish(self, model: Any) -> None:
        """Leave the model as one that was loaded from ordinary weights, or with its blocks compressed."""
        with contextlib.suppress(AttributeError):  # of what was loaded, not of the model
            del model.config.transformers_weights
        model._weight_conversions = [each for each in self.transforms if each.was_used()]
        if self._staying is None:
            self.bundle.close()
        else:
            self._staying.attach(model, self._options.cache_bytes, self._options.device)


def by_group(units: tuple[Unit, ...], bundle: Bundle) -> dict[str, list[Unit]]:
    """Units by the last group that their tensors come with, in the order of groups."""
    number = {name: k for k, group in enumerate(bundle.groups) for name in bundle.names(group)}
    found: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        found[max(number[name] for name in unit.names)].append(unit)
    return {bundle.groups[k]: found[k] for k in sorted(found)}


class Parameters:
    """What a conversion of transformers returns: named parameters, made while they are iterated over."""

    def __init__(self, source: Iterator[tuple[str, Tensor]]) -> None:
        self._source = source

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every parameter, once."""
        return self._source


def config_class() -> type:
    """The configuration, as a subclass of what transformers has."""
    base = import_module("transformers.utils.quantization_config")

    class WaterfillConfig(base.QuantizationConfigMixin):  # type: ignore[misc, name-defined]
        """What `quantization_config` of a compressed directory says."""

        dequantize = True  # the model is an ordinary one once it is loaded

        def __init__(self, **described: Any) -> None:
            self.__dict__.update(described)
            self.quant_method = METHOD

    return WaterfillConfig


class Ordinary:
    """What a loaded model is to transformers: an ordinary one."""

    def is_serializable(self) -> bool:
        """No: a loaded model is an ordinary one, without a quantizer."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Yes, as an ordinary model."""
        return True


def quantizer_class() -> type:
    """The quantizer, as a subclass of what transformers has."""
    base = import_module("transformers.quantizers.base")

    class WaterfillQuantizer(Ordinary, base.HfQuantizer):  # type: ignore[misc, name-defined]
        """Loads a compressed directory as if its weights were ordinary ones."""

        def validate_environment(self, *args: Any, **kwargs: Any) -> None:
            """Refuse to quantize while loading."""
            del args, kwargs
            if not self.pre_quantized:
                raise UnsupportedModelError(
                    "waterfill does not compress a model while it is loaded; expected a compressed directory. Make "
                    "one: waterfill compress DIR -o OUT"
                )

        def update_attn_implementation(self, config: Any) -> Any:
            """The configuration, which now names the payloads as its weights; called before files are looked for."""
            weights = getattr(self.quantization_config, "weights", None)
            if weights in WEIGHTS:
                config.transformers_weights = weights
            return config

        def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
            """The type that the original has, where the configuration names none and payloads were taken for it."""
            return dtype if dtype.is_floating_point else main_dtype(self.quantization_config)

        def _process_model_before_weight_loading(self, model: Any, **given: Any) -> None:
            del model
            self._loading = Loading(given.get("checkpoint_files"), given.get("dtype"))

        def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
            """One conversion, from all payloads to all parameters, which does those of the model inside."""
            self._loading.transforms = list(weight_conversions)
            return [payloads(self._loading, next(iter(model.state_dict())))]

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
            self._loading.finish(model)
            del self._loading

    return WaterfillQuantizer


def main_dtype(config: Any) -> torch.dtype:
    """The floating-point type that a configuration of a compressed directory names."""
    found = getattr(torch, str(getattr(config, "dtype", None)), None)
    return found if isinstance(found, torch.dtype) and found.is_floating_point else torch.float32


def payloads(loading: Loading, first: str) -> Any:
    """A conversion that takes all payloads in the name of one parameter, and gives all parameters.

    transformers collects the tensors of a file by the parameters that they become, and then runs a conversion for each:
    so this one runs once. What it has collected is not looked at: payloads are read when they are decoded.

    Args:
        loading: gives the parameters.
        first: name of some parameter of the model.
    """
    rules = import_module(RULES)

    class Decode(rules.ConversionOps):  # type: ignore[misc, name-defined]
        """Payloads to parameters."""

        def convert(self, input_dict: dict[str, Any], *_: Any, **given: Any) -> Any:
            """Nothing is decoded before it is asked for."""
            del input_dict
            return Parameters(loading.parameters(given["model"], given["loading_info"]))

    class Payloads(rules.WeightConverter):  # type: ignore[misc, name-defined]
        """All payloads of a directory."""

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return self

        def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Any) -> None:
            """Take a payload, which is not read."""
            del target_key, source_key, source_pattern
            if hasattr(future, "cancel"):
                future.cancel()

        def convert(self, layer_name: str, **given: Any) -> Any:
            """All parameters."""
            del layer_name
            return self.operations[0].convert({}, **given)

    return Payloads(["^waterfill_[0-9]+$"], [first], [Decode()], force_cpu=loading.to_cpu)
