"""Blocks that come and go: what is decoded when, how many are there, and what stays after errors."""

import gc
import threading
import time
import weakref

import pytest
import torch
from torch import nn

from waterfill.errors import FormatError
from waterfill.resident import Block, Residency, held

BLOCKS, WIDTH = 6, 8
SIZE = 4 * WIDTH * WIDTH
"""Bytes of the weights of a block."""
PATIENCE = 20
"""Seconds after which a thread that waits has failed."""


class Network(nn.Sequential):
    """Linear maps whose weights come and go, with what happened to them.

    Attributes:
        decoded: numbers of blocks in the order in which their decoding began.
        most: largest number of blocks that were there at once, with one that is being decoded.
        before: called with the number of a block before it is decoded.
    """

    def __init__(self, cache_bytes=None):
        super().__init__(*(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS)))
        self.decoded, self.most, self.before, self._arrays = [], 0, lambda _: None, []
        self._lock = threading.Lock()
        self._weights = [each.weight.detach().numpy().copy() for each in self]
        with torch.no_grad():
            self._expected = self(torch.linspace(-1, 1, WIDTH))
        blocks = [Block(self[k], {"weight": self[k].weight.detach()}, self._decoder(k)) for k in range(BLOCKS)]
        self.residency = Residency(blocks, cache_bytes, 0)
        self.residency.attach(self)

    def _decoder(self, number):
        me = weakref.ref(self)

        def decode():
            me().before(number)
            values = me()._weights[number].copy()
            with me()._lock:
                me().decoded.append(number)
                me()._arrays.append(weakref.ref(values))
                me().most = max(me().most, sum(each() is not None for each in me()._arrays))
            return {"weight": torch.from_numpy(values)}

        return decode

    def is_right(self):
        with torch.no_grad():
            return self(torch.linspace(-1, 1, WIDTH)).equal(self._expected)


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = Network()
    assert made.is_right()  # now it knows the order
    return made


def settled(network):
    """Wait for what is decoded ahead."""
    for block in network.residency.blocks:
        arriving = block.arriving
        if arriving is not None:
            arriving.exception(PATIENCE)


def test_two_blocks_are_there_at_most(network):
    for _ in range(5):
        assert network.is_right()
        time.sleep(0.001)
    settled(network)
    assert network.most == 2 and held(network).decoded == 2 * SIZE


@pytest.mark.parametrize("room", range(2, BLOCKS + 1))
def test_what_runs_last_goes_first_while_others_are_decoded_ahead(room):
    network = Network(room * SIZE)
    for _ in range(4):
        assert network.is_right()
    settled(network)
    network.decoded.clear()
    rounds = 10
    for _ in range(rounds):
        assert network.is_right()
    settled(network)
    assert network.most <= room
    assert len(network.decoded) <= rounds * min(BLOCKS - room + 2, BLOCKS * (room < BLOCKS)) + 2


def test_the_block_after_the_next_is_begun_before_the_next_is_there(network):
    settled(network)
    begun = threading.Event()

    def before(number):
        if number == 3:
            begun.set()
        if number == 2:  # block 1 has run, or nobody would wait for block 2
            assert begun.wait(PATIENCE)

    network.before = before
    assert network.is_right()


def test_nothing_is_decoded_ahead_after_an_exception(network):
    settled(network)

    def fail(*_):
        raise ZeroDivisionError

    handle = network[1].register_forward_pre_hook(fail)
    network.decoded.clear()
    with pytest.raises(ZeroDivisionError):
        network.is_right()
    settled(network)
    assert 3 not in network.decoded
    handle.remove()
    assert network.is_right() and network.most == 2


def test_an_error_while_decoding_ahead_is_that_of_its_block(network):
    settled(network)

    def before(number):
        if number == 3:
            raise FormatError("block 3 is damaged")

    network.before = before
    for _ in range(2):
        with pytest.raises(FormatError, match="block 3"):
            network.is_right()
        settled(network)
        assert held(network).decoded <= 2 * SIZE
    network.before = lambda _: None
    assert network.is_right() and network.most == 2


class Interrupted:
    """A future whose waiting thread gets a key press."""

    def __init__(self, future):
        self.future, self.done = future, lambda: False

    def exception(self):
        raise KeyboardInterrupt


def test_a_block_stays_on_its_way_when_the_wait_for_it_is_interrupted(network):
    settled(network)
    block = network.residency.blocks[0]
    arriving = block.arriving
    block.arriving = Interrupted(arriving)
    with pytest.raises(KeyboardInterrupt):
        network.is_right()
    assert isinstance(block.arriving, Interrupted) and block.charged and not block.users
    block.arriving = arriving
    del arriving
    network.decoded.clear()
    assert network.is_right() and network.decoded.count(0) <= 1 and network.most == 2


@pytest.mark.parametrize("cache_bytes", [0, None, 4 * SIZE])
def test_threads_share_blocks(cache_bytes):
    network = Network(cache_bytes)
    right = []

    def run():
        right.extend(network.is_right() for _ in range(10))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    settled(network)
    assert right == 30 * [True]
    assert held(network).decoded <= network.residency.cache_bytes
    assert not any(block.users for block in network.residency.blocks)


def test_threads_end_with_the_network():
    network = Network()
    assert network.is_right()
    mine = {thread for thread in threading.enumerate() if thread.name.startswith("waterfill-prefetch")}
    gone = weakref.ref(network)
    settled(network)
    del network
    gc.collect()
    assert gone() is None
    for thread in mine:
        thread.join(PATIENCE)
    assert mine and not any(thread.is_alive() for thread in mine)
