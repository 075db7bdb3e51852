"""Golden files: what a release wrote, every later one reads to the same bits. Rewritten only by REGENERATE=1."""

import hashlib
import importlib.util
import json
import os
from functools import partial
from pathlib import Path

import plain_mixture
import pytest
import slow_decoder
import torch
import with_bases
from with_adaptive import WithAdaptive
from with_paths import WithPaths
from with_sums import WithSums
from with_tables import WithTables

import waterfill
from waterfill.bundle import Bundle
from waterfill.models.arrays import exact_bytes
from waterfill.quantize import KMeans, Trellis
from waterfill.records import (
    TAPS,
    Codebook,
    Coded,
    Constant,
    Cosines,
    Exact,
    Flips,
    Lanes,
    NormMean,
    NormVariance,
    Relative,
    Rotations,
    Tied,
    Uniform,
)

FOLDER = Path(__file__).parent / "golden"


def model():
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, groups=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ConvTranspose2d(8, 4, 3, groups=2),
        torch.nn.BatchNorm2d(4, affine=False),
        torch.nn.Embedding(12, 5),
        torch.nn.Linear(40, 6),
    )
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator).abs() + 0.1 if tensor.dim() == 1 else
                         torch.randn(tensor.shape, generator=generator))  # fmt: skip
    return net.eval()


def digests(path):
    return {
        name: hashlib.sha256(exact_bytes(tensor)).hexdigest() for name, tensor in waterfill.decompress(path).items()
    }


def test_a_directory_of_format_1_reads_to_the_same_bits():
    """Its payloads are where an ordinary model has its weights."""
    expected = json.loads((FOLDER / "directory.json").read_bytes())
    assert digests(FOLDER / "directory") == expected
    model = waterfill.load(FOLDER / "directory") if importlib.util.find_spec("transformers") else None
    if model is not None:
        found = {name: hashlib.sha256(exact_bytes(value)).hexdigest() for name, value in model.state_dict().items()}
        assert found == expected


def test_a_directory_of_format_2_reads_to_the_same_bits():
    """The same payloads, in shards of their own names with a digest (minor version 1)."""
    assert digests(FOLDER / "directory2") == json.loads((FOLDER / "directory.json").read_bytes())
    with Bundle(FOLDER / "directory2") as bundle:
        assert bundle.description.minor == 1


CASES = {
    "coarse": {"rate": 6.0},
    "fine": {"rate": 12.0, "fold_norms": False},
    "exact": {"rate": 24.0, "exclude": ["5.*"]},
    "limited": {"rate": 8.0},
    "codebook": {"quantizers": [KMeans(8)]},
    "tables": {"quantizers": [WithTables()]},
    "trellis": {"rate": 8.0, "quantizers": [Trellis(states=256)]},
    "paths": {"quantizers": [WithPaths()]},
    "down": {"quantizers": [WithPaths(down=True)]},
    "lanes": {"quantizers": [WithPaths(lanes=Lanes(32, 1))]},
    "lanes_down": {"quantizers": [WithPaths(down=True, lanes=Lanes(8, 2))]},
    "sums": {"quantizers": [WithSums()]},
    "adaptive": {"quantizers": [WithAdaptive()]},
    "plain": {"rate": 8.0, "exclude": ["5.*"], "plain": True},
    "plain_tables": {"quantizers": [WithTables()], "plain": True},
    "plain_lanes": {"quantizers": [WithPaths(lanes=Lanes(32, 1))], "plain": True},
}


@pytest.mark.parametrize("name", CASES)
def test_golden_files_decode_to_the_same_bits(name):
    path, digest = FOLDER / f"{name}.wf", FOLDER / f"{name}.json"
    if os.environ.get("REGENERATE") == "1":
        waterfill.compress(model(), **CASES[name]).save(path)
        digest.write_text(json.dumps(digests(path), indent=1) + "\n")
    assert digests(path) == json.loads(digest.read_text())


@pytest.mark.parametrize("name", CASES)
def test_files_name_their_limit(name):
    with waterfill.open(FOLDER / f"{name}.wf") as file:
        limit = file.container.limit
    if name in ("coarse", "fine", "exact", "limited"):
        assert limit.measure == "weight_scale(1)"
        assert limit.bits == {"coarse": 1584, "fine": 5897, "exact": 14164, "limited": 2947}[name]


def test_a_golden_file_has_codebooks():
    with waterfill.open(FOLDER / "codebook.wf") as file:
        rules = [rule for rule, _ in file.container.rules.values() if isinstance(rule, Codebook)]
    assert [len(rule.values) for rule in rules] == [8, 8, 8, 8]


def test_a_golden_file_has_own_tables():
    with waterfill.open(FOLDER / "tables.wf") as file:
        found = [len(spread.tables) for _, spread in file.container.rules.values()]
    assert found == [2, 0, 0, 2, 0, 0, 0, 2, 2, 0]
    with waterfill.open(FOLDER / "codebook.wf") as file:
        assert not any(spread.tables for _, spread in file.container.rules.values())


def test_golden_files_have_paths_with_and_without_zero_in_both_subsets():
    found = {}
    for name in ("trellis", "paths"):
        with waterfill.open(FOLDER / f"{name}.wf") as file:
            spreads = [spread for _, spread in file.container.rules.values() if spread.trellis]
        found[name] = {(spread.trellis.zero, spread.rows is not None) for spread in spreads}
    assert found == {"trellis": {(False, False)}, "paths": {(True, True)}}


