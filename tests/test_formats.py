"""Medical and industrial files: their values, and files of several images."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import tifffile
import torch
from helpers import stripes
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

import fewshot_ad.images
from fewshot_ad import DualDistillationDetector, cli, distributed
from fewshot_ad.data import images, nifti
from fewshot_ad.data.geometry import Geometry
from fewshot_ad.data.images import (
    Frame,
    as_items,
    frames,
    is_rows,
    label,
    load,
    load_each,
    warn_of_mixed_series,
)
from fewshot_ad.exceptions import ImageError, ImageSkippedWarning, MissingExtraError, MixedSeriesWarning
from fewshot_ad.training import pretraining

# JPEG 2000 needs at least 32 pixels.
H, W = 36, 40
_rng = np.random.default_rng(0)
GREY = _rng.integers(0, 4096, (H, W)).astype(np.uint16)
COLOUR = _rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
STACK = _rng.integers(0, 4096, (3, H, W)).astype(np.uint16)


def write_dicom(path: Path, values: np.ndarray, syntax: str = ExplicitVRLittleEndian, **fields) -> Path:
    """Write (H, W), (H, W, 3) or, with NumberOfFrames, (N, H, W) as DICOM."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, generate_uid(), "1.2.3"
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
    data.PixelData = values.tobytes()
    data["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    for name, value in fields.items():
        setattr(data, name, value)
    if syntax != ExplicitVRLittleEndian:
        data.compress(syntax)
    data.save_as(path, enforce_file_format=True)
    return path


def write_nifti(path: Path, values: np.ndarray, affine=None, kind=nibabel.Nifti1Image) -> Path:
    nibabel.save(kind(values, np.eye(4) if affine is None else affine), path)
    return path


def unit(values: np.ndarray, low: float, high: float) -> torch.Tensor:
    """Map values between black and white to an image of three channels."""
    image = torch.from_numpy(np.clip((values.astype(float) - low) / (high - low), 0, 1)).float()
    return image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)


def read(item, size: int | None = None, **options) -> torch.Tensor:
    return load(item, 0, Geometry(size or 8), **options)


def assert_reads(item, expected: torch.Tensor, tolerance: float = 1e-6, **options) -> None:
    """Compare with an image of the same pixels given as floats."""
    torch.testing.assert_close(read(item, **options), read(expected), rtol=0, atol=tolerance)


def assert_refused(item, *words: str, **options) -> None:
    with pytest.raises(ImageError) as caught:
        read(item, **options)
    for word in words:
        assert word in str(caught.value)


# --- DICOM


def test_values_are_rescaled_and_windowed(tmp_path):
    fields = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    path = write_dicom(tmp_path / "a.dcm", GREY, **fields)
    assert_reads(path, unit(GREY * 2.0 - 1024, -160, 239))


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ({"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "LINEAR_EXACT"}, 750, 1250),
        ({"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "SIGMOID"}, 750, 1250),
        ({"WindowCenter": [1000, 5], "WindowWidth": [501, 7]}, 749.5, 1249.5),
        ({}, *np.percentile(GREY, [0.5, 99.5])),
        ({"WindowCenter": 1000}, *np.percentile(GREY, [0.5, 99.5])),
        ({"WindowCenter": None, "WindowWidth": None}, *np.percentile(GREY, [0.5, 99.5])),
        ({"WindowCenter": 1000, "WindowWidth": 0}, *np.percentile(GREY, [0.5, 99.5])),
    ],
)
def test_windows(tmp_path, fields, low, high):
    assert_reads(write_dicom(tmp_path / "a.dcm", GREY, **fields), unit(GREY, low, high))


def test_value_range_is_in_hounsfield_units_and_replaces_the_window(tmp_path):
    values = np.linspace(-1000, 1000, H * W).reshape(H, W).astype(np.int16)
    path = write_dicom(
        tmp_path / "a.dcm", values + np.int16(24), RescaleSlope=1, RescaleIntercept=-24, WindowCenter=0, WindowWidth=9
    )
    assert_reads(path, unit(values, -200, 300), value_range=(-200, 300))


@pytest.mark.parametrize("value_range", [None, (0, 5000)])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1500, "WindowWidth": 800}])
def test_monochrome1_is_inverted(tmp_path, value_range, window):
    dark = write_dicom(tmp_path / "a.dcm", GREY, PhotometricInterpretation="MONOCHROME1", **window)
    light = write_dicom(tmp_path / "b.dcm", GREY, **window)
    torch.testing.assert_close(read(dark, value_range=value_range), 1 - read(light, value_range=value_range))


