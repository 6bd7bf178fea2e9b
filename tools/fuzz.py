"""Feed damaged and forged files to every reader of files, and count the outcomes.

    python tools/fuzz.py --inputs 100000 --seed 0

A file must be read, or refused with an error from `fewshot_ad.exceptions`, within 10 seconds and 1 GB. Any other
outcome is a failure: the input is stored in --keep, and the exit status is 1. The same seed gives the same inputs.
Needs Linux: files are read in a forked process, so that crashes, hangs and excessive memory are detected.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pydicom
import tifffile
import torch
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from fewshot_ad import DualDistillationDetector, Student, pretrain
from fewshot_ad.data import images
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.exceptions import FewShotADError
from fewshot_ad.files import model_file
from fewshot_ad.method.packaged import PACKAGED

SECONDS = 10
MEMORY = 10**9
# Limit on allocations, to protect the machine.
_BELT = 8 * 10**9
_SIDE = 32
_PACKAGED = PACKAGED["compact"]
_ODD = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_ODD_JSON = (
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    10**400,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "a" * 1000,
    [],
    [1],
    {},
    "\0",
)
_GREY = np.add.outer(np.arange(34), np.arange(40)).astype(np.uint8) * 3
_COLOUR = np.dstack([_GREY, _GREY[::-1], _GREY[:, ::-1]])


class Format(NamedTuple):
    """One kind of file: valid examples, its readers, and a mutator that knows its structure."""

    seeds: Callable[[], list[bytes]]
    suffixes: tuple[str, ...]
    read: Callable[[Path], Any]
    forge: Callable[[bytes, random.Random], bytes] | None = None
    share: float = 1.0


# ---- readers


def read_image(path: Path) -> None:
    for item in images.frames([path])[:2]:
        with contextlib.suppress(FewShotADError):
            images.size_of(item)
        images.load(item, 0, Geometry(_SIDE))


def read_bytes(path: Path) -> None:
    """Read from memory, as bytes and as an opened file."""
    data = path.read_bytes()
    with contextlib.suppress(FewShotADError):
        images.size_of(data)
    with path.open("rb") as file:
        images.warn_of_mixed_series([file])
        with contextlib.suppress(FewShotADError):
            images.load(file, 0, Geometry(_SIDE))
    images.load(data, 0, Geometry(_SIDE))


def read_link(path: Path) -> None:
    """Read a file through a link without an extension."""
    link = path.with_name("link")
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    read_image(link)


def read_model(path: Path) -> None:
    model_file.describe(path)
    DualDistillationDetector.load(path).decision_function(_COLOUR)


def read_student(path: Path) -> None:
    DualDistillationDetector(init=path, evidence="ssd", image_size=_SIDE, augment=False).fit([_COLOUR, _COLOUR[::-1]])


def read_teacher(path: Path) -> None:
    det = DualDistillationDetector("lcnet_100", weights=path, evidence="patch", image_size=_SIDE, augment=False)
    det.fit([_COLOUR, _COLOUR[::-1]])


def _pretrain(out: Path, **options: Any) -> None:
    options = {"n_steps": 3, "batch_size": 2, "n_shots": 1, "image_size": _SIDE, "verbose": 0, **options}
    tasks = {name: np.stack([_COLOUR, _COLOUR[::-1], _COLOUR // 2]) for name in "abc"}
    pretrain(tasks, out, decoder_blocks=(1, 1, 1), cache=Path(tempfile.gettempdir()) / "fuzz-features", **options)


def read_resume(path: Path) -> None:
    out = path.with_name("resumed.safetensors")
    out.unlink(missing_ok=True)
    os.replace(path, f"{out}.partial")
    _pretrain(out, resume=True)


# ---- valid files


def _picture(kind: str, **options: Any) -> list[bytes]:
    found = []
    modes = {"JPEG": "L RGB CMYK", "PNG": "L RGB RGBA P 1 I;16", "TIFF": "L RGB RGBA P 1 I;16 CMYK F"}.get(
        kind, "L RGB"
    )
    for mode in modes.split():
        values = {"I;16": _GREY.astype(np.uint16) * 200, "F": _GREY.astype(np.float32) / 255}.get(mode, _COLOUR)
        picture = Image.fromarray(values).convert(mode)
        data = io.BytesIO()
        picture.save(data, kind, **options)
        found.append(data.getvalue())
    return found


def _animation(kind: str) -> bytes:
    data = io.BytesIO()
    pictures = [Image.fromarray(_COLOUR), Image.fromarray(_COLOUR[::-1].copy())]
    pictures[0].save(data, kind, save_all=True, append_images=pictures[1:])
    return data.getvalue()


def _jpegs() -> list[bytes]:
    exif = Image.Exif()
    exif[274] = 6
    return [*_picture("JPEG"), *_picture("JPEG", progressive=True, exif=exif)]


def _tiffs() -> list[bytes]:
    found = [_animation("TIFF"), *_picture("TIFF"), *_picture("TIFF", compression="tiff_lzw")]
    wide = _GREY.astype(np.uint16) * 100
    for values, options in (
        (wide, {}), (wide, {"compression": "zlib", "predictor": True}), (_COLOUR, {"compression": "jpeg2000"}),
        (np.moveaxis(_COLOUR, -1, 0), {"planarconfig": "separate", "photometric": "rgb"}), (wide / 65535, {}),
        (_COLOUR, {"tile": (16, 16), "compression": "lzma"}),
        (np.stack([wide] * 3), {"bigtiff": True, "byteorder": ">"}), (np.stack([wide] * 3), {"imagej": True}),
    ):  # fmt: skip
        data = io.BytesIO()
        tifffile.imwrite(data, values, **{"photometric": "rgb" if values.shape[-1] == 3 else "minisblack", **options})
        found.append(data.getvalue())
    return found


def _dicoms() -> list[bytes]:
    found = []
    for values, syntax, fields in (
        (_GREY, uid.ExplicitVRLittleEndian, {"WindowCenter": 40, "WindowWidth": 80, "RescaleSlope": 2}),
        (_GREY.astype(np.uint16) * 16, uid.ImplicitVRLittleEndian, {"PhotometricInterpretation": "MONOCHROME1"}),
        (np.stack([_GREY] * 3), uid.ExplicitVRLittleEndian, {"NumberOfFrames": 3}),
        (_GREY, uid.DeflatedExplicitVRLittleEndian, {"PixelPaddingValue": 0}),
        (_GREY.astype(np.uint16), uid.ExplicitVRBigEndian, _palettes()),
        (_COLOUR, uid.RLELossless, {}), (_GREY, uid.JPEG2000Lossless, {}), (_GREY, uid.JPEGLSLossless, {}),
    ):  # fmt: skip
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if syntax.is_compressed else syntax
        header.SOPClassUID, header.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
        header.SeriesInstanceUID = "1.2.4"
        n_colours = 3 if values.shape[-1] == 3 else 1
        header.Rows, header.Columns = values.shape[-3:-1] if n_colours == 3 else values.shape[-2:]
        header.SamplesPerPixel, header.PhotometricInterpretation = n_colours, "RGB" if n_colours == 3 else "MONOCHROME2"
        if n_colours == 3:
            header.PlanarConfiguration = 0
        header.BitsAllocated = header.BitsStored = 8 * values.itemsize
        header.HighBit, header.PixelRepresentation = header.BitsStored - 1, 0
        header.PixelData = values.tobytes()
        for name, value in fields.items():
            setattr(header, name, value)
            if name.startswith("PixelPadding"):
                header[name].VR = "US"
        if syntax.is_compressed:
            header.compress(syntax, generate_instance_uid=False)
        found.append(_dicom_bytes(header))
    return found


def _palettes() -> dict[str, Any]:
    fields: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        fields[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        fields[f"{name}PaletteColorLookupTableData"] = np.arange(256, dtype=">u2").tobytes()
    return fields


def _headerless() -> list[bytes]:
    """Create files like those of old scanners, without the 128-byte preamble and group 0002."""
    found = (data[144 + int.from_bytes(data[140:144], "little") :] for data in _dicoms()[:3])
    return [*found, _dicoms()[3]]


def _of_all_kinds() -> list[bytes]:
    return [*_picture("PNG"), *_jpegs(), *_tiffs(), *_dicoms(), *_niftis(), *_picture("JPEG2000"), *_deep()]


def _deep() -> list[bytes]:
    """Create a PNG, a PPM and a JPEG 2000 in 16-bit colour."""
    import imagecodecs

    wide = _COLOUR.astype(np.uint16) * 257
    return [
        imagecodecs.png_encode(wide), imagecodecs.jpeg2k_encode(wide, level=0),
        b"P6 40 34 65535\n" + wide.astype(">u2").tobytes(),
    ]  # fmt: skip


def _dicom_bytes(header: Dataset) -> bytes:
    data = io.BytesIO()
    header.save_as(data, enforce_file_format=True)
    return data.getvalue()


def _niftis() -> list[bytes]:
    volumes = (_GREY, np.stack([_GREY.astype(np.int16)] * 3, -1), np.ones((4, 5, 3, 2), np.float32))
    plain = [nibabel.Nifti1Image(volume, np.diag([-1, 1, 2, 1])).to_bytes() for volume in volumes]
    return [*plain, nibabel.Nifti2Image(volumes[1], np.eye(4)).to_bytes()]


def _models() -> list[bytes]:
    found = []
    for options in ({}, {"evidence": "patch"}, {"student": Student(n_steps=1, decoder_blocks=(1, 1, 1)), "init": None}):
        det = DualDistillationDetector(image_size=_SIDE, augment=False, random_state=0, **options)
        with tempfile.TemporaryDirectory() as folder:
            det.fit([_COLOUR, _COLOUR[::-1]]).save(Path(folder, "a.fsad"), support=True)
            found.append(Path(folder, "a.fsad").read_bytes())
    return found


def _resumes() -> list[bytes]:
    """Create the checkpoint of a pretraining that is interrupted in its second step."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "student.safetensors")
        child = os.fork()
        if child == 0:
            from fewshot_ad.training.loop import Training

            step = Training.step

            def once(training: Training) -> float:
                if training.curve:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(training)

            Training.step = once  # type: ignore[method-assign]
            _pretrain(out, checkpoint_minutes=0)
        os.waitpid(child, 0)
        return [Path(f"{out}.partial").read_bytes()]


