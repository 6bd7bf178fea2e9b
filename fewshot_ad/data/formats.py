"""Which reader a file is for: DICOM, NIfTI and TIFF have their own, all others are Pillow's."""

from __future__ import annotations

from pathlib import Path

from . import dicom, nifti, tiff
from .sources import File
from .sources import Frame as Frame

DICOM_SUFFIXES = (".dcm", ".dicom")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_file(path: Path) -> File | None:
    """Open a file of one of the formats that are read here.

    Parameters
    ----------
    path : Path
        A file that exists. DICOM is known by its ending, .dcm or .dicom, or by its first bytes; NIfTI by its ending,
        .nii or .nii.gz; TIFF by its first bytes.

    Returns
    -------
    File or None
        To be closed. None is for Pillow: another format; or a TIFF without tifffile, of a colour space that Pillow
        converts, or of a compression that tifffile cannot decode here.

    Raises
    ------
    MissingExtraError
        pydicom or nibabel is needed and not installed.
    ImageError
        The file is not what it seems to be. Readers raise other errors as well.
    """
    with path.open("rb") as file:
        head = file.read(132)
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return nifti.Nifti(path)
    if name.endswith(DICOM_SUFFIXES) or (head[128:] == b"DICM" and head[:4] not in _TIFF_HEADS):
        return dicom.Dicom(path)
    return tiff.open_tiff(path) if head[:4] in _TIFF_HEADS else None
