"""Anomaly maps as DICOM objects that refer to their source image: segmentations and parametric maps, by highdicom."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__
from .data.dicom import is_dicom
from .data.listing import PARAMETRIC_MAP, SEGMENTATION
from .data.sources import Frame, Source, import_extra
from .exceptions import ImageError
from .explanation import Explanation, enlarged
from .regions import half_height

# File name endings of each --format.
ENDINGS = {"dicom-seg": SEGMENTATION, "dicom-pmap": PARAMETRIC_MAP}
# Elements of the source that are copied; the first group is required, the others may be empty.
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Rows", "Columns")
_CARRIED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
# Elements of an image's geometry, and the functional groups that contain them in a multi-frame source.
_GEOMETRY = {
    "ImagePositionPatient": "PlanePositionSequence", "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}  # fmt: skip
# SOP classes in place of the source's, as highdicom has rules that many files violate: with geometry, and without.
_PLACED, _UNPLACED = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
_SERIES_NUMBER = 900


def anomalous(explanation: Explanation) -> np.ndarray:
    """Return the mask of an image's regions, (H, W) bool, in pixels of the original image."""
    values = enlarged(torch.from_numpy(explanation.faded)[None], explanation.original_size)[0].numpy()
    return values > half_height(values) if explanation.decision < 0 else np.zeros_like(values, bool)


