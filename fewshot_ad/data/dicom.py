"""DICOM files, read by pydicom; if that fails, the error names the element at fault."""

from __future__ import annotations

import math
import os
import struct
import zlib
from typing import Any

import numpy as np

from ..exceptions import ImageError
from .palettes import look_up, modality_table, palette
from .sources import INSTALL, File, Pixels, Source, full_range, import_extra, percentile_range

_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Elements that describe the layout of pixels, and further ones for integers.
_REQUIRED = ("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
_REQUIRED_OF_INTEGERS = ("BitsStored", "PixelRepresentation")
# The first available decoder is used; gdcm is last, since a damaged file may make it end the process.
_DECODERS = ("pydicom", "pyjpegls", "pylibjpeg", "pillow", "gdcm")
# The start of a JPEG 2000 codestream, which boxes may precede; and the markers before the size of a JPEG or JPEG-LS.
_JPEG_2000 = b"\xff\x4f\xff\x51"
_START_OF_FRAME = {0xFFC0 + n for n in range(16)} - {0xFFC4, 0xFFC8, 0xFFCC} | {0xFFF7}
_DEFLATED = b"1.2.840.10008.1.2.1.99"
# Largest size that a deflated file may unpack to: pydicom keeps it in memory as a whole.
_LONGEST_INFLATED = 1 << 28


def is_dicom(head: bytes) -> bool:
    """Return whether a file is DICOM by its first bytes; old files lack the preamble of 128 bytes."""
    if head[128:132] == b"DICM":
        return True
    # An element of the groups 0002 or 0008, as the first one is, and its length or type; both byte orders.
    group, element = head[:2], head[2:4]
    known = (group in (b"\x02\0", b"\x08\0") and element[1:] == b"\0") or group in (b"\0\x02", b"\0\x08")
    return known and len(head) >= 132 and (head[4:6].isalpha() or head[6:8] == b"\0\0")


class Dicom(File):
    """A DICOM file; its pixels are decoded one frame at a time."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.pydicom = import_extra("pydicom", source)
        self._check_deflated()
        with source.open() as file:
            head = file.read(132)
            file.seek(0)
            try:
                self.header = self.pydicom.dcmread(file, stop_before_pixels=True, force=True)
                no_image = not any(name in self.header for name in ("Rows", "Columns", "SOPClassUID"))
            except Exception as error:
                if head[128:] == b"DICM" or isinstance(error, MemoryError):
                    raise
                no_image = True
        if head[128:] != b"DICM" and no_image:
            raise ImageError(
                f"{source} is not a DICOM file: 'DICM' is missing after the first 128 bytes, and it is not an image "
                "without that preamble either. Leave it out."
            )
        if any(self._get(self.header, name) is None for name in ("Rows", "Columns")):
            data = self._whole()
            if not any(name in data for name in _PIXELS):
                kind = getattr(self.header.get("SOPClassUID"), "name", "unknown kind")
                raise ImageError(f"{source} is a DICOM file without an image ({kind}). Leave it out.")
            self._require("Rows", "Columns")
        self.n_images = int(self._number(self.header, "NumberOfFrames") or 1)
        self.kind = " ".join(str(self._get(self.header, k) or "?") for k in ("Modality", "PhotometricInterpretation"))
        self.syntax = self._syntax()

    def size(self, index: int) -> tuple[int, int]:
        """Return width and height from the header."""
        columns, rows = (self._number(self.header, name) for name in ("Columns", "Rows"))
        return int(columns or 0), int(rows or 0)

    def read(self, index: int, value_range: tuple[float, float] | None) -> Pixels:
        """Decode one image."""
        self._require(*_REQUIRED)
        colours = str(self.header.PhotometricInterpretation).strip().upper()
        if colours not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
            raise ImageError(
                f"{self.source} has the photometric interpretation {colours}. Accepted are {', '.join(_GREY)}, "
                f"PALETTE COLOR, {', '.join(_COLOUR)}; convert it with another program."
            )
        values = self._decode(index)
        bits = int(self._number(self.header, "BitsStored") or 0)
        if colours == "PALETTE COLOR":
            table, first = palette(self.header, self.pydicom, self.source)
            return Pixels(look_up(values, table, first), value_range)
        if colours in _COLOUR:
            return Pixels(values, value_range or full_range(bits, values.dtype))
        hidden = self._padding(values, bits)
        if values.dtype.kind == "f":
            unknown = np.isnan(values)
            hidden = unknown if hidden is None else hidden | unknown
        values, window = self._rescaled(index, values), value_range or self._window(index)
        if window is None and bits == 1:
            window = (0.0, 1.0)
        if window is None:
            window = percentile_range(values if hidden is None else values[~hidden])
        return Pixels(values, window, colours == "MONOCHROME1", hidden)

    # --- elements

    def _get(self, part: Any, name: str) -> Any:
        """Read an element; None if it is empty or blank."""
        try:
            value = part.get(name)
        except Exception as error:  # pydicom converts values on access
            raise ImageError(
                f"{self.source} has a damaged element {self._tag(name)}: {' '.join(str(error).split())}. Correct it "
                "with pydicom, or leave the file out."
            ) from error
        if value is None or isinstance(value, bytes):
            return value or None
        return value if str(value).strip() else None

    def _number(self, part: Any, name: str) -> float | None:
        """Read a number, or the first of several; None where it is missing, empty or not finite."""
        value = self._get(part, name)
        if value is None:
            return None
        try:
            number = float(value if isinstance(value, (int, float, str)) else next(iter(value)))
        except (TypeError, ValueError, StopIteration) as error:
            raise ImageError(
                f"{self.source} has {value!r} as {self._tag(name)}, which is not a number. Correct it with pydicom, or "
                "leave the file out."
            ) from error
        return number if math.isfinite(number) else None

    def _tag(self, name: str) -> str:
        tag = self.pydicom.datadict.tag_for_keyword(name)
        return f"{name} ({tag >> 16:04X},{tag & 0xFFFF:04X})"

    def _require(self, *names: str) -> None:
        missing = [self._tag(name) for name in names if self._get(self.header, name) is None]
        if missing:
            first = missing[0].split()[0]
            raise ImageError(
                f"{self.source} lacks {', '.join(missing)}, without which its pixels cannot be decoded. Set it with "
                f"pydicom, ds = pydicom.dcmread(path); ds.{first} = ...; ds.save_as(path), or leave the file out."
            )

    def _part(self, index: int, name: str) -> Any:
        """Return the part of the header that describes a frame's values; enhanced multi-frame files nest it."""
        per_frame = self.header.get("PerFrameFunctionalGroupsSequence") or []
        shared = self.header.get("SharedFunctionalGroupsSequence") or []
        for group in [*per_frame[index : index + 1], *shared[:1]]:
            if group.get(name):
                return group[name][0]
        return self.header

    # --- pixels

    def _whole(self) -> Any:
        with self.source.open() as file:
            return self.pydicom.dcmread(file, force=True)

    def _syntax(self) -> Any:
        """Return the transfer syntax; files without one are uncompressed, in the byte order that they were read in."""
        meta = getattr(self.header, "file_meta", None)
        if meta is not None and self._get(meta, "TransferSyntaxUID"):
            return meta.TransferSyntaxUID
        implicit, little = self.header.original_encoding
        uid = self.pydicom.uid
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        return uid.ImplicitVRLittleEndian if implicit else explicit

    def _decode(self, index: int) -> np.ndarray:
        """Decode a frame: (H, W) or (H, W, 3), with the stored sign and bits."""
        plugin = self._plugin()
        decoder = import_extra("pydicom.pixels", self.source).get_decoder(self.syntax)
        if self.n_images > 1 and self.syntax != _DEFLATED.decode():
            try:
                return self._decode_part(decoder, plugin, index)
            except ImageError:
                raise
            except Exception:  # unusual files are decoded as a whole
                return self._decode_whole(decoder, plugin, index)
        return self._decode_whole(decoder, plugin, index)

    def _decode_whole(self, decoder: Any, plugin: str, index: int) -> np.ndarray:
        """Decode a frame with the whole file in memory."""
        data = self._whole()
        if not any(self._get(data, name) for name in _PIXELS):
            raise ImageError(f"{self.source} is a DICOM file without pixel data. Leave it out.")
        if "PixelData" in data:
            self._require(*_REQUIRED_OF_INTEGERS)
            if data["PixelData"].is_undefined_length and not self.syntax.is_encapsulated:
                self._require_syntax()
            self._check_coded_size(data.PixelData, index)
        if self._number(data, "SamplesPerPixel") == 3:
            self._require("PlanarConfiguration")
        data.file_meta = self.pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = self.syntax
        options = import_extra("pydicom.pixels.utils", self.source).as_pixel_options(data)
        return self._run(decoder, data, index, plugin, options)

    def _decode_part(self, decoder: Any, plugin: str, index: int) -> np.ndarray:
        """Decode one of many frames, without reading the others."""
        with self.source.open() as file:
            header = self.pydicom.dcmread(file, stop_before_pixels=True, force=True)
            options = import_extra("pydicom.pixels.utils", self.source).as_pixel_options(header)
            implicit, little = header.original_encoding
            order = "<" if little else ">"
            group, element = struct.unpack(f"{order}HH", file.read(4))
            kind = None if implicit else file.read(2).decode()
            file.seek(4 if implicit else 6, os.SEEK_CUR)
            options["pixel_keyword"] = self.pydicom.datadict.keyword_for_tag((group, element))
            if kind:
                options["pixel_vr"] = kind
            start = file.tell()
            self._check_coded_size(file, index)
            file.seek(start)
            return self._run(decoder, file, index, plugin, {**options, "transfer_syntax_uid": self.syntax})

    def _run(self, decoder: Any, data: Any, index: int, plugin: str, options: dict[str, Any]) -> np.ndarray:
        try:
            return decoder.as_array(data, index=index, decoding_plugin=plugin, **options)[0]
        except RuntimeError as error:
            raise ImageError(
                f"{self.source} could not be decoded: {' '.join(str(error).split())}. If another program "
                "opens it, convert it there, for instance to Explicit VR Little Endian."
            ) from error

    def _require_syntax(self) -> None:
        raise ImageError(
            f"{self.source} has compressed pixels, but {self._tag('TransferSyntaxUID')}, which names the "
            f"compression, is {'missing' if not hasattr(self.header, 'file_meta') else 'missing or wrong'}. Set it "
            "with pydicom, or convert the file with another program."
        )

    def _plugin(self) -> str:
        """Choose the plugin that decompresses the pixels; none is needed for uncompressed ones."""
        try:
            decoder = import_extra("pydicom.pixels", self.source).get_decoder(self.syntax)
        except NotImplementedError as error:
            raise ImageError(
                f"{self.source} has the transfer syntax {self.syntax.name}, which pydicom does not decode. Convert the "
                "file, for instance to Explicit VR Little Endian."
            ) from error
        if not decoder.is_available:
            missing = "; ".join(decoder.missing_dependencies)
            raise ImageError(
                f"{self.source} is compressed as {self.syntax.name}, but no decoder for that is installed. Install the "
                f"extra, {INSTALL}, or what pydicom asks for: {missing}."
            )
        return next((name for name in _DECODERS if name in decoder.available_plugins), "")

    def _check_coded_size(self, data: Any, index: int) -> None:
        """Compare the size in a compressed frame with the header's: decoders allocate whatever the frame claims."""
        if not self.syntax.is_encapsulated or self.syntax.name == "RLE Lossless":  # which does not state a size
            return
        encaps = import_extra("pydicom.encaps", self.source)
        coded = _coded_size(encaps.get_frame(data, index, number_of_frames=self.n_images))
        if coded != self.size(index):
            raise ImageError(
                f"{self.source} is damaged: it has {self.size(index)} columns and rows, but its compressed image has "
                f"{coded or 'no readable header'}. Leave it out, or download it again."
            )

    def _check_deflated(self) -> None:
        """Refuse a small file that would unpack to an excessive size."""
        with self.source.open() as file:
            head = file.read(1 << 16)
            if _DEFLATED not in head:
                return
            file.seek(_end_of_meta(head))
            inflate, n_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
            while (chunk := inflate.unconsumed_tail or file.read(1 << 16)) and not inflate.eof:
                n_bytes += len(inflate.decompress(chunk, 1 << 20))
                if n_bytes > _LONGEST_INFLATED:
                    raise ImageError(
                        f"{self.source} unpacks to more than {_LONGEST_INFLATED} bytes. Convert it, for instance to "
                        "Explicit VR Little Endian."
                    )

    # --- meaning

    def _padding(self, values: np.ndarray, bits: int) -> np.ndarray | None:
        """Return the mask of pixels that the file declares as padding, by their stored values."""
        prefix = "" if values.dtype.kind != "f" else "Float" if values.dtype.itemsize == 4 else "DoubleFloat"
        value = self._number(self.header, f"{prefix}PixelPaddingValue")
        if value is None:
            return None
        limit = self._number(self.header, f"{prefix}PixelPaddingRangeLimit")
        ends = [value, value if limit is None else limit]
        if values.dtype.kind != "f":
            ends = [_in_range(int(end), bits, values.dtype.kind == "i") for end in ends]
        return (values >= min(ends)) & (values <= max(ends))

    def _rescaled(self, index: int, values: np.ndarray) -> np.ndarray:
        """Apply the modality LUT, or slope and intercept; empty elements count as missing."""
        part = self._part(index, "PixelValueTransformationSequence")
        if self._get(part, "ModalityLUTSequence"):
            return look_up(values, *modality_table(part.ModalityLUTSequence[0], self.header, self.source))
        slope, intercept = (self._number(part, name) for name in ("RescaleSlope", "RescaleIntercept"))
        if slope in (None, 1.0) and not intercept:
            return values
        scaled = values.astype(np.float64)
        scaled *= 1.0 if slope is None else slope
        scaled += intercept or 0.0
        return scaled

    def _window(self, index: int) -> tuple[float, float] | None:
        part = self._part(index, "FrameVOILUTSequence")
        center, width = (self._number(part, name) for name in ("WindowCenter", "WindowWidth"))
        if center is None or width is None:
            return None
        # The standard's linear function counts the width in whole values (PS3.3, C.11.2.1.2).
        linear = str(self._get(part, "VOILUTFunction") or "LINEAR").strip() == "LINEAR"
        middle, half = (center - 0.5, (width - 1) / 2) if linear else (center, width / 2)
        return (middle - half, middle + half) if half > 0 else None


def _end_of_meta(head: bytes) -> int:
    """Return the offset at which the elements of group 0002 end; these are never compressed."""
    at = 132
    while head[at : at + 2] == b"\x02\0" and at + 12 <= len(head):
        long = head[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        at += 12 + struct.unpack_from("<I", head, at + 8)[0] if long else 8 + struct.unpack_from("<H", head, at + 6)[0]
    return at


def _in_range(value: int, bits: int, signed: bool) -> int:
    """Read a value of the other sign as its bits are stored: -2000 of 16 bits is 63536."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if low <= value <= high:
        return value
    value &= 2**bits - 1
    return value - 2**bits if value > high else value


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
