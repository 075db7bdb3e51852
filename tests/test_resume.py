"""Work folders: what was killed goes on, what does not fit is refused, what is damaged is made again."""

import dataclasses
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

import waterfill
from waterfill import cli, records
from waterfill.compression.calibration import prepare
from waterfill.compression.encoder import Encoder, Job
from waterfill.compression.settings import Settings
from waterfill.errors import UsageError, WaterfillError
from waterfill.importance import factored, forms, gradient_hessian, kl, kronecker
from waterfill.models.state_dict import save_tensors
from waterfill.quantize import Feedback, KMeans, Scalar, Trellis
from waterfill.resume import Memo, facts, work_folder
from waterfill.resume.description import describe
from waterfill.resume.storage import RECORDS, Unstorable, pack, seal, unpack, unseal

ALWAYS = {"size_bytes": 1500, "seed": 3, "effort": "fast"}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)
    )


def data(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 6, generator=generator), torch.randint(5, (8,), generator=generator)) for _ in range(count)]


CALLS = []


@dataclass(frozen=True)
class Counting:
    """A scalar quantizer that says when it is called."""

    def quantize(self, weight, form, water_level):
        CALLS.append((weight.name, water_level))
        return Scalar().quantize(weight, form, water_level)


class CountingTwice(Counting):
    """Another quantizer of the same options."""

    def quantize(self, weight, form, water_level):
        return super().quantize(weight, form, 2 * water_level)


@dataclass(frozen=True)
class CountingImportance:
    """An importance that says when it is estimated."""

    name: str = "kl"

    def estimate(self, *args, **options):
        CALLS.append("importance")
        return kl().estimate(*args, **options)


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


def compressed(model=None, batches=None, **options):
    """Compress: the bytes of the file, and which calls it took."""
    CALLS.clear()
    given = {"quantizers": [Counting()], "importance": CountingImportance(), **ALWAYS, **options}
    result = waterfill.compress(model or net(), batches or data(), **given)
    return result.data, list(CALLS)


@pytest.fixture
def run(work):
    """Compress in the work folder, as `compressed` does."""

    def one(model=None, batches=None, **options):
        return compressed(model, batches, **{"work": work, **options})

    return one


@pytest.fixture(scope="module")
def finished_work(tmp_path_factory):
    """The work folder of a compression that has ended, and what `compressed` returned."""
    place = tmp_path_factory.mktemp("finished") / "work"
    return place, compressed(work=place)


@pytest.fixture
def finished(finished_work, work):
    """A compression has ended in the work folder: the bytes of its file, and which calls it took."""
    place, found = finished_work
    shutil.copytree(place, work)
    return found


@pytest.fixture(scope="module")
def of_other_data():
    """The bytes of the file where a batch is another one."""
    return compressed(batches=other_batch())[0]


def results(work):
    return sorted(work.glob("*.result"))


# What was killed goes on

SUBJECT = """
import os, sys, time
from dataclasses import dataclass
import torch, waterfill
from torch import nn
from waterfill.importance import kl
from waterfill.quantize import Scalar

def note(text):
    with open("calls.txt", "a") as file:
        file.write(text + "\\n")
    time.sleep(float(os.environ.get("PAUSE", "0")))

@dataclass(frozen=True)
class Slow:
    def quantize(self, weight, form, water_level):
        note(f"{weight.name} {water_level!r}")
        return Scalar().quantize(weight, form, water_level)

@dataclass(frozen=True)
class Importance:
    name: str = "kl"
    def estimate(self, *args, **options):
        note("importance")
        return kl().estimate(*args, **options)

if __name__ == "__main__":
    import subject
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 5))
    data = [(torch.randn(8, 6), torch.randint(5, (8,))) for _ in range(2)]
    options = {"quantizers": [subject.Slow()], "importance": subject.Importance(), "effort": "fast"}
    for out, work in zip(sys.argv[1::2], sys.argv[2::2]):
        waterfill.compress(model, data, size_bytes=1500, work=work or None, **options).save(out)
        with open("calls.txt") as file:
            calls = file.read()
        with open(out + ".calls", "w") as file:
            file.write(calls)
        open("calls.txt", "w").close()
"""


def start(place, *words, pause=0.0):
    (place / "subject.py").write_text(SUBJECT)
    (place / "calls.txt").write_text("")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PAUSE": str(pause)}
    command = [sys.executable, "-W", "error", "subject.py", *words]
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)


