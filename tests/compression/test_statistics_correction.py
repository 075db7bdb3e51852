import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from waterfill.compression import activation_moments as moments
from waterfill.compression import joined_samples as calibration_samples
from waterfill.compression.statistics_correction import correct_statistics
from waterfill.errors import CalibrationError, WaterfillError
from waterfill.models import assemble, clone, fill, inventory

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def used_norms(model):
    """Give all norms statistics as after training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean = torch.randn(module.num_features) / 2
            module.running_var = torch.rand(module.num_features) + 0.5
            for parameter in module.parameters():
                parameter.data = torch.randn(module.num_features)
    return model


def two_layers(affine=True):
    return used_norms(
        nn.Sequential(
            nn.Conv2d(3, 5, 3),
            nn.BatchNorm2d(5, affine=affine),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3, bias=False),
            nn.BatchNorm2d(4, affine=affine, eps=1e-3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 16, 3),
        )
    )


def corrupted(model, amount=0.1, fold=False):
    """A copy with noise on its matrices and vectors, with folded norms or not."""
    twin = clone(model)
    if fold:
        found = inventory(model)
        matrices = {n: w.matrix * (1 + 0.02 * torch.randn(w.matrix.shape).numpy()) for n, w in found.weights.items()}
        fill(twin, dict(assemble(found.entries, matrices, found.exact)))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += amount * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0
    return twin


def outputs(model, layer, batches):
    """What a layer gives over all batches in evaluation mode, float64."""
    seen = []
    twin = copy.deepcopy(model).eval().double()
    twin.get_submodule(layer).register_forward_hook(lambda _m, _a, output: seen.append(output.detach()))
    for x, _ in batches:
        twin(x.double())
    return torch.cat(seen)


def channel_moments(values, axis=1):
    rows = values.movedim(axis, -1).flatten(0, -2)
    return rows.mean(0), rows.var(0, correction=0)


def some_batches(count=3, size=8, shape=(3, 8, 8)):
    return [(torch.randn(size, *shape), torch.zeros(size, dtype=torch.int64)) for _ in range(count)]


# Against the obvious --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_norm_outputs_get_their_means_and_variances_back(affine, fold):
    model, batches = two_layers(affine), some_batches()
    twin = corrupted(model, fold=fold)
    correct_statistics(model, twin, batches)
    for layer in ("1", "4"):
        wanted = channel_moments(outputs(model, layer, batches))
        found = channel_moments(outputs(twin, layer, batches))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for layer, axis in (("0", 1), ("7", -1)):
        wanted = channel_moments(outputs(model, layer, batches), axis)[0]
        torch.testing.assert_close(
            channel_moments(outputs(twin, layer, batches), axis)[0], wanted, rtol=1e-4, atol=1e-5
        )


def slow_correction(model, twin, x):
    """Layer after layer of a Sequential, each time from the start, on copies in float64."""
    model, corrected = copy.deepcopy(model).eval().double(), copy.deepcopy(twin).eval().double()
    for index, layer in enumerate(corrected):
        before, wanted = corrected[:index](x.double()), model[:index](x.double())
        if isinstance(layer, nn.BatchNorm2d):
            m, v = channel_moments(wanted)
            m2, v2 = channel_moments(before)
            norm = model[index]
            s = norm.weight / (norm.running_var + norm.eps).sqrt()
            t = norm.bias - norm.running_mean * s
            s2 = s * (v / v2).clamp(0.25, 4).sqrt()
            layer.running_mean = torch.zeros_like(m)
            layer.running_var = torch.ones_like(v) - layer.eps
            layer.weight.data, layer.bias.data = s2, t + s * m - s2 * m2
        elif isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            axes = (0, 2, 3) if isinstance(layer, nn.Conv2d) else (0,)
            layer.bias.data += model[index](wanted).mean(axes) - layer(before).mean(axes)
    return corrected


@given(st.sampled_from([0.01, 0.3, 2.0]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_the_whole_network_is_the_slow_twin(amount, fold):
    model, batches = two_layers(), some_batches()
    twin = corrupted(model, amount, fold)
    with torch.no_grad():
        expected = slow_correction(model, twin, torch.cat([x for x, _ in batches]))
    correct_statistics(model, twin, batches)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(twin.eval()(x), expected(x.double()).float(), rtol=1e-3, atol=1e-4)


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (6, 4), -1),
    "linear over positions": (lambda: nn.Linear(4, 3), (6, 5, 4), -1),
    "conv1d": (lambda: nn.Conv1d(4, 6, 2, groups=2), (6, 4, 5), 1),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (4, 2, 3, 3, 3), 1),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 4, 3, 3), 1),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_biases_of_every_layer(kind):
    build, shape, axis = LAYERS[kind]
    model, batches = nn.Sequential(build()), [(torch.randn(shape) + 1, None)]
    twin = corrupted(model, 0.3)
    correct_statistics(model, twin, batches)
    wanted = channel_moments(outputs(model, "0", batches), axis)[0]
    torch.testing.assert_close(channel_moments(outputs(twin, "0", batches), axis)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype):
    model = two_layers().to(dtype)
    batches = [(x.to(dtype), t) for x, t in some_batches()]
    twin = corrupted(model, 0.2)
    correct_statistics(model, twin, batches)
    assert all(p.dtype == dtype and p.isfinite().all() for p in twin.parameters())
    wanted, found = (channel_moments(outputs(m, "4", batches)) for m in (model, twin))
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.05)


def test_the_same_weights_stay_the_same_function():
    model, batches = two_layers(), some_batches()
    twin = clone(model)
    correct_statistics(model, twin, batches)
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)


# Repeated calls -------------------------------------------------------------------------------------------------------


class Loop(nn.Module):
    """A recurrent cell with a norm between two layers that are called once."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.cell = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        h = first = self.first(x)
        for _ in range(3):
            h = torch.tanh(self.norm(self.cell(h))) + first
        return self.last(h)


