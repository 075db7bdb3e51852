import io
import json
import pickle
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from waterfill.errors import FormatError, WaterfillError
from waterfill.models import assemble, assemble_one, load_tensors, read, save_tensors
from waterfill.models.state_dict import origin_of
from waterfill.records import Coded, Constant, Entry, Exact, Layout, NormMean, NormVariance, Tied


def in_range(tensor):
    largest = float(tensor.double().abs().max())
    return largest <= 2.0**92 and (tensor.dtype != torch.float64 or largest == 0 or largest >= 2.0**-126)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def assembled(found):
    return dict(assemble(found.entries, {n: w.matrix for n, w in found.weights.items()}, found.exact))


# Reading and assembling -----------------------------------------------------------------------------------------------


@st.composite
def state_dicts(draw):
    tensors = {}
    for index in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from([*DTYPES, torch.int64, torch.bool, torch.float8_e5m2]))
        shape = draw(st.lists(st.integers(0, 3), max_size=4).map(tuple))
        limit = float(np.float32(6e4 if dtype in (torch.float16, torch.float8_e5m2) else 1e30))
        values = draw(hnp.arrays(np.float32, shape, elements=st.floats(-limit, limit, width=32)))
        if dtype in (torch.int64, torch.bool, torch.float8_e5m2):
            values = np.clip(values, -100, 100)
        tensors[f"layer{index}.{draw(st.text('abé.', max_size=3))}"] = torch.tensor(values).to(dtype)
    return tensors


