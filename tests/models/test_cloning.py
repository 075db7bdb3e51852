"""Copies compute with their own tensors, whatever holds the model."""

import functools
import warnings
import weakref

import pytest
import torch
from torch import nn

from waterfill.errors import UnsupportedModelError
from waterfill.models import clone, fill


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.seen = nn.Linear(4, 5), nn.Linear(5, 3), {}

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class Reading(Net):
    """Puts out what a hook has kept."""

    def forward(self, x):
        super().forward(x)
        return self.seen["b"]


def closure():
    net = Reading()
    net.b.register_forward_hook(lambda _module, _inputs, output: net.seen.__setitem__("b", output))
    return net


def closure_that_has_run():
    net = closure()
    net(torch.randn(2, 4))  # what is kept has a gradient now
    return net


def partial():
    def keep(store, _module, _inputs, output):
        store["b"] = output

    net = Reading()
    net.b.register_forward_hook(functools.partial(keep, net.seen))
    return net


def default():
    def keep(_module, _inputs, output, *, net=None):
        net.seen["b"] = output

    net = Reading()
    keep.__kwdefaults__["net"] = net
    net.b.register_forward_hook(keep)
    return net


def method():
    class Own(Reading):
        def keep(self, _module, _inputs, output):
            self.seen["b"] = output

    net = Own()
    net.b.register_forward_hook(net.keep)
    return net


def patched_forward():
    net = Net()
    layers, old = [net.a, nn.ReLU(), net.b], net.forward

    def forward(x):
        return old(x) + functools.reduce(lambda y, layer: layer(y), layers, x)

    net.forward = forward
    return net


def weak_reference():
    class Head(nn.Module):
        def forward(self, x):
            return self.parent().b(x)

    net = Net()
    net.head = Head()
    net.head.parent = weakref.ref(net)
    net.forward = lambda x: net.head(net.a(x))
    return net


def view_of_a_weight():
    net = Net()
    net.turned = net.a.weight.t()
    net.forward = lambda x: net.b(x @ net.turned)
    return net


def cached_function():
    net = Net()
    net.turned = functools.lru_cache(lambda: net.a.weight.t())
    net.forward = lambda x: net.b(x @ net.turned())
    return net


KEPT = None


def global_name():
    global KEPT
    KEPT = Reading()

    def keep(_module, _inputs, output):
        KEPT.seen["b"] = output

    KEPT.b.register_forward_hook(keep)
    return KEPT


MAKERS = [
    closure, closure_that_has_run, partial, default, method, patched_forward, weak_reference, view_of_a_weight,
    cached_function, global_name,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_copy_computes_with_its_own_tensors(make):
    torch.manual_seed(0)
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    moved = {name: torch.randn_like(value) for name, value in before.items()}
    x = torch.randn(6, 4)
    twin = clone(net)
    fill(twin, moved)
    found = twin(x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    fill(net, moved)
    torch.testing.assert_close(found, net(x))
    fill(twin, before)
    torch.testing.assert_close(net(x), found)


def test_parameters_of_one_memory_stay_so():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    flat = torch.randn(18)
    net[0].weight, net[1].weight = (nn.Parameter(part.view(3, 3)) for part in flat.split(9))
    twin = clone(net)
    storages = {each.untyped_storage().data_ptr() for each in twin.parameters()}
    assert len(storages) == 1
    assert flat.untyped_storage().data_ptr() not in storages
    torch.testing.assert_close(twin.state_dict(), net.state_dict())


def test_functions_that_do_not_know_the_model_stay_as_they_are():
    net, counts = Net(), [0]

    def count(_module, _inputs, _output):
        counts[0] += 1

    net.b.register_forward_hook(count)
    assert list(clone(net).b._forward_hooks.values()) == [count]


def test_a_module_that_copies_as_itself_is_named():
    class Same(nn.Linear):
        def __deepcopy__(self, memo):
            return self

    with pytest.raises(UnsupportedModelError, match=r"'0\.weight' is the same memory in a copy.*__deepcopy__"):
        clone(nn.Sequential(Same(2, 2)))


@pytest.mark.filterwarnings("default:.*LeafSpec.*:FutureWarning")
def test_an_exported_module_is_copied_without_a_warning():
    net = torch.export.export(nn.Linear(4, 3), (torch.randn(2, 4),)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy = clone(net)
    x = torch.randn(2, 4)
    assert torch.equal(copy(x), net(x))