def test_layers_called_several_times_are_corrected_over_all_calls():
    model, batches = used_norms(Loop()), some_batches(shape=(4,), size=64)
    twin = corrupted(model, 0.05)
    before = [channel_moments(outputs(twin, layer, batches))[0] for layer in ("cell", "norm")]
    correct_statistics(model, twin, batches)
    for layer, mean in zip(("cell", "norm"), before, strict=True):
        wanted = channel_moments(outputs(model, layer, batches))[0]
        after = channel_moments(outputs(twin, layer, batches))[0]
        assert (after - wanted).norm() < 0.2 * (mean - wanted).norm()
    for layer in ("first", "last"):
        mean, expected = (channel_moments(outputs(m, layer, batches))[0] for m in (twin, model))
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)


class Pair(nn.Module):
    """A deep network that is called twice in a pass."""

    def __init__(self):
        super().__init__()
        layers = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(8)]
        self.trunk = nn.Sequential(*layers)

    def forward(self, x):
        return self.trunk(x) - self.trunk(x.flip(-1))


def test_a_deep_network_that_is_called_twice_is_not_corrected_twice():
    model, batches = used_norms(Pair()), some_batches(shape=(6,), size=64)
    twin = corrupted(model, 0.05)
    before = channel_moments(outputs(twin, "trunk.7.1", batches))[0]
    correct_statistics(model, twin, batches)
    wanted = channel_moments(outputs(model, "trunk.7.1", batches))[0]
    after = channel_moments(outputs(twin, "trunk.7.1", batches))[0]
    assert (after - wanted).norm() < 0.1 * (before - wanted).norm()


def test_moments_merge_in_any_order():
    x = torch.randn(7, 3, 5) * 1e-3 + 100
    whole = moments.measure(x.double(), 1)
    a, b, c = (moments.measure(part.double(), 1) for part in x.split([1, 2, 4]))
    for merged in (moments.merge(moments.merge(a, b), c), moments.merge(c, moments.merge(b, a))):
        assert merged.count == whole.count
        torch.testing.assert_close(merged.mean, whole.mean)
        torch.testing.assert_close(merged.variance, whole.variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.variance, x.double().var((0, 2), correction=0), rtol=1e-8, atol=0)


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4])
@pytest.mark.parametrize(
    ("shape", "axis"), [((40, 8, 70, 60), 1), ((9, 30, 50), -1), ((7000, 3), 1), ((6, 5), 0), ((5,), 0)]
)
def test_moments_are_those_in_double_precision(shape, axis, mean):
    x = torch.randn(shape) + mean
    found = moments.measure(x, axis)
    places = [each for each in range(x.ndim) if each != axis % x.ndim]
    variance, expected = torch.var_mean(x.double(), places, correction=0) if places else (torch.zeros(5), x.double())
    assert found.count == x.numel() // x.shape[axis]
    torch.testing.assert_close(found.mean, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance, variance.double(), rtol=3e-6, atol=1e-9)


def test_moments_of_huge_values_are_finite():
    found = moments.measure(torch.randn(30, 2) * 1e30, 1)
    assert found.variance.isfinite().all()
    assert (found.variance > 1e59).all()


