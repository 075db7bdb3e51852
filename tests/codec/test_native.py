"""The reader in C as a module: what may happen while a call is under way."""

import threading

import numpy as np
import pytest

from fuzz import seeds
from waterfill.codec import native, trellis
from waterfill.codec.container import Container
from waterfill.codec.lanes import in_order
from waterfill.io.file import ArrayFile

pytestmark = pytest.mark.skipif(not native.is_there(), reason="the reader in C was not built")


def arrays_of(data):
    with ArrayFile(data) as file:
        return [values.array.copy() for _, values in file.tensors()]


def test_a_file_that_is_closed_while_it_is_read_lasts_until_the_call_ends():
    from waterfill.codec import _native

    data = seeds.files()["fine"]
    expected, box = arrays_of(data), []

    def read(at, size):
        if box:
            box.pop().close()
        return data[at : at + size]

    file = _native.File(read, len(data))
    box.append(file)
    outs = [np.zeros_like(each) for each in expected]
    file.decode(list(range(len(outs))), outs)
    assert not box and all(a.tobytes() == b.tobytes() for a, b in zip(outs, expected, strict=True))
    with pytest.raises(ValueError, match="closed"):
        file.decode([0], outs[:1])


def test_a_file_that_is_closed_while_it_is_opened_is_not_one():
    from waterfill.codec import _native

    data = seeds.files()["fine"]
    file = _native.File.__new__(_native.File)

    def read(at, size):
        file.close()
        return data[at : at + size]

    file.__init__(read, len(data))
    with pytest.raises(ValueError, match="closed"):
        file.decode([0], [np.zeros(3)])


def test_a_file_that_could_not_be_opened_lets_go_of_its_bytes():
    from waterfill.codec import _native

    data = bytearray(seeds.files()["fine"][:-1])
    file = _native.File.__new__(_native.File)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"needs|before"):
            file.__init__(data)
    data += b"1"  # which a buffer that is held would refuse


def test_closing_a_file_that_is_read_does_not_make_it_a_damaged_one():
    data = seeds.files()["paths"]
    box = Container(data)
    index, pieces = next(iter(box.symbol_spans.items()))
    assert box.native is not None
    box.close()
    with pytest.raises(ValueError, match="closed"):
        box.symbols(index, pieces)


def test_threads_decode_from_one_file_and_another_one_closes_it():
    data = seeds.files()["paths"]
    expected = arrays_of(data)
    for _ in range(20):
        from waterfill.codec import _native

        file, found = _native.File(data), []

        def work(file=file, found=found):
            outs = [np.zeros_like(each) for each in expected]
            try:
                file.decode(list(range(len(outs))), outs)
            except ValueError:
                return
            found.append(all(a.tobytes() == b.tobytes() for a, b in zip(outs, expected, strict=True)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for each in threads:
            each.start()
        file.close()
        for each in threads:
            each.join()
        assert all(found)


@pytest.mark.parametrize("name", ["paths", "down", "trellis", "lanes"])
def test_bits_of_paths_are_those_of_the_kernel(name):
    box, count = Container(seeds.files()[name]), 0
    for index, found in box.symbol_spans.items():
        for model, part in zip(box._models(found), box.symbols(index, found), strict=True):
            if isinstance(model, trellis.PathModel):
                levels, count = in_order(part), count + 1
                with native.switched_off():
                    expected = trellis.ideal_bits(levels, model)
                assert trellis.ideal_bits(levels, model) == expected > 0
    assert count
