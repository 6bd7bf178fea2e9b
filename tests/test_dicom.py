"""DICOM: pixels are read like pydicom's, or the element at fault is named."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from format_trials import dicom_bytes
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from fewshot_ad.data import dicom
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.data.images import Frame, frames, load
from fewshot_ad.exceptions import ImageError

H, W = 36, 40
_rng = np.random.default_rng(3)
GREY = _rng.integers(0, 256, (H, W), dtype=np.uint8)
COLOUR = _rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
WINDOW = {"WindowCenter": 128, "WindowWidth": 256}
IMPLICIT, BIG, DEFLATED = uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian
SYNTAXES = [uid.ExplicitVRLittleEndian, IMPLICIT, BIG, DEFLATED]


def read(item, **options) -> torch.Tensor:
    return load(item, 0, Geometry(8), **options)


def unit(values: np.ndarray, low: float, high: float) -> torch.Tensor:
    return read(np.clip((values.astype(float) - low) / (high - low), 0, 1))


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def refusal(item) -> str:
    with pytest.raises(ImageError) as caught:
        read(item)
    return str(caught.value)


def altered(data: bytes, *without: str, **fields) -> bytes:
    """Change or remove elements, and write the file without validation."""
    found = pydicom.dcmread(io.BytesIO(data))
    for name in without:
        del found[name]
    for name, value in fields.items():
        if name == "PixelPaddingValue":
            found.add_new(name, "US", value)
        else:
            setattr(found, name, value)
    out = io.BytesIO()
    found.save_as(out)
    return out.getvalue()


def headerless(data: bytes) -> bytes:
    """Remove the header of 128 bytes and group 0002, as in files of old scanners."""
    return data[144 + int.from_bytes(data[140:144], "little") :]


# --- transfer syntaxes


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "values", [GREY, GREY[:35, :39], COLOUR, np.stack([GREY, GREY[::-1]])], ids=["grey", "odd", "colour", "frames"]
)
def test_uncompressed_syntaxes_agree(tmp_path, syntax, values):
    several = {"NumberOfFrames": 2} if values.shape[0] == 2 else {}
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(values, syntax, **(WINDOW if values.ndim == 2 or several else {}), **several))
    expected = values[1] if several else values
    assert_near(read(frames(path)[-1]), unit(expected, 0, 255), 0.003)


def test_implicit_elements_in_an_explicit_syntax():
    path = get_testdata_file("SC_rgb_jpeg.dcm", download=False)
    assert_near(read(path), read(pydicom.dcmread(path).pixel_array))


@pytest.mark.parametrize("n_frames", [1, 3])
def test_frame_of_a_compressed_file(tmp_path, monkeypatch, n_frames):
    """A frame that cannot be decoded separately is decoded from the whole file."""
    stack = _rng.integers(0, 256, (3, H, W), dtype=np.uint8)
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(stack, uid.JPEGLSLossless, NumberOfFrames=3, **WINDOW))
    found = [read(frame) for frame in frames(path)]

    def fails(*_):
        raise ValueError("unusual")

    monkeypatch.setattr(dicom.Dicom, "_decode_part", fails)
    for index, frame in enumerate(frames(path)):
        assert_near(read(frame), found[index], 0)
        assert_near(found[index], unit(stack[index], 0, 255), 0.003)


def test_deflated_file_of_excessive_size(monkeypatch):
    monkeypatch.setattr(dicom, "_LONGEST_INFLATED", 1000)
    assert "unpacks to more than 1000 bytes" in refusal(dicom_bytes(GREY, DEFLATED))


def test_advice_to_convert(tmp_path, monkeypatch):
    """An undecodable file is read after conversion to Explicit VR Little Endian by another program."""
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(GREY, uid.JPEGLSLossless, **WINDOW))
    data = pydicom.dcmread(path)
    data.decompress()
    decoder = pydicom.pixels.get_decoder(uid.JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    assert "no decoder for that is installed" in refusal(path)
    data.save_as(path)
    assert data.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    assert_near(read(path), unit(GREY, 0, 255), 0.003)


# --- files without their header


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, IMPLICIT, BIG], ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["a.dcm", "IM0001"])
def test_files_without_header_are_read(tmp_path, syntax, name):
    path = tmp_path / name
    path.write_bytes(headerless(dicom_bytes(GREY.astype(np.uint16), syntax, **WINDOW)))
    assert_near(read(path), unit(GREY, 0, 255), 0.003)


def test_compressed_pixels_without_a_transfer_syntax():
    message = refusal(headerless(dicom_bytes(GREY, uid.RLELossless)))
    assert "TransferSyntaxUID (0002,0010)" in message
    assert "compressed" in message


def test_wrong_transfer_syntax(tmp_path):
    path = tmp_path / "a.dcm"
    whole = dicom_bytes(GREY, uid.RLELossless, **WINDOW)
    path.write_bytes(whole.replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0"))
    message = refusal(path)
    assert "compressed pixels, but TransferSyntaxUID (0002,0010)" in message
    assert "Set it with pydicom" in message
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = uid.RLELossless
    ds.save_as(path)
    assert_near(read(path), unit(GREY, 0, 255), 0.003)


def test_missing_transfer_syntax():
    data = dicom_bytes(GREY, **WINDOW)
    without = data.replace(b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0", b"")
    length = int.from_bytes(data[140:144], "little") - 28
    without = without[:140] + length.to_bytes(4, "little") + without[144:]
    assert len(without) == len(data) - 28
    assert_near(read(without), unit(GREY, 0, 255), 0.003)


@pytest.mark.parametrize("content", [b"no image at all", bytes(500), b"\x08\0\x05\0" + bytes(200)])
def test_files_that_are_not_dicom(tmp_path, content):
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    message = refusal(path)
    assert str(path) in message
    assert "not a DICOM file" in message


# --- missing, empty and damaged elements

_NEEDED = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
]


@pytest.mark.parametrize("name", _NEEDED)
@pytest.mark.parametrize("how", ["missing", "empty"])
@pytest.mark.parametrize("n_frames", [1, 2])
@pytest.mark.filterwarnings("ignore:::pydicom")
def test_missing_element_is_named(tmp_path, name, how, n_frames):
    values = GREY if n_frames == 1 else np.stack([GREY] * 2)
    path = tmp_path / "a.dcm"
    whole = dicom_bytes(values, **WINDOW, **({} if n_frames == 1 else {"NumberOfFrames": 2}))
    kept = pydicom.dcmread(io.BytesIO(whole))[name].value
    path.write_bytes(altered(whole, name) if how == "missing" else altered(whole, **{name: None}))
    message = refusal(frames(path)[0])
    assert f"{name} ({pydicom.datadict.tag_for_keyword(name) >> 16:04X}," in message
    assert "without pixel data" not in message
    ds = pydicom.dcmread(path)  # literally the advice
    setattr(ds, name, kept)
    ds.save_as(path)
    assert f"ds = pydicom.dcmread(path); ds.{name} = ...; ds.save_as(path)" in message
    assert_near(read(frames(path)[0]), unit(GREY, 0, 255), 0.003)


def test_missing_planar_configuration():
    assert "PlanarConfiguration (0028,0006)" in refusal(altered(dicom_bytes(COLOUR), "PlanarConfiguration"))


@pytest.mark.parametrize("planar", [0, 1])
def test_planar_colours(planar):
    stored = COLOUR if planar == 0 else np.moveaxis(COLOUR, -1, 0)
    data = altered(dicom_bytes(COLOUR), PlanarConfiguration=planar, PixelData=np.ascontiguousarray(stored).tobytes())
    assert_near(read(data), unit(COLOUR, 0, 255))


def test_no_pixel_data():
    message = refusal(altered(dicom_bytes(GREY), "PixelData"))
    assert "without pixel data. Leave it out" in message
    assert refusal(altered(dicom_bytes(GREY), PixelData=b"")).endswith("without pixel data. Leave it out.")
    message = refusal(altered(dicom_bytes(GREY), "PixelData", "Rows", "Columns"))
    assert "without an image (Secondary Capture Image Storage). Leave it out" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": None, "RescaleIntercept": 0},
        {"RescaleIntercept": None},
        {"RescaleSlope": 1},
        {"VOILUTFunction": ""},
        {"VOILUTFunction": None},
        {"NumberOfFrames": None},
        {"NumberOfFrames": 0},
        {"PixelPaddingValue": None},
        {"ModalityLUTSequence": []},
        {"ModalityLUTSequence": None},
        {"SeriesInstanceUID": None},
        {"Modality": None},
        {"SharedFunctionalGroupsSequence": None, "PerFrameFunctionalGroupsSequence": []},
        {"VOILUTSequence": None},
    ],
    ids=str,
)
def test_empty_elements_count_as_missing(fields):
    data = altered(dicom_bytes(GREY, **WINDOW), **fields)
    assert_near(read(data), read(dicom_bytes(GREY, **WINDOW)), 0)


@pytest.mark.parametrize(
    "fields", [{"WindowCenter": None}, {"WindowWidth": None}, {"WindowCenter": None, "WindowWidth": None}]
)
def test_empty_window(fields):
    data = altered(dicom_bytes(GREY, **WINDOW), **fields)
    assert_near(read(data), unit(GREY, *np.percentile(GREY, [0.5, 99.5])))


def test_a_slope_alone_is_applied():
    assert_near(read(dicom_bytes(GREY, RescaleSlope=2, **WINDOW)), unit(GREY * 2.0, 0, 255), 0.003)


@pytest.mark.filterwarnings("ignore:::pydicom")
@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "NumberOfFrames"])
def test_invalid_number_is_named(name):
    data = dicom_bytes(GREY, RescaleSlope=1, RescaleIntercept=0, NumberOfFrames=1, **WINDOW)
    place = data.index(
        pydicom.tag.Tag(name).to_bytes(4, "big")[1::-1] + pydicom.tag.Tag(name).to_bytes(4, "big")[:1:-1]
    )
    length = int.from_bytes(data[place + 6 : place + 8], "little")
    message = refusal(data[: place + 8] + b"x" * length + data[place + 8 + length :])
    assert name in message
    assert "Correct it with pydicom" in message
    ds = pydicom.dcmread(io.BytesIO(data[: place + 8] + b"x" * length + data[place + 8 + length :]))
    setattr(ds, name, {"RescaleSlope": 1, "RescaleIntercept": 0, "NumberOfFrames": 1, **WINDOW}[name])
    repaired = io.BytesIO()
    ds.save_as(repaired)
    assert_near(read(repaired), read(data), 0)


@pytest.mark.filterwarnings("ignore:::pydicom")
def test_spaces_and_case_of_photometric_interpretations():
    assert_near(
        read(altered(dicom_bytes(GREY, **WINDOW), PhotometricInterpretation="MONOCHROME2 ")), unit(GREY, 0, 255), 0.003
    )


# --- padding


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("window", [None, (-100, 300)])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, IMPLICIT, BIG], ids=lambda s: s.name)
def test_padding_is_black_and_excluded_from_percentiles(syntax, inverted, window):
    values = _rng.integers(-200, 400, (H, W)).astype(np.int16)
    padded = values.copy()
    padded[:, :20] = -2000
    kind = "MONOCHROME1" if inverted else "MONOCHROME2"
    fields = {"PhotometricInterpretation": kind, "RescaleSlope": 1, "RescaleIntercept": 0, "PixelPaddingValue": -2000}
    found = read(dicom_bytes(padded, syntax, **fields), value_range=window)
    low, high = window or np.percentile(values[:, 20:], [0.5, 99.5])
    expected = np.clip((padded.astype(float) - low) / (high - low), 0, 1)
    expected = 1 - expected if inverted else expected
    expected[:, :20] = 0
    assert_near(found, read(expected))
    assert (found[:, :, :3] == 0).all()


@pytest.mark.parametrize("limits", [(-3000, -2000), (-2000, -3000)])
def test_padding_range(limits):
    values = _rng.integers(0, 400, (H, W)).astype(np.int16)
    values[:6], values[6:12] = -2500, -2000
    data = dicom_bytes(values, PixelPaddingValue=limits[0], PixelPaddingRangeLimit=limits[1])
    expected = np.clip(
        (values - np.percentile(values[12:], 0.5)) / np.ptp(np.percentile(values[12:], [0.5, 99.5])), 0, 1
    )
    expected[:12] = 0
    assert_near(read(data), read(expected))


@pytest.mark.parametrize(("dtype", "stored", "declared"), [("int16", -2000, 63536), ("uint16", 63536, -2000)])
def test_padding_with_the_other_sign(dtype, stored, declared):
    values = _rng.integers(0, 400, (H, W)).astype(dtype)
    values[:12] = stored
    data = dicom_bytes(values)
    kind = "<i2" if declared < 0 else "<u2"
    element = b"\x28\0\x20\x01" + (b"SS" if declared < 0 else b"US") + b"\x02\0" + np.array(declared, kind).tobytes()
    place = data.index(b"\xe0\x7f\x10\0")
    found = read(data[:place] + element + data[place:])
    expected = np.clip(
        (values.astype(float) - np.percentile(values[12:], 0.5)) / np.ptp(np.percentile(values[12:], [0.5, 99.5])), 0, 1
    )
    expected[:12] = 0
    assert_near(found, read(expected))


def test_image_of_padding_only():
    assert (read(dicom_bytes(np.full((H, W), -2000, np.int16), PixelPaddingValue=-2000)) == 0).all()


@pytest.mark.parametrize(("name", "dtype"), [("Float", "<f4"), ("DoubleFloat", "<f8")])
def test_float_pixels(name, dtype):
    values = _rng.uniform(-3, 5, (H, W)).astype(dtype)
    values[:6], values[6:12] = np.nan, -99
    data = altered(
        dicom_bytes(GREY), "PixelData", "BitsStored", "HighBit", "PixelRepresentation",
        BitsAllocated=8 * values.itemsize,
        **{f"{name}PixelData": values.tobytes(), f"{name}PixelPaddingValue": -99.0},
    )  # fmt: skip
    low, high = np.percentile(values[12:], [0.5, 99.5])
    expected = np.clip((values.astype(float) - low) / (high - low), 0, 1)
    expected[:12] = 0
    assert_near(read(data), read(expected), 1e-5)


# --- lookup tables


def palettes(tables: np.ndarray, depth: int, first: int = 0, dtype: str = "<u2", n_entries: int | None = None) -> dict:
    fields = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue", "Alpha"), tables, strict=False):
        fields[f"{name}PaletteColorLookupTableDescriptor"] = [
            len(values) if n_entries is None else n_entries,
            first,
            depth,
        ]
        data = values.astype(dtype).tobytes()
        fields[f"{name}PaletteColorLookupTableData"] = data + b"\0" * (len(data) % 2)
    return fields


_TABLES = _rng.integers(0, 256, (3, 256))
_TABLES[:, :2] = 0, 255


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, IMPLICIT, BIG, uid.RLELossless], ids=lambda s: s.name)
@pytest.mark.parametrize("how", ["bytes", "words", "twice over", "16 bits", "16 bits of 8", "high bytes", "12 bits"])
def test_palettes_use_full_scale(syntax, how):
    order = ">" if syntax == BIG else "<"
    kept = _TABLES * {"twice over": 257, "16 bits": 257, "high bytes": 256, "12 bits": 16}.get(how, 1)
    kept = kept + 15 * (kept > 4000) if how == "12 bits" else kept
    depth = 16 if how.startswith("16") or how == "high bytes" else 12 if how == "12 bits" else 8
    fields = palettes(kept, depth, dtype="u1" if how == "bytes" and syntax != BIG else f"{order}u2")
    if how == "bytes" and syntax == BIG:
        fields.update(
            {
                k: v[::2] and np.frombuffer(v, ">u2").astype("u1").reshape(-1, 2)[:, ::-1].tobytes()
                for k, v in fields.items()
                if k.endswith("Data")
            }
        )
    expected = unit(np.moveaxis(_TABLES[:, GREY], 0, -1), 0, 255)
    assert_near(read(dicom_bytes(GREY, syntax, **fields)), expected, 0.005)


@pytest.mark.parametrize("n_entries", [3, 7, 200])
@pytest.mark.parametrize("first", [0, 5])
def test_palettes_with_few_entries_and_an_offset(n_entries, first):
    tables = _TABLES[:, :n_entries]
    data = dicom_bytes(GREY, **palettes(tables, 8, first, "u1"))
    index = np.clip(GREY.astype(int) - first, 0, n_entries - 1)
    assert_near(read(data), unit(np.moveaxis(tables[:, index], 0, -1), 0, 255))


def test_palette_of_65536_entries():
    tables = np.stack([np.arange(65536), np.arange(65536)[::-1], np.arange(65536)])
    index = _rng.integers(0, 65536, (H, W)).astype(np.uint16)
    data = dicom_bytes(index, **palettes(tables, 16, n_entries=0))
    assert_near(read(data), unit(np.moveaxis(tables[:, index], 0, -1), 0, 65535))


@pytest.mark.parametrize("depth", [8, 16])
def test_segmented_palettes(depth):
    """Discrete entries, then a line to the last value (PS3.3, C.7.9.2)."""
    white = 2**depth - 1
    segments = np.array([0, 2, 0, white, 1, 254, 0])
    fields = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        fields[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, depth]
        data = segments.astype("u1" if depth == 8 else "<u2").tobytes()
        fields[f"Segmented{name}PaletteColorLookupTableData"] = data + b"\0" * (len(data) % 2)
    if depth == 8:
        fields = {k: v[:7] + b"" if isinstance(v, bytes) else v for k, v in fields.items()}
    table = np.concatenate([[0, white], np.round(np.linspace(white, 0, 255)[1:])])
    assert_near(read(dicom_bytes(GREY, **fields)), unit(np.dstack([table[GREY]] * 3), 0, white), 0.005)


def test_damaged_palettes_are_named():
    fields = palettes(_TABLES, 8)
    assert "RedPaletteColorLookupTableDescriptor" in refusal(
        dicom_bytes(GREY, PhotometricInterpretation="PALETTE COLOR")
    )
    short = {**fields, "GreenPaletteColorLookupTableData": b"\0" * 20}
    assert "GreenPaletteColorLookupTableData has 20 entries, but 256 are declared" in refusal(
        dicom_bytes(GREY, **short)
    )
    none = {k: v for k, v in fields.items() if not k.endswith("Data")}
    assert "palettes" in refusal(dicom_bytes(GREY, **none))
    deep = {**fields, "RedPaletteColorLookupTableDescriptor": [256, 0, 32]}
    assert "of 32 bits" in refusal(dicom_bytes(GREY, **deep))


def test_incomplete_lookup_table():
    item = Dataset()
    assert "LUTDescriptor" in refusal(altered(dicom_bytes(GREY), ModalityLUTSequence=[item]))
    item.LUTDescriptor = [256, 0, 16]
    item["LUTDescriptor"].VR = "US"
    assert "without LUTData" in refusal(altered(dicom_bytes(GREY), ModalityLUTSequence=[item]))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("entries", ["words", "numbers", "bytes"])
def test_a_modality_table(signed, entries):
    values = (GREY.astype(np.int16) - 100) if signed else GREY
    first = -100 if signed else 0
    table = _rng.integers(0, 256 if entries == "bytes" else 4096, 256)
    item = Dataset()
    item.LUTDescriptor = [256, first % 65536, 8 if entries == "bytes" else 12]
    item["LUTDescriptor"].VR = "US"
    item.ModalityLUTType = "HU"
    if entries == "numbers":
        item.LUTData = table.tolist()
        item["LUTData"].VR = "US"
    else:
        item.LUTData = table.astype("u1" if entries == "bytes" else "<u2").tobytes()
        item["LUTData"].VR = "OW"
    data = dicom_bytes(values, ModalityLUTSequence=[item], WindowCenter=2048, WindowWidth=4096)
    assert_near(read(data), unit(table[GREY], 0, 4095), 0.001)


# --- colours and bits


@pytest.mark.parametrize("kind", ["YBR_FULL", "YBR_FULL_422"])
def test_luma_and_chroma(kind):
    smooth = np.asarray(Image.linear_gradient("L").resize((W, H)).convert("RGB"))
    luma = np.asarray(Image.fromarray(smooth).convert("YCbCr"))
    stored = luma
    if kind == "YBR_FULL_422":
        pairs = luma.reshape(H, W // 2, 2, 3)
        stored = np.dstack([pairs[:, :, 0, 0], pairs[:, :, 1, 0], pairs[:, :, 0, 1], pairs[:, :, 0, 2]])
    data = altered(
        dicom_bytes(COLOUR), PhotometricInterpretation=kind, PixelData=np.ascontiguousarray(stored).tobytes()
    )
    assert_near(read(data), unit(smooth, 0, 255), 0.02)


@pytest.mark.parametrize("share", [0.0, 0.002, 0.5, 0.998, 1.0])
def test_one_bit_images(share):
    """Percentiles do not matter."""
    values = (_rng.random((H, W)) < share).astype(np.uint8)
    data = altered(
        dicom_bytes(values), BitsAllocated=1, BitsStored=1, HighBit=0,
        PixelData=np.packbits(values, bitorder="little").tobytes(),
    )  # fmt: skip
    assert_near(read(data), unit(values, 0, 1))


@pytest.mark.parametrize("bits", [5, 9, 13])
@pytest.mark.parametrize("signed", [False, True])
def test_unused_bits_are_not_read(bits, signed):
    dtype = np.int16 if signed else np.uint16
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = _rng.integers(low, high + 1, (H, W)).astype(dtype)
    dirty = (values & dtype(2**bits - 1)) | dtype(1 << bits)
    window = {"WindowCenter": (low + high + 1) / 2, "WindowWidth": high - low + 1}
    assert_near(read(dicom_bytes(dirty, BitsStored=bits, **window)), unit(values, low, high), 1e-5)


@pytest.mark.parametrize("name", ["BitsAllocated", "BitsStored", "SamplesPerPixel", "PixelRepresentation"])
@pytest.mark.filterwarnings("ignore:::pydicom")
def test_impossible_elements_are_named(name):
    spaced = "".join(f" {c}" if c.isupper() else c for c in name).strip()
    message = refusal(altered(dicom_bytes(GREY), **{name: 77})).replace("per", "Per")
    assert spaced in message


def test_kind_of_a_file(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(GREY, Modality="MR"))
    from fewshot_ad.data.formats import open_file
    from fewshot_ad.data.sources import Source

    file = open_file(Source(str(path), path))
    assert file.kind == "MR MONOCHROME2"
    assert file.size(0) == (W, H)
    file.close()


@pytest.mark.parametrize(
    "name",
    ["liver_1frame.dcm", "rtdose_rle.dcm", "SC_rgb_small_odd_jpeg.dcm", "examples_palette.dcm", "examples_overlay.dcm"],
)
def test_samples_are_read(name):
    path = get_testdata_file(name, download=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(frames(path)[0])
    assert 0 <= found.min() < found.max() <= 1


def test_a_frame_beyond_the_file(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom_bytes(GREY, **WINDOW))
    assert "1 image(s)" in refusal(Frame(Path(path), 1))
