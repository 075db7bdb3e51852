"""Factors against slow twins in double precision, and what they are for: exact products, merging, damping."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import slow_importance
import slow_kronecker
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import IMAGES, OUT, Function, image_net, param
from torch import nn

from waterfill.compression.calibration import prepare
from waterfill.compression.settings import Settings
from waterfill.errors import CalibrationError, UsageError
from waterfill.importance import (
    DiagonalForm,
    KroneckerForm,
    UnfactoredForm,
    factored,
    factors,
    kl,
    kronecker,
    regression,
    state,
)
from waterfill.models import inventory
from waterfill.quantize import Feedback

GROUPS = {"grouped": 2, "depthwise": 4, "transposed grouped": 2}
LAYERS = (
    "conv2d", "strided", "dilated", "same", "valid", "circular", "reflect", "grouped", "depthwise", "pointwise",
    "conv1d", "conv3d", "transposed", "transposed strided", "transposed cut", "transposed grouped", "transposed1d",
    "transposed3d", "linear", "linear on sequences", "linear on grids", "rows of samples apart",
    "rows of samples together", "called twice", "called on two sizes",
)  # fmt: skip


def layout_of(model, name):
    return inventory(model).weights[name].layout


def matrix(model, by_name, name):
    return layout_of(model, name).to_matrix(by_name[name].detach().numpy())


def agrees(form, inputs, outputs, full):
    np.testing.assert_allclose(form.columns, inputs, rtol=1e-9, atol=1e-12 * np.abs(inputs).max())
    assert (form.columns == form.columns.swapaxes(1, 2)).all()
    assert form.columns.dtype == form.rows.dtype == np.float64
    rows = torch.block_diag(*torch.from_numpy(outputs)).numpy()
    rows = rows if full else np.diagonal(rows)
    np.testing.assert_allclose(form.rows, rows, rtol=1e-9, atol=1e-12 * np.abs(rows).max())
    assert not form.reason


@pytest.mark.parametrize("case", LAYERS)
def test_factors_agree_with_the_slow_twin(case):
    make, size = IMAGES[case]
    model, x = image_net(make(), *size)
    plain = isinstance(model[0], Function)
    layer, name = (model[0].a, "0.a.weight") if plain else (model[0], "0.weight")
    axis = -1 if isinstance(layer, nn.Linear) else 1
    groups = GROUPS.get(case, 1)
    signals = slow_kronecker.kl_signals(2.0)
    a, g = slow_kronecker.factors(model, x, [layer], layout_of(model, name), signals, groups, axis)
    g = slow_kronecker.scaled(a, g, matrix(model, slow_importance.kl(model, x, 2.0), name))
    full = case in ("strided", "grouped", "linear on grids", "transposed grouped", "called twice")
    forms = kronecker(full=full, temperature=2).estimate(model, [x[:3], x[3:]], "logits")
    agrees(forms[name], a, g, full)


@pytest.mark.parametrize("full", [False, True])
def test_recurrent_layers_agree_with_a_slow_twin(full):
    torch.manual_seed(0)
    model = Function(lambda self, x: self.out(self.lstm(x)[0][:, -1]), lstm=nn.LSTM(3, 4, batch_first=True), out=None)
    model.out = nn.Linear(4, OUT)
    model, x = model.double(), torch.randn(4, 5, 3, dtype=torch.float64)
    sums = {name: [0, 0] for name in ("weight_ih_l0", "weight_hh_l0")}
    for one in x:
        h = c = torch.zeros(4, dtype=torch.float64)
        steps = []
        for x_t in one:
            parts = [F.linear(x_t, model.lstm.weight_ih_l0, model.lstm.bias_ih_l0)]
            parts.append(F.linear(h, model.lstm.weight_hh_l0, model.lstm.bias_hh_l0))
            steps.append(((x_t, h.detach()), parts))
            i, f, g, o = sum(parts).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        for value in model.out(h):
            for seen, parts in steps:
                slopes = torch.autograd.grad(value, parts, retain_graph=True)
                for name, into, slope in zip(sums, seen, slopes, strict=True):
                    sums[name][0] += torch.outer(into, into).numpy() / (len(x) * 5 * OUT)
                    sums[name][1] += torch.outer(slope, slope).numpy()
    exact = slow_importance.regression(model, x)
    forms = kronecker(full=full).estimate(model, [x], "values")
    for name, (a, g) in sums.items():
        g = slow_kronecker.scaled(a[None], g[None], exact[f"lstm.{name}"])
        agrees(forms[f"lstm.{name}"], a[None], g, full)


def tokens(rows=4, length=6):
    return torch.randint(0, 5, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}])
def test_tables_of_tokens_have_the_exact_diagonal(options):
    torch.manual_seed(0)
    model = Function(
        lambda self, t: self.out(self.table(t).cumsum(1).tanh().sum(1)),
        table=nn.Embedding(5, 4, **options), out=nn.Linear(4, OUT),
    ).double()  # fmt: skip
    form = kronecker().estimate(model, [tokens()[:1], tokens()[1:]], "values")["table.weight"]
    exact = regression().estimate(model, [tokens()], "values")["table.weight"]
    assert type(form) is DiagonalForm
    np.testing.assert_allclose(form.values, exact.diagonal(), rtol=1e-6)


def test_tokens_that_never_came_are_expected_as_those_that_came_once_tell():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(12, OUT))
    batch = torch.tensor([[0, 0, 1, 2], [0, 1, 3, 3]])  # one came once, six never
    exact = regression().estimate(model, [batch], "values")["0.weight"].diagonal()
    found = kronecker().estimate(model, [batch], "values")["0.weight"].diagonal()
    np.testing.assert_allclose(found[:, :4], exact[:, :4], rtol=1e-6)
    np.testing.assert_allclose(found[:, 4:], np.repeat(exact[:, 2:3] / 6, 6, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("exact", "counts", "wanted"),
    [([3, 1, 0, 0], [2, 1, 0, 0], [3, 1, 0.5, 0.5]), ([3, 1, 2, 0], [1, 1, 1, 0], [3, 1, 2, 2]),
     ([3, 5, 0, 0], [2, 2, 0, 0], [3, 5, 0.5, 0.5]), ([3, 5], [1, 2], [3, 5]), ([0, 0], [0, 0], [0, 0])],
)  # fmt: skip
def test_what_unseen_tokens_are_expected_to_come_to(exact, counts, wanted):
    assert factors.expected(np.array([exact], float), np.array(counts, float)).tolist() == [wanted]


def test_tied_layers_are_summed():
    torch.manual_seed(0)
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    model = nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), nn.Linear(4, OUT)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    layout = layout_of(model, "0.weight")
    a, g = slow_kronecker.factors(model, x, [model[0], model[2]], layout, slow_kronecker.value_signals, axis=-1)
    g = slow_kronecker.scaled(a, g, slow_importance.regression(model, x)["0.weight"])
    agrees(kronecker(full=True).estimate(model, [x], "values")["0.weight"], a, g, full=True)


def test_ignored_targets_have_no_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, OUT)).double()
    target = torch.ones(4, 6, dtype=torch.long)
    target[0, 2:] = target[2, :5] = -100
    found = kronecker(draws=3000).estimate(model, [(tokens(), target)])
    kept = tokens()[target != -100]
    alone = kronecker().estimate(model, [kept], "logits")
    np.testing.assert_allclose(found["0.weight"].values, alone["0.weight"].values, rtol=0.15)
    for name in ("1.weight", "3.weight"):
        np.testing.assert_allclose(found[name].columns, alone[name].columns, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(found[name].rows, alone[name].rows, rtol=0.15)


def test_layers_that_store_their_matrix_the_other_way():
    torch.manual_seed(0)
    linear = nn.Linear(5, 4, bias=False).double()
    bare = Function(lambda self, x: x @ self.w, w=nn.Parameter(linear.weight.detach().T.contiguous()))
    x = torch.randn(7, 5, dtype=torch.float64)
    for full in (False, True):
        (expected,) = kronecker(full=full).estimate(linear, [x], "values").values()
        (form,) = kronecker(full=full).estimate(bare, [x], "values").values()
        error = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        assert form.cost(error) == pytest.approx(expected.cost(error.T), rel=1e-9)
        np.testing.assert_allclose(form.diagonal(), expected.diagonal().T, rtol=1e-6)
        assert form.rows.shape == (5, 5)
        assert form.columns.shape == ((1, 4, 4) if full else (1, 4))


# Exact cases


@pytest.mark.parametrize(("out", "full"), [(1, False), (3, False), (3, True)])
def test_linear_regression_is_exact(out, full):
    torch.manual_seed(0)
    model, x = nn.Linear(6, out, bias=False).double(), torch.randn(50, 6, dtype=torch.float64)
    (form,) = kronecker(full=full).estimate(model, [x[:20], x[20:]], "values").values()
    jacobians = [d["weight"].reshape(out, -1) for _, d in slow_importance.jacobians(model, x)]
    fisher = sum(j.T @ j for j in jacobians).numpy() / len(x)
    np.testing.assert_allclose(slow_kronecker.dense(form), fisher, rtol=1e-9, atol=1e-12)
    error = np.random.default_rng(0).standard_normal((out, 6)).astype(np.float32)
    moved = (x @ torch.from_numpy(error).double().T).square().sum(1).mean()
    assert form.cost(error) == pytest.approx(float(moved), rel=1e-9)


def deep_net():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_var.copy_(torch.rand(4) + 0.5)
    convolutions = nn.Conv2d(2, 4, 2), norm, nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, OUT))


def deep_data(count=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3 + number % 2, 2, 3, 3, generator=generator) for number in range(count)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("other", "output"), [(kl(), "logits"), (regression(), "values")])
def test_every_row_has_the_total_of_the_exact_diagonal(other, output, full):
    model, data = deep_net(), deep_data()
    exact = other.estimate(model, data, output)
    forms = kronecker(full=full).estimate(model, data, output)
    assert forms.keys() == exact.keys()
    for name, form in forms.items():
        if isinstance(form, KroneckerForm):
            wanted, found = (f.diagonal().astype(float) for f in (exact[name], form))
            np.testing.assert_allclose(found.sum(1), wanted.sum(1), rtol=1e-5, atol=1e-9 * wanted.sum())
        else:
            np.testing.assert_array_equal(form.values, exact[name].values)
    matrices = {name for name, weight in inventory(model).weights.items() if not weight.is_vector}
    assert {name for name, form in forms.items() if isinstance(form, KroneckerForm)} == matrices
    if full:
        for name in matrices:
            assert np.linalg.eigvalsh(forms[name].rows).min() > -1e-6 * np.trace(forms[name].rows)
        apart = forms["3.weight"].rows
        assert apart[0, 1] and not apart[:2, 2:].any()


# States


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(4)), cuts=st.sets(st.integers(1, 3)), full=st.booleans())
def test_states_merge_in_any_order(order, cuts, full):
    model, data = deep_net(), deep_data()
    importance = kronecker(full=full)
    parts = []
    for first, last in itertools.pairwise([0, *sorted(cuts), 4]):
        part = importance.begin(model)
        for number in order[first:last]:
            part = part.update(data[number])
        parts.append(part)
    merged = parts[0]
    for part in parts[1:]:
        merged = part.merge(merged)
    same(merged.forms(), importance.estimate(model, data, "logits"))


def same(one, other, rtol=1e-6):
    assert one.keys() == other.keys()
    for name, form in one.items():
        assert type(form) is type(other[name])
        for part in ("values", "rows", "columns"):
            value = getattr(form, part, None)
            if value is not None:
                tolerance = 1e-6 * np.abs(value).max()
                np.testing.assert_allclose(value, getattr(other[name], part), rtol=rtol, atol=tolerance)


def test_small_budgets_make_no_difference(monkeypatch):
    model, data = deep_net(), [torch.cat(deep_data())]
    expected = kronecker(full=True).estimate(model, data, "values")
    monkeypatch.setattr(factors, "CHUNK_BYTES", 1)
    monkeypatch.setattr(state, "SITE_BYTES", 1)
    monkeypatch.setattr(state, "_SAMPLES_TOGETHER", 2)
    same(kronecker(full=True).estimate(model, data, "values"), expected, rtol=1e-5)


def test_states_of_other_importances_do_not_merge():
    part = kronecker().begin(deep_net()).update(deep_data()[0])
    with pytest.raises(UsageError, match="expected a state of kronecker"):
        part.merge(kl().begin(deep_net()).update(deep_data()[0]))
    with pytest.raises(UsageError, match="expected the same shapes"):
        part.merge(kronecker(full=True).begin(deep_net()).update(deep_data()[0]))
    assert not kronecker().begin(deep_net()).moments.factors


# What has no factors


def without_factors(model, *batches, **options):
    """Diagonal forms in the place of products: their reasons; they are those of `regression`."""
    found = kronecker(**options).estimate(model, batches, "values")
    exact = regression().estimate(model, batches, "values")
    reasons = {name: form.reason for name, form in found.items() if isinstance(form, UnfactoredForm)}
    for name in reasons:
        np.testing.assert_allclose(found[name].values, exact[name].values, rtol=1e-6)
    return reasons


def test_uses_that_are_not_known():
    make, size = IMAGES["attention"]
    model, x = image_net(make(), *size)
    assert without_factors(model, x) == dict.fromkeys(("0.a.in_proj_weight", "0.a.out_proj.weight"), factors.UNKNOWN)


def test_a_use_that_is_not_known_in_one_batch_of_several():
    torch.manual_seed(0)

    def forward(self, x):
        return self.b(torch.bmm(x[:, None], self.w.expand(len(x), 3, 4))[:, 0] if len(x) == 5 else x @ self.w)

    model = Function(forward, w=param(3, 4), b=nn.Linear(4, OUT))
    known, unknown = torch.randn(4, 3), torch.randn(5, 3)
    for batches in ((known, unknown, known), (unknown, known)):
        assert without_factors(model, *batches) == {"w": factors.UNKNOWN}


def test_matrices_that_are_no_maps():
    make, size = IMAGES["scale and shift"]
    model, x = image_net(make(), *size)
    assert without_factors(model, x) == dict.fromkeys(("0.a", "0.c"), "it is not the matrix of a layer")


def test_a_table_tied_to_the_output_layer():
    torch.manual_seed(0)
    table, out = nn.Embedding(6, 4), nn.Linear(4, 6)
    out.weight = table.weight
    model = Function(lambda self, t: self.out(self.table(t).tanh().mean(1)), table=table, out=out)
    assert without_factors(model, tokens()) == {"table.weight": "layers read it in different ways"}


def test_a_matrix_that_nothing_depends_on():
    model = Function(lambda self, x: self.a(x), a=nn.Linear(3, OUT), idle=nn.Linear(2, 2))
    assert without_factors(model, torch.randn(4, 3)) == {"idle.weight": "no output depends on it on these data"}


def test_factors_that_would_be_too_large():
    x = torch.cat(deep_data())
    assert without_factors(deep_net(), x, largest=7) == {
        "0.weight": "a matrix over its 8 inputs would be too large",
        "3.weight": "a matrix over its 8 inputs would be too large",
    }
    forms = kronecker(full=True, largest=5).estimate(nn.Linear(3, 6), [torch.randn(4, 3)], "values")
    assert forms["weight"].rows.shape == (6,)
    assert forms["weight"].reason == "a full matrix over its 6 outputs would be too large"
    with pytest.raises(UsageError, match="largest is -1"):
        kronecker(largest=-1)


# Forms


def random_form(groups=1, out=4, inputs=3, full=False, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((groups, inputs, inputs + 1))
    rows = rng.random(out)
    if full:
        blocks = rng.standard_normal((groups, out // groups, out // groups))
        rows = torch.block_diag(*torch.from_numpy(blocks @ blocks.swapaxes(1, 2))).numpy()
    return KroneckerForm(rows, roots @ roots.swapaxes(1, 2))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("full", [False, True])
def test_cost_is_that_of_the_whole_matrix(groups, full):
    form = random_form(groups, full=full)
    for each in (form, KroneckerForm(form.rows, np.einsum("gii->gi", form.columns)), form.damped(0.1)):
        whole = slow_kronecker.dense(each)
        error = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
        e = error.astype(float).ravel()
        assert each.cost(error) == pytest.approx(e @ whole @ e, rel=1e-12)
        assert each.diagonal().dtype == np.float32
        np.testing.assert_allclose(each.diagonal(), np.diagonal(whole).reshape(4, 3), rtol=1e-6)
    with pytest.raises(UsageError, match=r"\[3, 4\].*\[4, 3\].*normal form"):
        form.cost(np.ones((3, 4), np.float32))


def test_damping_is_a_share_of_the_mean_diagonal():
    form = random_form(2, full=True)
    more = form.damped(0.5)
    for before, after in zip(form.columns, more.columns, strict=True):
        np.testing.assert_allclose(after - before, 0.5 * np.trace(before) / 3 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(more.rows - form.rows, 0.5 * np.trace(form.rows) / 4 * np.eye(4), atol=1e-12)
    assert form.damped(0) is form
    plain = random_form(full=False)
    assert plain.damped(0.5).rows is plain.rows
    for relative in (-1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="Damping is"):
            form.damped(relative)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pivots_are_those_of_any_decomposition_of_the_damped_factor_from_the_last_row_on(groups, dtype):
    matrices = random_form(groups, inputs=5).columns.astype(dtype)
    found = factored.damped_pivots(matrices, 0.01)
    for left, matrix in zip(found, matrices, strict=True):
        damped = matrix + 0.01 * np.diagonal(matrix).mean() * np.eye(5)
        reverse = np.diagonal(np.linalg.cholesky(damped[::-1, ::-1]))[::-1]
        np.testing.assert_allclose(left, reverse**2, rtol=1e-4)
        powers = np.geomspace(0.1, 10, 5)
        root = np.sqrt(powers)
        scaled = np.diagonal(np.linalg.cholesky((root[:, None] * damped * root)[::-1, ::-1]))[::-1] ** 2
        np.testing.assert_allclose(powers * left, scaled, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pivots_of_matrices_that_cannot_be_decomposed_are_above_zero(dtype):
    matrices = np.array([[[1, 2, 0], [2, 1, 0], [0, 0, 0]], np.zeros((3, 3))], dtype)
    assert (factored.damped_pivots(matrices, 1e-4) > 0).all()


def test_tempered_and_scaled_forms_share_one_decomposition(monkeypatch):
    calls = []
    slow = factored.damped_pivots
    monkeypatch.setattr(factored, "damped_pivots", lambda *args: (calls.append(1), slow(*args))[1])
    form = random_form()
    tempered = form.tempered(2.0, 0.5)
    totals = tempered.scale_total, tempered.scaled(2.0).scale_total, form.rows_of(slice(2)).scale_total
    assert len(calls) == 1 and all(each > 0 for each in totals)
    assert tempered.columns is form.columns


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("of", ["matrices", "diagonal columns", "related rows"])
def test_errors_are_multiplied_together_as_each_alone(groups, of):
    form = random_form(groups)
    if of == "diagonal columns":
        form = replace(form, columns=np.diagonal(form.columns, axis1=1, axis2=2))
    rows = np.diag(form.rows)
    if of == "related rows":
        rows = rows + 0.1 * np.kron(np.eye(groups), np.ones((4 // groups, 4 // groups)))
        form = replace(form, rows=rows)
    errors = np.random.default_rng(1).standard_normal((5, 4, 3)).astype(np.float32)
    found = form.times(errors)
    for each, product in zip(errors, found, strict=True):
        columns = [a if a.ndim == 2 else np.diag(a) for a in form.columns]
        right = np.concatenate([e @ a for e, a in zip(np.split(each, groups), columns, strict=True)])
        np.testing.assert_allclose(product, rows @ right, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(product, form.times(each))
    for wrong in (errors[:, :3], errors[0].T):
        with pytest.raises(UsageError, match=r"does not fit a form of shape \[4, 3\]"):
            form.times(wrong)
    with pytest.raises(UsageError, match=r"does not fit a form of shape \[4, 3\]"):
        form.cost(errors)


@pytest.mark.parametrize("groups", [1, 2])
def test_factors_of_single_precision_price_nearly_as_those_of_double(groups, monkeypatch):
    monkeypatch.setattr(factored, "ROWS_AT_ONCE", 1)
    form = random_form(groups)
    single = KroneckerForm(form.rows, form.columns.astype(np.float32), positions=9.0)
    error = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    assert single.cost(error) == pytest.approx(form.cost(error), rel=1e-5)
    np.testing.assert_allclose(single.times(error), form.times(error), rtol=1e-4, atol=1e-5)
    for each in (single.shrunk(), single.damped(0.1), single.tempered(2.0, 0.5), single.scaled(2.0)):
        assert each.columns.dtype == np.float32 and each.rows.dtype == np.float64
    np.testing.assert_allclose(single.tempered(2, 0.5).diagonal(), form.tempered(2, 0.5).diagonal(), rtol=1e-4)


def test_groups_without_inputs_are_damped_like_the_mean_group():
    columns = np.stack([np.zeros((2, 2)), 3 * np.eye(2)])
    np.testing.assert_allclose(KroneckerForm(np.ones(2), columns).damped(0.2).columns[0], 0.3 * np.eye(2))
    np.testing.assert_allclose(KroneckerForm(np.ones(2), 0 * columns).damped(0.2).columns[1], 0.2 * np.eye(2))


def test_dead_inputs_and_few_samples():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, OUT)), torch.randn(4, 12)
    x[:, 3] = 0
    form = kronecker().estimate(model, [x], "logits")["0.weight"]
    assert not form.columns[0, 3].any() and not form.columns[0, :, 3].any() and not form.diagonal()[:, 3].any()
    assert np.linalg.matrix_rank(form.columns[0], tol=1e-5) == 4
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(form.columns[0])
    damped = form.damped(1e-4)
    assert np.linalg.eigvalsh(damped.columns[0]).min() > 0.9e-4 * np.trace(form.columns[0]) / 12
    assert (damped.diagonal() > 0).all()
    blind = np.linalg.svd(x.numpy())[2][-3:]
    assert 0 <= form.cost(np.float32(blind[[0, 1, 2, 0, 1]])) < 1e-6 * form.diagonal().sum()


def test_certain_networks_have_no_price():
    model = nn.Linear(3, OUT)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1e6, 0, 0]))
    form = kronecker().estimate(model, [torch.randn(4, 3)], "logits")["weight"]
    assert np.isfinite(form.columns).all() and not form.rows.any()
    assert form.cost(np.ones((OUT, 3), np.float32)) == 0


# Options


def test_names_tell_the_options_that_matter():
    named = [kronecker(), kronecker(full=True), kronecker(temperature=4), kronecker(full=True, temperature=2)]
    assert [each.name for each in named] == [
        "kronecker",
        "kronecker(full)",
        "kronecker(temperature=4)",
        "kronecker(full, temperature=2)",
    ]


def test_options_out_of_range_and_data_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="Draws is 0"):
        kronecker(draws=0)
    with pytest.raises(UsageError, match="Temperature"):
        kronecker(temperature=0)
    with pytest.raises(CalibrationError, match="there are none"):
        kronecker().estimate(deep_net(), None)
    with pytest.raises(CalibrationError, match="no targets"):
        kronecker().estimate(deep_net(), deep_data())


def test_the_unit_is_that_of_the_output():
    options = {"fold_norms": True, "include": (), "exclude": ()}
    for output, factor, unit in (("logits", 0.5, "nats of KL"), ("values", 1.0, "squared output")):
        ready = prepare(deep_net(), deep_data(), output, options, Settings(Feedback(), kronecker()))
        assert {(form.factor, form.unit) for form in ready.forms.values()} == {(factor, unit)}
        assert isinstance(ready.forms["1.bias"], DiagonalForm)


# Few positions


def test_a_factor_of_few_positions_is_raised_for_what_they_do_not_show():
    a = np.array([[[4.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]])
    form = KroneckerForm(np.ones(2), a, "", 10.0)
    raised = form.shrunk()
    mean = 2.0
    np.testing.assert_allclose(np.diag(raised.columns[0]), [4 + 0.09 * mean, 2 + 0.09 * mean, 0.05 * mean])
    assert raised.columns[0, 0, 1] == 2.0 and np.isinf(raised.positions)
    assert (raised.shrunk().columns == raised.columns).all()  # it is taken as exact
    exact = KroneckerForm(np.ones(2), a)
    assert (exact.shrunk().columns == a).all()


def test_forms_know_over_how_many_positions_they_are():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 4 * 4, OUT))
    forms = kronecker().estimate(model, [torch.randn(5, 2, 6, 6)], "values")
    assert (forms["0.weight"].positions, forms["2.weight"].positions) == (5 * 16, 5)
    options = {"fold_norms": True, "include": (), "exclude": ()}
    ready = prepare(model, [torch.randn(5, 2, 6, 6)], "values", options, Settings(Feedback(), kronecker()))
    assert np.isinf(ready.forms["0.weight"].positions)


def test_the_error_of_prices_is_a_mean_over_the_weights_of_products():
    some, others = random_form(), DiagonalForm(np.ones((2, 2), np.float32))
    assert [factored.price_error(forms) for forms in ([], [others], [some, others])] == [None, None, None]
    halves = [replace(some.rows_of(slice(2)), standard_error=each) for each in (0.0, 0.06)]
    assert factored.price_error([others, *halves]) == pytest.approx(0.06 / 2**0.5)
    whole = replace(some, standard_error=0.06)
    assert factored.price_error([whole, halves[0]]) == pytest.approx(0.06 * (2 / 3) ** 0.5)
