"""Matrices one after the other: which go together, what they read, where they aim."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from families import batches
from waterfill.bundle import Checkpoint
from waterfill.compression import gram_panels, layer_stages
from waterfill.compression.block_forward import BlockForward
from waterfill.compression.checkpoint_groups import groups_of
from waterfill.compression.layer_stages import (
    SHRINKAGE,
    BlockRun,
    VisitedMatrix,
    agreed,
    input_moments,
    layer_inputs,
    stages,
)
from waterfill.compression.loaded_parts import PartLoader
from waterfill.compression.sensitivity import CrossedSensitivity
from waterfill.importance.exact_sum import ExactSum
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import DiagonalForm
from waterfill.models.embedder import Embedder
from waterfill.models.skeleton import Skeleton
from waterfill.processes import Processes
from waterfill.records import Layout, Weight

EXPECTED = {
    "llama": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "gemma3": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
    "gpt2": [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_fc"], ["mlp.c_proj"]],
    "bert": [["query", "key", "value"], ["attention.output.dense"], ["intermediate.dense"], ["output.dense"]],
}


def run_of(directory, data):
    """The first block of a directory, as it runs on the hidden states of batches."""
    checkpoint = Checkpoint(directory)
    skeleton = Skeleton(checkpoint.directory, checkpoint)
    forward = BlockForward(skeleton, None if skeleton.is_language_model else Embedder(skeleton.model))
    loader = PartLoader(checkpoint, groups_of(checkpoint.shapes), skeleton)
    assert loader.outside.parameters  # which fills the model outside of the blocks
    part = loader.block(0)
    with torch.no_grad():
        entered = [forward.embed(batch) for batch in data]

    def run(batch):
        return forward.run_block(part.module, entered[batch].hidden, entered[batch].calls[0])

    return part, BlockRun(part.parameters, run, {number: each.mask for number, each in enumerate(entered)})


@pytest.mark.parametrize("name", EXPECTED)
def test_matrices_that_read_the_same_are_a_stage(directories, name):
    part, block = run_of(directories(name), batches(1))
    names = [each for each, parameter in part.parameters.items() if parameter.ndim == 2]
    found = stages({0: block.inputs(names, 0)}, names)
    assert len(found) == len(EXPECTED[name])
    for stage, ends in zip(found, EXPECTED[name], strict=True):
        assert len(stage) == len(ends)
        assert all(any(each.endswith(f"{end}.weight") for each in stage) for end in ends)


def test_all_experts_are_one_stage_behind_their_router(directories):
    part, block = run_of(directories("mixtral"), batches(2))
    names = [name for name, parameter in part.parameters.items() if parameter.ndim == 2]
    router, *experts = stages({batch: block.inputs(names, batch) for batch in block.masks}, names)[2:]
    assert router == ["mlp.gate.weight"]
    assert [sorted(each) for each in experts] == [
        [f"mlp.experts.{name}_proj.{index}" for index in range(4)] for name in ("gate_up", "down")
    ]


def test_an_expert_that_comes_later_goes_to_its_kind():
    seen = [[["q"], ["experts.down.0", "experts.down.2"], ["o"]], [["q"], ["experts.down.1"], ["o"], ["odd"]]]
    assert agreed(seen) == [["q"], ["experts.down.0", "experts.down.2", "experts.down.1"], ["o"], ["odd"]]
    assert agreed(seen[:1]) == seen[0]
    assert seen[0][1] == ["experts.down.0", "experts.down.2"], "what was given stays"


# Targets, in a block of two layers


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.beside = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.second(hidden) + self.beside(hidden)


def rows_alone(layout, rows):
    """What is known of a matrix: its factor over rows."""
    return CrossedSensitivity.of_rows(layout, rows, DiagonalForm(np.ones((1, 1), np.float32)), "")


@pytest.fixture
def two():
    """The original, the compressed one, and three batches of inputs with the positions that count."""
    torch.manual_seed(0)
    original = Two().requires_grad_(False)
    compressed = copy.deepcopy(original)
    compressed.first.weight += 0.1 * torch.randn(6, 6)
    inputs = [torch.randn(2, 7, 6) for _ in range(3)]
    masks = [torch.ones(14, dtype=torch.bool) for _ in inputs]
    masks[1][3:6] = False
    return original, compressed, inputs, masks


def block_run(net, inputs, masks):
    return BlockRun(dict(net.named_parameters()), lambda batch: net(inputs[batch]), dict(enumerate(masks)))


def hidden(net, inputs, masks):
    """The inputs of the second layer at the positions that count, float64."""
    with torch.no_grad():
        rows = [net.first(x).relu().reshape(-1, 6)[mask] for x, mask in zip(inputs, masks, strict=True)]
    return torch.cat(rows).double().numpy()


NAMES_OF_TWO = ("second.weight", "beside.weight")


def compared(two, names=NAMES_OF_TWO):
    original, compressed, inputs, masks = two
    before = block_run(original, inputs, masks)
    recorded = {batch: before.inputs(names, batch) for batch in before.masks}
    return input_moments(names, recorded, block_run(compressed, inputs, masks), ExactSum(Processes()))


def target(moments, matrix, name="second.weight"):
    """Where a matrix aims."""
    layout = Layout(tuple(matrix.shape))
    known = rows_alone(layout, np.ones(len(matrix)))
    visited = VisitedMatrix(name, slice(0, len(matrix)), matrix, known)
    return layer_inputs({"w": visited}, {name: moments})["w"].target(Weight("w", matrix, layout)).matrix


def test_inputs_are_compared_at_the_positions_that_count(two):
    original, compressed, inputs, masks = two
    before, now = hidden(original, inputs, masks), hidden(compressed, inputs, masks)
    for found in compared(two).values():
        assert found.positions == len(now) == 39
        products = now.T @ now
        expected = KroneckerForm(np.ones(1), products[None] / np.trace(products), "", 39.0).shrunk()
        np.testing.assert_allclose(found.columns.columns, expected.columns, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found.change, (before - now).T @ now / np.trace(products), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(found.means[0], before.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.means[1], now.mean(0), rtol=1e-5)


def test_the_target_is_the_least_squares_solution(two):
    original, compressed, inputs, masks = two
    before, now = hidden(original, inputs, masks), hidden(compressed, inputs, masks)
    matrix = original.second.weight.double().numpy()
    damping = (SHRINKAGE * 6 / 39 + 1e-4) * np.mean(now**2)
    rows = np.vstack([now / np.sqrt(39), np.sqrt(damping) * np.eye(6)])
    wanted = np.vstack([before @ matrix.T / np.sqrt(39), np.sqrt(damping) * matrix.T])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    found = target(compared(two)["second.weight"], original.second.weight.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(found - matrix).max() > 0.01

    def error(aim):
        return np.square(before @ matrix.T - now @ aim.T).sum()

    assert error(found) < 0.9 * error(matrix)


def test_with_the_same_inputs_the_target_is_the_matrix_itself(two):
    original, _, inputs, masks = two
    found = compared((original, original, inputs, masks))
    matrix = original.second.weight.numpy()
    assert np.array_equal(target(found["second.weight"], matrix), matrix)


def test_the_form_has_the_rows_and_the_inputs_of_now(two):
    rows = np.arange(1.0, 7.0)
    found = compared(two)["second.weight"]
    form = found.form(rows_alone(Layout((6, 6)), rows))
    np.testing.assert_allclose(form.rows, KroneckerForm(rows, np.eye(6)[None], "", 39.0).shrunk().rows)
    assert form.columns is found.columns.columns


@pytest.mark.parametrize("panel", [2048, 4])
def test_products_with_flat_matrices_take_the_place_of_the_change(monkeypatch, panel):
    """With fewer rows than columns together, and whatever panels the products of inputs are computed in."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second, self.beside = nn.Linear(6, 3, bias=False), nn.Linear(6, 2, bias=False)

        def forward(self, x):
            hidden = self.first(x).relu()
            return self.second(hidden).sum() + self.beside(hidden).sum()

    torch.manual_seed(1)
    original = Flat().requires_grad_(False)
    net = copy.deepcopy(original)
    net.first.weight += 0.1 * torch.randn(6, 6)
    inputs = [torch.randn(2, 7, 6) for _ in range(3)]
    given = original, net, inputs, [torch.ones(14, dtype=torch.bool) for _ in inputs]
    monkeypatch.setattr(gram_panels, "PANEL", panel)
    flat = compared(given)
    monkeypatch.setattr(layer_stages, "_flat", lambda *_: {})
    whole = compared(given)
    for name in NAMES_OF_TWO:
        matrix = original.get_parameter(name).numpy()
        assert flat[name].change is None and flat[name].missed[name].shape == matrix.shape
        expected = target(whole[name], matrix, name)
        np.testing.assert_allclose(target(flat[name], matrix, name), expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected - matrix).max() > 1e-3


