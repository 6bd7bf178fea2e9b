"""DICOM files, by pydicom."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

from ..exceptions import ImageError
from .sources import INSTALL, File, Pixels, full_range, import_extra, percentile_range

_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# Of pydicom's decoders the first that can; gdcm last, which may end the process over a damaged file.
_DECODERS = ("pydicom", "pyjpegls", "pylibjpeg", "pillow", "gdcm")
# Bytes before the value of compressed pixels: tag, VR, reserved, length.
_ELEMENT_HEAD = 12
# Starts of a JPEG 2000 codestream, which boxes may precede, and markers that a JPEG's or JPEG-LS's size follows.
_JPEG_2000 = b"\xff\x4f\xff\x51"
_START_OF_FRAME = {0xFFC0 + n for n in range(16)} - {0xFFC4, 0xFFC8, 0xFFCC} | {0xFFF7}


class Dicom(File):
    """A DICOM file; its pixels are decoded one frame at a time."""

    def __init__(self, path: Path) -> None:
        dicom = import_extra("pydicom", path)
        self.path = path
        try:
            self.header = dicom.dcmread(path, stop_before_pixels=True)
        except dicom.errors.InvalidDicomError as error:
            raise ImageError(
                f"{path} is not a DICOM file: 'DICM' is missing after the first 128 bytes. If it is an old one without "
                "that header, write it anew with pydicom.dcmread(path, force=True).save_as(...)."
            ) from error
        if "Rows" not in self.header or "Columns" not in self.header:
            kind = getattr(self.header.get("SOPClassUID"), "name", "unknown kind")
            raise ImageError(f"{path} is a DICOM file without an image ({kind}). Leave it out.")
        self.n_images = int(self.header.get("NumberOfFrames") or 1)
        self.series = str(self.header.get("SeriesInstanceUID", ""))

    def size(self, index: int) -> tuple[int, int]:
        """Tell width and height from the header."""
        return int(self.header.Columns), int(self.header.Rows)

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode one image."""
        pixels = import_extra("pydicom.pixels", self.path)
        decoder = self._decoder(pixels)
        self._check_coded_size(index)
        try:
            values = pixels.pixel_array(self.path, index=index, decoding_plugin=decoder)
        except AttributeError as error:
            raise ImageError(f"{self.path} is a DICOM file without pixel data ({error}). Leave it out.") from error
        except RuntimeError as error:
            raise ImageError(
                f"{self.path} could not be decoded: {' '.join(str(error).split())}. If other programs show it, let one "
                "of them convert it, for instance to Explicit VR Little Endian."
            ) from error
        colours = self.header.PhotometricInterpretation
        if colours == "PALETTE COLOR":
            return Pixels(pixels.apply_color_lut(values, self.header), value_range)
        if colours in _COLOUR:
            return Pixels(values, value_range or full_range(self.header.BitsStored, values.dtype))
        if not colours.startswith("MONOCHROME"):
            raise ImageError(
                f"{self.path} has the colours {colours}. Accepted are MONOCHROME1, MONOCHROME2, PALETTE COLOR, "
                f"{', '.join(_COLOUR)}; convert it with another program."
            )
        values = pixels.apply_modality_lut(values, self._part(index, "PixelValueTransformationSequence"))
        window = value_range or self._window(index) or percentile_range(values)
        return Pixels(values, window, inverted=colours == "MONOCHROME1")

    def _decoder(self, pixels: Any) -> str:
        """Choose who decompresses the pixels; nobody has to if they are not compressed."""
        syntax = self.header.file_meta.TransferSyntaxUID
        try:
            decoder = pixels.get_decoder(syntax)
        except NotImplementedError as error:
            raise ImageError(
                f"{self.path} has the transfer syntax {syntax.name}, which pydicom does not decode. Convert the file, "
                "for instance to Explicit VR Little Endian."
            ) from error
        if not decoder.is_available:
            missing = "; ".join(decoder.missing_dependencies)
            raise ImageError(
                f"{self.path} is compressed as {syntax.name}, and no decoder for that is installed. Install the "
                f"extra, {INSTALL}, or what pydicom asks for: {missing}."
            )
        return next((name for name in _DECODERS if name in decoder.available_plugins), "")

    def _check_coded_size(self, index: int) -> None:
        """Hold a compressed frame's own size against the header's: decoders make room for whatever it says."""
        syntax = self.header.file_meta.TransferSyntaxUID
        if not syntax.is_encapsulated or syntax.name == "RLE Lossless":  # which has no size of its own
            return
        with self.path.open("rb") as file:
            import_extra("pydicom", self.path).dcmread(file, stop_before_pixels=True)
            file.seek(_ELEMENT_HEAD, os.SEEK_CUR)
            frame = import_extra("pydicom.encaps", self.path).get_frame(file, index, number_of_frames=self.n_images)
        coded = _coded_size(frame)
        if coded != self.size(index):
            raise ImageError(
                f"{self.path} is damaged: it has {self.size(index)} columns and rows, but its compressed image has "
                f"{coded or 'no readable header'}. Leave it out, or fetch it anew."
            )

    def _part(self, index: int, name: str) -> Any:
        """Find where a frame's values are described: in newer multi-frame files deep in a sequence."""
        per_frame = self.header.get("PerFrameFunctionalGroupsSequence") or []
        shared = self.header.get("SharedFunctionalGroupsSequence") or []
        for group in [*per_frame[index : index + 1], *shared[:1]]:
            if group.get(name):
                return group[name][0]
        return self.header

    def _window(self, index: int) -> tuple[float, float] | None:
        part = self._part(index, "FrameVOILUTSequence")
        center, width = (_first_number(part.get(name)) for name in ("WindowCenter", "WindowWidth"))
        if center is None or width is None:
            return None
        # The standard's linear function counts the width in whole values (PS3.3, C.11.2.1.2).
        linear = part.get("VOILUTFunction", "LINEAR") == "LINEAR"
        middle, half = (center - 0.5, (width - 1) / 2) if linear else (center, width / 2)
        return (middle - half, middle + half) if half > 0 else None


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Read width and height in the header of JPEG, JPEG-LS or JPEG 2000 data; None where there is no such header."""
    if frame[:2] != b"\xff\xd8":
        start = frame.find(_JPEG_2000)
        if start < 0 or start + 24 > len(frame):
            return None
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        return right - left, bottom - top
    at = 2
    while at + 9 <= len(frame):
        marker, length = struct.unpack_from(">HH", frame, at)
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", frame, at + 5)
            return width, height
        at += 2 + length
    return None


def _first_number(value: Any) -> float | None:
    """Read a window's centre or width, of which there may be several, or an empty one."""
    values = [value] if isinstance(value, (int, float)) else list(value or [])
    return float(values[0]) if values and math.isfinite(values[0]) else None