# ---- mutations


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Damage bytes by flips, lengths, cuts, splices and repeats; more often in headers, which describe the rest."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(min(len(found), rng.choice((64, 512, len(found)))) or 1) if found else 0
        other = rng.choice(others)
        n = rng.choice((1, 2, 4, 16, 64, 1024))
        match rng.randrange(9):
            case 0 if found:
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at : at + n] = rng.randbytes(n)
            case 2:
                width, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
                found[at : at + width] = (rng.choice(_ODD) % 256**width).to_bytes(width, order)
            case 3:
                del found[rng.randrange(len(found) + 1) :]
            case 4:
                del found[at : at + n]
            case 5:
                found[at:at] = found[at : at + n] * rng.choice((1, 2, 50))
            case 6:
                start = rng.randrange(len(other))
                found[at:] = other[start:]
            case 7:
                start = rng.randrange(len(other))
                found[at : at + n] = other[start : start + n]
            case 8:  # numbers written as text
                digits = [i for i in range(min(len(found), 4096)) if found[i] in b"0123456789"]
                if digits:
                    found[rng.choice(digits)] = rng.choice(b"0123456789-.eE")
    return bytes(found)


def forge_png(data: bytes, rng: random.Random) -> bytes:
    """Change a chunk, and correct its checksum."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (n,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + n]))
        at += 12 + n
    i = rng.randrange(len(chunks))
    kind, body = chunks[i]
    if kind == b"IHDR" and rng.random() < 0.5:
        fields = list(struct.unpack(">IIBBBBB", body))
        j = rng.randrange(7)
        fields[j] = rng.choice(_ODD) % (256 if j > 1 else 2**32)
        body = struct.pack(">IIBBBBB", *fields)
    elif kind == b"IDAT" and rng.random() < 0.5:  # the compressed data has another length
        body = zlib.compress(mutate(zlib.decompress(body), [body], rng))
    elif body:
        body = mutate(body, [body], rng)
    chunks[i] = kind, body
    if rng.random() < 0.2:
        extra = rng.choice((b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"eXIf", b"gAMA"))
        chunks.insert(
            rng.randrange(1, len(chunks) + 1), (extra, b"a\0\0" + zlib.compress(bytes(10**6)) * rng.randrange(2))
        )
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def forge_tiff(data: bytes, rng: random.Random) -> bytes:
    """Change fields of the first directory."""
    found = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    if struct.unpack_from(order + "H", data, 2)[0] != 42:
        return mutate(data, [data], rng)
    (at,) = struct.unpack_from(order + "I", data, 4)
    (n,) = struct.unpack_from(order + "H", data, at)
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry = at + 2 + 12 * rng.randrange(n)
        kind = struct.unpack_from(order + "H", data, entry + 2)[0]
        match rng.randrange(8):
            case 0:
                struct.pack_into(
                    order + "H",
                    found,
                    entry,
                    rng.choice((256, 257, 258, 259, 262, 273, 277, 278, 279, 317, 322, 330, 338, 339, 700)),
                )
            case 1:
                struct.pack_into(order + "H", found, entry + 2, rng.randrange(20))
            case 2:
                struct.pack_into(order + "I", found, entry + 4, rng.choice(_ODD))
            case _:
                form, mask = ("H", 2**16) if kind == 3 else ("I", 2**32)
                struct.pack_into(order + form, found, entry + 8, rng.choice(_ODD) % mask)
    return bytes(found)


def forge_dicom(data: bytes, rng: random.Random) -> bytes:
    """Change elements to values that a writer would or should refuse."""
    header = pydicom.dcmread(io.BytesIO(data))
    names = (
        "Rows Columns SamplesPerPixel BitsAllocated BitsStored HighBit PixelRepresentation PlanarConfiguration "
        "PixelData NumberOfFrames PhotometricInterpretation WindowCenter WindowWidth RescaleSlope RescaleIntercept "
        "VOILUTFunction TransferSyntaxUID SeriesInstanceUID SOPClassUID SpecificCharacterSet PixelPaddingValue "
        "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableData"
    ).split()
    for name in rng.sample(names, rng.choice((1, 1, 2, 3))):
        value: Any = rng.choice(_ODD)
        match name:
            case "PixelData":
                header.PixelData = mutate(header.PixelData, [data], rng) if "PixelData" in header else b""
                continue
            case "RedPaletteColorLookupTableDescriptor":
                value = [rng.choice(_ODD) % 2**16 for _ in range(3)]
            case "GreenPaletteColorLookupTableData":
                value = rng.randbytes(rng.choice((0, 1, 2, 255, 256, 511, 512, 4000)))
            case "TransferSyntaxUID":
                header.file_meta.TransferSyntaxUID = rng.choice((
                    uid.ExplicitVRBigEndian, uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEG2000, uid.JPEGLSLossless,
                    uid.HTJ2K, uid.DeflatedExplicitVRLittleEndian, uid.JPEGLosslessSV1, uid.MPEG2MPML, uid.UID("1.2.3"),
                ))  # fmt: skip
                continue
            case "PhotometricInterpretation":
                value = rng.choice(("RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "MONOCHROME1", "", "X" * 100))
            case "VOILUTFunction" | "SpecificCharacterSet":
                value = rng.choice(("SIGMOID", "ISO_IR 100", "", "\\", "ISO 2022 IR 87"))
            case "SeriesInstanceUID" | "SOPClassUID":
                value = rng.choice(("", "1" * 100, "not a uid"))
            case _ if name.startswith(("Window", "Rescale", "NumberOf")):
                value = rng.choice(("", "0", "-1", "1e308", "1E999", "2147483647", "1\\2", "x", "nan", "-0", value))
            case _:
                value = value % 2**16
        element = pydicom.DataElement(
            pydicom.datadict.tag_for_keyword(name), pydicom.datadict.dictionary_VR(name), None
        )
        element._value = value  # past the checks
        header[element.tag] = element
        if rng.random() < 0.1:
            del header[element.tag]
    return _dicom_bytes(header)


def _forge_json(tree: Any, rng: random.Random) -> Any:
    """Change or remove one value or name somewhere in a tree."""
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.1:
        return rng.choice((*_ODD_JSON, copy.deepcopy(tree)))
    key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
    chance = rng.random()
    if chance < 0.1:
        del tree[key]
    elif chance < 0.15 and isinstance(tree, dict):
        tree[rng.choice(("", "x", "\0", "a" * 500))] = tree.pop(key)
    elif isinstance(tree[key], str) and tree[key][:1] == "{":
        tree[key] = json.dumps(_forge_json(json.loads(tree[key]), rng))
    else:
        tree[key] = _forge_json(tree[key], rng)
    return tree


def forge_tensors(data: bytes, rng: random.Random) -> bytes:
    """Change the index, its JSON, or tensors' values."""
    end = 8 + int.from_bytes(data[:8], "little")
    index, body = json.loads(data[8:end]), bytearray(data[end:])
    if rng.random() < 0.6 and "header" in index.get("__metadata__", {}):
        header = json.loads(index["__metadata__"]["header"])
        for _ in range(rng.choice((1, 1, 2))):
            header = _forge_json(header, rng)
        index["__metadata__"]["header"] = json.dumps(header)
    elif rng.random() < 0.7:
        index = _forge_json(index, rng)
    else:
        for _ in range(4):
            at = rng.randrange(len(body))
            body[at : at + 8] = rng.choice(
                (b"\0\0\xc0\x7f\0\0\xf8\x7f", b"\0\0\x80\x7f\0\0\xf0\x7f", rng.randbytes(8))
            )[: len(body) - at]
    said = json.dumps(index).encode()
    return len(said).to_bytes(8, "little") + said + bytes(body)


