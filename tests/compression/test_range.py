"""Every finite value of every type comes back within its step, or is stored without loss with a reason."""

import pytest
import safetensors.torch
import torch
from torch import nn

import waterfill
from waterfill.errors import CalibrationError, TargetError
from waterfill.quantize import Scalar

TYPES = {torch.float16: (-8, 8), torch.bfloat16: (-120, 88), torch.float32: (-120, 88), torch.float64: (-120, 88)}


def compressed(tensors, tmp_path, **target):
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors")
    result = waterfill.compress(tmp_path / "m.safetensors", effort="fast", **target)
    result.save(tmp_path / "m.wf")
    return waterfill.decompress(tmp_path / "m.wf"), {row.name: row for row in result.tensors}


def relative_error(found, tensor):
    return float((found.double() - tensor.double()).norm() / tensor.double().norm())


@pytest.mark.parametrize(("dtype", "ends"), TYPES.items(), ids=map(str, TYPES))
def test_a_tensor_of_any_magnitude_has_its_precision_for_its_bits(dtype, ends, tmp_path):
    torch.manual_seed(0)
    for log_scale in (ends[0], ends[0] // 2, ends[1]):
        tensor = (torch.randn(64, 40, dtype=torch.float64) * 2.0**log_scale).to(dtype)
        found, _ = compressed({"w": tensor}, tmp_path, rate=5.0, quantizers=[Scalar()])
        assert found["w"].dtype == dtype
        assert relative_error(found["w"], tensor) < 0.08


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_values_that_no_step_reaches_are_stored_with_a_reason(dtype, tmp_path):
    torch.manual_seed(0)
    tensor, largest = torch.randn(16, 16).to(dtype), torch.finfo(dtype).max
    tensor[0, :2] = torch.tensor([largest, -largest], dtype=dtype)
    found, rows = compressed({"w": tensor, "v": torch.randn(16, 16)}, tmp_path, size_bytes=3000)
    assert torch.equal(found["w"], tensor)
    assert "beyond what steps reach" in rows["w"].reason


def test_what_takes_a_target_is_named(tmp_path):
    tensor = torch.randn(16, 16)
    tensor[0, 0] = 3.4e38
    with pytest.raises(TargetError, match=r"stored without loss, such as 'w' \(values up to 3.4e\+38, beyond"):
        compressed({"w": tensor, "v": torch.randn(16, 16)}, tmp_path, rate=12.0)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 3.4e38), (torch.float64, 1.7e308)])
def test_masks_of_the_largest_number_take_little(dtype, largest, tmp_path):
    mask = torch.full((64, 64), -largest, dtype=dtype).triu(1)
    found, rows = compressed({"w": torch.randn(32, 32), "mask": mask}, tmp_path, rate=4.0)
    assert torch.equal(found["mask"], mask)
    assert rows["mask"].size_bytes < 700


def test_a_dead_tensor_takes_nothing(tmp_path):
    tensors = {"w": torch.randn(32, 32), "dead": torch.randn(32, 32) * 1e-35}
    found, rows = compressed(tensors, tmp_path, rate=4.0)
    assert not found["dead"].any()
    assert rows["dead"].size_bytes < 40
    assert relative_error(found["w"], tensors["w"]) < 0.02


def test_prices_that_are_too_large_for_products_with_weights_are_an_error_that_names_the_tensor():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        net[0].weight *= 2.0**-60
        net[0].bias *= 2.0**-60
        net[2].weight *= 2.0**60
    with pytest.raises(
        CalibrationError, match=r"of tensor '0\.weight' is \S+e\+3\d on the data; expected at most 1e\+30"
    ):
        waterfill.compress(net, [torch.randn(32, 12)], rate=8.0, effort="fast", output="values")
