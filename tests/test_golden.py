"""Golden values of scores, updated by tests/make_golden.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from make_golden import CASES, GOLDEN, PACKAGED, compute, compute_packaged


@pytest.fixture(scope="module")
def computed():
    return compute()


@pytest.fixture(scope="module")
def packaged():
    return compute_packaged()


def compare(computed: dict, case: str, rtol: float, atol: float) -> None:
    for name, expected in json.loads(GOLDEN.read_text())[case].items():
        np.testing.assert_allclose(computed[case][name], expected, rtol=rtol, atol=atol, err_msg=f"{case} {name}")


@pytest.mark.parametrize("case", CASES)
def test_golden_values(computed, case):
    # Other processors and releases of torch round differently, which training amplifies.
    compare(computed, case, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("case", PACKAGED)
def test_golden_values_of_the_packaged_networks(packaged, case):
    # In float32, the default precision: without AVX they differ by up to 3e-5.
    compare(packaged, case, rtol=2e-4, atol=0)