def forge_model(data: bytes, rng: random.Random) -> bytes:
    """Do the same, and correct the checksum where it can be computed."""
    found = forge_tensors(data, rng)
    with contextlib.suppress(Exception):
        from safetensors.torch import load

        end = 8 + int.from_bytes(found[:8], "little")
        index = json.loads(found[8:end])
        header = json.loads(index["__metadata__"]["header"])
        header.pop("sha256", None)
        header["sha256"] = model_file._digest(header, load(found))
        index["__metadata__"]["header"] = json.dumps(header)
        said = json.dumps(index).encode()
        found = len(said).to_bytes(8, "little") + said + found[end:]
    return found


FORMATS = {
    "PNG": Format(lambda: [*_picture("PNG"), _animation("PNG")], (".png",), read_image, forge_png, 4),
    "JPEG": Format(_jpegs, (".jpg",), read_image, None, 4),
    "TIFF": Format(_tiffs, (".tif",), read_image, forge_tiff, 4),
    "DICOM": Format(_dicoms, (".dcm", ""), read_image, forge_dicom, 4),
    "DICOM, bare": Format(_headerless, ("", ".dcm"), read_image, None, 2),
    "as bytes": Format(_of_all_kinds, ("", ".nii", ".dcm"), read_bytes, None, 4),
    "by a link": Format(_of_all_kinds, ("", ".nii", ".dcm"), read_link, None, 2),
    "deep": Format(_deep, ("",), read_image, None, 2),
    "NIfTI": Format(_niftis, (".nii",), read_image),
    "others of Pillow": Format(
        lambda: [
            *(data for kind in ("BMP", "GIF", "JPEG2000", "PPM", "WEBP") for data in _picture(kind)),
            _animation("GIF"), _animation("WEBP"),
        ],
        (".bmp", ".gif", ".jp2", ".ppm", ".webp"), read_image,
    ),
    ".fsad": Format(_models, (".fsad",), read_model, forge_model, 2),
    "student": Format(lambda: [_PACKAGED.student.read_bytes()], (".safetensors",), read_student, forge_tensors, 0.3),
    "teacher": Format(lambda: [_PACKAGED.teacher.read_bytes()], (".safetensors",), read_teacher, forge_tensors, 0.2),
    "resume": Format(_resumes, (".safetensors",), read_resume, forge_tensors, 0.1),
}  # fmt: skip


