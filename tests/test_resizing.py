"""Resizing: bitwise identical to torchvision."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from fewshot_ad.data.resizing import resize


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 57, 91), (3, 200, 31), (2, 3, 16, 16), (1, 1, 2, 2), (3, 1, 40)])
def test_resizing_is_torchvisions(shape, dtype, antialias):
    image = torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for layout in (image, image.flip(-1), image.transpose(-1, -2), image[..., ::2]):
        for size in ([32, 32], [16, 16], [7, 80], [1, 1], list(layout.shape[-2:])):
            expected = TF.resize(layout, size, antialias=antialias)
            found = resize(layout, size, antialias=antialias)
            assert found.dtype == dtype
            assert torch.equal(found, expected)
            assert found.stride() == expected.stride()
