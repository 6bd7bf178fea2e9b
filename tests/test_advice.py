"""Advice in error messages and warnings: the tests provoke a message, follow its advice, and succeed.

The last tests collect all advice from the source of the package, and look up the test that follows it.
"""

from __future__ import annotations

import ast
import io
import pickle
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pydicom
import pytest
import timm
import torch
from format_trials import dicom_bytes
from helpers import corrupted, make_detector, stripes, toy_resnet, write_random_weights
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fewshot_ad
import fewshot_ad.images
from fewshot_ad import DualDistillationDetector, cli, detector, distributed, metrics, plotting, pretrain
from fewshot_ad.data import datasets, dicom, images
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.exceptions import (
    CheckpointError,
    FewShotADError,
    ImageWarning,
    MissingExtraError,
    OutOfMemoryError,
    OutputError,
    SupportWarning,
    TaskSkippedWarning,
    TrainingError,
    VersionWarning,
    WeightsNotFoundError,
)
from fewshot_ad.files import checkpoints, model_file
from fewshot_ad.method import packaged, teacher
from fewshot_ad.method.evidence import parse_evidence
from fewshot_ad.method.packaged import PACKAGED
from fewshot_ad.method.teacher import build_backbone
from fewshot_ad.tables import Row, Table, import_parquet
from fewshot_ad.training import loop, pretraining

FOLLOWED: dict[str, str] = {}


def follows(*advice: str) -> Callable[[Callable], Callable]:
    """Mark a test as the one that follows advice, given as parts of messages."""

    def mark(test: Callable) -> Callable:
        FOLLOWED.update(dict.fromkeys(advice, test.__name__))
        return test

    return mark


@pytest.fixture
def make(toy):
    return lambda **parameters: make_detector(**{**toy, "evidence": "patch", **parameters})


def refusal(call: Callable, *words: str, error: type[BaseException] = FewShotADError) -> str:
    """Return the message of the error that a call raises."""
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def warning_of(call: Callable, *words: str, category: type[Warning] = SupportWarning) -> object:
    """Return the result of a call that must warn."""
    with pytest.warns(category) as caught:
        found = call()
    assert any(all(word in str(one.message) for word in words) for one in caught)
    return found


