"""Language models and sentence encoders measured on text, against numpy and scipy and against known answers."""

import dataclasses
import json
import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn

from waterfill import evaluate, sentence_batches, text_batches
from waterfill.distortion import distortion_for, kl_divergence
from waterfill.errors import CalibrationError, FormatError, UnsupportedModelError, WaterfillError
from waterfill.evaluation import Evaluation, evaluate_batches, reference_outputs
from waterfill.models.embedder import Embedder, Pooling, is_embedder, pooling_of
from waterfill.models.language import next_tokens, output_of_text
from waterfill.models.pretrained import load_pretrained

VOCABULARY = 23
NAMES = ("accuracy", "top5", "cross_entropy", "perplexity", "kl", "kl_p99", "agreement", "total_variation")


class Table(nn.Module):
    """Logits of the next token by the token alone."""

    def __init__(self, logits, field="logits"):
        super().__init__()
        self.logits, self.field = nn.Parameter(torch.as_tensor(logits)), field

    def forward(self, input_ids, attention_mask=None):
        del attention_mask
        found = self.logits[input_ids]
        return found if self.field is None else SimpleNamespace(**{self.field: found})


class Vectors(Table):
    """The same rows as vectors of tokens."""

    def __init__(self, vectors):
        super().__init__(vectors, "last_hidden_state")


def tables(seed=0):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    return Table(reference + 0.3 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)), Table(reference)


def texts(count=7, most=9, *, left=False):
    """Texts of 1 to `most` tokens in one batch, padded."""
    generator = np.random.default_rng(2)
    lengths = generator.integers(1, most + 1, count)
    ids = generator.integers(0, VOCABULARY, (count, most))
    mask = (np.arange(most) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, ids, 0)
    if left:
        ids, mask = ids[:, ::-1].copy(), mask[:, ::-1].copy()
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def cut(batch, sizes):
    parts = {name: torch.split(tensor, sizes) for name, tensor in batch.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


def logits_of(model, batch):
    with torch.no_grad():
        output = model.eval()(**batch)
    return getattr(output, "logits", output).double().numpy()


def by_loops(model, reference, batch):
    """What should be measured of next tokens, position by position."""
    z, r = logits_of(model, batch), logits_of(reference, batch)
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    rows = []
    for text in range(len(ids)):
        for place in range(ids.shape[1] - 1):
            if mask[text, place] and mask[text, place + 1]:
                a, b, label = z[text, place], r[text, place], ids[text, place + 1]
                p, q = softmax(b), softmax(a)
                hits = a.argmax() == label, label in np.argsort(-a)[:5], a.argmax() == b.argmax()
                rows.append((*hits, -log_softmax(a)[label], rel_entr(p, q).sum(), abs(p - q).sum() / 2))
    accuracy, top5, agreement, entropy, kl, variation = np.array(rows).T.astype(float)
    return {
        "samples": len(ids),
        "predictions": len(rows),
        "accuracy": accuracy.mean(),
        "top5": top5.mean(),
        "cross_entropy": entropy.mean(),
        "perplexity": np.exp(entropy.mean()),
        "kl": kl.mean(),
        "kl_p99": np.quantile(kl, 0.99),
        "agreement": agreement.mean(),
        "total_variation": variation.mean(),
    }


def assert_measured(found, expected, rel=1e-6):
    for name, value in found.to_dict().items():
        assert (value is None) == (name not in expected), name
        if value is not None:
            assert value == pytest.approx(expected[name], rel=rel), name


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("field", ["logits", None])
def test_next_tokens_are_measured_without_padding(left, field):
    model, reference = tables()
    model.field = reference.field = field
    batch = texts(left=left)
    found = evaluate(model, [batch], reference, output="logits")
    assert_measured(found, by_loops(model, reference, batch))
    without = {name: value for name, value in batch.items() if name == "input_ids"}
    whole = batch | {"attention_mask": torch.ones_like(batch["input_ids"])}
    assert_measured(evaluate(model, [without], reference, output="logits"), by_loops(model, reference, whole))


def test_targets_are_the_tokens_that_follow():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [1, 2, 0, 0], [0, 0, 3, 4]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]),
    }
    assert next_tokens(batch).tolist() == [[6, 7, 8, -100], [2, -100, -100, -100], [-100, -100, 4, -100]]