def test_constant_image_is_black(tmp_path):
    assert read(write_dicom(tmp_path / "a.dcm", np.full((H, W), 700, np.uint16))).max() == 0


def test_colours(tmp_path):
    expected = unit(COLOUR, 0, 255)
    rgb = write_dicom(tmp_path / "a.dcm", COLOUR)
    assert_reads(rgb, expected)
    luma = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    assert_reads(write_dicom(tmp_path / "b.dcm", luma, PhotometricInterpretation="YBR_FULL"), expected, 0.02)
    deep = write_dicom(tmp_path / "c.dcm", COLOUR.astype(np.uint16) * 16, BitsStored=12)
    assert_reads(deep, unit(COLOUR * 16.0, 0, 4095))
    assert_reads(write_dicom(tmp_path / "d.dcm", COLOUR.astype(np.uint32) << 24), unit(COLOUR, 0, 256), 1e-5)


def test_palette(tmp_path):
    table = _rng.integers(0, 65536, (3, 256)).astype(np.uint16)
    fields = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in zip(("Red", "Green", "Blue"), table, strict=True):
        fields[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        fields[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    index = COLOUR[..., 0]
    assert_reads(write_dicom(tmp_path / "a.dcm", index, **fields), unit(np.moveaxis(table[:, index], 0, -1), 0, 65535))


def test_unknown_colours_are_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", COLOUR, PhotometricInterpretation="HSV")
    assert_refused(path, str(path), "HSV", "MONOCHROME2", "convert")


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_compressed_files_agree(tmp_path, syntax, values):
    plain = write_dicom(tmp_path / "a.dcm", values)
    packed = write_dicom(tmp_path / "b.dcm", values, syntax)
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID.is_compressed
    torch.testing.assert_close(read(packed), read(plain), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["a.dcm", "a.DCM", "a.dicom", "IM000001", "1.2.840.55"])
def test_dicom_is_detected_by_ending_or_first_bytes(tmp_path, name):
    assert_reads(write_dicom(tmp_path / name, GREY), unit(GREY, *np.percentile(GREY, [0.5, 99.5])))


@pytest.mark.parametrize("kind", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_samples_of_one_scan_agree(kind):
    plain, other = (get_testdata_file(name, download=False) for name in ("MR_small.dcm", f"MR_small_{kind}.dcm"))
    torch.testing.assert_close(read(other), read(plain), rtol=0, atol=0)


@pytest.mark.parametrize(
    "kind",
    ["dcmtk_+eb+cr", "dcmtk_+eb+cy+n1", "dcmtk_+eb+cy+s4", "gdcm_KY", "jls_lossy_line", "jpeg_gdcm", "rle_16bit"],
)
def test_samples_of_one_colour_picture_agree(kind):
    """JPEG with and without subsampling, JPEG lossless, JPEG 2000, JPEG-LS, RLE."""
    plain, other = (get_testdata_file(f"SC_rgb_{name}.dcm", download=False) for name in ("rle", kind))
    torch.testing.assert_close(read(other), read(plain), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reportsi.dcm", ["without an image", "Basic Text SR", "Leave it out"]),
        ("rtplan.dcm", ["without an image", "RT Plan"]),
        ("no_meta.dcm", ["not a DICOM file", "Leave it out"]),
        ("MR_truncated.dcm", ["could not be read", "files in these formats"]),
        ("JPGExtended.dcm", ["could not be decoded", "12-bit", "convert it"]),
        ("badVR.dcm", ["'1A' as NumberOfFrames (0028,0008)", "not a number"]),
    ],
)
@pytest.mark.filterwarnings("ignore:::pydicom")
def test_samples_without_a_readable_image(name, words):
    path = get_testdata_file(name, download=False)
    assert_refused(path, path, *words)
    assert frames(path) == [path]


def test_unsupported_transfer_syntax(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", GREY, RLELossless)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = MPEG2MPML
    data.save_as(path)
    assert_refused(path, str(path), "MPEG2", "Convert")


def test_missing_decoder(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", GREY, JPEGLSLossless)
    decoder = pydicom.pixels.get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    assert_refused(path, str(path), "JPEG-LS", "no decoder", "fewshot-ad[medical]")


def test_frames_of_a_newer_file_have_their_own_rescaling_and_window(tmp_path):
    def part(sequence: str, **fields) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for name, value in fields.items():
            setattr(inner, name, value)
        setattr(outer, sequence, [inner])
        return outer

    shared = part("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=-100, RescaleType="US")
    own = [part("FrameVOILUTSequence", WindowCenter=c, WindowWidth=1001) for c in (500, 1000, 1500)]
    path = write_dicom(
        tmp_path / "a.dcm", STACK, NumberOfFrames=3, SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=own,
    )  # fmt: skip
    for index, center in enumerate((500, 1000, 1500)):
        assert_reads(Frame(path, index), unit(STACK[index] * 2.0 - 100, center - 500.5, center + 499.5))


# --- NIfTI

VOLUME = _rng.integers(-1000, 3000, (5, 6, 7)).astype(np.int16)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_slices_share_the_range_of_their_volume(tmp_path, name, kind):
    path = write_nifti(tmp_path / name.lower(), VOLUME, kind=kind).rename(tmp_path / name)
    low, high = np.percentile(VOLUME, [0.5, 99.5])
    found = frames(path)
    assert found == [Frame(path, index) for index in range(7)]
    for index, frame in enumerate(found):
        # To the right, and with the front of the body on top.
        assert_reads(frame, unit(VOLUME[:, ::-1, index].T, low, high))
    assert_reads(found[3], unit(VOLUME[:, ::-1, 3].T, -500, 500), value_range=(-500, 500))


@pytest.mark.parametrize("codes", ["LPI", "LAS", "ASL", "SRP", "PIR"])
def test_the_orientation_in_the_file_does_not_matter(tmp_path, codes):
    plain = write_nifti(tmp_path / "a.nii", VOLUME)
    turned = nibabel.load(plain).as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
        )
    )
    nibabel.save(turned, tmp_path / "b.nii")
    assert turned.shape != VOLUME.shape or codes in ("LPI", "LAS")
    for one, other in zip(frames(plain), frames(tmp_path / "b.nii"), strict=True):
        torch.testing.assert_close(read(one), read(other), rtol=0, atol=0)


def test_values_of_a_volume_are_scaled(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii")
    values = VOLUME[:, ::-1, 2].T * 0.5 + 10
    assert_reads(Frame(tmp_path / "a.nii", 2), unit(values, -100, 200), value_range=(-100, 200))


def test_each_volume_of_a_series_has_its_own_range(tmp_path):
    path = write_nifti(tmp_path / "a.nii", np.stack([VOLUME, VOLUME * np.int16(3)], -1))
    found = frames(path)
    assert len(found) == 14
    for index in range(7):
        torch.testing.assert_close(read(found[index]), read(found[index + 7]))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 1, 1), (5, 1, 6), (1, 5, 6)])
def test_a_single_slice_is_one_image(tmp_path, shape):
    path = write_nifti(tmp_path / "a.nii", VOLUME[..., 0].reshape(shape))
    assert frames(path) == [path]
    low, high = np.percentile(VOLUME[..., 0], [0.5, 99.5])
    assert_reads(path, unit(VOLUME[:, ::-1, 0].T, low, high))


def test_range_of_a_large_volume_uses_some_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "_VOXELS", 3 * 5 * 6)
    path = write_nifti(tmp_path / "a.nii", VOLUME)
    assert_reads(Frame(path, 1), unit(VOLUME[:, ::-1, 1].T, *np.percentile(VOLUME[..., ::3], [0.5, 99.5])))


