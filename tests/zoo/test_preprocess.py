from __future__ import annotations

import numpy as np
import pytest
import torch

from waterfill.zoo.preprocess import (
    cifar_resnet_input,
    lenet_input,
    mobilenet_input,
    paper_cifar_input,
    paper_mnist_input,
    squeezenet_input,
    token_input,
)

PIXEL = (0.0, 128.0, 255.0)


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (cifar_resnet_input, [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        (paper_cifar_input, [-1.0, 1 / 255, 1.0]),
        (mobilenet_input, [-1.0, 128 / 127.5 - 1, 1.0]),
        (squeezenet_input, [255.0 - 104, 128.0 - 117, -123.0]),
    ],
)
def test_a_pixel_of_three_channels(prepare, expected) -> None:
    images = np.zeros((2, 4, 6, 3), np.uint8)
    images[1, 2, 5] = PIXEL
    prepared = prepare(images)
    assert prepared.shape == (2, 3, 4, 6)
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous()
    torch.testing.assert_close(prepared[1, :, 2, 5], torch.tensor(expected))


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [(lenet_input, [0.0, 0.5, 255 / 256]), (paper_mnist_input, [(p / 255 - 0.1307) / 0.3081 for p in PIXEL])],
)
def test_a_grey_row(prepare, expected) -> None:
    prepared = prepare(np.array([[PIXEL]], np.uint8))
    assert prepared.shape == (1, 1, 1, 3)
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared.flatten(), torch.tensor(expected))


def test_tokens_become_int64() -> None:
    prepared = token_input(np.array([[3, 511]], np.uint16))
    assert prepared.dtype == torch.int64
    assert prepared.tolist() == [[3, 511]]
