"""What a compression relies on is checked: copies, caches, randomness, norms that others read."""

import functools
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import waterfill
from waterfill.compression.contract import FewSamples, check_copies
from waterfill.errors import CalibrationError, UnsupportedModelError
from waterfill.models.outputs import first_tensor
from waterfill.models.torch_module import inventory

KEPT = {}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(20, 32), nn.Linear(32, 6)

    def forward(self, x):
        return 3 * self.b(torch.relu(self.hidden(x)))

    def hidden(self, x):
        return self.a(x)


def data(count=4):
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, 32, 20, generator=generator)
    return [(draw(), torch.randint(6, (32,), generator=generator)) for _ in range(count)]


def compress(net, **options):
    torch.manual_seed(0)
    return waterfill.compress(net(), data(), effort="fast", **{"rate": 6.0, **options})


def true_kl(net, result, tmp_path):
    """KL of a network that was never run before it was loaded."""
    torch.manual_seed(0)
    original, loaded = net().eval(), net().eval()
    result.save(tmp_path / "net.wf")
    waterfill.load(tmp_path / "net.wf", into=loaded)
    x = torch.cat([inputs for inputs, _ in data()])
    with torch.no_grad():
        p, q = (torch.log_softmax(each(x), 1) for each in (original, loaded))
    return float((p.exp() * (p - q)).sum(1).mean())


# Random answers


class Dropping(Net):
    def hidden(self, x):
        return F.dropout(self.a(x), 0.1, True)


class Noisy(Net):
    def hidden(self, x):
        return self.a(x) + 0.01 * torch.randn(32)


class RarelySkipping(Net):
    def hidden(self, x):
        return self.a(x) * (torch.rand(()) > 0.1)


class Choosing(Net):
    def hidden(self, x):
        return self.a(x) * random.random()


class Counting(Net):
    counts = [0]  # noqa: RUF012 - of the class, so that no copy has its own

    def hidden(self, x):
        self.counts[0] += 1
        return self.a(x) * self.counts[0]


@pytest.mark.parametrize("net", [Dropping, Noisy, RarelySkipping, Choosing, Counting])
def test_a_model_that_answers_one_batch_differently_is_named(net):
    with pytest.raises(CalibrationError, match=r"answers the same batch differently .* random, or keeps state"):
        compress(net)


class Unimportant(Net):
    def hidden(self, x):
        return self.a(x) + 0 * torch.rand(())


class Switched(Net):
    def hidden(self, x):
        return F.dropout(self.a(x), 0.5, self.training)


@pytest.mark.parametrize("net", [Net, Unimportant, Switched])
def test_random_numbers_without_effect_are_fine(net, tmp_path):
    result = compress(net)
    assert result.notes == ()
    assert result.distortion == pytest.approx(true_kl(net, result, tmp_path), rel=1e-3)


class Decaying(Net):
    def hidden(self, x):
        with torch.no_grad():
            self.a.weight.mul_(0.5)
        return self.a(x)


def test_a_forward_that_writes_into_parameters_is_named():
    torch.manual_seed(0)
    net = Decaying()
    before = net.a.weight.detach().clone()
    with pytest.raises(UnsupportedModelError, match=r"changes the parameter 'a\.weight'"):
        waterfill.compress(net, data(), rate=6.0, effort="fast")
    assert torch.equal(net.a.weight, before)


# Copies


class ByClass(Net):
    def __init__(self):
        super().__init__()
        type(self).layers = [self.a]

    def hidden(self, x):
        return type(self).layers[0](x)


class ByGlobalName(Net):
    def __init__(self):
        super().__init__()
        KEPT["net"] = [self]

    def hidden(self, x):
        return KEPT["net"][0].a(x)


class ById(Net):
    def __init__(self):
        super().__init__()
        self.gains = {id(self.a): 2.0}

    def hidden(self, x):
        return self.a(x) * self.gains.get(id(self.a), 1.0)


@pytest.mark.parametrize("net", [ByClass, ByGlobalName, ById])
def test_copies_that_are_none_are_named(net):
    with pytest.raises(UnsupportedModelError, match=r"A copy of the model .*(reads|deepcopy).*[Hh]ook"):
        compress(net)


def hooked():
    net = Net()
    net.seen = {}
    net.b.register_forward_hook(lambda _module, _inputs, output: net.seen.__setitem__("b", output))
    old = net.forward
    net.forward = lambda x: old(x) * 0 + 3 * net.seen["b"]
    return net


class Viewing(Net):
    def __init__(self):
        super().__init__()
        self.turned = self.a.weight.data.t()

    def hidden(self, x):
        return x @ self.turned + self.a.bias


class Remembering(Net):
    def __init__(self):
        super().__init__()
        self.turned = None

    def hidden(self, x):
        if self.turned is None:
            self.turned = self.a.weight.t().detach().clone()
        return x @ self.turned + self.a.bias


