import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from waterfill.errors import UnsupportedModelError, WaterfillError
from waterfill.models import assemble, clone, fill, folded_norms, inventory
from waterfill.records import Coded, Constant, Exact, Layout, NormMean, NormVariance, Tied


def assembled(model, **options):
    found = inventory(model, **options)
    matrices = {name: weight.matrix for name, weight in found.weights.items()}
    return dict(assemble(found.entries, matrices, found.exact))


def used_norm(norm, dtype=torch.float32):
    """A batch norm with the statistics of a trained network."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in norm.named_parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator)
        assert name in ("weight", "bias")
    norm.running_mean = torch.randn(norm.num_features, generator=generator)
    norm.running_var = torch.rand(norm.num_features, generator=generator) + 0.1
    return norm.to(dtype)


class TiedText(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.cube = nn.Parameter(torch.randn(2, 3, 4))

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0]) * self.gain + self.cube.sum()


IMAGE_LAYERS = {
    "conv": lambda: nn.Conv2d(4, 6, 3),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, (2, 3)),
    "transposed grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "norm": lambda: used_norm(nn.BatchNorm2d(4)),
    "bare norm": lambda: used_norm(nn.BatchNorm2d(4, affine=False)),
    "wide eps norm": lambda: used_norm(nn.BatchNorm2d(4, eps=1e-2)),
    "norm without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", IMAGE_LAYERS)
@pytest.mark.parametrize("fold", [True, False])
def test_a_model_comes_back_as_the_same_function(layer, dtype, fold):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), IMAGE_LAYERS[layer]()).to(dtype).eval()
    twin = clone(model)
    state = assembled(model, fold_norms=fold)
    assert [(n, t.shape, t.dtype) for n, t in state.items()] == [
        (n, t.shape, t.dtype) for n, t in model.state_dict().items()
    ]
    fill(twin, state)
    x = torch.randn(2, 3, 7, 7, dtype=dtype)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(twin(x), model(x), rtol=tolerance, atol=tolerance)


@st.composite
def norms(draw):
    channels = draw(st.integers(1, 5))
    norm = nn.BatchNorm1d(channels, eps=draw(st.sampled_from([0.0, 1e-5, 1e-3, 0.1])), affine=draw(st.booleans()))
    exponent = draw(st.integers(-12, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    norm.running_var = (torch.rand(channels, generator=generator) + 0.5) * 10.0**exponent
    norm.running_mean = torch.randn(channels, generator=generator) * 10.0 ** (exponent / 2)
    for parameter in norm.parameters():
        parameter.data = torch.randn(channels, generator=generator)
    return norm.eval()


@given(norms())
@settings(max_examples=100, deadline=None)
def test_a_folded_norm_is_the_same_function_at_any_variance(norm):
    deviation = (norm.running_var + norm.eps).sqrt()
    x = norm.running_mean + deviation * torch.linspace(-3, 3, 7)[:, None]
    twin = clone(norm)
    fill(twin, assembled(norm))
    torch.testing.assert_close(twin(x), norm(x), rtol=1e-4, atol=1e-4)
    if norm.affine:
        assert (twin.running_mean == 0).all()
        torch.testing.assert_close(twin.weight.detach(), norm.weight.detach() / deviation, rtol=1e-5, atol=0)


def test_texts_ties_and_bare_parameters():
    torch.manual_seed(0)
    model = TiedText().eval()
    found = inventory(model)
    origins = {entry.name: entry.origin for entry in found.entries}
    assert list(origins) == list(model.state_dict())
    assert origins["embedding.weight"] == Coded(Layout((7, 4), transposed=True))
    assert origins["head.weight"] == Tied("embedding.weight")
    assert origins["cube"] == Coded(Layout((2, 3, 4)))
    assert found.weights["lstm.weight_ih_l0"].matrix.shape == (16, 4)
    assert found.weights["embedding.weight"].matrix.shape == (4, 7)
    assert found.weights["gain"].matrix.shape == (1, 1)
    assert found.weights["gain"].is_vector
    assert found.floating_values == sum(p.numel() for p in model.parameters())
    state = assembled(model)
    assert state["head.weight"] is state["embedding.weight"]
    twin = TiedText().eval()
    fill(twin, state)
    tokens = torch.randint(0, 7, (2, 5))
    torch.testing.assert_close(twin(tokens), model(tokens))
    assert twin.head.weight is twin.embedding.weight


def test_the_same_module_twice_is_stored_once():
    norm = used_norm(nn.BatchNorm1d(3))
    model = nn.Sequential(norm, nn.Linear(3, 3), norm).eval()
    origins = {entry.name: entry.origin for entry in inventory(model).entries}
    assert origins["2.weight"] == Tied("0.weight")
    assert origins["2.num_batches_tracked"] == Tied("0.num_batches_tracked")
    assert origins["0.running_var"] == Constant(1 - 1e-5)
    twin = clone(model)
    fill(twin, assembled(model))
    x = torch.randn(4, 3)
    torch.testing.assert_close(twin(x), model(x))


def test_views_of_one_memory_are_tensors_of_their_own():
    model = nn.Module()
    memory = torch.randn(4, 4)
    model.register_buffer("whole", memory)
    model.register_buffer("turned", memory.t())
    model.register_buffer("row", memory[1])
    model.register_buffer("again", memory[1])
    origins = {entry.name: entry.origin for entry in inventory(model).entries}
    assert [type(origin) for origin in origins.values()] == [Exact, Exact, Exact, Tied]
    assert torch.equal(inventory(model).exact["turned"], memory.t())


def naive_matrix(values, groups):
    """Rows and columns of a transposed convolution, one element at a time."""
    inputs, outputs, *_ = values.shape
    flat = values.reshape(inputs, outputs, -1)
    channels, taps = inputs // groups, flat.shape[2]
    matrix = np.zeros((outputs * groups, channels * taps), np.float32)
    for i in range(inputs):
        for o in range(outputs):
            for tap in range(taps):
                group = i // channels
                matrix[group * outputs + o, (i % channels) * taps + tap] = flat[i, o, tap]
    return matrix


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([(), (2,), (3, 1), (1, 2, 2)]))
@settings(deadline=None)
def test_transposed_groups_are_read_like_the_naive_twin(groups, channels, outputs, taps):
    shape = (groups * channels, outputs, *taps)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    layout = Layout(shape, transposed=True, groups=groups)
    matrix = layout.to_matrix(values)
    np.testing.assert_array_equal(matrix, naive_matrix(values, groups))
    np.testing.assert_array_equal(layout.from_matrix(matrix), values)


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_of_a_transposed_convolution_are_its_outputs(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    weight = inventory(layer).weights["weight"]
    rows = torch.from_numpy(weight.matrix.copy())
    rows[5] = 0
    fill(layer, {"weight": torch.from_numpy(weight.layout.from_matrix(rows.numpy()))})
    y = layer(torch.randn(2, 4, 5, 5))
    assert (y[:, 5] == 0).all()
    assert (y[:, :5] != 0).all()


def test_subclasses_of_known_layers_are_known():
    class Upsample(nn.ConvTranspose1d):
        pass

    class Norm(nn.BatchNorm1d):
        pass

    model = nn.Sequential(Upsample(4, 6, 2, groups=2), used_norm(Norm(6)), nn.EmbeddingBag(5, 2))
    origins = {entry.name: entry.origin for entry in inventory(model).entries}
    assert origins["0.weight"] == Coded(Layout((4, 3, 2), transposed=True, groups=2))
    assert origins["1.running_mean"] == Constant(0.0)
    assert origins["2.weight"] == Coded(Layout((5, 2), transposed=True))


def test_what_is_stored_exactly_and_why():
    model = nn.Module()
    tensors = {
        "integers": torch.arange(3),
        "flags": torch.tensor([True, False]),
        "waves": torch.zeros(2, dtype=torch.complex64),
        "bytes": torch.zeros(2).to(torch.float8_e4m3fn),
        "nothing": torch.zeros(0, 3),
        "nothing_else": torch.zeros(0, 3),
        "huge": torch.tensor([1.0, 1e300], dtype=torch.float64),
        "table": torch.tensor([1.0, 2.0]),
    }
    for name, tensor in tensors.items():
        model.register_buffer(name, tensor)
    model.wide = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    found = inventory(model)
    reasons = {e.name: e.origin.reason for e in found.entries if isinstance(e.origin, Exact)}
    assert reasons == {
        "integers": "integer tensor",
        "flags": "boolean tensor",
        "waves": "complex tensor",
        "bytes": "8-bit float tensor",
        "nothing": "no elements",
        "nothing_else": "no elements",
        "huge": "values up to 1e+300, beyond what steps reach",
        "table": "a buffer, stored exactly; include='table' quantizes it",
    }
    assert list(found.weights) == ["wide"]
    state = assembled(model)
    assert all(state[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert torch.equal(state["huge"], tensors["huge"])


def test_an_inventory_shares_no_memory_with_the_model():
    model = nn.Linear(2, 2)
    found = inventory(model, exclude=["bias"])
    before = found.weights["weight"].matrix.copy(), found.exact["bias"].clone()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    np.testing.assert_array_equal(found.weights["weight"].matrix, before[0])
    assert torch.equal(found.exact["bias"], before[1])


def test_non_contiguous_and_parametrized_weights():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    assert "parametrizations.weight.original0" in inventory(layer).weights
    turned = nn.Linear(3, 2)
    turned.weight = nn.Parameter(torch.randn(3, 2).t())
    np.testing.assert_array_equal(inventory(turned).weights["weight"].matrix, turned.weight.detach().numpy())


# Patterns -------------------------------------------------------------------------------------------------------------


def reasons(model, **options):
    return {e.name: e.origin.reason for e in inventory(model, **options).entries if isinstance(e.origin, Exact)}


def test_patterns_choose_what_is_quantized():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert reasons(model, exclude=["0.*"]) == dict.fromkeys(["0.weight", "0.bias"], "excluded by the pattern '0.*'")
    assert list(reasons(model, include=["0.*"])) == ["1.weight", "1.bias"]
    assert list(reasons(model, include=["0.*"], exclude=["*.bias"])) == ["0.bias", "1.weight", "1.bias"]
    assert list(reasons(model, exclude="0.*")) == ["0.weight", "0.bias"]


def test_a_tied_tensor_is_meant_by_any_of_its_names():
    assert list(reasons(TiedText(), exclude=["head.weight"])) == ["embedding.weight"]
    assert "embedding.weight" not in reasons(TiedText(), include=["head.*"])


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(option):
    with pytest.raises(WaterfillError, match=rf"'layr\*' of {option} matches no tensor.*'0.weight', '0.bias'.*correct"):
        inventory(nn.Sequential(nn.Linear(2, 2)), **{option: ["layr*"]})


# Norms ----------------------------------------------------------------------------------------------------------------


def test_origins_of_folded_norms():
    model = nn.Sequential(used_norm(nn.BatchNorm1d(3)), used_norm(nn.BatchNorm1d(3, affine=False, eps=1e-3)))
    found = inventory(model)
    origins = {entry.name: entry.origin for entry in found.entries}
    assert origins == {
        "0.weight": Coded(Layout((3,))),
        "0.bias": Coded(Layout((3,))),
        "0.running_mean": Constant(0.0),
        "0.running_var": Constant(1 - 1e-5),
        "0.num_batches_tracked": Exact("integer tensor"),
        "1.running_mean": NormMean(Layout((3,)), "1.running_var"),
        "1.running_var": NormVariance(Layout((3,)), 1e-3),
        "1.num_batches_tracked": Exact("integer tensor"),
    }
    assert list(found.weights) == ["0.weight", "0.bias", "1.running_mean", "1.running_var"]
    scale = 1 / (model[1].running_var.double() + 1e-3).sqrt()
    np.testing.assert_allclose(found.weights["1.running_var"].matrix[0], scale, rtol=1e-6)
    np.testing.assert_allclose(found.weights["1.running_mean"].matrix[0], -model[1].running_mean * scale, rtol=1e-6)
    assert [norm.names for norm in folded_norms(model)] == [
        ("0.weight", "0.bias", "0.running_mean", "0.running_var"),
        ("1.running_mean", "1.running_var"),
    ]


def test_a_norm_can_be_the_model_itself():
    assert [norm.scale_name for norm in folded_norms(used_norm(nn.BatchNorm1d(2)))] == ["weight"]


def is_folded(model, **options):
    return any(isinstance(e.origin, Constant | NormVariance) for e in inventory(model, **options).entries)


def test_norms_that_are_not_folded():
    assert is_folded(used_norm(nn.BatchNorm1d(2)))
    assert not is_folded(used_norm(nn.BatchNorm1d(2)), fold_norms=False)
    assert not is_folded(used_norm(nn.BatchNorm1d(2)), exclude=["bias"])
    assert not is_folded(used_norm(nn.BatchNorm1d(2)), include=["weight"])
    assert not is_folded(nn.BatchNorm1d(2, track_running_stats=False))
    assert not is_folded(nn.BatchNorm1d(0))


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_without_positive_variance_is_not_folded(affine):
    norm = used_norm(nn.BatchNorm1d(2, affine=affine))
    norm.running_var[1] = -1
    assert not is_folded(norm)


def test_a_norm_whose_scale_overflows_its_type_is_not_folded():
    norm = used_norm(nn.BatchNorm1d(2, eps=0.0))
    norm.running_var[1] = 1e-12
    assert is_folded(norm)
    norm.weight.data = norm.weight.data.half()
    assert not is_folded(norm)


def test_norms_that_share_a_part_are_not_folded():
    model = nn.Sequential(*(used_norm(nn.BatchNorm1d(2)) for _ in range(2)))
    model[1].weight = model[0].weight
    assert not is_folded(model)
    assert {e.name: e.origin for e in inventory(model).entries}["1.weight"] == Tied("0.weight")


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_that_are_not_finite(value, dtype):
    model = nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        model.weight[0, 2] = model.weight[1, 1] = value
    with pytest.raises(WaterfillError, match=r"'weight' \[2, 3\] has 2 values .* index \[0, 2\].*exclude 'weight'"):
        inventory(model)
    assert "weight" in inventory(model, exclude=["weight"]).exact


def test_values_that_are_not_finite_in_a_norm():
    norm = used_norm(nn.BatchNorm1d(2))
    norm.running_var[0] = float("nan")
    with pytest.raises(WaterfillError, match="'running_var'"):
        inventory(norm)


def test_tensors_without_data():
    with pytest.raises(UnsupportedModelError, match=r"'weight' \[2, 3\] has no data.*Load the checkpoint"):
        inventory(nn.Linear(3, 2, device="meta"))
    with pytest.raises(UnsupportedModelError, match=r"'0.weight' is not initialised.*Run the model on one batch"):
        inventory(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(UnsupportedModelError, match=r"'0.weight' is not initialised"):
        fill(nn.Sequential(nn.LazyLinear(2)), {})


def test_extra_state_is_refused():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            raise AssertionError(state)

    with pytest.raises(UnsupportedModelError, match=r"'0\._extra_state' is a dict.*expected only tensors"):
        inventory(nn.Sequential(Counting(2, 2)))


def test_sparse_tensors_are_refused():
    model = nn.Module()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(UnsupportedModelError, match=r"'sparse' has the layout torch.sparse_coo.*to_dense"):
        inventory(model)


def test_types_that_no_file_holds_are_refused():
    model = nn.Module()
    model.register_buffer("quantized", torch.zeros(3, dtype=torch.bits8))
    with pytest.raises(UnsupportedModelError, match="'quantized' has the type bits8, which no file can hold"):
        inventory(model)


# Filling and cloning --------------------------------------------------------------------------------------------------


def test_fill_keeps_memory_ties_and_types():
    model = TiedText()
    model.gain.data = model.gain.data.half()
    pointers = [p.data_ptr() for p in model.parameters()]
    values = {name: torch.full(t.shape, 0.5, dtype=torch.float64) for name, t in model.state_dict().items()}
    fill(model, values)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(bool((p == 0.5).all()) for p in model.parameters())
    assert model.head.weight is model.embedding.weight
    assert model.gain.dtype == torch.float16
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_fill_names_every_problem_and_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    before = copy.deepcopy(model.state_dict())
    values = {name: torch.zeros_like(t) for name, t in before.items()}
    del values["2.bias"]
    values |= {"0.weight": torch.zeros(2, 3), "1.weight": torch.zeros(2, dtype=torch.int64)}
    values |= {f"extra{i}": torch.zeros(1) for i in range(7)}
    with pytest.raises(WaterfillError) as caught:
        fill(model, values)
    text = str(caught.value)
    assert "1 missing ('2.bias')" in text
    assert "7 unexpected ('extra0', 'extra1', 'extra2', 'extra3', 'extra4' and 2 more)" in text
    assert "1 of another shape ('0.weight is [2, 3], not [2, 2]')" in text
    assert "1 of another kind of number ('1.weight is int64, not float32')" in text
    assert "Nothing was changed" in text
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_fill_accepts_missing_names_only_by_pattern():
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].num_batches_tracked.fill_(5)
    values = {n: torch.ones_like(t) for n, t in model.state_dict().items() if not n.endswith("tracked")}
    with pytest.raises(WaterfillError, match="1 missing"):
        fill(model, values)
    fill(model, values, missing_ok=["*num_batches_tracked"])
    assert model[0].num_batches_tracked == 5
    assert (model[0].bias == 1).all()


def test_fill_refuses_expanded_tensors():
    model = nn.Module()
    model.register_buffer("row", torch.zeros(1).expand(4))
    with pytest.raises(WaterfillError, match=r"share memory \('row'\)"):
        fill(model, {"row": torch.ones(4)})
    fill(model, {"row": torch.zeros(4)})
    assert (model.row == 0).all()


def test_clone_is_independent():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[1].eval()
    model(torch.randn(3, 2)).sum().backward()
    twin = clone(model)
    assert [m.training for m in twin.modules()] == [m.training for m in model.modules()]
    fill(twin, {name: torch.zeros_like(t) for name, t in model.state_dict().items()})
    assert (model[0].weight != 0).any()
    assert model[0].weight.grad is not None
    assert twin[0].weight.grad is None


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_clone_copies_computed_attributes():
    model = nn.utils.weight_norm(nn.Linear(3, 2))
    x = torch.randn(4, 3)
    expected = model(x)
    torch.testing.assert_close(clone(model)(x), expected)


def test_clone_says_what_cannot_be_copied():
    model = nn.Linear(2, 2)
    model.handle = (i for i in range(3))
    with pytest.raises(UnsupportedModelError, match=r"Linear cannot be copied \(.*generator.*Take what cannot"):
        clone(model)
