"""Choice of the reader for a file: DICOM, NIfTI and TIFF have their own; Pillow reads all others."""

from __future__ import annotations

from . import dicom, nifti, tiff
from .geometry import Target
from .pictures import Picture
from .sources import File, Source
from .sources import Frame as Frame

DICOM_SUFFIXES = (".dcm", ".dicom")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_file(source: Source, geometry: Target | None = None) -> File:
    """Open a file of images.

    Parameters
    ----------
    source : Source
        DICOM is detected by the ending .dcm or .dicom or by its first bytes, NIfTI by the ending .nii or .nii.gz or by
        its first bytes, and all others by their first bytes.
    geometry : Geometry or FigureSize, optional
        Size that its images will be resized to, if known: large JPEGs are then decoded at reduced size.

    Returns
    -------
    File
        The caller closes it. Pillow reads a TIFF if tifffile is not installed or cannot decode its compression, or if
        its colour space must be converted.

    Raises
    ------
    MissingExtraError
        pydicom or nibabel is needed, but not installed.
    ImageError
        The file is not of the detected format. Readers raise other errors as well.
    """
    with source.open() as file:
        head = file.read(352)
    is_tiff = head[:4] in _TIFF_HEADS
    if source.file_name.endswith(NIFTI_SUFFIXES) or nifti.is_nifti(head):
        return nifti.Nifti(source)
    if source.file_name.endswith(DICOM_SUFFIXES) or (dicom.is_dicom(head) and not is_tiff):
        return dicom.Dicom(source)
    return (tiff.open_tiff(source) if is_tiff else None) or Picture(source, geometry)