def test_known_answers():
    even = Table(torch.zeros(8, 8))
    batch = {"input_ids": torch.arange(8).reshape(1, 8)}
    found = evaluate(even, [batch], Table(torch.full((8, 8), 3.0)), output="logits")
    assert found.perplexity == pytest.approx(8, rel=1e-12)
    assert (found.kl, found.kl_p99, found.total_variation, found.agreement) == (0, 0, 0, 1)
    half = torch.full((8, 8), -math.inf)
    half[:, ::2] = 0
    against = evaluate(even, [batch], Table(half), output="logits")
    assert against.kl == pytest.approx(math.log(2), rel=1e-12)
    assert against.total_variation == pytest.approx(0.5, rel=1e-12)
    impossible = evaluate(Table(half), [batch], even, output="logits")
    assert (impossible.perplexity, impossible.kl) == (math.inf, math.inf)
    huge = evaluate(Table(torch.eye(8) * 1e6), [batch], output="logits")
    assert huge.cross_entropy == 1e6
    assert huge.perplexity == math.inf


def measured(found):
    return {name: value for name, value in found.to_dict().items() if value is not None}


def test_measures_do_not_depend_on_batches_nor_slices(monkeypatch):
    model, reference = tables()
    batch = texts(count=12)
    whole = measured(evaluate(model, [batch], reference, output="logits"))
    for sizes in ([1] * 12, [5, 7], [11, 1]):
        assert_measured(evaluate(model, cut(batch, sizes), reference, output="logits"), whole, rel=1e-12)
    monkeypatch.setitem(kl_divergence._VALUES_AT_ONCE, "cpu", 3 * VOCABULARY)
    assert_measured(evaluate(model, [batch], reference, output="logits"), whole, rel=1e-12)


def test_rows_are_in_double_precision_a_few_at_a_time(monkeypatch):
    """No more values than a slice are ever given to the softmax."""
    model, reference = tables()
    monkeypatch.setitem(kl_divergence._VALUES_AT_ONCE, "cpu", 4 * VOCABULARY)
    asked = []
    plain = torch.Tensor.log_softmax
    monkeypatch.setattr(torch.Tensor, "log_softmax", lambda t, *a: asked.append((t.dtype, t.numel())) or plain(t, *a))
    evaluate(model, [texts(count=30)], reference, output="logits")
    assert {dtype for dtype, _ in asked} == {torch.float64}
    assert 0 < max(size for _, size in asked) <= 4 * VOCABULARY


class Watched(Table):
    """Notes whether the logits it gave before are still there when it gives the next."""

    def __init__(self, logits, note):
        super().__init__(logits, None)
        self.note = note  # a function, for attributes are put back after every pass

    def forward(self, input_ids, attention_mask=None):
        return self.note(super().forward(input_ids, attention_mask))


def test_logits_of_a_batch_are_gone_before_the_next():
    given, alive = [], {"model": 0, "reference": 0}

    def watched(name, table):
        def note(found):
            alive[name] = max(alive[name], sum(one() is not None for one in given))
            given.append(weakref.ref(found))
            return found

        return Watched(table.logits.detach(), note)

    model, reference = map(watched, alive, tables())
    evaluate(model, cut(texts(count=8), [2] * 4), reference, output="logits")
    assert len(given) == 1 + 8  # the first batch tells how outputs are read
    assert alive == {"model": 0, "reference": 1}


def distances(model, data, references, output):
    """Distance of every output from that of the reference."""
    found = evaluate_batches(model, data, references, distortion_for(output))
    return np.concatenate([each.distances for each in found])


