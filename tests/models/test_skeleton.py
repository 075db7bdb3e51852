"""A model without weights, filled from a checkpoint: what transformers would have loaded, where it says that it is."""

import json
import shutil

import pytest
import safetensors.torch
import torch

pytest.importorskip("transformers")

from families import FAMILIES, batches, loaded, maker, model, output
from waterfill.bundle import Checkpoint
from waterfill.compression.checkpoint_groups import groups_of
from waterfill.errors import UnsupportedModelError
from waterfill.io.parts import part_of
from waterfill.models.skeleton import Skeleton, apart


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return maker(tmp_path_factory.mktemp("families"))


@pytest.fixture(params=FAMILIES)
def case(request, directories):
    """Name, checkpoint and skeleton of every family."""
    checkpoint = Checkpoint(directories(request.param))
    return request.param, checkpoint, Skeleton(checkpoint.directory, checkpoint)


def test_a_filled_skeleton_is_the_model_that_transformers_loads(case):
    name, checkpoint, skeleton = case
    skeleton.fill(checkpoint)
    expected = loaded(name, checkpoint.directory)
    values = dict(expected.state_dict())
    assert list(skeleton.model.state_dict()) == list(values)
    for key, tensor in skeleton.model.state_dict().items():
        assert torch.equal(tensor, values[key]), key
    for batch in batches(2):
        torch.testing.assert_close(output(name, skeleton.model, batch), output(name, expected, batch))


def test_the_blocks_are_those_that_are_called_one_after_the_other(case):
    name, checkpoint, skeleton = case
    skeleton.fill(checkpoint)
    called = []
    for key, block in skeleton.blocks.items():
        block.register_forward_hook(lambda *_, key=key: called.append(key))
    output(name, skeleton.model, batches(1)[0])
    assert called == list(skeleton.blocks)
    config = skeleton.model.config
    assert len(called) == config.num_hidden_layers


def test_every_tensor_is_where_its_place_says(case):
    _, checkpoint, skeleton = case
    seen = set()
    for group in groups_of(checkpoint.shapes):
        shapes = {name: checkpoint.shapes[name] for name in group.tensors}
        places = skeleton.places(shapes)
        assert all(parameter.is_meta for parameter in skeleton.model.parameters()), "places leave nothing behind"
        seen |= places.keys()
        filled = skeleton.fill({name: checkpoint[name] for name in group.tensors})
        for name, place in places.items():
            part = None if name in checkpoint else part_of(name)
            expected = checkpoint[name] if part is None else checkpoint[part.tensor][part.start]
            owner, _, last = place.parameter.rpartition(".")
            if last.isdigit():  # an expert of many in one parameter
                parameter = skeleton.model.get_parameter(owner)[int(last)]
            else:
                parameter = skeleton.model.get_parameter(place.parameter)
            rows = parameter[place.start : place.start + place.count]
            assert torch.equal(rows.reshape(expected.shape), expected), name
        skeleton.empty(filled)
    assert seen == set(checkpoint)


def test_experts_of_the_checkpoint_are_rows_of_merged_parameters(directories):
    checkpoint = Checkpoint(directories("mixtral"))
    skeleton = Skeleton(checkpoint.directory, checkpoint)
    places = skeleton.places({n: s for n, s in checkpoint.shapes.items() if ".layers.1." in n})
    gate, up = (places[f"model.layers.1.block_sparse_moe.experts.2.{name}.weight"] for name in ("w1", "w3"))
    assert gate.parameter == up.parameter == "model.layers.1.mlp.experts.gate_up_proj.2"
    assert (gate.start, gate.count, up.start, up.count) == (0, 48, 48, 48)


def test_a_tensor_of_three_axes_has_a_place_for_every_matrix():
    """As architectures have them whose checkpoints keep all experts of a layer in one tensor."""
    skeleton = Skeleton.__new__(Skeleton)
    skeleton.model = torch.nn.Module()
    skeleton.model.get_parameter_or_buffer = skeleton.model.get_parameter
    shapes = {"experts": (3, 4, 5), "bias": (4,)}

    def fill(tensors):
        for name, tensor in tensors.items():
            skeleton.model.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
        return set(tensors)

    skeleton.fill, skeleton.empty = fill, lambda _: None
    found = skeleton.places(shapes)
    assert {name: (place.parameter, place.start, place.count) for name, place in found.items()} == {
        **{f"experts[{index}]": (f"experts.{index}", 0, 4) for index in range(3)},
        "bias": ("bias", 0, 4),
    }


