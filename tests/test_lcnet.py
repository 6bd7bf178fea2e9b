"""The packaged teacher's network: bitwise identical to timm's with the same file."""

from __future__ import annotations

import pytest
import torch

from fewshot_ad.exceptions import OutOfMemoryError
from fewshot_ad.method import lcnet
from fewshot_ad.method.folding import fold_batch_norms
from fewshot_ad.method.lcnet import build_lcnet
from fewshot_ad.method.packaged import PACKAGED
from fewshot_ad.method.teacher import build_backbone
from fewshot_ad.method.teachers import TEACHERS, load_teacher
from fewshot_ad.runtime import resolve_runtime

PACKED = PACKAGED["compact"]


def build_both(image_size, embedding):
    return [
        build(PACKED.network, image_size, weights=PACKED.teacher, embedding=embedding)
        for build in (build_backbone, build_lcnet)
    ]


def assert_equal(expected, found):
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize(
    ("image_size", "embedding"), [(8, True), (32, True), (100, True), (128, True), (128, False), (225, True)]
)
@torch.inference_mode()
def test_equals_timm(image_size, embedding):
    timms, own = build_both(image_size, embedding)
    assert own.fingerprint() == timms.fingerprint()
    assert list(own.state_dict()) == list(timms.state_dict())
    assert own.channels == timms.channels == (64, 128, 256, 512)[: 3 + embedding]
    assert own.shapes == timms.shapes
    assert own.signed == timms.signed
    assert not own.training
    assert not any(p.requires_grad for p in own.parameters())
    assert torch.equal(own.mean, timms.mean)
    assert torch.equal(own.std, timms.std)
    images = torch.rand(8, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        timms, own = build_both(image_size, embedding)
        given = images.to(dtype)
        timms, own = timms.to(dtype), own.to(dtype)
        assert_equal(timms(given), own(given))
        folded = [fold_batch_norms(one.model, given[:2]) > 0 for one in (timms, own)]
        assert folded[0] == folded[1]
        assert folded[0] or dtype == torch.bfloat16  # rounding of bfloat16 may prevent folding
        timms, own = (one.to(memory_format=torch.channels_last) for one in (timms, own))
        given = given.contiguous(memory_format=torch.channels_last)
        assert_equal(timms(given), own(given))


def test_global_generator_is_not_used():
    before = torch.get_rng_state()
    build_lcnet(PACKED.network, 32, weights=PACKED.teacher, embedding=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_packaged_file_as_weights():
    """With `weights=` timm builds the network, and the fingerprint is the same."""
    runtime = resolve_runtime("cpu", "float32")
    own, fingerprint = load_teacher("compact", 32, None, True, runtime)
    TEACHERS.clear()
    timms, other = load_teacher("compact", 32, PACKED.teacher, True, runtime)
    assert isinstance(own.model, lcnet.LCNet)
    assert not isinstance(timms.model, lcnet.LCNet)
    assert fingerprint == other


def test_out_of_memory(monkeypatch):
    def ask(*_, **__):
        raise MemoryError

    monkeypatch.setattr(lcnet, "load_file", ask)
    with pytest.raises(OutOfMemoryError, match="Lower image_size"):
        build_lcnet(PACKED.network, 32, weights=PACKED.teacher, embedding=True)