def quietly(call: Callable) -> object:
    """Return the result of a call that must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


def read(X, **options) -> torch.Tensor:
    loaded = images.load_each(images.as_items(X), **{"on_error": "raise", "geometry": Geometry(8), **options})
    return torch.stack([one.image for _, one in loaded])


def save_pictures(folder: Path, pictures, ending: str = ".png") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}{ending}" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return paths


# ---- images


@follows("Pass at least one.", "given; pass (N, C, H, W)")
def test_image_shapes(normal):
    refusal(lambda: read([]), "Pass at least one.")
    one = torch.from_numpy(normal[0]).permute(2, 0, 1)
    refusal(lambda: read(one), "pass (N, C, H, W)")
    torch.testing.assert_close(read(one[None]), read([normal[0]]))


@follows("pass array.transpose(1, 2, 0), or a torch tensor")
def test_channels_first_array(normal):
    misplaced = np.ascontiguousarray(normal[0].transpose(2, 0, 1))
    warning_of(lambda: images.as_items(misplaced), "array.transpose(1, 2, 0)", category=ImageWarning)
    torch.testing.assert_close(quietly(lambda: read(misplaced.transpose(1, 2, 0))), read(normal[0]))
    torch.testing.assert_close(quietly(lambda: read([torch.from_numpy(misplaced)])), read(normal[0]))


@follows("Are the channels misplaced? An array has them last, a torch tensor first.")
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_channels_first_image_in_a_list(normal, kind):
    right = normal[0] if kind == "array" else torch.from_numpy(normal[0]).permute(2, 0, 1)
    wrong = normal[0].transpose(2, 0, 1) if kind == "array" else torch.from_numpy(normal[0])
    refusal(lambda: read([wrong]), "An array has them last, a torch tensor first")
    torch.testing.assert_close(read([right]), read([normal[0]]))


@follows("Leave out its fourth channel (image[..., :3]), or save it without transparency")
def test_fully_transparent_image(normal, tmp_path):
    hidden = np.dstack([normal[0], np.zeros((40, 40), np.uint8)])
    (path,) = save_pictures(tmp_path, [hidden])
    for item in (hidden, path):
        warning_of(lambda item=item: read([item]), "is fully transparent", category=ImageWarning)
    torch.testing.assert_close(quietly(lambda: read([hidden[..., :3]])), read([normal[0]]))
    with Image.open(path) as picture:
        picture.convert("RGB").save(path)
    torch.testing.assert_close(quietly(lambda: read([path])), read([normal[0]]))


@follows("Remove it or pass on_error='skip'.", "does not exist. Pass the path of an image file.")
def test_unreadable_image(make, normal, tmp_path):
    paths = save_pictures(tmp_path, normal[:3])
    message = refusal(lambda: make().fit([*paths, tmp_path / "none.png"]), "Remove it or pass on_error='skip'.")
    assert "Pass the path of an image file" in message
    expected = make().fit(paths).offset_
    with pytest.warns(UserWarning, match="Skipped"):
        assert make(on_error="skip").fit([*paths, tmp_path / "none.png"]).offset_ == expected


@follows("Make it smaller, or raise fewshot_ad.images.MAX_PIXELS if you trust it.")
def test_large_image(make, normal, tmp_path, monkeypatch):
    paths = save_pictures(tmp_path, normal[:3])
    det = make()
    monkeypatch.setattr(fewshot_ad.images, "MAX_PIXELS", 1000)
    refusal(lambda: det.fit(paths), "raise fewshot_ad.images.MAX_PIXELS")
    fewshot_ad.images.MAX_PIXELS = 1600
    expected = det.fit(paths).score_samples(paths)
    np.testing.assert_array_equal(make().fit(paths).score_samples(paths), expected)
    small = [Image.fromarray(image).resize((30, 30)) for image in normal[:3]]
    fewshot_ad.images.MAX_PIXELS = 1000
    make().fit(small)


@follows("not enough memory. Make it smaller, or free memory.")
def test_out_of_memory_for_an_image(monkeypatch, normal):
    resize = images.resize

    def small_ones_only(image, *arguments, **options):
        if image.shape[-1] > 20:
            raise MemoryError
        return resize(image, *arguments, **options)

    monkeypatch.setattr(images, "resize", small_ones_only)
    refusal(lambda: read([normal[0]]), "Make it smaller, or free memory")
    read([normal[0][:20, :20]])
    monkeypatch.undo()
    read([normal[0]])


@follows("each entry must be one image. {first} fewshot_ad.images.frames(paths), which")
def test_file_of_several_images(normal, tmp_path):
    path = tmp_path / "several.tif"
    first, *others = (Image.fromarray(image) for image in normal[:3])
    first.save(path, save_all=True, append_images=others)
    refusal(lambda: read([path]), "Pass fewshot_ad.images.frames(paths), which lists them")
    torch.testing.assert_close(read(fewshot_ad.images.frames([path])), read(normal[:3]))


@follows("pass value_range=(low, high), the input window, for instance value_range=(0, 4095).")
def test_support_with_few_bits(make, normal):
    deep = list(normal[:3, ..., 0].astype(np.uint16) * 16)
    warning_of(lambda: make().fit(deep), "value_range=(0, 4095)")
    quietly(lambda: make(value_range=(0, 4095)).fit(deep))


# ---- DICOM

GREY = stripes(1)[0][..., 0]
WINDOW = {"WindowCenter": 128, "WindowWidth": 256}


def altered(data: bytes, *without: str, **fields) -> bytes:
    """Change or remove elements, and write the file without validation."""
    found = pydicom.dcmread(io.BytesIO(data))
    for name in without:
        del found[name]
    for name, value in fields.items():
        setattr(found, name, value)
    out = io.BytesIO()
    found.save_as(out)
    return out.getvalue()


def _lookup(**fields) -> bytes:
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
        item[name].VR = "US"
    return altered(dicom_bytes(GREY), ModalityLUTSequence=[item])


def _palette(*lengths: int, announced: int | None = None) -> bytes:
    fields = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, n in zip(("Red", "Green", "Blue"), lengths, strict=True):
        fields[f"{name}PaletteColorLookupTableDescriptor"] = [announced or n, 0, 8]
        fields[f"{name}PaletteColorLookupTableData"] = bytes(n)
    return dicom_bytes(GREY, **fields)


_WHOLE = dicom_bytes(GREY, **WINDOW)
DAMAGED = {
    "is not a DICOM file": b"no image at all",
    "is a DICOM file without an image": altered(_WHOLE, "PixelData", "Rows", "Columns"),
    "is a DICOM file without pixel data. Leave it out.": altered(_WHOLE, "PixelData"),
    "of its three palettes (PaletteColorLookupTableData) are missing": _palette(0, 0, 0, announced=256),
    "its palettes differ in length": _palette(256, 128, 256),
    "without which its lookup table cannot be read": _lookup(LUTData=[0] * 256),
    "has a lookup table without": _lookup(LUTDescriptor=[256, 0, 16]),
    "are declared. Leave it out, or download it again.": _palette(250, 250, 250, announced=256),
    "is damaged: it has {self.size(index)} columns and rows": altered(
        dicom_bytes(GREY, uid.JPEGLSLossless, **WINDOW), Rows=38
    ),
}


@follows(*DAMAGED)
@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_dicom_file(tmp_path, message):
    (tmp_path / "a.dcm").write_bytes(DAMAGED[message])
    (tmp_path / "b.dcm").write_bytes(_WHOLE)
    paths = [tmp_path / "a.dcm", tmp_path / "b.dcm"]
    said = refusal(lambda: read(paths), str(paths[0]), *re.sub(r"\{.*?\}", "\n", message).split("\n"))
    assert "Leave it out" in said
    assert len(read(paths[1:])) == 1
    paths[0].write_bytes(_WHOLE)  # "download it again"
    assert len(read(paths)) == 2


@follows("; convert it with another program.", "Leave it out, or convert it with another program.")
@pytest.mark.parametrize("data", [
    altered(dicom_bytes(np.dstack([GREY] * 3)), PhotometricInterpretation="HSV"),
    DAMAGED["has a lookup table without"], DAMAGED["without which its lookup table cannot be read"],
    DAMAGED["of its three palettes (PaletteColorLookupTableData) are missing"],
])  # fmt: skip
def test_dicom_converted_by_another_program(tmp_path, data):
    refusal(lambda: read([data]), "convert it with another program")
    found = pydicom.dcmread(io.BytesIO(data))
    stored = np.frombuffer(found.PixelData, np.uint8).reshape(40, 40, -1)[..., 0]
    Image.fromarray(stored).save(tmp_path / "converted.png")
    torch.testing.assert_close(read([tmp_path / "converted.png"]), read([GREY]))


@follows("has a damaged element {self._tag(name)}", "which is not a number. Correct it with pydicom")
@pytest.mark.filterwarnings("ignore:::pydicom")
@pytest.mark.parametrize("name", ["WindowCenter", "PhotometricInterpretation", "RescaleSlope", "Rows"])
def test_damaged_element_is_corrected(tmp_path, name):
    whole = dicom_bytes(GREY, RescaleSlope=1, RescaleIntercept=0, **WINDOW)
    tag = pydicom.tag.Tag(name)
    place = whole.index(tag.group.to_bytes(2, "little") + tag.elem.to_bytes(2, "little"))
    length = int.from_bytes(whole[place + 6 : place + 8], "little")
    if name == "Rows":  # a number of another length
        data = whole[: place + 6] + b"\x01\0\x28" + whole[place + 10 :]
    else:
        data = whole[: place + 8] + b"\xff" * length + whole[place + 8 + length :]
    kept = pydicom.dcmread(io.BytesIO(whole))[name].value
    message = refusal(lambda: read([data]))
    if name in ("WindowCenter", "RescaleSlope", "Rows"):
        assert "Correct it with pydicom" in message
    ds = pydicom.dcmread(io.BytesIO(data))
    ds[name] = pydicom.DataElement(tag, pydicom.datadict.dictionary_VR(tag), kept)
    ds.save_as(tmp_path / "a.dcm")
    torch.testing.assert_close(read([tmp_path / "a.dcm"]), read([whole]))


@follows(
    "If another program opens it, convert it there, for instance to Explicit VR Little Endian.",
    "which pydicom does not decode. Convert the file, for instance to Explicit VR Little Endian.",
    "Convert it, for instance to Explicit VR Little Endian.",
    "has compressed pixels, but {self._tag('TransferSyntaxUID')}",
    "no decoder for that is installed. Install the extra",
)
@pytest.mark.parametrize("why", ["undecodable", "unknown", "deflated", "unnamed", "no decoder"])
def test_dicom_is_converted_to_explicit_little_endian(monkeypatch, why):
    data = dicom_bytes(GREY, uid.DeflatedExplicitVRLittleEndian if why == "deflated" else uid.JPEGLSLossless, **WINDOW)
    expected = read([data])
    ds = pydicom.dcmread(io.BytesIO(data))  # the other program
    ds.decompress() if why != "deflated" else ds.file_meta.__setattr__("TransferSyntaxUID", uid.ExplicitVRLittleEndian)
    out = io.BytesIO()
    ds.save_as(out)
    converted = pydicom.dcmread(io.BytesIO(out.getvalue()))
    assert converted.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian

    def fail(*_, **__):
        raise RuntimeError("unusual")

    words = ["Explicit VR Little Endian"]
    with monkeypatch.context() as patched:
        if why == "undecodable":
            decoder = pydicom.pixels.get_decoder(uid.JPEGLSLossless)
            patched.setattr(type(decoder), "as_array", fail)
        elif why == "unknown":
            old, new = (name.encode().ljust(24, b"\0") for name in (uid.JPEGLSLossless, uid.MPEG2MPML))
            data = data.replace(old[:22], new[:24][:22])
        elif why == "deflated":
            patched.setattr(dicom, "_LONGEST_INFLATED", 1000)
        elif why == "unnamed":
            data, words = data[144 + int.from_bytes(data[140:144], "little") :], ["or convert the file"]
        else:
            patched.setattr(pydicom.pixels.get_decoder(uid.JPEGLSLossless), "_available", {})
            words = ["Install the extra"]
        refusal(lambda: read([data]), *words)
        if why == "undecodable":
            patched.undo()
        torch.testing.assert_close(read([out.getvalue()]), expected)


@follows("photometric interpretations or sizes works poorly: pass images of one kind")
def test_support_of_one_kind_of_dicom(make, normal):
    alike = [dicom_bytes(image[..., 0], Modality="MR", **WINDOW) for image in normal[:3]]
    other = dicom_bytes(normal[3][..., 0], Modality="CT", **WINDOW)
    warning_of(lambda: make().fit([*alike, other]), "pass images of one kind", category=UserWarning)
    quietly(lambda: make().fit(alike))


# ---- folders of labelled images


def _mask(path: Path, size=(20, 16), values=(0, 255)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("L", size, values[0])
    picture.putpixel((0, 0), values[1])
    picture.save(path)


def _masks_of(root: Path) -> list[str | None]:
    return [None if mask is None else mask.name for mask in images_of(root).masks]


def images_of(root: Path):
    return fewshot_ad.images.load_folder(root)


@pytest.fixture
def labelled(tmp_path) -> Path:
    """A folder with a good and a bad image."""
    for kind in ("good", "bad"):
        (tmp_path / kind).mkdir()
        Image.new("L", (20, 16)).save(tmp_path / kind / f"{kind}.png")
    return tmp_path


@follows("Pass a folder with {LAYOUTS}.")
def test_folder_of_labelled_images(labelled):
    refusal(lambda: images_of(labelled / "good" / "good.png"), "Pass a folder with good/, optionally with bad/")
    refusal(lambda: images_of(labelled / "none"), "or train/good/ and test/good/ with test/DEFECT/")
    assert images_of(labelled).y.tolist() == [1, -1]
    for part in ("train/good", "test/good", "test/scratch"):
        (labelled / "mvtec" / part).mkdir(parents=True)
        shutil.copy(labelled / "good" / "good.png", labelled / "mvtec" / part)
    assert images_of(labelled / "mvtec").y.tolist() == [1, 1, -1]


@follows("has two masks: {masks[i]} and {mask}. Remove one.")
@pytest.mark.parametrize("removed", ["bad.png", "bad_mask.png"])
def test_two_masks_of_an_image(labelled, removed):
    for name in ("bad.png", "bad_mask.png"):
        _mask(labelled / "masks" / name)
    refusal(lambda: images_of(labelled), "Remove one.")
    (labelled / "masks" / removed).unlink()
    assert _masks_of(labelled) == [None, "bad_mask.png" if removed == "bad.png" else "bad.png"]


@follows("Put the masks of each kind into a folder of that name, and give all images of a kind different names.")
def test_ambiguous_mask(labelled):
    (labelled / "test").mkdir()
    for kind in ("good", "bad", "worse"):
        (labelled / "test" / kind).mkdir()
        shutil.copy(labelled / "good" / "good.png", labelled / "test" / kind / ("0.png" if kind != "good" else "g.png"))
    for kind in ("good", "bad"):
        shutil.rmtree(labelled / kind)
    _mask(labelled / "masks" / "0.png")
    refusal(lambda: images_of(labelled), "Put the masks of each kind into a folder of that name")
    (labelled / "masks" / "worse").mkdir()
    (labelled / "masks" / "0.png").rename(labelled / "masks" / "worse" / "0.png")
    assert _masks_of(labelled) == [None, None, "0.png"]
    shutil.copy(labelled / "test" / "worse" / "0.png", labelled / "test" / "worse" / "0.bmp")
    refusal(lambda: images_of(labelled), "give all images of a kind different names")
    (labelled / "test" / "worse" / "0.bmp").rename(labelled / "test" / "worse" / "1.bmp")
    assert _masks_of(labelled) == [None, None, "0.png", None]


@follows(" in {kind}/'}. Rename or remove the mask.")
@pytest.mark.parametrize("how", ["rename", "remove"])
def test_mask_without_an_image(labelled, how):
    _mask(labelled / "masks" / "typo.png")
    refusal(lambda: images_of(labelled), "Rename or remove the mask")
    if how == "rename":
        (labelled / "masks" / "typo.png").rename(labelled / "masks" / "bad.png")
    else:
        (labelled / "masks" / "typo.png").unlink()
    assert _masks_of(labelled) == [None, "bad.png" if how == "rename" else None]


@follows("cannot be read. Remove it or save it again.", "Resize the mask, or remove it.")
@pytest.mark.parametrize("wrong", ["unreadable", "large"])
@pytest.mark.parametrize("how", ["remove", "write"])
def test_mask_of_another_size(labelled, wrong, how):
    mask = labelled / "masks" / "bad.png"
    _mask(mask, (40, 32))
    if wrong == "unreadable":
        mask.write_bytes(b"no picture")
    refusal(lambda: images_of(labelled), "Remove it or save it again" if wrong == "unreadable" else "Resize the mask")
    if how == "remove":
        mask.unlink()
    elif wrong == "unreadable":
        _mask(mask)
    else:
        with Image.open(mask) as picture:
            picture.resize((20, 16)).save(mask)
    assert _masks_of(labelled) == [None, None if how == "remove" else "bad.png"]


@follows("contains no mask. Remove it.")
def test_mask_folder_without_masks(labelled):
    (labelled / "bad" / "bad.png").rename(labelled / "bad" / "0.png")
    (labelled / "masks" / "0").mkdir(parents=True)
    refusal(lambda: images_of(labelled), "contains no mask. Remove it.")
    (labelled / "masks" / "0").rmdir()
    assert _masks_of(labelled) == [None, None]


@follows("differ in size. Save them again.", "Save it again, with 0 there.")
def test_invalid_masks_are_saved_again(tmp_path):
    _mask(tmp_path / "a.png")
    _mask(tmp_path / "b.png", (10, 10))
    refusal(lambda: datasets.read_mask(tmp_path), "Save them again")
    _mask(tmp_path / "b.png")
    assert datasets.read_mask(tmp_path).sum() == 1
    _mask(tmp_path / "b.png", values=(1, 255))
    refusal(lambda: datasets.read_mask(tmp_path), "Save it again, with 0 there")
    _mask(tmp_path / "b.png", values=(0, 255))
    assert datasets.read_mask(tmp_path).sum() == 1


# ---- the detector


@follows("Use numpy.where(is_normal, 1, -1), or leave y out if all images are normal.")
def test_labels(make, normal, anomalous):
    X, is_normal = np.concatenate([normal[:3], anomalous[:2]]), np.array([True, True, True, False, False])
    refusal(lambda: make().fit(X, is_normal), "numpy.where(is_normal, 1, -1)", error=ValueError)
    expected = make().fit(normal[:3]).offset_
    assert make().fit(X, np.where(is_normal, 1, -1)).offset_ == expected


@follows("Pass +1 for normal and -1 for anomalous rows.")
def test_labels_of_rows(make):
    rows = np.random.default_rng(0).normal(size=(6, 30))
    warning_of(lambda: make().fit(rows, [0, 0, 1, 1, 1, 1]), "Pass +1 for normal and -1")
    assert len(quietly(lambda: make().fit(rows, [-1, -1, 1, 1, 1, 1])).fitted_.names) == 4


@follows("cannot be set: it is a result of `fit`. Change a parameter, and fit again.")
def test_fitted_attributes_are_read_only(make, normal):
    det = make().fit(normal[:3])
    refusal(lambda: setattr(det, "evidence_", "embedding"), "Change a parameter, and fit again", error=AttributeError)
    assert det.set_params(evidence="embedding").fit(normal[:3]).evidence_ == "embedding"


@follows("every weight must be a finite number above 0; leave out kinds without weight.")
def test_zero_weights():
    refusal(lambda: parse_evidence({"patch": 1, "ssd": 0}, 0.1), "leave out kinds without weight", error=ValueError)
    assert parse_evidence({"patch": 1}, 0.1)[0] == {"patch": 1}


@follows("Pass init= a trained student without auxiliary, student__n_steps above 0, or evidence='patch'.")
@pytest.mark.parametrize("auxiliary", [None, {"other": stripes(4, seed=5)}])
def test_zero_steps_need_a_student(make, normal, tmp_path, auxiliary):
    det = make(evidence="ssd", student__n_steps=0)
    refusal(lambda: det.fit(normal[:3], auxiliary=auxiliary), "Pass init= a trained student", error=ValueError)
    student = tmp_path / "student.safetensors"
    make(evidence="ssd", student__n_steps=1).fit(normal[:3], auxiliary={"other": stripes(4, seed=5)}).save_student(
        student
    )
    make(evidence="ssd", student__n_steps=0, init=student).fit(normal[:3])
    make(evidence="ssd", student__n_steps=1).fit(normal[:3], auxiliary=auxiliary)
    make(evidence="patch", student__n_steps=0).fit(normal[:3], auxiliary=auxiliary)


@follows("Pass auxiliary= to fit, images of other kinds, to train one for other detectors.")
def test_student_for_other_detectors(make, normal, tmp_path):
    student = tmp_path / "student.safetensors"
    det = make(evidence="ssd").fit(normal[:3])
    refusal(lambda: det.save_student(student), "Pass auxiliary= to fit", error=ValueError)
    det.fit(normal[:3], auxiliary={"other": stripes(4, seed=5)}).save_student(student)
    make(evidence="ssd", student__n_steps=0, init=student).fit(normal[6:9])


@follows("Pass that teacher as backbone and weights, or train a student for this one.", "; pass the same, or another")
def test_student_of_another_teacher(make, toy, normal, tmp_path):
    student, own = tmp_path / "student.safetensors", tmp_path / "own.safetensors"
    auxiliary = {"other": stripes(4, seed=5)}
    make(evidence="ssd").fit(normal[:3], auxiliary=auxiliary).save_student(student)
    other = write_random_weights("toy_resnet", tmp_path / "other.safetensors", seed=1)
    there = {"evidence": "ssd", "weights": other, "student__n_steps": 1}
    refusal(lambda: make(**there, init=student).fit(normal[:3]), "Pass that teacher as backbone and weights")
    make(**{**there, "weights": toy["weights"]}, init=student, backbone="toy_resnet").fit(normal[:3])
    make(**there).fit(normal[:3], auxiliary=auxiliary).save_student(own)
    make(**there, init=own).fit(normal[:3])
    refusal(
        lambda: make(evidence="ssd", init=student, student__weighting="uniform").fit(normal[:3]),
        "pass the same, or another",
    )
    make(evidence="ssd", init=student, student__weighting="attention").fit(normal[:3])
    make(evidence="ssd", student__weighting="uniform").fit(normal[:3], auxiliary=auxiliary).save_student(own)
    make(evidence="ssd", init=own, student__weighting="uniform").fit(normal[:3])


@follows(". They count as one for the threshold; pass different images.", "If it is not normal, fit without it")
def test_support_of_identical_or_outlying_images(make, normal):
    again = np.clip(normal[0].astype(int) + 1, 0, 255).astype(np.uint8)
    warning_of(lambda: make().fit([*normal[:3], again]), "pass different images")
    quietly(lambda: make().fit(normal[:3]))
    outlier = corrupted(normal[3:4])[0] ^ 255
    warning_of(lambda: make().fit([*normal[:3], outlier]), "fit without it")
    quietly(lambda: make().fit(normal[:3]))


@follows("scores are hardly informative. Check the image, and value_range.")
def test_constant_support(make, normal):
    black = np.zeros_like(normal[0])
    warning_of(lambda: make().fit([*normal[:2], black]), "Check the image")
    quietly(lambda: make().fit(normal[:2]))
    warning_of(lambda: make(value_range=(256, 300)).fit(normal[:2]), "and value_range")
    quietly(lambda: make(value_range=(0, 255)).fit(normal[:2]))


@follows("cannot be used here ({error}). Pass")
@pytest.mark.parametrize("device", ["cuda", "cuda:99", "toaster"])
def test_available_device(make, normal, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if device == "cuda" and torch.backends.cuda.is_built() and torch.cuda.device_count():
        pytest.skip("this machine has a GPU, so that 'cuda' can be used")
    message = refusal(lambda: make(device=device).fit(normal[:2]), "cannot be used here", error=ValueError)
    named = re.findall(r"'([^']*)'", message.rpartition("Pass ")[2])
    assert named
    for name in named:
        make(device=name).fit(normal[:2])


@follows("Lower learning_rate (now", "precision='float32'")
def test_diverging_loss(make, normal, monkeypatch):
    det = make(evidence="ssd", student__learning_rate=1e30, student__n_steps=60, precision="float32")
    message = refusal(lambda: det.fit(normal[:4]), "Lower learning_rate (now 1e+30)", error=TrainingError)
    assert "precision=" not in message  # the precision is float32 already
    det.set_params(student__learning_rate=1e-3, student__n_steps=3).fit(normal[:4])
    backward = loop.Training._backward

    def overflows(self, number):
        return backward(self, number) if self.runtime.training_dtype is None else np.inf

    monkeypatch.setattr(loop.Training, "_backward", overflows)
    det = make(evidence="ssd", precision="bfloat16")
    refusal(lambda: det.fit(normal[:4]), "or use precision='float32'", error=TrainingError)
    det.set_params(precision="float32").fit(normal[:4])


@follows("queries a step. Lower batch_size or image_size.")
def test_out_of_memory_in_training(make, normal, monkeypatch):
    original = loop.episode_loss

    def few_only(student, episode, *rest):
        if len(episode.query_inputs) * max(target.shape[-1] for target in episode.query_targets) > 8:
            raise MemoryError
        return original(student, episode, *rest)

    monkeypatch.setattr(loop, "episode_loss", few_only)
    det = make(evidence="ssd", student__batch_size=4)
    with pytest.warns(UserWarning, match="Memory ran out"):
        refusal(lambda: det.fit(normal[:4]), "Lower batch_size or image_size", error=OutOfMemoryError)
    quietly(lambda: det.set_params(student__batch_size=1).fit(normal[:4]))
    quietly(lambda: det.set_params(student__batch_size=2, image_size=16).fit(normal[:4]))


@follows("images. Lower image_size, or use a smaller backbone.")
def test_out_of_memory_in_the_teacher(make, normal, monkeypatch, tmp_path):
    forward = teacher.Backbone.forward

    def small_only(self, images):
        if images.shape[-1] > 16 and len(images) > 1 and name == "toy_resnet":
            raise MemoryError
        return forward(self, images)

    monkeypatch.setattr(teacher.Backbone, "forward", small_only)
    name = "toy_resnet"
    with pytest.warns(UserWarning, match="Memory ran out"):
        refusal(lambda: make().fit(normal[:3]), "Lower image_size, or use a smaller backbone", error=MemoryError)
    quietly(lambda: make(image_size=16).fit(normal[:3]))
    name = "test_resnet"
    weights = write_random_weights(name, tmp_path / "w.safetensors")
    quietly(lambda: make(backbone=name, weights=weights).fit(normal[:3]))


@follows("Lower image_size, use a smaller backbone, or free memory.")
def test_out_of_memory_in_building(toy, monkeypatch, tmp_path):
    create = timm.create_model

    def small_networks_only(name, **options):
        if name == "toy_resnet":
            raise MemoryError
        return create(name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(timm, "create_model", small_networks_only)
        refusal(lambda: build_backbone("toy_resnet", 32, weights=toy["weights"]), "smaller backbone", error=MemoryError)
        weights = write_random_weights("test_resnet", tmp_path / "w.safetensors")
        build_backbone("test_resnet", 32, weights=weights)
    build_backbone("toy_resnet", 32, weights=toy["weights"])


# ---- teachers


def test_image_size_for_patches(tmp_path):
    weights = write_random_weights("test_vit3", tmp_path / "w.safetensors")
    fitting = "The nearest fitting sizes are image_size=64 and image_size=80."
    refusal(lambda: build_backbone("test_vit3", 65, weights=weights), fitting, error=ValueError)
    build_backbone("test_vit3", 64, weights=weights)
    build_backbone("test_vit3", 80, weights=weights)


@follows("Pass layers='auto' or a tuple of these, or the name of a transformer as backbone")
def test_last_layer_of_a_network_without_tokens(make, normal, tmp_path):
    message = refusal(lambda: make(layers="last").fit(normal[:3]), "stages 1 to 4", error=ValueError)
    assert "tuple of these" in message
    weights = write_random_weights("toy_dinov3", tmp_path / "w.safetensors")
    for changed in ({"layers": "auto"}, {"layers": (1, 4)}, {"backbone": "toy_dinov3", "weights": weights}):
        make(**{"layers": "last", **changed}).fit(normal[:3])


@follows("layers or more, or evidence=('patch', 'embedding')")
def test_too_few_layers_for_a_student(make, normal):
    options = {"layers": (2, 3), "evidence": "tsd"}
    refusal(lambda: make(**options).fit(normal[:3]), "Pass 3 layers or more", error=ValueError)
    make(**{**options, "layers": (1, 2, 4)}).fit(normal[:3])
    make(**{**options, "evidence": ("patch", "embedding")}).fit(normal[:3])


def test_missing_layers(make, normal, capsys, tmp_path):
    message = refusal(lambda: make(layers=(3, 9)).fit(normal[:3]), "choice is layers=(3, 4)", error=ValueError)
    assert "has stages 1 to 4" in message
    make(layers=(3, 4)).fit(normal[:3])
    for i, image in enumerate(normal[:2]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    command = ["fit", str(tmp_path), "-o", str(tmp_path / "m.fsad"), "--image-size", "32", "--quiet"]
    assert cli.main([*command, "--layers", "3,9"]) == 2
    assert "choice is --layers 3,4" in capsys.readouterr().err
    assert cli.main([*command, "--layers", "3,4"]) == 0
    assert cli.main([*command, "--layers", "last", "--force"]) == 2
    assert "--layers last was given, but 'compact' has no tokens" in capsys.readouterr().err


@follows("Pass the path of a safetensors file in timm's naming for this network, or weights=None")
@pytest.mark.parametrize("wrong", ["missing", "pickle", "damaged", "part", "nan"])
def test_invalid_weights_file(tmp_path, wrong):
    own = PACKAGED["compact"].teacher
    file = tmp_path / ("w.pth" if wrong == "pickle" else "w.safetensors")
    tensors = load_file(own)
    if wrong == "damaged":
        file.write_bytes(own.read_bytes()[:-9])
    elif wrong == "part":
        save_file(dict(list(tensors.items())[:9]), file)
    elif wrong == "nan":
        save_file({k: v * np.nan if v.is_floating_point() else v for k, v in tensors.items()}, file)
    elif wrong == "pickle":
        torch.save({}, file)
    det = DualDistillationDetector(weights=file, image_size=32, evidence="patch")
    refusal(lambda: det.fit(stripes(2)), "or weights=None to use the backbone's own", error=WeightsNotFoundError)
    save_file(tensors, tmp_path / "whole.safetensors")
    det.set_params(weights=tmp_path / "whole.safetensors").fit(stripes(2))
    det.set_params(weights=None).fit(stripes(2))


@follows("Pass weights=FILE, a safetensors file in timm's naming for this network.", "{ways}")
@pytest.mark.parametrize("wrong", ["part", "nan"])
def test_weights_from_the_hub(toy, tmp_path, monkeypatch, wrong):
    """With weights=None, the message has other advice."""
    tensors = load_file(toy["weights"])
    cached = tmp_path / "cached.safetensors"
    if wrong == "part":
        save_file(dict(list(tensors.items())[:5]), cached)
    else:
        save_file({k: v * np.nan if v.is_floating_point() else v for k, v in tensors.items()}, cached)
    monkeypatch.setattr(teacher, "cached_weights", lambda *_: cached)
    message = refusal(lambda: build_backbone("toy_resnet", 32), "Pass weights=FILE", error=WeightsNotFoundError)
    assert "weights=None" not in message
    build_backbone("toy_resnet", 32, weights=toy["weights"])


@follows("Pass a name from timm.list_models(), or import the module that registers it.")
def test_unknown_network(make, normal):
    message = refusal(lambda: make(backbone="toy_resnet_of_mine").fit(normal[:2]), "timm.list_models()")
    assert "weights=" not in message
    assert "toy_resnet" in timm.list_models()
    make(backbone="toy_resnet").fit(normal[:2])

    def toy_resnet_of_mine(pretrained: bool = False, **options):
        return toy_resnet(pretrained, **options)

    timm.models.register_model(toy_resnet_of_mine)
    make(backbone="toy_resnet_of_mine").fit(normal[:2])


@follows("Pass one of these names.")
def test_unknown_tag(tmp_path):
    weights = write_random_weights("resnet18", tmp_path / "w.safetensors")
    message = refusal(lambda: build_backbone("resnet18.mine", 32, weights=weights), "Pass one of these names")
    named = re.search(r"only (\S+), ", message)[1]
    build_backbone(named, 32, weights=weights)


@follows("Pass {options_text}, on a machine with network access or with the file in the hub's cache.")
def test_weights_of_another_network(tmp_path):
    wide = write_random_weights("toy_resnet", tmp_path / "wide.safetensors", channels=(8, 16, 24, 40))
    refusal(lambda: build_backbone("toy_resnet", 32, weights=wide), "Pass weights=FILE")
    build_backbone("toy_resnet", 32, weights=write_random_weights("toy_resnet", tmp_path / "w.safetensors"))


@follows("Set weights= to the file used for fit, or fit again.")
@pytest.mark.parametrize("how", ["weights", "fit"])
def test_replaced_weights(make, normal, anomalous, tmp_path, how):
    weights = write_random_weights("toy_resnet", tmp_path / "w.safetensors")
    det = make(weights=weights).fit(normal[:3])
    expected = det.score_samples(anomalous)
    data = pickle.dumps(det)
    shutil.copy(weights, tmp_path / "used then.safetensors")
    write_random_weights("toy_resnet", weights, seed=1)
    det = pickle.loads(data)
    refusal(lambda: det.score_samples(anomalous), "Set weights= to the file used for fit, or fit again")
    if how == "fit":
        det.fit(normal[:3]).score_samples(anomalous)
    else:
        found = det.set_params(weights=tmp_path / "used then.safetensors").score_samples(anomalous)
        np.testing.assert_array_equal(found, expected)


# ---- files


@follows("Pass force=True to replace it, or another name", "is a folder. Name a file in it", "Create it first")
def test_destination_that_exists(make, normal, tmp_path):
    det = make().fit(normal[:2])
    path = tmp_path / "m.fsad"
    det.save(path)
    refusal(lambda: det.save(path), "Pass force=True to replace it, or another name")
    det.save(path, force=True)
    det.save(tmp_path / "other.fsad")
    message = refusal(lambda: det.save(tmp_path), "Name a file in it")
    det.save(message.partition("for instance ")[2])
    refusal(lambda: det.save(tmp_path / "new" / "m.fsad"), "Create it first")
    (tmp_path / "new").mkdir()
    det.save(tmp_path / "new" / "m.fsad")


@follows("Choose another folder or name", "are free. Free space, or write elsewhere", "are still valid. Free space")
def test_destination_without_permission_or_space(make, normal, tmp_path, monkeypatch):
    det = make().fit(normal[:2])
    (tmp_path / "other").mkdir()
    refusal(lambda: det.save(tmp_path / ("x" * 300)), "Choose another folder or name", error=OutputError)
    det.save(tmp_path / "x")
    refusal(lambda: checkpoints.check_destination(tmp_path / "y", force=False, least=1 << 62), "or write elsewhere")
    checkpoints.check_destination(tmp_path / "y", force=False, least=10)
    replace = checkpoints.os.replace

    def full(source, target):
        if Path(target).parent == tmp_path:
            raise OSError(checkpoints.errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.os, "replace", full)
        refusal(lambda: det.save(tmp_path / "m.fsad"), "Free space, or write elsewhere")
        det.save(tmp_path / "other" / "m.fsad")
    det.save(tmp_path / "m.fsad")


@follows("Copy it again from its source, or save the detector again.", "Write one with {made_by}.")
def test_damaged_file(make, normal, tmp_path):
    det = make().fit(normal[:2])
    path, whole = tmp_path / "m.fsad", tmp_path / "whole.fsad"
    det.save(whole)
    data = bytearray(whole.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    refusal(lambda: det.load(path), "Copy it again from its source, or save the detector again")
    shutil.copy(whole, path)
    det.load(path)
    path.write_bytes(data)
    det.save(path, force=True)
    det.load(path)
    save_file({"x": torch.zeros(1)}, path)
    refusal(lambda: det.load(path), "Write one with DualDistillationDetector.save()")
    det.save(path, force=True)
    det.load(path)


@follows("or make it again with {made_by}.")
def test_file_of_another_version(make, normal, tmp_path):
    path = tmp_path / "m.fsad"
    det = make().fit(normal[:2])
    checkpoints.save(path, {"x": torch.zeros(1)}, "fewshot_ad model 99", {})
    refusal(lambda: det.load(path), "or make it again with DualDistillationDetector.save()")
    det.save(path, force=True)
    det.load(path)


@follows("cannot be saved: {error}. Fit with a plain value.")
def test_parameter_that_cannot_be_saved(make, normal, tmp_path):
    det = make(lam=Fraction(1, 10)).fit(normal[:2])
    refusal(lambda: det.save(tmp_path / "m.fsad"), "lam=Fraction(1, 10) cannot be saved", "Fit with a plain value")
    make(lam=0.1).fit(normal[:2]).save(tmp_path / "m.fsad")


@follows("Save the detector with support=True where it was fitted, or fit again on all images.")
def test_partial_fit_without_support_images(make, normal, tmp_path):
    det = make().fit(normal[:2])
    det.save(tmp_path / "m.fsad")
    loaded = det.load(tmp_path / "m.fsad")
    refusal(lambda: loaded.partial_fit(normal[2:4]), "with support=True where it was fitted", error=ValueError)
    det.save(tmp_path / "with.fsad", support=True)
    assert len(det.load(tmp_path / "with.fsad").partial_fit([normal[2], normal[4]]).fitted_.names) == 4
    assert len(loaded.fit(normal[:4]).fitted_.names) == 4


@follows("Either pass load(..., weights=FILE)")
def test_weights_that_were_moved(make, normal, tmp_path):
    weights = write_random_weights("toy_resnet", tmp_path / "w.safetensors")
    det = make(weights=weights).fit(normal[:2])
    det.save(tmp_path / "m.fsad")
    expected = det.score_samples(normal)
    weights.rename(tmp_path / "moved.safetensors")
    refusal(lambda: det.load(tmp_path / "m.fsad"), "pass load(..., weights=FILE)")
    again = det.load(tmp_path / "m.fsad", weights=tmp_path / "moved.safetensors")
    np.testing.assert_array_equal(again.score_samples(normal), expected)


@follows("Import the module that registers it")
def test_model_of_a_custom_network(make, normal, tmp_path, monkeypatch):
    det = make().fit(normal[:2])
    det.save(tmp_path / "m.fsad")
    with monkeypatch.context() as patched:
        patched.delitem(timm.models._registry._model_entrypoints, "toy_resnet")
        refusal(lambda: det.load(tmp_path / "m.fsad"), "Import the module that registers it")
    det.load(tmp_path / "m.fsad")


@follows("A pickle is only for the release that wrote it; use det.save(path) and DualDistillationDetector.load(path).")
def test_pickle_of_another_release(make, normal, tmp_path, monkeypatch):
    det = make().fit(normal[:2])
    data = pickle.dumps(det)
    det.save(tmp_path / "m.fsad")
    monkeypatch.setattr(detector, "__version__", "9.9")
    warning_of(lambda: pickle.loads(data), "use det.save(path)", category=VersionWarning)
    again = quietly(lambda: DualDistillationDetector.load(tmp_path / "m.fsad"))
    np.testing.assert_array_equal(again.score_samples(normal), det.score_samples(normal))


@follows(
    "Rename it, or pass force=True to replace it.", "or write .csv.", "Pass force=True to replace it, or another fo"
)
def test_rows_of_an_interrupted_run(tmp_path, monkeypatch):
    out = tmp_path / "s.csv"
    table = Table(out)
    table.partial.write_text("rows")
    refusal(lambda: table.check(force=False), "Rename it, or pass force=True")
    table.check(force=True)
    table.partial.rename(tmp_path / "rows.csv")
    table.check(force=False)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow", None)

        refusal(import_parquet, "or write .csv", error=MissingExtraError)
        with table:
            table.write(Row("a.png", 0.5, 1.0, 1, (1, 2), None))
    assert out.exists()


# ---- pretraining


@pytest.fixture
def run(toy, tmp_path):
    for i in range(2):
        save_pictures(tmp_path / "tasks" / f"task{i}", stripes(4, size=32, seed=i))

    def call(**changes):
        return pretrain(**{
            "tasks": tmp_path / "tasks", "out": tmp_path / "student.safetensors", "backbone": toy["backbone"],
            "weights": toy["weights"], "image_size": 32, "n_steps": 2, "batch_size": 4, "verbose": 0, **changes,
        })  # fmt: skip

    return call


@follows("; pass a name that ends in .safetensors.", "Pass a folder with one sub-folder of normal images for each task")
def test_output_name_of_pretrain(run, tmp_path):
    refusal(lambda: run(out=tmp_path / "student"), "pass a name that ends in .safetensors", error=ValueError)
    refusal(lambda: run(tasks=tmp_path / "tasks" / "task0" / "0.png"), "one sub-folder of normal images for each task")
    assert run().exists()


@follows("Pass architecture='decoder', or engine='local'.")
def test_encoder_with_ray(run):
    ray = {"architecture": "encoder", "engine": "ray"}
    refusal(lambda: run(**ray), "or engine='local'", error=ValueError)
    run(**{**ray, "engine": "local"})


@follows(
    "Pass resume=True (--resume) to continue from there, or remove it to start again.", "Pass those, or another out.",
    "Remove it to start again.", "once this file is removed",
)  # fmt: skip
def test_checkpoint_of_an_earlier_pretraining(run, tmp_path, monkeypatch):
    out = run()
    refusal(run, "Pass resume=True (--resume) to continue from there, or remove it")
    run(resume=True)
    refusal(lambda: run(resume=True, lam=0.5), "Pass those, or another out")
    run(resume=True, lam=0.1)
    run(lam=0.5, out=tmp_path / "another.safetensors")
    out.unlink()
    run()
    out.unlink()
    partial = tmp_path / "student.safetensors.partial"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pretraining, "_run", lambda training, looks, best, keep, *_: (training.step(), keep(), stop()))
        with pytest.raises(KeyboardInterrupt):
            run()
    tensors = load_file(partial)
    with safe_open(partial, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith("student")}, partial, metadata)
    refusal(lambda: run(resume=True), "Remove it to start again")
    partial.unlink()
    run(resume=True)
    out.unlink()
    save_file(tensors, partial, {"format": "another"})
    refusal(lambda: run(resume=True), "once this file is removed")
    partial.unlink()
    run()


@follows("Images must lie directly in the task's folder.")
def test_task_with_nested_images(run, tmp_path):
    save_pictures(tmp_path / "tasks" / "deep" / "below", stripes(3, size=32))
    warning_of(run, "Images must lie directly in the task's folder", category=TaskSkippedWarning)
    for path in (tmp_path / "tasks" / "deep" / "below").iterdir():
        path.rename(path.parent.parent / path.name)
    (tmp_path / "tasks" / "deep" / "below").rmdir()
    quietly(lambda: run(out=tmp_path / "other.safetensors"))


# ---- other tools


@follows("are not finite; leave them out, with their masks.")
def test_maps_with_nan():
    maps, masks = np.random.default_rng(0).random((3, 8, 8)), np.zeros((3, 8, 8), bool)
    masks[:, :2], maps[1] = True, np.nan
    refusal(lambda: metrics.aupro(masks, maps), "leave them out, with their masks", error=ValueError)
    metrics.aupro(masks[[0, 2]], maps[[0, 2]])


@follows("Write numpy.where(is_anomalous, -1, 1).", "are not finite; leave them out, with their labels.")
def test_invalid_labels_and_scores():
    is_anomalous, scores = np.array([False, True, True]), np.array([0.1, np.nan, 0.9])
    refusal(lambda: metrics.f1_max(is_anomalous, scores), "Write numpy.where(is_anomalous, -1, 1)", error=ValueError)
    y = np.where(is_anomalous, -1, 1)
    refusal(lambda: metrics.f1_max(y, scores), "leave them out, with their labels", error=ValueError)
    assert metrics.f1_max(y[[0, 2]], scores[[0, 2]]).value == 1


@follows("is not a folder. Pass a folder of images, or a list of paths.", "There are no image files in {source}")
def test_sources_for_a_cluster(normal, tmp_path):
    (path,) = save_pictures(tmp_path / "a", normal[:1])
    refusal(lambda: distributed.list_files(path), "Pass a folder of images, or a list of paths")
    refusal(lambda: distributed.list_files([]), "Pass at least one")
    assert distributed.list_files(path.parent) == distributed.list_files([path]) == [str(path)]


@follows("Install the extra: {INSTALL}.", 'Install the extra: pip install "fewshot-ad[plot]".')
@pytest.mark.parametrize("module", ["pydicom", "nibabel", "matplotlib"])
def test_missing_extra(make, normal, tmp_path, monkeypatch, module):
    """Hiding a module and restoring it stands in for its installation."""
    det = make().fit(normal[:3])
    (tmp_path / "a.dcm").write_bytes(_WHOLE)
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(GREY.astype(np.float32), np.eye(4)), tmp_path / "a.nii")

    def call():
        if module == "matplotlib":
            return plotting.AnomalyMapDisplay.from_estimator(det, normal[:1])
        return read([tmp_path / ("a.dcm" if module == "pydicom" else "a.nii")])

    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, module, None)
        refusal(call, 'pip install "fewshot-ad[', error=MissingExtraError)
    call()


@follows("already exists. Remove it, or pass another name.")
def test_existing_output_of_a_cluster(make, normal, tmp_path, monkeypatch):
    """Only the check is tested, as the rest needs Ray."""
    det, out = make().fit(normal[:2]), tmp_path / "scores"
    out.mkdir()
    monkeypatch.setitem(sys.modules, "ray", None)
    refusal(lambda: distributed.score(det, ["a.png"], out=out), "Remove it, or pass another name", error=ValueError)
    refusal(lambda: distributed.score(det, ["a.png"], out=tmp_path / "x"), error=MissingExtraError)
    out.rmdir()
    refusal(lambda: distributed.score(det, ["a.png"], out=out), error=MissingExtraError)


@follows('Install the extra: pip install "fewshot-ad[export]"')
def test_extra_for_export(make, normal, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    det = make(evidence="patch", image_size=(32, 32)).fit(normal[:2])
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxscript", None)
        refusal(lambda: det.export(tmp_path / "m.onnx"), 'pip install "fewshot-ad[export]"', error=MissingExtraError)
    det.export(tmp_path / "m.onnx")


@follows('Install the extra: pip install "fewshot-ad[ray]"')
def test_extra_for_ray(monkeypatch):
    pytest.importorskip("ray")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "ray", None)
        refusal(distributed.connect, 'pip install "fewshot-ad[ray]"', error=MissingExtraError)
    monkeypatch.setattr("ray.is_initialized", lambda: True)  # none is started here
    assert distributed.connect().__name__ == "ray"


@follows("Install fewshot-ad again")
def test_altered_packaged_weights(normal, tmp_path, monkeypatch):
    whole = packaged.PACKAGED["compact"]
    copies = [Path(shutil.copy(path, tmp_path)) for path in (whole.teacher, whole.student)]
    monkeypatch.setitem(packaged.PACKAGED, "compact", packaged.Packaged(whole.network, *copies, whole.hashes))
    copies[0].write_bytes(copies[0].read_bytes()[:-1])
    refusal(lambda: DualDistillationDetector().fit(normal[:2]), "Install fewshot-ad again", error=CheckpointError)
    shutil.copy(whole.teacher, tmp_path)  # stands in for an installation
    DualDistillationDetector().fit(normal[:2])


@follows("was saved by a release whose threshold was not usable")
def test_unusable_file_of_format_1(tmp_path):
    old, path = Path(__file__).parent / "data" / "model_1.fsad", tmp_path / "old.fsad"
    tensors, header = checkpoints.load(old, "fewshot_ad model 1", "")
    del header["sha256"]
    header["parameters"] |= {"contrast": 1.0, "aggregation": "mean"}
    digest = model_file._digest(header, tensors)
    checkpoints.save(path, tensors, "fewshot_ad model 1", {**header, "sha256": digest})
    refusal(lambda: DualDistillationDetector.load(path), "Fit again", error=CheckpointError)
    det = DualDistillationDetector(contrast=1.0, aggregation="mean", image_size=64, random_state=0).fit(stripes(3))
    det.save(path, force=True)
    assert np.isfinite(DualDistillationDetector.load(path).decision_function(stripes(2, seed=3))).all()


# ---- the command


@pytest.fixture
def folders(tmp_path, make, normal):
    """A model, and two folders with an image of the same name."""
    make(weights=None, backbone="compact", image_size=32).fit(normal[:3]).save(tmp_path / "m.fsad")
    for name, image in zip("ab", normal[4:], strict=False):
        save_pictures(tmp_path / "new" / name, [image])
    save_pictures(tmp_path / "support", normal[:3])
    return tmp_path


@follows(
    "Name their common folder instead.", "Pass force=True to replace it, or another folder.",
    "and --support was given as well. Leave one of them out.", "Name image files, or folders of them.",
    "Name the model first.", "Name a file from `fewshot-ad fit` first, then the images; or pass --support",
)  # fmt: skip
def test_commands(folders, capsys):
    model, new, a, out = (str(folders / name) for name in ("m.fsad", "new", "new/a", "maps"))
    both, support = [a, str(folders / "new" / "b")], ["--support", str(folders / "support")]

    def refused(*words: str) -> str:
        assert cli.main([*words, "--quiet"]) == 2
        return capsys.readouterr().err

    def done(*words: str) -> None:
        assert cli.main([*words, "--quiet"]) == 0

    assert "Name their common folder instead" in refused("map", model, *both, "-o", out)
    done("map", model, new, "-o", out)
    assert "Pass --force to replace it, or another folder" in refused("map", model, new, "-o", out)
    done("map", model, new, "-o", out, "--force")
    done("map", model, new, "-o", f"{out}2")
    assert "Leave one of them out" in refused("score", model, new, *support)
    done("score", model, new)
    done("score", new, *support)
    assert "Name image files, or folders of them" in refused("score", model, f"{new}/none.png")
    done("score", model, f"{new}/a/0.png", f"{new}/b")
    assert "Name the model first" in refused("score", new, model)
    assert "then the images; or pass --support" in refused("score", new)


@follows("but a pipe or a device. Write it to a file, and name that.")
@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs devices")
def test_device_as_input(folders, capsys):
    assert cli.main(["score", str(folders / "m.fsad"), "/dev/null", "--quiet"]) == 2
    assert "Write it to a file, and name that" in capsys.readouterr().err
    assert cli.main(["score", str(folders / "m.fsad"), str(folders / "new" / "a" / "0.png"), "--quiet"]) == 0


def test_warnings_name_the_options_of_the_command(folders, normal, capsys):
    paths = [folders / f"deep{i}.png" for i in range(3)]
    for path, image in zip(paths, normal, strict=False):
        Image.fromarray(image[..., 0].astype(np.uint16) * 16).save(path)
    command = ["fit", *map(str, paths), "-o", str(folders / "deep.fsad"), "--image-size", "32", "--quiet"]
    assert cli.main(command) == 0
    assert "for instance --value-range 0 4095" in capsys.readouterr().err
    assert cli.main([*command, "--force", "--value-range", "0", "4095"]) == 0
    assert "range of values" not in capsys.readouterr().err


@follows("Free memory, or pass fewer images at once.")
def test_out_of_memory_in_a_command(folders, monkeypatch, capsys):
    fit = DualDistillationDetector.fit

    def few_only(self, X, *rest):
        if len(X) > 2:
            raise MemoryError
        return fit(self, X, *rest)

    paths = sorted(map(str, (folders / "support").iterdir()))
    command = ["fit", "-o", str(folders / "new.fsad"), "--image-size", "32", "--quiet"]
    with monkeypatch.context() as patched:
        patched.setattr(DualDistillationDetector, "fit", few_only)
        assert cli.main([*command, *paths]) == 2
        assert "Free memory, or pass fewer images at once" in capsys.readouterr().err
        assert cli.main([*command, *paths[:2]]) == 0
    assert cli.main([*command, "--force", *paths]) == 0


@follows("was not scored: memory ran out. Score it again with more memory free.")
def test_out_of_memory_while_scoring(make, normal, monkeypatch):
    det = make().fit(normal[:3])
    session = det.session()
    read = type(session.scorer).read
    calls = []

    def once(self, *arguments):
        calls.append(1)
        if len(calls) > 1:
            raise MemoryError
        return read(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(type(session.scorer), "read", once)
        many = list(normal) * 2
        found = list(session.score_each(many, keep=True))
        failed = [i for i, one in enumerate(found) if one.error]
        assert "Score it again with more memory free" in found[failed[0]].error
    again = list(session.score_each([many[i] for i in failed]))
    assert not any(one.error for one in again)


# ---- all advice

_VERBS = (
    "check choose continue convert copy correct create download export fetch fit fix free give import install leave "
    "let lower make mend name open pass put raise read remove rename replace resize save score set take use write"
).split()
_IMPERATIVE = re.compile(
    rf"(?:^|[.?:] )(?:{'|'.join(verb.capitalize() for verb in _VERBS)})\b"
    rf"|(?:[;:,] |[;,] or | or | either )(?:{'|'.join(_VERBS)})\b(?! of| in)"
)
# Advice that is followed in other test files.
ELSEWHERE = {
    "It looks channels-first: pass array.transpose(0, 2, 3, 1)": "test_images::test_advice_about_channels",
    "numpy.nan_to_num": "test_images::test_advice_about_nan",
    "float in [0, 1]. Pass value_range=(low, high)": "test_images::test_advice_about_a_scale",
    "raise PIL.Image.MAX_IMAGE_PIXELS": "test_images::test_advice_about_bombs",
    "is a folder. Pass its files": "test_images::test_advice_about_a_folder",
    "is a pipe or a device, not a regular file": "test_streams::test_advice_about_a_pipe",
    "Write it to a file, and pass": "test_streams::test_several_images_in_memory",
    "Pass its bytes: await upload.read()": "test_streams::test_async_upload",
    "Open the file in binary mode": "test_streams::test_text_mode_is_refused",
    "Read it once, and pass its bytes": "test_streams::test_empty_or_exhausted_pipe",
    "Pass a file that is open for reading in binary mode": "test_streams::test_members_of_an_archive",
    "Pass None for an image without one": "test_plotting::test_masks_are_outlined_on_the_map",
    "If it lies on its side, save it again upright": "test_pictures::test_advice_about_the_orientation",
    "pass aspect='square', or image_size=(H, W)": "test_proportions::test_network_for_squares_only",
    "Fit with aspect='square', or with image_size=(H, W)": "test_export::test_network_with_padding_by_size",
    "save it as a TIFF for the extra": "test_pictures::test_advice_about_depth",
    "Set it with pydicom, ds = pydicom.dcmread(path)": "test_dicom::test_missing_element_is_named",
    "Save its images as pages, for instance": "test_formats::test_imagej_stack_in_one_page",
    "Rename the other.": "test_layouts::test_good_and_ok",
    "Copy it from the data set, or make an empty one": "test_layouts::test_dagm_without_labels",
    "{what}. Rename or remove it.": "test_layouts::test_masks_without_images",
    "Copy it from the data set, or remove the image.": "test_layouts::test_kolektorsdd2_image_without_a_mask",
    "Put the data set's table there.": "test_layouts::test_visa_without_its_table",
    "of its rows needs the columns": "test_layouts::test_visa_without_its_table",
    "Rename {root} as one of them.": "test_layouts::test_visa_without_its_table",
    "Copy them from the data set.": "test_layouts::test_missing_listed_images",
    "and mask_path of each image. Copy it again.": "test_layouts::test_realiad_without_its_list",
    "Put the data set's realiad_jsons/ there": "test_layouts::test_realiad_without_its_list",
    "or name the folders good/ and bad/.": "test_layouts::test_folders_named_as_in_realiad",
    "{named}. Pass one of them.": "test_layouts::test_root_of_a_data_set",
    "Run `fewshot-ad weights {name} --to DIR` on a machine": "test_fetching::test_offline_advice_works",
    "Name {stored} as the backbone, or use the weights": "test_fetching::test_weights_with_another_tag",
    "Name a folder with --to.": "test_fetching::test_existing_destinations",
    "Pass a name from timm.list_pretrained()": "test_fetching::test_names_without_weights",
    "Accept them at {": "test_fetching::test_gated_weights",
    "Remove it, and run the command again.": "test_fetching::test_file_differs_from_the_hub",
    "Download {source.url} on a machine with network access": "test_hub::test_named_path_works",
    "Continue with the same arguments and resume=True.": "test_pretraining::test_signals_write_a_checkpoint",
    "Pass the name of a new folder with -o.": "test_cli::test_demo",
    "fit the detector on normal images alone.": "test_labelled::test_too_few_labels",
    "Give one of them a weight above 0": "test_evidence::test_no_weight_is_an_error",
    "Pass more of them, or set n_support to at most": "test_labels::test_too_few_normal_images",
    "Do not pass --no-keep-support to fit, or": "test_update::test_model_without_support_images",
    "Save the detector with support=True where it was fitted, or": "test_update::test_model_without_support_images",
    "{len(new.values)}. Pass more of them.": "test_drift::test_too_few_images",
    "detector with support=True where it was fitted, fit on several images, or pass normal images as reference.": (
        "test_drift::test_single_support_image"
    ),
    "so it has no tokens. Pass foreground=False, or the name of a transformer as backbone.": (
        "test_foreground::test_network_without_tokens"
    ),
    "which a DICOM object that refers to it needs. Set it with pydicom": "test_dicom_out::test_required_elements",
    "Fix that with pydicom, or use --format pictures.": "test_dicom_out::test_sources_that_highdicom_refuses",
    "Name only DICOM files, or use --format pictures.": "test_dicom_out::test_source_that_is_not_dicom",
    "Call calibrate(X, y) after fit": "test_calibrate::test_predict_proba_needs_both_classes",
    "pass FrozenEstimator(det)": "test_calibrate::test_clones_are_not_calibrated",
    "Pass them in X, labelled -1 in y.": "test_calibrate::test_advice_about_images",
    "Name them after --bad.": "test_calibrate::test_command_errors",
    "Pass some of them too.": "test_calibrate::test_advice_about_images",
    "Pass normal images that the detector was not fitted on.": "test_calibrate::test_advice_about_images",
    "Check the labels; +1 is normal": "test_calibrate::test_inverted_labels",
    "Leave out the one that is labelled wrongly.": "test_calibrate::test_repeated_images_count_once",
    "For a guarantee pass at least": "test_calibrate::test_too_few_images_for_a_guarantee",
    "Call calibrate again": "test_calibrate::test_partial_fit_rescales_without_calibration_images",
}
# Advice that a test cannot follow.
EXEMPT = {
    "Continue from the last checkpoint": "workers of a cluster that are lost several times",
    "Install the release that wrote it": "another release",
}


def texts() -> Iterator[tuple[str, str]]:
    """Yield all strings of the package except docstrings, with their places."""
    root = Path(fewshot_ad.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.name in ("arguments.py", "demo.py"):  # help, not messages
            continue
        inside: set[int] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                inside.add(id(node.value))  # a docstring
            if isinstance(node, ast.JoinedStr):
                inside.update(id(part) for part in node.values)
                parts = (p.value if isinstance(p, ast.Constant) else f"{{{ast.unparse(p.value)}}}" for p in node.values)
                text = "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                text = node.value
            else:
                continue
            if text.count(" ") > 1:
                yield f"{path.relative_to(root)}:{node.lineno}", text


def test_all_advice_is_followed():
    """Every string with advice has a test that follows it, and no entry of the tables is obsolete."""
    known = {**FOLLOWED, **ELSEWHERE, **EXEMPT}
    found = [(place, text) for place, text in texts() if _IMPERATIVE.search(text)]
    assert len(found) > 100
    unfollowed = [f"{place}: {text}" for place, text in found if not any(part in text for part in known)]
    assert not unfollowed, "\n".join(unfollowed)
    source = "\n".join(text for _, text in texts())
    assert [part for part in known if part not in source] == []


def test_referenced_tests_exist():
    for reference in ELSEWHERE.values():
        module, name = reference.split("::")
        text = Path(__file__).with_name(f"{module}.py").read_text()
        assert f"def {name}(" in text, reference
