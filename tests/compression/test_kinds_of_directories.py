"""Directories of other models than language models, with data: they work, or an error says what to do."""

import pytest
import safetensors.torch
import torch

import waterfill
from waterfill.errors import WaterfillError

transformers = pytest.importorskip("transformers")

WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**WIDTHS, "vocab_size": 64, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {**WIDTHS, "image_size": 16, "patch_size": 8}
BOTH = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def ids(seed):
    return torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(seed))


def llama():
    config = transformers.LlamaConfig(**TEXT)
    return transformers.LlamaForCausalLM(config), [ids(k) for k in range(2)]


def bart():
    config = transformers.BartConfig(**BOTH, max_position_embeddings=32)
    names = "input_ids", "attention_mask", "decoder_input_ids"
    data = [dict(zip(names, (ids(k), torch.ones(2, 12).long(), ids(k)[:, :5]), strict=True)) for k in range(2)]
    return transformers.BartForConditionalGeneration(config), data


def whisper():
    config = transformers.WhisperConfig(**BOTH, num_mel_bins=16, max_source_positions=20, max_target_positions=16)
    data = [{"input_features": torch.randn(2, 16, 40), "decoder_input_ids": ids(k)[:, :6]} for k in range(2)]
    return transformers.WhisperForConditionalGeneration(config), data


def clip():
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=16)
    data = [{"input_ids": ids(k), "pixel_values": torch.randn(2, 3, 16, 16)} for k in range(2)]
    return transformers.CLIPModel(config), data


def vit():
    data = [{"pixel_values": torch.randn(2, 3, 16, 16)} for _ in range(2)]
    return transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE)), data


def t5():
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config), [{"input_ids": ids(k), "labels": ids(k)} for k in range(2)]


def compress(make, place, extra=None):
    torch.manual_seed(0)
    model, data = make()
    model.save_pretrained(place / "in")
    path = place / "in" / "model.safetensors"
    if extra is not None:
        safetensors.torch.save_file({**safetensors.torch.load_file(path), **extra}, path, metadata={"format": "pt"})
    return waterfill.compress_directory(place / "in", place / "out", data, rate=6.0, effort="fast")


@pytest.mark.parametrize("make", [bart, whisper])
def test_decoders_with_inputs_of_their_own_are_compressed(make, tmp_path):
    result = compress(make, tmp_path)
    assert result.rate <= 6 and result.distortion < 0.01


def test_tensors_without_axes_come_along(tmp_path):
    compress(llama, tmp_path, {"logit_scale": torch.tensor(2.5), "none": torch.empty(0)})
    with waterfill.open(tmp_path / "out") as bundle:
        assert bundle["logit_scale"].item() == pytest.approx(2.5, rel=0.02) and bundle["none"].shape == (0,)


@pytest.mark.parametrize("make", [clip, vit, t5])
def test_others_are_refused_with_what_to_do(make, tmp_path):
    with pytest.raises(WaterfillError, match=r"waterfill\.compress"):
        compress(make, tmp_path)
    assert not (tmp_path / "out").exists()
