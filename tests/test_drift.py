"""Drift: whether new images, as a whole, differ from normal ones."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import corrupted, stripes
from PIL import Image, ImageFilter
from scipy import stats

from fewshot_ad import DualDistillationDetector, cli
from fewshot_ad.data.images import load
from fewshot_ad.drift import CLIPPING, LEAST_IMAGES, LIGHT, SCORE, compare, describe, light
from fewshot_ad.exceptions import ImageError, ImageSkippedWarning
from fewshot_ad.method.duplicates import one_of_each

pytestmark = pytest.mark.filterwarnings("ignore:.*is an outlier among", "ignore:.*are near-duplicates")


@pytest.fixture(scope="module")
def det(normal) -> DualDistillationDetector:
    return DualDistillationDetector(image_size=32, evidence=("patch", "embedding"), random_state=0).fit(
        normal[:6]
    )  # two are identical


@pytest.fixture(scope="module")
def fresh() -> np.ndarray:
    return stripes(10, seed=5)


def brighter(images: np.ndarray, factor: float = 1.3) -> np.ndarray:
    return np.clip(images * factor, 0, 255).astype(np.uint8)


def blurred(images: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5)) for image in images]


def test_normal_images_are_not_drift(det, fresh):
    found = det.drift(fresh)
    assert not found.drifted
    assert found.p_value > 0.05
    assert (found.n_images, found.n_support) == (10, 5)
    assert found.text.startswith("No drift: 10 images, as a whole, are like the 5 support images (p = ")


def test_light_focus_and_product_are_drift(det, fresh):
    bright, dull, soft = det.drift(brighter(fresh)), det.drift(fresh // 2 + 64), det.drift(blurred(fresh))
    noise = det.drift(np.random.default_rng(0).integers(0, 256, fresh.shape, np.uint8))
    assert [one.drifted for one in (bright, dull, soft, noise)] == [True] * 4
    assert bright.statistic in ("brightness", "highlights")
    assert bright.statistics["brightness"].new == pytest.approx(1.3 * bright.statistics["brightness"].support, rel=0.1)
    assert soft.statistics["focus"].p_value < 1e-6
    assert soft.statistics["focus"].new < soft.statistics["focus"].support
    assert dull.statistics["contrast"].p_value < 1e-3
    assert noise.statistics[SCORE].p_value < 1e-3
    assert noise.statistics[SCORE].new > 1  # on the scale where 1 is the threshold
    assert soft.text.startswith("Drift: 10 images, as a whole, differ from the 5 support images (p = ")
    assert f"; {soft.statistic} " in soft.text


def test_few_anomalous_images_are_not_drift(det, fresh):
    assert not det.drift([*fresh, *corrupted(fresh[:1])]).drifted
    assert det.drift(corrupted(fresh, side=20)).drifted


def test_p_value_is_corrected_for_multiple_tests(det, fresh):
    found = det.drift(fresh)
    by_name = {name: one.p_value for name, one in found.statistics.items()}
    assert list(by_name) == [*LIGHT, SCORE]
    assert found.p_value == min(1, 6 * min(by_name.values()))
    assert by_name[found.statistic] == min(by_name.values())


def test_statistics_use_students_t():
    """It equals scipy's, except for the prior, which has little weight if images differ more."""
    rng = np.random.default_rng(0)
    images = [
        (factor * image).astype(np.uint8) for factor, image in zip(rng.uniform(0.3, 1, 16), stripes(16), strict=True)
    ]
    det = DualDistillationDetector(image_size=32, evidence="patch", random_state=0).fit(images[:6])
    support, new = (
        np.array([np.log(light(load(image, i, det.fitted_.geometry))[0]) for i, image in enumerate(part)])
        for part in (images[:6], images[6:])
    )
    found = det.drift(images[6:]).statistics["brightness"]
    expected = stats.ttest_ind(one_of_each(support, det.fitted_.groups), new)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)
    assert np.log(found.new) == pytest.approx(new.mean())


def test_order_does_not_matter(det, fresh):
    first, again, backwards = det.drift(fresh), det.drift(fresh), det.drift(fresh[::-1])
    assert first == again
    assert backwards.p_value == pytest.approx(first.p_value, rel=1e-9)
    with pytest.raises(FrozenInstanceError):
        first.drifted = True


def test_too_few_images(det, fresh):
    with pytest.raises(ImageError, match="Drift needs at least 5 readable images, and there are 4") as caught:
        det.drift(fresh[:4])
    assert str(caught.value).endswith("Pass more of them.")
    assert det.drift(fresh[:LEAST_IMAGES]).n_images == LEAST_IMAGES


