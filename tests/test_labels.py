"""Selection of the support by labels and by `n_support`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fewshot_ad import DualDistillationDetector, cli
from fewshot_ad.exceptions import ImageError, ImageSkippedWarning


@pytest.fixture
def make(toy):
    return lambda **parameters: DualDistillationDetector(**{**toy, "evidence": "embedding", **parameters})


@pytest.fixture
def paths(tmp_path, normal):
    found = [tmp_path / f"{i}.png" for i in range(len(normal))]
    for path, image in zip(found, normal, strict=True):
        Image.fromarray(image).save(path)
    return found


def drawn(det: DualDistillationDetector) -> list[int]:
    return [int(name.split()[1]) for name in det.fitted_.names]  # "image 3"


def test_n_support_normal_images_are_drawn(make, normal):
    y = np.where(np.arange(len(normal)) % 3 == 0, -1, 1)
    found = [drawn(make(n_support=3, random_state=seed).fit(normal, y)) for seed in range(30)]
    assert all(len(one) == 3 and one == sorted(one) and (y[one] == 1).all() for one in found)
    counts = np.bincount(np.concatenate(found), minlength=len(normal))[y == 1]
    assert counts.min() > 0  # each of 8 images is drawn 11 times on average
    assert counts.max() < 24
    assert drawn(make(n_support=3, random_state=7).fit(normal, y)) == found[7]


def test_draw_equals_fit_on_the_drawn_images(make, normal):
    few = make(n_support=4).fit(normal)
    np.testing.assert_array_equal(
        few.decision_function(normal), make().fit(normal[drawn(few)]).decision_function(normal)
    )
    every, plain = make(n_support=5).fit(normal[:5]), make().fit(normal[:5])
    np.testing.assert_array_equal(every.decision_function(normal), plain.decision_function(normal))


def test_too_few_normal_images(make, normal):
    y = [1, 1, 1, -1]
    with pytest.raises(ValueError, match="n_support=4 was given, but there are only 3 normal images") as caught:
        make(n_support=4).fit(normal[:4], y)
    assert str(caught.value).endswith("Pass more of them, or set n_support to at most 3.")
    assert len(drawn(make(n_support=3).fit(normal[:4], y))) == 3
    assert len(drawn(make(n_support=4).fit(normal[:5], [*y, 1]))) == 4


def test_unreadable_images_are_replaced(make, paths):
    for path in paths[:8]:
        path.write_bytes(b"no image")
    det = make(n_support=4, on_error="skip")
    with pytest.warns(ImageSkippedWarning):
        det.fit(paths)
    assert det.fitted_.names == tuple(map(str, paths[8:]))
    with pytest.warns(ImageSkippedWarning):
        assert len(make(n_support=5, on_error="skip").fit(paths).fitted_.names) == 4
    with pytest.raises(ImageError, match="could not be read"):
        make(n_support=4).fit(paths)


def test_images_that_are_not_drawn_are_not_read(make, paths):
    names = set(make(n_support=4).fit(paths).fitted_.names)
    for path in paths:
        if str(path) not in names:
            path.write_bytes(b"no image")
    assert set(make(n_support=4).fit(paths).fitted_.names) == names


def test_partial_fit_adds_all_images(make, normal):
    det = make(n_support=2).fit(normal[:6]).partial_fit(normal[6:9])
    assert len(det.support_scores_) == 5


def test_n_support_is_stored(make, normal, tmp_path):
    det = make(n_support=3).fit(normal)
    det.save(tmp_path / "m.fsad")
    loaded = DualDistillationDetector.load(tmp_path / "m.fsad")
    assert loaded.n_support == 3
    np.testing.assert_array_equal(loaded.decision_function(normal), det.decision_function(normal))


def test_command_draws(paths, tmp_path, capsys):
    command = ["fit", *map(str, paths), "-o", str(tmp_path / "m.fsad"), "--image-size", "32", "--quiet"]
    assert cli.main([*command, "--n-support", "3"]) == 0
    assert "fitted on 3 images" in capsys.readouterr().out
    assert cli.main([*command, "--n-support", "13", "--force"]) == 2
    assert "Pass more of them, or --n-support of at most 12." in capsys.readouterr().err
    assert cli.main([*command, "--n-support", "0", "--force"]) == 2
    assert "n_support=0 was given" in capsys.readouterr().err
    for path in paths[:10]:
        path.write_bytes(b"no image")
    assert cli.main([*command, "--n-support", "2", "--force"]) == 0  # exactly as many
    assert cli.main([*command, "--n-support", "3", "--force"]) == 1