def make_input(name: str, seeds: list[bytes], number: int, seed: int) -> tuple[bytes, str]:
    """Create a reproducible input and its file extension."""
    rng = random.Random(f"{seed} {name} {number}")
    form = FORMATS[name]
    data = rng.choice(seeds)
    suffix = rng.choice(form.suffixes)
    chance = rng.random()
    if chance < 0.01:
        return rng.randbytes(rng.choice((0, 1, 8, 132, 4000))), suffix
    if chance < 0.04:
        return data, rng.choice((".dcm", ".nii", ".nii.gz", ".tif", ".png", ".jpg", ""))
    if chance < 0.5 and form.forge is not None:
        with contextlib.suppress(Exception):  # the library refuses to write it: damage it instead
            return form.forge(data, rng), suffix
    return mutate(data, seeds, rng), suffix


# ---- running


def _peak(clear: bool = False) -> int:
    """Return the peak memory of this process since the last reset, bytes."""
    if clear:
        Path("/proc/self/clear_refs").write_text("5")
    entries = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(entries["VmHWM"].split()[0]) * 1024


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def judge(read: Callable[[Path], Any], path: Path) -> tuple[str, str]:
    """Read one file; return the outcome, and the reason if it is a failure."""
    before = _peak(clear=True)
    failure, outcome = "", "read"
    try:
        read(path)
    except FewShotADError as error:
        outcome = type(error).__name__
        if _out_of_memory(error):
            failure = traceback.format_exc()
    except Exception as error:
        outcome, failure = f"raised {type(error).__name__}", traceback.format_exc()
    if (grown := _peak() - before) > MEMORY:
        failure = f"took {grown / 1e9:.2f} GB\n{failure}"
    return outcome, failure


