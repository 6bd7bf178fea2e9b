"""Files in memory, and opened files: bytes, file objects and uploads."""

from __future__ import annotations

import inspect
from typing import Any

from ..exceptions import ImageError
from .pictures import lock_for
from .sources import Source

_BYTES = (bytes, bytearray, memoryview)


def is_stream(item: Any) -> bool:
    """Return whether an object is the bytes of a file, or can be read like an opened file."""
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
        A file object that can be rewound is read from its start, and its position is restored. Threads may share it.
    name : str
        For messages.

    Returns
    -------
    Source
        The bytes, with the name of the upload, whose ending may define the format.

    Raises
    ------
    ImageError
        The file is opened as text, closed or already read to its end, or the upload can only be awaited.
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
        except Exception as error:  # closed files, broken connections and other objects raise all kinds of errors
            raise ImageError(
                f"{name} could not be read: {type(error).__name__}: {error}. Pass a file that is open for reading in "
                "binary mode, or its bytes."
            ) from error
    if not isinstance(data, _BYTES):
        raise ImageError(
            f"{name} returns {type(data).__name__} when read, not bytes. Open the file in binary mode: open(path, "
            "'rb')."
        )
    if not data:
        raise ImageError(
            f"{name} is empty, or was already read to its end and cannot be rewound. Read it once, and pass its bytes."
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
