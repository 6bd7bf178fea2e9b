"""Regions of random maps, and of images in pixels of their files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from helpers import plain_and_marked, stripes
from PIL import Image, ImageDraw
from scipy import ndimage

from fewshot_ad import DualDistillationDetector, cli
from fewshot_ad.coco import as_coco, write_coco
from fewshot_ad.drawing import CONTOUR, outlined, rgb
from fewshot_ad.exceptions import ImageSkippedWarning, OutputExistsError
from fewshot_ad.explanation import overlay
from fewshot_ad.regions import Region, check_options, find_regions, half_height

EIGHT = np.ones((3, 3), bool)


def filled(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of a region (4-connected background)."""
    return ndimage.binary_fill_holes(mask, ndimage.generate_binary_structure(2, 1))


def refill(region: Region, shape: tuple[int, int], scale: int = 4) -> np.ndarray:
    """Fill an outline with Pillow, enlarged, as Pillow includes the pixels of the line."""
    canvas = Image.new("1", (shape[1] * scale, shape[0] * scale))
    ImageDraw.Draw(canvas).polygon([(x * scale, y * scale) for y, x in region.polygon.tolist()], fill=1)
    return np.asarray(canvas)[scale // 2 :: scale, scale // 2 :: scale]


def enclosed(region: Region) -> float:
    """Compute the area enclosed by an outline; positive if it is clockwise, as y points down."""
    y, x = region.polygon.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def check(values: np.ndarray, level: float) -> list[Region]:
    found = find_regions(values, level)
    labels, count = ndimage.label(values > level, EIGHT)
    assert len(found) == count
    for region in found:
        mask = labels == labels[region.peak_at]
        rows, columns = np.nonzero(mask)
        assert region.box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        assert region.area == mask.sum()
        assert region.peak == values[region.peak_at] == values[mask].max()
        assert region.mean == pytest.approx(values[mask].mean(), rel=1e-5)
        assert region.centroid == pytest.approx((rows.mean() + 0.5, columns.mean() + 0.5))
        again, whole = refill(region, values.shape), filled(mask)
        assert (again & whole).sum() > 0.9 * (again | whole).sum()
        np.testing.assert_array_equal(region.polygon[0], region.polygon[-1])
        assert abs(enclosed(region) - whole.sum()) <= 0.05 * region.area
        top, left, bottom, right = region.box
        assert (region.polygon >= (top, left)).all()
        assert (region.polygon <= (bottom, right)).all()
    assert [region.peak for region in found] == sorted((region.peak for region in found), reverse=True)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_outlines_of_random_blobs(seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=rng.integers(20, 120, 2))
    values = ndimage.gaussian_filter(noise, rng.uniform(0.3, 8), mode="reflect").astype(np.float32)
    check(values, float(np.quantile(values, rng.uniform(0.3, 0.95))))


@pytest.mark.parametrize(
    "drawn",
    [
        ["#"], ["...", ".#.", "..."], ["#..", ".#.", "..#"], [".#.", "#.#", ".#."], ["####", "#..#", "#.##", "####"],
        ["#.#", "#.#", "###"], ["#####", "#...#", "#.#.#", "#...#", "#####"], ["##.##", ".....", "##.##"],
        ["#######"], ["#", "#", "#"], ["##..", "##..", "..##", "..##"],
    ],
)  # fmt: skip
def test_small_shapes_are_enclosed_exactly(drawn):
    """One pixel, touching corners, rings, a component within a ring, and components at the border."""
    values = np.array([[letter == "#" for letter in row] for row in drawn], float)
    labels, _ = ndimage.label(values, EIGHT)
    for region in check(values, 0.5):
        mask = filled(labels == labels[region.peak_at])
        np.testing.assert_array_equal(refill(region, values.shape), mask)
        assert enclosed(region) == mask.sum()


def test_large_outlines_have_few_corners():
    rows, columns = np.mgrid[:400, :400]
    (region,) = check(np.exp(-((rows - 190.0) ** 2 + (columns - 200.0) ** 2) / 2e4), 0.5)
    assert len(region.polygon) < 40


def test_min_area_and_order():
    values = np.zeros((9, 9))
    values[0, 0], values[2:4, 2:4], values[6:, 6:] = 3, 2, 1
    assert [region.area for region in find_regions(values, 0.5)] == [1, 4, 9]
    assert [region.area for region in find_regions(values, 0.5, min_area=4)] == [4, 9]
    assert find_regions(values, 3) == []
    assert half_height(np.array([[0.0, 1.0, 5.0]])) == 3.5
    assert half_height(np.ones((2, 3), np.float32)) < 1  # a constant map is a region
    assert [one.score for one in find_regions(values, 0.5, threshold=1.0, unit=2.0)] == [2, 1.5, 1]


@pytest.fixture(scope="module")
def fitted(toy, normal) -> DualDistillationDetector:
    """A detector that calls all images anomalous that differ from its support."""
    det = DualDistillationDetector(**toy | {"evidence": "patch"}).fit(normal[:4])
    det.offset_ = float(det.score_samples(normal[4:8]).min()) * 1.001
    return det


def test_regions_contain_the_hot_spot(fitted, normal, anomalous):
    images = [*normal[4:8], *anomalous[:4]]
    labels, found = fitted.predict(images), fitted.regions(images)
    assert -1 in labels
    for e, label, regions in zip(fitted.explain(images), labels, found, strict=True):
        if label == 1:
            assert regions == []
            continue
        down, across = (int((at + 0.5) / 32 * 40) for at in e.hot_spot)
        assert any(top <= down < bottom and left <= across < right for top, left, bottom, right in
                   (region.box for region in regions))  # fmt: skip
        assert all(region.score >= e.relative - 0.02 for region in regions[:1])


def same(one: Region, other: Region) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Region))