def calls_of(place, *words):
    process = start(place, *words)
    assert process.wait(timeout=300) == 0, process.stderr.read()
    process.stderr.close()
    return (place / f"{words[-2]}.calls").read_text().split("\n")[:-1]


def wait_for_results(process, work, count):
    deadline = time.monotonic() + 300
    while len(results(work)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_was_killed_goes_on_and_makes_the_same_file(tmp_path):
    whole = calls_of(tmp_path, "plain.wf", "", "whole.wf", "whole")
    assert whole.count("importance") == 1
    kept_by_estimating = len(results(tmp_path / "whole")) - len(whole) + 1  # forms, and the list of them

    process = start(tmp_path, "o.wf", "work", pause=0.3)
    wait_for_results(process, tmp_path / "work", kept_by_estimating + 4)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.stderr.close()
    begun = (tmp_path / "calls.txt").read_text().split("\n")[:-1]
    finished = len(results(tmp_path / "work")) - kept_by_estimating
    assert not (tmp_path / "o.wf").exists() and 4 <= finished < len(whole) - 1

    again = calls_of(tmp_path, "o.wf", "work")
    assert "importance" not in again and len(again) == len(whole) - 1 - finished
    assert set(again) | set(begun) == set(whole)
    assert (tmp_path / "o.wf").read_bytes() == (tmp_path / "plain.wf").read_bytes()
    assert (tmp_path / "whole.wf").read_bytes() == (tmp_path / "plain.wf").read_bytes()


def test_what_is_finished_is_not_computed_again(run):
    first, calls = run()
    assert calls.count("importance") == 1 and len(calls) > 3
    assert run() == (first, [])
    assert run(work=None)[0] == first


def test_another_target_uses_what_fits(run, finished):
    _, calls = finished
    other, more = run(size_bytes=1100)
    assert more and "importance" not in more and not set(more) & set(calls)
    assert run(size_bytes=1100, work=None)[0] == other


OPTIONS = {
    "default": {},
    "full factors": {"importance": kronecker(full=True, temperature=2.0)},
    "both powers": {"importance": gradient_hessian(mu=10.0), "quantizers": [KMeans(4)]},
    "trellis": {"quantizers": [Trellis(8)], "importance": kl()},
    "no data": {"data": None, "importance": None},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_file_does_not_depend_on_where_its_parts_are_from(name, work):
    options = {"data": data(), "effort": "fast", **OPTIONS[name]}
    options |= {} if name == "both powers" else {"size_bytes": 1500}
    wanted = waterfill.compress(net(), **options).data
    assert waterfill.compress(net(), **options, work=work).data == wanted
    assert waterfill.compress(net(), **options, work=work).data == wanted


def test_a_bare_file_goes_on_too(work, tmp_path):
    save_tensors(tmp_path / "net.safetensors", net().state_dict())
    options = {"quantizers": [Counting()], "size_bytes": 1500, "work": work}
    CALLS.clear()
    first = waterfill.compress(tmp_path / "net.safetensors", **options).data
    assert CALLS
    CALLS.clear()
    assert waterfill.compress(tmp_path / "net.safetensors", **options).data == first and not CALLS


@pytest.mark.usefixtures("finished")
def test_a_tensor_is_found_by_all_that_its_symbols_depend_on(work):
    weight = records.Weight(
        "w", np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), records.Layout((8, 6))
    )
    form = forms.DiagonalForm(np.ones((8, 6), np.float32))
    job = Job(weight, Counting(), form, form)
    others = [
        (replace(job, weight=replace(weight, matrix=weight.matrix + 1)), 0.1),
        (replace(job, weight=replace(weight, layout=records.Layout((8, 2, 3)))), 0.1),
        (replace(job, form=forms.DiagonalForm(form.values / 2)), 0.1),
        (replace(job, form=None), 0.1),
        (replace(job, quantizer=CountingTwice()), 0.1),
        (job, 0.11),
        (job, 0.1),
    ]
    with opened(work) as memo:
        encoder = Encoder(Counting(), memo=memo)
        made = [encoder.quantize_one(*other) for other in others]
        CALLS.clear()
        again = [encoder.quantize_one(*other) for other in others]
        assert not CALLS
    for one, two, (other, level) in zip(made, again, others, strict=True):
        same(one, two)
        same(one, Encoder(Counting()).quantize_one(other, level))


@contextmanager
def opened(work):
    """The work folder of `run` as it is during a compression."""
    with work_folder(work, {"effort": "fast", "quantizer": Counting()}) as memo:
        options = {"include": (), "exclude": (), "fold_norms": True}
        prepare(net(), data(), None, options, Settings(Counting(), CountingImportance(), 3, memo=memo))
        yield memo


# What does not fit is refused


def with_weight(change):
    model = net()
    change(model[3].weight.data)
    return model


class Other(nn.Sequential):
    """The same weights, another function."""

    def forward(self, x):
        return 2 * super().forward(x)


class Reordered(nn.Sequential):
    """The same weights in another order."""

    def state_dict(self, *args, **options):
        return dict(sorted(super().state_dict(*args, **options).items(), reverse=True))


def other_batch():
    batches = data()
    batches[1][0][2, 3] += 1e-6
    return batches


def other_target():
    batches = data()
    batches[2][1][0] = (batches[2][1][0] + 1) % 5
    return batches


DIFFERENCES = [
    ({"batches": other_batch()}, "data: batch 1 differs"),
    ({"batches": other_target()}, "data: batch 2 differs"),
    ({"batches": data()[::-1]}, "data: batch 0, 2 differ"),
    ({"batches": data(2)}, "data: 2 batches, were 3"),
    ({"effort": "best"}, "option effort is 'best', was 'fast'"),
    ({"seed": 4}, "option seed is 4, was 3"),
    ({"exclude": ["0.*"]}, "option exclude is ('0.*'), was ()"),
    ({"include": ["*.weight"]}, "option include is ('*.weight'), was ()"),
    ({"fold_norms": False}, "option fold_norms is False, was True"),
    ({"output": "values"}, "option output is 'values', was 'logits'"),
    ({"quantizers": [Scalar()]}, "option quantizer is Scalar("),
    ({"importance": kl(temperature=2.0)}, "option importance is kl(temperature=2.0"),
    ({"model": with_weight(lambda w: w[1].mul_(1.0001))}, "weights of 3.weight differ"),
    ({"model": net(1)}, "weights of 0.weight, 0.bias, 3.weight and 3 more differ"),
    ({"model": net()[:5]}, "5.weight, 5.bias are missing"),
    ({"model": nn.Sequential(*net(), nn.Linear(5, 5, bias=False))}, "6.weight is new"),
    ({"model": Reordered(*net())}, "tensors come in another order"),
    ({"model": Other(*net())}, "outputs of the model: batch 0, 1, 2 differ; perhaps its code is another one"),
]


@pytest.mark.parametrize(("change", "text"), DIFFERENCES, ids=[text for _, text in DIFFERENCES])
def test_another_compression_is_refused_with_the_difference(run, work, finished, change, text):
    kept = {path: path.read_bytes() for path in work.iterdir() if path.name != "lock"}
    with pytest.raises(UsageError, match=re.escape(text)) as error:
        run(**change)
    assert str(work) in str(error.value) and "name another folder, or delete this one" in str(error.value)
    assert "importance" not in CALLS
    assert {path: path.read_bytes() for path in work.iterdir() if path.name != "lock"} == kept
    assert run() == (finished[0], [])


@pytest.mark.usefixtures("finished")
def test_several_differences_are_all_named(run):
    with pytest.raises(UsageError, match=r"option seed is 5, was 3; weights of .* differ; data: batch 1 differs\. Go"):
        run(net(1), other_batch(), seed=5)


@pytest.mark.usefixtures("finished")
def test_other_code_of_the_package_is_refused(run, monkeypatch):
    monkeypatch.setattr(facts, "__version__", "0.0.9")
    with pytest.raises(UsageError, match=r"waterfill is 0\.0\.9 .*, was 0\.1\.0 "):
        run()


@pytest.mark.usefixtures("finished")
def test_circumstances_are_told_where_outputs_differ(run, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    run()  # nothing differs for it
    with pytest.raises(UsageError, match=r"outputs of the model: batch .*; threads of torch is 99, was "):
        run(Other(*net()))


class Odd:
    """An option about which nothing can be said."""

    __slots__ = ()
    quantize = Scalar().quantize


def test_options_that_nothing_tells_apart_are_refused(run):
    with pytest.raises(UsageError, match=r"Nothing says what a \S*test_resume\.Odd holds.*or no work folder"):
        run(quantizers=[Odd()])


# What is damaged is made again


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    file = bytearray(path.read_bytes())
    file[len(file) // 2] ^= 16
    path.write_bytes(file)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, empty, flip, remove])
def test_damaged_results_are_made_again(run, work, finished, damage):
    first, calls = finished
    intact = {path: path.read_bytes() for path in results(work)}
    for path in intact:
        damage(path)
    again, more = run()
    assert again == first and sorted(map(str, more)) == sorted(map(str, calls))
    assert {path: path.read_bytes() for path in results(work)} == intact


def test_one_damaged_result_is_made_again_alone(run, work, finished):
    first, _ = finished
    kept = sorted(results(work), key=lambda path: path.stat().st_mtime_ns)
    for path, wanted in ((kept[0], "importance"), (kept[-1], "tensor")):
        flip(path)
        again, more = run()
        assert (again, len(more)) == (first, 1) and ("importance" in more) == (wanted == "importance")


def test_a_result_under_the_name_of_another_is_none(run, work, finished):
    first, _ = finished
    one, *others = results(work)
    for other in others:
        shutil.copy(one, other)
    again, calls = run()
    assert again == first and len(calls) > 3


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"data": 3}', b"\xff\xfe"])
def test_a_damaged_fingerprint_is_made_again_and_nothing_else_is_taken_for_it(run, work, finished, of_other_data, text):
    first, _ = finished
    whole = (work / "fingerprint.json").read_bytes()
    (work / "fingerprint.json").write_bytes(text)
    other, calls = run(batches=other_batch())
    assert "importance" in calls and other == of_other_data
    (work / "fingerprint.json").write_bytes(text)
    assert run() == (first, [])
    assert (work / "fingerprint.json").read_bytes() == whole


