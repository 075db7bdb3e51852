"""Sums over a batch for the forms of a part, against gradients of every sample one by one in double precision."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from families import batches, padded
from waterfill.bundle import Checkpoint
from waterfill.compression import gram_panels
from waterfill.compression.block_forward import BlockForward
from waterfill.compression.checkpoint_groups import groups_of
from waterfill.compression.gram_panels import take_gram
from waterfill.compression.kfac_statistics import (
    TIED,
    OutputGradient,
    _by_inputs,
    _by_positions,
    _row_squares,
    add_batch,
    add_last_batch,
    parameter_statistics,
)
from waterfill.compression.loaded_parts import PartLoader
from waterfill.importance.exact_sum import ExactSum
from waterfill.importance.factored import KroneckerForm
from waterfill.models.embedder import Embedder
from waterfill.models.skeleton import Skeleton
from waterfill.processes import Processes

BLOCK = 1


class Case:
    """A block of a model on one batch, with random signals at its output."""

    def __init__(self, directory, batch, silent=()):
        checkpoint = Checkpoint(directory)
        skeleton = Skeleton(checkpoint.directory, checkpoint)
        self.forward = BlockForward(skeleton, None if skeleton.is_language_model else Embedder(skeleton.model))
        loader = PartLoader(checkpoint, groups_of(checkpoint.shapes), skeleton)
        self.outside = loader.outside
        self.part = loader.block(BLOCK)
        with torch.no_grad():
            self.entered = self.forward.embed(batch)
        torch.manual_seed(1)
        self.signal = torch.randn(self.entered.hidden.shape)
        mask = self.entered.mask.reshape(self.signal.shape[:2])
        self.signal[~mask] = 0
        for sample in silent:
            self.signal[sample] = 0

    def added(self):
        """The totals, and the gradient at the input."""
        sums, at = ExactSum(Processes()), self.entered.hidden.clone().requires_grad_()
        run = partial(self.forward.run_block, self.part.module, at, self.entered.calls[BLOCK])
        gradient = add_batch(sums, self.part.parameters, run, OutputGradient(self.signal, 5.0), at)
        return sums.totals(), gradient

    def by_sample(self):
        """Gradients of every parameter [samples, ...] and at the input, and the inputs of linear layers."""
        block = copy.deepcopy(self.part.module).double().requires_grad_()
        inputs = {}

        def note(name, _, given):
            inputs.setdefault(name, []).append(given[0].detach().reshape(-1, given[0].shape[-1]))

        for name, module in block.named_modules():
            if type(module).__name__ in ("Linear", "Conv1D"):
                module.register_forward_pre_hook(partial(note, name))
        gradients, at_input = [], []
        args, kwargs = self.entered.calls[BLOCK]
        for sample in range(len(self.signal)):
            one = partial(alone, sample=sample, of=len(self.signal))
            at = one(self.entered.hidden).requires_grad_()
            out = block(at, *map(one, args), **{name: one(value) for name, value in kwargs.items()})
            out = out[0] if isinstance(out, tuple) else out
            wanted = [*block.parameters(), at]
            found = torch.autograd.grad(out, wanted, one(self.signal), allow_unused=True)
            gradients.append([torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)])
            at_input.append(found[-1])
        names = [name for name, _ in block.named_parameters()]
        stacked = {name: torch.stack(each) for name, each in zip(names, zip(*gradients, strict=True), strict=False)}
        return stacked, torch.cat(at_input), {name: torch.cat(each) for name, each in inputs.items()}


def alone(value, sample, of):
    """One sample of an argument, in double precision."""
    if isinstance(value, tuple):
        return tuple(alone(each, sample, of) for each in value)
    if not isinstance(value, torch.Tensor):
        return value
    value = value[sample : sample + 1] if len(value) == of else value
    return value.double() if value.is_floating_point() else value


def close(found, expected, name=""):
    atol = 2e-5 * float(expected.abs().max()) + 1e-9  # biases of keys change nothing, but for rounding
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=atol, msg=lambda text: f"{name}: {text}")


def row_totals(totals, name):
    """The sum of the squares over the inputs of every output, of whatever was added up of a matrix."""
    for kind, axis in (("plain", None), ("turned", None), ("squares", 1)):
        if f"{kind}:{name}" in totals:
            found = totals[f"{kind}:{name}"]
            return found if axis is None else found.sum(axis)
    raise AssertionError(f"nothing was added up of {name}")


CASES = ["llama", "bert", "gpt2", "gemma3"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("panel", [3, 2048])
def test_a_block_is_what_single_samples_say(directories, name, panel, monkeypatch):
    monkeypatch.setattr(gram_panels, "PANEL", panel)
    case = Case(directories(name), batches(1)[0])
    totals, gradient = case.added()
    exact, at_input, inputs = case.by_sample()
    close(gradient, at_input)
    assert totals["count:"].tolist() == [5.0]
    linear = {f"{layer}.weight" for layer in inputs}
    for key, gradients in exact.items():
        squares = gradients.square().sum(0)
        if key in linear:
            close(row_totals(totals, key), squares.sum(0 if name == "gpt2" else 1), key)
            assert (f"turned:{key}" in totals) == (name == "gpt2")
            x = inputs[key.removesuffix(".weight")]
            close(take_gram(key, totals), x.T @ x, key)
            assert totals[f"positions:{key}"].tolist() == [32.0]
        elif name != "gemma3":  # whose norms are not known: (1 + weight) x
            close(totals[f"squares:{key}"], squares, key)
        else:
            close(totals[f"squares:{key}"], gradients.sum(0).square(), key)
    assert {key.partition(":")[2] for key in totals} == {*exact, ""}


def test_a_block_with_experts_is_what_a_single_sample_says(directories):
    """Of one sample, for positions that are routed do not say which sample they are of."""
    case = Case(directories("mixtral"), batches(1)[0][:1])
    totals, gradient = case.added()
    exact, at_input, inputs = case.by_sample()
    close(gradient, at_input)
    reached = 0
    for key, gradients in exact.items():
        squares = gradients.square().sum(0)
        if not squares.any():
            assert f"plain:{key}" not in totals
        elif squares.ndim == 2:
            close(row_totals(totals, key), squares.sum(1), key)
        else:
            close(totals[f"squares:{key}"], squares, key)
        reached += "experts.down_proj" in key and bool(squares.any())
    there = int(totals["positions:self_attn.q_proj.weight"])
    x = inputs["self_attn.q_proj"][16 - there :]
    assert there >= 15, "the first position sees itself alone, so its query changes nothing but for rounding"
    close(take_gram("self_attn.q_proj.weight", totals), x.T @ x)
    assert reached >= 2
    experts = [float(totals.get(f"positions:mlp.experts.down_proj.{index}", torch.zeros(1))) for index in range(4)]
    assert sum(experts) == 2 * 16, "two experts for each position"


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_padding_counts_nothing(directories, name):
    batch = padded(1)[0]
    case = Case(directories(name), batch)
    totals, gradient = case.added()
    exact, at_input, inputs = case.by_sample()
    close(gradient, at_input)
    there = batch["attention_mask"].bool().flatten()
    assert int(there.sum()) == 25
    for layer, x in inputs.items():
        key = f"{layer}.weight"
        close(row_totals(totals, key), exact[key].square().sum((0, 2)), key)
        close(take_gram(key, totals), x[there].T @ x[there], key)
        assert totals[f"positions:{key}"].tolist() == [25.0]
    shorter = Case(directories(name), {key: value[1:, :9] for key, value in batch.items()})
    shorter.signal = case.signal[1:, :9]
    longer = Case(directories(name), batch, silent=[0])
    for one, other in zip(shorter.by_sample()[0].values(), longer.by_sample()[0].values(), strict=True):
        close(one[0], other[1])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_form_has_the_row_totals_of_the_exact_squares(directories, name):
    case = Case(directories(name), batches(1)[0])
    totals, _ = case.added()
    exact, _, inputs = case.by_sample()
    turned = name == "gpt2"
    for layer, x in inputs.items():
        key = f"{layer}.weight"
        shape = tuple(case.part.parameters[key].shape)
        found = parameter_statistics(totals, {key: shape}, 1.0, "")[key]
        rows = exact[key].square().sum((0, 1) if turned else (0, 2)).numpy() / 5.0
        np.testing.assert_allclose(found.rows, rows, rtol=1e-3, atol=1e-5 * rows.max())
        assert found.layout.transposed == turned
        gram = (x.T @ x).numpy()
        plain = KroneckerForm(found.rows, (gram / np.trace(gram))[None], "", 32.0)
        np.testing.assert_allclose(plain.diagonal().sum(1), rows, rtol=1e-3, atol=1e-5 * rows.max())
        expected = plain.shrunk().diagonal()
        np.testing.assert_allclose(found.form.diagonal(), expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_what_no_batch_reaches_has_no_form(directories):
    case = Case(directories("llama"), batches(1)[0], silent=[0, 1])
    totals, gradient = case.added()
    assert not gradient.any()
    key = "mlp.up_proj.weight"
    assert parameter_statistics(totals, {key: (48, 32), "nowhere": (3,)}, 1.0, "").keys() == set()


# Outside of the blocks


def ends(case):
    """Totals of what is behind the last block, and of what is before the first one."""
    forward, hidden, signal = case.forward, case.entered.hidden, case.signal
    back, front = ExactSum(Processes()), ExactSum(Processes())
    at = hidden.clone().requires_grad_()
    with torch.no_grad():
        output = forward.head(batches(1)[0], at)
    torch.manual_seed(2)
    out_signal = torch.randn(output.shape)
    parameters, run = case.outside.parameters, partial(forward.head, batches(1)[0], at)
    gradient = add_batch(back, parameters, run, OutputGradient(out_signal, 5.0), at)
    add_last_batch(front, parameters, lambda: forward.embed(batches(1)[0]).hidden, OutputGradient(signal, 5.0))
    return out_signal, gradient, back.totals(), front.totals()


@pytest.mark.parametrize("name", ["llama", "tied"])
def test_embeddings_and_the_head(directories, name):
    case = Case(directories(name), batches(1)[0])
    out_signal, gradient, back, front = ends(case)
    ids, hidden = batches(1)[0], case.entered.hidden.double()
    parameters = case.outside.parameters
    head = "lm_head.weight" if name == "llama" else "model.embed_tokens.weight"
    scale, matrix = parameters["model.norm.weight"].double(), parameters[head].double()
    eps = case.forward.skeleton.model.config.rms_norm_eps
    scale, matrix, at = (each.detach().clone().requires_grad_() for each in (scale, matrix, hidden))

    def run(sample):
        normed = at[sample] * (at[sample].square().mean(-1, keepdim=True) + eps).rsqrt() * scale
        return normed, normed @ matrix.T

    exact = torch.zeros_like(matrix)
    for sample in range(2):
        grads = torch.autograd.grad(run(sample)[1], (matrix, at), out_signal[sample].double())
        exact += grads[0].square()
        close(gradient[sample], grads[1][sample])
    close(back[f"plain:{head}"], exact.sum(1))
    x = torch.cat([run(sample)[0] for sample in range(2)]).detach()
    gram = take_gram(head, dict(back))
    close(gram, x.T @ x)

    table = torch.zeros_like(matrix)
    for sample in range(2):  # each sample adds up what comes back to its tokens
        one = torch.zeros_like(matrix)
        for position, token in enumerate(ids[sample].tolist()):
            one[token] += case.signal[sample, position].double()
        table += one.detach().square()
    words = "model.embed_tokens.weight"
    close(front[f"squares:{words}"], table.detach())
    counts = torch.bincount(ids.flatten(), minlength=97)
    assert torch.equal(front[f"tokens:{words}"], counts.double())

    found = parameter_statistics({**back, **front}, {words: (97, 32)}, 1.0, "")[words]
    diagonal = torch.from_numpy(found.form.diagonal())
    if name == "tied":
        assert found.reason == TIED
        assert found.rows is None
        close(diagonal.sum(1), (exact.sum(1) + table.sum(1)).detach() / 5)
        shares = gram.diagonal() / gram.trace()
        close(diagonal, (exact.sum(1)[:, None] * shares + table).detach() / 5)
    else:
        seen = counts > 0
        close(diagonal[seen], table[seen].detach() / 5)
        once = counts == 1  # all that were never seen make up what those do that were seen once
        mass = (table[once].sum(0) / max(int((~seen).sum()), int(once.sum())) / 5).detach()
        close(diagonal[~seen], mass.expand(int((~seen).sum()), 32))


def test_tokens_at_padding_are_not_seen(directories):
    batch = padded(1)[0]
    case, front = Case(directories("llama"), batch), ExactSum(Processes())
    back = OutputGradient(case.signal, 5.0)
    add_last_batch(front, case.outside.parameters, lambda: case.forward.embed(batch).hidden, back)
    ids, there = batch["input_ids"].flatten(), batch["attention_mask"].bool().flatten()
    found = front.totals()["tokens:model.embed_tokens.weight"]
    assert torch.equal(found, torch.bincount(ids[there], minlength=97).double())
    assert not torch.equal(found, torch.bincount(ids, minlength=97).double())


def test_a_table_of_positions_that_all_samples_read_once(directories):
    """GPT-2 looks positions up without samples, so that those come back together."""
    case = Case(directories("gpt2"), batches(1)[0])
    *_, front = ends(case)
    expected = torch.zeros(64, 32, dtype=torch.float64)
    expected[:16] = case.signal.double().sum(0).square()
    close(front["squares:transformer.wpe.weight"], expected)


@pytest.mark.parametrize(("positions", "inputs", "out"), [(3, 40, 50), (3, 50, 4), (30, 5, 6), (1, 7, 9)])
def test_row_squares_are_those_of_the_gradients_of_samples(positions, inputs, out):
    torch.manual_seed(0)
    g, x = torch.randn(4, positions, out), torch.randn(4, positions, inputs)
    expected = torch.einsum("npo,npi->noi", g.double(), x.double()).square().sum((0, 2))
    flat = g.reshape(-1, out), x.reshape(-1, inputs)
    torch.testing.assert_close(_row_squares(*flat, 4), expected, rtol=1e-5, atol=0)
    for one, other in zip(g, x, strict=True):
        torch.testing.assert_close(_by_positions(one, other), _by_inputs(one, other), rtol=1e-4, atol=1e-4)