def test_range_is_cached_until_the_file_changes(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(nifti, "percentile_range", lambda values: calls.append(values.shape) or (0.0, 1.0))
    path = write_nifti(tmp_path / "a.nii", VOLUME)
    for frame in frames(path):
        read(frame)
    assert calls == [VOLUME.shape]
    read(Frame(write_nifti(path, VOLUME[..., :4]), 0))
    assert calls == [VOLUME.shape, (5, 6, 4)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (VOLUME.astype(np.complex64), ["complex64", "Accepted"]),
        (np.zeros((2, 2, 2, 2, 2)), ["(2, 2, 2, 2, 2)", "Accepted"]),
        (np.zeros(4), ["(4,)", "Accepted"]),
        (np.full((5, 6, 1), np.nan), ["NaN", "nan_to_num"]),
    ],
)
def test_invalid_volumes(tmp_path, values, words):
    path = write_nifti(tmp_path / "a.nii", values)
    assert_refused(path, str(path), *words)


# --- TIFF


def write_tiff(path: Path, values: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


@pytest.fixture(params=[True, False], ids=["tifffile", "Pillow"])
def either_reader(request, monkeypatch):
    """With and without tifffile."""
    if not request.param:
        monkeypatch.setitem(sys.modules, "tifffile", None)


@pytest.mark.parametrize(
    "values",
    [GREY, COLOUR, COLOUR[..., 0], GREY.astype(np.float32) / 4096, GREY > 2000],
    ids=lambda values: f"{values.dtype}-{values.ndim}",
)
def test_tiffs_with_and_without_tifffile(tmp_path, monkeypatch, values):
    path = write_tiff(tmp_path / "a.tif", values)
    found = read(path)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    torch.testing.assert_close(found, read(path), rtol=0, atol=0)
    assert found.max() > 0


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "jpeg2000", "zstd", "lzma"])
@pytest.mark.parametrize("predictor", [False, True])
def test_compressed_tiffs(tmp_path, compression, predictor):
    predictor = predictor and compression in ("lzw", "zlib", "zstd", "lzma")
    for name, values in (("a.tif", GREY), ("b.tif", COLOUR)):
        path = write_tiff(tmp_path / name, values, compression=compression, predictor=predictor)
        assert_reads(path, unit(values, 0, 255 if values is COLOUR else 65535))


