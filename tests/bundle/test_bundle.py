"""Written and read again: values, parts, ties, the other files, and nothing half done."""

import json
import threading
import zlib

import pytest
import safetensors
import torch
import typer

import waterfill
from directories import compressed, original, payload
from waterfill import cli
from waterfill.bundle import Bundle, BundleWriter, Checkpoint, is_bundle, part_name, write_plain
from waterfill.errors import UsageError, WaterfillError
from waterfill.io.arrays import STORAGE
from waterfill.io.shards import TYPES, header

torch.manual_seed(0)
TENSORS = {
    "embed.weight": torch.randn(20, 8).bfloat16(),
    "layers.0.w": torch.randn(16, 8),
    "layers.0.experts": torch.randn(3, 8, 4),
    "layers.1.w": torch.randn(16, 8),
    "layers.1.count": torch.tensor(7),
    "layers.1.flags": torch.tensor([True, False, True]),
    "layers.1.none": torch.empty(0, 3),
}
HEAD = TENSORS | {"head.weight": TENSORS["embed.weight"].clone()}
TIED = {"head.weight": "embed.weight"}


def in_parts(name, tensor):
    """Three parts along rows for the embedding, one for each expert."""
    if name == "embed.weight":
        bounds = ((0, 7), (7, 8), (8, 20))
        return {part_name(name, start, stop): tensor[start:stop].clone() for start, stop in bounds}
    if name == "layers.0.experts":
        return {part_name(name, k): tensor[k].clone() for k in range(3)}
    return {name: tensor}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    files = {"tokenizer.json": "{}", "1_Pooling__config.json": "{}", ".gitattributes": "x", "onnx__config.json": "{}"}
    files |= {"LICENSE": "mit", "rust_model.ot": "x", "pytorch_model.bin": "x", "tf_model.h5": "x"}
    return original(tmp_path_factory.mktemp("d") / "source", HEAD, {"vocab": 20, "dtype": "bfloat16"}, **files)


@pytest.fixture(scope="module")
def out(source):
    return compressed(source, source.parent / "out", tied=TIED, split=in_parts)


def test_all_names_come_back_with_shapes_types_and_values(source, out):
    checkpoint = Checkpoint(source)
    with Bundle(out) as bundle:
        assert set(bundle) == set(HEAD) and len(bundle) == len(HEAD) and "embed.weight[0:7]" not in bundle
        assert bundle.shapes == checkpoint.shapes and bundle.dtypes == checkpoint.dtypes
        for name, tensor in bundle.items():
            assert tensor.shape == HEAD[name].shape and tensor.dtype == HEAD[name].dtype
            if tensor.is_floating_point() and tensor.numel():
                assert (tensor.float() - HEAD[name].float()).norm() < 0.5 * HEAD[name].float().norm()
            else:
                assert tensor.equal(HEAD[name])


def test_every_way_to_decode_gives_the_same(out):
    with Bundle(out) as bundle:
        everything = dict(bundle.tensors())
        assert set(everything) == set(HEAD)
        together = {name: tensor for group in bundle.groups for name, tensor in bundle.group(group).items()}
        for found in (together, waterfill.decompress(out), bundle.decode(list(HEAD))):
            assert set(found) == set(HEAD) and all(found[name].equal(everything[name]) for name in HEAD)
            assert found["head.weight"] is found["embed.weight"]


def test_a_part_is_decoded_to_its_place(out):
    with Bundle(out) as bundle:
        rows = [tensor for name, tensor in bundle.file("rest").tensors() if name.startswith("embed.weight[")]
        assert [len(part) for part in rows] == [7, 1, 12] and torch.cat(rows).equal(bundle["embed.weight"])
        experts = [tensor for name, tensor in bundle.file("layers.0").tensors() if "experts[" in name]
        assert torch.stack(experts).equal(bundle["layers.0.experts"])


def test_a_tensor_is_decoded_without_the_others(out, monkeypatch):
    with Bundle(out) as bundle:
        asked = []
        for group in bundle.groups:
            file = bundle.file(group)
            decode = file.tensors
            monkeypatch.setattr(file, "tensors", lambda names, into, do=decode: asked.extend(names) or do(names, into))
        assert bundle["layers.1.w"].shape == (16, 8) and asked == ["layers.1.w"]


def holder():
    """A module with the state dict of the original, all zeros."""
    whole = torch.nn.Module()
    for name, tensor in HEAD.items():
        *path, leaf = name.split(".")
        inner = whole
        for part in path:
            if not hasattr(inner, part):
                inner.add_module(part, torch.nn.Module())
            inner = getattr(inner, part)
        inner.register_buffer(leaf, torch.zeros_like(tensor))
    return whole


