from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from waterfill import zoo
from waterfill.zoo.llama import causal_attention, differentiable_causal_attention, rotary_angles, rotate
from waterfill.zoo.resnet import ResidualBlock

MNIST = (2, 1, 28, 28)
CIFAR = (2, 3, 32, 32)
IMAGENET = (1, 3, 224, 224)

IMAGE_NETWORKS = [
    pytest.param(zoo.resnet20, CIFAR, 10, 269_722, id="resnet20"),
    pytest.param(zoo.resnet32, CIFAR, 10, 464_154, id="resnet32"),
    pytest.param(zoo.resnet44, CIFAR, 10, 658_586, id="resnet44"),
    pytest.param(zoo.resnet56, CIFAR, 10, 853_018, id="resnet56"),
    pytest.param(zoo.resnet110, CIFAR, 10, 1_727_962, id="resnet110"),
    pytest.param(zoo.lenet300, MNIST, 10, 266_610, id="lenet300"),
    pytest.param(zoo.lenet5, MNIST, 10, 431_080, id="lenet5"),
    pytest.param(zoo.paper_mlp, MNIST, 10, 269_322, id="paper_mlp"),
    pytest.param(zoo.paper_conv, CIFAR, 10, 9_306_250, id="paper_conv"),
    pytest.param(zoo.paper_conv_w32, CIFAR, 10, 584_746, id="paper_conv_w32"),
    pytest.param(zoo.paper_conv_w32_cifar100, CIFAR, 100, 607_876, id="paper_conv_w32_cifar100"),
    pytest.param(zoo.mobilenet_v1, IMAGENET, 1000, 470_072, id="mobilenet_v1"),
    pytest.param(zoo.squeezenet, IMAGENET, 1000, 1_248_424, id="squeezenet"),
]

LANGUAGE_MODELS = [
    pytest.param(zoo.charlstm, 65, 279_873, id="charlstm"),
    pytest.param(zoo.charlstm_bronte, 108, 290_924, id="charlstm_bronte"),
    pytest.param(zoo.stories260k, 512, 260_032, id="stories260k"),
]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("factory", "shape", "classes", "parameters"), IMAGE_NETWORKS)
def test_image_network(factory, shape, classes, parameters) -> None:
    model = factory().eval()
    assert count(model) == parameters
    with torch.no_grad():
        assert model(torch.rand(shape)).shape == (shape[0], classes)


@pytest.mark.parametrize(("factory", "vocabulary", "parameters"), LANGUAGE_MODELS)
def test_language_model(factory, vocabulary, parameters) -> None:
    model = factory().eval()
    assert count(model) == parameters
    assert model(torch.randint(vocabulary, (2, 7))).shape == (2, 7, vocabulary)


@pytest.mark.parametrize("factory", [zoo.charlstm, zoo.stories260k])
def test_no_position_sees_a_later_token(factory) -> None:
    model = factory().eval()
    tokens = torch.randint(65, (1, 12))
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 65
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8], after[:, 8])


@pytest.mark.parametrize("factory", [zoo.lenet300, zoo.paper_mlp])
def test_perceptrons_also_take_rows(factory) -> None:
    model = factory().eval()
    images = torch.rand(MNIST)
    assert torch.equal(model(images), model(images.flatten(1)))


def test_paper_conv_takes_width_and_classes() -> None:
    model = zoo.paper_conv(width=4, classes=7).eval()
    assert model(torch.rand(CIFAR)).shape == (2, 7)
    assert model.features[0].out_channels == 4


def test_mobilenet_takes_a_width() -> None:
    assert count(zoo.mobilenet_v1(1.0)) == 4_231_976


def test_mobilenet_pads_one_side_only_where_it_strides() -> None:
    model = zoo.mobilenet_v1()
    strided = [name for name, module in model.named_children() if getattr(module, "stride", None) == (2, 2)]
    padded = [name.removesuffix("_pad") for name, _ in model.named_children() if name.endswith("_pad")]
    assert strided == padded == ["conv1", "conv_dw_2", "conv_dw_4", "conv_dw_6", "conv_dw_12"]
    assert all(getattr(model, name).padding == (0, 0) for name in strided)
    assert model.conv1_pad.padding == (0, 1, 0, 1)
    assert model.conv_dw_1.padding == (1, 1)


def test_mobilenet_strides_without_shifting() -> None:
    model = zoo.mobilenet_v1()
    image = torch.rand(1, 3, 8, 8)
    weight = model.conv1.weight
    expected = (weight * F.pad(image, (0, 1, 0, 1))[:, :, 6:9, 6:9]).sum((1, 2, 3))
    torch.testing.assert_close(model.conv1(model.conv1_pad(image))[0, :, 3, 3], expected)