def test_pillow_reads_what_tifffile_cannot(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", COLOUR, compression="lzw")
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {1: None}, raising=False)
    assert_reads(path, unit(COLOUR, 0, 255))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_colour(tmp_path, planar):
    deep = _rng.integers(0, 65536, (H, W, 3)).astype(np.uint16)
    stored = np.moveaxis(deep, -1, 0) if planar == "separate" else deep
    path = write_tiff(tmp_path / "a.tif", np.ascontiguousarray(stored), photometric="rgb", planarconfig=planar)
    assert_reads(path, unit(deep, 0, 65535))


def test_full_scale_of_12_bits(tmp_path):
    first, second = GREY[:, ::2], GREY[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).reshape(H, -1)
    path = write_tiff(tmp_path / "a.tif", packed.astype(np.uint8), metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(W)
        file.pages[0].tags["BitsPerSample"].overwrite(12)
    assert_reads(path, unit(GREY, 0, 4095))


@pytest.mark.parametrize("values", [COLOUR[..., 0], GREY], ids=["8 bits", "16 bits"])
def test_white_may_be_zero(tmp_path, values):
    full = np.iinfo(values.dtype).max
    path = write_tiff(tmp_path / "a.tif", values, photometric="miniswhite")
    assert_reads(path, unit(full - values, 0, full))


def test_extra_channels(tmp_path):
    alpha = _rng.integers(0, 256, (H, W, 1), dtype=np.uint8)
    rgba, grey = np.dstack([COLOUR, alpha]), COLOUR[..., :1]
    expected = unit(COLOUR * (alpha / 255), 0, 255)
    assert_reads(write_tiff(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"]), expected)
    mixed = np.dstack([grey, alpha])
    path = write_tiff(tmp_path / "b.tif", mixed, photometric="minisblack", extrasamples=["unassalpha"])
    assert_reads(path, unit((grey * (alpha / 255))[..., 0], 0, 255))
    for kind in ("assocalpha", "unspecified"):
        path = write_tiff(tmp_path / f"{kind}.tif", rgba, photometric="rgb", extrasamples=[kind])
        assert_reads(path, unit(COLOUR, 0, 255))
    many = np.dstack([COLOUR, COLOUR, grey])
    path = write_tiff(tmp_path / "c.tif", many, photometric="minisblack", planarconfig="contig")
    assert_refused(path, str(path), "(36, 40, 7)", "Accepted")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(tmp_path, monkeypatch, orientation):
    """The reference is Pillow."""
    path = write_tiff(tmp_path / "a.tif", COLOUR, extratags=[(274, 3, 1, orientation, True)])
    found = read(path)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    torch.testing.assert_close(found, read(path), rtol=0, atol=0)
    assert (orientation == 1) == torch.equal(found, read(COLOUR))


@pytest.mark.parametrize("mode", ["P", "CMYK"])
def test_other_colour_spaces(tmp_path, mode):
    picture = Image.fromarray(COLOUR).convert(mode)
    picture.save(tmp_path / "a.tif")
    assert_reads(tmp_path / "a.tif", read(np.asarray(picture.convert("RGB")), 8))


def test_pages(tmp_path, either_reader):
    path = write_tiff(tmp_path / "a.tif", STACK, photometric="minisblack", metadata=None)
    assert frames(path) == [Frame(path, index) for index in range(3)]
    for index in range(3):
        assert_reads(Frame(path, index), unit(STACK[index], 0, 65535))


def test_thumbnails_and_masks_are_ignored(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(COLOUR, metadata=None)
        file.write(COLOUR[::2, ::2], subfiletype=1, metadata=None)
        file.write(COLOUR[..., 0] > 9, subfiletype=4, metadata=None)
    assert frames(path) == [path]
    assert_reads(path, unit(COLOUR, 0, 255))


def test_imagej_stack_in_one_page(tmp_path):
    path = write_tiff(tmp_path / "a.tif", STACK, imagej=True)
    assert len(frames(path)) == 3
    with tifffile.TiffFile(path) as file:
        description = file.pages[0].description
    hidden = write_tiff(tmp_path / "b.tif", STACK[0], description=description, metadata=None)
    assert_refused(hidden, str(hidden), "3 images", "pages")
    data = bytearray(path.read_bytes())  # as ImageJ writes what is larger than 4 GB: one directory, all images
    order = "little" if data[:2] == b"II" else "big"
    first = int.from_bytes(data[4:8], order)
    last = first + 2 + 12 * int.from_bytes(data[first : first + 2], order)
    data[last : last + 4] = bytes(4)
    hidden.write_bytes(data)
    assert_refused(hidden, "3 images, but has only 1 page", "with tifffile.imwrite")
    pages = write_tiff(tmp_path / "c.tif", tifffile.imread(hidden), photometric="minisblack")  # the advice
    assert [torch.equal(read(a), read(b)) for a, b in zip(frames(pages), frames(path), strict=True)] == [True] * 3


# --- one file, several images


def write_several(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".dcm"):
        return write_dicom(path, STACK, NumberOfFrames=3)
    if name.endswith(".nii"):
        return write_nifti(path, VOLUME[..., :3])
    if name.endswith(".tif"):
        return write_tiff(path, STACK, photometric="minisblack")
    first, *others = (Image.fromarray((page >> 4).astype(np.uint8)) for page in STACK)
    first.save(path, save_all=True, append_images=others, **({"lossless": True} if name.endswith("webp") else {}))
    return path


SEVERAL = ["a.dcm", "a.nii", "a.tif", "a.gif", "a.webp", "a.png"]


@pytest.mark.parametrize("name", SEVERAL)
def test_path_to_several_images_is_refused(tmp_path, name):
    path = write_several(tmp_path, name)
    assert_refused(path, str(path), "contains 3 images", "fewshot_ad.images.frames(paths)")
    found = frames(path)
    assert found == [Frame(path, 0), Frame(path, 1), Frame(path, 2)]
    pictures = [read(frame) for frame in found]
    assert not torch.equal(pictures[0], pictures[1])
    for index in (-1, 3):
        assert_refused(Frame(path, index), f"{path}[{index}]", "3 image(s)")


def test_frames_are_named_by_file_and_number():
    assert str(Frame("scan.dcm", 12)) == "scan.dcm[12]"
    assert label(Frame(Path("scan.dcm"), 12), 5) == "scan.dcm[12]"


@pytest.mark.parametrize("make", [list, tuple, iter, lambda x: pd.Series(x), lambda x: np.array(x, dtype=object)])
def test_frames_are_images_like_paths(tmp_path, make):
    found = frames(write_several(tmp_path, "a.dcm"))
    assert not is_rows(make(found))
    assert list(as_items(make(found))) == found
    assert as_items(found[0]) == [found[0]]
    assert not is_rows(found[0])


def test_frames_lists_all_images(tmp_path):
    several, one = write_several(tmp_path, "a.tif"), write_tiff(tmp_path / "b.tif", COLOUR)
    broken, missing = tmp_path / "c.dcm", tmp_path / "missing.nii"
    broken.write_bytes(b"no image")
    found = frames([str(one), missing, several, broken, Frame(several, 1)])
    assert found == [str(one), missing, *(Frame(several, i) for i in range(3)), broken, Frame(several, 1)]
    with pytest.warns(ImageSkippedWarning) as caught:
        loaded = [image is not None for _, image in load_each(found, "skip", geometry=Geometry(8))]
    assert loaded == [True, False, True, True, True, False, True]
    assert [str(path) in str(warning.message) for path, warning in zip((missing, broken), caught, strict=True)]


def test_mixed_kinds_of_dicom_give_one_warning(tmp_path):
    """Different series are one kind, as one image per patient is usual."""
    paths = [write_dicom(tmp_path / f"{i}.dcm", GREY, SeriesInstanceUID=f"1.2.{i}", Modality="MR") for i in range(4)]
    other = write_dicom(tmp_path / "ct.dcm", GREY, Modality="CT")
    dark = write_dicom(tmp_path / "dark.dcm", GREY, Modality="MR", PhotometricInterpretation="MONOCHROME1")
    small = write_dicom(tmp_path / "small.dcm", GREY[:4], Modality="MR")
    with pytest.warns(MixedSeriesWarning, match="7 DICOM images of 4 kinds") as caught:
        warn_of_mixed_series([*paths, other, dark, small])
    assert len(caught) == 1
    assert f"Different from most: {other}, {dark}, {small}." in str(caught[0].message)
    assert caught[0].filename == __file__
    for odd, words in ((other, "CT MONOCHROME2, 40 x 36"), (dark, "MR MONOCHROME1"), (small, "40 x 4;")):
        with pytest.warns(MixedSeriesWarning, match=words):
            warn_of_mixed_series([*paths, odd.read_bytes()])
    several = frames(write_several(tmp_path, "a.tif"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_mixed_series([*paths, *several, tmp_path / "missing.dcm", GREY])
        warn_of_mixed_series(frames(write_several(tmp_path, "a.dcm")))
        assert len(frames([*paths, other, dark, small])) == 7


@pytest.mark.parametrize("name", ["a.dcm", "a.nii", "a.tif"])
def test_large_files_are_refused_before_they_are_decoded(tmp_path, monkeypatch, name):
    path = write_several(tmp_path, name)
    monkeypatch.setattr(pydicom.pixels, "pixel_array", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(nibabel.arrayproxy.ArrayProxy, "__getitem__", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(fewshot_ad.images, "MAX_PIXELS", 20)
    assert_refused(Frame(path, 1), f"{path}[1]", "more than the limit of 20", "MAX_PIXELS")


def test_files_are_listed_by_ending(tmp_path):
    names = ["a.dcm", "b.DICOM", "c.nii", "d.nii.gz", "e.TIFF"]
    for name in [*names, "f.gz", "g.txt"]:
        (tmp_path / name).touch()
    assert images.files(tmp_path) == [tmp_path / name for name in names]


@pytest.mark.parametrize(("name", "module"), [("a.dcm", "pydicom"), ("a.nii", "nibabel")])
def test_missing_package_is_named(tmp_path, monkeypatch, name, module):
    path = write_several(tmp_path, name)
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"{name} needs {module}.*fewshot-ad\[medical\]"
    for use in (read, lambda item: list(load_each([item], "raise", geometry=Geometry(8)))):
        with pytest.raises(MissingExtraError, match=message):
            use(path)
    # Other formats work without it.
    Image.fromarray(GREY).save(tmp_path / "b.png")
    both = [path, tmp_path / "b.png"]
    assert frames(both) == both
    with pytest.warns(ImageSkippedWarning, match=message):
        assert [image is None for _, image in load_each(both, "skip", geometry=Geometry(8))] == [True, False]
    errors = {}
    list(load_each(both, errors.__setitem__, geometry=Geometry(8)))
    assert list(errors) == [0]
    assert re.search(message, str(errors[0]))


# --- damaged files


@pytest.mark.parametrize("name", ["a.dcm", "jls.dcm", "j2k.dcm", "rle.dcm", "a.nii", "a.nii.gz", "a.tif", "lzw.tif"])
@pytest.mark.filterwarnings("error")
def test_damaged_files_raise_image_errors(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".dcm"):
        syntax = {"jls": JPEGLSLossless, "j2k": JPEG2000Lossless, "rle": RLELossless}.get(path.stem)
        write_dicom(path, GREY, syntax or ExplicitVRLittleEndian, WindowCenter=9, WindowWidth=5)
    elif name.endswith(".tif"):
        write_tiff(path, GREY, compression="lzw" if "lzw" in name else None)
    else:
        write_nifti(path, VOLUME)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = []
    for trial in range(40):
        data = np.frombuffer(whole, np.uint8).copy()
        if trial % 2:
            data = data[: rng.integers(1, len(data))]
        else:
            data[rng.integers(len(data), size=rng.integers(1, 30))] = rng.integers(256)
        path.write_bytes(data.tobytes())
        for item in frames(path)[:1]:
            try:
                read(item)
            except ImageError as error:
                refused.append(str(error))
    assert len(refused) >= 15
    assert all(str(path) in message for message in refused)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_compressed_image_of_another_size(tmp_path, monkeypatch, syntax):
    """Otherwise a few bytes could request any amount of memory."""
    monkeypatch.setattr(pydicom.pixels, "pixel_array", lambda *_, **__: pytest.fail("decoded"))
    path = write_dicom(tmp_path / "a.dcm", GREY, syntax)
    data = bytearray(path.read_bytes())
    if syntax == JPEGLSLossless:
        start = data.index(b"\xff\xf7") + 5
        data[start : start + 4] = (60000).to_bytes(2, "big") * 2
    else:
        start = data.index(b"\xff\x4f\xff\x51") + 8
        data[start : start + 8] = (60000).to_bytes(4, "big") * 2
    path.write_bytes(data)
    assert_refused(path, str(path), "(40, 36)", "(60000, 60000)")


# --- through the detector and the command


def test_formats_of_one_image_have_the_same_score(tmp_path, toy):
    """Grey of 8 and 16 bits, R = G = B, PNG, TIFF, DICOM, NIfTI."""
    grey = stripes(5)[..., 0]
    detector = DualDistillationDetector(**toy).fit(grey[:4, ..., None])
    query, deep = grey[4], grey[4].astype(np.uint16) * 257
    Image.fromarray(query).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([query] * 3)).save(tmp_path / "colour.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    window = {"WindowCenter": 32768, "WindowWidth": 65536}
    versions = [
        tmp_path / "grey.png", tmp_path / "colour.png", tmp_path / "deep.png",
        write_tiff(tmp_path / "deep.tif", deep),
        write_tiff(tmp_path / "colour.tif", np.dstack([deep] * 3), photometric="rgb"),
        write_dicom(tmp_path / "deep.dcm", deep, **window),
        write_dicom(tmp_path / "colour.dcm", np.dstack([query] * 3)),
    ]  # fmt: skip
    scores = detector.score_samples(versions)
    np.testing.assert_allclose(scores, scores[0], rtol=1e-4)
    maps = detector.anomaly_map(versions)
    np.testing.assert_allclose(maps, maps[[0] * len(maps)], rtol=0, atol=1e-4 * maps[0].max())
    volume = write_nifti(tmp_path / "a.nii", deep.T[:, ::-1].astype(np.int32))
    ranged = DualDistillationDetector(**toy, value_range=(0, 65535)).fit(grey[:4].astype(np.uint16) * np.uint16(257))
    np.testing.assert_allclose(ranged.score_samples([volume]), scores[:1], rtol=1e-4)


def test_detector_fitted_on_frames(tmp_path, toy):
    scan = np.stack([image[..., 0] for image in stripes(6)])
    found = frames(write_dicom(tmp_path / "a.dcm", scan, NumberOfFrames=6, WindowCenter=127.5, WindowWidth=256))
    detector = DualDistillationDetector(**toy).fit(found[:4])
    np.testing.assert_array_equal(detector.support_, torch.stack([read(frame, 32) for frame in found[:4]]))
    scores = detector.score_samples(found)
    np.testing.assert_array_equal(scores[4:], detector.score_samples(found[4:]))
    scored = list(detector.session().score_each([*found[:2], str(tmp_path / "a.dcm")]))
    names = [f"{tmp_path / 'a.dcm'}[0]", f"{tmp_path / 'a.dcm'}[1]", str(tmp_path / "a.dcm")]
    assert [one.path for one in scored] == names
    assert [one.error for one in scored[:2]] == [None, None]
    assert "contains 6 images" in scored[2].error


def test_command_scores_each_image_of_a_file(tmp_path, capsys):
    folder = tmp_path / "scans"
    folder.mkdir()
    scan = np.stack([image[..., 0] for image in stripes(4)])
    path = write_dicom(folder / "a.dcm", scan, NumberOfFrames=4, WindowCenter=128, WindowWidth=256)
    assert cli.main(["score", str(folder), "--support", str(folder), "--quiet"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [f"{path}[{index}]" for index in range(4)]


def test_pretraining_on_frames(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_several(tmp_path / name, "a.tif")
    tasks = pretraining._collect(tmp_path, 32, tmp_path / "features")
    items, stamp = tasks["one"]
    assert items == [Frame(tmp_path / "one" / "a.tif", index) for index in range(3)]
    assert stamp != pretraining._stamp(items[:2], 32)
    assert stamp != pretraining._stamp([items[0], items[0], items[2]], 32)


def test_frames_with_ray():
    items = [Frame(Path("b.dcm"), 10), Frame("b.dcm", 2), "c.png", Path("a.png")]
    listed = distributed.list_files(items)
    assert listed == ["a.png", Frame("b.dcm", 2), Frame("b.dcm", 10), "c.png"]
    assert [distributed._join(*distributed._split(item)) for item in listed] == listed