@pytest.mark.parametrize("way", ["decompress", "load", "inspect"])
def test_every_chunk_is_checked_once(out, monkeypatch, way):
    with Bundle(out) as bundle:
        expected = sum(1 + len(bundle.file(group).container._directory.chunks) for group in bundle.groups)
    sums, crc32 = [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda data: sums.append(len(data)) or crc32(data))
    if way == "decompress":
        waterfill.decompress(out)
    elif way == "load":
        waterfill.load(out, into=holder())
    else:
        typer.main.get_command(cli.app)(["inspect", str(out)], standalone_mode=False)
    assert len(sums) == expected


def test_what_it_says_of_itself(source, out):
    with waterfill.open(out) as bundle:
        assert isinstance(bundle, Bundle) and bundle.groups == ("rest", "layers.0", "layers.1")
        assert bundle.tied == TIED and bundle.facts == {"rate": 4.0} and bundle.config["vocab"] == 20
        assert bundle.names("rest") == ["embed.weight", "head.weight"]
        assert bundle.floating_values == sum(t.numel() for t in TENSORS.values() if t.is_floating_point())
        assert bundle.size_bytes == sum(len(bundle.payload(group)) for group in bundle.groups)
        assert {entry.name for entry in bundle.entries} >= {"embed.weight[0:7]", "layers.0.experts[2]"}
        assert bundle.description.dtype == "bfloat16"
        bundle.verify()
    assert is_bundle(out) and not is_bundle(source) and not is_bundle(out / "config.json")


def test_a_payload_is_an_ordinary_file(out, tmp_path):
    with Bundle(out) as bundle:
        (tmp_path / "one.wf").write_bytes(bundle.payload("layers.1"))
        assert waterfill.decompress(tmp_path / "one.wf")["layers.1.w"].equal(bundle["layers.1.w"])


