"""One walk with two schedules: the same model as a module and as a directory becomes the same symbols and rows.

What differs on purpose is in `DIFFERENCES`, each with a test of its own below.
"""

import dataclasses

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

import waterfill  # noqa: E402
from families import batches, loaded, maker  # noqa: E402
from waterfill.bundle import Bundle, Checkpoint  # noqa: E402
from waterfill.compression import block_by_block, layer_stages, presets  # noqa: E402
from waterfill.compression.api import _source  # noqa: E402
from waterfill.compression.block_by_block import BlockWalk, StoredWalk, walk_directory  # noqa: E402
from waterfill.compression.calibration import prepare  # noqa: E402
from waterfill.compression.in_memory import InMemoryWalk, filled  # noqa: E402
from waterfill.compression.limits import SourceModels  # noqa: E402
from waterfill.compression.rate_control import ConstantLevel  # noqa: E402
from waterfill.compression.settings import Settings  # noqa: E402
from waterfill.files import WaterfillFile  # noqa: E402
from waterfill.importance import factored, kl, weight_scale  # noqa: E402
from waterfill.quantize import Feedback  # noqa: E402

LEVELS = {False: 2e-4, True: 3e-9}
"""Without data and with them: costs are in other units."""
TABLE = "model.embed_tokens.weight"
OPTIONS = {"fold_norms": True, "include": (), "exclude": ()}
SETTINGS = Settings(Feedback(8))

DIFFERENCES = {
    "importance of layers": "a module's is estimated once on the original; a block's inputs are measured again on the "
    "compressed blocks before it, which costs nothing there and follows what they hand on",
    "importance without data": "a module is run on random inputs; a directory, never whole in memory, goes by its rows",
    "power": "a module compares powers on held-out batches, for its walk is cheap; a directory takes one, 3/4",
    "shrinkage of targets": "1.5 n/N in directories, .3 n/N in modules, each measured",
    "level": "a module is walked until a size is met within half a percent; a directory spends it block by block",
    "layout of tables": "a module knows its embeddings, whose rows are features; a directory reads every tensor with "
    "its first axis as rows, so that a large table is cut between tokens and never whole in memory",
    "error of importances": "a module's estimate tells its standard error, the signals of a directory do not yet",
    "bytes beside the tensors": "a file names its limits; a directory has a payload for every group, and config.json",
}
"""What is left, and why."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A small Llama with random vectors, as a directory."""
    return maker(tmp_path_factory.mktemp("parity"))("llama")


@pytest.fixture(scope="module")
def data():
    return [{"input_ids": ids} for ids in batches(12)]


def in_memory(directory, data, importance, power=1.0):
    """A walk through the module at one level."""
    settings = dataclasses.replace(SETTINGS, importance=importance)
    ready = prepare(loaded("llama", directory), data, None if data is None else "logits", OPTIONS, settings)
    walk = InMemoryWalk(ready, settings, SourceModels(), power)
    found = walk.trial(LEVELS[data is not None])
    return walk, found.coded, found.report


def block_by_block_at(directory, data, importance, power=1.0):
    """A walk through the directory at the same level."""
    settings = dataclasses.replace(SETTINGS, importance=importance)
    source = _source(Checkpoint(directory), (), (), data)
    walk = StoredWalk(source, settings, importance) if data is None else BlockWalk(source, settings, data, power)
    found = walk_directory(walk, ConstantLevel(LEVELS[data is not None]), None, keep=True)
    return walk, found


def everything(coded):
    """All quantized tensors of several segments."""
    return {name: item for segment in coded for name, item in segment.quantized.items()}


def without_sizes(rows):
    """Rows by name, without what depends on how files are packed."""
    return {
        row.name: (row.shape, row.distortion, row.reconstruction, row.reason.partition("below")[0], row.limit_error,
                   row.source_model)
        for row in rows
    }  # fmt: skip


CASES = {"without data": (False, weight_scale(), 1.0), "with data": (True, kl(), 0.75)}


@pytest.fixture(scope="module", params=CASES)
def both(request, llama, data):
    """The same model at the same level as a module and as a directory, under forms that do not move."""
    with_data, importance, power = CASES[request.param]
    some = data if with_data else None
    return (*in_memory(llama, some, importance, power), *block_by_block_at(llama, some, importance, power))


def test_the_same_symbols_and_rules(both):
    _, coded, _, _, walked = both
    blocks = everything(walked.coded)
    assert set(blocks) == set(coded.quantized)
    for name, item in coded.quantized.items():
        if name == TABLE:
            continue
        np.testing.assert_array_equal(item.symbols, blocks[name].symbols, err_msg=name)
        assert repr(item.rule) == repr(blocks[name].rule), name
        assert item.bits == pytest.approx(blocks[name].bits), name


def test_the_same_rows_reasons_limits_and_curve(both):
    walk, _, report, directory, walked = both
    one, other = report.outcome(walk.inventory.entries), walked.report.outcome(directory.source.entries)
    assert one["floating_values"] == other["floating_values"]
    assert one["original_bytes"] == other["original_bytes"]
    rows, blocks = without_sizes(one["tensors"]), without_sizes(other["tensors"])
    assert rows.keys() == blocks.keys()
    for name in rows.keys() - {TABLE}:
        for mine, theirs in zip(rows[name], blocks[name], strict=True):
            assert mine == (pytest.approx(theirs) if isinstance(theirs, float) else theirs), name
    limits = ({row.name: row.limit for row in outcome["tensors"] if row.name != TABLE} for outcome in (one, other))
    assert next(limits) == pytest.approx(next(limits))
    assert one["distortion_unit"] == other["distortion_unit"]
    for key in ("limit_distortion", "predicted_distortion", "limit_error"):
        assert one[key] == pytest.approx(other[key], rel=0.02), key
    least = ([distortion for _, distortion in outcome["limit_curve"]] for outcome in (one, other))
    assert next(least) == pytest.approx(next(least), rel=0.02)  # rates count what is stored, which is packed otherwise
    assert len(one["limit_curve"]) == len(other["limit_curve"]) > 10


