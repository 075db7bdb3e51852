"""What a tape records, and that a model computes the same while it is watched."""

import pytest
import torch
import torch.nn.functional as F
from small_nets import IMAGES, Function, image_net
from torch import nn

from waterfill.models.capture import Tape, variables
from waterfill.models.uses import Tokens, pad, spread_out, take_patches, to_native
from waterfill.records import Layout


def watch(model, *inputs):
    learned = variables(model)
    tape = Tape(learned)
    with tape:
        output = model(*inputs)
    return learned, tape, output


@pytest.mark.parametrize("case", IMAGES)
def test_a_watched_model_computes_the_same(case):
    make, size = IMAGES[case]
    model, x = image_net(make(), *size)
    _, _, output = watch(model, x)
    torch.testing.assert_close(output, model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent_layers_compute_the_same(kind, layers, bidirectional, batch_first):
    torch.manual_seed(0)
    model = kind(3, 4, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first).double().eval()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    state = torch.randn(layers * (1 + bidirectional), 5 if batch_first else 2, 4, dtype=torch.float64)
    for given in (None, (state, 2 * state) if kind is nn.LSTM else state):
        _, tape, (output, final) = watch(model, x, given)
        expected, expected_final = model(x, given)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(final, expected_final)
        assert set(tape.uses) == {name for name, _ in model.named_parameters()}


def test_unbatched_sequences_compute_the_same():
    model = nn.LSTM(3, 4).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(watch(model, x)[2], model(x))


def test_dropout_between_layers_is_applied_in_training_mode():
    model = nn.LSTM(3, 4, num_layers=2, dropout=0.9)
    x = torch.randn(5, 2, 3)
    assert not torch.equal(watch(model, x)[2][0], watch(model, x)[2][0])
    model.eval()
    torch.testing.assert_close(watch(model, x)[2][0], model(x)[0])


CONVOLUTIONS = [name for name in IMAGES if "conv" in name or "transposed" in name or name in ("strided", "grouped")]


@pytest.mark.parametrize("case", [*CONVOLUTIONS, "dilated", "same", "depthwise", "circular", "linear", "layer norm"])
def test_inputs_and_gradients_give_the_gradient_of_the_matrix(case):
    make, size = IMAGES[case]
    model, x = image_net(make(), *size)
    learned, tape, output = watch(model, x)
    signal = torch.randn_like(output)
    at_sites = torch.autograd.grad(output, tape.sites, signal, retain_graph=True)
    for name, tensor in learned.tensors.items():
        (expected,) = torch.autograd.grad(output, tensor, signal, retain_graph=True)
        (use,) = tape.uses[name]
        g = use.view.gradients(at_sites[use.site].reshape(use.rows, *at_sites[use.site].shape[use.lead :]))
        inputs = torch.ones_like(g[:, :, :1]) if use.x is None else use.view.inputs(use.x)
        assert (g.shape[1], g.shape[2], inputs.shape[2]) == use.view.sizes
        matrix = torch.einsum("rgop,rgip->goi", g, inputs)
        torch.testing.assert_close(to_native(matrix, use.view.layout), expected, rtol=1e-9, atol=1e-11)


def test_the_normal_form_is_that_of_the_inventory():
    for case in CONVOLUTIONS:
        make, size = IMAGES[case]
        model, x = image_net(make(), *size)
        learned, tape, _ = watch(model, x)
        assert tape.uses["0.weight"][0].view.layout == learned.layouts["0.weight"]


def test_tokens_are_a_linear_layer_on_one_hot_vectors():
    model = nn.Embedding(5, 3)
    tokens = torch.tensor([[1, 4], [0, 1]])
    learned, tape, output = watch(model, tokens)
    (use,) = tape.uses["weight"]
    assert isinstance(use.view, Tokens)
    assert use.view.layout == learned.layouts["weight"]
    signal = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, model.weight, signal)
    matrix = torch.einsum("rgop,rgip->goi", use.view.gradients(signal.reshape(4, 3)), use.view.inputs(use.x))
    torch.testing.assert_close(to_native(matrix, use.view.layout), expected)
    assert use.view.sizes == tuple(matrix.shape)


def test_what_is_not_known_is_missed():
    model = Function(lambda self, x: F.linear(x, self.w.t()) + self.b.exp(), w=nn.Parameter(torch.ones(3, 2)), b=None)
    model.b = nn.Parameter(torch.zeros(2))
    _, tape, _ = watch(model, torch.ones(4, 3))
    assert tape.missed == {"w", "b"}
    assert not tape.uses


def test_lists_of_tensors_are_looked_into():
    model = Function(lambda self, x: x @ torch.cat([self.a, self.b]), a=nn.Parameter(torch.ones(1, 2)), b=None)
    model.b = nn.Parameter(torch.zeros(2, 2))
    assert watch(model, torch.ones(4, 3))[1].missed == {"a", "b"}


def test_a_learned_tensor_as_an_input_is_missed():
    model = Function(lambda self, x: self.layer(self.start + 0 * x), layer=nn.Linear(3, 2), start=None)
    model.start = nn.Parameter(torch.ones(3))
    direct = Function(lambda self, x: F.linear(self.start, x), start=nn.Parameter(torch.ones(3)))
    assert watch(model, torch.ones(4, 3))[1].missed == set()
    assert watch(direct, torch.ones(4, 3))[1].missed == {"start"}


def test_images_without_an_axis_of_samples_are_missed():
    for layer in (nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(2, 3, 2)):
        assert watch(layer, torch.ones(2, 4, 4))[1].missed == {"weight", "bias"}


def test_casts_to_the_same_type_are_seen_through():
    model = Function(lambda self, x: F.linear(x, self.w.to(x.dtype).contiguous()), w=nn.Parameter(torch.ones(2, 3)))
    _, tape, _ = watch(model, torch.ones(4, 3))
    assert not tape.missed
    assert list(tape.uses) == ["w"]


def test_values_per_site_are_counted_once():
    _, tape, _ = watch(nn.Linear(3, 2), torch.ones(4, 3))
    assert len(tape.sites) == 1
    assert tape.site_values == 8


def test_patches_agree_with_unfold():
    x = torch.randn(2, 3, 7, 6)
    found = take_patches(pad(x, [(1, 1), (2, 2)]), (3, 2), (2, 1), (1, 2))
    expected = F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 2), stride=(2, 1))
    assert torch.equal(found.flatten(1, 2), expected)


def test_padding_may_cut_and_spreading_puts_zeros():
    x = torch.arange(4.0).reshape(1, 1, 4)
    assert pad(x, [(-1, 1)]).tolist() == [[[1, 2, 3, 0]]]
    assert spread_out(x, (2,)).tolist() == [[[0, 0, 1, 0, 2, 0, 3]]]


def test_native_shapes_undo_layouts():
    for layout in (Layout((3, 2, 2, 2)), Layout((4, 3, 2), True, 2), Layout((5, 3), True), Layout((6,))):
        values = torch.randn(layout.shape)
        _, channels, taps = layout.axes
        matrix = torch.from_numpy(layout.to_matrix(values.numpy())).reshape(layout.groups, -1, channels * taps)
        assert torch.equal(to_native(matrix, layout), values)
        assert torch.equal(to_native(matrix.expand(3, *matrix.shape), layout), values.expand(3, *values.shape))
