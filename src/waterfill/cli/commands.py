"""The commands: each reads its arguments, makes one library call and tells the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from waterfill._version import PRODUCER
from waterfill.atomic import check_suffix
from waterfill.cli.arguments import (
    Loss,
    as_device,
    as_effort,
    as_importance,
    as_output,
    as_quantizers,
    as_size,
    one_of,
)
from waterfill.cli.directories import (
    Sampling,
    compress_directory,
    decompress_directory,
    inspect_directory,
    model_and_batches,
)
from waterfill.cli.factories import as_data, as_metric, as_model
from waterfill.cli.options import (
    Count,
    DataOption,
    Destination,
    DeviceOption,
    Exclude,
    FileArgument,
    FoldNorms,
    Force,
    Importance,
    Include,
    Json,
    Length,
    MaxBytes,
    Memory,
    MetricOption,
    ModelArgument,
    OutputKind,
    Plain,
    Seed,
    Temperature,
    Tolerance,
    TuneOption,
    WeightsOption,
    Work,
)
from waterfill.cli.output import check_outputs, is_first, show, write_json
from waterfill.errors import CalibrationError, UsageError
from waterfill.file_system import is_folder

MOST = "16GB"
"""What the tensors of a file may take, unless more is asked for."""

app = typer.Typer(
    name="waterfill",
    help="Compress trained PyTorch networks to the smallest file at a given loss, by rate-distortion theory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        show(PRODUCER)
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
    rate: Annotated[
        float | None, typer.Option(help="Bits per value of the whole file (default 4, but for kmeans and prune).")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the whole file, such as 100kB, 64KiB or 5000.")] = None,
    distortion: Annotated[float | None, typer.Option(help="Mean KL in nats (or squared error) on the data.")] = None,
    tolerance: Tolerance = None,
    metric: MetricOption = None,
    output: OutputKind = None,
    importance: Importance = None,
    temperature: Temperature = 1.0,
    include: Include = None,
    exclude: Exclude = None,
    quantizer: Annotated[
        str, typer.Option(help="feedback[:STATES], trellis:STATES, scalar, threshold, kmeans:K or prune:KEEP.")
    ] = "feedback",
    effort: Annotated[str, typer.Option(help="fast, default, best or max.")] = "default",
    tune: TuneOption = False,
    fold_norms: FoldNorms = True,
    plain: Plain = False,
    seed: Seed = 0,
    work: Work = None,
    length: Length = None,
    count: Count = 128,
    memory: Memory = None,
    device: DeviceOption = None,
    force: Force = False,
    json_file: Json = None,
) -> None:
    """Compress a model to one file, or a model directory to another one."""
    given = {"rate": rate, "size": size, "distortion": distortion, "tolerance": tolerance}
    chosen = [f"--{name}" for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} were given; expected one target: choose what matters.")
    if metric is not None and tolerance is None:
        raise UsageError(f"--metric {metric} decides nothing without --tolerance; give the loss of it that may be.")
    if tune and data is None:
        raise CalibrationError("--tune goes by data, but there are none; give --data, or leave --tune out.")
    crossed = quantizer.startswith("feedback") and data is not None
    options: dict[str, Any] = {
        "rate": rate,
        "size_bytes": None if size is None else as_size(size),
        "distortion": distortion,
        "metric": None if metric is None else as_metric(metric),
        "importance": as_importance(importance, temperature, seed, crossed=crossed),
        "quantizers": as_quantizers(quantizer),
        "include": include or (),
        "exclude": exclude or (),
        "effort": as_effort(effort),
        "tune": tune,
        "seed": seed,
        "work": work,
        "memory": None if memory is None else as_size(memory),
        "device": as_device(device),
    }
    loss = Loss(tolerance, metric, device)
    if is_folder(Path(model)):
        refused = {"--weights": weights, "--output": output}
        refused |= {"--no-fold-norms": None if fold_norms else "", "--plain": "" if plain else None}
        sampling = Sampling(length, count, seed)
        compress_directory(Path(model), out, data, refused, sampling, loss, json_file, force=force, **options)
        return
    check_outputs(out, json_file, force=force, inputs=(Path(model), weights))
    check_suffix(out, ".wf")
    network = as_model(model, weights)
    batches = None if data is None else _read_data(data)
    options |= {"tolerance": loss.amount(network, batches, output), "output": as_output(output)}
    options |= {"fold_norms": fold_norms, "plain": plain}
    _compress_model(network, out, batches, loss, json_file, force=force, **options)


def _read_data(data: str) -> Any:
    """Batches of `--data`, while a bar shows how many were read."""
    from waterfill.progress import progress_bar

    with progress_bar(is_first()) as progress:
        return as_data(data, progress)


def _compress_model(
    network: Any, out: Path, batches: Any, loss: Loss, json_file: Path | None, *, force: bool, **options: Any
) -> None:
    """Compress a model in memory, and tell the result."""
    from waterfill.compression.api import compress as run
    from waterfill.progress import progress_bar
    from waterfill.report.text import result_table

    with progress_bar(is_first()) as progress:
        result = run(network, batches, progress=progress, **options)
    if is_first():
        result.save(out, force=force)
        write_json(json_file, result.to_json())
        show(result_table(result, str(out), loss.what))


@app.command()
def decompress(file: FileArgument, out: Destination, force: Force = False, max_bytes: MaxBytes = MOST) -> None:
    """Decode a file to ordinary safetensors, or a compressed model directory to an ordinary one."""
    from waterfill.io.file import ArrayFile
    from waterfill.io.tensors import save_arrays

    most = as_size(max_bytes, "--max-bytes")
    if is_folder(file):
        decompress_directory(file, out, force=force, max_bytes=most)
        return
    check_outputs(out, None, force=force, inputs=(file,))
    check_suffix(out, ".safetensors")
    with ArrayFile(file, max_bytes=most) as opened:
        opened.fetch()
        tensors = dict(opened.tensors())
    save_arrays(out, tensors, force=force)
    show(f"{out}: {len(tensors)} tensors, {sum(values.array.size for values in tensors.values()):,} values")


@app.command()
def inspect(file: FileArgument, json_file: Json = None, max_bytes: MaxBytes = MOST) -> None:
    """Check a file or a compressed model directory and show what is in it."""
    from waterfill.io.file import ArrayFile
    from waterfill.report.file_table import file_summary, file_table

    check_outputs(None, json_file, force=True, inputs=(file,))
    most = as_size(max_bytes, "--max-bytes")
    if is_folder(file):
        inspect_directory(file, json_file, most)
        return
    with ArrayFile(file, max_bytes=most) as opened:
        summary = file_summary(str(file), opened)
        opened.verify()  # what is not decoded for it
    write_json(json_file, json.dumps(summary, indent=1))
    show(file_table(summary))


@app.command()
def bound(
    model: ModelArgument,
    weights: WeightsOption = None,
    data: DataOption = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Show the tensors at so many bits per value (default 4)."),
    ] = None,
    distortion: Annotated[float | None, typer.Option(help="Show the tensors at this distortion instead.")] = None,
    output: OutputKind = None,
    importance: Importance = None,
    temperature: Temperature = 1.0,
    include: Include = None,
    exclude: Exclude = None,
    fold_norms: FoldNorms = True,
    seed: Seed = 0,
    length: Length = None,
    count: Count = 128,
    device: DeviceOption = None,
    picture: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also draw the curve to this .png, .svg or .pdf file.")
    ] = None,
    force: Force = False,
    json_file: Json = None,
) -> None:
    """Show how small any file of a model can be at every distortion, before it is compressed."""
    from waterfill.atomic import write_atomically
    from waterfill.compression.bound import USUAL
    from waterfill.compression.bound import bound as run
    from waterfill.progress import progress_bar
    from waterfill.report.picture import bound_picture, picture_format
    from waterfill.report.text import bound_table

    if rate is not None and distortion is not None:
        raise UsageError("--rate and --distortion were given; expected one: choose what matters.")
    if picture is not None:
        kind = picture_format(picture)
    check_outputs(picture, json_file, force=force, inputs=(Path(model), weights))
    place = as_device(device)
    network, batches = model_and_batches(model, weights, data, Sampling(length, count, seed))
    with progress_bar() as progress:
        found = run(
            network,
            batches,
            output=as_output(output),
            importance=as_importance(importance, temperature, seed, crossed=batches is not None),
            include=include or (),
            exclude=exclude or (),
            fold_norms=fold_norms,
            seed=seed,
            progress=progress,
            device=place,
        )
    (usual,) = found.usual_rates([USUAL])
    if distortion is not None and distortion >= found.largest_distortion:
        raise UsageError(
            f"--distortion {distortion:g} is not below {found.largest_distortion:g}, where no tensor takes a bit; "
            "ask for less."
        )
    at = found.rate(distortion) if distortion is not None else usual if rate is None else rate
    if picture is not None:
        write_atomically(picture, [bound_picture(found, at, model, kind)], force=force)
    write_json(json_file, found.to_json(at))
    show(bound_table(found, at))


@app.command()
def evaluate(
    model: ModelArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A .wf file or a directory to compare with MODEL.")
    ] = None,
    data: DataOption = None,
    weights: WeightsOption = None,
    output: OutputKind = None,
    length: Length = None,
    count: Count = 128,
    seed: Seed = 0,
    device: DeviceOption = None,
    json_file: Json = None,
    max_bytes: MaxBytes = MOST,
) -> None:
    """Measure a model, or a compressed file or directory against it."""
    from waterfill.cli.directories import compared, measured_batches, measured_model, size_of
    from waterfill.evaluation import evaluate as run
    from waterfill.evaluation import evaluate_both
    from waterfill.progress import progress_bar
    from waterfill.report.text import evaluation_notes, evaluation_table

    if data is None:
        raise UsageError("evaluate needs --data package.module:factory, or for a model directory a text file.")
    check_outputs(None, json_file, force=True, inputs=(Path(model), file, weights))
    place = as_device(device)
    network = measured_model(model, weights)
    batches = measured_batches(data, model, Sampling(length, count, seed))
    compressed = None if file is None else compared(file, network, as_size(max_bytes, "--max-bytes"))
    kind = as_output(output)
    with progress_bar() as progress:
        if compressed is None:
            before, after = run(network, batches, output=kind, progress=progress, device=place), None
        else:
            before, after = evaluate_both(network, compressed, batches, output=kind, progress=progress, device=place)
    sizes = [size_of(Path(path)) for path in (model, file) if path is not None] if is_folder(Path(model)) else []
    names = ("original", "compressed")
    found = {name: each.to_dict() for name, each in zip(names, (before, after), strict=True) if each is not None}
    for name, size in zip(names, sizes, strict=False):
        found[name]["size_bytes"] = size
    write_json(json_file, json.dumps(found, indent=1))
    show(evaluation_table(before, after, sizes))
    for note in evaluation_notes(before, after):
        show(note)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="RESULT", help="A JSON file that compress --json wrote.")],
    out: Destination,
    other: Annotated[Path | None, typer.Argument(metavar="[OTHER]", help="Another one, to compare.")] = None,
    force: Force = False,
) -> None:
    """Show a result, or two beside each other, as a page of HTML."""
    from waterfill.atomic import resolved, write_atomically
    from waterfill.report.html import page
    from waterfill.report.saved import read

    paths = [file] if other is None else [file, other]
    if other is not None and resolved(other) == resolved(file):
        raise UsageError(f"{file} was given twice; expected two results: name another one, or only one.")
    check_outputs(out, None, force=force, inputs=paths)
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else list(map(str, paths))
    text = page({name: read(path) for name, path in zip(names, paths, strict=True)})
    write_atomically(out, [text.encode()], force=force)
    show(f"{out}: a page about {' and '.join(map(str, paths))}")


@app.command()
def reproduce(
    experiment: Annotated[str, typer.Argument(metavar="DATASET", help="mnist, cifar10 or cifar100.")],
    folder: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write, or to go on in (default reproduce-DATASET).")
    ] = None,
    weights: WeightsOption = None,
    width: Annotated[
        int | None, typer.Option(help="Channels of the first convolution (default 32; paper 128).")
    ] = None,
    samples: Annotated[int, typer.Option(help="Training samples that importances are estimated on.")] = 1024,
    test_samples: Annotated[int | None, typer.Option(help="Samples of the test set (default all).")] = None,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Make the figures of the paper for one data set; a run that was stopped goes on in its folder."""
    from waterfill.progress import progress_bar
    from waterfill.reproduce import EXPERIMENTS, Options
    from waterfill.reproduce import reproduce as run
    from waterfill.reproduce.figures import draw
    from waterfill.reproduce.summary import reproduction_table

    chosen = EXPERIMENTS[one_of("DATASET", experiment, tuple(EXPERIMENTS))]
    place = folder or Path(f"reproduce-{experiment}")
    check_outputs(None, json_file, force=True, inputs=(weights,))
    with progress_bar() as progress:
        results = run(chosen, place, Options(width, weights, samples, test_samples, seed), progress)
    figures = draw(chosen, results, place)
    write_json(json_file, json.dumps(results, indent=1))
    show(reproduction_table(results))
    show(f"{place / 'results.json'} and {', '.join(path.name for path in figures)}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to write the files.")] = Path("demo-output"),
) -> None:
    """Train a small network on handwritten digits, compress it, load it in another process."""
    from waterfill.demo import run

    run(folder)