def test_residual_shortcut_takes_every_second_pixel_and_adds_zero_channels() -> None:
    x = torch.rand(2, 16, 8, 8)
    shortcut = ResidualBlock(16, 32, stride=2).shortcut(x)
    assert shortcut.shape == (2, 32, 4, 4)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()


def test_lstm_equals_torch_lstm() -> None:
    """torch.nn.LSTM has the gate order input, forget, candidate, output and no added forget bias."""
    model = zoo.charlstm()
    order = torch.cat([torch.arange(128) + 128 * gate for gate in (0, 2, 1, 3)])
    oracle = nn.LSTM(128, 128, num_layers=2, batch_first=True)
    with torch.no_grad():
        for layer, linear in enumerate((model.lstm0, model.lstm1)):
            bias = linear.bias.clone()
            bias[256:384] += 1.0
            getattr(oracle, f"weight_ih_l{layer}").copy_(linear.weight[order, :128])
            getattr(oracle, f"weight_hh_l{layer}").copy_(linear.weight[order, 128:])
            getattr(oracle, f"bias_ih_l{layer}").copy_(bias[order])
            getattr(oracle, f"bias_hh_l{layer}").zero_()
    tokens = torch.randint(65, (3, 20))
    hidden, (outputs, cells) = oracle(model.embedding(tokens))
    logits, state = model.stream(tokens)
    torch.testing.assert_close(logits, model.softmax(hidden))
    torch.testing.assert_close(torch.stack([h for h, _ in state]), outputs)
    torch.testing.assert_close(torch.stack([c for _, c in state]), cells)


def test_lstm_carries_its_state() -> None:
    model = zoo.charlstm()
    tokens = torch.randint(65, (3, 20))
    first, state = model.stream(tokens[:, :9])
    second = model(tokens[:, 9:], state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), model(tokens))


def test_lstm_layers_run_once_a_time_step() -> None:
    model = zoo.charlstm()
    calls = []
    model.lstm1.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs[0].shape))
    model(torch.randint(65, (3, 5)))
    assert calls == [(3, 256)] * 5


def test_rotation_depends_on_the_distance_only() -> None:
    angles = rotary_angles(30, 8, 10000.0)
    query, key = rotate(torch.rand(8).expand(30, 8), angles), rotate(torch.rand(8).expand(30, 8), angles)
    products = query @ key.T
    torch.testing.assert_close(products.diagonal(3), products[0, 3].expand(27), rtol=1e-4, atol=1e-4)


def test_both_attentions_agree() -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 8)
    with torch.no_grad():
        fused = causal_attention(query, key, value)
    torch.testing.assert_close(fused, differentiable_causal_attention(query, key, value), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factory", [zoo.charlstm, zoo.stories260k])
def test_language_models_have_second_derivatives(factory) -> None:
    model = factory()
    tokens = torch.randint(65, (1, 6))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), list(model.parameters()))
    assert all(torch.isfinite(g).all() for g in second)


def test_squeezenet_pools_after_conv1_fire4_and_fire8() -> None:
    model = zoo.squeezenet().eval()
    sides = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: sides.update({name: output.shape[-1]}))
    with torch.no_grad():
        model(torch.rand(1, 3, 224, 224))
    assert sides["conv1"] == 109
    assert {sides[name] for name in ("pool1", "fire2", "fire3", "fire4")} == {54}
    assert {sides[name] for name in ("fire4_pool", "fire5", "fire6", "fire7", "fire8")} == {27}
    assert {sides[name] for name in ("fire8_pool", "fire9")} == {13}
    assert sides["conv10"] == 15


@pytest.mark.parametrize(
    ("factory", "kinds"),
    [
        (zoo.lenet300, "Flatten Linear ReLU Linear ReLU Linear"),
        (zoo.lenet5, "Conv2d MaxPool2d Conv2d MaxPool2d Flatten Linear ReLU Linear"),
        (zoo.paper_mlp, "Flatten Linear ReLU Dropout Linear ReLU Dropout Linear"),
    ],
)
def test_layers_of_the_mnist_networks(factory, kinds: str) -> None:
    assert " ".join(type(module).__name__ for module in factory()) == kinds


@pytest.mark.parametrize(
    ("factory", "kind", "epsilon"),
    [
        (zoo.resnet20, nn.BatchNorm2d, 1e-5),
        (zoo.paper_conv_w32, nn.BatchNorm2d, 1e-5),
        (zoo.mobilenet_v1, nn.BatchNorm2d, 1e-3),
        (zoo.stories260k, nn.RMSNorm, 1e-5),
    ],
)
def test_epsilon_of_the_norms(factory, kind: type, epsilon: float) -> None:
    assert {module.eps for module in factory().modules() if isinstance(module, kind)} == {epsilon}
