"""Repair of files with intact pixels and damaged metadata: the metadata is removed."""

from __future__ import annotations

import struct

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that its pixels depend on.
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"eXIf")
# Tags of a TIFF that describe the layout of its pixels.
_TIFF_NEEDED = {
    254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 330,
    332, 338, 339, 347, 529, 530, 532,
}  # fmt: skip
_EXIF, _ADOBE, _JFIF = b"Exif\0\0", b"Adobe", b"JFIF\0"


def without_metadata(data: bytes) -> bytes | None:
    """Remove the metadata from a file.

    Parameters
    ----------
    data : bytes
        A PNG, JPEG or TIFF that could not be opened or decoded.

    Returns
    -------
    bytes or None
        A file with the same pixels; None for other formats.
    """
    try:
        if data.startswith(PNG_HEAD):
            kept = [chunk for kind, _, chunk in png_chunks(data) if kind in _PNG_NEEDED]
            return PNG_HEAD + b"".join(kept)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff(data)
    except (struct.error, IndexError):  # more than the metadata is damaged
        pass
    return None


def png_chunks(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """List the chunks of a PNG: kind, body, and complete bytes with length and checksum."""
    chunks, at = [], len(PNG_HEAD)
    while at + 8 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        chunks.append((kind, data[at + 8 : at + 8 + length], data[at : at + 12 + length]))
        at += 12 + length
    return chunks


def exif_is_cut(exif: bytes) -> bool:
    """Return whether the first directory of EXIF data is incomplete."""
    while exif.startswith(_EXIF):  # some writers put this head twice
        exif = exif[len(_EXIF) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if not exif or order is None:
        return bool(exif)
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", exif, start)
    except struct.error:
        return True
    return len(exif) < start + 2 + 12 * n_entries


def _jpeg(data: bytes) -> bytes:
    kept, at = data[:2], 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        body = data[at + 4 : at + 2 + length]
        intact = {
            0xE0: body.startswith(_JFIF) and len(body) >= 14,
            0xE1: body.startswith(_EXIF),  # its reader checks whether it is complete
            0xEE: body.startswith(_ADOBE) and len(body) >= 12,
        }.get(marker, False)
        if intact or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept += data[at : at + 2 + length]
        at += 2 + length
    return kept + data[at:]


def _tiff(data: bytes) -> bytes:
    """Replace tags that are not needed by a single byte each; all offsets stay the same."""
    repaired = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    visited: set[int] = set()
    while at and at not in visited:
        visited.add(at)
        (n_entries,) = struct.unpack_from(f"{order}H", data, at)
        for entry in range(at + 2, at + 2 + 12 * n_entries, 12):
            tag = struct.unpack_from(f"{order}H", data, entry)[0]
            if tag not in _TIFF_NEEDED:
                struct.pack_into(f"{order}HHI4s", repaired, entry, 65000, 1, 1, b"\0" * 4)
        (at,) = struct.unpack_from(f"{order}I", data, at + 2 + 12 * n_entries)
    return bytes(repaired)
