"""What the caller has set for all of PyTorch changes no result."""

import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import waterfill
from waterfill.models.surroundings import differentiable_recurrence, inference_mode_ignored, ordinary_surroundings


@contextmanager
def default_type():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        yield
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(mode=False)


SURROUNDINGS = [
    *(torch.inference_mode, torch.no_grad, default_type, default_device, deterministic),
    lambda: torch.autocast("cpu", torch.bfloat16),
    lambda: torch.device("meta"),
]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 6))


def batches():
    torch.manual_seed(1)
    return [(torch.randn(16, 20), torch.randint(6, (16,))) for _ in range(4)]


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_the_same_calls_give_the_same_in_any_surroundings(surroundings, tmp_path):
    model, data = net(), batches()

    def results():
        result = waterfill.compress(model, data, rate=6.0, effort="fast")
        result.save(tmp_path / "net.wf")
        tensors = waterfill.decompress(tmp_path / "net.wf")
        found = waterfill.load(tmp_path / "net.wf", into=other)
        measured = waterfill.evaluate(found, data, model)
        form = waterfill.importance.kl().estimate(model, data)["0.weight"]
        return result.data, measured, form.diagonal().tobytes(), waterfill.bound(model, data).exact_bits, tensors

    other = net()
    *wanted, tensors = results()
    with surroundings():
        *found, same = results()
    assert found == wanted
    assert all(torch.equal(tensors[name], same[name]) and not same[name].is_inference() for name in tensors)


def test_surroundings_come_back_after_errors():
    with torch.inference_mode(), default_type():
        with pytest.raises(ZeroDivisionError), ordinary_surroundings():
            assert not torch.is_inference_mode_enabled()
            assert torch.get_default_dtype() is torch.float32
            1 / 0  # noqa: B018
        assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() is torch.float64


def test_a_default_type_that_is_the_models_stays():
    with default_type(), ordinary_surroundings(net().double()):
        assert torch.get_default_dtype() is torch.float64


def parts():
    with torch.inference_mode():
        inner = nn.Linear(16, 6)
    outer = net()
    outer[2] = inner
    return outer


def whole():
    with torch.inference_mode():
        return net()


def with_norm():
    with torch.inference_mode():
        return nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6)).eval()


@pytest.mark.parametrize("make", [whole, parts, with_norm])
def test_tensors_that_were_made_in_inference_mode_are_compressed_and_filled(make, tmp_path):
    model, data = make(), batches()
    with torch.inference_mode():
        data = [(inputs.clone(), target) for inputs, target in data]
    result = waterfill.compress(model, data, rate=8.0, effort="fast", tune=True)
    assert next(model.parameters()).is_inference() == (make is not parts)
    result.save(tmp_path / "net.wf")
    waterfill.load(tmp_path / "net.wf", into=model)
    assert waterfill.evaluate(model, data).samples == 64
    assert torch.equal(next(iter(waterfill.decompress(tmp_path / "net.wf").values())), model[0].weight)
    waterfill.importance.hessian().estimate(model, data)
    waterfill.bound(model, data)


def test_a_model_made_in_inference_mode_has_the_bytes_of_an_ordinary_one():
    found, wanted = (waterfill.compress(each, batches(), rate=6.0, effort="fast").data for each in (whole(), net()))
    assert found == wanted


def test_inference_mode_of_other_threads_is_obeyed():
    found = []

    def other():
        with torch.inference_mode():
            found.append(torch.is_inference_mode_enabled())

    with inference_mode_ignored():
        with torch.inference_mode():
            found.append(torch.is_inference_mode_enabled())
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [False, True]


def precisions():
    """What products and convolutions of GPUs leave out."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    told = [cudnn.deterministic, *(each.fp32_precision for each in (products, cudnn.conv, cudnn.rnn))]
    try:
        return [*told, torch.get_float32_matmul_precision()]
    except RuntimeError:  # set operator by operator
        return told


@pytest.fixture
def own_precisions():
    """Sets precisions for a test, in one of the ways that PyTorch has."""
    products = torch.backends.cuda.matmul

    def set_them(way):
        if way == "of all":
            torch.set_float32_matmul_precision("high")
        elif way == "of an operator":
            products.fp32_precision = "tf32"
            torch.backends.cudnn.conv.fp32_precision = "tf32"

    yield set_them
    torch.set_float32_matmul_precision("highest")
    products.fp32_precision = "none"
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("way", ["by default", "of all", "of an operator"])
def test_gpus_compute_in_all_of_single_precision(way, own_precisions):
    own_precisions(way)
    before = precisions()
    with ordinary_surroundings():
        assert torch.backends.cudnn.deterministic
        assert "tf32" not in precisions()
    assert precisions() == before
    with pytest.raises(KeyError), ordinary_surroundings():
        raise KeyError
    assert precisions() == before


@pytest.mark.parametrize("layer", [nn.LSTM(3, 4), nn.Linear(3, 4)])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("gradients", [True, False])
def test_recurrent_layers_of_gpus_do_without_cudnn_where_gradients_are_taken(layer, device, gradients):
    before = torch.backends.cudnn.enabled
    left_out = isinstance(layer, nn.LSTM) and device == "cuda" and gradients
    with torch.set_grad_enabled(gradients), differentiable_recurrence(nn.Sequential(layer), torch.device(device)):
        assert torch.backends.cudnn.enabled == (before and not left_out)
    assert torch.backends.cudnn.enabled == before
