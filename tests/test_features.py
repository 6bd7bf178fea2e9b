from __future__ import annotations

import errno
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import joblib
import pytest
import timm
import torch
from joblib import numpy_pickle

from fewshot_ad import DualDistillationDetector
from fewshot_ad.exceptions import MemoryWarning, OutOfMemoryError
from fewshot_ad.method import features, teachers
from fewshot_ad.method.features import CHUNK, FeatureExtractor, in_chunks, run_network
from fewshot_ad.method.teacher import build_backbone
from fewshot_ad.runtime import resolve_runtime


@pytest.fixture(scope="module")
def teacher(toy):
    return build_backbone(toy["backbone"], 32, weights=toy["weights"])


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def joined(found) -> list[torch.Tensor]:
    """Concatenate the maps of images of one shape, level by level."""
    return [torch.cat(level) for level in zip(*found, strict=True)]


def extractor(teacher, memory=None, precision="float32") -> FeatureExtractor:
    return FeatureExtractor(teacher, "fingerprint", resolve_runtime("cpu", precision), memory)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_features_do_not_depend_on_the_batch(teacher, images, precision):
    extract = extractor(teacher, precision=precision)
    together = joined(extract(images))
    backwards = [m.flip(0) for m in joined(extract(images.flip(0)))]
    alone = joined([maps for image in images for maps in extract(image[None])])
    for a, b, c in zip(together, backwards, alone, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_reduced_precision_is_close(teacher, images):
    lowered = joined(extractor(teacher, precision="bfloat16")(images))
    for exact, low in zip(joined(extractor(teacher)(images)), lowered, strict=True):
        assert not torch.equal(exact, low)
        assert torch.nn.functional.cosine_similarity(exact.flatten(1), low.flatten(1)).min() > 0.999


def test_memory_keeps_each_distinct_image(teacher, images, tmp_path):
    memory = joblib.Memory(tmp_path, verbose=0)
    plain = joined(extractor(teacher)(images))
    first = extractor(teacher, memory)
    assert all(torch.equal(a[:6], b) for a, b in zip(plain, joined(first(images[:6])), strict=True))
    assert first.n_seen == 6
    second = extractor(teacher, memory)
    found = joined(second(images))
    assert second.n_seen == 5
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    other_precision = extractor(teacher, memory, "bfloat16")
    other_precision(images)
    assert other_precision.n_seen == 11


def test_memory_without_a_location(teacher, images):
    extract = extractor(teacher, joblib.Memory(None))
    extract(images)
    extract(images)
    assert extract.n_seen == 22


def test_damaged_entry_is_recomputed(teacher, images, tmp_path):
    memory = joblib.Memory(tmp_path, verbose=0)
    expected = joined(extractor(teacher, memory)(images[:2]))
    for file in tmp_path.rglob("output.pkl"):
        file.write_bytes(b"damaged")
    again = joined(extractor(teacher, memory)(images[:2]))
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


def test_chunks_are_padded_to_one_size():
    sizes = []

    def double(batch):
        sizes.append(len(batch))
        return [2 * batch]

    (result,) = in_chunks(double, torch.arange(float(CHUNK + 1)).view(-1, 1))
    assert sizes == [CHUNK, CHUNK]
    assert result.flatten().tolist() == [2.0 * i for i in range(CHUNK + 1)]


def test_full_disk_disables_the_cache(teacher, images, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = joined(extractor(teacher)(images))
    monkeypatch.setattr(numpy_pickle, "dump", full)
    extract = extractor(teacher, joblib.Memory(tmp_path, verbose=0))
    with pytest.warns(Warning, match="Unable to cache.*No space left"):
        found = joined(extract(images))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


class RoundsAlone(torch.nn.Module):
    """A network that rounds differently for a batch of one, and records batch sizes."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.sizes = []

    def forward(self, batch):
        self.sizes.append(len(batch))
        return [batch * self.weight[0] + (1e-6 if len(batch) == 1 else 0.0)]

    def extra_repr(self):
        return str(self.weight.shape)


def test_small_batches_are_used_if_bits_are_equal():
    network, runtime = RoundsAlone(), resolve_runtime("cpu", "float32")
    images = torch.rand(CHUNK + 3, 3, 4, 4)
    (expected,) = run_network(network, images[:CHUNK], runtime)
    assert network.sizes == [CHUNK]  # no trial without a possible gain
    (one,) = run_network(network, images[:1], runtime)
    (three,) = run_network(network, images[:3], runtime)
    (all_,) = run_network(network, images, runtime)
    assert network.sizes[-4:] == [2, 4, CHUNK, 4]
    assert torch.equal(one, expected[:1])
    assert torch.equal(three, expected[:3])
    assert torch.equal(all_[:CHUNK], expected)
    # Tried once for each architecture, not for each student of a search.
    again = RoundsAlone()
    run_network(again, images[:1], runtime)
    assert again.sizes == [2]
    wider = RoundsAlone(5)
    run_network(wider, images[:1], runtime)
    assert len(wider.sizes) > 1


def test_small_batches_that_fail_are_not_used():
    class Full(torch.nn.Module):
        def forward(self, batch):
            raise torch.OutOfMemoryError("no room")

    with pytest.warns(MemoryWarning), pytest.raises(OutOfMemoryError, match="with batches of 4 images"):
        run_network(Full(), torch.zeros(1, 3, 4, 4), resolve_runtime("cpu", "float32"))


def test_out_of_memory_halves_the_batch():
    def only(n):
        def function(batch):
            if len(batch) > n:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return [batch + 1]

        return function

    inputs = torch.arange(3.0).view(-1, 1)
    with pytest.warns(MemoryWarning, match="Memory ran out"):
        (result,) = in_chunks(only(CHUNK // 2), inputs)
    assert result.flatten().tolist() == [1.0, 2.0, 3.0]
    with pytest.warns(MemoryWarning), pytest.raises(OutOfMemoryError, match="Lower image_size"):
        in_chunks(only(1), inputs)


def test_other_errors_pass_through():
    def broken(batch):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        features.in_chunks(broken, torch.zeros(2, 1))


def test_cache_key_depends_on_the_stages(tmp_path):
    # lcnet keeps the weights of stages that are not returned, so the fingerprint is the same.
    memory = joblib.Memory(tmp_path, verbose=0)
    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    patch = DualDistillationDetector(image_size=32, evidence="patch", memory=memory).fit(image)
    both = DualDistillationDetector(image_size=32, student_weight=0.1, memory=memory, random_state=0).fit(image)
    assert len(both.experts_) == 1
    assert torch.equal(both.patches_, patch.patches_)


def test_loaded_teacher_is_folded(teacher, toy, images):
    loaded, fingerprint = teachers.load_teacher(
        toy["backbone"], 32, toy["weights"], True, resolve_runtime("cpu", "float32")
    )
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in teacher.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in loaded.modules())
    assert fingerprint == teacher.fingerprint()
    for folded, plain in zip(loaded(images), teacher(images), strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)


@pytest.fixture
def made(monkeypatch):
    """Record each teacher that is built."""
    make, names = teachers.build_backbone, []

    def noting(name, size, **options):
        names.append(size)
        return make(name, size, **options)

    teachers.TEACHERS.clear()
    monkeypatch.setattr(teachers, "build_backbone", noting)
    yield names
    teachers.TEACHERS.clear()


def test_each_teacher_is_built_once(toy, normal, made):
    dets = [DualDistillationDetector(**{**toy, "image_size": size}).fit(normal[:3]) for size in (32, 40, 48)]
    for det in (*dets, *dets):
        det.score_samples(normal[3:4])
    assert made == [32, 40, 48]


def test_recent_and_referenced_teachers_are_cached(toy, made):
    runtime = resolve_runtime("cpu", "float32")

    def load(size: int):
        return teachers.load_teacher(toy["backbone"], size, toy["weights"], True, runtime)

    held = load(32)
    known = [weakref.ref(load(size)[0]) for size in (40, 48, 56, 64, 72)]
    gc.collect()
    assert [ref() is None for ref in known] == [True, False, False, False, False]
    assert load(32)[0] is held[0]
    assert load(32)[1] == held[1]
    assert load(72)[0] is known[-1]()
    assert made == [32, 40, 48, 56, 64, 72]
    load(40)
    assert made[-1] == 40
    teachers.TEACHERS.clear()
    assert load(32)[0] is not held[0]


def test_threads_share_a_teacher(toy, made):
    runtime = resolve_runtime("cpu", "float32")
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(
                lambda i: teachers.load_teacher(toy["backbone"], (32, 40)[i % 2], toy["weights"], True, runtime),
                range(16),
            )
        )
    assert sorted(made) == [32, 40]
    assert len({id(teacher) for teacher, _ in found}) == 2


@pytest.mark.parametrize("what", ["torch", "timm", "processor"])
def test_cache_key_depends_on_precision_and_versions(teacher, images, tmp_path, monkeypatch, what):
    memory = joblib.Memory(tmp_path, verbose=0)
    extract = extractor(teacher, memory)
    extract(images[:2])
    extract(images[:2])
    assert extract.n_seen == 2
    with monkeypatch.context() as other:
        if what == "processor":
            other.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1024")
        else:
            other.setattr({"torch": torch, "timm": timm}[what], "__version__", "99.0")
        extract(images[:2])
        assert extract.n_seen == 4
    extract(images[:2])
    assert extract.n_seen == 4
