"""Damaged and hostile directories: a FormatError that names where, or the right tensors, never anything else."""

import json
import os
import random
import shutil

import pytest
import safetensors.torch
import torch

import waterfill
from directories import compressed, original, payload
from waterfill.bundle import Bundle, BundleWriter
from waterfill.bundle.checkpoint import natural
from waterfill.errors import FormatError, WaterfillError
from waterfill.io import shards
from waterfill.io.parts import part_of
from waterfill.io.shards import header
from waterfill.report.directory import bundle_summary


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks")
    tensors = {"embed": torch.randn(16, 8), "layers.0.w": torch.randn(16, 8), "layers.1.w": torch.randn(16, 8)}
    return compressed(original(folder / "source", tensors), folder / "out", shard_bytes=700)


@pytest.fixture
def bad(good, tmp_path):
    return shutil.copytree(good, tmp_path / "bad")


def edit(folder, change):
    config = json.loads((folder / "config.json").read_bytes())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def shard_of(folder, tensor):
    index = json.loads((folder / "waterfill.safetensors.index.json").read_bytes())
    return folder / index["weight_map"][tensor]


def everything(folder):
    with Bundle(folder) as bundle:
        bundle.verify()
        return dict(bundle.tensors())


def test_a_flipped_byte_anywhere_in_a_payload_is_found(bad):
    path = shard_of(bad, "waterfill_1")
    place, data = header(path)["waterfill_1"], path.read_bytes()
    for at in {0, 9, 13, 40, place.size - 1, *random.Random(0).sample(range(place.size), 40)}:
        changed = bytearray(data)
        changed[place.start + at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(FormatError, match=rf"{path.name}, group 'layers\.0'"):
            everything(bad)


def test_a_flipped_byte_elsewhere_does_no_harm_to_other_groups(good, bad):
    expected, path = everything(good), shard_of(bad, "waterfill_1")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with Bundle(bad) as bundle:
        assert bundle["embed"].equal(expected["embed"]) and bundle["layers.1.w"].equal(expected["layers.1.w"])
        with pytest.raises(FormatError, match=r"group 'layers\.0'"):
            bundle["layers.0.w"]


def test_a_shard_that_is_cut_anywhere_is_found(bad):
    path = shard_of(bad, "waterfill_0")
    data = path.read_bytes()
    for size in (0, 7, 8, 50, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError, match=path.name):
            Bundle(bad)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError, match="cut or damaged"):
        Bundle(bad)


def test_a_shard_that_is_cut_while_it_is_open_is_found(bad):
    path = shard_of(bad, "waterfill_0")
    place = header(path)["waterfill_0"]
    from waterfill.io.shards import OpenShards

    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError, match="was cut"):
        OpenShards().part(place)


def test_a_shard_that_shrinks_behind_an_open_directory_is_an_error_that_names_it(bad):
    path = shard_of(bad, "waterfill_0")
    with Bundle(bad) as bundle:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(FormatError, match=rf"{path.name}, group .*: the file was cut while it was open"):
            dict(bundle.tensors())
        with pytest.raises(FormatError, match="was cut while it was open"):
            bundle.payload(bundle.groups[0])