def test_unreadable_images(det, fresh, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.png could not be read"):
        det.drift([*fresh, tmp_path / "a.png"])
    lenient = DualDistillationDetector(**{**det.get_params(deep=False), "on_error": "skip"})
    lenient.fitted_ = det.fitted_
    with pytest.warns(ImageSkippedWarning):
        assert lenient.drift([*fresh, tmp_path / "a.png"]) == det.drift(fresh)
    with pytest.warns(ImageSkippedWarning), pytest.raises(ImageError, match="there are 4"):
        lenient.drift([*fresh[:4], tmp_path / "a.png"])


def test_without_support_images_only_the_score_is_compared(det, fresh, tmp_path):
    det.save(tmp_path / "m.fsad")
    loaded = DualDistillationDetector.load(tmp_path / "m.fsad")
    found, whole = loaded.drift(fresh), det.drift(fresh)
    assert found.statistic == SCORE
    assert found.statistics[SCORE] == whole.statistics[SCORE]
    assert found.p_value == found.statistics[SCORE].p_value
    assert all(math.isnan(found.statistics[name].p_value) for name in LIGHT)
    assert all(found.statistics[name].new == whole.statistics[name].new for name in LIGHT)
    assert not loaded.drift(brighter(fresh, 1.02)).drifted


@pytest.mark.filterwarnings("ignore:The support is a single image")
def test_single_support_image(det, normal, fresh, tmp_path):
    one = DualDistillationDetector(image_size=32, evidence="patch", random_state=0).fit(normal[:1])
    found = one.drift(fresh)
    assert math.isnan(found.statistics[SCORE].p_value)
    assert not found.drifted
    assert one.drift(blurred(fresh)).drifted
    one.save(tmp_path / "m.fsad")
    loaded = DualDistillationDetector.load(tmp_path / "m.fsad")
    with pytest.raises(ValueError, match="nothing to compare with: the support is a single image") as caught:
        loaded.drift(fresh)
    message = "Save the detector with support=True where it was fitted, fit on several images, or pass normal images as"
    assert f"{message} reference." in str(caught.value)
    assert not loaded.drift(fresh, reference=normal[6:]).drifted
    one.save(tmp_path / "with.fsad", support=True)
    assert DualDistillationDetector.load(tmp_path / "with.fsad").drift(fresh) == found
    det.save(tmp_path / "several.fsad")
    assert not DualDistillationDetector.load(tmp_path / "several.fsad").drift(fresh).drifted


# ---- a reference


def test_reference_adds_normal_images(det, normal, fresh):
    """A reference acts like further support images, except that their patches are not in the memory bank."""
    found = det.drift(fresh, reference=normal[6:])
    session = det.session()
    assert found == compare(det.fitted_, describe(session, fresh), describe(session, normal[6:]))
    assert (found.n_support, found.n_reference) == (5, len(normal) - 6)
    support = [np.log(light(image)[0]) for image in det.fitted_.images]
    rest = [np.log(light(load(image, i, det.fitted_.geometry))[0]) for i, image in enumerate(normal[6:])]
    mean = np.mean([*one_of_each(np.array(support), det.fitted_.groups), *rest])
    assert np.log(found.statistics["brightness"].support) == pytest.approx(mean)
    assert found.statistics["brightness"].new == det.drift(fresh).statistics["brightness"].new
    assert f"the 5 support and {len(normal) - 6} reference images (p = " in found.text
    assert "in normal images" in found.text


def test_reference_detects_smaller_differences():
    rng = np.random.default_rng(1)

    def draw(n: int) -> np.ndarray:
        return np.uint8(stripes(n, seed=int(rng.integers(1000))) * rng.uniform(0.5, 1, (n, 1, 1, 1)))

    det = DualDistillationDetector(image_size=32, evidence="patch", random_state=0).fit(draw(4))
    fresh, reference = draw(20), draw(20)
    darker = np.uint8(0.75 * fresh)
    assert [det.drift(fresh, one).drifted for one in (None, reference)] == [False, False]
    assert [det.drift(darker, one).drifted for one in (None, reference)] == [False, True]


def test_support_images_and_repeated_ones_count_once(det, normal, fresh):
    once = det.drift(fresh, reference=normal[6:9])
    assert det.drift(fresh, reference=[*normal[:6], *normal[6:9], *normal[6:8]]) == once
    assert det.drift(fresh, reference=normal[:6]) == det.drift(fresh)


def test_reference_replaces_missing_support_images(det, normal, fresh, tmp_path):
    det.save(tmp_path / "m.fsad")
    found = DualDistillationDetector.load(tmp_path / "m.fsad").drift(blurred(fresh), reference=normal[6:])
    assert found.drifted
    assert found.statistics["focus"].p_value < 1e-3


def test_unreadable_reference(det, normal, fresh, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a\.png could not be read"):
        det.drift(fresh, reference=[*normal[6:], tmp_path / "a.png"])


def test_near_duplicates_count_once(normal, fresh):
    frames = [np.clip(normal[0].astype(int) + i, 0, 255).astype(np.uint8) for i in range(3)]
    det = DualDistillationDetector(image_size=32, evidence="patch", random_state=0).fit([*frames, *normal[1:4]])
    assert det.drift(fresh).n_support == len(set(det.fitted_.groups)) < 6


@pytest.mark.parametrize("value", [0, 128, 255])
def test_plain_images_have_finite_statistics(det, value):
    found = det.drift(np.full((6, 40, 40, 3), value, np.uint8))
    assert found.drifted
    assert all(math.isfinite(one.p_value) and math.isfinite(one.new) for one in found.statistics.values())


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (3, 5), (33, 2)])
def test_light_of_any_shape(shape):
    found = light(torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)))
    assert np.isfinite(found).all()
    assert (np.delete(found, 2) > 0).all()


