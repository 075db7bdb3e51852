import numpy as np
import pytest
import torch
from torch import nn

from waterfill.files import WaterfillFile
from waterfill.quantize import KMeans, Prune
from waterfill.records import Quantized, Spread, Uniform
from waterfill.reproduce.subject import LADDER, Samples, Subject, measure, paper_ratio, state_digest


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    model(torch.randn(32, 1, 6, 6))  # statistics of the norm
    return model.eval()


@pytest.fixture(scope="module")
def subject():
    return Subject.of(net())


def coded(symbols):
    return Quantized(np.array(symbols, np.int32).reshape(1, -1), Uniform(0), Spread(0, 32))


def test_the_ratio_of_pruning_is_the_fraction_that_is_not_zero():
    assert paper_ratio("prune", {"a": coded([0, 1, 0, -1]), "b": coded([0, 0])}) == pytest.approx(2 / 6)


def test_the_ratio_of_quantization_is_the_formula_of_the_paper():
    # 8 weights in clusters of 4, 2, 1, 1: lengths 1, 2, 3, 3 make 14 bits, and 4 centroids 128 bits, of 256
    assert paper_ratio("quantize", {"a": coded([0, 0, 0, 0, 1, 1, 2, 3])}) == pytest.approx((14 + 128) / 256)
    # 3 of 4 and 1 of 4: ceil(log2(4/3)) = 1, ceil(log2(4)) = 2
    assert paper_ratio("quantize", {"a": coded([0, 0, 0, 1])}) == pytest.approx((3 + 2 + 64) / 128)


def test_only_matrices_are_compressed(subject):
    assert list(subject.inventory.weights) == ["0.weight", "4.weight"]
    data = subject.pack(subject.quantize(KMeans(4), {}))
    tensors, state = dict(WaterfillFile(data).tensors()), subject.model.state_dict()
    assert tensors.keys() == state.keys()
    for name in state:
        same = torch.equal(tensors[name], state[name])
        assert same == (name not in subject.inventory.weights), name


@pytest.mark.parametrize("quantizer", [KMeans(4), Prune(0.3)])
def test_filling_is_the_same_as_decoding_a_file(subject, quantizer):
    quantized = subject.quantize(quantizer, {})
    subject.fill(quantized)
    filled = subject.digest()
    subject.load(subject.pack(subject.quantize(KMeans(2), {})))
    assert subject.digest() != filled
    subject.load(subject.pack(quantized))
    assert subject.digest() == filled


def test_the_original_is_left_alone(subject):
    before = state_digest(subject.model)
    subject.load(subject.pack(subject.quantize(Prune(0.1), {})))
    assert state_digest(subject.model) == before == state_digest(net())


def test_one_threshold_makes_a_file_of_the_size_of_one_fraction(subject):
    size = len(subject.pack(subject.quantize(Prune(0.3), {})))
    quantized, data = subject.prune_to_size({}, size)
    assert 0.9 * size < len(data) <= size
    kept = {name: np.count_nonzero(item.symbols) / item.symbols.size for name, item in quantized.items()}
    assert abs(kept["0.weight"] - kept["4.weight"]) > 0.1  # large weights in the convolution, small ones behind it


def test_one_price_makes_a_file_of_the_size_of_one_number_of_centroids(subject):
    ladder = [subject.quantize(KMeans(k), {}) for k in LADDER]
    quantized = subject.quantize(KMeans(8), {})
    size = len(subject.pack(quantized))
    chosen, data = subject.cluster_to_size(ladder, size)
    assert len(data) <= size and len(data) == len(subject.pack(chosen))
    # no worse by the objective than the same number of centroids everywhere, but for the step of the ladder
    assert sum(item.distortion for item in chosen.values()) < 1.1 * sum(item.distortion for item in quantized.values())
    least, data = subject.cluster_to_size(ladder, 1)
    assert all(len(np.unique(item.symbols)) == 1 for item in least.values())  # nothing is smaller


def test_measuring_gives_the_qualities_of_evaluate(subject):
    images, labels = torch.randn(40, 1, 6, 6), torch.arange(40) % 5
    with torch.no_grad():
        logits = subject.model(images)
    found = measure(subject.model, Samples([(images, labels)], [logits]))
    assert found["kl"] == 0 and found["accuracy"] == float((logits.argmax(1) == labels).float().mean().double().item())
    assert found["cross_entropy"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert "top5" not in found  # five classes