def test_random_changes_of_headers_give_errors_or_the_right_tensors(good, bad):
    expected, path, random_ = everything(good), shard_of(bad, "waterfill_0"), random.Random(1)
    data = path.read_bytes()
    for _ in range(200):
        changed = bytearray(data)
        changed[random_.randrange(100)] = random_.randrange(256)
        path.write_bytes(changed)
        try:
            found = everything(bad)
        except WaterfillError:
            continue
        assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q: q.update(weights="../waterfill.safetensors"), "names '../waterfill.safetensors' as the weights"),
        (lambda q: q.pop("weights"), "names None as the weights"),
        (lambda q: q.update(weights="waterfill.safetensors"), "lacks waterfill.safetensors"),
        (lambda q: q.update(format=3), "format 3 of a compressed directory is unknown.*upgrade"),
        (lambda q: q.update(minor=2), "minor version 2 of a compressed directory is unknown.*upgrade"),
        (lambda q: q.update(quant_method="fp8"), "no compression by waterfill"),
        (lambda q: q.pop("groups"), "damaged"),
        (lambda q: q.update(groups=3), "damaged"),
        (lambda q: q.update(tied=[1]), "damaged"),
        (lambda q: q["groups"][1].update(bytes=3), r"group 'layers\.0'.*the 3 bytes"),
        (lambda q: q["groups"][1].update(tensor="waterfill_9"), r"'waterfill_9'.*group 'layers\.0'"),
        (lambda q: q["groups"][1].update(name="rest"), "names group 'rest' twice"),
        (lambda q: q["groups"].pop(), "'waterfill_2', which is in no group"),
        (lambda q: q["groups"].append(dict(q["groups"][0], name="more")), "there twice"),
        (lambda q: q["tied"].update({"a": "nothing"}), "'a', tied to 'nothing', is tied to a tensor that is not there"),
        (lambda q: q["tied"].update({"embed": "layers.0.w"}), "'embed'.*is stored itself"),
        (lambda q: q["tied"].update({"a": "b", "b": "a"}), "not there"),
    ],
)
def test_a_configuration_that_contradicts_the_shards_is_refused(bad, change, words):
    edit(bad, change)
    with pytest.raises(FormatError, match=words):
        Bundle(bad)


@pytest.mark.parametrize(
    "change",
    [
        lambda q: q["groups"][1].update(bytes=10**400),
        lambda q: q["groups"][1].update(bytes=-1),
        lambda q: q["groups"][1].update(name="\ud800"),
        lambda q: q["tied"].update({"\udfff": "embed"}),
        lambda q: q.update(format=10**400),
        lambda q: q.update(producer=[]),
    ],
)
def test_values_of_a_configuration_that_cannot_be_are_refused(bad, change):
    edit(bad, change)
    with pytest.raises(FormatError, match=r"config\.json|waterfill_1|group"):
        Bundle(bad)


@pytest.mark.parametrize("text", ['{"a": ' + "1" * 5000 + "}", '{"a": "\\uD800"}', "[" * 100_000, '{"a": "\xff"}'])
def test_texts_that_are_no_json_of_a_configuration_are_refused(bad, text):
    (bad / "config.json").write_text(text, "latin-1")
    with pytest.raises(FormatError, match=r"config\.json is no JSON") as error:
        Bundle(bad)
    assert len(str(error.value)) <= 500


def test_a_configuration_may_have_any_characters(bad):
    config = json.loads((bad / "config.json").read_bytes())
    for ensure_ascii in (True, False):
        (bad / "config.json").write_text(json.dumps({**config, "a": "\U0001f600 \\ud800"}, ensure_ascii=ensure_ascii))
        assert len(Bundle(bad)) == 3


@pytest.mark.parametrize(
    "shard", ["s" * 300 + ".safetensors", "\u00e9" * 140 + ".safetensors", "a\0.safetensors", "", 3]
)
def test_shards_of_names_that_no_file_has_are_refused(bad, shard):
    path = bad / "waterfill.safetensors.index.json"
    index = json.loads(path.read_bytes())
    index["weight_map"] = dict.fromkeys(index["weight_map"], shard)
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError) as error:
        Bundle(bad)
    assert len(str(error.value)) <= 500


@pytest.mark.parametrize("shape", [[0, 10**30], [0, 2**62, 2], [0] * 5 + [10**400], [2**63]])
def test_shapes_that_no_tensor_has_are_refused(tmp_path, shape):
    line = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    text = json.dumps(line).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FormatError, match="damaged"):
        header(tmp_path / "model.safetensors")