# Guards ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("which", ["original", "compressed", "both"])
def test_dead_channels_keep_their_scale_and_get_their_mean(which, affine):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=affine))
    used_norms(model)
    twin = clone(model)
    with torch.no_grad():
        for dying in [model] * (which != "compressed") + [twin] * (which != "original"):
            dying[0].weight[2] = 0
    batches = some_batches()
    scale = 1 / (model[1].running_var + model[1].eps).sqrt() * (model[1].weight if affine else 1)
    correct_statistics(model, twin, batches)
    found = 1 / (twin[1].running_var + twin[1].eps).sqrt() * (twin[1].weight if affine else 1)
    torch.testing.assert_close(found[2], scale[2])
    wanted = channel_moments(outputs(model, "1", batches))[0]
    torch.testing.assert_close(channel_moments(outputs(twin, "1", batches))[0], wanted, rtol=1e-4, atol=1e-5)


def test_the_ratio_of_variances_is_clamped():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), used_norms(nn.BatchNorm2d(4)))
    twin = clone(model)
    with torch.no_grad():
        twin[0].weight.mul_(0.01)
    correct_statistics(model, twin, some_batches())
    torch.testing.assert_close(twin[1].weight, 2 * model[1].weight)


def test_a_variance_never_becomes_negative():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False, eps=0.5))
    model[1].running_var.zero_()
    twin, batches = clone(model), some_batches()
    with torch.no_grad():
        twin[0].weight.mul_(0.1)
    correct_statistics(model, twin, batches)
    assert (twin[1].running_var == 0).all()
    wanted = channel_moments(outputs(model, "1", batches))[0]
    torch.testing.assert_close(channel_moments(outputs(twin, "1", batches))[0], wanted, rtol=1e-4, atol=1e-5)