def test_the_same_measurement(both):
    walk, _, _, _, walked = both
    if walked.measured is None:
        assert walk.model is None
        return
    measured, distances = walk.model.measure(filled(walk.model, walk.trial(LEVELS[True])))
    assert walked.measured.compressed.kl == pytest.approx(
        measured.kl, rel=0.3
    )  # without last positions, and another table
    assert distances.mean() == pytest.approx(walked.measured.distances.mean(), rel=0.5)


def test_vectors_of_unknown_importance_take_the_same_bits(llama):
    _, coded, _ = in_memory(llama, None, weight_scale())
    _, walked = block_by_block_at(llama, None, weight_scale())
    blocks = everything(walked.coded)
    vectors = [name for name, entry in coded.entries.items() if len(entry.shape) == 1]
    assert vectors
    for name in vectors:
        assert coded.quantized[name].rule == blocks[name].rule


@pytest.mark.parametrize("data_given", [False, True])
def test_results_have_the_same_fields(llama, data, tmp_path, data_given):
    some = data if data_given else None
    by_rows = None if data_given else waterfill.importance.row_scale()
    module = waterfill.compress(
        loaded("llama", llama), some, output="logits", rate=4, effort="fast", importance=by_rows
    )
    directory = waterfill.compress_directory(llama, tmp_path / "out", some, rate=4, effort="fast")
    for field in dataclasses.fields(waterfill.results.Outcome):
        if field.name == "importance_error":
            continue
        one, other = getattr(module, field.name), getattr(directory, field.name)
        assert (one is None) == (other is None), field.name
        assert type(one) is type(other), field.name
    assert [row.name for row in directory.tensors] == sorted(row.name for row in module.tensors)
    assert module.distortion_unit == directory.distortion_unit
    assert module.importance == directory.importance


def test_difference_error_of_importances(llama, data, tmp_path):
    module = waterfill.compress(loaded("llama", llama), data, output="logits", rate=4, effort="fast")
    directory = waterfill.compress_directory(llama, tmp_path / "out", data, rate=4, effort="fast")
    assert 0 < module.importance_error < 1
    assert directory.importance_error is None
    with Bundle(tmp_path / "out") as bundle, WaterfillFile(module.data) as file:
        assert set(bundle) == set(file)


# What differs, and how


def test_difference_layout_of_tables(llama):
    _, coded, _ = in_memory(llama, None, weight_scale())
    _, walked = block_by_block_at(llama, None, weight_scale())
    tokens, features = loaded("llama", llama).get_input_embeddings().weight.shape
    assert coded.quantized[TABLE].symbols.shape == (features, tokens)
    assert everything(walked.coded)[TABLE].symbols.shape == (tokens, features)


def test_difference_importance_of_layers(llama, data):
    """Both are Kronecker factors of the same unit and size; those of blocks are of the compressed inputs."""
    walk, coded, report = in_memory(llama, data, None)
    directory, walked = block_by_block_at(llama, data, None)
    assert (walk.prepared.estimator.name, directory.importance) == ("kronecker", "kronecker")
    assert report.unit == walked.report.unit == "nats of KL"
    assert walked.report.predicted_distortion == pytest.approx(report.predicted_distortion, rel=0.5)
    name = "model.layers.2.mlp.down_proj.weight"
    assert not np.array_equal(coded.quantized[name].symbols, everything(walked.coded)[name].symbols)


def test_difference_importance_without_data(llama, tmp_path):
    module = waterfill.compress(loaded("llama", llama), rate=4, effort="fast")
    directory = waterfill.compress_directory(llama, tmp_path / "out", rate=4, effort="fast")
    assert (module.importance, directory.importance) == ("random_inputs", "row_scale")
    assert any("random inputs" in note for note in module.notes)
    assert any("sizes of rows" in note for note in directory.notes)


def test_difference_power():
    assert block_by_block.POWER == 0.75
    assert presets.POWERS["default"] == (0.5, 1.0, 0.0)


def test_difference_shrinkage_of_targets():
    assert (layer_stages.SHRINKAGE, factored.SHRINKAGE) == (1.5, 0.3)


def test_difference_level_and_bytes_beside_tensors(llama, tmp_path):
    module = waterfill.compress(loaded("llama", llama), rate=4)
    directory = waterfill.compress_directory(llama, tmp_path / "out", rate=4)
    limit = 4 * module.floating_values / 8
    assert 0.995 * limit <= module.size_bytes <= limit
    assert limit - max(200, 0.01 * limit) <= directory.size_bytes <= limit
    assert directory.overhead_bytes > module.overhead_bytes
    with WaterfillFile(module.data) as file:
        assert file.container.limit is not None


def test_every_difference_is_tested():
    names = " ".join(name for name in globals() if name.startswith("test_difference_"))
    for difference in DIFFERENCES:
        assert all(word in names for word in difference.split() if word not in ("the", "of")), difference