# Experts


class Routed(nn.Module):
    """Every position goes to one of two experts, by the sign of what a layer before gives."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = self.first(x).reshape(-1, 6)
        out = torch.zeros_like(x)
        for chosen, expert in zip((x[:, 0] > 0, x[:, 0] <= 0), self.experts, strict=False):
            if chosen.any():
                out[chosen] = expert(x[chosen])
        return out


@pytest.fixture
def routed():
    torch.manual_seed(0)
    original = Routed().requires_grad_(False)
    compressed = copy.deepcopy(original)
    compressed.first.weight += 0.3 * torch.randn(6, 6)
    inputs = [torch.randn(2, 7, 6) for _ in range(2)]
    return original, compressed, inputs, [torch.ones(14, dtype=torch.bool) for _ in inputs]


NAMES = ["experts.0.weight", "experts.1.weight", "experts.2.weight"]


def test_routed_positions_are_not_aligned(routed):
    original = routed[0]
    found = compared(routed, NAMES)
    assert list(found) == NAMES[:2], "nothing goes to the last expert"
    for name in NAMES[:2]:
        assert found[name].change is None
        assert found[name].means is None
        matrix = original.get_parameter(name).numpy()
        assert np.array_equal(target(found[name], matrix), matrix)
    assert sum(each.positions for each in found.values()) == 28


def test_a_batch_that_goes_to_one_expert_as_a_whole_is_not_aligned_either(routed):
    """All positions of the first batch are one expert's, in the compressed block alone."""
    original, compressed, inputs, masks = routed
    expected = compared(routed, NAMES)
    original.first.bias[0] = -50.0
    assert compared(routed, NAMES)["experts.0.weight"].positions == expected["experts.0.weight"].positions
    original.first.bias[0], compressed.first.bias[0] = 0.0, 50.0
    found = compared(routed, NAMES)
    assert found["experts.0.weight"].positions == 28
    assert found["experts.0.weight"].change is None
    compressed.first.bias[0] = 0.0
    once = [inputs[0], inputs[1].clone()]
    for net in (original, compressed):  # the second batch goes to one expert in both, the first does not
        net.first.weight[0] = 0.0
        net.first.weight[0, 0] = 1.0
    once[1][..., 0] = once[1][..., 0].abs() + 50
    found = compared((original, compressed, once, masks), NAMES)["experts.0.weight"]
    assert 14 < found.positions < 28
    assert found.change is None, "half of the positions say nothing of the others"