def test_calls_that_the_original_did_not_make_are_left_alone():
    class Often(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.times = nn.Linear(3, 3), 1

        def forward(self, x):
            for _ in range(self.times):
                x = self.layer(x)
            return x

    model, x = Often(), torch.randn(5, 3)
    once, often = corrupted(model), clone(model)
    fill(often, once.state_dict())
    often.times = 3
    for twin in (once, often):
        correct_statistics(model, twin, [x])
    assert torch.equal(once.layer.bias, often.layer.bias)


@given(st.integers(0, 50), st.sampled_from([0.0, 1e-30, 1.0, 1e30]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_nothing_becomes_nan(seed, factor, affine):
    torch.manual_seed(seed)
    model, batches = two_layers(affine), some_batches(1, 2)
    twin = clone(model)
    with torch.no_grad():
        twin[0].weight.mul_(factor)
        twin[3].weight.mul_(factor if seed % 2 else 1)
    correct_statistics(model, twin, batches)
    assert all(t.isfinite().all() for t in twin.state_dict().values())


def test_one_value_a_channel_changes_means_only():
    model = used_norms(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)))
    twin = corrupted(model, 0.2)
    batches = [(torch.randn(1, 3), None)]
    correct_statistics(model, twin, batches)
    torch.testing.assert_close(outputs(twin, "1", batches), outputs(model, "1", batches), rtol=1e-4, atol=1e-5)


# What is left alone ---------------------------------------------------------------------------------------------------


def test_mode_hooks_and_the_original_stay_as_they_were():
    model, batches = two_layers(), some_batches()
    model.train()
    model[1].eval()
    twin = corrupted(model)
    before = copy.deepcopy(model.state_dict())
    correct_statistics(model, twin, batches)
    for network in (model, twin):
        assert [m.training for m in network.modules()] == [True, True, False, *[True] * 6]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_hooks_are_removed_when_the_model_fails():
    class Failing(nn.Sequential):
        calls = 0

        def forward(self, x):
            Failing.calls += 1
            y = super().forward(x)
            if Failing.calls == 3:
                raise KeyboardInterrupt
            return y

    model = Failing(nn.Linear(2, 2))
    twin = clone(model)
    with pytest.raises(KeyboardInterrupt):
        correct_statistics(model, twin, [torch.randn(3, 2)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (model, twin) for m in n.modules())


def test_shared_and_parametrized_layers_are_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.bias = self.a.bias
            self.c = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
            self.lstm = nn.LSTM(3, 3)

        def forward(self, x):
            return self.lstm(self.c(self.b(self.a(x))))[0]

    model = Shared()
    twin = corrupted(model)
    before = copy.deepcopy(twin.state_dict())
    correct_statistics(model, twin, [torch.randn(5, 3)])
    assert all(torch.equal(before[name], t) for name, t in twin.state_dict().items())


def test_names_to_keep():
    model, batches = two_layers(), some_batches()
    twin = corrupted(model)
    kept = ["0.bias", "1.bias", "7.bias"]
    before = copy.deepcopy(twin.state_dict())
    correct_statistics(model, twin, batches, keep=kept)
    same = {name for name, t in twin.state_dict().items() if torch.equal(before[name], t)}
    assert {*kept, "1.weight"} <= same
    assert "4.weight" not in same
    with pytest.raises(WaterfillError, match=r"keep names '8.bias'; expected names of the state dict"):
        correct_statistics(model, twin, batches, keep=["8.bias"])


def test_a_model_without_norms_and_biases_is_not_run():
    model = nn.Linear(3, 2, bias=False)
    model.register_forward_hook(lambda *_: pytest.fail("it ran"))
    correct_statistics(model, clone(model), [torch.randn(4, 3)])


def test_functional_norms_are_left_alone():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = used_norms(nn.BatchNorm1d(3))

        def forward(self, x):
            norm = self.norm
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    model = Functional()
    twin = corrupted(model)
    before = copy.deepcopy(twin.state_dict())
    correct_statistics(model, twin, [torch.randn(5, 3)])
    assert all(torch.equal(before[name], t) for name, t in twin.state_dict().items())


# Data -----------------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, gain):
        return self.layer(x) * gain


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_batches_of_several_inputs_are_joined(kind):
    model = Named()
    twin = corrupted(model)
    pairs = [(torch.randn(n, 3), torch.rand(n, 1)) for n in (4, 6)]
    data = [({"x": x, "gain": g} if kind == "dict" else (x, g), None) for x, g in pairs]
    correct_statistics(model, twin, data)
    x = torch.cat([x for x, _ in pairs])
    torch.testing.assert_close(twin.layer(x).mean(0), model.layer(x).mean(0))


def used_samples(model, data):
    """How many samples flow through the compressed model."""
    seen = []
    twin = clone(model)
    twin.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    correct_statistics(model, twin, data)
    return seen


def test_batches_that_cannot_be_joined_are_left_out():
    model = nn.Conv1d(2, 3, 2)
    same, other = torch.randn(4, 2, 5), torch.randn(4, 2, 6)
    assert used_samples(model, [same, same, other, same]) == [8]


def test_the_first_batch_is_used_where_they_fail_together():
    class Four(nn.Linear):
        def forward(self, x):
            if len(x) > 4:
                raise ValueError("at most four samples")
            return super().forward(x)

    assert used_samples(Four(3, 2), [torch.randn(4, 3)] * 3) == [4]


@pytest.mark.parametrize("samples", [1, 6, 30])
def test_as_many_samples_as_fit_into_memory(monkeypatch, samples):
    bytes_per_sample = calibration_samples._LIVE_LAYERS * 4 * (3 + 2)
    monkeypatch.setattr(calibration_samples, "BUDGET_BYTES", samples * bytes_per_sample)
    seen = used_samples(nn.Linear(3, 2), [torch.randn(4, 3)] * 5)
    assert seen == [min(samples, 20)]


def test_data_that_do_not_fit():
    model = nn.Linear(3, 2)
    with pytest.raises(CalibrationError, match="does not fit the model"):
        correct_statistics(model, clone(model), [torch.randn(4, 5)])
    with pytest.raises(CalibrationError, match="no batches"):
        correct_statistics(model, clone(model), [])


def test_a_compressed_model_of_another_kind():
    with pytest.raises(CalibrationError, match=r"Layer '0' is a Linear .* but not in the original.*clone and fill"):
        correct_statistics(nn.Sequential(nn.ReLU()), nn.Sequential(nn.Linear(2, 2)), [torch.randn(3, 2)])


def test_progress_counts_every_layer():
    model, calls = used_norms(Loop()), []
    twin = clone(model)
    correct_statistics(model, twin, [torch.randn(8, 4)], progress=lambda *call: calls.append(call))
    assert calls == [("statistics", done, 6) for done in range(1, 7)]


def test_transformer_layers_are_corrected():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    twin = corrupted(model)
    x = torch.randn(4, 5, 8)
    correct_statistics(model, twin, [x])
    batches = [(x, None)]
    for layer in ("linear1", "linear2"):
        found, wanted = (channel_moments(outputs(m, layer, batches), -1)[0] for m in (twin, model))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