def test_light_and_focus_are_independent():
    image = torch.from_numpy(stripes(1, 64)[0]).permute(2, 0, 1) / 255
    assert light(image)[2] == light(0.8 * image)[2] == 0  # no clipping
    plain, darker = (np.log(np.delete(light(one), 2)) for one in (image, 0.8 * image))
    assert darker[3] == pytest.approx(plain[3], abs=0.01)  # focus
    assert (plain - darker)[:3] == pytest.approx([math.log(1.25)] * 3, abs=0.02)


def test_clipping_is_the_fraction_at_full_scale():
    image = torch.full((3, 10, 10), 0.5)
    assert light(image)[2] == 0
    image[0, :2] = 1.0
    assert light(image)[2] == pytest.approx(20 / 300)
    image[:, 9] = 7.0  # beyond
    assert light(image)[2] == pytest.approx(50 / 300)


def test_clipping_detects_more_light():
    """Normal images differ much in brightness, and none is clipped."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> np.ndarray:
        of_each = [np.where(rng.random((48, 48, 1)) < 0.01, 0.85, rng.uniform(0.05, 0.6)) for _ in range(n)]
        return np.uint8(255 * np.array(of_each).repeat(3, 3))

    det = DualDistillationDetector(image_size=48, evidence="patch", random_state=0).fit(draw(6))
    fresh = draw(20)
    assert not det.drift(fresh).drifted
    found = det.drift(brighter(fresh, 1.3))
    assert found.drifted
    assert found.statistic == CLIPPING
    assert found.statistics[CLIPPING].p_value < 0.01 * found.statistics["brightness"].p_value
    assert found.statistics[CLIPPING].support < 1e-4 < found.statistics[CLIPPING].new < 0.1


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_rows(normal, fresh):
    rows, new = (images[..., 0].reshape(len(images), -1) for images in (normal[:6], fresh))
    det = DualDistillationDetector(image_size=32, image_shape=(40, 40), evidence="patch", random_state=0).fit(rows)
    assert not det.drift(new).drifted
    assert det.drift(new // 2).drifted


# ---- the command


@pytest.fixture
def folder(tmp_path, det, fresh) -> Path:
    det.save(tmp_path / "m.fsad", support=True)
    for name, images in {"new": fresh, "bright": brighter(fresh), "more": stripes(6, seed=6)}.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    return tmp_path


def run(*words: object) -> int:
    return cli.main(["drift", *map(str, words), "--quiet"])


def test_command(det, folder, fresh, capsys):
    assert run(folder / "m.fsad", folder / "new") == 0
    message = capsys.readouterr().out.splitlines()
    expected = det.drift(sorted((folder / "new").iterdir()))
    assert message[0] == expected.text
    assert [line.split()[0] for line in message[2:]] == ["statistic", *LIGHT, SCORE]
    assert run(folder / "m.fsad", folder / "bright", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["drifted"]
    assert found["statistics"]["brightness"].keys() == {"support", "new", "p_value"}
    assert (found["n_images"], found["n_support"], found["n_reference"], found["failed"]) == (10, 5, 0, {})


def test_command_with_a_reference(det, folder, capsys):
    expected = det.drift(sorted((folder / "new").iterdir()), reference=sorted((folder / "more").iterdir()))
    assert run(folder / "m.fsad", folder / "new", "--reference", folder / "more") == 0
    message = capsys.readouterr().out.splitlines()
    assert message[0] == expected.text
    assert message[2].split() == ["statistic", "normal", "new", "p"]
    (folder / "more" / "x.png").write_bytes(b"no image")
    assert run(folder / "m.fsad", folder / "new", "--reference", folder / "more", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["n_reference"] == 6
    assert list(found["failed"]) == [str(folder / "more" / "x.png")]
    assert run(folder / "m.fsad", folder / "new", "--reference", folder / "none") == 2
    assert "none does not exist" in capsys.readouterr().err


def test_command_leaves_out_unreadable_images(folder, capsys):
    broken = folder / "new" / "x.png"
    broken.write_bytes(b"no image")
    assert run(folder / "m.fsad", folder / "new") == 1
    message = capsys.readouterr()
    assert message.out.startswith("No drift: 10 images")
    assert f"{broken} could not be read" in message.err
    assert run(folder / "m.fsad", *sorted((folder / "new").iterdir())[:4]) == 2
    assert "there are 4. Pass more of them." in capsys.readouterr().err


def test_command_without_support_images(folder, det, capsys):
    det.save(folder / "without.fsad")
    assert run(folder / "without.fsad", folder / "new", "--json") == 0
    assert json.loads(capsys.readouterr().out)["statistics"]["focus"]["p_value"] is None
