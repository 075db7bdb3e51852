"""Arguments and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="package.module:factory (returns an nn.Module), or a .safetensors file.")
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A .wf file.")]
WeightsOption = Annotated[Path | None, typer.Option("--weights", help="Weights (.safetensors) for the factory.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="package.module:factory that returns an iterable of batches.")
]
OutputKind = Annotated[
    str | None, typer.Option("--output", help="What the model returns: logits or values (told from integer targets).")
]
Destination = Annotated[Path, typer.Option("-o", "--out", help="File to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file.")]
