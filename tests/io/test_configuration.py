"""What is in a model directory, and what only seems to be."""

import pytest

from waterfill.errors import FormatError
from waterfill.io.configuration import architecture, check_links, inside, read_json
from waterfill.models.pretrained import check_implementations


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_text("{}")
    return tmp_path / "model"


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "../nowhere", "../model2/x", "loop"])
def test_links_out_of_a_directory_are_refused(folder, target):
    (folder / "loop").symlink_to(target)
    for look in (lambda: inside(folder / "loop", folder), lambda: check_links(folder)):
        with pytest.raises(
            FormatError, match=r"loop (leads out of the model directory|is a link that leads to itself)"
        ):
            look()


def test_paths_with_dots_lead_out_as_well(folder):
    with pytest.raises(FormatError, match="leads out"):
        inside(folder / "../secret", folder)


def test_json_behind_a_link_is_read_inside_alone(folder):
    (folder / "real.json").write_text("[1]")
    (folder / "config.json").symlink_to("real.json")
    check_links(folder)
    assert read_json(folder / "config.json") == [1]
    (folder / "other.json").symlink_to("../secret")
    with pytest.raises(FormatError, match="leads out"):
        read_json(folder / "other.json")


def test_a_link_to_the_directory_itself_is_the_directory(folder):
    (folder / "config.json").write_text("[1]")
    (folder.parent / "other").symlink_to("model")
    assert read_json(folder.parent / "other/config.json") == [1]


def test_blobs_of_the_same_repository_are_inside(tmp_path):
    snapshot, other = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--c--d/blobs"
    for folder in (snapshot, tmp_path / "models--a--b/blobs", other):
        folder.mkdir(parents=True)
        (folder / "x").write_text("[1]")
    (snapshot / "config.json").symlink_to("../../blobs/x")
    assert read_json(snapshot / "config.json") == [1]
    check_links(snapshot)
    (snapshot / "far.json").symlink_to("../../../models--c--d/blobs/x")
    with pytest.raises(FormatError, match="leads out"):
        check_links(snapshot)


def test_architectures_are_a_list_of_names(tmp_path):
    assert architecture({"architectures": ["A", "B"]}, tmp_path) == "A"
    assert architecture({"architectures": []}, tmp_path) is architecture({}, tmp_path) is None
    for wrong in ("A", [1], {"A": 1}, 3, ["A; import os"]):
        with pytest.raises(FormatError, match="expected a list of names"):
            architecture({"architectures": wrong}, tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "of/others"},
        {"_experts_implementation": "of/others"},
        {"text_config": {"attn_implementation": "of/others"}},
        {"thinker_config": {"text_config": {"attn_implementation": "of/others"}}},
        {"attn_implementation": {"text_config": "eager", "vision_config": "of/others@1:f"}},
    ],
)
def test_kernels_of_the_hub_are_refused(tmp_path, config):
    check_implementations({"attn_implementation": "sdpa", "text_config": {"x_implementation": None}}, tmp_path)
    with pytest.raises(Exception, match="code of a repository, which is not run"):
        check_implementations(config, tmp_path)


@pytest.mark.parametrize("weights", ["../other/model.safetensors", "/model.safetensors", 3])
def test_weights_in_other_folders_are_refused(tmp_path, weights):
    with pytest.raises(FormatError, match="expected the name of a file in the same directory"):
        check_implementations({"transformers_weights": weights}, tmp_path)
    check_implementations({"transformers_weights": "model.safetensors"}, tmp_path)


def test_folders_that_are_links_out_of_a_directory_are_refused(folder):
    (folder.parent / "others").mkdir()
    (folder / "inner").mkdir()
    (folder / "again").symlink_to("inner")
    check_links(folder)
    (folder / "additional_chat_templates").symlink_to(folder.parent / "others")
    with pytest.raises(FormatError, match="leads out of the model directory"):
        check_links(folder)