def test_explanations_and_rows_agree(fitted, normal, anomalous):
    images = [*normal[4:6], *anomalous[:3]]
    found = fitted.regions(images)
    told = [
        [e.regions for e in fitted.explain(images, max_side=None)],
        [one.regions for one in fitted.session().score_each(images, regions=True)],
    ]
    for others in told:
        assert [len(one) for one in others] == [len(one) for one in found]
        assert all(same(a, b) for one, other in zip(found, others, strict=True)
                   for a, b in zip(one, other, strict=True))  # fmt: skip
    assert [one.regions for one in fitted.session().score_each(images)] == [None] * 5
    assert [one.size for one in fitted.session().score_each(images)] == [(40, 40)] * 5


def test_one_level_for_all_images(fitted, normal, anomalous):
    images = [*normal[4:8], *anomalous[:4]]
    for e, regions in zip(fitted.explain(images), fitted.regions(images, level=1), strict=True):
        assert [region.box for region in e.find_regions(level=1)] == [region.box for region in regions]
        assert all(region.score > 1 for region in regions)
        assert regions or e.decision >= 0  # pixels of normal images may also be above it
    areas = [sum(r.area for r in fitted.regions(anomalous[:1], level=at)[0]) for at in (0.5, 1, 1.5, 1e6)]
    assert areas[0] > areas[1] > areas[2] >= areas[3] == 0
    (every,) = fitted.regions(anomalous[:1], level=-1e6)
    assert [region.box for region in every] == [(0, 0, 40, 40)]
    (few,) = fitted.regions(anomalous[:1], min_area=10**6)
    assert few == []