def test_empty_takes_the_values_away_and_fill_brings_them_back(case):
    name, checkpoint, skeleton = case
    filled = skeleton.fill(checkpoint)
    expected = output(name, skeleton.model, batches(1)[0])
    skeleton.empty(filled)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    skeleton.fill(checkpoint)
    assert torch.equal(output(name, skeleton.model, batches(1)[0]), expected)


def test_either_of_two_tied_tensors_is_enough(directories, tmp_path):
    """Checkpoints may have both, of which one is stored when they are compressed."""
    shutil.copytree(directories("tied"), tmp_path / "both")
    tensors = dict(Checkpoint(directories("tied")).items())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, tmp_path / "both" / "model.safetensors", {"format": "pt"})
    expected = loaded("tied", tmp_path / "both").state_dict()
    for left_out in ("lm_head.weight", "model.embed_tokens.weight"):
        some = {name: tensor for name, tensor in tensors.items() if name != left_out}
        skeleton = Skeleton(tmp_path / "both", tensors)
        places = skeleton.places({name: tuple(tensor.shape) for name, tensor in some.items() if ".layers." not in name})
        assert {each.parameter for each in places.values()} == {"model.embed_tokens.weight", "model.norm.weight"}
        assert len(places) == 2
        skeleton.fill(some)
        assert all(tensor.equal(expected[name]) for name, tensor in skeleton.model.state_dict().items())


def test_only_whole_units_are_filled(directories):
    checkpoint = Checkpoint(directories("mixtral"))
    skeleton = Skeleton(checkpoint.directory, checkpoint)
    names = [name for name in checkpoint if "layers.0" in name and "experts" in name]
    assert skeleton.fill({name: checkpoint[name] for name in names[:-1] if "w2" not in name}) == set()
    assert skeleton.fill({name: checkpoint[name] for name in names}) == {
        f"model.layers.0.mlp.experts.{each}_proj" for each in ("gate_up", "down")
    }


def test_the_model_is_in_single_precision_and_takes_half_precision(directories):
    checkpoint = Checkpoint(directories("llama", torch.bfloat16))
    skeleton = Skeleton(checkpoint.directory, checkpoint)
    skeleton.fill(checkpoint)
    expected = loaded("llama", checkpoint.directory).float()
    torch.testing.assert_close(output("llama", skeleton.model, batches(1)[0]), output("llama", expected, batches(1)[0]))


def test_parameters_of_experts_come_apart_in_the_same_memory():
    block = model("mixtral").model.layers[0]
    block.mlp.experts.config._experts_implementation = "eager"
    hidden = torch.randn(1, 5, 32)
    merged, expected = block.mlp.experts.down_proj, block.mlp(hidden)
    apart(block)
    assert torch.equal(block.mlp(hidden), expected)
    assert [each.data_ptr() for each in block.mlp.experts.down_proj] == [each.data_ptr() for each in merged]


def with_config(directory, out, **changes):
    shutil.copytree(directory, out)
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return Checkpoint(out)


def test_a_config_of_another_model_is_one_clear_error(directories, tmp_path):
    checkpoint = with_config(directories("llama"), tmp_path / "wide", intermediate_size=64)
    skeleton = Skeleton(checkpoint.directory, checkpoint)
    with pytest.raises(UnsupportedModelError, match=r"mlp\.\w+\.weight' has the shape .*48.*expected .*64.*config"):
        skeleton.fill(checkpoint)
    for changes in ({"model_type": "unheard"}, {"model_type": 3}):
        checkpoint = with_config(directories("llama"), tmp_path / str(changes["model_type"]), **changes)
        with pytest.raises(UnsupportedModelError, match=r"no architecture that transformers knows: .*Upgrade"):
            Skeleton(checkpoint.directory, checkpoint)