# One at a time


def test_two_at_once_are_refused_until_the_first_one_ends(tmp_path):
    process = start(tmp_path, "o.wf", "work", pause=60.0)
    wait_for_results_or_lock(process, tmp_path / "work")
    with (
        pytest.raises(WaterfillError, match=rf"work is in use by process {process.pid} on .*; wait until"),
        work_folder(tmp_path / "work", {}),
    ):
        pass
    process.kill()
    process.wait(timeout=60)
    process.stderr.close()
    with work_folder(tmp_path / "work", {}):
        pass


def wait_for_results_or_lock(process, work):
    deadline = time.monotonic() + 300
    while not ((work / "lock").exists() and (work / "lock").read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_at_once_in_one_process_are_refused(work):
    with (
        work_folder(work, {}),
        pytest.raises(WaterfillError, match=f"in use by process {os.getpid()}"),
        work_folder(work, {}),
    ):
        pass
    with work_folder(work, {}):
        pass


def test_a_compression_that_fails_leaves_the_folder_free(run):
    with pytest.raises(waterfill.errors.TargetError):
        run(size_bytes=10)
    run()


# Folders


def test_a_folder_of_other_files_is_refused(run, work):
    work.mkdir()
    (work / "thesis.tex").write_text("dear")
    with pytest.raises(UsageError, match=r"has other files, such as thesis\.tex; expected a new or empty folder"):
        run()
    assert os.listdir(work) == ["thesis.tex"]  # noqa: PTH208


def test_a_file_is_no_folder(run, work):
    work.write_text("dear")
    with pytest.raises(WaterfillError, match=r"Work folder .* cannot be used: File exists"):
        run()


@pytest.mark.usefixtures("finished")
def test_parts_that_a_killed_one_left_are_removed(run, work):
    part = work / f".{results(work)[0].stem}.x1y2.part"
    part.write_bytes(b"half")
    assert not run()[1] and not part.exists()


def test_a_disk_that_is_full_is_said(run, monkeypatch):
    def full(path, _):
        raise WaterfillError(f"Writing {path} failed: No space left on device; nothing was written.")

    monkeypatch.setattr("waterfill.resume.folder.write_file", full)
    with pytest.raises(WaterfillError, match="No space left"):
        run()


# Keys and values


@dataclass(frozen=True)
class Thing:
    a: object
    b: object = None


class Plain:
    def __init__(self, a):
        self.a = a


DIFFERENT = [
    *(None, True, 1, 1.0, "1", b"1", (), (1,), ((1,),), (1, 1), {}, {"a": 1}, {"b": 1}, {1: "a"}, {1}),
    *(
        0.1,
        0.1 + 2**-56,
        float("nan"),
        -0.0,
        "",
        "'1'",
        "(1)",
        complex(1, 2),
        Path("a"),
        Path("b"),
        torch.float16,
        torch.float32,
        np.float32,
        len,
        net,
    ),
    *(np.zeros(2), np.zeros(2, np.float32), np.zeros((1, 2)), np.array([0.0, -0.0]), np.zeros(0), np.array(0.0)),
    *(
        np.zeros(2, np.int32),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, dtype=torch.float16),
        torch.zeros(1, 2),
        torch.zeros(0, 3),
        torch.zeros(3, 0),
    ),
    *(Thing(1), Thing(None, 1), Thing((1, None)), Plain(1), Plain(2), Thing(Thing(1)), net(), net(1), kl(), kl(2.0)),
    *(Scalar(), Trellis(8), Feedback(8), torch.tensor(True), torch.tensor([1 + 2j]), np.array([None, "a"], object)),
]