def test_a_golden_file_has_paths_down_the_columns():
    for name in ("paths", "down"):
        with waterfill.open(FOLDER / f"{name}.wf") as file:
            found = {spread.down for _, spread in file.container.rules.values() if spread.trellis}
        assert found == {name == "down"}


def test_golden_files_have_scales_that_are_relative_to_steps():
    found = {}
    for name in ("down", "sums"):
        with waterfill.open(FOLDER / f"{name}.wf") as file:
            codes = [line.scales[3:] for line in file.container._directory.tensors if hasattr(line, "shrink")]
        found[name] = {min(code, 0) if code > -3 else -3 for each in codes for code in each}
    assert found == {"down": {-3, -2, -1}, "sums": {-3, -2, -1, 0}}


def test_a_golden_file_has_adaptive_models():
    with waterfill.open(FOLDER / "adaptive.wf") as file:
        found = [spread.adaptive for _, spread in file.container.rules.values() if spread.adaptive]
        sizes = [int(abs(tensor).max() > 0) for tensor in file.values()]
    assert sum(model.width == 4 for model in found) == 4
    assert len(sizes) > 4


@pytest.mark.parametrize("name", CASES)
def test_the_slow_decoder_reads_golden_files_too(name):
    path = FOLDER / f"{name}.wf"
    slow = slow_decoder.decode(path.read_bytes())
    for key, tensor in waterfill.decompress(path).items():
        assert (tensor.numpy() == slow[key]).all()


# Bases, and a plain file of everything at once


def _in_bases(name):
    return with_bases.packed(with_bases.FILES[name]())


MADE = {name: partial(_in_bases, name) for name in with_bases.FILES} | {"plain_mixture": plain_mixture.packed}


@pytest.mark.parametrize("name", MADE)
def test_golden_files_of_the_container_decode_to_the_same_bits(name):
    path, digest = FOLDER / f"{name}.wf", FOLDER / f"{name}.json"
    if os.environ.get("REGENERATE") == "1":
        path.write_bytes(MADE[name]())
        digest.write_text(json.dumps(digests(path), indent=1) + "\n")
    assert digests(path) == json.loads(digest.read_text())


@pytest.mark.parametrize("name", MADE)
def test_the_slow_decoder_reads_files_of_the_container_too(name):
    path = FOLDER / f"{name}.wf"
    slow = slow_decoder.decode(path.read_bytes())
    for key, tensor in waterfill.decompress(path).items():
        exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert exact.numpy().tobytes() == slow[key].astype(exact.numpy().dtype).tobytes()


def test_a_plain_golden_file_has_everything_at_once():
    with waterfill.open(FOLDER / "plain_mixture.wf") as file:
        container = file.container
        origins = {type(entry.origin) for entry in container.entries}
        spreads = [spread for _, spread in container.rules.values()]
        rules = {type(rule) for rule, _ in container.rules.values()}
    assert container.is_plain and container.limit is not None
    assert origins == {Coded, Constant, Exact, NormMean, NormVariance, Tied}
    assert rules == {Uniform, Relative, Codebook}
    assert any(each.trellis for each in spreads) and any(each.tables for each in spreads)
    assert any(each.adaptive for each in spreads)
    assert sum(basis is not None for basis in container.bases.values()) == 2
    assert {entry.dtype for entry in container.entries} == {"float32", "int64", "bool"}
    assert sum(not entry.name.isascii() for entry in container.entries) == 8


def bases(name):
    with waterfill.open(FOLDER / f"{name}.wf") as file:
        return list(zip(file.container.bases.values(), file.container.layouts.values(), strict=True))


def test_golden_files_have_cosines_along_every_axis():
    found = [(basis, layout) for basis, layout in bases("cosines") if basis is not None]
    assert all(isinstance(basis, Cosines) for basis, _ in found)
    assert {(basis.axis, layout.transposed) for basis, layout in found} >= {
        (0, True),
        (0, False),
        (1, True),
        (1, False),
    }
    assert {len(layout.shape) - 2 for basis, layout in found if basis.axis == TAPS} == {1, 2, 3}


def test_golden_files_have_angles_of_one_tensor_and_of_several():
    for name, kind, own in (("flips", Flips, 4), ("rotations", Rotations, 4)):
        found = [basis for basis, _ in bases(name) if basis is not None]
        assert all(isinstance(basis, kind) for basis in found)
        assert len(set(found)) == own < len(found)
    assert {basis.axis for basis, _ in bases("rotations")} == {0, 1}


def test_golden_files_have_lanes_along_rows_and_down_columns():
    for name, count, down in (("lanes", 32, False), ("lanes_down", 8, True)):
        with waterfill.open(FOLDER / f"{name}.wf") as file:
            found = [spread.trellis for _, spread in file.container.rules.values() if spread.trellis]
        assert {(path.lanes.count, path.down) for path in found} == {(count, down)}


def test_files_have_the_lowest_minor_version_that_they_need():
    minors = dict.fromkeys(with_bases.FILES, 1) | {"lanes": 2, "lanes_down": 2}
    minors |= {"plain": 3, "plain_tables": 3, "plain_lanes": 3, "plain_mixture": 3}
    for name in (*CASES, *MADE):
        assert (FOLDER / f"{name}.wf").read_bytes()[10] == minors.get(name, 0)