def test_threads_decode_at_the_same_time(out):
    with Bundle(out) as bundle:
        expected, wrong = dict(bundle.tensors()), []

        def work():
            for name in HEAD:
                if not bundle[name].equal(expected[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_shards_are_ordinary_safetensors_that_say_what_the_configuration_says(source, tmp_path):
    small = compressed(source, tmp_path / "small", tied=TIED, shard_bytes=700)
    index = json.loads((small / "waterfill.safetensors.index.json").read_bytes())
    described = json.loads((small / "config.json").read_bytes())["quantization_config"]
    assert (
        described["quant_method"] == "waterfill"
        and (described["format"], described["minor"]) == (2, 1)
        and described["tied"] == TIED
    )
    assert described["producer"] == f"waterfill {waterfill.__version__}"
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == sum(line["bytes"] for line in described["groups"])
    for line in described["groups"]:
        shard = small / index["weight_map"][line["tensor"]]
        assert shard.stat().st_size < 700 + 300
        with safetensors.safe_open(shard, "pt") as file:
            tensor = file.get_tensor(line["tensor"])
            assert file.metadata().keys() == {"format", "digest"} and tensor.dtype == torch.uint8
            assert tensor.shape == (line["bytes"],)
    one, other = Bundle(small), Bundle(compressed(source, tmp_path / "large", tied=TIED))
    assert all(one[name].equal(other[name]) for name in HEAD)


def test_the_other_files_come_along_and_weights_do_not(out):
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    guards = {"model.safetensors.index.json", "pytorch_model.bin.index.json"}
    copied = {"tokenizer.json", "1_Pooling/config.json", "LICENSE"}
    assert names == {"config.json", "waterfill.safetensors"} | guards | copied
    config = json.loads((out / "config.json").read_bytes())
    assert config["vocab"] == 20 and set(config) == {"vocab", "dtype", "quantization_config"}


def test_layers_that_modules_json_names_come_along_whole(tmp_path):
    source = original(tmp_path / "m", {"w": torch.randn(8, 8)}, **{"2_Dense__model.safetensors": "weights"})
    (source / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    assert (compressed(source, tmp_path / "out") / "2_Dense/model.safetensors").read_text() == "weights"
    (source / "modules.json").write_text("no json")
    assert not (compressed(source, tmp_path / "other") / "2_Dense").exists()


# Plain directories


@pytest.mark.parametrize("shard_bytes", [10**9, 300])
def test_plain_directories_hold_the_same_tensors(out, tmp_path, shard_bytes):
    with Bundle(out) as bundle:
        size = write_plain(bundle, tmp_path / "plain", shard_bytes=shard_bytes)
        plain = Checkpoint(tmp_path / "plain")
        assert set(plain) == set(HEAD) and all(plain[name].equal(bundle[name]) for name in HEAD)
    files = [*(tmp_path / "plain").glob("*.safetensors"), *(tmp_path / "plain").glob("*.index.json")]
    assert size == sum(path.stat().st_size for path in files) and (len(files) == 1) == (shard_bytes > 300)
    for path in (tmp_path / "plain").glob("*.safetensors"):
        for each in header(path).values():
            assert each.start % STORAGE[TYPES[each.dtype]].itemsize == 0
    assert json.loads((tmp_path / "plain/config.json").read_bytes()) == {"vocab": 20, "dtype": "bfloat16"}
    assert (tmp_path / "plain/tokenizer.json").is_file() and (tmp_path / "plain/1_Pooling/config.json").is_file()


def test_a_damaged_payload_leaves_nothing(source, tmp_path):
    out = compressed(source, tmp_path / "out")
    data = bytearray((out / "waterfill.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "waterfill.safetensors").write_bytes(data)
    with pytest.raises(WaterfillError, match="checksum"), Bundle(out) as bundle:
        write_plain(bundle, tmp_path / "plain")
    assert listed(tmp_path) == ["out"]


# Destinations


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def write(out, source, **how):
    with BundleWriter(out, source, **how) as writer:
        writer.add("all", payload({"w": torch.ones(4, 4)}))
        writer.finish({}, {})


def test_what_is_there_stays_without_force_and_goes_with_it(source, tmp_path):
    write(tmp_path / "out", source)
    (tmp_path / "out/old").write_text("")
    with pytest.raises(WaterfillError, match="--force"):
        BundleWriter(tmp_path / "out", source)
    write(tmp_path / "out", source, force=True)
    assert not (tmp_path / "out/old").exists() and Bundle(tmp_path / "out")["w"].shape == (4, 4)
    assert listed(tmp_path) == ["out"]


@pytest.mark.parametrize("when", ["add", "finish", "move"])
def test_an_exception_leaves_nothing_behind(source, tmp_path, monkeypatch, when):
    write(tmp_path / "out", source)
    before = [path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.*"))]
    if when == "finish":
        monkeypatch.setattr("shutil.copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    if when == "move":
        error = OSError(5, "Input/output error")
        monkeypatch.setattr("waterfill.file_system._rename", lambda *_: (_ for _ in ()).throw(error))
    with (
        pytest.raises((WaterfillError, ZeroDivisionError)),
        BundleWriter(tmp_path / "out", source, force=True) as writer,
    ):
        writer.add("all", payload({"other": torch.ones(4, 4)}))
        if when == "add":
            raise ZeroDivisionError
        writer.finish({}, {})
    assert listed(tmp_path) == ["out"]
    assert [path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.*"))] == before


def test_leaving_without_finish_writes_nothing(source, tmp_path):
    with BundleWriter(tmp_path / "out", source) as writer:
        writer.add("all", payload({"w": torch.ones(4, 4)}))
    assert not listed(tmp_path)


def test_a_directory_that_is_no_model_is_never_replaced(source, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")
    with pytest.raises(WaterfillError, match="no model directory"):
        BundleWriter(tmp_path / "home", source, force=True)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", source)
    assert is_bundle(tmp_path / "empty")


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        ("source", UsageError, "holds the input"),
        (".", UsageError, "holds the input"),
        ("nowhere/out", WaterfillError, "does not exist"),
        ("source/config.json", WaterfillError, "is a file"),
    ],
)
def test_other_destinations_are_refused(tmp_path, out, error, words):
    source = original(tmp_path / "source", {"w": torch.ones(2)})
    with pytest.raises(error, match=words):
        BundleWriter(tmp_path / out, source, force=True)


def test_wrong_use_is_said(source, tmp_path):
    with BundleWriter(tmp_path / "out", source) as writer:
        with pytest.raises(UsageError, match="needs a group"):
            writer.finish({}, {})
        with pytest.raises(UsageError, match=r"no \.wf file"):
            writer.add("a", b"hello")
        writer.add("a", payload({"w": torch.ones(4, 4)}))
        with pytest.raises(UsageError, match="added twice"):
            writer.add("a", payload({"w": torch.ones(4, 4)}))
        with pytest.raises(UsageError, match="'groups'"):
            writer.finish({}, {"groups": 3})


def test_modes_are_those_of_an_ordinary_directory(source, tmp_path):
    write(tmp_path / "out", source)
    (tmp_path / "other").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_plain_directory_says_nothing_of_quantization_anywhere(tmp_path):
    out = compressed(
        original(tmp_path / "source", {"w": torch.randn(16, 8)}, {"text_config": {"x": 1.5}}), tmp_path / "out"
    )
    config = json.loads((out / "config.json").read_bytes())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (out / "config.json").write_text(json.dumps(config))
    with Bundle(out) as bundle:
        write_plain(bundle, tmp_path / "plain")
    assert json.loads((tmp_path / "plain/config.json").read_bytes())["text_config"] == {"x": 1.5}
    assert Checkpoint(tmp_path / "plain")["w"].shape == (16, 8)