@given(state_dicts())
@settings(max_examples=100, deadline=None)
def test_a_file_comes_back(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_tensors(path, tensors)
    found = read(path)
    state = assembled(found)
    assert list(state) == sorted(tensors)
    for entry in found.entries:
        tensor = tensors[entry.name]
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        assert state[entry.name].dtype == tensor.dtype
        assert torch.equal(state[entry.name].double(), tensor.double())
        is_coded = tensor.dtype in DTYPES and tensor.numel() > 0 and in_range(tensor)
        assert isinstance(entry.origin, Coded if is_coded else Exact)


@pytest.mark.parametrize(
    ("values", "dtype", "reason"),
    [
        ([1.0, 4.9e27], torch.float32, None),
        ([1.0, -5e27], torch.float32, "values up to 5e+27, beyond what steps reach"),
        ([1.0, 3e38], torch.bfloat16, "values up to 3e+38, beyond what steps reach"),
        ([0.0, 1e-45], torch.float32, None),
        ([65504.0], torch.float16, None),
        ([1.0, 1e-300], torch.float64, None),
        ([0.0, -1e-39], torch.float64, "values up to 1e-39, below the range of float32"),
        ([5e-324], torch.float64, "values up to 4.9e-324, below the range of float32"),
        ([1e308, 0.0], torch.float64, "values up to 1e+308, beyond what steps reach"),
        ([0.0], torch.float64, None),
    ],
)
def test_values_that_no_step_reaches_are_stored_without_loss(values, dtype, reason):
    layout = Layout((len(values),))
    found = origin_of("t", torch.tensor(values, dtype=dtype), layout)
    assert found == (Coded(layout) if reason is None else Exact(reason))


def test_a_file_is_never_folded_or_tied(tmp_path):
    path = tmp_path / "norm.safetensors"
    values = {name: torch.ones(3) for name in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")}
    save_tensors(path, values)
    assert [e.origin for e in read(path).entries] == [Coded(Layout((3,)))] * 4


def test_values_that_are_not_finite(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": torch.tensor([[1.0], [float("nan")]])})
    with pytest.raises(WaterfillError, match=r"'a' \[2, 1\] has 1 values that are NaN or infinite.*index \[1, 0\]"):
        read(tmp_path / "x.safetensors")


ENTRIES = (
    Entry("a", (2, 3), "float16", Coded(Layout((2, 3)))),
    Entry("b", (2, 3), "float16", Tied("a")),
    Entry("mean", (3,), "float32", NormMean(Layout((3,)), "variance")),
    Entry("variance", (3,), "float32", NormVariance(Layout((3,)), 1e-3)),
    Entry("zero", (4,), "bfloat16", Constant(0.0)),
    Entry("steps", (), "int64", Exact("integer tensor")),
)
MATRICES = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "mean": np.array([[1, -2, 3]], np.float32),
    "variance": np.array([[2, 0, 1e3]], np.float32),
}
EXACT = {"steps": torch.tensor(7)}


@pytest.mark.parametrize("matrices", [MATRICES, MATRICES.__getitem__])
def test_every_origin(matrices):
    state = dict(assemble(ENTRIES, matrices, EXACT))
    assert list(state) == [entry.name for entry in ENTRIES]
    assert state["b"] is state["a"]
    assert torch.equal(state["a"], torch.arange(6).reshape(2, 3).half())
    assert torch.equal(state["zero"], torch.zeros(4, dtype=torch.bfloat16))
    assert state["steps"] == 7
    largest = torch.finfo(torch.float32).max
    assert torch.equal(state["variance"], torch.tensor([0.25 - 1e-3, largest, 0.0]))
    assert torch.equal(state["mean"], torch.tensor([-0.5, 0.0, -3e-3]))
    for name, tensor in state.items():
        assert torch.equal(assemble_one(name, ENTRIES, matrices, EXACT), tensor)


def test_one_tensor_asks_only_for_its_own_matrices():
    asked = []

    def matrices(name):
        asked.append(name)
        return MATRICES[name]

    assemble_one("b", ENTRIES, matrices, EXACT)
    assemble_one("mean", ENTRIES, matrices, EXACT)
    assert asked == ["a", "mean", "variance"]


def test_a_name_that_is_not_there():
    with pytest.raises(WaterfillError, match=r"no tensor 'c'; expected one of 'a', 'b', 'mean', .* and 1 more"):
        assemble_one("c", ENTRIES, MATRICES, EXACT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_do_not_share_memory_with_matrices_and_stay_finite(dtype):
    matrix = np.array([[1.0, 3.4e38, -3.4e38]], np.float32)
    matrix.setflags(write=False)
    entry = Entry("a", (3,), str(dtype).removeprefix("torch."), Coded(Layout((3,))))
    tensor = assemble_one("a", [entry], {"a": matrix}, {})
    assert tensor.isfinite().all()
    tensor.zero_()
    assert matrix[0, 0] == 1


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    with pytest.raises(WaterfillError, match=r"nothing\.safetensors does not exist; expected a \.safetensors file"):
        read(tmp_path / "nothing.safetensors")
    with pytest.raises(WaterfillError, match=r"is a folder; expected a \.safetensors file"):
        read(tmp_path)


def legacy(state):
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["pth", "safetensors", ""])
@pytest.mark.parametrize("write", [legacy, zipped, pickle.dumps])
def test_a_pickle_is_refused_with_the_line_that_converts_it(tmp_path, monkeypatch, write, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(write({"a": torch.zeros(2)}))
    with pytest.raises(FormatError, match="is a pickle") as caught:
        load_tensors(path)
    target = path.with_suffix(".safetensors")
    line = f'safetensors.torch.save_file(torch.load("{path.name}", weights_only=True), "{target.name}")'
    assert line in str(caught.value)
    if suffix == "pth" and write is not pickle.dumps:
        exec(line, {"torch": torch, "safetensors": safetensors})
        assert torch.equal(load_tensors(target)["a"], torch.zeros(2))


def test_a_pickle_with_a_brace_in_the_place_of_a_header_is_a_pickle(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x80\x02}q\x00X\x01\x00{...")
    with pytest.raises(FormatError, match="is a pickle"):
        load_tensors(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl", ".PT"])
def test_a_pickle_is_known_by_its_suffix_unless_it_is_none(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"whatever it is")
    with pytest.raises(FormatError, match="is a pickle"):
        load_tensors(path)
    save_tensors(path, {"a": torch.zeros(2)})
    assert list(load_tensors(path)) == ["a"]


def test_a_header_that_looks_like_a_pickle_is_none(tmp_path):
    path = tmp_path / "x.safetensors"
    for padding in range(200, 640):
        values = {"a" * padding: torch.zeros(2)}
        data = safetensors.torch.save(values)
        if data.startswith(b"\x80\x02"):
            break
    path.write_bytes(data)
    assert data.startswith(b"\x80\x02")
    assert list(load_tensors(path)) == list(values)


def test_a_compressed_file_is_refused(tmp_path):
    path = tmp_path / "x.wf"
    path.write_bytes(b"\x89WFL\r\n\x1a\n" + bytes(100))
    with pytest.raises(FormatError, match=r"compressed already.*waterfill decompress .*x\.wf -o .*x\.safetensors"):
        read(path)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_file_is_a_format_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    whole = safetensors.torch.save({"a": torch.zeros(3, 2), "b": torch.zeros(4)})
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", bytes(len(whole))])))
    with pytest.raises(FormatError, match=r"x\.safetensors is not a whole safetensors file"):
        load_tensors(path)


@pytest.mark.parametrize("dtype", ["F6_E2M3", "BOGUS"])
def test_types_that_torch_does_not_know(tmp_path, dtype):
    size = {"F6_E2M3": 3}.get(dtype, 4)
    header = json.dumps({"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(FormatError, match=r"x\.safetensors"):
        load_tensors(path)


def test_saving_shared_turned_and_linked_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    base = torch.randn(3, 4, requires_grad=True)
    values = {"base": base, "turned": base.t(), "tied": base, "row": base[1], "empty": torch.zeros(0)}
    save_tensors(path, values)
    back = load_tensors(path)
    assert all(torch.equal(back[name], value) for name, value in values.items())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_saving_does_not_overwrite_unless_forced(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(1)})
    with pytest.raises(WaterfillError, match="is not overwritten"):
        save_tensors(path, {"a": torch.ones(1)}, force=False)
    assert load_tensors(path)["a"] == 0


def test_saving_names_a_tensor_of_a_type_it_cannot_hold(tmp_path):
    with pytest.raises(WaterfillError, match="'b' has the type complex128, which safetensors does not know"):
        save_tensors(tmp_path / "x", {"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.complex128)})
    assert list(tmp_path.iterdir()) == []