@pytest.mark.parametrize("net", [hooked, Viewing, Remembering])
def test_what_refers_to_the_model_works(net, tmp_path):
    result = compress(net)
    assert result.distortion == pytest.approx(true_kl(net, result, tmp_path), rel=1e-3)


class Padded(nn.Module):
    """Nested tensors of fused kernels have zeros at padding, where other code has what attention gives."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, x, mask):
        return self.head(self.body(x, src_key_padding_mask=mask).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_fused_kernels_that_are_not_run_while_watched_make_no_other_model():
    net, x = Padded().eval(), torch.randn(4, 5, 8)
    batch = ((x, torch.arange(5) >= torch.tensor([[2], [5], [3], [4]])), torch.arange(4) % 3)
    assert check_copies(net, FewSamples.of(net, batch, first_tensor), inventory(net))


# Caches


class Stale(Remembering):
    def __init__(self):
        super().__init__()
        self(torch.zeros(1, 20))


class InAList(Net):
    def __init__(self):
        super().__init__()
        self.derived = [self.a.weight.sign().detach()]

    def hidden(self, x):
        return x @ self.derived[0].t() + self.a.bias


class InABuffer(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("derived", self.a.weight.detach() / 2, persistent=False)

    def hidden(self, x):
        return F.linear(x, self.derived, self.a.bias)


class CachedMethod(Net):
    @functools.lru_cache  # noqa: B019 - as strangers do
    def derived(self):
        return self.a.weight.detach().clone()

    def hidden(self, x):
        return F.linear(x, self.derived(), self.a.bias)


def cached_attribute():
    net = Net()
    net.derived = functools.lru_cache(lambda: net.a.weight.detach().clone())
    net.hidden = lambda x: F.linear(x, net.derived(), net.a.bias)
    return net


@pytest.mark.parametrize("net", [Stale, InAList, InABuffer, CachedMethod, cached_attribute])
def test_caches_of_derived_weights_are_named(net):
    with pytest.raises(UnsupportedModelError, match=r"'a\.weight' does not reach .* derived from it.*Derive it"):
        compress(net)


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.other, self.mean = nn.Linear(32, 5), torch.full((20,), 0.1)

    def hidden(self, x):
        return self.a(x - self.mean)


def test_a_layer_that_is_not_used_is_no_cache():
    assert compress(Unused).distortion < 0.1


class Undifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        del ctx
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("no gradient")


class WithoutGradients(Net):
    def hidden(self, x):
        return Undifferentiable.apply(self.a(x))


def test_a_model_without_gradients_works_where_none_are_needed(tmp_path):
    result = compress(WithoutGradients, importance=waterfill.importance.weight_scale(), rate=8.0)
    assert result.distortion == pytest.approx(true_kl(WithoutGradients, result, tmp_path), rel=1e-3)


# Norms


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(32)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def hidden(self, x):
        return self.normed(self.a(x), self.norm)

    def normed(self, h, norm):
        return norm(h)


class ReadsTwiceTheMean(Normed):
    def normed(self, h, norm):
        return F.batch_norm(h, 2 * norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


class ReadsTheVariance(Normed):
    def normed(self, h, norm):
        return norm(h) * norm.running_var


class ReadsTheBias(Normed):
    def normed(self, h, norm):
        return norm(h) - norm.bias


@pytest.mark.parametrize("net", [ReadsTwiceTheMean, ReadsTheVariance, ReadsTheBias])
def test_norms_that_others_read_are_not_folded(net, tmp_path):
    result = compress(net, rate=8.0)
    assert any("unfolded" in note for note in result.notes)
    assert {row.name: row.reconstruction for row in result.tensors}["norm.running_mean"] != "constant"
    assert result.distortion == pytest.approx(true_kl(net, result, tmp_path), rel=1e-2)
    assert result.distortion < 0.01


def test_norms_that_nobody_else_reads_are_folded():
    result = compress(Normed, rate=8.0)
    assert result.notes == ()
    assert {row.name: row.reconstruction for row in result.tensors}["norm.running_mean"] == "constant"


# Which output


class Several(Net):
    """Returns something random first, and logits that fit the targets."""

    def forward(self, x):
        return torch.randn(len(x), 2), super().forward(x)


class Sampled(Net):
    """Returns logits of two classes first, and random ones that fit the targets."""

    def forward(self, x):
        logits = super().forward(x)
        return logits[:, :2], logits + torch.randn_like(logits)


class Angles(Net):
    """Returns complex values, of which only the imaginary parts are random."""

    def forward(self, x):
        values = super().forward(x)
        return torch.complex(values, torch.randn_like(values))


def test_an_output_that_is_not_read_may_be_random():
    assert compress(Several).distortion < 0.05


@pytest.mark.parametrize(("net", "options"), [(Sampled, {}), (Angles, {"output": "values"})])
def test_the_output_that_is_read_must_not_be_random(net, options):
    with pytest.raises(CalibrationError, match="answers the same batch differently"):
        compress(net, **options)
