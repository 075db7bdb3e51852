"""Compressed directories through transformers: the same model as from plain weights; blocks that stay compressed."""

import copy
import gc
import json
import shutil
import subprocess
import sys
import threading

import pytest
import safetensors.torch
import torch

import waterfill
from directories import LLAMA, compressed, saved
from waterfill.bundle import Bundle, part_name, write_plain
from waterfill.errors import FormatError, UnsupportedModelError, UsageError, WaterfillError
from waterfill.integrations.staying import staying
from waterfill.models.conversion import plan
from waterfill.models.pretrained import load_pretrained
from waterfill.models.skeleton import Skeleton
from waterfill.resident import held, resident_bytes

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IDS = torch.arange(14).reshape(2, 7)
WORDS = {"input_ids": IDS}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)}


def llama(**how):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **how))


def make_llama():
    return llama(bos_token_id=None, eos_token_id=None)


def make_tied():
    return llama(tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)


def make_half():
    return llama(bos_token_id=None, eos_token_id=None).bfloat16()


def make_bert():
    return transformers.BertModel(transformers.BertConfig(**SMALL))


def make_mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**LLAMA, num_local_experts=4))


def make_gpt2():
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4, **ends)
    return transformers.GPT2LMHeadModel(config)


def make_t5():
    config = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**config, decoder_start_token_id=0))


def make_vit():
    config = transformers.ViTConfig(**{**SMALL, "image_size": 32, "patch_size": 8, "vocab_size": None})
    return transformers.ViTForImageClassification(config)


MODELS = {
    "llama": (make_llama, WORDS),
    "tied": (make_tied, WORDS),
    "half": (make_half, WORDS),
    "bert": (make_bert, WORDS),
    "mixtral": (make_mixtral, WORDS),
    "gpt2": (make_gpt2, WORDS),
    "t5": (make_t5, WORDS | {"decoder_input_ids": IDS}),
    "vit": (make_vit, PIXELS),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=MODELS)
def case(request, place):
    """Name, compressed directory, the plain one with the same values, and an input."""
    return directories(request.param, place)


def directories(name, place):
    make, inputs = MODELS[name]
    out, plain = place / f"{name}-wf", place / f"{name}-plain"
    if not out.exists():
        torch.manual_seed(0)
        compressed(saved(make(), place / name), out)
        with Bundle(out) as bundle:
            write_plain(bundle, plain)
    return name, out, plain, inputs


@pytest.fixture
def mixtral(place):
    return directories("mixtral", place)