def test_names_of_long_numbers_are_names():
    names = ["w[" + "1" * 5000 + "]", "layers." + "9" * 5000 + ".w", "a\u00b2"]
    assert all(part_of(name) is None for name in names)
    assert sorted(names, key=natural) == ["a\u00b2", names[1], names[0]]
    assert sorted(["b10", "b9", "b010", "b1"], key=natural) == ["b1", "b9", "b10", "b010"]


def test_most_bytes_are_of_all_groups(good):
    size = sum(tensor.nbytes for tensor in everything(good).values())
    assert len(waterfill.decompress(good, max_bytes=size)) == 3
    for use in (waterfill.open, waterfill.decompress, waterfill.load):
        with pytest.raises(FormatError, match=f"take {size:,} bytes, but at most {size - 1:,} are allowed"):
            use(good, max_bytes=size - 1)
    with pytest.raises(FormatError, match=r"group 'rest': its tensors take"):
        waterfill.open(good, max_bytes=10)


def test_a_group_that_is_missing_in_its_shard_is_found(good, bad):
    shutil.copy(shard_of(good, "waterfill_0"), shard_of(bad, "waterfill_1"))
    with pytest.raises(FormatError, match="lacks the tensor 'waterfill_1'"):
        Bundle(bad)
    shard_of(bad, "waterfill_1").unlink()
    with pytest.raises(FormatError, match="which is missing"):
        Bundle(bad)


def test_parts_that_do_not_add_up_are_found(good, tmp_path):
    with BundleWriter(tmp_path / "out", good.parent / "source") as writer:
        writer.add("one", payload({"w[0:4]": torch.randn(4, 8), "w[5:8]": torch.randn(3, 8)}))
        writer.finish({}, {})
    with pytest.raises(FormatError, match=r"out: part 'w\[5:8\]' \[3, 8\] does not go on at index 4"):
        Bundle(tmp_path / "out")


def test_a_foreign_payload_is_found(bad):
    path = shard_of(bad, "waterfill_2")
    data, place = bytearray(path.read_bytes()), header(path)["waterfill_2"]
    data[place.start : place.start + place.size] = bytes(place.size)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"group 'layers\.1': not a waterfill file"):
        Bundle(bad)


def test_a_payload_of_another_type_is_found(bad):
    path = shard_of(bad, "waterfill_2")
    path.write_bytes(path.read_bytes().replace(b'"U8"', b'"I8"'))
    with pytest.raises(FormatError, match=r"payload of group 'layers\.1' is I8"):
        Bundle(bad)


def test_facts_that_no_number_holds_are_none(bad):
    edit(bad, lambda described: described.update(limit=10**400, limits={"layers.0": 10**400}))
    with Bundle(bad) as bundle:
        summary = bundle_summary("bad", bundle)
    assert summary["limit"] is None
    assert all(row["limit_bits"] is None for row in summary["groups"])


# Whole directories


def resave(path, tensors=None, **metadata):
    """Write a shard anew: with other tensors, or with other metadata."""
    found = safetensors.torch.load_file(path) if tensors is None else tensors
    safetensors.torch.save_file(found, path, {"format": "pt", **metadata})


def digest_of(folder):
    (found,) = {shards.metadata(path)["digest"] for path in folder.glob("waterfill*.safetensors")}
    return found


def test_a_group_that_is_taken_out_everywhere_is_missed(bad):
    index = json.loads((bad / "waterfill.safetensors.index.json").read_bytes())
    shard_of(bad, "waterfill_2").unlink()
    del index["weight_map"]["waterfill_2"]
    (bad / "waterfill.safetensors.index.json").write_text(json.dumps(index))
    edit(bad, lambda described: described["groups"].pop())
    with pytest.raises(FormatError, match="are not those that were written together"):
        Bundle(bad)