class Writer:
    """Writer of DICOM objects from explanations, one per image.

    Parameters
    ----------
    items : sequence of path or Frame
        The images; all must be DICOM files or frames of DICOM files.
    form : {"dicom-seg", "dicom-pmap"}
        Kind of object.

    Raises
    ------
    ImageError
        An image is not a DICOM file; it is named.
    MissingExtraError
        highdicom is not installed.
    """

    def __init__(self, items: Sequence[Any], form: str) -> None:
        for item in items:
            _check(item, form)
        self._items, self._form = items, form
        self._highdicom = import_extra("highdicom", Source(str(items[0])))
        self._pydicom = import_extra("pydicom", Source(str(items[0])))
        self._series: dict[str, tuple[str, int]] = {}

    def __call__(self, index: int, explanation: Explanation) -> bytes:
        """Create the object of an image.

        Parameters
        ----------
        index : int
            Index of the image in the items.
        explanation : Explanation
            Explanation of the image.

        Returns
        -------
        bytes
            A DICOM file in a new series of the source's study, with the source's geometry and a reference to it.

        Raises
        ------
        ImageError
            The source lacks a required element.
        """
        item = self._items[index]
        header = self._pydicom.dcmread(_path(item), stop_before_pixels=True, force=True)
        missing = [name for name in _REQUIRED if not header.get(name)]
        if missing:
            raise ImageError(
                f"{item} lacks {missing[0]}, which a DICOM object that refers to it needs. Set it with pydicom, "
                f"ds = pydicom.dcmread(path); ds.{missing[0]} = ...; ds.save_as(path), or use --format pictures."
            )
        try:
            made = self._make(item, header, explanation)
            data = io.BytesIO()
            made.save_as(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # highdicom's errors for unusual headers
            raise ImageError(
                f"{item}: no {self._form} can be created for it: {' '.join(str(error).split())}. Fix that with "
                "pydicom, or use --format pictures."
            ) from error
        return data.getvalue()

    def _make(self, item: Any, header: Any, explanation: Explanation) -> Any:
        frame = item.index if isinstance(item, Frame) else None
        place = {name: _of_frame(header, frame or 0, name, group) for name, group in _GEOMETRY.items()}
        reference = header.get("FrameOfReferenceUID")
        placed = bool(reference) and all(place.values())
        source = self._stand_in(header, place if placed else {})
        make = self._segmentation if self._form == "dicom-seg" else self._parametric_map
        made = make(source, explanation, placed)
        _refer(made, header.SOPClassUID, frame)
        if reference and not placed:
            made.FrameOfReferenceUID = reference
        if place["PixelSpacing"] and not placed:
            measures = self._pydicom.Dataset()
            measures.PixelSpacing = place["PixelSpacing"]
            made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [measures]
        return made

    def _stand_in(self, header: Any, place: dict[str, Any]) -> Any:
        """Create a header of a single image that highdicom accepts as a source."""
        source = self._pydicom.Dataset()
        for name in _CARRIED:
            value = header.get(name)
            setattr(source, name, "" if value is None else str(value))
        for name in _REQUIRED:
            setattr(source, name, header.get(name))
        source.SOPClassUID = _PLACED if place else _UNPLACED
        source.Modality = header.get("Modality") or "OT"
        source.SeriesInstanceUID = header.get("SeriesInstanceUID") or self._highdicom.UID()
        for name, value in place.items():
            setattr(source, name, value)
        if place:
            source.FrameOfReferenceUID = header.FrameOfReferenceUID
            source.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
            thickness = _of_frame(header, 0, "SliceThickness", "PixelMeasuresSequence")
            source.SliceThickness = 1 if thickness is None else thickness
        return source

    def _common(self, source: Any) -> dict[str, Any]:
        """Return the common arguments of all objects; those of one source series form a series."""
        uid, number = self._series.get(source.SeriesInstanceUID, (self._highdicom.UID(), 0))
        self._series[source.SeriesInstanceUID] = uid, number + 1
        return {
            "source_images": [source], "series_instance_uid": uid, "series_number": _SERIES_NUMBER,
            "sop_instance_uid": self._highdicom.UID(), "instance_number": number + 1, "manufacturer": "fewshot-ad",
            "manufacturer_model_name": "DualDistillationDetector", "software_versions": __version__,
            "device_serial_number": "0", "specific_character_set": "ISO_IR 192",
        }  # fmt: skip

    def _segmentation(self, source: Any, explanation: Explanation, placed: bool) -> Any:
        hd = self._highdicom
        codes = import_extra("pydicom.sr.codedict", Source("segmentation")).codes
        algorithm = hd.AlgorithmIdentificationSequence(
            name="fewshot-ad", version=__version__, family=codes.cid7162.ArtificialIntelligence
        )
        abnormal = codes.SCT.MorphologicallyAbnormalStructure
        segment = hd.seg.SegmentDescription(
            1, "anomalous", abnormal, abnormal, "AUTOMATIC", algorithm_identification=algorithm
        )
        return hd.seg.Segmentation(
            pixel_array=anomalous(explanation).astype(np.uint8)[None], segmentation_type="BINARY",
            segment_descriptions=[segment], omit_empty_frames=False, series_description="Anomalous regions",
            **self._common(source),
        )  # fmt: skip

    def _parametric_map(self, source: Any, explanation: Explanation, placed: bool) -> Any:
        hd = self._highdicom
        codes = import_extra("pydicom.sr.codedict", Source("parametric map")).codes
        values = enlarged(torch.from_numpy(explanation.map)[None], explanation.original_size).numpy()
        low, high = float(values.min()), float(values.max())
        meaning = hd.pm.RealWorldValueMapping(
            "1", "anomaly map, high = anomalous", codes.UCUM.NoUnits, (low, high), slope=1.0, intercept=0.0
        )
        window = hd.VOILUTTransformation(window_center=(low + high) / 2, window_width=max(high - low, 1e-6))
        if not placed:  # highdicom 0.28 requires a geometry: it is removed again below
            source.SOPClassUID, source.FrameOfReferenceUID = _PLACED, hd.UID()
            source.PositionReferenceIndicator = None
            source.ImagePositionPatient, source.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
            source.PixelSpacing, source.SliceThickness = [1, 1], 1
        made = hd.pm.ParametricMap(
            pixel_array=values, real_world_value_mappings=[meaning], contains_recognizable_visual_features=False,
            voi_lut_transformations=[window], series_description="Anomaly map", **self._common(source),
        )  # fmt: skip
        if not placed:
            _remove_geometry(made)
        return made


def _path(item: Any) -> Path:
    return Path(item.path if isinstance(item, Frame) else item)


def _check(item: Any, form: str) -> None:
    try:
        with _path(item).open("rb") as file:
            head = file.read(256)
    except OSError:  # reported when the image is read
        return
    if not is_dicom(head):
        raise ImageError(
            f"{os.fspath(_path(item))} is not a DICOM file, but the objects of --format {form} refer to one. Name only "
            "DICOM files, or use --format pictures."
        )


def _of_frame(header: Any, frame: int, name: str, group: str) -> Any:
    """Return an element of a frame: from the functional groups, else from the top level; None if empty."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    for part in [*per_frame[frame : frame + 1], *(header.get("SharedFunctionalGroupsSequence") or [])[:1]]:
        if part.get(group) and part[group][0].get(name):
            return part[group][0].get(name)
    return header.get(name) or None


def _refer(made: Any, sop_class: str, frame: int | None) -> None:
    """Set the source's SOP class, and its frame, in every reference to it."""

    def set_reference(part: Any, name: str) -> None:
        for entry in part.get(name) or []:
            entry.ReferencedSOPClassUID = sop_class
            if frame is not None and name == "SourceImageSequence":
                entry.ReferencedFrameNumber = frame + 1

    for series in made.get("ReferencedSeriesSequence") or []:
        set_reference(series, "ReferencedInstanceSequence")
    set_reference(made, "SourceImageSequence")
    for group in [*made.PerFrameFunctionalGroupsSequence, *made.SharedFunctionalGroupsSequence]:
        for derivation in group.get("DerivationImageSequence") or []:
            set_reference(derivation, "SourceImageSequence")


def _remove_geometry(made: Any) -> None:
    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator", "DimensionIndexSequence"):
        made.pop(name, None)
    for group in [*made.PerFrameFunctionalGroupsSequence, *made.SharedFunctionalGroupsSequence]:
        for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            group.pop(name, None)
        for content in group.get("FrameContentSequence") or []:
            content.pop("DimensionIndexValues", None)
