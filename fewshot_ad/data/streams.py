"""Files that are held in memory or open: bytes, file objects and uploads."""

from __future__ import annotations

import inspect
from typing import Any

from ..exceptions import ImageError
from .pictures import lock_for
from .sources import Source

_BYTES = (bytes, bytearray, memoryview)


def is_stream(item: Any) -> bool:
    """Tell whether an object is a file's bytes, or can be read like an opened file."""
    return isinstance(item, _BYTES) or callable(getattr(item, "read", None))


def stream_name(item: Any) -> str | None:
    """Return the name that a file object or an upload has, if any."""
    if isinstance(item, _BYTES):
        return None
    found = (getattr(item, name, None) for name in ("filename", "name"))
    return next((name for name in found if isinstance(name, str) and name), None)


def read_stream(item: Any, name: str) -> Source:
    """Read all bytes of a stream.

    Parameters
    ----------
    item : bytes, file object or upload
        A file object is read from its start and left where it stood, if it can be rewound. It may be shared between
        threads.
    name : str
        For messages.

    Returns
    -------
    Source
        Its bytes; named as the upload is, so that its ending tells the format.

    Raises
    ------
    ImageError
        Opened as text, closed, already read to its end, or an upload that can only be awaited.
    """
    if isinstance(item, _BYTES):
        return Source(name, None, bytes(item))
    # An upload of Starlette (FastAPI) has a coroutine to read it, and the file itself beside it.
    file = item if not inspect.iscoroutinefunction(item.read) else getattr(item, "file", None)
    if file is None:
        raise ImageError(f"{name} can only be read with await. Pass its bytes: await upload.read().")
    with lock_for(file):
        try:
            data = _read(file)
        except MemoryError:
            raise
        except Exception as error:  # whatever a closed file, a broken connection or another kind of object raises
            raise ImageError(
                f"{name} could not be read: {type(error).__name__}: {error}. Pass a file that is open for reading in "
                "binary mode, or its bytes."
            ) from error
    if not isinstance(data, _BYTES):
        raise ImageError(
            f"{name} gives {type(data).__name__} when it is read, not bytes. Open the file in binary mode: open(path, "
            "'rb')."
        )
    if not data:
        raise ImageError(
            f"{name} is empty, or was read to its end before and cannot be rewound. Read it once, and pass its bytes."
        )
    return Source(name, None, bytes(data))


def _read(file: Any) -> Any:
    try:
        place = file.tell()
        file.seek(0)
    except (AttributeError, OSError):  # a pipe or a socket: it is read where it stands
        return file.read()
    try:
        return file.read()
    finally:
        file.seek(place)
