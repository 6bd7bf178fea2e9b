"""Lookup tables of DICOM files: palettes, and modality LUTs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..exceptions import ImageError
from .sources import Source

_NAMES = ("Red", "Green", "Blue", "Alpha")


def look_up(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    """Look up values in a table whose first entry is for `first`; values outside it get the first or last entry."""
    at: np.ndarray = values.astype(np.int32 if values.dtype.itemsize < 4 else np.int64)
    at -= first
    np.clip(at, 0, len(table) - 1, out=at)
    return table[at]


def palette(header: Any, pydicom: Any, source: Source) -> tuple[np.ndarray, int]:
    """Read the palette of an image in PALETTE COLOR.

    Parameters
    ----------
    header : Dataset
        Header with the palette's descriptors and data, complete or in segments.
    pydicom : module
        Used to expand segments.
    source : Source
        For messages.

    Returns
    -------
    table : ndarray of shape (N, 3|4)
        uint8 or uint16, of full scale.
    first : int
        The stored value that the first entry belongs to.

    Raises
    ------
    ImageError
        A part of the palette is missing, or differs from its stated length.
    """
    names = [name for name in _NAMES if name != "Alpha" or f"{name}PaletteColorLookupTableDescriptor" in header]
    columns, first, depth = [], 0, 0
    for name in names:
        n_entries, first, depth = _descriptor(header, f"{name}PaletteColorLookupTableDescriptor", header, source)
        if header.get(f"{name}PaletteColorLookupTableData"):
            columns.append(_entries(header, f"{name}PaletteColorLookupTableData", header, n_entries, depth, source))
    if not columns and header.get("SegmentedRedPaletteColorLookupTableData"):
        # pydicom expands the segments; all entries are looked up one by one.
        indices = np.arange(first, first + n_entries)
        table = pydicom.pixels.apply_color_lut(indices, header)
        columns = list(np.moveaxis(table, -1, 0))
    if len(columns) not in (3, 4):
        raise ImageError(
            f"{source} is in PALETTE COLOR, but {3 - len(columns)} of its three palettes "
            "(PaletteColorLookupTableData) are missing. Leave it out, or convert it with another program."
        )
    if len({len(column) for column in columns}) > 1:
        raise ImageError(f"{source} is damaged: its palettes differ in length. Leave it out, or download it again.")
    table = np.stack(columns, -1)
    if depth <= 8 or table.max() <= 255:
        # Entries of 8 bits may be kept in words, alone or twice over.
        table = (table >> 8) if table.max() > 255 else table
        return _to_full_scale(table, depth if depth < 8 else 8, np.uint8), first
    return _to_full_scale(table, depth, np.uint16), first


def modality_table(item: Any, header: Any, source: Source) -> tuple[np.ndarray, int]:
    """Read a modality LUT, and the stored value that its first entry belongs to."""
    n_entries, first, depth = _descriptor(item, "LUTDescriptor", header, source)
    return _entries(item, "LUTData", header, n_entries, depth, source), first


def _descriptor(part: Any, name: str, header: Any, source: Source) -> tuple[int, int, int]:
    """Read the number of entries, the value of the first and the bits of each."""
    try:
        n_entries, first, depth = (int(value) for value in part[name].value)
    except Exception as error:
        raise ImageError(
            f"{source} has no {name} of three numbers, without which its lookup table cannot be read. Leave it out, or "
            "convert it with another program."
        ) from error
    n_entries = n_entries % 65536 or 65536
    # Files store it with either sign.
    signed = bool(header.get("PixelRepresentation"))
    first = first - 65536 if signed and first > 32767 else first % 65536 if not signed else first
    if not 1 <= depth <= 16:
        raise ImageError(f"{source} has a lookup table of {depth} bits ({name}). Accepted are 1 to 16.")
    return n_entries, first, depth


def _entries(part: Any, name: str, header: Any, n_entries: int, depth: int, source: Source) -> np.ndarray:
    data = part.get(name)
    if data is None or (isinstance(data, bytes) and not data):
        raise ImageError(
            f"{source} has a lookup table without {name}. Leave it out, or convert it with another program."
        )
    order = "<" if header.original_encoding[1] else ">"
    if not isinstance(data, bytes):
        entries = np.atleast_1d(np.asarray(data, dtype=np.int64) & 0xFFFF).astype(np.uint16)
        if len(entries) * 2 in (n_entries, n_entries + 1) and depth <= 8:
            entries = entries.astype(f"{order}u2").view(np.uint8)
    elif len(data) >= 2 * n_entries:
        entries = np.frombuffer(data[: 2 * n_entries], f"{order}u2").astype(np.uint16)
    else:
        entries = np.frombuffer(data, np.uint8)
        if order == ">" and len(entries) % 2 == 0:
            entries = entries.reshape(-1, 2)[:, ::-1].reshape(-1)
    if len(entries) < n_entries:
        raise ImageError(
            f"{source} is damaged: {name} has {len(entries)} entries, but {n_entries} are declared. Leave it out, or "
            "download it again."
        )
    return entries[:n_entries]


def _to_full_scale(table: np.ndarray, bits: int, dtype: Any) -> np.ndarray:
    white, full = 2**bits - 1, np.iinfo(dtype).max
    if white == full:
        return table.astype(dtype)
    return np.round(np.minimum(table, white) * (full / white)).astype(dtype)
