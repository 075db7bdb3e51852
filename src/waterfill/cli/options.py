"""Arguments and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory (returns an nn.Module), a .safetensors file, or a model directory.",
    ),
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A .wf file, or a compressed directory.")]
WeightsOption = Annotated[Path | None, typer.Option("--weights", help="Weights (.safetensors) for the factory.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="package.module:factory that returns an iterable of batches; for model directories also a text file.",
    ),
]
Length = Annotated[
    int | None, typer.Option("--length", help="Tokens of a window, or at most of a sentence, of a text (default 512).")
]
Count = Annotated[int, typer.Option("--count", help="Windows or sentences of a text.")]
Memory = Annotated[
    str | None,
    typer.Option("--memory", help="Most memory, such as 8GB; more is refused at once."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where the model runs and statistics are computed, such as cuda.")
]
OutputKind = Annotated[
    str | None,
    typer.Option("--output", help="What the model returns: logits, values or probabilities (told from class targets)."),
]
Importance = Annotated[
    str | None,
    typer.Option(
        "--importance",
        help="kl, regression, kronecker, gradient, hessian, gradient_hessian; without data random_inputs, row_scale, "
        "weight_scale or identity.",
    ),
]
Temperature = Annotated[
    float,
    typer.Option("--temperature", help="Temperature of the softmax, for kl, kronecker and those with labels."),
]
Include = Annotated[list[str] | None, typer.Option("--include", help="Quantize only tensors that match (repeatable).")]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", help="Store matching tensors without loss (repeatable).")
]
FoldNorms = Annotated[
    bool, typer.Option("--fold-norms/--no-fold-norms", help="Store batch norms as one scale and one shift.")
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Write a file for small devices, whose readers have no zstandard.")
]
Work = Annotated[
    Path | None,
    typer.Option(
        "--work", help="Folder to keep finished tensors in: the same command goes on there when it was stopped."
    ),
]
Tolerance = Annotated[
    str | None,
    typer.Option(
        "--tolerance", help="Loss of top-1 accuracy, 0.5pt (points) or 0.5%; with --metric a number in its unit."
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="package.module:function (model, batches) -> float, larger is better: what --tolerance is about.",
    ),
]
TuneOption = Annotated[
    bool, typer.Option("--tune", help="Distil biases and norms on the data at the end, without labels.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is sampled.")]
Destination = Annotated[Path, typer.Option("-o", "--out", help="File to write, or directory for a directory.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")]
MaxBytes = Annotated[
    str,
    typer.Option("--max-bytes", help="Most bytes that the tensors of FILE may take, such as 100GB; more is refused."),
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file.")]