@pytest.mark.parametrize("shape", [(90, 150), (300, 120)])
def test_coordinates_are_in_upright_pixels_of_the_file(tmp_path, shape):
    normal, marked, (down, across) = plain_and_marked(*shape)
    det = DualDistillationDetector(image_size=64, evidence="patch").fit(normal)
    det.offset_ = float(det.score_samples([marked])[0]) * 0.9
    path = tmp_path / "on_its_side.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise
    Image.fromarray(np.rot90(marked).copy()).save(path, exif=exif, quality=98)
    for image in (marked, path):
        region = det.regions([image])[0][0]
        assert region.centroid == pytest.approx((down * shape[0], across * shape[1]), abs=0.08 * max(shape))
        maps = det.anomaly_map([image], size="original")
        assert maps.shape[1:] == shape
        assert np.isfinite(maps[0][region.peak_at])


def test_unreadable_images_have_no_regions(fitted, anomalous, tmp_path):
    lenient = fitted.session(on_error="skip")
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.warns(ImageSkippedWarning):
        found = lenient.regions([tmp_path / "x.png", anomalous[0]])
    assert found[0] is None
    assert found[1]


def test_constant_map_is_one_region(toy, normal):
    det = DualDistillationDetector(**toy | {"evidence": "embedding", "border_weight": 1.0}).fit(normal[:3])
    det.offset_ = 10.0  # all are anomalous, and the offset is not negative
    ((region,),) = det.regions(normal[3:4])
    assert region.box == (0, 0, 40, 40)
    assert np.isfinite(region.score)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_nonnegative_offsets(fitted, anomalous, offset):
    det = DualDistillationDetector(**fitted.get_params(deep=False))
    det.fitted_ = fitted.fitted_
    det.offset_ = offset
    assert all(np.isfinite(region.score) for region in det.regions(anomalous[:1])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_area": -1}, "min_area=-1 was given; it must be a number of pixels, 0 or more"),
        ({"min_area": np.nan}, "min_area=nan"), ({"min_area": np.inf}, "min_area=inf"), ({"min_area": "5"}, "'5'"),
        ({"min_area": None}, "min_area=None"), ({"min_area": True}, "min_area=True"),
        ({"level": np.inf}, "level=inf was given; it must be a finite number"), ({"level": np.nan}, "level=nan"),
        ({"level": "1"}, "level='1'"), ({"level": False}, "level=False"),
    ],
)  # fmt: skip
def test_invalid_options(fitted, normal, options, message):
    with pytest.raises(ValueError, match=message):
        fitted.regions(["nowhere.png"], **options)
    with pytest.raises(ValueError, match=message):
        fitted.explain(normal[:1])[0].find_regions(**options)
    check_options(np.float32(3), np.int64(2))


# ---- pictures


def test_overlays_outline_the_regions(fitted, normal, anomalous):
    called = next(e for e in fitted.explain(anomalous) if e.decision < 0)
    plain = np.full((80, 80, 3), 128, np.uint8)  # of another size than the image
    drawn = outlined(plain, called.outlines((80, 80)))
    line = (drawn == rgb(CONTOUR)).all(-1)
    top, left, bottom, right = (2 * at for at in called.regions[0].box)
    assert line[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1].any()
    assert not (plain != 128).any()
    assert not np.array_equal(overlay(called), overlay(dataclasses.replace(called, decision=1.0)))
    calm = next(e for e in fitted.explain(normal[4:8]) if e.decision >= 0)
    assert calm.outlines((80, 80)) == []


# ---- COCO


def check_coco(found: dict) -> None:
    """Check the requirements of https://cocodataset.org/#format-data and of pycocotools."""
    assert list(found) == ["images", "annotations", "categories"]
    assert found["categories"] == [{"id": 1, "name": "anomaly"}]
    images = {one["id"]: one for one in found["images"]}
    for kind in ("images", "annotations"):  # pycocotools treats 0 as missing
        assert [one["id"] for one in found[kind]] == list(range(1, len(found[kind]) + 1))
    for one in found["images"]:
        assert list(one) == ["id", "file_name", "width", "height"]
    for one in found["annotations"]:
        x, y, width, height = one["bbox"]
        image = images[one["image_id"]]
        assert 0 <= x < x + width <= image["width"]
        assert 0 <= y < y + height <= image["height"]
        assert one["category_id"] == 1
        assert one["iscrowd"] == 0
        assert 0 < one["area"] <= width * height
        assert isinstance(one["score"], float)
        for outline in one["segmentation"]:
            assert len(outline) >= 8
            assert len(outline) % 2 == 0
            assert min(outline[::2]) == x
            assert max(outline[1::2]) == y + height


