"""Maps as DICOM objects: they are read with pydicom, and compared with their sources."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from format_trials import dicom_bytes
from helpers import corrupted, stripes
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

from fewshot_ad import DualDistillationDetector, cli
from fewshot_ad.data import images
from fewshot_ad.data.listing import list_images
from fewshot_ad.dicom_out import Writer, anomalous
from fewshot_ad.exceptions import ImageError, MissingExtraError

H, W = 40, 48
TURNED = [0.8, 0.6, 0, 0, 0, -1]
PATIENT = {
    "PatientID": "P7", "PatientName": "Müller^Jörg", "PatientBirthDate": "19700102", "PatientSex": "O",
    "StudyInstanceUID": "1.2.826.0.1.7", "StudyID": "S1", "StudyDate": "20260102", "StudyTime": "101112",
    "AccessionNumber": "A3", "ReferringPhysicianName": "Doe^Jane", "SpecificCharacterSet": "ISO_IR 192",
}  # fmt: skip


def grey(n: int, seed: int = 0) -> np.ndarray:
    return stripes(n, W, seed)[:, :H, :, 0]


def item(**elements: Any) -> Dataset:
    found = Dataset()
    for name, value in elements.items():
        setattr(found, name, value)
    return found


def ct(values: np.ndarray, i: int = 0, **fields: Any) -> bytes:
    fields = {
        "SOPClassUID": uid.CTImageStorage, "SOPInstanceUID": f"1.2.826.0.1.8.{i + 1}",
        "SeriesInstanceUID": "1.2.826.0.1.9", "Modality": "CT", "FrameOfReferenceUID": "1.2.826.0.1.10",
        "PositionReferenceIndicator": "", "SliceThickness": 3,
        "ImagePositionPatient": [-10.5, 20.25, 3 * i], "ImageOrientationPatient": TURNED, "PixelSpacing": [0.5, 0.75],
        **PATIENT, **fields,
    }  # fmt: skip
    return dicom_bytes(values, **{name: value for name, value in fields.items() if value is not None})


def radiograph(values: np.ndarray, **fields: Any) -> bytes:
    """A radiograph without a position in the patient, in which high values are dark."""
    return ct(
        255 - values, PhotometricInterpretation="MONOCHROME1", SOPClassUID=uid.ComputedRadiographyImageStorage,
        Modality="CR", FrameOfReferenceUID=None, ImagePositionPatient=None, ImageOrientationPatient=None, **fields,
    )  # fmt: skip


def ultrasound(values: np.ndarray) -> bytes:
    return ct(
        values, NumberOfFrames=len(values), SOPClassUID=uid.UltrasoundMultiFrameImageStorage, Modality="US",
        FrameOfReferenceUID=None, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None,
    )  # fmt: skip


def enhanced_mr(values: np.ndarray) -> bytes:
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=TURNED)],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.75], SliceThickness=3)],
    )
    frames = [item(PlanePositionSequence=[item(ImagePositionPatient=[1, 2, 3 * i])]) for i in range(len(values))]
    return ct(
        values, NumberOfFrames=len(values), SOPClassUID=uid.EnhancedMRImageStorage, Modality="MR",
        ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None, SliceThickness=None,
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames,
    )  # fmt: skip


@pytest.fixture(scope="module")
def det() -> DualDistillationDetector:
    found = DualDistillationDetector(image_size=48, evidence="patch", value_range=(0, 255), random_state=0)
    return found.fit(list(grey(4)))


@pytest.fixture(scope="module")
def model(det, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.fsad"
    det.save(path)
    return path


@pytest.fixture
def study(tmp_path) -> Path:
    """Two slices, the second with a flat square."""
    (tmp_path / "study").mkdir()
    values = np.stack([grey(1, 3)[0], corrupted(grey(1, 4))[0]])
    for i, image in enumerate(values):
        (tmp_path / "study" / f"{i}.dcm").write_bytes(ct(image, i))
    return tmp_path / "study"


def run(model: Path, *words: object) -> int:
    return cli.main(["map", str(model), *map(str, words), "--quiet"])


def of_frame(made: Any, group: str, name: str) -> Any:
    parts = [*made.PerFrameFunctionalGroupsSequence, *made.SharedFunctionalGroupsSequence]
    return next((part[group][0].get(name) for part in parts if group in part), None)


def reference(made: Any) -> Any:
    group = made.PerFrameFunctionalGroupsSequence[0]
    group = group if "DerivationImageSequence" in group else made.SharedFunctionalGroupsSequence[0]
    return group.DerivationImageSequence[0].SourceImageSequence[0]


def check_origin(made: Any, source: Any) -> None:
    """Check the elements that every object copies from its source."""
    assert (made.Rows, made.Columns, made.NumberOfFrames) == (source.Rows, source.Columns, 1)
    for name in PATIENT:
        if name != "SpecificCharacterSet":
            assert made.get(name) == source.get(name), name
    assert reference(made).ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference(made).ReferencedSOPClassUID == source.SOPClassUID
    referenced = made.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert referenced.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert referenced.ReferencedInstanceSequence[0].ReferencedSOPClassUID == source.SOPClassUID
    assert made.SOPInstanceUID != source.SOPInstanceUID
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert made.get("FrameOfReferenceUID") == source.get("FrameOfReferenceUID")


def pixels(made: Any) -> np.ndarray:
    return made.pixel_array.reshape(made.Rows, made.Columns)


pytest.importorskip("highdicom", reason="the extra medical")


@pytest.mark.parametrize("form", ["dicom-seg", "dicom-pmap"])
def test_slices_of_a_series(det, model, study, tmp_path, form, capsys):
    out, ending = tmp_path / "out", {"dicom-seg": ".seg.dcm", "dicom-pmap": ".pmap.dcm"}[form]
    assert run(model, study, "--format", form, "-o", out) == 0
    assert f"wrote 2 files to {out}" in capsys.readouterr().out
    files = sorted(study.iterdir())
    made = [pydicom.dcmread(out / f"{path.name}{ending}") for path in files]
    expected = det.anomaly_map(files, size="original")
    for i, (one, path) in enumerate(zip(made, files, strict=True)):
        source = pydicom.dcmread(path)
        check_origin(one, source)
        assert of_frame(one, "PlanePositionSequence", "ImagePositionPatient") == source.ImagePositionPatient
        assert of_frame(one, "PlaneOrientationSequence", "ImageOrientationPatient") == source.ImageOrientationPatient
        assert of_frame(one, "PixelMeasuresSequence", "PixelSpacing") == source.PixelSpacing
        assert of_frame(one, "PixelMeasuresSequence", "SliceThickness") == source.SliceThickness
        assert "ReferencedFrameNumber" not in reference(one)
        assert one.InstanceNumber == i + 1
        if form == "dicom-pmap":
            assert one.SOPClassUID == uid.ParametricMapStorage
            np.testing.assert_array_equal(pixels(one), expected[i])
        else:
            assert one.SOPClassUID == uid.SegmentationStorage
            assert one.Modality == "SEG"
            np.testing.assert_array_equal(pixels(one).astype(bool), anomalous(det.explain([path])[0]))
    assert len({one.SeriesInstanceUID for one in made}) == 1
    assert len({one.SOPInstanceUID for one in made}) == 2
    if form == "dicom-seg":  # only the flat square, nothing in the normal slice
        rows, columns = np.nonzero(pixels(made[1]))
        assert 20 <= rows.mean() < 32
        assert 20 <= columns.mean() < 32
        assert not pixels(made[0]).any() or pixels(made[0]).sum() < pixels(made[1]).sum()


@pytest.mark.parametrize("form", ["dicom-seg", "dicom-pmap"])
@pytest.mark.parametrize("spacing", [[0.2, 0.2], None])
def test_radiographs_without_a_position(det, model, tmp_path, form, spacing):
    path = tmp_path / "plate"  # without an ending
    path.write_bytes(radiograph(corrupted(grey(1, 4))[0], PixelSpacing=spacing))
    assert run(model, path, "--format", form, "-o", tmp_path / "out") == 0
    (file,) = (tmp_path / "out").iterdir()
    made, source = pydicom.dcmread(file), pydicom.dcmread(path)
    check_origin(made, source)
    assert of_frame(made, "PixelMeasuresSequence", "PixelSpacing") == spacing
    assert of_frame(made, "PlanePositionSequence", "ImagePositionPatient") is None
    if form == "dicom-pmap":
        np.testing.assert_array_equal(pixels(made), det.anomaly_map([path], size="original")[0])
    else:
        assert pixels(made).any()


@pytest.mark.parametrize("form", ["dicom-seg", "dicom-pmap"])
@pytest.mark.parametrize("make", [ultrasound, enhanced_mr])
def test_frames_of_a_file(det, model, tmp_path, form, make):
    path = tmp_path / "many.dcm"
    path.write_bytes(make(np.stack([grey(1, 3)[0], corrupted(grey(1, 4))[0], grey(1, 5)[0]])))
    assert run(model, path, "--format", form, "-o", tmp_path / "out") == 0
    made, source = [pydicom.dcmread(file) for file in sorted((tmp_path / "out").iterdir())], pydicom.dcmread(path)
    expected = det.anomaly_map(images.frames(path), size="original")
    assert len(made) == 3
    for i, one in enumerate(made):
        check_origin(one, source)
        assert reference(one).ReferencedFrameNumber == i + 1
        if make is enhanced_mr:
            assert of_frame(one, "PlanePositionSequence", "ImagePositionPatient") == [1, 2, 3 * i]
            assert of_frame(one, "PlaneOrientationSequence", "ImageOrientationPatient") == TURNED
            assert of_frame(one, "PixelMeasuresSequence", "PixelSpacing") == [0.5, 0.75]
        if form == "dicom-pmap":
            np.testing.assert_array_equal(pixels(one), expected[i])


@pytest.mark.parametrize("form", ["dicom-seg", "dicom-pmap"])
def test_highdicom_reads_the_output(model, study, tmp_path, form):
    import highdicom

    for name, content in {"a": ct(grey(1)[0]), "b": radiograph(grey(1)[0], SOPInstanceUID="1.2.826.0.1.8.9")}.items():
        (tmp_path / name).write_bytes(content)
    assert run(model, tmp_path / "a", tmp_path / "b", "--format", form, "-o", tmp_path / "out") == 0
    for file in (tmp_path / "out").iterdir():
        assert highdicom.imread(file).pixel_array.size == H * W


def test_colours_and_a_constant_image(model, tmp_path):
    colour = np.repeat(grey(1)[0][..., None], 3, axis=2)
    (tmp_path / "c.dcm").write_bytes(
        ct(colour, PhotometricInterpretation="RGB", SOPClassUID=uid.SecondaryCaptureImageStorage)
    )
    (tmp_path / "d.dcm").write_bytes(ct(np.zeros((H, W), np.uint8), SOPInstanceUID="1.2.826.0.1.8.9"))
    for form in ("dicom-seg", "dicom-pmap"):
        files = tmp_path / "c.dcm", tmp_path / "d.dcm"
        assert run(model, *files, "--format", form, "-o", tmp_path / form) == 0


def test_output_is_not_scored(model, study, capsys):
    assert run(model, study, "--format", "dicom-seg", "-o", study) == 0
    assert run(model, study, "--format", "dicom-pmap", "-o", study) == 0
    found = list_images(study)
    assert [path.name for path in found.files] == ["0.dcm", "1.dcm"]
    assert len(found.left_out) == 4
    assert run(model, study, "--format", "dicom-seg", "-o", study) == 2
    assert "exists. Pass --force" in capsys.readouterr().err
    assert run(model, study, "--format", "dicom-seg", "-o", study, "--force") == 0


def test_source_that_is_not_dicom(model, study, tmp_path, capsys):
    Image.fromarray(grey(1)[0]).save(study / "x.png")
    assert run(model, study, "--format", "dicom-seg", "-o", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert f"{study / 'x.png'} is not a DICOM file, but the objects of --format dicom-seg refer to one" in message
    assert "Name only DICOM files, or use --format pictures." in message
    assert not (tmp_path / "out").exists()
    assert run(model, study, "-o", tmp_path / "out") == 0
    assert run(model, *study.glob("*.dcm"), "--format", "dicom-seg", "-o", tmp_path / "out") == 0


@pytest.mark.parametrize("form", ["dicom-seg", "dicom-pmap"])
@pytest.mark.parametrize(
    "name",
    [*sorted(set(PATIENT) - {"StudyInstanceUID"}), "SeriesInstanceUID", "PositionReferenceIndicator", "SliceThickness"],
)
def test_optional_elements(model, tmp_path, form, name):
    fields = {name: None} if name != "SpecificCharacterSet" else {name: None, "PatientName": "Mueller^J"}
    (tmp_path / "a.dcm").write_bytes(
        ct(grey(1)[0], **fields) if name != "SeriesInstanceUID" else without(ct(grey(1)[0]), name)
    )
    assert run(model, tmp_path / "a.dcm", "--format", form, "-o", tmp_path / "out") == 0


def without(data: bytes, name: str) -> bytes:
    found = pydicom.dcmread(io.BytesIO(data))
    del found[name]
    again = io.BytesIO()
    found.save_as(again)
    return again.getvalue()


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SOPInstanceUID"])
def test_required_elements(model, study, tmp_path, name, capsys):
    bad = study / "0.dcm"
    bad.write_bytes(without(bad.read_bytes(), name))
    assert run(model, study, "--format", "dicom-seg", "-o", tmp_path / "out", "--json") == 1
    message = capsys.readouterr()
    assert f"{bad} lacks {name}, which a DICOM object that refers to it needs. Set it with pydicom" in message.err
    assert list(json.loads(message.out)["failed"]) == [str(bad)]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["1.dcm.seg.dcm"]
    ds = pydicom.dcmread(bad)
    setattr(ds, name, "1.2.826.0.1.99")
    ds.save_as(bad)
    assert run(model, study, "--format", "dicom-seg", "-o", tmp_path / "out", "--force") == 0
    bad.write_bytes(without(bad.read_bytes(), name))
    assert run(model, study, "-o", tmp_path / "out") == 0  # pictures


def test_sources_that_highdicom_refuses(model, study, tmp_path, capsys):
    bad = study / "0.dcm"
    bad.write_bytes(ct(grey(1)[0], PatientSex="X"))
    assert run(model, study, "--format", "dicom-pmap", "-o", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert f"{bad}: no dicom-pmap can be created for it: " in message
    assert "Fix that with pydicom, or use --format pictures." in message
    bad.write_bytes(ct(grey(1)[0], PatientSex="O"))
    assert run(model, study, "--format", "dicom-pmap", "-o", tmp_path / "out", "--force") == 0


def test_unreadable_file(model, study, tmp_path, capsys):
    (study / "0.dcm").write_bytes((study / "0.dcm").read_bytes()[:-500])
    assert run(model, study, "--format", "dicom-seg", "-o", tmp_path / "out") == 1
    assert str(study / "0.dcm") in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_without_highdicom(study, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtraError, match=r"needs highdicom.*fewshot-ad\[medical\]"):
        Writer(sorted(study.iterdir()), "dicom-seg")
    with pytest.raises(ImageError, match="is not a DICOM file"):
        Writer([Path(__file__)], "dicom-seg")
