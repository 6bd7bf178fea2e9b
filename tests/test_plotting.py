from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools
import sys

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from helpers import plain_and_marked, stripes
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from fewshot_ad import DualDistillationDetector, plotting
from fewshot_ad.drawing import warm
from fewshot_ad.exceptions import ImageError, ImageSkippedWarning, MissingExtraError
from fewshot_ad.plotting import (
    AnomalyMapDisplay,
    PrecisionRecallDisplay,
    RocCurveDisplay,
    ScoreHistogramDisplay,
    SupportWeightsDisplay,
    warm_colours,
)
from fewshot_ad.session import Session

DISPLAYS = (AnomalyMapDisplay, SupportWeightsDisplay, ScoreHistogramDisplay)


@pytest.fixture(scope="module")
def fitted(toy, normal) -> DualDistillationDetector:
    return DualDistillationDetector(**toy).fit(normal[:4])


@pytest.fixture(scope="module")
def queries(normal, anomalous) -> np.ndarray:
    return np.concatenate([normal[4:6], anomalous[:2]])


@pytest.fixture
def skipping(toy, normal, tmp_path):
    """A detector with on_error="skip", and files of which the first is unreadable."""
    paths = [tmp_path / "broken.png", *(tmp_path / f"{i}.png" for i in range(3))]
    paths[0].write_bytes(b"no picture")
    for path, image in zip(paths[1:], stripes(3, seed=5), strict=True):
        Image.fromarray(image).save(path)
    return DualDistillationDetector(**toy | {"on_error": "skip"}).fit(normal[:4]), paths


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def _boxes(ax) -> list[tuple[float, float, float, float]]:
    """Return top, left, height and width of each box, from the edge of the first pixel."""
    found = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    return [(b.get_y() + 0.5, b.get_x() + 0.5, b.get_height(), b.get_width()) for b in found]