def test_kept_outputs_and_distances_leave_out_the_same_padding():
    model, reference = tables()
    data = cut(texts(), [3, 4])
    kept = reference_outputs(reference, data)
    found = evaluate(model, data, reference, output="logits")
    assert evaluate(model, data, kept, output="logits") == found
    apart = distances(model, data, kept, "logits")
    assert len(apart) == found.predictions
    assert float(apart.mean()) == pytest.approx(found.kl, rel=1e-12)


def test_given_targets_win():
    model, reference = tables()
    batch = texts()
    target = torch.full_like(batch["input_ids"], -100)
    target[:, 0] = 3
    found = evaluate(model, [(batch, target)], reference)
    z = logits_of(model, batch)[:, 0]
    assert found.predictions == len(z)
    assert found.cross_entropy == pytest.approx(-log_softmax(z, -1)[:, 3].mean(), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.cross_entropy))


def test_a_model_that_gives_nan_is_not_measured_as_good():
    model, reference = tables()
    model.logits.data[4, 2] = math.nan
    batch = texts(count=20)
    found = evaluate(model, [batch], reference, output="logits")
    assert all(math.isnan(getattr(found, name)) for name in ("cross_entropy", "perplexity", "kl", "kl_p99"))
    assert math.isnan(found.total_variation)


def test_tokens_beyond_the_vocabulary_are_named():
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(gpt2_config())
    with pytest.raises(
        CalibrationError, match="Batch 1 has the token 99; expected 0 to 22, the vocabulary of the model"
    ):
        evaluate(model, [{"input_ids": torch.tensor([[top]])} for top in (22, 99)])
    with pytest.raises(CalibrationError, match="has the token -1; expected 0 to 22"):
        evaluate(model, [{"input_ids": torch.tensor([[-1]])}])


def llama_config(**changes):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes, **changes)


def gpt2_config():
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )


def bert_config():
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes)


def two(make):
    """A small random model and another near it."""
    torch.manual_seed(3)
    model, reference = make(), make()
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model, reference


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_causal_models_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    make = {
        "llama": lambda: transformers.LlamaForCausalLM(llama_config()),
        "gpt2": lambda: transformers.GPT2LMHeadModel(gpt2_config()),
    }[name]
    model, reference = two(make)
    batch = texts()
    found = evaluate(model, cut(batch, [2, 5]), reference)
    assert_measured(found, by_loops(model, reference, batch), rel=1e-5)


