"""Which reader a file is for: DICOM, NIfTI and TIFF have their own, all others are Pillow's."""

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
        DICOM is known by its ending, .dcm or .dicom, or by its first bytes; NIfTI by its ending, .nii or .nii.gz, or by
        its first bytes; TIFF and all others by their first bytes.
    geometry : Geometry or FigureSize, optional
        What its images will be resized to, if that is known: large JPEGs are then decoded smaller.

    Returns
    -------
    File
        To be closed. A TIFF is Pillow's without tifffile, in a colour space that Pillow converts, or in a compression
        that tifffile cannot decode here.

    Raises
    ------
    MissingExtraError
        pydicom or nibabel is needed and not installed.
    ImageError
        The file is not what it seems to be. Readers raise other errors as well.
    """
    with source.open() as file:
        head = file.read(352)
    is_tiff = head[:4] in _TIFF_HEADS
    if source.file_name.endswith(NIFTI_SUFFIXES) or nifti.is_nifti(head):
        return nifti.Nifti(source)
    if source.file_name.endswith(DICOM_SUFFIXES) or (dicom.is_dicom(head) and not is_tiff):
        return dicom.Dicom(source)
    return (tiff.open_tiff(source) if is_tiff else None) or Picture(source, geometry)