@pytest.mark.parametrize("mended", [False, True])
def test_a_tensor_of_another_name_is_found(bad, mended):
    """A payload that is whole, in a shard that is whole, whose tensor is not the one that was written."""
    other = payload({"layers.1.v": torch.randn(16, 8)})
    path, digest = shard_of(bad, "waterfill_2"), digest_of(bad) if mended else "0" * 32
    resave(path, {"waterfill_2": torch.frombuffer(bytearray(other), dtype=torch.uint8)}, digest=digest)
    edit(bad, lambda described: described["groups"][2].update(bytes=len(other)))
    with pytest.raises(FormatError, match="are not those that were written together"):
        Bundle(bad)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["BertModel"]},
        {"model_type": "bert"},
        {"num_hidden_layers": 1},
        {"tie_word_embeddings": True},
        {"text_config": {"num_experts": 3}},
        {"attention_bias": True},
        {"depths": [2, 2]},
        {"thinker_config": {"text_config": {"hidden_sizes": [8, 8]}}},
    ],
)
def test_a_configuration_that_asks_for_another_model_is_refused(bad, change):
    config = json.loads((bad / "config.json").read_bytes())
    (bad / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(FormatError, match="are not those that were written together"):
        Bundle(bad)


def test_what_does_not_decide_about_tensors_may_be_changed(good, bad):
    config = json.loads((bad / "config.json").read_bytes())
    config |= {
        "pad_token_id": 0,
        "use_cache": False,
        "note": "x",
        "text_config": {"eos_token_id": [3]},
        "output_attentions": True,
    }
    config["quantization_config"] |= {"rate": 1, "note": [1]}
    (bad / "config.json").write_text(json.dumps(config, sort_keys=True))
    assert all(tensor.equal(everything(good)[name]) for name, tensor in everything(bad).items())


def test_without_a_minor_version_there_is_no_digest_and_with_it_there_is(good, bad):
    for path in bad.glob("waterfill*.safetensors"):
        resave(path)
    with pytest.raises(FormatError, match="are not those that were written together"):
        Bundle(bad)
    edit(bad, lambda described: described.pop("minor"))
    assert everything(bad).keys() == everything(good).keys()
    resave(shard_of(bad, "waterfill_1"), digest="0" * 32)
    with pytest.raises(FormatError, match="are not those that were written together"):
        Bundle(bad)
    resave(shard_of(bad, "waterfill_1"), digest="")
    assert everything(bad).keys() == everything(good).keys()


# Links and names


@pytest.mark.parametrize("name", ["config.json", "waterfill.safetensors.index.json", "shard"])
def test_links_out_of_the_directory_are_not_followed(bad, tmp_path, name):
    path = shard_of(bad, "waterfill_1") if name == "shard" else bad / name
    outside = path.rename(tmp_path / path.name)
    path.symlink_to(outside)
    with pytest.raises(FormatError, match=f"{path.name} leads out of the model directory"):
        Bundle(bad)


def test_links_within_the_directory_are_followed(good, bad):
    path = shard_of(bad, "waterfill_1")
    path.rename(bad / "real")
    path.symlink_to("real")
    assert everything(bad).keys() == everything(good).keys()


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md", "1_Pooling/config.json"])
def test_files_outside_are_not_copied(tmp_path, name):
    source = original(tmp_path / "source", {"w": torch.ones(2)})
    (tmp_path / "secret").write_text("{}")
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match="leads out of the model directory"):
        BundleWriter(tmp_path / "out", source)


def test_a_shard_with_a_name_that_no_file_can_have_is_refused(bad):
    index = json.loads((bad / "waterfill.safetensors.index.json").read_bytes())
    index["weight_map"]["waterfill_1"] = "x" * 300 + ".safetensors"
    (bad / "waterfill.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="in the same directory"):
        Bundle(bad)


@pytest.mark.parametrize("architectures", ["LlamaModel", {"a": 1}, [3], 5])
def test_architectures_that_are_no_list_of_names_are_refused_early(tmp_path, architectures):
    source = original(tmp_path / "source", {"w": torch.ones(2)}, {"architectures": architectures})
    with pytest.raises(FormatError, match="expected a list of names"):
        BundleWriter(tmp_path / "out", source)
