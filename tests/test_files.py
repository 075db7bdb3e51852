"""Tensors of a file that are asked for one by one."""

import pytest
import torch

import waterfill
from waterfill.codec import native
from waterfill.codec.container import Container
from waterfill.files import WaterfillFile


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Nine tiny matrices and nine buffers, which share two chunks."""
    torch.manual_seed(0)
    model = torch.nn.Module()
    for number in range(9):
        model.register_parameter(f"w{number}", torch.nn.Parameter(torch.randn(3, 5)))
        model.register_buffer(f"n{number}", torch.arange(number))
    path = tmp_path_factory.mktemp("files") / "m.wf"
    waterfill.compress(model, rate=12).save(path)
    return path


@pytest.fixture
def decoded(monkeypatch):
    """Indices of the chunks that Python decodes."""
    indices = []
    for name in ("symbols", "exact"):
        decode = getattr(Container, name)

        def noted(self, index, *args, decode=decode):
            indices.append(index)
            return decode(self, index, *args)

        monkeypatch.setattr(Container, name, noted)
    with native.switched_off():
        yield indices


@pytest.mark.skipif(not native.is_there(), reason="the reader in C was not built")
def test_the_reader_in_c_reads_a_chunk_that_tensors_share_once(path, monkeypatch):
    expected, reads, reading = waterfill.decompress(path), [], native._reading

    def noting(data):
        return lambda *span: reads.append(span) or reading(data)(*span)

    monkeypatch.setattr(native, "_reading", noting)
    with WaterfillFile(path) as file:
        for name in reversed(list(file)):
            assert file[name].equal(expected[name])
        chunks = {int(start) for start in file.container._offsets[:-1]}
    assert len([start for start, _ in reads if start in chunks]) == len(chunks) == 2


def test_tensors_that_share_a_chunk_are_decoded_once(path, decoded):
    expected = waterfill.decompress(path)
    decoded.clear()
    with WaterfillFile(path) as file:
        for name in reversed(list(file)):
            assert file[name].equal(expected[name])
    assert len(decoded) == len(set(decoded)) == 2


def test_what_was_decoded_as_a_whole_is_not_kept(path, decoded):
    with WaterfillFile(path) as file:
        dict(file.tensors())
        dict(file.tensors())
    assert len(decoded) == 4


def test_nothing_is_kept_of_a_file_that_is_closed(path):
    with WaterfillFile(path) as file:
        assert file["w3"].shape == (3, 5)
    with pytest.raises(ValueError, match="closed"):
        file["w4"]


def test_a_large_chunk_is_not_kept(path, decoded, monkeypatch):
    monkeypatch.setattr("waterfill.io.file.LARGEST_KEPT", 9)
    with WaterfillFile(path) as file:
        for name in ("w1", "w2", "w3"):
            assert file[name].shape == (3, 5)
    assert len(decoded) == 3