def test_map_display_panels(fitted, queries):
    display = AnomalyMapDisplay.from_estimator(fitted, queries)
    assert display.axes_.shape == (4, 4)
    assert display.figure_ is display.axes_[0, 0].figure
    support = (fitted.support_.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    for e, row in zip(fitted.explain(queries), display.axes_, strict=True):
        np.testing.assert_array_equal(row[0].images[0].get_array(), e.picture)
        np.testing.assert_allclose(row[1].images[1].get_array(), e.excess / -fitted.offset_, rtol=1e-5, atol=1e-7)
        assert row[1].images[1].get_extent() == row[1].images[0].get_extent()
        np.testing.assert_array_equal(row[2].images[0].get_array(), support[e.support_index])
        np.testing.assert_array_equal(row[3].images[0].get_array(), support[e.matches.support_index])
        for ax in row[:2]:
            ((top, left, height, width),) = _boxes(ax)
            # 40 pixels were resized to 32. The hottest pixel lies in the box, and the box on the grid of patches.
            assert height == width == e.patch_size * 40 / 32 == 10
            assert top <= (e.hot_spot[0] + 0.5) * 40 / 32 <= top + 10
            assert left <= (e.hot_spot[1] + 0.5) * 40 / 32 <= left + 10
            assert top % 10 == left % 10 == 0
        assert _boxes(row[2]) == []
        assert _boxes(row[3]) == [(e.matches.row - 3.5, e.matches.col - 3.5, 8, 8)]
        assert f"score {e.score / fitted.offset_:.2f}\n" in row[1].get_title()


def test_maps_share_a_colour_scale(fitted, queries):
    fitted = copy.copy(fitted)
    fitted.offset_ = float(np.median(fitted.score_samples(queries)))  # some images are above it
    display = AnomalyMapDisplay.from_estimator(fitted, queries)
    explained = fitted.explain(queries)
    scales = [row[1].images[1].norm for row in display.axes_]
    assert all(scale is scales[0] for scale in scales)
    assert scales[0](0.0) == 0.5
    reach = abs(fitted.offset_) / 4
    assert scales[0].vmin == pytest.approx(-0.25)
    assert scales[0].vmax == pytest.approx(max(0.25, max(e.excess.max() for e in explained) / -fitted.offset_))
    for e, row in zip(explained, display.axes_, strict=True):
        alpha = row[1].images[1].get_alpha()
        assert (alpha[e.excess <= -reach * 1.001] == 0).all()
        assert (alpha[e.excess > 0] > 0.2).all()
        assert alpha.max() <= 0.4 + 1e-6
    assert any((e.excess > 0).any() for e in explained)


def test_colours_have_distinct_meanings(fitted, queries):
    """Anomalous is warm and increases in lightness; only normal is blue, and neutral is grey."""
    colours = warm_colours()(np.linspace(0, 1, 32))[:, :3]
    assert (colours[:, 0] > 2 * colours[:, 2]).all()
    assert (colours[:, 0] >= colours[:, 1]).all()
    assert (np.diff(colours @ [0.2126, 0.7152, 0.0722]) > 0).all()
    np.testing.assert_allclose(warm(np.linspace(0, 1, 32)) / 255, colours, atol=0.02)
    (row,) = AnomalyMapDisplay.from_estimator(fitted, queries[:1]).axes_
    assert row[1].images[1].get_cmap() == warm_colours()
    assert {to_hex(box.get_edgecolor()) for ax in row for box in ax.patches} == {"#ffffff"}
    table = SupportWeightsDisplay.from_estimator(fitted, queries).ax_.images[0]
    (bars,) = ScoreHistogramDisplay.from_estimator(fitted, queries).ax_.containers
    greys = [*table.get_cmap()(np.linspace(0, 1, 9))[:, :3], bars[0].get_facecolor()[:3]]
    assert max(np.ptp(grey) for grey in greys) < 0.1


def test_panels_are_chosen(toy, fitted, normal, queries):
    display = AnomalyMapDisplay.from_estimator(fitted, queries[:2], panels=["map", "image"])
    assert display.axes_.shape == (2, 2)
    assert display.axes_[0, 0].get_title().startswith("score ")
    assert display.axes_[0, 1].get_title() == "image 0"
    assert AnomalyMapDisplay.from_estimator(fitted, queries[:1], panels=["match"]).axes_.shape == (1, 1)
    for panels in (["heat"], [], "maps", ["image", "mask"]):
        with pytest.raises(ValueError, match=r"accepted here are one or more of image, map, support, match\.$"):
            AnomalyMapDisplay.from_estimator(fitted, queries[:1], panels=panels)
    bare = AnomalyMapDisplay(fitted.explain(queries[:1]), None, panels=["support"])
    with pytest.raises(ValueError, match=r'one or more of image, map\. "support" and "match" need support images'):
        bare.plot()


def test_masks_are_outlined_on_the_map(fitted, queries, tmp_path):
    mask = np.zeros((40, 40), bool)
    mask[10:20, 5:40] = True  # to the right border
    Image.fromarray(mask).save(tmp_path / "mask.png")
    display = AnomalyMapDisplay.from_estimator(fitted, queries[:3], masks=[tmp_path / "mask.png", None, 7 * mask])
    plain = AnomalyMapDisplay.from_estimator(fitted, queries[:3])
    drawn, before = ([len(row[1].collections) for row in shown.axes_] for shown in (display, plain))
    added = np.subtract(drawn, before).tolist()
    assert added == [2, 0, 2]  # in white, on a dark rim
    for row in (display.axes_[0], display.axes_[2]):
        line = row[1].collections[-1]
        assert to_hex(line.get_edgecolor()[0]) == "#ffffff"
        (path,) = line.get_paths()
        (left, top), (right, bottom) = path.get_extents().min, path.get_extents().max
        assert (left, right, top, bottom) == pytest.approx((4.5, 39.5, 9.5, 19.5), abs=0.51)
        assert row[1].get_xlim() == (-0.5, 39.5)
    for masks, message in (
        ([None], "1 masks were given for 3 images"),
        ([np.zeros(5)] * 3, r"A mask has shape \(5,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            AnomalyMapDisplay.from_estimator(fitted, queries[:3], masks=masks)
    none = AnomalyMapDisplay.from_estimator(fitted, queries[:3], masks=[None] * 3)
    assert [len(row[1].collections) for row in none.axes_] == before


def test_masks_are_matched_with_images(skipping):
    det, paths = skipping
    masks = [np.ones((4, 4)), None, np.eye(4)]
    with pytest.warns(ImageSkippedWarning):
        display = AnomalyMapDisplay.from_estimator(det, paths[:3], masks=masks)
    assert display.masks == masks[1:]


@pytest.mark.parametrize("kind", DISPLAYS)
def test_saved_text_is_searchable(fitted, queries, kind, tmp_path):
    display = kind.from_estimator(
        fitted, queries[:2], **({"ax": plt.figure().subfigures().subplots()} if kind is SupportWeightsDisplay else {})
    )
    before = dict(plt.rcParams)
    display.save(tmp_path / "out.pdf")
    assert dict(plt.rcParams) == before
    saved = (tmp_path / "out.pdf").read_bytes()
    assert b"/Type0" in saved
    assert b"/Type3" not in saved
    display.figure_.figure.savefig(tmp_path / "plain.pdf")
    assert b"/Type3" in (tmp_path / "plain.pdf").read_bytes()  # matplotlib's own default


@pytest.mark.parametrize("shape", [(240, 80), (80, 240), (120, 120), (360, 60), (900, 400)], ids=str)
def test_map_and_box_match_the_drawn_picture(toy, shape, tmp_path):
    normal, marked, place = plain_and_marked(*shape)
    det = DualDistillationDetector(**toy | {"evidence": "patch", "image_size": 64}).fit(normal)
    det.offset_ = det.score_samples([marked])[0]
    (row,) = AnomalyMapDisplay.from_estimator(det, [marked]).axes_
    ax = row[1]
    (mark,) = ax.patches
    mark.set_visible(False)
    ax.figure.savefig(tmp_path / "out.png")
    # Within the axes, which have the image's aspect ratio.
    box = ax.get_window_extent()
    assert box.height / box.width == pytest.approx(shape[0] / shape[1], rel=0.02)
    across, up = ax.transAxes.inverted().transform(ax.transData.transform(mark.get_center()))
    height, width = ax.images[0].get_array().shape[:2]
    patch = mark.get_height() / height, mark.get_width() / width
    assert abs(1 - up - place[0]) <= patch[0]
    assert abs(across - place[1]) <= patch[1]
    picture = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"), float)
    colour = picture.max(-1) - picture.min(-1)  # the image is grey, and so is what is below the map
    left, top = round(box.x0), round(picture.shape[0] - box.y1)
    inside = colour[top : top + round(box.height), left : left + round(box.width)]
    rows, columns = np.nonzero(inside > 30)
    assert abs(rows.mean() / inside.shape[0] - place[0]) <= patch[0]
    assert abs(columns.mean() / inside.shape[1] - place[1]) <= patch[1]


def test_rows_adapt_to_aspect_ratios(fitted, normal):
    display = AnomalyMapDisplay.from_estimator(fitted, [normal[4], normal[5][:10], normal[6][:, :10]])
    display.figure_.draw_without_rendering()
    shown = [row[0].get_window_extent() for row in display.axes_]
    assert [round(box.width / box.height, 1) for box in shown] == [1, 4, pytest.approx(0.25, abs=0.06)]
    areas = [box.width * box.height for box in shown]
    assert max(areas) < 2.5 * min(areas)
    titles = [ax.title.get_window_extent() for ax in display.axes_[2]]
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(titles))


def test_tiny_images(fitted, normal):
    fitted = copy.copy(fitted)
    fitted.offset_ = fitted.score_samples(normal[4:5])[0]  # at least one region is outlined
    images = [normal[4][:, :1], normal[4][:1], normal[4][:1, :1], np.tile(normal[4][:1], (1, 50, 1))]
    figure = AnomalyMapDisplay.from_estimator(fitted, images).figure_
    figure.draw_without_rendering()
    assert max(figure.get_size_inches()) < 18


def test_regions_are_outlined(fitted, queries):
    fitted = copy.copy(fitted)
    fitted.offset_ = float(np.sort(fitted.score_samples(queries))[-1])  # all but one are anomalous
    display = AnomalyMapDisplay.from_estimator(fitted, queries)
    for e, row in zip(display.explanations, display.axes_, strict=True):
        lines = [line for line in row[1].get_lines() if line.get_gid() == "region"]
        assert len(lines) == len(e.regions)
        for line, region in zip(lines, e.regions, strict=True):
            scale = np.array(e.picture.shape[:2]) / e.original_size
            np.testing.assert_allclose(line.get_xydata()[:, ::-1] + 0.5, region.polygon * scale)
    assert {bool(e.regions) for e in display.explanations} == {False, True}


def test_scale_with_a_threshold_of_zero(fitted, queries):
    (e,) = fitted.explain(queries[0])
    flat = dataclasses.replace(e, score=0.0, decision=0.0, faded=np.zeros_like(e.faded), level=0.0)
    (row,) = AnomalyMapDisplay([flat], None).plot().axes_
    assert row[1].images[1].norm(0.0) == 0.5


def test_labels_and_names_are_in_the_titles(fitted, queries):
    display = AnomalyMapDisplay.from_estimator(fitted, queries, y=[1, 1, -1, -1])
    titles = [[ax.get_title() for ax in row] for row in display.axes_]
    assert titles[0][0] == "image 0\nlabelled normal"
    assert titles[2][0] == "image 2\nlabelled anomalous"
    predicted = ["called normal" if p > 0 else "called anomalous" for p in fitted.predict(queries)]
    assert [row[1].splitlines()[1] for row in titles] == predicted
    assert titles[0][2].startswith("support ")
    assert "largest weight" in titles[0][2]
    assert "nearest patch" in titles[0][3]


def test_fewer_panels_without_patch_or_support(toy, fitted, normal, queries):
    det = DualDistillationDetector(**toy | {"evidence": "embedding", "contamination": 0.5}).fit(normal[:4])
    assert AnomalyMapDisplay.from_estimator(det, queries[:2]).axes_.shape == (2, 3)
    assert AnomalyMapDisplay(fitted.explain(queries[:1]), None).plot().axes_.shape == (1, 2)


def test_detector_without_support_images(toy, normal, queries):
    det = DualDistillationDetector(**toy | {"evidence": "patch"}).fit(normal[:4])
    det.fitted_ = dataclasses.replace(det.fitted_, images=None)
    assert AnomalyMapDisplay.from_estimator(det, queries[:1]).axes_.shape == (1, 2)


def test_given_axes(fitted, queries):
    figure, axes = plt.subplots(2, 4)
    display = AnomalyMapDisplay.from_estimator(fitted, queries[2:], axes=axes)
    assert display.figure_ is figure
    assert display.axes_.tolist() == axes.tolist()
    one = AnomalyMapDisplay.from_estimator(fitted, queries[0], axes=plt.subplots(1, 4)[1])
    assert one.axes_.shape == (1, 4)
    with pytest.raises(ValueError, match=r"axes has shape \(2, 4\); 4 image\(s\) need \(4, 4\)"):
        AnomalyMapDisplay.from_estimator(fitted, queries, axes=axes)
    for kind in (SupportWeightsDisplay, ScoreHistogramDisplay):
        _, ax = plt.subplots()
        shown = kind.from_estimator(fitted, queries, ax=ax)
        assert shown.ax_ is ax
        assert shown.figure_ is ax.figure


def test_unreadable_images_have_no_row(skipping):
    det, paths = skipping
    with pytest.warns(ImageSkippedWarning):
        display = AnomalyMapDisplay.from_estimator(det, paths[:3], y=[1, 1, -1])
    assert [row[0].get_title() for row in display.axes_] == ["0.png\nlabelled normal", "1.png\nlabelled anomalous"]
    with pytest.warns(ImageSkippedWarning), pytest.raises(ImageError, match="None of the 1 images could be read"):
        AnomalyMapDisplay.from_estimator(det, paths[:1])


def test_weights_display(fitted, queries):
    display = SupportWeightsDisplay.from_estimator(fitted, queries, y=[1, 1, -1, -1])
    weights = fitted.support_weights(queries)
    np.testing.assert_array_equal(display.ax_.images[0].get_array(), weights)
    assert [text.get_text() for text in display.ax_.texts] == [f"{w:.2f}" for w in weights.flat]
    assert [t.get_text() for t in display.ax_.get_yticklabels()][1:3] == ["image 1 (normal)", "image 2 (anomalous)"]
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["0", "1", "2", "3"]


def test_large_tables_and_unreadable_rows_have_no_numbers():
    weights = np.full((200, 4), 0.25)
    assert len(SupportWeightsDisplay(weights).plot().ax_.texts) == 0
    weights[1] = np.nan
    assert len(SupportWeightsDisplay(weights[:3]).plot().ax_.texts) == 8


def test_histogram_counts_by_label(fitted, queries):
    y = np.array([1, 1, -1, -1])
    display = ScoreHistogramDisplay.from_estimator(fitted, queries, y=y, bins=5)
    scores = fitted.score_samples(queries) / fitted.offset_
    edges = np.histogram_bin_edges(scores, 5)
    normal, anomalous = display.ax_.containers
    np.testing.assert_array_equal([bar.get_height() for bar in normal], np.histogram(scores[y > 0], edges)[0])
    np.testing.assert_array_equal([bar.get_height() for bar in anomalous], np.histogram(scores[y < 0], edges)[0])
    assert to_hex(normal[0].get_facecolor()) != to_hex(anomalous[0].get_facecolor())
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    above = (fitted.predict(queries) == -1)[y < 0].sum()
    assert f"anomalous ({above} of 2 above)" in legend
    threshold, support = display.ax_.lines
    assert set(threshold.get_xdata()) == {1}
    np.testing.assert_allclose(support.get_xdata(), fitted.support_scores_ / fitted.offset_)


def test_histogram_without_labels_and_with_unreadable_images(skipping):
    det, paths = skipping
    with pytest.warns(ImageSkippedWarning):
        display = ScoreHistogramDisplay.from_estimator(det, paths)
    (bars,) = display.ax_.containers
    assert sum(bar.get_height() for bar in bars) == 3
    assert "1 unreadable left out" in display.ax_.get_xlabel()
    with pytest.raises(ImageError, match="None of the 2 images has a score"):
        ScoreHistogramDisplay(np.full(2, np.nan), -1.0).plot()


@pytest.mark.parametrize("kind", DISPLAYS)
def test_file_names_are_escaped(toy, normal, anomalous, tmp_path, kind):
    names = ["a$\\frac$.png", "x$_{$1.png", "line\nbreak.png", "a-name-that-is-much-too-long-for-a-title.png"]
    for name in names:
        Image.fromarray(anomalous[0]).save(tmp_path / name)
    det = DualDistillationDetector(**toy | {"evidence": "patch"})
    det.fit([tmp_path / name for name in names[:2]] + list(normal[:2]))
    display = kind.from_estimator(det, iter([tmp_path / name for name in names]))
    display.figure_.savefig(tmp_path / "out.png")  # mathtext would fail here
    if kind is AnomalyMapDisplay:
        titles = [row[0].get_title() for row in display.axes_]
        assert titles == [r"a\$\frac\$.png", r"x\$_{\$1.png", "line?break.png", "a-name-that...-title.png"]


@pytest.mark.parametrize("kind", DISPLAYS)
@pytest.mark.parametrize(
    ("y", "reason"), [([0, 1, 1, 0], "labels .0, 1.; accepted are"), ([1, -1], "inconsistent numbers of samples")]
)
def test_invalid_labels(fitted, queries, kind, y, reason):
    with pytest.raises(ValueError, match=reason):
        kind.from_estimator(fitted, queries, y=y)


@pytest.mark.parametrize("kind", DISPLAYS)
def test_missing_matplotlib_is_reported_first(fitted, queries, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(Session, "_each", lambda *_: pytest.fail("work was done"))
    with pytest.raises(MissingExtraError, match=r'pip install "fewshot-ad\[plot\]"'):
        kind.from_estimator(fitted, queries)


@pytest.mark.parametrize("kind", DISPLAYS)
def test_plots_are_deterministic_and_not_shown(fitted, queries, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show() was called"))
    pictures = []
    for name in ("a.png", "b.png"):
        kind.from_estimator(fitted, queries[:2]).figure_.savefig(tmp_path / name, dpi=40)
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]


def test_import_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    spec = importlib.util.spec_from_file_location("fewshot_ad.plotting", plotting.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ---- curves

Y = [1, 1, 1, 1, -1, -1, -1]
SCORES = [0.1, 0.2, 0.3, 0.9, 0.25, 0.8, 1.0]


def test_anomalies_are_the_positive_class_of_curves():
    roc = RocCurveDisplay.from_scores(Y, SCORES, 0.85)
    assert roc.auroc == roc_auc_score(np.array(Y) == -1, SCORES)
    assert roc.point == (1 / 4, 1 / 3)
    np.testing.assert_array_equal(roc.line_.get_xydata().T, [roc.false_alarms, roc.recall])
    assert [text.get_text() for text in roc.ax_.get_legend().get_texts()] == [
        "chance", f"AUROC {roc.auroc:.3f}", "threshold: 0.25, 0.33",
    ]  # fmt: skip
    curve = PrecisionRecallDisplay.from_scores(Y, SCORES, 0.85, name="mine")
    assert curve.average_precision == pytest.approx(average_precision_score(np.array(Y) == -1, SCORES))
    assert curve.point == (1 / 3, 1 / 2)
    assert curve.prevalence == 3 / 7
    assert f"mine (AP {curve.average_precision:.3f})" in [t.get_text() for t in curve.ax_.get_legend().get_texts()]
    assert PrecisionRecallDisplay.from_scores(Y, SCORES, 2.0).point is None  # no image is called anomalous
    roc.figure_.draw_without_rendering()
    curve.figure_.draw_without_rendering()


@pytest.mark.parametrize("display", [RocCurveDisplay, PrecisionRecallDisplay])
def test_several_curves_in_one_figure(display):
    one = display.from_scores(Y, SCORES, name="one")
    two = display.from_scores(Y, SCORES[::-1], ax=one.ax_, name="two", linewidth=3)
    assert two.figure_ is one.figure_
    assert one.line_.get_color() != two.line_.get_color()
    assert two.line_.get_linewidth() == 3
    assert [t.get_text() for t in one.ax_.get_legend().get_texts()].count("chance") == 1


@pytest.mark.parametrize("display", [RocCurveDisplay, PrecisionRecallDisplay])
def test_curves_mark_the_threshold(fitted, queries, display, tmp_path):
    y, fitted = [1, 1, -1, -1], copy.copy(fitted)
    fitted.offset_ = float(np.median(fitted.score_samples(queries)))  # two are called anomalous
    found = display.from_estimator(fitted, queries, y)
    called = fitted.predict(queries) == -1
    at = dict(zip(("recall", "other"), found.point[:: -1 if display is RocCurveDisplay else 1], strict=True))
    assert at["recall"] == called[2:].mean()
    lenient = copy.copy(fitted).set_params(on_error="skip")
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.warns(ImageSkippedWarning):
        less = display.from_estimator(lenient, [*queries, tmp_path / "x.png"], [*y, 1])
    np.testing.assert_array_equal(less.recall, found.recall)


@pytest.mark.parametrize("display", [RocCurveDisplay, PrecisionRecallDisplay])
@pytest.mark.parametrize(
    ("y", "scores", "message"),
    [
        ([1, 1], [0, 1], "normal and anomalous images"), ([-1, 1], [0, np.nan], "normal and anomalous images"),
        ([-1, 1], [np.nan, np.nan], "None of the 2 images has a score"), (None, [0, 1], "y=None was given"),
        ([0, 1], [0, 1], "accepted are"), ([1, -1, 1], [0, 1], "inconsistent numbers of samples"),
    ],
)  # fmt: skip
def test_curve_errors(display, y, scores, message):
    with pytest.raises(ValueError, match=message):
        display.from_scores(y, scores)