def _child(name: str, seeds: list[bytes], numbers: range, seed: int, folder: Path, pipe: int) -> None:
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # ends the process, wherever it is
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _BELT, size + _BELT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C decoders print there
    warnings.simplefilter("ignore")
    with os.fdopen(pipe, "w") as said:
        for number in numbers:
            data, suffix = make_input(name, seeds, number, seed)
            path = folder / f"input{suffix}"
            path.write_bytes(data)
            # Processor time, as a busy machine is no failure; a deadlock uses none.
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(20 * SECONDS)
            outcome, failure = judge(FORMATS[name].read, path)
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            said.write(json.dumps([number, outcome, failure]) + "\n")
            said.flush()


def run(name: str, n: int, seed: int, keep: Path) -> collections.Counter[str]:
    """Feed n inputs of one format; count the outcomes, and store the inputs that failed."""
    seeds, counts, start = FORMATS[name].seeds(), collections.Counter[str](), 0

    def fail(number: int, why: str) -> None:
        data, suffix = make_input(name, seeds, number, seed)
        keep.mkdir(parents=True, exist_ok=True)
        place = keep / f"{name.strip('.').replace(' ', '_')}-{seed}-{number}{suffix}"
        place.write_bytes(data)
        place.with_name(f"{place.name}.txt").write_text(why)
        counts["FAILED"] += 1

    for number, data in enumerate(seeds):  # check that valid examples are read
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"seed{FORMATS[name].suffixes[0]}")
            path.write_bytes(data)
            try:
                FORMATS[name].read(path)
            except FewShotADError as error:
                if "each entry must be one image" not in str(error):
                    raise RuntimeError(f"seed {number} of {name} is no such file") from error
    while start < n:
        with tempfile.TemporaryDirectory() as folder:
            out, into = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(out)
                try:
                    _child(name, seeds, range(start, n), seed, Path(folder), into)
                finally:
                    os._exit(0)
            os.close(into)
            with os.fdopen(out) as said:
                for line in said:
                    number, outcome, failure = json.loads(line)
                    start = number + 1
                    counts[outcome] += 1
                    if failure:
                        fail(number, failure)
            status = os.waitpid(child, 0)[1]
        if start < n:  # an input killed the child
            died = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "an error of this script"
            outcome = f"over {SECONDS} s" if died in ("SIGPROF", "SIGALRM") else f"ended by {died}"
            counts[outcome] += 1
            fail(start, outcome)
            start += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=1000, help="over all formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for inputs that failed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    total = sum(FORMATS[name].share for name in arguments.formats)
    failed = 0
    print(f"| {'format':<16} | inputs | outcomes\n|---|---|---")
    for name in arguments.formats:
        n = -int(-arguments.inputs * FORMATS[name].share // total)
        counts = run(name, n, arguments.seed, arguments.keep)
        failed += counts["FAILED"]
        print(f"| {name:<16} | {n} | {', '.join(f'{what} {k}' for what, k in counts.most_common())}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
