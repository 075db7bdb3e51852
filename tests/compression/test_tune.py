"""Tuned vectors bring a model nearer to the original, and nothing else of it changes."""

import copy

import numpy as np
import pytest
import torch
from small_nets import Function, param
from torch import nn

from waterfill.compression.tune import Tune
from waterfill.distortion import KL_DIVERGENCE, SQUARED_ERROR, distortion_for
from waterfill.errors import UsageError
from waterfill.evaluation import evaluate, reference_outputs


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def net():
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(16, 16),
        nn.Linear(16, 5),
    )


VECTORS = ["0.bias", "1.weight", "1.bias", "4.bias", "5.bias"]


def perturbed(model, amount=0.2):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for each in twin.parameters():
            each += amount * each.std() * torch.randn_like(each)
    return twin


BATCHES = {
    "logits": lambda: [(torch.randn(32, 6), torch.randint(0, 5, (32,))) for _ in range(4)],
    "values": lambda: [torch.randn(32, 6) for _ in range(4)],
}


def distance(model, batches, references, output):
    found = evaluate(model, batches, references, output=output)
    return found.kl if output == "logits" else found.squared_error


@pytest.mark.parametrize("output", BATCHES)
def test_the_distance_to_the_original_falls(output):
    model, batches = net(), BATCHES[output]()
    references, twin = reference_outputs(model, batches), perturbed(model)
    before = distance(twin, batches, references, output)
    Tune(passes=10, step=0.01).fit(twin, batches, references, distortion_for(output), VECTORS)
    assert distance(twin, batches, references, output) < 0.8 * before


def slow_tune(model, batches, references, names, passes, step):
    """Plain Adam on the divergence with a cosine, for tensors of one scale each."""
    model, moments, done = copy.deepcopy(model).eval(), {}, 0
    tensors = {name: each for name, each in model.named_parameters() if name in names}
    steps = {name: step * max(1e-3, float(each.detach().square().mean().sqrt())) for name, each in tensors.items()}
    for _ in range(passes):
        for (x, _), reference in zip(batches, references, strict=True):
            log_p, log_q = reference.log_softmax(1), model(x).log_softmax(1)
            loss = (log_p.exp() * (log_p - log_q)).sum(1).mean()
            gradients = torch.autograd.grad(loss, list(tensors.values()))
            for (name, each), g in zip(tensors.items(), gradients, strict=True):
                m, v = moments.get(name, (0, 0))
                m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
                moments[name] = m, v
                ahead = (m / (1 - 0.9 ** (done + 1))) / ((v / (1 - 0.99 ** (done + 1))).sqrt() + 1e-8)
                decay = 0.5 + 0.5 * np.cos(np.pi * done / (passes * len(batches)))
                each.data -= steps[name] * decay * ahead
            done += 1
    return {name: each.detach() for name, each in tensors.items()}


def test_tuning_is_adam_with_relative_steps_that_fall_as_a_cosine():
    model, batches = net(), BATCHES["logits"]()
    references, twin = reference_outputs(model, batches), perturbed(model)
    twin[4].bias.data *= 1e-6
    expected = slow_tune(twin, batches, references, VECTORS, 3, 0.01)
    found = Tune(3, 0.01).fit(twin, batches, references, KL_DIVERGENCE, VECTORS)
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        np.testing.assert_allclose(found[name], each, rtol=1e-3, atol=1e-5)


def snapshot(model):
    return (
        {name: each.clone() for name, each in model.state_dict().items()},
        {name: each.requires_grad for name, each in model.named_parameters()},
        {name: each.grad for name, each in model.named_parameters()},
        [module.training for module in model.modules()],
    )


def test_only_the_vectors_change():
    model, batches = net(), BATCHES["logits"]()
    references, twin = reference_outputs(model, batches), perturbed(model)
    twin.train()
    twin[1].eval()
    for name in ("0.weight", "0.bias", "5.bias"):
        twin.get_parameter(name).requires_grad_(False)
    twin[4].weight.grad, twin[4].bias.grad = torch.ones(16, 16), torch.ones(16)
    twin[0].bias.grad = torch.ones(16)
    state, flags, gradients, modes = snapshot(twin)
    random = torch.get_rng_state()
    with torch.no_grad():  # which is turned on for it
        found = Tune(2, 0.01).fit(twin, batches, references, KL_DIVERGENCE, VECTORS)
        assert not torch.is_grad_enabled()
    after, flags_after, gradients_after, modes_after = snapshot(twin)
    assert (flags_after, modes_after) == (flags, modes) and torch.equal(random, torch.get_rng_state())
    assert all(gradients_after[name] is gradients[name] for name in gradients)
    assert all(each is None or bool((each == 1).all()) for each in gradients.values())
    assert set(found) == set(VECTORS)
    for name, each in after.items():
        assert torch.equal(each, state[name]) == (name not in VECTORS), name
        assert name not in found or np.array_equal(found[name], each.numpy())
    assert all(each.dtype == np.float32 for each in found.values())


