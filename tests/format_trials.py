"""Files of every supported format and depth, with black, white and their neighbouring values, and their outcomes."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import imagecodecs
import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from fewshot_ad.data import images
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.exceptions import ImageError, MissingExtraError

# JPEG 2000 needs sides of 32 pixels.
SIDE = 32


class Trial(NamedTuple):
    """One kind of file.

    `make` writes an image whose pixels are given as numbers from `black` to `white`; `near` is the tolerance of the
    values read, in [0, 1]. If `steps` is 0, black and white have no distinguishable neighbouring values.
    """

    format: str
    depth: str
    make: Callable[[np.ndarray], bytes]
    white: float
    black: float = 0
    near: float = 1e-6
    steps: float = 1
    colour: bool = False
    name: str = ""


def values_of(trial: Trial) -> np.ndarray:
    """Create large quarters of black, its neighbour, white's neighbour and white, which survive lossy codecs."""
    low, high, step = trial.black, trial.white, trial.steps
    rows = np.repeat([low, low + step, high - step, high], SIDE // 4)
    return np.repeat(rows[:, None], SIDE, axis=1)


def expected_of(trial: Trial) -> np.ndarray:
    return (values_of(trial) - trial.black) / (trial.white - trial.black)


def outcome(trial: Trial) -> tuple[str, np.ndarray | None, str]:
    """Read a trial's file; return "read", "warned" or "refused", its pixels, and the message."""
    data = io.BytesIO(trial.make(values_of(trial)))
    data.name = trial.name or "a"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = images.load(data, 0, Geometry(SIDE))
        except (ImageError, MissingExtraError) as error:
            return "refused", None, str(error)
    message = [str(warning.message) for warning in caught if warning.category.__module__.startswith("fewshot_ad")]
    return "warned" if message else "read", image.numpy(), " ".join(message)


def _rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def _opaque(values: np.ndarray, white: float) -> np.ndarray:
    return np.concatenate([values, np.full_like(values[..., :1], white)], axis=-1)


# --- PNG


def _png(bits: int, kind: int) -> Callable[[np.ndarray], bytes]:
    """Write a PNG by hand, as few writers support all depths of all five kinds."""
    n = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    opaque = kind in (4, 6)

    def make(values: np.ndarray) -> bytes:
        cells = np.repeat(values[..., None], n, axis=-1).astype(np.int64)
        if opaque:
            cells[..., -1] = 2**bits - 1
        rows = cells.reshape(len(values), -1)
        digits = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1)
        body = b"".join(b"\0" + row.tobytes() for row in packed)
        palette = np.round(np.linspace(0, 255, 2**bits)).astype(np.uint8).repeat(3).tobytes() if kind == 3 else b""
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], len(values), bits, kind, 0, 0, 0))]
        chunks += [(b"PLTE", palette)] if palette else []
        chunks += [(b"IDAT", zlib.compress(body)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks
        )

    return make


# --- formats that Pillow writes


def _pillow(kind: str, mode: str = "L", **options: Any) -> Callable[[np.ndarray], bytes]:
    def make(values: np.ndarray) -> bytes:
        data = io.BytesIO()
        values = values.astype(np.uint8)
        picture = Image.fromarray(values * np.uint8(255) if mode == "1" else values)
        picture = picture.convert("1", dither=0) if mode == "1" else picture.convert(mode)
        picture.save(data, kind, **options)
        return data.getvalue()

    return make


def _netpbm(magic: str, white: int) -> Callable[[np.ndarray], bytes]:
    def make(values: np.ndarray) -> bytes:
        cells = _rgb(values) if magic in ("P6", "P3") else values
        head = f"{magic} {values.shape[1]} {len(values)} {white}\n".encode()
        if magic in ("P2", "P3"):
            return head + "\n".join(map(str, cells.astype(int).reshape(-1))).encode()
        return head + cells.astype(">u2" if white > 255 else np.uint8).tobytes()

    return make


def _pfm(values: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(values.astype(np.float32)).save(data, "PPM")
    return data.getvalue()


def _jpeg2000(bits: int, colour: bool) -> Callable[[np.ndarray], bytes]:
    def make(values: np.ndarray) -> bytes:
        cells = (_rgb(values) if colour else values).astype(np.uint8 if bits <= 8 else np.uint16)
        return bytes(imagecodecs.jpeg2k_encode(cells, level=0, bitspersample=bits, reversible=True, codecformat="jp2"))

    return make


# --- TIFF


def _tiff(dtype: str, photometric: str = "minisblack", alpha: bool = False, **options: Any):
    def make(values: np.ndarray) -> bytes:
        cells = values.astype(dtype)
        cells = _rgb(cells) if photometric == "rgb" else cells
        if alpha:
            cells = _opaque(cells, np.iinfo(dtype).max)
            options["extrasamples"] = ["unassalpha"]
        data = io.BytesIO()
        tifffile.imwrite(data, cells, photometric=photometric, metadata=None, **options)
        return data.getvalue()

    return make


def _packed_tiff(bits: int, white_is_zero: bool = False) -> Callable[[np.ndarray], bytes]:
    """Write an uncompressed TIFF of a depth in which pixels share bytes."""

    def make(values: np.ndarray) -> bytes:
        digits = (values.astype(np.int64)[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()
        tags = [
            (256, 3, values.shape[1]), (257, 3, len(values)), (258, 3, bits), (259, 3, 1),
            (262, 3, 0 if white_is_zero else 1), (273, 4, 8), (277, 3, 1), (278, 3, len(values)), (279, 4, len(packed)),
        ]  # fmt: skip
        pad = packed + b"\0" * (len(packed) % 2)
        entries = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in tags)
        return b"II*\0" + struct.pack("<I", 8 + len(pad)) + pad + struct.pack("<H", len(tags)) + entries + b"\0" * 4

    return make


# --- DICOM


def dicom_bytes(values: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **fields: Any) -> bytes:
    """Write (H, W) or (H, W, 3) as DICOM; a field of None is omitted, and the file is then not validated."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    native = uid.ExplicitVRLittleEndian if pydicom.uid.UID(syntax).is_compressed else syntax
    data.file_meta.TransferSyntaxUID = native
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3", "1.2.4"
    colour = values.ndim == 3 and "NumberOfFrames" not in fields
    data.Rows, data.Columns = values.shape[:2] if colour else values.shape[-2:]
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * values.dtype.itemsize
    data.BitsStored = fields.pop("BitsStored", data.BitsAllocated)
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    order = ">" if native == uid.ExplicitVRBigEndian else "<"
    data.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data.PixelData += b"\0" * (len(data.PixelData) % 2)
    data["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    for name, value in fields.items():
        setattr(data, name, value)
    if native != syntax:
        data.compress(syntax, generate_instance_uid=False)
    found = io.BytesIO()
    data.save_as(found, enforce_file_format=True)
    return found.getvalue()


def _dicom(dtype: str, bits: int, syntax: str = uid.ExplicitVRLittleEndian, colour: bool = False, **fields: Any):
    def make(values: np.ndarray) -> bytes:
        low, high = (float(values.min()), float(values.max()))
        window = {} if colour else {"WindowCenter": (low + high + 1) / 2, "WindowWidth": high - low + 1}
        cells = values.astype(dtype)
        return dicom_bytes(_rgb(cells) if colour else cells, syntax, BitsStored=bits, **window, **fields)

    return make


def _dicom_float(name: str, dtype: str) -> Callable[[np.ndarray], bytes]:
    def make(values: np.ndarray) -> bytes:
        whole = pydicom.dcmread(io.BytesIO(dicom_bytes(values.astype(np.uint8))))
        for key in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(whole, key)
        whole.BitsAllocated = 8 * np.dtype(dtype).itemsize
        setattr(whole, name, values.astype(dtype).tobytes())
        whole.WindowCenter, whole.WindowWidth, whole.VOILUTFunction = 0.5, 1, "LINEAR_EXACT"
        data = io.BytesIO()
        whole.save_as(data)
        return data.getvalue()

    return make


def _dicom_bit(values: np.ndarray) -> bytes:
    whole = pydicom.dcmread(io.BytesIO(dicom_bytes(values.astype(np.uint8))))
    whole.BitsAllocated = whole.BitsStored = 1
    whole.HighBit = 0
    whole.PixelData = np.packbits(values.astype(np.uint8), bitorder="little").tobytes()
    data = io.BytesIO()
    whole.save_as(data)
    return data.getvalue()


# --- NIfTI


def _nifti(dtype: str) -> Callable[[np.ndarray], bytes]:
    def make(values: np.ndarray) -> bytes:
        image = nibabel.Nifti1Image(values[::-1].T.astype(dtype), np.eye(4), dtype=dtype)
        image.header["cal_min"], image.header["cal_max"] = values.min(), values.max()
        return image.to_bytes()

    return make


def trials() -> list[Trial]:
    """List every format and depth."""
    found = []
    for kind, name, depths in (
        (0, "grey", (1, 2, 4, 8, 16)), (2, "RGB", (8, 16)), (3, "palette", (1, 2, 4, 8)),
        (4, "grey and transparency", (8, 16)), (6, "RGB and transparency", (8, 16)),
    ):  # fmt: skip
        found += [
            Trial(
                "PNG",
                f"{name}, {bits} bit{'s' * (bits > 1)}",
                _png(bits, kind),
                2**bits - 1,
                near=0.002 if kind == 3 else 1e-6,
            )
            for bits in depths
        ]
    for mode, name in (("L", "grey"), ("RGB", "RGB"), ("CMYK", "CMYK")):
        found.append(Trial("JPEG", f"{name}, 8 bits", _pillow("JPEG", mode, quality=100), 255, near=0.009))
    found.append(Trial("JPEG", "grey, 12 bits", _jpeg_12, 4095))
    for bits in (8, 10, 12, 16):
        for colour in (False, True):
            depth = f"{'RGB' if colour else 'grey'}, {bits} bits"
            found.append(Trial("JPEG 2000", depth, _jpeg2000(bits, colour), 2**bits - 1))
    found += [
        Trial("BMP", "1 bit", _pillow("BMP", "1"), 1),
        Trial("BMP", "palette, 8 bits", _pillow("BMP", "P"), 255, near=0.002),
        Trial("BMP", "grey, 8 bits", _pillow("BMP"), 255),
        Trial("BMP", "RGB, 8 bits", _pillow("BMP", "RGB"), 255),
        Trial("PBM", "1 bit", _pillow("PPM", "1"), 1),
        Trial("GIF", "palette, 8 bits", _pillow("GIF"), 255),
        Trial("WebP", "RGB, 8 bits", _pillow("WEBP", "RGB", lossless=True), 255),
        Trial("WebP", "RGB and transparency, 8 bits", _pillow("WEBP", "RGBA", lossless=True), 255),
    ]
    for magic, name in (("P5", "grey"), ("P6", "RGB"), ("P2", "grey as text"), ("P3", "RGB as text")):
        for white in (15, 255, 1000, 65535):
            near = 0.002 if white == 15 or (white != 65535 and magic in ("P5", "P2")) or magic == "P3" else 1e-6
            found.append(Trial("PPM and PGM", f"{name}, white is {white}", _netpbm(magic, white), white, near=near))
    found.append(Trial("PFM", "float32 in [0, 1]", _pfm, 1, steps=2**-10))
    found += _tiffs()
    found += _dicoms()
    for dtype in ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"):
        kind = np.dtype(dtype)
        low, high = (0.0, 1.0) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
        if kind.itemsize == 8 and kind.kind != "f":  # float64 keeps no more
            low, high = low // 2**12, high // 2**12
        near = 1e-6
        found.append(
            Trial("NIfTI", dtype, _nifti(dtype), high, low, near, 1 if kind.kind != "f" else 2**-10, name="a.nii")
        )
    found.append(Trial("NIfTI", "complex64", _nifti("complex64"), 1, name="a.nii", steps=0.25))
    return found


def _jpeg_12(values: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(values.astype(np.uint16), bitspersample=12, level=100))


def _tiffs() -> list[Trial]:
    found = []
    for bits in (1, 2, 4, 10, 12, 14):
        for zero in (False, True):
            white, black = (0, 2**bits - 1) if zero else (2**bits - 1, 0)
            steps = -1 if zero else 1
            depth = f"grey, {bits} bit{'s' * (bits > 1)}{', white is 0' * zero}"
            found.append(Trial("TIFF", depth, _packed_tiff(bits, zero), white, black, steps=steps))
    for bits in (8, 16):
        full = 2**bits - 1
        found += [
            Trial("TIFF", f"grey, {bits} bits", _tiff(f"uint{bits}"), full),
            Trial("TIFF", f"grey, {bits} bits, white is 0", _tiff(f"uint{bits}", "miniswhite"), 0, full, steps=-1),
            Trial("TIFF", f"grey, {bits} bits, LZW", _tiff(f"uint{bits}", compression="lzw", predictor=True), full),
            Trial("TIFF", f"grey, {bits} bits, big-endian", _tiff(f"uint{bits}", byteorder=">"), full),
            Trial("TIFF", f"RGB, {bits} bits", _tiff(f"uint{bits}", "rgb"), full),
            Trial("TIFF", f"RGB and transparency, {bits} bits", _tiff(f"uint{bits}", "rgb", alpha=True), full),
        ]
    for dtype in ("int8", "int16", "int32", "uint32", "int64", "uint64"):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        found.append(
            Trial(
                "TIFF",
                dtype,
                _tiff(dtype),
                high // 2**11 if high > 2**53 else high,
                low // 2**11 if low < -(2**53) else low,
            )
        )
    for dtype in ("float16", "float32", "float64"):
        found.append(Trial("TIFF", f"{dtype} in [0, 1]", _tiff(dtype), 1, steps=2**-10))
    found.append(Trial("TIFF", "float32 beyond [0, 1]", _tiff("float32"), 255))
    return found


def _dicoms() -> list[Trial]:
    found = [Trial("DICOM", "1 bit", _dicom_bit, 1)]
    for bits, signed in (
        (8, False),
        (8, True),
        (10, False),
        (12, False),
        (12, True),
        (16, False),
        (16, True),
        (32, False),
    ):
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        size = 8 if bits <= 8 else 16 if bits <= 16 else 32
        dtype = f"{'' if signed else 'u'}int{size}"
        for syntax, name in (
            (uid.ExplicitVRLittleEndian, ""), (uid.ImplicitVRLittleEndian, "implicit VR"),
            (uid.ExplicitVRBigEndian, "big-endian"), (uid.DeflatedExplicitVRLittleEndian, "deflated"),
            (uid.RLELossless, "RLE"), (uid.JPEG2000Lossless, "JPEG 2000"), (uid.JPEGLSLossless, "JPEG-LS"),
        ):  # fmt: skip
            if bits == 32 and pydicom.uid.UID(syntax).is_compressed:
                continue
            depth = f"grey, {bits} bits{', signed' * signed}"
            make = _dicom(dtype, bits, syntax)
            found.append(Trial(f"DICOM, {name}".rstrip(", "), depth, make, high, low))
    for bits in (8, 12, 16):
        make = _dicom("uint8" if bits == 8 else "uint16", bits, colour=True)
        found.append(Trial("DICOM", f"RGB, {bits} bits", make, 2**bits - 1))
    found += [
        Trial("DICOM", "FloatPixelData", _dicom_float("FloatPixelData", "<f4"), 1, steps=2**-10),
        Trial("DICOM", "DoubleFloatPixelData", _dicom_float("DoubleFloatPixelData", "<f8"), 1, steps=2**-10),
    ]
    return found


def table() -> str:
    """Format the table of outcomes in docs/formats.md."""
    rows: dict[str, dict[str, list[str]]] = {}
    for trial in trials():
        rows.setdefault(trial.format, {}).setdefault(outcome(trial)[0], []).append(trial.depth)
    lines = ["| format | read | read, with a warning | refused |", "|---|---|---|---|"]
    for name, found in rows.items():
        cells = ("; ".join(found.get(kind, [])) for kind in ("read", "warned", "refused"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
