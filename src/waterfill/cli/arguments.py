"""Text of an option to the value that the library takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from waterfill.errors import CalibrationError, UsageError
from waterfill.file_system import is_folder

if TYPE_CHECKING:
    import torch

    from waterfill.compression.presets import Effort
    from waterfill.protocols import Estimator, Output, Quantizer

T = TypeVar("T", bound=str)

NUMBER = r"\s*([0-9]*\.?[0-9]+)\s*"
"""An amount without sign or exponent; a unit follows."""

IMPORTANCES = (
    "kl",
    "regression",
    "kronecker",
    "gradient",
    "hessian",
    "gradient_hessian",
    "identity",
    "weight_scale",
    "row_scale",
    "random_inputs",
)


def as_size(text: str, option: str = "--size") -> int:
    """Bytes of a size such as `100kB`, `1.5 MiB` or `5000`, for an option."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    match = re.fullmatch(NUMBER + r"([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in units:
        raise UsageError(
            f"{option} {text!r} is no size; expected a number with B, kB, MB, GB, KiB, MiB or GiB, such as 100kB."
        )
    return int(float(match[1]) * units[match[2].lower()])


def as_tolerance(
    text: str,
    network: torch.nn.Module | Path,
    batches: Iterable[Any] | None,
    output: str | None,
    device: str | None = None,
) -> float:
    """Largest loss of accuracy as a fraction; a percentage is one of the original accuracy."""
    from waterfill.evaluation import evaluate

    match = re.fullmatch(NUMBER + r"(pt|%)\s*", text)
    if match is None:
        raise UsageError(
            f"--tolerance {text!r} is no loss of accuracy; expected points such as 0.5pt or percent such as 0.5%, or "
            "with --metric a plain number in its unit."
        )
    amount = float(match[1]) / 100
    if match[2] == "pt":
        return amount
    if isinstance(network, Path) and is_folder(network):
        from waterfill.models.pretrained import load_pretrained

        network = load_pretrained(network)
    if batches is None or isinstance(network, Path):
        raise CalibrationError("--tolerance is measured on data, but there are none; give a factory and --data.")
    accuracy = evaluate(network, batches, output=as_output(output), device=device).accuracy
    if accuracy is None:
        raise CalibrationError("A tolerance is measured as top-1 accuracy; the data need integer targets.")
    return amount * accuracy


def as_loss(text: str, metric: str) -> float:
    """Largest loss of a metric of someone's own, in its unit."""
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(
            f"--tolerance {text!r} is no plain number; points and percent are of top-1 accuracy, but --metric {metric} "
            "has a unit of its own. Give the loss in that unit, such as 0.5."
        ) from error


@dataclass(frozen=True)
class Loss:
    """What `--tolerance` and `--metric` say.

    Attributes:
        text: of `--tolerance`; None where it was not given.
        metric: of `--metric`; None for top-1 accuracy.
        device: of `--device`, where the accuracy of the original is measured.
    """

    text: str | None
    metric: str | None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.metric is not None:
            as_loss(self.text, self.metric)  # refused before anything is read

    @property
    def what(self) -> str:
        """Name of what is lost."""
        return self.metric or "top-1 accuracy"

    def amount(
        self, network: torch.nn.Module | Path, batches: Iterable[Any] | None, output: str | None
    ) -> float | None:
        """How much may be lost; None where nothing was said.

        Args:
            network: the original, or the path of a file or a directory.
            batches: of `--data`.
            output: of `--output`.
        """
        if self.text is None:
            return None
        if self.metric is not None:
            return as_loss(self.text, self.metric)
        return as_tolerance(self.text, network, batches, output, self.device)


def as_device(text: str | None) -> str | None:
    """A device with its number; None where none was named.

    Raises:
        UsageError: there is no such device.
    """
    from waterfill.models.placement import device_name

    return device_name(text)


def as_output(text: str | None) -> Output | None:
    """What the model returns; None to tell from the targets."""
    allowed: tuple[Output, ...] = ("logits", "values", "probabilities")
    return None if text is None else one_of("--output", text, allowed)


def as_effort(text: str) -> Effort:
    """How long to search."""
    return one_of("--effort", text, ("fast", "default", "best", "max"))


def as_quantizers(text: str) -> tuple[Quantizer, ...]:
    """The quantizer of the matrices, alone in its sequence; empty for the default, which depends on the effort."""
    from waterfill import quantize

    plain: dict[str, tuple[Quantizer, ...]] = {
        "feedback": (),
        "scalar": (quantize.Scalar(),),
        "threshold": (quantize.Threshold(),),
    }
    if text in plain:
        return plain[text]
    match = re.fullmatch(r"(feedback|trellis|kmeans):([0-9]{1,9})|prune:([0-9]*\.?[0-9]+)", text)
    if match is None:
        raise UsageError(
            f"--quantizer {text!r} is unknown; expected feedback, feedback:64 or trellis:64 (so many states), scalar, "
            "threshold, kmeans:16 (so many centroids a tensor) or prune:0.1 (the fraction to keep)."
        )
    name, count, keep = match.groups()
    if keep is not None:
        return (quantize.Prune(float(keep)),)
    kinds: dict[str, Callable[[int], Quantizer]] = {
        "feedback": quantize.Feedback,
        "trellis": quantize.Trellis,
        "kmeans": quantize.KMeans,
    }
    return (kinds[name](int(count)),)


def as_importance(text: str | None, temperature: float, seed: int, *, crossed: bool = False) -> Estimator | None:
    """An estimator with its options; None for the default, which depends on the model and the data.

    A temperature alone is that of `kl`, or with `crossed` of `kronecker`.
    """
    from waterfill import importance

    if text is None and temperature == 1.0:
        return None
    name = one_of("--importance", text or ("kronecker" if crossed else "kl"), IMPORTANCES)
    match name:
        case "kl":
            return importance.kl(temperature=temperature, seed=seed)
        case "regression":
            return importance.regression(seed=seed)
        case "kronecker":
            return importance.kronecker(temperature=temperature, seed=seed)
        case "gradient":
            return importance.gradient(temperature=temperature, seed=seed)
        case "hessian":
            return importance.hessian(temperature=temperature, seed=seed)
        case "gradient_hessian":
            return importance.gradient_hessian(temperature=temperature, seed=seed)
        case "random_inputs":
            return importance.random_inputs(seed=seed)
    by_weights = (importance.row_scale, importance.weight_scale, importance.identity)
    return next(each for each in by_weights if each.__name__ == name)()


def one_of(option: str, text: str, allowed: tuple[T, ...]) -> T:
    """The allowed value that `text` spells.

    Raises:
        UsageError: there is none.
    """
    for value in allowed:
        if value == text:
            return value
    raise UsageError(f"{option} {text!r} is unknown; expected one of {', '.join(allowed)}.")