def test_an_error_leaves_flags_and_gradients_as_they_were():
    model = net()
    model[0].bias.requires_grad_(False)
    _, flags, _, modes = snapshot(model)
    with pytest.raises(Exception, match="does not fit the model"):
        Tune().fit(model, [torch.randn(3, 7)], [torch.randn(3, 5)], SQUARED_ERROR, VECTORS)
    _, flags_after, gradients, modes_after = snapshot(model)
    assert (flags_after, modes_after) == (flags, modes) and set(gradients.values()) == {None}


def test_parameters_that_are_frozen_are_tuned_and_stay_frozen():
    model, batches = net().requires_grad_(False), BATCHES["values"]()
    references, twin = reference_outputs(model, batches), perturbed(model)
    before = distance(twin, batches, references, "values")
    Tune(10, 0.01).fit(twin, batches, references, SQUARED_ERROR, VECTORS)
    assert distance(twin, batches, references, "values") < 0.8 * before
    assert not any(each.requires_grad for each in twin.parameters())


@pytest.mark.parametrize("names", [[], ["no such"], ["1.running_mean", "1.num_batches_tracked"]])
def test_without_vectors_nothing_is_done(names):
    model, batches = net(), BATCHES["values"]()
    state, flags, _, modes = snapshot(model)
    assert Tune().fit(model, batches, reference_outputs(model, batches), SQUARED_ERROR, names) == {}
    after, flags_after, _, modes_after = snapshot(model)
    assert all(torch.equal(state[name], each) for name, each in after.items())
    assert (flags, modes) == (flags_after, modes_after)


def backbone(self, x):
    with torch.no_grad():
        x = self.a(x)
    return x @ self.b


def test_vectors_that_the_output_has_no_gradient_of_stay():
    model, batches = Function(backbone, a=nn.Linear(6, 4), b=param(4, 3)), [torch.randn(8, 6)] * 2
    references, twin = reference_outputs(model, batches), perturbed(model)
    before = twin.a.bias.detach().clone()
    assert np.array_equal(Tune(2, 0.1).fit(twin, batches, references, SQUARED_ERROR, ["a.bias"])["a.bias"], before)


def test_a_vector_that_is_not_used_stays():
    model, batches = net(), BATCHES["values"]()
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    model.forward = lambda x: nn.Sequential.forward(nn.Sequential(*(model[i] for i in range(6))), x)
    before = model[5].bias.detach().clone().numpy()
    found = Tune(2, 0.1).fit(
        model, batches, [each + 1 for each in reference_outputs(model, batches)], SQUARED_ERROR, ["unused", "5.bias"]
    )
    assert (found["unused"] == 1).all() and (found["5.bias"] > before).all()


def test_classes_that_are_never_there_do_not_hinder():
    model = Function(lambda self, x: self.a(x) + x.new_tensor([0, -torch.inf, 0, 0]), a=nn.Linear(6, 4))
    batches = BATCHES["logits"]()
    batches = [(x, torch.zeros_like(y)) for x, y in batches]
    references, twin = reference_outputs(model, batches), perturbed(model)
    before = distance(twin, batches, references, "logits")
    found = Tune(10, 0.01).fit(twin, batches, references, KL_DIVERGENCE, ["a.bias"])
    assert np.isfinite(found["a.bias"]).all()
    assert distance(twin, batches, references, "logits") < 0.99 * before


def test_labels_are_not_looked_at_but_for_what_does_not_count():
    model, batches = net(), BATCHES["logits"]()
    references, twin = reference_outputs(model, batches), perturbed(model)

    def tuned(data):
        return Tune(2, 0.01).fit(copy.deepcopy(twin), data, references, KL_DIVERGENCE, VECTORS)["0.bias"]

    others = tuned([(x, (y + 1) % 5) for x, y in batches])
    ignored = tuned([(x, torch.where(torch.arange(32) < 16, -100, y)) for x, y in batches])
    nothing = tuned([(x, torch.full_like(y, -100)) for x, y in batches])
    assert np.array_equal(others, tuned(batches)) and not np.array_equal(ignored, others)
    assert np.array_equal(nothing, twin[0].bias.detach())


def test_gradients_that_are_not_finite_are_passed_over():
    model, batches = net(), BATCHES["values"]()
    references, twin = reference_outputs(model, batches), perturbed(model)
    references[1][:] = torch.nan
    found = Tune(4, 0.01).fit(twin, batches, references, SQUARED_ERROR, VECTORS)
    assert all(np.isfinite(each).all() for each in found.values())
    assert not np.array_equal(found["0.bias"], perturbed(model)[0].bias.detach())


def test_progress_is_told_after_every_batch():
    model, batches, told = net(), BATCHES["values"](), []
    Tune(3).fit(
        model, batches, reference_outputs(model, batches), SQUARED_ERROR, VECTORS, lambda *point: told.append(point)
    )
    assert told == [("tune", done, 12) for done in range(1, 13)]


@pytest.mark.parametrize("options", [{"passes": 0}, {"step": 0.0}, {"step": -1.0}, {"step": float("inf")}])
def test_options_out_of_range(options):
    with pytest.raises(UsageError, match="out of range; expected at least 1, and above 0"):
        Tune(**options)