def test_coco_follows_the_format(tmp_path):
    values = np.zeros((30, 50))
    values[2:5, 10:20], values[20, 49] = 2, 1
    regions = find_regions(values, 0.5)
    entries = [("a.png", (30, 50), regions), ("broken.png", None, None), ("ä\udcff.png", (7, 9), []),
               ("c.png", (30, 50), regions[1:])]  # fmt: skip
    found = as_coco(entries)
    check_coco(found)
    assert [one["file_name"] for one in found["images"]] == ["a.png", "ä\udcff.png", "c.png"]
    assert [one["image_id"] for one in found["annotations"]] == [1, 1, 3]
    first, second, _ = found["annotations"]
    assert (first["bbox"], first["area"]) == ([10, 2, 10, 3], 30)
    assert first["segmentation"] == [[10, 2, 20, 2, 20, 5, 10, 5]]
    assert second["bbox"] == [49, 20, 1, 1]
    out = tmp_path / "r.json"
    write_coco(out, entries)
    assert json.loads(out.read_text("ascii")) == found
    with pytest.raises(OutputExistsError, match=r"r\.json exists"):
        write_coco(out, [])
    write_coco(out, [], force=True)
    assert json.loads(out.read_text())["images"] == []
    assert list(tmp_path.iterdir()) == [out]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fitted, normal, anomalous):
    """A model, and a folder with a normal, an anomalous and a damaged image."""
    root = tmp_path_factory.mktemp("regions")
    fitted.save(root / "m.fsad")
    (root / "new").mkdir()
    Image.fromarray(normal[4]).save(root / "new" / "a.png")
    Image.fromarray(anomalous[0]).save(root / "new" / "b.png")
    (root / "new" / "c.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize("command", ["score", "map"])
def test_commands_write_regions(folder, fitted, command, capsys, tmp_path):
    out, written = str(tmp_path / "r.json"), str(tmp_path / ("s.csv" if command == "score" else "maps"))
    words = [command, str(folder / "m.fsad"), str(folder / "new"), "-o", written, "--regions", out, "--quiet"]
    assert cli.main([*words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    found = json.loads((tmp_path / "r.json").read_text())
    check_coco(found)
    assert [one["file_name"] for one in found["images"]] == [str(folder / "new" / f"{name}.png") for name in "ab"]
    (regions,) = fitted.regions([folder / "new" / "b.png"])
    assert [(a["area"], a["score"]) for a in found["annotations"]] == [(r.area, r.score) for r in regions]
    if command == "score":
        assert [one["regions"] for one in told["images"]] == [[], [list(r.box) for r in regions], None]
        lines = (tmp_path / "s.csv").read_text().splitlines()
        assert [line.rpartition(",")[2] for line in lines[1:3]] == ["0", str(len(regions))]
    else:
        assert out in told["written"]
    before = (tmp_path / "r.json").read_bytes()
    assert cli.main([*words[:4], f"{written}2{'.csv' if command == 'score' else ''}", *words[5:]]) == 2
    assert "r.json exists. Pass --force to replace it" in capsys.readouterr().err
    assert not (tmp_path / "maps2").exists()
    assert (tmp_path / "r.json").read_bytes() == before
    assert cli.main([*words, "--force"]) == 1


def test_regions_do_not_depend_on_the_batch(fitted, anomalous, normal):
    alone = fitted.regions(anomalous[:1])[0]
    among = fitted.regions([*normal[4:7], anomalous[0], stripes(1, size=64, seed=9)[0]])[3]
    assert all(same(one, other) for one, other in zip(alone, among, strict=True))