def test_padding_changes_nothing_of_a_causal_model():
    transformers = pytest.importorskip("transformers")
    model, reference = two(lambda: transformers.LlamaForCausalLM(llama_config()))
    batch = texts()
    alone = [
        {"input_ids": ids[None, : int(mask.sum())]}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert_measured(evaluate(model, [batch], reference), measured(evaluate(model, alone, reference)), rel=1e-5)


def test_windows_of_a_text_and_a_half_precision_model():
    transformers = pytest.importorskip("transformers")
    model, reference = two(lambda: transformers.LlamaForCausalLM(llama_config()).to(torch.bfloat16))
    data = text_batches([np.arange(400) % VOCABULARY], length=10, count=4, batch_size=2)
    found = evaluate(model, data, reference)
    batch = {name: torch.cat([part[name] for part in data]) for name in data[0]}

    class Wide(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            return self.inner(**inputs).logits.float()

    assert found.predictions == 36
    assert_measured(found, by_loops(Wide(model), Wide(reference), batch), rel=0.02)


def test_masked_models_are_compared_at_every_token():
    transformers = pytest.importorskip("transformers")
    model, reference = two(lambda: transformers.BertForMaskedLM(bert_config()))
    batch = texts()
    found = evaluate(model, [batch], reference)
    keep = batch["attention_mask"].numpy() == 1
    z, r = logits_of(model, batch)[keep], logits_of(reference, batch)[keep]
    divergences = rel_entr(softmax(r, -1), softmax(z, -1)).sum(-1)
    assert found.predictions == keep.sum()
    assert found.kl == pytest.approx(divergences.mean(), rel=1e-5)
    assert found.agreement == pytest.approx((z.argmax(-1) == r.argmax(-1)).mean())
    assert (found.accuracy, found.cross_entropy, found.perplexity) == (None, None, None)


def pooled(vectors, mask, pooling):
    """Embeddings by loops."""
    rows = []
    for text in range(len(vectors)):
        kept = vectors[text][mask[text] == 1]
        row = {"mean": kept.mean(0), "cls": kept[0], "lasttoken": kept[-1]}[pooling.kind]
        rows.append(row / np.linalg.norm(row) if pooling.normalize else row)
    return np.array(rows)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["mean", "cls", "lasttoken"])
def test_embeddings_agree_with_loops(kind, normalize, left):
    torch.manual_seed(1)
    pooling = Pooling(kind, normalize=normalize)
    model, reference = (Embedder(Vectors(torch.randn(VOCABULARY, 6)), pooling) for _ in range(2))
    batch = texts(left=left)
    ids, mask = (batch[name].numpy() for name in ("input_ids", "attention_mask"))
    a, b = (pooled(each.model.logits.detach().double().numpy()[ids], mask, pooling) for each in (model, reference))
    np.testing.assert_allclose(model(**batch).detach().numpy(), a, rtol=1e-5, atol=1e-6)
    found = evaluate(model, cut(batch, [3, 4]), reference)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert found.cosine == pytest.approx(cosines.mean(), rel=1e-5)
    assert found.squared_error == pytest.approx(((a - b) ** 2).sum(-1).mean(), rel=1e-5)
    assert found.relative_squared_error == pytest.approx(((a - b) ** 2).sum() / (b**2).sum(), rel=1e-5)
    assert (found.samples, found.predictions, found.kl, found.perplexity) == (7, None, None, None)


def test_an_embedder_without_a_mask_and_one_that_returns_a_tensor():
    table = torch.randn(VOCABULARY, 6)
    batch = {"input_ids": torch.arange(6).reshape(2, 3)}
    expected = table[:6].reshape(2, 3, 6).mean(1)
    assert torch.allclose(Embedder(Vectors(table))(**batch), expected)
    assert torch.allclose(Embedder(Table(table, None))(**batch), expected)


def test_encoders_without_pooling_are_measured_by_their_mean():
    transformers = pytest.importorskip("transformers")
    model, reference = two(lambda: transformers.BertModel(bert_config()))
    data = sentence_batches([[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]], count=4, batch_size=3)
    expected = evaluate(Embedder(model), data, Embedder(reference))
    found = evaluate(model, data, reference)
    assert "'last_hidden_state', float32[3, 3, 16], was read" in found.notes[0]
    assert dataclasses.replace(found, notes=()) == expected
    assert 0 < expected.cosine < 1
    kept = reference_outputs(reference, data)
    assert float(distances(model, data, kept, "values").mean()) == pytest.approx(expected.squared_error)


def test_of_embeddings_of_zeros_there_is_no_relative_error():
    zeros = Embedder(Vectors(torch.zeros(VOCABULARY, 6)))
    found = evaluate(Embedder(Vectors(torch.ones(VOCABULARY, 6))), [texts()], zeros)
    assert found == Evaluation(samples=7, squared_error=6, cosine=0)


def test_heads_of_classes_do_not_tell_what_they_return():
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification(bert_config())
    with pytest.raises(CalibrationError, match="do not tell what the model returns"):
        evaluate(model, [texts()])
    assert output_of_text(model, [texts()]) is None
    found = evaluate(model, [texts()], model, output="logits")
    assert (found.predictions, found.kl) == (7, 0)


def write(path, value):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
MEAN = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
CLS = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def test_pooling_of_directories(tmp_path):
    assert not is_embedder(tmp_path)
    assert pooling_of(tmp_path) == Pooling("mean")
    write(tmp_path / "1_Pooling" / "config.json", CLS)
    assert is_embedder(tmp_path)
    assert pooling_of(tmp_path) == Pooling("cls")
    write(tmp_path / "modules.json", MODULES)
    assert pooling_of(tmp_path) == Pooling("cls", normalize=True)
    write(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken", "embedding_dimension": 16})
    write(tmp_path / "modules.json", MODULES[:2])
    assert pooling_of(tmp_path) == Pooling("lasttoken")


@pytest.mark.parametrize(
    ("modules", "pooling", "error", "words"),
    [
        (
            MODULES,
            {"pooling_mode_max_tokens": True},
            UnsupportedModelError,
            "asks for pooling_mode_max_tokens; expected",
        ),
        (MODULES, MEAN | CLS | MEAN | {"pooling_mode_cls_token": True}, UnsupportedModelError, "cls_token"),
        (MODULES, {"pooling_mode_mean_tokens": False}, UnsupportedModelError, "asks for no pooling"),
        (MODULES, {"pooling_mode": "max"}, UnsupportedModelError, "Pooling 'max' is not known; expected one of mean"),
        (MODULES, [], FormatError, "holds a list; expected an object"),
        (MODULES, "{", FormatError, r"1_Pooling/config\.json is no JSON"),
        ("[", MEAN, FormatError, r"modules\.json is no JSON"),
        ([{"type": "x"}], MEAN, FormatError, "no list of modules with type and path"),
        (3, MEAN, FormatError, "no list of modules with type and path"),
        (
            [*MODULES, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}],
            MEAN,
            UnsupportedModelError,
            "has a module Dense; expected Transformer, Pooling and Normalize",
        ),
    ],
)
def test_pooling_that_is_not_known_is_refused(tmp_path, modules, pooling, error, words):
    write(tmp_path / "modules.json", modules)
    write(tmp_path / "1_Pooling" / "config.json", pooling)
    with pytest.raises(error, match=words):
        pooling_of(tmp_path)


def test_directories_are_read_by_the_class_they_name(tmp_path):
    transformers = pytest.importorskip("transformers")
    causal, encoder = tmp_path / "causal", tmp_path / "encoder"
    transformers.LlamaForCausalLM(llama_config()).save_pretrained(causal)
    transformers.BertModel(bert_config()).to(torch.float16).save_pretrained(encoder)
    assert type(load_pretrained(causal)) is transformers.LlamaForCausalLM
    plain = load_pretrained(encoder)
    assert type(plain) is transformers.BertModel
    assert plain.dtype == torch.float16
    assert not plain.training
    write(encoder / "modules.json", MODULES)
    write(encoder / "1_Pooling" / "config.json", MEAN)
    pooled = load_pretrained(encoder)
    assert isinstance(pooled, Embedder)
    assert type(pooled.model) is transformers.BertModel
    assert pooled.pooling == Pooling("mean", normalize=True)
    config = json.loads((causal / "config.json").read_text())
    write(causal / "config.json", config | {"architectures": ["NoSuchModel"]})
    assert type(load_pretrained(causal)) is transformers.LlamaModel
    write(causal / "modules.json", MODULES[:1])
    write(causal / "config.json", config)
    assert type(load_pretrained(causal).model) is transformers.LlamaModel


def test_a_reference_may_be_a_directory(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, reference = two(lambda: transformers.LlamaForCausalLM(llama_config()))
    reference.save_pretrained(tmp_path)
    expected = evaluate(model, [texts()], reference)
    assert evaluate(model, [texts()], tmp_path) == expected
    assert evaluate(model, [texts()], str(tmp_path)) == expected
    assert expected.kl > 0


def test_directories_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(WaterfillError, match=r"has no config\.json; expected a model directory"):
        load_pretrained(tmp_path)
    pytest.importorskip("transformers")
    for text, words in (("{", r"config\.json is no JSON"), ("[]", "holds a list; expected an object")):
        write(tmp_path / "config.json", text)
        with pytest.raises(FormatError, match=words):
            load_pretrained(tmp_path)
    write(tmp_path / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    with pytest.raises(WaterfillError, match=r"The model in .* cannot be read"):
        load_pretrained(tmp_path)
