"""Tiny seeded models of every family, as directories; small enough to be compressed in a second."""

import torch
import transformers as hf

import waterfill  # noqa: F401  (compressed directories are to be loaded)

WORDS = 97
LLAMA = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
BERT = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NO_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
MIXTRAL = {**LLAMA, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN = {
    **LLAMA, "num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1,
}  # fmt: skip
GEMMA = {
    **LLAMA, "head_dim": 8, "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip

FAMILIES = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, LLAMA),
    "tied": (hf.LlamaForCausalLM, hf.LlamaConfig, {**LLAMA, "tie_word_embeddings": True}),
    "mixtral": (hf.MixtralForCausalLM, hf.MixtralConfig, MIXTRAL),
    "qwen2moe": (hf.Qwen2MoeForCausalLM, hf.Qwen2MoeConfig, QWEN),
    "gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, GEMMA),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, GPT2 | NO_ENDS),
    "bert": (hf.BertModel, hf.BertConfig, BERT),
}
TEXT = [name for name in FAMILIES if name != "bert"]


def model(name):
    """The model, with other values everywhere than norms and biases have at first, and weights that say something."""
    torch.manual_seed(0)
    kind, config, sizes = FAMILIES[name]
    made = kind(config(**sizes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            wide = 0.1 if parameter.ndim > 1 else 0.02
            parameter.add_(wide * torch.randn(parameter.shape))
    return made.requires_grad_(False)


def batches(count=4, seed=0):
    """Batches [2, 16] of tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(WORDS, (2, 16), generator=generator) for _ in range(count)]


def padded(count=4, seed=0):
    """Batches as `batches`, of which the second sample ends early."""
    found = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches(count, seed)]
    for number, batch in enumerate(found):
        batch["attention_mask"][1, 9 + number :] = 0
    return found


def maker(place):
    """A function from the name of a family to its directory in a folder, where each is made once.

    Args of it: the type of the weights, and arguments of `save_pretrained`.
    """
    made = set()

    def directory(name, dtype=None, **how):
        path = place / "-".join([name, *([str(dtype)] if dtype else []), *map(str, how.values())])
        if path not in made:
            one = model(name)
            (one if dtype is None else one.to(dtype)).save_pretrained(path, **how)
            made.add(path)
        return path

    return directory


def loaded(name, path):
    """What transformers makes of a directory, in evaluation mode."""
    return FAMILIES[name][0].from_pretrained(path).eval()


def output(name, network, batch):
    """Logits of a language model; of an encoder the means over the tokens that are no padding."""
    inputs = batch if isinstance(batch, dict) else {"input_ids": batch}
    with torch.no_grad():
        found = network(**inputs)
    if name != "bert":
        return found.logits
    mask = inputs.get("attention_mask", torch.ones(inputs["input_ids"].shape))[..., None].float()
    return (found.last_hidden_state * mask).sum(1) / mask.sum(1)