def test_different_values_have_different_texts():
    texts = [describe(value) for value in DIFFERENT]
    doubles = {text for text in texts if texts.count(text) > 1}
    assert not doubles


def test_equal_values_have_the_same_text():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert describe(array) == describe(array.copy()) == describe(np.asfortranarray(array)) == describe(array.T.copy().T)
    assert describe(torch.from_numpy(array)) == describe(array)
    assert describe([1, 2]) == describe((1, 2)) and describe({3, 1}) == describe({1, 3})
    assert describe(np.float32(0.5)) == describe(0.5) and describe(net()) == describe(net())
    conjugate = torch.tensor([1 + 2j]).conj()
    assert describe(conjugate) == describe(conjugate.resolve_conj())


@pytest.mark.parametrize("value", [lambda: 1, {"a": (lambda: 1,)}, Odd(), Thing(object())])
def test_what_has_no_text_is_refused(value):
    with pytest.raises(UsageError, match="no work folder"):
        describe(value)


def test_what_holds_itself_is_refused():
    thing = Plain(1)
    thing.a = thing
    with pytest.raises(UsageError, match="A Plain holds itself"):
        describe(thing)


def same(one, two):
    if isinstance(one, np.ndarray):
        assert one.dtype == two.dtype and one.shape == two.shape and two.flags.writeable
        assert one.tobytes() == two.tobytes()
    elif dataclasses.is_dataclass(one):
        assert type(one) is type(two)
        for field in dataclasses.fields(one):
            same(getattr(one, field.name), getattr(two, field.name))
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for name in one:
            same(one[name], two[name])
    elif isinstance(one, list | tuple):
        assert isinstance(two, tuple) and len(one) == len(two)
        for pair in zip(one, two, strict=True):
            same(*pair)
    else:
        assert type(one) is type(two) and repr(one) == repr(two)


