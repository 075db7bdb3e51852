"""Products of patches by shifts against the patches written out."""

import pytest
import torch

from waterfill.importance.shifted_products import ShiftedAxis
from waterfill.models.uses import Convolution
from waterfill.records import Layout


def convolution(shape, size, groups=1, stride=1, padding=0, dilation=1, upsample=None):
    axes = len(size)
    each = [value if isinstance(value, tuple) else (value,) * axes for value in (stride, padding, dilation)]
    ends = tuple((before, before + 1) for before in each[1])
    zeros = None if upsample is None else (upsample,) * axes
    view = Convolution(Layout(shape), groups, each[0], ends, each[2], zeros)
    x = torch.randn(3, shape[1] * groups, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return view, x


CASES = {
    "long kernel": convolution((4, 3, 6), (20,), padding=2),
    "kernel over the whole input": convolution((4, 3, 6), (5,)),
    "two axes": convolution((4, 3, 2, 3), (6, 7), padding=1),
    "groups": convolution((4, 2, 3, 3), (6, 7), groups=2, padding=1),
    "step along the other axis": convolution((4, 2, 3, 5), (9, 8), stride=(1, 2), padding=1),
    "distant taps": convolution((4, 2, 3), (14,), dilation=3, padding=2),
    "three axes": convolution((4, 2, 2, 3, 2), (4, 5, 4)),
    "transposed": convolution((4, 3, 4), (6,), padding=3, upsample=2),
}


@pytest.mark.parametrize("case", CASES)
def test_products_by_shifts_are_those_of_the_patches(case):
    view, x = CASES[case]
    axis = ShiftedAxis.of(view)
    patches = view.inputs(x)
    torch.testing.assert_close(axis.products(x), torch.einsum("rgip,rgjp->gij", patches, patches))


def test_taps_that_see_padding_alone_have_no_products():
    view = Convolution(Layout((2, 3, 8)), 1, (1,), ((0, 7),), (1,))
    x = 1e3 * torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0)) ** 9
    found = ShiftedAxis.of(view).products(x)
    patches = view.inputs(x)
    wanted = torch.einsum("rgip,rgjp->gij", patches, patches)
    assert (found.diagonal(dim1=1, dim2=2) >= 0).all()
    assert not found[:, wanted[0].diagonal() == 0].any()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6 * float(wanted.max()))


def test_axes_with_steps_or_one_tap_have_no_shifts():
    assert ShiftedAxis.of(convolution((4, 2, 1, 1), (4, 4))[0]) is None
    assert ShiftedAxis.of(convolution((4, 2, 3, 3), (9, 9), stride=2)[0]) is None
    assert ShiftedAxis.of(convolution((4, 2, 5, 3), (9, 9), stride=(2, 1))[0]).axis == 1


def test_work_is_less_where_kernels_are_long():
    view, x = convolution((4, 3, 16), (200,), padding=2)
    found = ShiftedAxis.of(view)
    assert found.work(x[:1].shape, 3, 190) < 0.3 * 3 * 190 * view.sizes[2] ** 2
