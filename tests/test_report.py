"""The HTML report: what is written, and what a browser makes of it."""

from __future__ import annotations

import base64
import copy
import dataclasses
import html
import io
import json
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
from helpers import plain_and_marked, spoilt, stripes
from PIL import Image
from sklearn.metrics import recall_score

from fewshot_ad import DualDistillationDetector, report
from fewshot_ad.data import images
from fewshot_ad.data.images import frames
from fewshot_ad.exceptions import DiskFullError, ImageError, OutputError
from fewshot_ad.explanation import relative_score
from fewshot_ad.files import checkpoints
from fewshot_ad.report import write_report
from fewshot_ad.session import Session

HOSTILE = ("<img src=x onerror=alert(1)>.png", "\"&'</script>.png", "{{data}} \u202e $& \\u003c.png")


@pytest.fixture(scope="module")
def det(toy, normal):
    # A threshold in the midst of these images, so that both calls are made.
    return DualDistillationDetector(**toy, contamination=0.4).fit(normal[:4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of six normal images and five spoilt ones, twice as wide as high, three of them with hostile names."""
    root = tmp_path_factory.mktemp("pictures")
    names = [*(f"good/{i}.png" for i in range(6)), "bad/0.png", "bad/1.png", *HOSTILE]
    for name, pixels in zip(names, [*stripes(6, seed=5), *spoilt(stripes(5, seed=6))], strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((80, 40)).save(root / name)
    return root


@pytest.fixture(scope="module")
def paths(folder):
    return sorted(folder.rglob("*.png"))


@pytest.fixture(scope="module")
def y(folder, paths):
    return np.array([1 if "good" in path.parts else -1 for path in paths])


def write(det, paths, out, **options):
    write_report(det, paths, out, **options)
    return out


def embedded(file):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text("utf-8"), re.DOTALL)
    return json.loads(found[1])


def decoded(url):
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_shows_what_the_detector_says(det, folder, paths, y, tmp_path):
    file = write(det, paths, tmp_path / "report.html", y=y, title="Stripes")
    assert list(tmp_path.iterdir()) == [file]
    data = embedded(file)
    scores = relative_score(det.score_samples(paths), det.offset_)
    order = np.argsort(-scores, kind="stable")
    shown = data["images"]
    assert [image["name"] for image in shown] == [str(paths[i].relative_to(folder)) for i in order]
    assert [image["score"] for image in shown] == scores[order].tolist()
    assert [image["label"] for image in shown] == y[order].tolist()
    np.testing.assert_allclose([image["weights"] for image in shown], det.support_weights(paths)[order], atol=1e-4)
    assert (data["title"], data["labelled"], len(data["support"])) == ("Stripes", True, 4)
    assert data["auroc"] == pytest.approx(np.mean([[a > b for a in scores[y < 0]] for b in scores[y > 0]]))
    assert [image["score"] > 1 for image in shown] == (det.predict(paths) == -1)[order].tolist()
    assert data["names"] == [f"image {i}" for i in range(4)]
    assert all(normal["size"] == [32, 32] and normal["aspect"] == 1 for normal in data["support"])
    for i, image in zip(order, shown, strict=True):
        (found,) = det.explain([paths[i]])
        assert image["size"] == [40, 80]
        assert image["aspect"] == 2
        assert image["hot"] == pytest.approx(found.hot_box, abs=0.01)
        assert image["match"]["support"] in range(4)
        assert image["match"]["box"] == pytest.approx(found.match_box, abs=0.01)
        assert 0 < image["match"]["similarity"] <= 1.0001


def test_maps_share_a_scale_that_the_threshold_sets(det, paths, tmp_path):
    images = embedded(write(det, paths, tmp_path / "report.html"))["images"]
    order = np.argsort(det.decision_function(paths), kind="stable")
    explained = det.explain(paths)
    shares = np.stack([explained[i].faded / explained[i].level for i in order])
    expected = np.clip((shares - 0.7) / 0.6, 0, 1)
    found = np.stack([np.asarray(decoded(image["map"]))[..., 1] / 255 for image in images])
    assert 0.02 < expected.mean() < 0.9
    assert np.abs(found - expected).max() < 0.01


@pytest.mark.parametrize(("max_side", "size"), [(None, (48, 16)), (20, (20, 10)), (640, (80, 40))])
def test_pictures_have_the_longest_side_that_was_asked_for(det, paths, tmp_path, max_side, size):
    image = embedded(write(det, paths[:1], tmp_path / "report.html", max_side=max_side))["images"][0]
    assert decoded(image["picture"]).size == size
    assert image["size"] == [size[1], size[0]]
    assert image["aspect"] == size[0] / size[1]
    original = np.asarray(Image.open(paths[0]).resize(size, Image.Resampling.BILINEAR), float)
    assert np.abs(np.asarray(decoded(image["picture"]), float) - original).mean() < 12


def test_a_turned_photograph_keeps_its_proportions(det, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stripes(1)[0]).resize((90, 30)).save(tmp_path / "turned.jpg", exif=exif)
    images = embedded(write(det, [tmp_path / "turned.jpg"], tmp_path / "report.html"))["images"]
    assert images[0]["aspect"] == pytest.approx(1 / 3, abs=1e-3)


def test_proportions_are_those_of_the_file(det, tmp_path):
    pydicom, tifffile, nibabel = (pytest.importorskip(name) for name in ("pydicom", "tifffile", "nibabel"))
    wide = stripes(1, size=64)[0, :16, :, 0]
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.Rows, header.Columns, header.SamplesPerPixel, header.PhotometricInterpretation = 16, 64, 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.WindowCenter, header.WindowWidth = 128, 256
    header.PixelData = wide.tobytes()
    header["PixelData"].VR = "OB"
    header.save_as(tmp_path / "IM_1", enforce_file_format=True)
    tifffile.imwrite(tmp_path / "b.tif", np.stack([wide, wide]), photometric="minisblack")
    tifffile.imwrite(tmp_path / "c.tif", wide.T, photometric="minisblack", extratags=[(274, 3, 1, 6, True)])
    volume = np.repeat(wide.T[..., None], 2, 2).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "d.nii.gz")
    items = frames([tmp_path / name for name in ("IM_1", "b.tif", "c.tif", "d.nii.gz")])
    shown = embedded(write(det, items, tmp_path / "report.html"))["images"]
    assert {image["name"]: image["aspect"] for image in shown} == {
        "IM_1": 4, "b.tif[0]": 4, "b.tif[1]": 4, "c.tif": 4, "d.nii.gz[0]": 4, "d.nii.gz[1]": 4,
    }  # fmt: skip


def test_the_support_is_shown_in_its_own_proportions(toy, tmp_path):
    wide, tall = stripes(2, size=64)[0, :16], stripes(2, size=64)[1, :, :16]
    det = DualDistillationDetector(**toy).fit([wide, tall])
    Image.fromarray(wide).save(tmp_path / "a.png")
    data = embedded(write(det, [tmp_path / "a.png"], tmp_path / "report.html"))
    assert [normal["size"] for normal in data["support"]] == [[16, 64], [64, 16]]
    assert [decoded(normal["picture"]).size for normal in data["support"]] == [(64, 16), (16, 64)]
    assert dict(data["detector"])["Image size"] == "own proportions, area of 32 x 32 px"


@pytest.mark.parametrize(
    ("changed", "said"), [({"aspect": "square"}, "32 x 32 px"), ({"image_size": (32, 64)}, "32 x 64 px")]
)
def test_the_size_that_the_detector_saw_is_told(toy, normal, paths, tmp_path, changed, said):
    det = DualDistillationDetector(**toy | changed).fit(normal[:2])
    data = embedded(write(det, paths[:1], tmp_path / "report.html"))
    assert dict(data["detector"])["Image size"] == said
    assert data["images"][0]["size"] == [40, 80]


def test_what_was_left_out_is_listed(det, paths, tmp_path):
    left_out = [(tmp_path / "<b>.heic", ".heic is not read"), ("notes.txt", "not an image, by its name")]
    data = embedded(write(det, paths[:2], tmp_path / "report.html", left_out=left_out))
    assert data["left_out"] == [[str(path), reason] for path, reason in left_out]
    assert embedded(write(det, paths[:2], tmp_path / "other.html"))["left_out"] == []


def test_the_same_call_gives_the_same_bytes(det, paths, y, tmp_path):
    first = write(det, paths, tmp_path / "first.html", y=y).read_bytes()
    assert write(det, paths, tmp_path / "second.html", y=y).read_bytes() == first


def test_a_file_that_vanishes_meanwhile_is_shown_as_the_detector_saw_it(det, paths, tmp_path, monkeypatch):
    files = [shutil.copy(path, tmp_path / f"{i}.png") for i, path in enumerate(paths[:3])]
    again = images.picture

    def remove_the_last(item, *arguments, **options):
        files[2].unlink(missing_ok=True)
        return again(item, *arguments, **options)

    monkeypatch.setattr(images, "picture", remove_the_last)
    data = embedded(write(det, files, tmp_path / "report.html"))
    assert {image["name"]: image["size"] for image in data["images"]} == {
        "0.png": [40, 80], "1.png": [40, 80], "2.png": [16, 48],
    }  # fmt: skip
    assert data["unreadable"] == []


def test_unreadable_files_are_listed_and_the_rest_goes_on(det, paths, tmp_path):
    broken, missing = tmp_path / "<b>.png", tmp_path / "missing.png"
    broken.write_bytes(b"no image")
    assert det.on_error == "raise"
    out = tmp_path / "report.html"
    unreadable = write_report(det, [broken, *paths[:2], missing], out, y=[-1, 1, 0, 1])
    data = embedded(out)
    assert [list(pair) for pair in unreadable] == data["unreadable"]
    assert len(data["images"]) == 2
    assert {image["label"] for image in data["images"]} == {0, 1}
    (first, why), (second, why_not) = data["unreadable"]
    assert first.endswith("<b>.png")
    assert second.endswith("missing.png")
    assert why.startswith("could not be read")
    assert why_not.startswith("does not exist")


def test_nothing_readable_is_an_error(det, tmp_path):
    with pytest.raises(ImageError, match=r"None of the 2 files could be read.*a\.png does not exist"):
        write(det, [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_work(monkeypatch):
    """Fail when an image is scored."""

    def explanations(*_):
        raise AssertionError("scored before the destination was checked")

    monkeypatch.setattr(Session, "explanations", explanations)


@pytest.mark.usefixtures("no_work")
def test_a_destination_that_will_not_do_is_told_first(det, paths, tmp_path):
    taken = tmp_path / "taken.html"
    taken.write_text("before")
    for out, said in {
        taken: "exists. Pass force=True",
        tmp_path / "none" / "report.html": "there is no folder",
        tmp_path: "is a folder",
        taken / "report.html": "there is no folder",
        tmp_path / ("x" * 300): "cannot be written",
    }.items():
        with pytest.raises(OutputError, match=said):
            write(det, paths, out)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.html"]
    assert taken.read_text() == "before"


@pytest.mark.usefixtures("no_work")
def test_a_folder_without_rights_is_told_first(det, paths, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints, "_temporary_file", refuse)
    with pytest.raises(OutputError, match=r"Permission denied.*another folder"):
        write(det, paths, tmp_path / "report.html")


@pytest.mark.usefixtures("no_work")
def test_a_full_disk_is_told_first(det, paths, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskFullError, match=r"needs at least .* MB, and 0\.0 MB are free"):
        write(det, paths, tmp_path / "report.html")


@pytest.mark.usefixtures("no_work")
def test_bad_arguments_are_told_first(det, paths, tmp_path):
    for arguments, said in {
        "y": ({"y": [1, 2] + [1] * 9}, r"accepted are \+1 normal"),
        "length": ({"y": [1]}, "inconsistent numbers of samples"),
        "side": ({"max_side": 0}, "max_side=0 was given"),
    }.values():
        with pytest.raises(ValueError, match=said):
            write(det, paths, tmp_path / "report.html", **arguments)
    with pytest.raises(ImageError, match="no images"):
        write(det, [], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_force_replaces_and_failure_leaves_what_was_there(det, paths, tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(report, "_explained", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(det, paths, out, force=True)
    assert out.read_text() == "before"
    write(det, paths, out, force=True)
    assert len(embedded(out)["images"]) == len(paths)
    assert list(tmp_path.iterdir()) == [out]


def test_a_detector_without_its_support_can_be_reported_on(det, paths, tmp_path):
    bare = copy.copy(det)
    names = tuple(f"/home/somebody/{name}.png" for name in "abcd")
    bare.fitted_ = dataclasses.replace(det.fitted_, images=None, names=names)
    data = embedded(write(bare, paths[:2], tmp_path / "report.html"))
    assert data["support"] is None
    assert data["names"] == ["a.png", "b.png", "c.png", "d.png"]
    assert len(data["images"][0]["weights"]) == 4


def test_nothing_in_the_file_reaches_beyond_it(det, paths, tmp_path):
    title = "</title><script>alert(1)</script>"
    text = write(det, paths, tmp_path / "report.html", title=title).read_text("utf-8")
    assert f"<title>{html.escape(title)}</title>" in text
    assert "<" not in re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert text.count("</script>") == 2
    assert set(re.findall(r"https?://[^\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'; img-src data:;" in text
    assert "{{" not in text.replace("{{data}} ", "")


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for found in map(shutil.which, names) if found), None)
    if program is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def written(det, folder, paths, y, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    broken = folder / "<i>broken</i>.png"
    broken.parent.mkdir()
    broken.write_bytes(b"")
    return write(det, [*paths, broken], out / "report.html", y=[*y, -1], title=HOSTILE[0])


@pytest.fixture
def page(browser, written):
    """The report, opened; at the end nothing has been complained of or asked for."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, offline=True)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written.as_uri())
    yield page
    context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {written.as_uri()}


def relative(det, paths):
    return relative_score(det.score_samples(paths), det.offset_)


def slide(page, name, value):
    page.locator(name).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def number(page, name):
    return int(page.locator(name).inner_text())


@pytest.mark.browser
def test_opens_at_the_detectors_threshold(page, det, paths):
    called = int((det.predict(paths) == -1).sum())
    assert (number(page, "#n-anomalous"), number(page, "#n-normal")) == (called, len(paths) - called)
    assert page.locator("#number").input_value() == "1"
    assert page.locator(".card").count() == len(paths)
    assert page.locator(".verdict .is-anomalous").count() == called


@pytest.mark.browser
@pytest.mark.parametrize("position", [0, 230, 440, 575, 1000])
def test_threshold_changes_counts_and_rates(page, det, paths, y, position):
    slide(page, "#threshold", position)
    threshold = float(page.locator("#number").input_value())
    low, high = (float(page.locator(name).inner_text()) for name in ("#low", "#high"))
    assert low == 0
    assert high >= 1.2
    assert threshold == pytest.approx(position / 1000 * high)
    called = np.where(relative(det, paths) > threshold, -1, 1)
    assert number(page, "#n-anomalous") == (called == -1).sum()
    assert number(page, "#n-normal") == (called == 1).sum()
    cells = [number(page, f"#{name}") for name in ("true-positives", "false-negatives", "false-positives")]
    assert cells == [((y == a) & (called == b)).sum() for a, b in ((-1, -1), (-1, 1), (1, -1))]
    for name, label in {"#sensitivity": -1, "#specificity": 1}.items():
        assert page.locator(name).inner_text() == f"{100 * recall_score(y, called, pos_label=label):.1f} %"
    assert page.locator(".verdict .is-anomalous").count() == (called == -1).sum()


@pytest.mark.browser
def test_a_threshold_can_be_typed_and_put_back(page, det, paths):
    scores = relative(det, paths)
    threshold = round(float(np.median(scores)), 5)
    page.locator("#number").fill(str(threshold))
    assert number(page, "#n-anomalous") == (scores > threshold).sum()
    page.locator("#reset").click()
    assert number(page, "#n-anomalous") == (scores > 1).sum()
    assert page.locator("#number").input_value() == "1"


@pytest.mark.browser
def test_only_some_kinds_are_shown(page, det, paths, y):
    scores = relative(det, paths)
    slide(page, "#threshold", 300)
    threshold = float(page.locator("#number").input_value())
    for kind, expected in {
        "anomalous": scores > threshold,
        "normal": scores <= threshold,
        "wrong": (scores > threshold) != (y == -1),
        "all": scores < np.inf,
    }.items():
        page.locator("#filter").select_option(kind)
        assert page.locator(".card").count() == expected.sum()
    page.locator("#filter").select_option("anomalous")
    slide(page, "#threshold", 0)
    assert page.locator(".card").count() == (scores > float(page.locator("#number").input_value())).sum()


@pytest.mark.browser
def test_opacity_changes_the_overlay(page):
    tile = page.locator(".card .tile").first
    pictures = []
    for value in (0, 100):
        slide(page, "#opacity", value)
        assert float(page.locator(".heat").first.evaluate("e => getComputedStyle(e).opacity")) == value / 100
        pictures.append(np.asarray(Image.open(io.BytesIO(tile.screenshot())), float))
    assert np.abs(pictures[1] - pictures[0]).max() > 50


@pytest.mark.browser
def test_an_image_opens_by_click_and_by_keyboard(page, written):
    names = [image["name"] for image in embedded(written)["images"]]
    dialog = page.get_by_role("dialog")
    page.locator(".card").nth(2).click()
    assert dialog.get_attribute("aria-labelledby") == "name"
    assert page.locator("#name").inner_text() == names[2]
    assert page.locator("#figures .heat").count() == 1
    assert page.locator("#figures rect.over").count() >= 4
    assert page.locator("#weights li").count() == 4
    page.keyboard.press("ArrowRight")
    assert page.locator("#name").inner_text() == names[3]
    page.locator("#previous").click()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#name").inner_text() == names[1]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    # Focus is where the reader had got to, a moment after the dialog is gone, and goes on from there.
    page.wait_for_function("document.activeElement.matches('li:nth-child(2) > .card')")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator("#name").inner_text() == names[0]
    assert page.locator("#previous").is_disabled()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#name").inner_text() == names[0]
    page.locator("#close").click()
    assert not dialog.is_visible()


@pytest.mark.browser
def test_arrows_of_a_slider_in_the_dialog_do_not_leave_the_image(page, written):
    page.locator(".card").first.click()
    page.locator("#detail-opacity").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#name").inner_text() == embedded(written)["images"][0]["name"]
    assert page.locator("#opacity").input_value() == "71"


@pytest.mark.browser
def test_the_support_is_boxed_where_it_matched(page, written):
    data = embedded(written)
    page.locator(".card").first.click()
    match = data["images"][0]["match"]
    tile = page.locator("#figures figure").nth(1).locator(".tile")
    assert tile.locator("img").get_attribute("src") == data["support"][match["support"]]["picture"]
    box = tile.locator("rect.over")
    assert [float(box.get_attribute(side)) for side in ("y", "x", "height", "width")] == match["box"]
    hot = page.locator("#figures figure").first.locator(".tile rect.over")
    assert [float(hot.get_attribute(side)) for side in ("y", "x", "height", "width")] == data["images"][0]["hot"]


@pytest.mark.browser
@pytest.mark.parametrize("aspect", ["keep", "square"])
@pytest.mark.parametrize("shape", [(240, 80), (80, 240), (120, 120), (360, 60), (1400, 500)], ids=str)
def test_map_and_marks_lie_on_the_picture_as_it_is_shown(browser, toy, tmp_path, shape, aspect):
    normal, marked, place = plain_and_marked(*shape)
    det = DualDistillationDetector(**toy | {"evidence": "patch", "image_size": 64, "aspect": aspect}).fit(normal)
    Image.fromarray(marked).save(tmp_path / "marked.png")
    det.offset_ = det.score_samples([marked])[0]
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(write(det, [tmp_path / "marked.png"], tmp_path / "report.html").as_uri())
    page.locator(".card").first.click()
    figure = page.locator("#figures figure").first
    frame, close = figure.locator(".tile .frame"), figure.locator(".close-up")
    whole = frame.bounding_box()
    assert whole["height"] / whole["width"] == pytest.approx(shape[0] / shape[1], rel=0.02)
    mark = frame.locator("rect.over").bounding_box()
    middle = [
        (mark[start] + mark[length] / 2 - whole[start]) / whole[length]
        for start, length in (("y", "height"), ("x", "width"))
    ]
    patch = mark["height"] / whole["height"], mark["width"] / whole["width"]
    assert abs(middle[0] - place[0]) <= patch[0]
    assert abs(middle[1] - place[1]) <= patch[1]
    # The colour of the map, by itself.
    page.locator("#figures svg").evaluate_all("marks => marks.forEach(mark => mark.remove())")
    shot = np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("RGB"), float)
    rows, columns = np.nonzero(shot[..., 2] - shot[..., 0] > 60)
    assert abs(rows.mean() / shot.shape[0] - place[0]) <= patch[0]
    assert abs(columns.mean() / shot.shape[1] - place[1]) <= patch[1]
    # The enlarged surroundings show the bright spot, undistorted.
    near = np.asarray(Image.open(io.BytesIO(close.screenshot())).convert("L"), float)
    assert (near > 200).mean() > 0.01
    scales = close.locator("img").evaluate("e => [e.clientWidth / e.naturalWidth, e.clientHeight / e.naturalHeight]")
    assert scales[0] == pytest.approx(scales[1], rel=0.05)
    page.close()


@pytest.mark.browser
def test_hostile_names_are_text(page, folder):
    shown = page.locator(".card .name").all_text_contents()
    assert set(HOSTILE) <= set(shown)
    assert page.locator("h1").inner_text() == HOSTILE[0]
    assert page.title() == HOSTILE[0]
    assert page.locator("#unreadable-list .name").inner_text().endswith("<i>broken</i>.png")
    assert page.locator("#unreadable-list").inner_text().count("empty file") == 1
    assert page.locator('img[src="x"], i i, #unreadable-list i').count() == 0


@pytest.mark.browser
def test_every_control_has_a_name(page):
    page.locator(".card").first.click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, svg[role=img]")].filter(e =>
            !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"""
    )
    assert nameless == []
    assert page.locator(".card").nth(1).get_attribute("aria-label").count("score") == 1


@pytest.mark.browser
def test_dark_and_light(page):
    def ground():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    assert light == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    page.locator("html[data-theme=dark]").wait_for(state="attached")
    assert (dark := ground()) != light
    page.locator("#theme").click()
    assert ground() == light
    page.locator("#theme").click()
    assert ground() == dark


@pytest.mark.browser
def test_a_narrow_window_is_not_wider_than_it_is(page):
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".card").first.click()
    assert page.evaluate("[...document.querySelectorAll('dialog, dialog *')].every(e => e.scrollWidth < 361)")


@pytest.mark.browser
def test_nothing_moves_after_loading(page):
    page.reload()
    page.wait_for_timeout(200)
    moved = page.evaluate(
        """() => new Promise(done => new PerformanceObserver(list =>
            done(list.getEntries().reduce((sum, entry) => sum + entry.value, 0))).observe(
                {type: "layout-shift", buffered: true}) || setTimeout(() => done(0), 300))"""
    )
    assert moved < 0.01


@pytest.mark.browser
def test_a_report_without_labels_or_support(browser, det, paths, tmp_path):
    bare = copy.copy(det)
    bare.fitted_ = dataclasses.replace(det.fitted_, images=None)
    file = write(bare, paths[:3], tmp_path / "report.html")
    page = browser.new_page()
    page.goto(file.as_uri())
    assert not page.locator("#quality").is_visible()
    page.locator(".card").first.click()
    assert page.locator("#no-support").is_visible()
    assert page.locator("#figures figure").count() == 1
    assert "image 3" in page.locator("#weights").inner_text()
    page.close()


@pytest.mark.browser
def test_long_reports_are_drawn_as_one_scrolls(browser, det, paths, tmp_path):
    file = write(det, paths * 28, tmp_path / "report.html", max_side=16)
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.locator(".card").count() < 308
    for _ in range(4):
        page.mouse.wheel(0, 20000)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(100)
    assert page.locator(".card").count() == 308
    page.close()