SIZES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
KINDS = st.one_of(
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
    arrays.complex_number_dtypes(sizes=(64, 128), endianness="?"),
    arrays.boolean_dtypes(),
)
ARRAYS = arrays.arrays(KINDS, SIZES)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(), st.binary())
TREES = st.recursive(
    SCALARS | ARRAYS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(TREES)
def test_values_come_back(value):
    same(value, unpack(pack(value)))


@given(ARRAYS, st.randoms())
def test_arrays_come_back_in_their_order_in_memory(array, random):
    axes = list(range(array.ndim))
    random.shuffle(axes)
    turned = array.transpose(axes)
    found = unpack(pack(turned))
    same(turned, found)
    big = [axis for axis, size in enumerate(turned.shape) if size > 1]
    if turned.size:
        assert [turned.strides[axis] for axis in big] == [found.strides[axis] for axis in big]


def test_symbols_are_small():
    symbols = np.random.default_rng(0).integers(-2, 3, (100, 100)).astype(np.int32)
    assert len(pack(symbols)) < 4000
    for edge in (-128, 127, -129, 128, 2**15 - 1, 2**15, -(2**31)):
        symbols[0, 0] = edge
        same(symbols, unpack(pack(symbols)))


def test_every_record_that_a_result_can_hold_can_be_kept():
    quantized = {*records.Rule.__args__, *records.Basis.__args__, records.Quantized, records.Spread}
    quantized |= {records.Table, records.Paths, records.Lanes, records.Adaptive}
    priced = {
        kind
        for module in (forms, factored)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, forms.Form) and not inspect.isabstract(kind)
    } - {forms.ForeignForm}
    assert len(priced) == 6 and quantized | priced <= set(RECORDS.values())