@pytest.fixture
def small(place):
    return directories("llama", place)


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    assert list(a) == list(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and tensor.device == b[name].device and tensor.equal(b[name]), name


def outputs(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


# Loading


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_model_is_the_one_of_the_plain_directory(case, dtype):
    _, out, plain, inputs = case
    cls = getattr(transformers, json.loads((out / "config.json").read_bytes())["architectures"][0])
    model, info = cls.from_pretrained(out, output_loading_info=True, **({} if dtype is None else {"dtype": dtype}))
    twin = cls.from_pretrained(plain, **({} if dtype is None else {"dtype": dtype}))
    assert not any(info.values()), info
    same(model, twin)
    assert not any(parameter.is_meta for parameter in model.parameters()) and not model.training
    inputs = {
        key: value if dtype is None or key != "pixel_values" else value.to(dtype) for key, value in inputs.items()
    }
    assert outputs(model, inputs).equal(outputs(twin, inputs))
    assert {**model.config.to_dict(), "_name_or_path": ""} == {**twin.config.to_dict(), "_name_or_path": ""}


@pytest.mark.parametrize(
    ("name", "cls"),
    [("llama", "AutoModel"), ("tied", "AutoModelForCausalLM"), ("mixtral", "AutoModel"), ("gpt2", "AutoModel")],
)
def test_other_classes_take_the_weights_as_from_the_plain_directory(place, name, cls):
    _, out, plain, _ = directories(name, place)
    model, info = getattr(transformers, cls).from_pretrained(out, output_loading_info=True)
    twin, expected = getattr(transformers, cls).from_pretrained(plain, output_loading_info=True)
    assert info == expected and not info["missing_keys"]
    same(model, twin)


def test_a_head_that_the_checkpoint_lacks_is_missing_as_usual(place):
    _, out, plain, _ = directories("bert", place)
    model, info = transformers.BertForMaskedLM.from_pretrained(out, output_loading_info=True)
    twin, expected = transformers.BertForMaskedLM.from_pretrained(plain, output_loading_info=True)
    assert info == expected and info["missing_keys"] and info["unexpected_keys"]
    same(model.bert, twin.bert)


def test_experts_become_one_parameter(mixtral):
    model = waterfill.load(mixtral[1])
    experts = model.model.layers[0].mlp.experts.gate_up_proj
    with Bundle(mixtral[1]) as bundle:
        names = [f"model.layers.0.block_sparse_moe.experts.{k}.w1.weight" for k in range(4)]
        assert experts[:, :48].equal(torch.stack([bundle[name] for name in names]))


def test_ties_hold(place):
    model = waterfill.load(directories("tied", place)[1])
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tie_of_the_directory_comes_back_under_both_names(tmp_path):
    """A checkpoint that has both tensors, of which one is stored."""
    torch.manual_seed(0)
    model = llama(bos_token_id=None, eos_token_id=None)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "model")
    out = compressed(tmp_path / "model", tmp_path / "out", tied={"lm_head.weight": "model.embed_tokens.weight"})
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert model.lm_head.weight.equal(model.model.embed_tokens.weight) and model.lm_head.weight.abs().sum() > 0


def test_parts_and_groups_across_which_experts_lie(place, tmp_path):
    """Every expert in a group of its own, and the embedding in parts: transformers joins them all the same."""

    directories("mixtral", place)

    def split(name, tensor):
        if "embed_tokens" not in name:
            return {name: tensor}
        return {part_name(name, 0, 50): tensor[:50].clone(), part_name(name, 50, 96): tensor[50:].clone()}

    out = compressed(
        place / "mixtral", tmp_path / "out", group=lambda name: name.partition("experts.")[2][:1] or "rest", split=split
    )
    with Bundle(out) as bundle:
        assert bundle.groups == ("rest", "0", "1", "2", "3")
        write_plain(bundle, tmp_path / "plain")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    same(model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain"))
    assert outputs(waterfill.load(out, resident=True), WORDS).equal(outputs(model, WORDS))


def test_shards_are_read(small, place, tmp_path):
    out = compressed(place / "llama", tmp_path / "out", shard_bytes=6000)
    assert (out / "waterfill.safetensors.index.json").is_file()
    same(transformers.AutoModelForCausalLM.from_pretrained(out), waterfill.load(small[1]))


def test_the_type_of_the_original_is_that_of_a_configuration_without_one(tmp_path):
    source = tmp_path / "model"
    make_half().save_pretrained(source)
    config = json.loads((source / "config.json").read_bytes())
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    model = transformers.AutoModelForCausalLM.from_pretrained(compressed(source, tmp_path / "out"))
    assert model.dtype == transformers.AutoModelForCausalLM.from_pretrained(source).dtype == torch.bfloat16


def test_nothing_of_transformers_is_left_changed(small):
    """The model is an ordinary one: it can be cast, trained and saved as plain weights."""
    model = waterfill.load(small[1])
    assert not hasattr(model, "hf_quantizer") and not hasattr(model.config, "quantization_config")
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.half().float()(IDS, labels=IDS).loss.backward()


def test_save_pretrained_writes_plain_weights(mixtral, tmp_path):
    model = waterfill.load(mixtral[1])
    model.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_bytes())
    same(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again"), model)


def test_damage_is_an_error_that_names_file_and_group(place, tmp_path):
    directories("llama", place)
    out = compressed(place / "llama", tmp_path / "out")
    data = bytearray((out / "waterfill.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "waterfill.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match=r"waterfill\.safetensors, group 'model\.layers\.2'"):
        transformers.AutoModelForCausalLM.from_pretrained(out)


def test_a_plain_model_is_not_compressed_while_it_is_loaded(small):
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    config = AUTO_QUANTIZATION_CONFIG_MAPPING["waterfill"]()
    with pytest.raises(UnsupportedModelError, match="waterfill compress DIR"):
        transformers.AutoModelForCausalLM.from_pretrained(small[2], quantization_config=config)


# waterfill.load


def test_load_makes_the_class_that_the_configuration_names(case):
    _, out, plain, _ = case
    model = waterfill.load(out)
    assert type(model).__name__ == json.loads((out / "config.json").read_bytes())["architectures"][0]
    same(model, type(model).from_pretrained(plain))


def test_load_takes_type_and_device(small):
    model = waterfill.load(small[1], dtype=torch.float16, device="cpu", threads=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


@pytest.mark.parametrize("name", ["llama", "tied", "mixtral"])
def test_load_fills_a_model_in_place(place, name):
    _, out, _, _ = directories(name, place)
    expected = waterfill.load(out)
    model = type(expected)(expected.config)
    before = dict(model.named_parameters())
    assert waterfill.load(out, into=model) is model
    same(model, expected)
    assert all(parameter is before[key] for key, parameter in model.named_parameters())


def test_load_fills_nothing_where_anything_differs(small):
    model = torch.nn.Linear(3, 2)
    with pytest.raises(WaterfillError, match="do not fit the model"):
        waterfill.load(small[1], into=model)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"into": torch.nn.Linear(2, 2), "resident": True}, "into= was given"),
        ({"into": torch.nn.Linear(2, 2), "dtype": torch.float16}, "into= was given"),
        ({"cache_bytes": 3}, "resident=True"),
        ({"resident": True, "cache_bytes": -1}, "negative"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(small, arguments, words):
    with pytest.raises(UsageError, match=words):
        waterfill.load(small[1], **arguments)


def test_a_file_needs_its_model(small, tmp_path):
    with Bundle(small[1]) as bundle:
        (tmp_path / "x.wf").write_bytes(bundle.payload("rest"))
    with pytest.raises(UsageError, match="into=model"):
        waterfill.load(tmp_path / "x.wf")


def test_other_directories_are_refused(small, place, tmp_path):
    with pytest.raises(FormatError, match="no compressed directory"):
        waterfill.load(small[2])
    out = compressed(place / "llama", tmp_path / "out")
    config = json.loads((out / "config.json").read_bytes())
    (out / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForTea"]}))
    with pytest.raises(UnsupportedModelError, match="no class 'LlamaForTea'"):
        waterfill.load(out)


def changed(plain, folder, *, without="", **config):
    """A directory without one tensor and with another configuration, compressed."""
    source = shutil.copytree(plain, folder / "source")
    tensors = safetensors.torch.load_file(source / "model.safetensors")
    tensors.pop(without, None)
    safetensors.torch.save_file(tensors, source / "model.safetensors", {"format": "pt"})
    found = json.loads((source / "config.json").read_bytes())
    (source / "config.json").write_text(json.dumps(found | config))
    return compressed(source, folder / "out", group=lambda _: "all")


def test_a_model_that_lacks_a_tensor_is_refused(small, tmp_path):
    out = changed(small[2], tmp_path, without="model.layers.1.mlp.up_proj.weight")
    for load in (
        lambda: waterfill.load(out),
        lambda: waterfill.load(out, resident=True),
        lambda: waterfill.load(out, into=make_llama()),
        lambda: load_pretrained(out),
    ):
        with pytest.raises(WaterfillError, match=r"lacks the tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
            load()


@pytest.mark.parametrize("name", ["pipeline", "AutoTokenizer", "models", "__file__", "LlamaConfig", "Evil"])
def test_architectures_are_classes_of_models_and_no_code_of_a_directory_runs(small, tmp_path, name):
    out = changed(
        small[2], tmp_path, architectures=[name], auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    )
    (out / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(UnsupportedModelError, match=r"has no class .* of models") as error:
        waterfill.load(out)
    assert "\n" not in str(error.value)
    load_pretrained(out)  # as the kind of model that transformers has
    Skeleton(out, [])
    assert not (tmp_path / "ran").exists()


def test_kernels_of_repositories_are_not_fetched(small, tmp_path):
    out = changed(small[2], tmp_path, attn_implementation="of/others")
    for load in (waterfill.load, load_pretrained):
        with pytest.raises(UnsupportedModelError, match="names 'of/others' as its attn_implementation"):
            load(out)


# Blocks that stay compressed


def block_bytes(out):
    """Bytes of the weights of the largest block, from a model that has them."""
    sizes = [block.size for block in waterfill.load(out, resident=True)._waterfill_residency.blocks]
    return max(sizes), sum(sizes)


@pytest.mark.parametrize("budget", [None, 0, 1, 10**9])
def test_outputs_are_the_same_bits(case, budget):
    _, out, _, inputs = case
    expected = outputs(waterfill.load(out), inputs)
    model = waterfill.load(out, resident=True, cache_bytes=budget)
    for _ in range(2):
        assert outputs(model, inputs).equal(expected)
    largest, everything = block_bytes(out)
    limits = {None: 2 * largest, 0: 0, 1: 0, 10**9: everything}
    assert held(model).decoded <= limits[budget] and (budget != 10**9 or held(model).decoded == everything)


def test_most_of_the_model_is_not_there(case):
    _, out, _, inputs = case
    whole, model = waterfill.load(out), waterfill.load(out, resident=True, cache_bytes=0)
    _, everything = block_bytes(out)
    expected = resident_bytes(whole) - everything
    assert held(model).kept == expected and held(model).decoded == 0
    outputs(model, inputs)
    assert held(model).kept == expected and held(model).decoded == 0
    with Bundle(out) as bundle:
        assert held(model).compressed == bundle.size_bytes == resident_bytes(model) - expected


def test_matrices_of_blocks_stay_but_for_those_that_are_tied(small):
    config = transformers.AutoConfig.from_pretrained(small[2])
    with Bundle(small[1]) as bundle, torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        ties = {"model.layers.1.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight"}
        model.all_tied_weights_keys = ties
        found = staying(plan(bundle, model, [], None).units, bundle, model)
    matrices = {name for name, value in model.named_parameters() if value.ndim == 2 and ".layers." in name}
    assert found.names == matrices - {*ties, *ties.values()} and list(found.blocks) == [
        f"model.layers.{k}" for k in range(3)
    ]


WAYS = {
    "cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 2},
    "samples": {"do_sample": True, "num_return_sequences": 2},
}


def generated(model, **how):
    torch.manual_seed(0)
    known = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS), "pad_token_id": 0}
    return model.generate(IDS, **known | how)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["half", "mixtral", "t5"])
def test_generate_gives_the_same_tokens(place, name, way):
    out = directories(name, place)[1]
    model = waterfill.load(out, resident=True)
    assert generated(model, **WAYS[way]).equal(generated(waterfill.load(out), **WAYS[way]))
    largest, _ = block_bytes(out)
    assert held(model).decoded <= 2 * largest


def test_logits_with_a_cache_are_the_same_bits(place):
    out = directories("half", place)[1]
    how = {"return_dict_in_generate": True, "output_logits": True}
    found, expected = (generated(waterfill.load(out, resident=resident), **how) for resident in (True, False))
    assert all(one.equal(other) for one, other in zip(found.logits, expected.logits, strict=True))


def test_weights_have_the_type_of_the_model(place):
    model = waterfill.load(directories("half", place)[1], resident=True, cache_bytes=10**9)
    outputs(model, WORDS)
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_a_damaged_block_is_an_error_that_passes(tmp_path):
    torch.manual_seed(0)
    wide = transformers.LlamaConfig(**LLAMA | {"intermediate_size": 2048, "num_hidden_layers": 3})
    out = compressed(saved(transformers.LlamaForCausalLM(wide), tmp_path / "plain"), tmp_path / "out")
    file, data = out / "waterfill.safetensors", (out / "waterfill.safetensors").read_bytes()
    with Bundle(out) as bundle:
        start = data.index(bundle.payload("model.layers.1"))
        chunks = bundle.file("model.layers.1").container
        last = next(k for k, pieces in reversed(chunks.symbol_spans.items()) if pieces[0][0].endswith("proj.weight"))
        start += int(chunks._offsets[last])
    model = waterfill.load(out, resident=True)  # which does not read that chunk: nothing in it is kept
    file.write_bytes(data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
    for _ in range(2):
        with pytest.raises(FormatError, match=r"waterfill.safetensors, group 'model.layers.1'.*damaged"):
            outputs(model, WORDS)
    file.write_bytes(data)
    assert outputs(model, WORDS).equal(outputs(waterfill.load(out), WORDS))


def test_types_change_with_the_model(small):
    model, whole = waterfill.load(small[1], resident=True), waterfill.load(small[1])
    outputs(model, WORDS)  # some blocks are there, others are not
    assert outputs(model.to(torch.float64), WORDS).equal(outputs(whole.to(torch.float64), WORDS))


def test_weights_are_usable_after_inference_mode(small):
    model, whole = waterfill.load(small[1], resident=True, cache_bytes=10**9), waterfill.load(small[1])
    with torch.inference_mode():
        model(IDS)
    for each in (model, whole):
        each.model.embed_tokens.weight.grad = None
        each(IDS, labels=IDS).loss.backward()
    assert model.model.embed_tokens.weight.grad.equal(whole.model.embed_tokens.weight.grad)


def test_threads_run_it_at_the_same_time(small):
    model = waterfill.load(small[1], resident=True, cache_bytes=0)
    expected, wrong = outputs(model, WORDS), []

    def work():
        for _ in range(5):
            if not outputs(model, WORDS).equal(expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and held(model).decoded == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_inside_a_block_leaves_a_usable_model(small, error):
    model = waterfill.load(small[1], resident=True, cache_bytes=0)
    expected = outputs(model, WORDS)

    def fail(*_):
        raise error

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(error):
        outputs(model, WORDS)
    assert error is KeyboardInterrupt or held(model).decoded == 0
    handle.remove()
    assert outputs(model, WORDS).equal(expected) and held(model).decoded == 0


def test_a_payload_that_cannot_be_decoded_is_an_error_that_passes(small):
    model = waterfill.load(small[1], resident=True)
    expected = outputs(model, WORDS)
    block = model._waterfill_residency.blocks[1]
    decode = block._decode

    def fail():
        raise FormatError("damaged")

    block._decode = fail
    for _ in range(2):
        with pytest.raises(FormatError, match="damaged"):
            for _ in range(3):
                outputs(model, WORDS)
    block._decode = decode
    assert outputs(model, WORDS).equal(expected)


def test_the_next_block_is_decoded_ahead(small):
    model = waterfill.load(small[1], resident=True)
    residency, where = model._waterfill_residency, []
    for block in residency.blocks:
        decode = block._decode
        block._decode = lambda d=decode: where.append(threading.current_thread().name) or d()
    outputs(model, WORDS)
    outputs(model, WORDS)
    assert sum(name.startswith("waterfill-prefetch") for name in where) >= len(where) - 1


def test_what_is_needed_last_goes_first(small):
    """With room for two of three blocks that run in turn, one of them is not decoded anew every time."""
    _, everything = block_bytes(small[1])
    model = waterfill.load(small[1], resident=True, cache_bytes=everything - 1)
    residency, count = model._waterfill_residency, []
    residency._look_ahead = lambda *_: None
    for block in residency.blocks:
        decode = block._decode
        block._decode = lambda d=decode: count.append(1) or d()
    for _ in range(4):
        outputs(model, WORDS)
    assert len(count) < 10, "as often as if nothing had been kept: 12"


def test_it_has_no_state_dict_and_no_copy(small, tmp_path):
    model = waterfill.load(small[1], resident=True)
    for use in (model.state_dict, lambda: model.save_pretrained(tmp_path / "x"), lambda: copy.deepcopy(model)):
        with pytest.raises(WaterfillError, match="without resident=True"):
            use()


def test_it_goes_when_nobody_has_it(small):
    import weakref

    model = waterfill.load(small[1], resident=True)
    outputs(model, WORDS)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_held_of_an_ordinary_model_is_its_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model.append(model[0])
    assert held(model).kept == resident_bytes(model) == 32 + 16 + 16 + 8


# Registration

ORDERS = {
    "waterfill first": "import waterfill, transformers",
    "transformers first": "import transformers, waterfill",
    "quantizers first": "import transformers.quantizers.auto, waterfill",
    "models first": "from transformers import AutoModel; import waterfill, transformers",
    "twice": "import waterfill, transformers; waterfill._hook.install(); waterfill._hook.register()",
    "in threads": (
        "import threading, waterfill\n"
        "def work():\n    import transformers.quantizers.auto\n    waterfill._hook.install()\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "import transformers"
    ),
}


WITHOUT = {
    "class of the configuration": "AutoModelForCausalLM.from_pretrained(place)",
    "base": "AutoModel.from_pretrained(place, use_safetensors=True)",
    "pickles": "AutoModel.from_pretrained(place, use_safetensors=False)",
    "pipeline": "pipeline('text-generation', place)",
}
FORKING = """
import json, os, sys, traceback
import huggingface_hub, numba, safetensors.torch, tokenizers, torch._dynamo, torch.distributed.tensor
assert not {"transformers", "waterfill"} & {*sys.modules}
place, orders, without = sys.argv[1], *map(json.loads, sys.argv[2:])

def tell(name, value):
    print(json.dumps([name, value]), flush=True)

def forked():
    child = os.fork()
    return not (child and os.waitpid(child, 0))

for name, order in orders.items():
    if forked():
        exec(order)
        model = transformers.AutoModelForCausalLM.from_pretrained(place)
        tell(name, model.model.layers[0].mlp.up_proj.weight.double().sum().item())
        sys.exit()
if forked():
    import transformers
    for name, call in without.items():
        try:
            eval(f"transformers.{call}")
        except Exception:
            tell(name, traceback.format_exc())
"""
"""Every order of imports in a process of its own; all of them are forked from one that has imported what takes long."""


@pytest.fixture(scope="module")
def told(place, tmp_path_factory):
    """What the processes of `FORKING` told: sums of weights by order of imports, errors by call."""
    copied = shutil.copytree(directories("llama", place)[1], tmp_path_factory.mktemp("forked") / "directory")
    command = [sys.executable, "-c", FORKING, str(copied), json.dumps(ORDERS), json.dumps(WITHOUT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stderr)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {name: value.replace(str(copied), "") if isinstance(value, str) else value for name, value in lines}


@pytest.mark.parametrize("order", ORDERS)
def test_transformers_knows_it_in_every_order_of_imports(small, told, order):
    assert told[order] == waterfill.load(small[1]).model.layers[0].mlp.up_proj.weight.double().sum().item()


@pytest.mark.parametrize("call", WITHOUT)
def test_without_the_import_it_fails_and_names_the_import(told, call):
    assert "import-waterfill-first" in told[call]


def test_the_import_finds_the_weights_in_shards_and_through_links(small, place, tmp_path):
    """The cache of a hub has links to its files."""
    sharded = compressed(place / "llama", tmp_path / "sharded", shard_bytes=6000)
    linked = tmp_path / "models--of--us/snapshots/0123"
    linked.mkdir(parents=True)
    blobs = sharded.rename(tmp_path / "models--of--us/blobs")
    for path in blobs.iterdir():
        (linked / path.name).symlink_to(f"../../blobs/{path.name}")
    model = transformers.AutoModelForCausalLM.from_pretrained(linked, use_safetensors=False)
    same(model, waterfill.load(small[1]))
    assert not hasattr(model.config, "transformers_weights")


def test_importing_waterfill_does_not_import_transformers():
    script = "import sys, waterfill; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_transformers_the_tensors_are_there_and_the_error_says_what_to_install(small):
    script = (
        "import sys; sys.modules['transformers'] = None\n"
        "import waterfill\n"
        f"path = {str(small[1])!r}\n"
        "assert len(waterfill.decompress(path)) == 30\n"
        "try:\n    waterfill.load(path)\n"
        "except waterfill.errors.UnsupportedModelError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "waterfill[transformers]" in done.stdout
