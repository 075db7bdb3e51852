"""The command line: text to one library call each."""

from __future__ import annotations

import importlib
import json
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from waterfill.errors import UsageError, WaterfillError

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    name="waterfill",
    help="Compress trained PyTorch networks to the smallest file at a given loss, by rate-distortion theory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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


def _show_version(wanted: bool) -> None:
    if wanted:
        import waterfill

        _print(f"waterfill {waterfill.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Compress trained PyTorch networks to the smallest file at a given loss, by rate-distortion theory."""
    del version


@app.command()
def compress(
    model: ModelArgument,
    out: Destination,
    weights: WeightsOption = None,
    data: DataOption = None,
    rate: Annotated[float | None, typer.Option(help="Bits per value of the whole file (default 4).")] = None,
    size: Annotated[str | None, typer.Option(help="Size of the whole file, such as 100kB, 64KiB or 5000.")] = None,
    distortion: Annotated[float | None, typer.Option(help="Mean KL in nats (or squared error) on the data.")] = None,
    tolerance: Annotated[str | None, typer.Option(help="Loss of top-1 accuracy: 0.5pt (points) or 0.5%.")] = None,
    output: OutputKind = None,
    importance: Annotated[str | None, typer.Option(help="kl, regression, identity or weight_scale.")] = None,
    temperature: Annotated[float, typer.Option(help="Temperature of the softmax for the kl importance.")] = 1.0,
    include: Annotated[list[str] | None, typer.Option(help="Quantize only tensors that match (repeatable).")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Store matching tensors without loss (repeatable).")] = None,
    effort: Annotated[str, typer.Option(help="fast, default, best or max.")] = "default",
    fold_norms: Annotated[bool, typer.Option(help="Store batch norms as one scale and one shift.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of everything that is sampled.")] = 0,
    force: Force = False,
    json_file: Json = None,
) -> None:
    """Compress a model to one file."""
    from waterfill.atomic import check_destination
    from waterfill.compress import compress as run
    from waterfill.progress import progress_bar
    from waterfill.report.text import result_table

    given = {"rate": rate, "size": size, "distortion": distortion, "tolerance": tolerance}
    chosen = [f"--{name}" for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        _usage(f"{' and '.join(chosen)} were given; expected one target: choose what matters.")
    if json_file is not None and json_file.resolve() == out.resolve():
        _usage(f"--out and --json both name {out}; expected two files: choose another name for one.")
    for path in filter(None, (out, json_file)):
        check_destination(path, force=force or path == json_file)
    network = _model(model, weights)
    batches = None if data is None else _data(data)
    targets: dict[str, Any] = {
        "rate": rate,
        "distortion": distortion,
        "size_bytes": None if size is None else _size(size),
    }
    if tolerance is not None:
        targets["tolerance"] = _tolerance(tolerance, network, batches, output)
    with progress_bar() as progress:
        result = run(
            network,
            batches,
            **targets,
            output=_output(output),
            importance=_importance(importance, temperature, seed),
            include=include or (),
            exclude=exclude or (),
            effort=cast(Any, _one_of("--effort", effort, ("fast", "default", "best", "max"))),
            fold_norms=fold_norms,
            seed=seed,
            progress=progress,
        )
    result.save(out, force=force)
    _print(result_table(result, str(out)))
    _write_json(json_file, result.to_json())


@app.command()
def decompress(file: FileArgument, out: Destination, force: Force = False) -> None:
    """Decode a file to ordinary safetensors."""
    from waterfill.atomic import check_destination
    from waterfill.files import decompress as run
    from waterfill.models.state_dict import save_tensors

    check_destination(out, force=force)
    tensors = run(file)
    save_tensors(out, tensors, force=force)
    _print(f"{out}: {len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} values")


@app.command()
def inspect(file: FileArgument, json_file: Json = None) -> None:
    """Check a file and show what is in it."""
    from waterfill.files import WaterfillFile
    from waterfill.report.text import file_rows, file_table

    with WaterfillFile(file) as opened:
        opened.verify()
        rows = file_rows(opened)
        _print(file_table(opened, rows))
        summary = {
            "file": str(file),
            "size_bytes": opened.container.size,
            "floating_values": opened.floating_values,
            "rate": 8 * opened.container.size / max(1, opened.floating_values),
            "producer": opened.container.producer,
            "tensors": rows,
        }
    _write_json(json_file, json.dumps(summary, indent=1))


@app.command()
def evaluate(
    model: ModelArgument,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A .wf file to compare with MODEL.")] = None,
    data: DataOption = None,
    weights: WeightsOption = None,
    output: OutputKind = None,
    json_file: Json = None,
) -> None:
    """Measure a model, or a compressed file against it."""
    from copy import deepcopy

    from waterfill.evaluate import evaluate as run
    from waterfill.files import load
    from waterfill.progress import progress_bar
    from waterfill.report.text import evaluation_table

    if data is None:
        _usage("evaluate needs --data package.module:factory.")
    network = _module(model, weights, "MODEL")
    batches = _data(data)
    compressed = None if file is None else load(file, into=deepcopy(network))
    with progress_bar() as progress:
        before = run(network, batches, output=_output(output), progress=progress)
        after = None
        if compressed is not None:
            after = run(compressed, batches, reference=network, output=_output(output), progress=progress)
    _print(evaluation_table(before, after))
    measured = {"original": before.to_dict()} | ({} if after is None else {"compressed": after.to_dict()})
    _write_json(json_file, json.dumps(measured, indent=1))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to write the files.")] = Path("demo-output"),
) -> None:
    """Train a small network on handwritten digits, compress it, load it in another process."""
    from waterfill.demo import run

    run(folder)


# Arguments


def _model(text: str, weights: Path | None) -> torch.nn.Module | Path:
    """A module, or the path of a bare file."""
    if re.fullmatch(r"[\w.]+:[\w.]+", text):
        return _module(text, weights, "MODEL")
    if weights is not None:
        _usage(f"--weights fills a factory, but MODEL is the file {text}; give package.module:factory.")
    if Path(text).is_dir():
        raise WaterfillError(
            f"MODEL {text} is a folder; expected a .safetensors file or package.module:factory. "
            "Name the safetensors file inside it."
        )
    if not Path(text).exists():
        raise WaterfillError(
            f"MODEL {text} is no file that exists; expected a .safetensors file or package.module:factory. "
            "Check the path and the names on both sides of the colon."
        )
    return Path(text)


def _module(text: str, weights: Path | None, what: str) -> torch.nn.Module:
    """A module from a factory, filled with weights."""
    from torch import nn

    from waterfill.models.state_dict import load_tensors
    from waterfill.models.torch_module import fill

    if not re.fullmatch(r"[\w.]+:[\w.]+", text):
        _usage(
            f"{what} {text!r} is no package.module:factory; expected a callable that returns an nn.Module. "
            "Write one around the model."
        )
    module = _call_factory(text, "MODEL")
    if not isinstance(module, nn.Module):
        raise WaterfillError(
            f"MODEL {text} returned a {type(module).__name__}; expected a torch.nn.Module. "
            "Name a callable that returns one."
        )
    if weights is not None:
        try:
            fill(module, load_tensors(weights), missing_ok=("*num_batches_tracked",))
        except WaterfillError as error:
            raise type(error)(f"{weights}: {error}" if str(weights) not in str(error) else str(error)) from error
    return module


def _call_factory(text: str, what: str) -> Any:
    """Import `package.module:factory` and call it."""
    module_name, _, attribute = text.partition(":")
    if not attribute or not module_name:
        _usage(f"{what} {text!r} is no package.module:factory; expected both names with a colon between them.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError) as error:
        raise WaterfillError(
            f"{what} {text}: {error}; expected package.module:factory that can be imported. "
            "Check the names, or set PYTHONPATH."
        ) from error
    if not callable(factory):
        raise WaterfillError(
            f"{what} {text} is a value of type {type(factory).__name__}; expected a callable without arguments. "
            "Name a function."
        )
    try:
        return factory()
    except WaterfillError:
        raise
    except Exception as error:
        raise WaterfillError(f"{what} {text} failed: {type(error).__name__}: {error}") from error


def _data(text: str) -> Any:
    """Batches of a factory, to be read again and again; its own errors while they are read name it."""
    from waterfill.models.batches import as_batches

    data = _call_factory(text, "--data")
    plain = isinstance(data, Mapping | list | tuple | str | bytes) or hasattr(data, "shape")
    if plain or not isinstance(data, Iterable):
        return as_batches(data)
    batches = _SizedBatches(data, text) if isinstance(data, Sized) else _Batches(data, text)
    return as_batches(iter(batches) if isinstance(data, Iterator) else batches)


class _Batches:
    """An iterable of someone else's; what it raises becomes an error that names it."""

    def __init__(self, data: Iterable[Any], name: str) -> None:
        self.data, self.name = data, name

    def __iter__(self) -> Iterator[Any]:
        done = 0
        try:
            for batch in self.data:
                yield batch
                done += 1
        except WaterfillError:
            raise
        except Exception as error:
            raise WaterfillError(
                f"--data {self.name} failed at batch {done}: {type(error).__name__}: {error}"
            ) from error


class _SizedBatches(_Batches):
    """The same of known length."""

    def __len__(self) -> int:
        assert isinstance(self.data, Sized)
        return len(self.data)


def _size(text: str) -> int:
    """Bytes of a size such as `100kB`, `1.5 MiB` or `5000`."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in units:
        _usage(f"--size {text!r} is no size; expected a number with B, kB, MB, GB, KiB, MiB or GiB, such as 100kB.")
    return int(float(match[1]) * units[match[2].lower()])


def _tolerance(text: str, network: Any, batches: Any, output: str | None) -> float:
    """Largest loss of accuracy as a fraction; a percentage is one of the original accuracy."""
    from waterfill.errors import CalibrationError
    from waterfill.evaluate import evaluate as measure

    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(pt|%)\s*", text)
    if match is None:
        _usage(f"--tolerance {text!r} is no tolerance; expected points such as 0.5pt or percent such as 0.5%.")
    amount = float(match[1]) / 100
    if match[2] == "pt":
        return amount
    if batches is None or isinstance(network, Path):
        raise CalibrationError("--tolerance is measured on data, but there are none; give a factory and --data.")
    accuracy = measure(network, batches, output=_output(output)).accuracy
    if accuracy is None:
        raise CalibrationError("A tolerance is measured as top-1 accuracy; the data need integer targets.")
    return amount * accuracy


def _output(text: str | None) -> Any:
    return None if text is None else _one_of("--output", text, ("logits", "values"))


def _importance(text: str | None, temperature: float, seed: int) -> Any:
    from waterfill import importance

    if text is None and temperature == 1.0:
        return None
    match _one_of("--importance", text or "kl", ("kl", "regression", "identity", "weight_scale")):
        case "kl":
            return importance.kl(temperature=temperature, seed=seed)
        case "regression":
            return importance.regression(seed=seed)
        case "weight_scale":
            return importance.weight_scale()
    return importance.identity()


def _one_of(option: str, text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        _usage(f"{option} {text!r} is unknown; expected one of {', '.join(allowed)}.")
    return text


# Output


def _print(text: Any) -> None:
    from rich.console import Console

    if sys.stdout is None:  # closed by the shell, `>&-`
        return
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=isinstance(text, str)).print(text)


def _write_json(path: Path | None, text: str) -> None:
    if path is not None:
        from waterfill.atomic import write_atomically

        write_atomically(path, [text.encode(), b"\n"])


def _usage(text: str) -> NoReturn:
    raise UsageError(text)


def main() -> None:
    """Entry point of the command: expected errors become one line and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwind the stack, so that temporary files go
    try:
        app()
    except WaterfillError as error:
        print(f"waterfill: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"waterfill: {where}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from error