def test_records_come_back():
    table = records.Table(-1, np.array([1, 2], np.int32))
    paths = records.Paths(3, True, 0, 1, 2, down=True, lanes=records.Lanes(8, 5))
    spread = records.Spread(1, 2, np.int8([1]), None, None, (table,), paths)
    rules = [records.Uniform(3, 1, (1, 2, 3), np.int8([1, 2])), records.Codebook(np.float32([1, 2]), -1)]
    for rule in [*rules, records.Relative(3, 4, True)]:
        same(quantized := records.Quantized(np.int32([[3, -70000]]), rule, spread, 1.5, 2.5), unpack(pack(quantized)))
    for basis in (records.Cosines(1, 8), records.Flips(np.int8([3, -64])), records.Rotations(0, 1, np.int8([64]))):
        spread = records.Spread(1, 2, adaptive=records.Adaptive(28))
        quantized = records.Quantized(np.int32([[3, 4]]), rule, spread, basis=basis, row_costs=np.array([0.5]))
        same(quantized, unpack(pack(quantized)))
    for form in kronecker(full=True).estimate(net(), data()).values():
        same(form, unpack(pack(form)))


@dataclass(frozen=True)
class OwnForm:
    """Somebody else's form."""

    inner: forms.DiagonalForm

    def diagonal(self):
        return self.inner.diagonal()

    def cost(self, error):
        return self.inner.cost(error)


class OwnImportance(CountingImportance):
    """Somebody else's importance."""

    def estimate(self, *args, **options):
        return {name: OwnForm(form) for name, form in super().estimate(*args, **options).items()}


def test_forms_of_another_class_are_estimated_again(run):
    first, calls = run(importance=OwnImportance())
    assert len(calls) > 3
    assert run(importance=OwnImportance()) == (first, ["importance"])


@pytest.mark.parametrize("value", [torch.zeros(1), OwnForm(None), {1: 2}, {3}, np.array(["a"]), Plain(1)])
def test_what_cannot_be_kept_is_refused(value):
    with pytest.raises(Unstorable, match="cannot be kept in a work folder"):
        pack([value])


@pytest.mark.parametrize("data", [b"", b"x" * 40, pack([1])[:-1]])
def test_bytes_that_are_no_value_are_refused(data):
    with pytest.raises(ValueError):
        unpack(data)


def test_a_seal_is_of_a_key_and_its_data():
    file = b"".join(seal(b"data", "key"))
    assert unseal(file, "key") == b"data"
    assert unseal(file, "other") is None and unseal(file[:-1], "key") is None and unseal(b"", "key") is None


def test_without_a_folder_everything_is_computed():
    memo = Memo()
    memo.claim(lambda _: pytest.fail("nothing asks for it"))
    assert [memo.once(("a",), lambda each=each: each) for each in (1, 2)] == [1, 2]


@pytest.mark.usefixtures("finished")
def test_any_result_is_kept_under_what_it_depends_on(work):
    weight = records.Weight("w", np.float32([[1]]), records.Layout((1, 1)))
    with opened(work) as memo:
        first = memo.once(("curve", weight), lambda: {"kl": np.float32([1, 2]), "bits": [3]})
        assert first["bits"] == (3,) and first["kl"].tolist() == [1, 2]
        assert memo.once(("curve", weight), lambda: pytest.fail("it is there"))["bits"] == (3,)
        other = replace(weight, matrix=np.float32([[2]]))
        assert memo.once(("curve", other), lambda: {"bits": 4}) == {"bits": 4}


def test_there_are_no_results_before_their_fingerprint(work):
    with work_folder(work, {}) as memo, pytest.raises(AssertionError, match="before their fingerprint"):
        memo.once(("curve",), dict)


# The command

NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 5))

def batches():
    torch.manual_seed(1)
    return [(torch.randn(8, 6), torch.randint(5, (8,))) for _ in range(2)]
"""


def test_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "resumed_nets.py").write_text(textwrap.dedent(NETS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def command(out, *more):
        words = ["compress", "resumed_nets:net", "--data", "resumed_nets:batches", "--size", "1kB", "-o", out, *more]
        monkeypatch.setattr(sys, "argv", ["waterfill", *words, "--quantizer", "scalar"])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0

    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert command("plain.wf") == 0 and command("a.wf", "--work", "w") == 0
        kept = {path: path.stat().st_mtime_ns for path in results(tmp_path / "w")}
        assert kept and command("b.wf", "--work", "w") == 0
        assert {path: path.stat().st_mtime_ns for path in results(tmp_path / "w")} == kept
        assert len({(tmp_path / name).read_bytes() for name in ("plain.wf", "a.wf", "b.wf")}) == 1
        capsys.readouterr()
        assert command("c.wf", "--work", "w", "--seed", "7") == 2
        assert "waterfill: Work folder w has results of another compression: option" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGTERM, handler)
