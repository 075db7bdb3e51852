import constriction
import numpy as np
import pytest
import slow_rans
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.codec import rans, tables
from waterfill.errors import FormatError


@pytest.fixture(params=[True, False], ids=["kernels", "Python alone"], autouse=True, scope="module")
def _loaded(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans, "has_kernels", lambda: request.param)
        yield


def random_run(rng, size, own=False):
    if own:
        frequencies = rng.multinomial(4096, rng.dirichlet(np.full(int(rng.integers(2, 257)), 0.3)))
        symbols = rng.choice(frequencies.size, size, p=frequencies / 4096).astype(np.uint8)
        return rans.Run(symbols, np.zeros(size, np.uint16), frequencies)
    classes = rng.integers(0, tables.CLASSES, size).astype(np.uint16)
    symbols = np.array([rng.choice(256, p=tables.frequencies()[c] / 4096) for c in classes], np.uint8)
    return rans.Run(symbols, classes)


@given(st.integers(0, 2**32 - 1), st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=4))
@settings(max_examples=40, deadline=None)
def test_the_fast_coder_writes_and_reads_what_the_slow_one_does(seed, sizes):
    rng = np.random.default_rng(seed)
    runs = [random_run(rng, size, own) for size, own in sizes]
    stream = rans.encode(runs)
    assert stream == slow_rans.encode(runs)
    decoder = rans.Decoder(stream)
    for (symbols, classes, own), slow in zip(runs, slow_rans.decode(stream, [r[1:] for r in runs]), strict=True):
        assert decoder.run(classes, own).tolist() == symbols.tolist() == slow
    decoder.finish()


@pytest.mark.parametrize("cls", [0, 7, tables.bank_class(5, 0), tables.bank_class(8, 32), tables.bank_class(0, 56)])
def test_every_symbol_of_a_table_survives_at_every_state(cls):
    frequencies = tables.frequencies()[cls]
    symbols = np.tile(np.flatnonzero(frequencies).astype(np.uint8), 300)
    classes = np.full(symbols.size, cls, np.uint16)
    stream = rans.encode([rans.Run(symbols, classes)])
    decoder = rans.Decoder(stream)
    assert (decoder.run(classes) == symbols).all()
    decoder.finish()


@pytest.mark.parametrize("scale", [16, 32, 44])
def test_a_stream_is_within_half_a_permille_of_constriction(scale):
    rng = np.random.default_rng(0)
    cls = tables.bank_class(5, scale)
    pmf = tables.frequencies()[cls] / 4096
    symbols = rng.choice(256, 200_000, p=pmf)
    stream = rans.encode([rans.Run(symbols.astype(np.uint8), np.full(symbols.size, cls, np.uint16))])
    model = constriction.stream.model.Categorical(pmf[pmf > 0].astype(np.float32), perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols.astype(np.int32), model)
    assert 8 * (len(stream) - rans.HEADER_BYTES) < 1.0005 * coder.num_bits() + 64


def test_damage_is_found():
    symbols, classes, _ = random_run(np.random.default_rng(1), 500)
    stream = rans.encode([rans.Run(symbols, classes)])
    for bad in (stream[:-2], stream + b"\0\0", b"\1" + stream[1:], stream[:40] + b"\x55\xaa" + stream[42:]):
        with pytest.raises(FormatError):
            decoder = rans.Decoder(bad)
            decoder.run(classes)
            decoder.finish()
    for bad in (stream[:31], stream[:-1], b""):
        with pytest.raises(FormatError, match="is cut"):
            rans.Decoder(bad)
