"""Draws of the support from a folder, and their metrics."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from helpers import corrupted, stripes
from PIL import Image
from sklearn.metrics import roc_auc_score

from fewshot_ad import DualDistillationDetector, evaluation, metrics
from fewshot_ad.exceptions import ImageSkippedWarning
from fewshot_ad.scored import Scored


def write(folder, pictures):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def root(tmp_path):
    """Nine normal and five corrupted images, four of which have a mask."""
    write(tmp_path / "good", stripes(9))
    write(tmp_path / "bad", corrupted(stripes(5, seed=1)))
    mask = np.zeros((40, 40), np.uint8)
    mask[20:32, 20:32] = 255
    write(tmp_path / "masks", [mask] * 4)
    return tmp_path


@pytest.fixture
def det(toy):
    return DualDistillationDetector(**toy, evidence="patch")


def test_draws_follow_the_seed(det, root):
    rows = evaluation.evaluate(det, root, n_shots=(2, 3), n_seeds=2)
    assert [(row["shots"], row["seed"]) for row in rows] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert not hasattr(det, "offset_")
    assert [(row["n_normal"], row["n_anomalous"], row["n_failed"]) for row in rows] == [(7, 5, 0)] * 2 + [(6, 5, 0)] * 2
    # Computed with public methods only.
    order = np.random.default_rng(1).permutation(9)
    good, bad = ([root / kind / f"{i}.png" for i in range(n)] for kind, n in (("good", 9), ("bad", 5)))
    det.set_params(random_state=1).fit([good[i] for i in order[:2]])
    queries = [*(good[i] for i in order[2:]), *bad]
    y = np.repeat([1, -1], [7, 5])
    assert rows[1]["image_auroc"] == roc_auc_score(y, det.score_samples(queries))
    anomaly = det.anomaly_score(queries)
    assert rows[1]["average_precision"] == metrics.average_precision(y, anomaly)
    assert rows[1]["f1_max"] == metrics.f1_max(y, anomaly).value
    assert rows[1]["recall_at_5"] == metrics.recall_at(y, anomaly, false_alarm_rate=0.05)
    called = det.predict(queries) == -1
    assert (rows[1]["false_alarms"], rows[1]["recall"]) == (called[:7].mean(), called[7:].mean())
    shown = det.anomaly_map(queries[:-1])
    large = np.stack([np.asarray(Image.fromarray(m).resize((256, 256), Image.Resampling.BILINEAR)) for m in shown])
    truth = np.zeros(large.shape, bool)
    truth[7:, 128:205, 128:205] = True
    assert rows[1]["pixel_auroc"] == pytest.approx(roc_auc_score(truth.ravel(), large.ravel()), abs=1e-3)
    assert rows[1]["pixel_auroc"] > 0.5


def test_split_folders_are_not_mixed(det, root, tmp_path):
    split = tmp_path / "split"
    write(split / "train" / "good", stripes(5, seed=2))
    write(split / "test" / "good", stripes(3, seed=3))
    write(split / "test" / "scratch", corrupted(stripes(2, seed=4)))
    (row,) = evaluation.evaluate(det, split, n_shots=(5,), n_seeds=1)
    assert (row["n_normal"], row["n_anomalous"]) == (3, 2)
    assert row["pixel_auroc"] is None
    with pytest.raises(ValueError, match=r"5 normal images to draw from.*needed are 6"):
        evaluation.evaluate(det, split, n_shots=(2, 6))


def test_unreadable_images_are_counted(det, root):
    (root / "bad" / "3.png").write_bytes(b"not an image")
    (root / "masks" / "3.png").unlink()
    (row,) = evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1)
    assert (row["n_normal"], row["n_anomalous"], row["n_failed"]) == (7, 4, 1)


def test_too_few_images(det, root):
    with pytest.raises(ValueError, match=r"9 normal images to draw from.*needed are 10"):
        evaluation.evaluate(det, root, n_shots=(9,))


def test_summary():
    rows = [{"shots": k, **dict.fromkeys(evaluation.METRICS, 0.1 * k)} for k in (2, 4)]
    rows.append({**rows[0], "image_auroc": 0.4, "aupro": None})
    two, four = evaluation.summary(rows)
    assert (two["shots"], two["n_seeds"], four["n_seeds"]) == (2, 2, 1)
    assert two["image_auroc"] == pytest.approx((0.3, 0.1))
    assert two["aupro"] is None
    assert four["recall"][0] == 0.4
    assert np.isnan(four["recall"][1])


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (lambda mask: Image.new("L", (10, 10)).save(mask), "a mask that differs in size from its image"),
        (lambda mask: mask.write_bytes(b"no picture"), "a mask that cannot be read"),
        (lambda mask: mask.write_bytes(mask.read_bytes()[:60]), "a mask that cannot be read"),
        (lambda mask: Image.new("L", (40, 40)).save(mask), "a mask without an anomalous pixel"),
        (lambda mask: mask.rename(mask.with_name("9.png")), "a mask without an image"),
        (lambda mask: mask.rename(mask.with_name("7.png")), "a mask that differs in size from its image"),
    ],
)
def test_invalid_mask_is_named_before_scoring(det, root, corrupt, reason, monkeypatch):
    (whole,) = evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1)
    if "size" in reason:
        Image.fromarray(stripes(1, size=50)[0]).save(root / "good" / "7.png")
    corrupt(root / "masks" / "1.png")
    left_out: list = []
    with monkeypatch.context() as patch:
        patch.setattr(DualDistillationDetector, "fit", lambda *_: 1 / 0)
        with pytest.warns(ImageSkippedWarning) as message, pytest.raises(ZeroDivisionError):
            evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1)
    assert any(f"left out: 1 ({reason})" in str(warning.message) for warning in message)
    assert any("2 of 5 anomalous images have no mask" in str(warning.message) for warning in message)
    with pytest.warns(ImageSkippedWarning, match=re.escape(reason)):
        (row,) = evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1, left_out=left_out)
    assert [message for _, message in left_out] == [reason]
    assert row["n_anomalous"] == 5
    assert row["image_auroc"] is not None
    assert row["pixel_auroc"] > 0.5
    if "size" not in reason:
        assert row["image_auroc"] == whole["image_auroc"]


def test_values_of_masks(det, root):
    (expected,) = evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1)
    for mask in (root / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(mask)) > 0).astype(np.uint8)).save(mask)
    (row,) = evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1)
    names = ("image_auroc", "pixel_auroc", "aupro")
    assert [row[name] for name in names] == [expected[name] for name in names]


def test_other_files_are_named(det, root):
    (root / "good" / "notes.txt").touch()
    (root / "more").mkdir()
    left_out: list = []
    with pytest.warns(ImageSkippedWarning, match=r"left out: 1 \(not an image, judging by its name\)"):
        evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1, left_out=left_out)
    assert [path.name for path, _ in left_out] == ["more", "notes.txt"]


def test_unreadable_images_are_named(det, root):
    (root / "bad" / "3.png").write_bytes(b"not an image")
    (row,) = evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1)
    ((path, error),) = row["failed"].items()
    assert path == str(root / "bad" / "3.png")
    assert "3.png could not be read" in error
    for file in (root / "bad").iterdir():
        file.write_bytes(b"not an image")
    (row,) = evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1)
    assert [row[name] for name in evaluation.METRICS] == [*[None] * 6, row["false_alarms"], None]
    assert 0 <= row["false_alarms"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_shots": (-1,)}, "n_shots=-1 was given"), ({"n_shots": (2, 0)}, "n_shots=0 was given"),
        ({"n_shots": ()}, r"n_shots=\(\) was given"), ({"n_shots": 4}, "n_shots=4 was given"),
        ({"n_shots": (2.5,)}, "n_shots=2.5 was given"), ({"n_shots": "4"}, "n_shots='4' was given"),
        ({"n_shots": (True,)}, "n_shots=True was given"), ({"n_seeds": 0}, "n_seeds=0 was given"),
        ({"n_seeds": 1.0}, "n_seeds=1.0 was given"), ({"n_seeds": None}, "n_seeds=None was given"),
    ],
)  # fmt: skip
def test_invalid_numbers(det, root, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(det, root, **options)


def test_repeated_shots_count_once(det, root):
    rows = evaluation.evaluate(det, root, n_shots=np.array([2, 2]), n_seeds=1)
    assert [row["shots"] for row in rows] == [2]


def test_maps_of_several_shapes(det, root):
    """Images and maps keep their aspect ratios."""
    for kind, name in (("good", "8.png"), ("bad", "2.png"), ("masks", "2.png")):
        file = root / kind / name
        Image.open(file).resize((40, 80)).save(file)
    (row,) = evaluation.evaluate(det, root, n_shots=(2,), n_seeds=1)
    assert row["pixel_auroc"] > 0.5
    assert 0 <= row["aupro"] <= 1


def test_tasks_are_found_in_a_folder(tmp_path):
    for task in ("b", "a"):
        write(tmp_path / task / "good", stripes(1))
    write(tmp_path / "c" / "train" / "good", stripes(1))
    (tmp_path / "notes").mkdir()
    assert evaluation.tasks(tmp_path) == [tmp_path / name for name in "abc"]
    assert evaluation.tasks(tmp_path / "a") == [tmp_path / "a"]
    assert evaluation.tasks(tmp_path / "notes") == [tmp_path / "notes"]  # `evaluate` says what is missing
    assert evaluation.tasks(tmp_path / "nowhere") == [tmp_path / "nowhere"]


def test_intervals_over_draws_and_the_worst_task():
    def rows(values, **more):
        same = dict.fromkeys(evaluation.METRICS, 0.5)
        return [{"shots": 4, **same, "image_auroc": value, **more} for value in values]

    (line,) = evaluation.across({"a": rows([0.9, 0.7, 0.8]), "b": rows([0.5, 0.6, 0.7], aupro=None)})
    assert (line["shots"], line["n_tasks"], line["n_seeds"], line["worst"]) == (4, 2, 3, "b")
    # Means of the draws are 0.7, 0.65 and 0.75; Student's t with two degrees of freedom is 4.303 at 97.5 %.
    half = 4.302653 * 0.05 / np.sqrt(3)
    assert line["image_auroc"] == pytest.approx((0.7, 0.7 - half, 0.7 + half))
    assert line["aupro"] == (0.5, 0.5, 0.5)  # only one task has it
    (wide,) = evaluation.across({"a": rows([1.0, 0.5])})
    assert wide["image_auroc"] == (0.75, 0, 1)
    (one,) = evaluation.across({"a": rows([0.9], recall=None)})
    assert one["image_auroc"][0] == 0.9
    assert np.isnan(one["image_auroc"][1:]).all()
    assert one["recall"] is None


@pytest.fixture(scope="module")
def compared(toy, tmp_path_factory):
    """A comparison with a detector that cannot detect the square, as its score is the mean of the map."""
    root = tmp_path_factory.mktemp("compared")
    write(root / "good", stripes(14))
    write(root / "bad", corrupted(stripes(8, seed=1), side=4))
    det = DualDistillationDetector(**toy, evidence="patch")
    dull = DualDistillationDetector(**toy | {"image_size": 32}, evidence="patch", aggregation="mean")
    return root, det, dull


def test_comparison_uses_the_same_draws_and_images(compared):
    root, det, dull = compared
    found = evaluation.compare(det, dull, root, n_shots=4, n_seeds=2, n_resamples=500)
    for one, rows in zip((det, dull), found.rows, strict=True):
        expected = evaluation.evaluate(one, root, n_shots=(4,), n_seeds=2)
        assert [row["image_auroc"] for row in rows] == [row["image_auroc"] for row in expected]
    assert found.first == pytest.approx(np.mean([row["image_auroc"] for row in found.rows[0]]))
    assert found.second == pytest.approx(np.mean([row["image_auroc"] for row in found.rows[1]]))
    assert found.difference == pytest.approx(found.second - found.first)
    assert found.low <= found.difference <= found.high
    assert len(found.samples) == 500


def test_comparison_with_itself(compared):
    root, det, _ = compared
    found = evaluation.compare(det, det, root, n_shots=2, n_seeds=2, n_resamples=100)
    assert (found.low, found.difference, found.high) == (0, 0, 0)
    assert not found.clear
    assert "not clear, as the interval contains 0" in str(found)


def made_up(*, swapped: bool) -> list[evaluation.Pairs]:
    """Create three draws: the second detector ranks all pairs correctly, the first by chance; or vice versa."""
    rng = np.random.default_rng(0)
    pairs = []
    for draw in range(3):
        y = np.repeat([1, -1], [30, 20])
        scores = [[Scored("", value, 0.0, None, None, None) for value in values]
                  for values in (rng.normal(size=50), y + 0.1 * rng.normal(size=50))]  # fmt: skip
        places = np.r_[30 * draw : 30 * draw + 30, 100:120]
        pairs.append(evaluation.Pairs(places, y, scores[::-1] if swapped else scores))
    return pairs


def test_bootstrap_is_deterministic_and_antisymmetric():
    difference, samples = evaluation.bootstrap(made_up(swapped=False), 100)
    np.testing.assert_array_equal(evaluation.bootstrap(made_up(swapped=False), 100)[1], samples)
    back = evaluation.bootstrap(made_up(swapped=True), 100)
    assert back[0] == -difference
    np.testing.assert_array_equal(back[1], -samples)


def test_clear_difference():
    pairs = made_up(swapped=False)
    difference, samples = evaluation.bootstrap(pairs, 1000)
    one = evaluation.Comparison(0.5, 1.0, difference, *np.quantile(samples, (0.025, 0.975)), samples, ([], []))
    assert difference == pytest.approx(np.mean([pair.auroc[1] - pair.auroc[0] for pair in pairs]))
    assert samples.mean() == pytest.approx(difference, abs=0.02)
    assert one.clear
    assert "clearly higher" in str(one)
    # As wide as expected for an AUROC of 20 versus 30 images, and narrower than for one draw.
    assert 0.02 < samples.std() < 0.1
    several = evaluation.joined([one, dataclasses.replace(one, difference=0.0, samples=samples * 0)])
    assert several.difference == pytest.approx(difference / 2)
    assert several.samples.std() == pytest.approx(samples.std() / 2)


def test_images_unreadable_by_one_detector_are_left_out():
    y = np.array([1, 1, -1, -1])
    whole, broken = ([Scored("", value, 0.0, None, None, None) for value in values]
                     for values in ([4.0, 1.0, 2.0, 3.0], [4.0, np.nan, 2.0, 3.0]))  # fmt: skip
    assert evaluation.Pairs(np.arange(4), y, [whole, whole]).auroc == [0.5, 0.5]
    assert evaluation.Pairs(np.arange(4), y, [whole, broken]).auroc == [1, 1]
    with pytest.raises(ValueError, match="lacks readable images of one class"):
        evaluation.Pairs(np.arange(2), y[1:3], [broken[1:3], whole[1:3]])


@pytest.mark.parametrize("options", [{"n_shots": 0}, {"n_shots": (2, 4)}, {"n_seeds": 0}, {"n_resamples": 0}])
def test_invalid_comparisons(compared, options):
    root, det, dull = compared
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} was given")):
        evaluation.compare(det, dull, root, **options)
