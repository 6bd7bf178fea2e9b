"""Tensors on disk: one safetensors file with a JSON header, no pickle; and students in such files."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from .. import __version__
from ..exceptions import CheckpointError, DiskFullError, OutputError, OutputExistsError
from ..method.student import Decoder, StudentNetwork

FORMAT = "fewshot_ad student 1"
# Seconds after which a temporary file that nobody writes to is taken for a killed process's.
_ABANDONED = 600.0


def student_header(backbone: str, fingerprint: str, student: StudentNetwork) -> dict[str, Any]:
    """Say what a detector must know of a student before it can use it: form, size, and the teacher it belongs to."""
    return {
        "backbone": backbone,
        "teacher": fingerprint,
        "student": student.form,
        "decoder_blocks": student.net.blocks if isinstance(student.net, Decoder) else None,
        "weighting": "attention" if student.weighting.attention else "uniform",
    }


def save_student(path: str | os.PathLike[str], student: StudentNetwork, header: dict[str, Any]) -> None:
    """Write a student, atomically: the file is there whole, or not at all.

    Parameters
    ----------
    path : path
        Ends in `.safetensors`.
    student : StudentNetwork
    header : dict
        JSON: `student_header`, and anything else that is worth knowing.

    Raises
    ------
    DiskFullError
        What was there before stays.
    """
    save(path, student.state_dict(), FORMAT, header)


def load_student(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_student` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    tensors : dict of str to torch.Tensor
    header : dict
        With what `student_header` says.

    Raises
    ------
    CheckpointError
        No such file, or not a student of this package.
    """
    tensors, header = load(path, FORMAT, "a student's checkpoint")
    if not all(isinstance(header.get(name), str) for name in ("backbone", "teacher", "student", "weighting")):
        raise CheckpointError(
            f"{path} cannot be right: its header does not say what student it is, and of which teacher."
        )
    blocks, found = header.get("decoder_blocks"), count_blocks(tensors)
    if blocks not in (None, found):
        raise CheckpointError(
            f"{path} cannot be right: it has tensors of {found} blocks for a student of {blocks!r:.80}."
        )
    return tensors, header


def count_blocks(names: Iterable[str]) -> list[int]:
    """Count a decoder's blocks at each scale by the names of its tensors: no more is built than a file fills."""
    parts = [name.split(".") for name in names]
    return [len({p[3] for p in parts if p[:3] == ["net", "stages", str(i)] and len(p) > 3}) for i in range(3)]


def save(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], form: str, header: dict[str, Any]) -> None:
    """Write tensors and a JSON header atomically; `form` names the format and its version."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    data = serialize(tensors, {"format": form, "header": json.dumps(header)})
    # safetensors puts the metadata in an order that changes from call to call; the same state shall be the same bytes.
    end = 8 + int.from_bytes(data[:8], "little")
    index = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    index += b" " * (-len(index) % 8)
    write_atomically(Path(path), b"".join([len(index).to_bytes(8, "little"), index, memoryview(data)[end:]]))


def load(
    path: str | os.PathLike[str], form: str, what: str, made_by: str = "save_student() or pretrain()"
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save` wrote in the same format; `what` it should be, and what makes such files, is for messages."""
    return load_any(path, (form,), what, made_by)[:2]


def load_any(
    path: str | os.PathLike[str], forms: Sequence[str], what: str, made_by: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """Read what `save` wrote in one of several formats, the newest first; return its format too."""
    with _open(path, forms, what, made_by) as (file, header, form):
        # Copies: what is read otherwise are views of the whole file, which must then not change.
        return {key: file.get_tensor(key).clone() for key in file.keys()}, header, form


def load_header(
    path: str | os.PathLike[str], forms: Sequence[str], what: str, made_by: str
) -> tuple[dict[str, Any], str]:
    """Read the header of what `save` wrote, and no tensor; return its format too."""
    with _open(path, forms, what, made_by) as (_, header, form):
        return header, form


@contextlib.contextmanager
def _open(
    path: str | os.PathLike[str], forms: Sequence[str], what: str, made_by: str
) -> Iterator[tuple[Any, dict[str, Any], str]]:
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist; {what} was expected there.")
    try:
        open(path, "rb").close()  # safe_open says of a file without rights that there is none
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); {what} was expected there.") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("format")
            if found is None or found not in forms:
                raise CheckpointError(_other_format(path, found, forms[0], what, made_by))
            header = json.loads(metadata["header"])
            if not isinstance(header, dict):
                raise CheckpointError(f"{path} is not {what}: its header holds a {type(header).__name__}, not a dict.")
            yield file, header, found
    except CheckpointError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:  # json raises the last three
        raise CheckpointError(f"{path} is not a readable safetensors file with {what} ({error}).") from error


def _other_format(path: str | os.PathLike[str], found: str | None, form: str, what: str, made_by: str) -> str:
    name, _, version = form.rpartition(" ")
    if found is not None and found.rpartition(" ")[0] == name:
        return (
            f"{path} is in version {found.rpartition(' ')[2][:20]} of its format, and fewshot-ad {__version__} reads "
            f"version {version}. Install the release of fewshot-ad that wrote it, or make it again with {made_by}."
        )
    return f"{path} is not {what}: its header says {found!r}, expected {form!r}. Write one with {made_by}."


def check_destination(path: str | os.PathLike[str], *, force: bool, least: int = 0) -> None:
    """Find out before the work what can be known: a name that is taken, no such folder, no rights, no room.

    What a killed process left of the same file is removed.

    Parameters
    ----------
    path : path
        A file that is going to be written.
    force : bool
        Whether it may be there already.
    least : int, optional
        Bytes that it takes up at least.

    Raises
    ------
    OutputExistsError, OutputError, DiskFullError
    """
    path = Path(path)
    # os.path tells of a name that is too long that it does not exist; lstat below tells why.
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder. Name a file in it, for instance {path / 'NAME'}")
    if os.path.exists(path) and not force:
        raise OutputExistsError(f"{path} exists. Pass force=True to replace it, or another name")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}. Make it first")
    remove_leftovers(path, _ABANDONED)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # fails for a name that the file system does not take
        with _temporary_file(path):
            pass
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}). Choose another folder or name"
        ) from error
    free = shutil.disk_usage(path.parent).free
    if free < least:
        raise DiskFullError(
            errno.ENOSPC,
            f"{path} needs at least {least / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free. Make room, or write "
            "elsewhere",
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename.

    Raises
    ------
    DiskFullError
        What was there before stays.
    """
    with explain_disk_full(path, len(data)), _temporary_file(path) as (temporary, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        with contextlib.suppress(OSError):  # a file that is replaced keeps its rights
            shutil.copymode(path, temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open a new file beside a path, under a name that nobody can foresee; it is gone in the end, or renamed."""
    temporary = temporary_name(path)
    # "x" neither follows nor overwrites what lies there, as mkstemp; and the file has the rights of any new file.
    with temporary.open("xb") as file:
        try:
            yield temporary, file
        finally:
            with contextlib.suppress(OSError):  # what could not be written before cannot be now
                file.close()
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return a name beside a path, for a file or folder that becomes it; `remove_leftovers` knows it."""
    return path.with_name(f"{_stem(path)}{secrets.token_hex(8)}.tmp")


def _stem(path: Path) -> str:
    """Begin the names of a path's temporary files, which are longer than its own: with a part of it, and its sum."""
    return f".{path.name[:40]}.{zlib.crc32(os.fsencode(path.name)):08x}."


def remove_leftovers(path: Path, age: float = 0.0) -> None:
    """Remove the temporary files of writers of this path that were killed, if unchanged for so many seconds."""
    for leftover in path.parent.glob(f"{glob.escape(_stem(path))}*.tmp"):
        with contextlib.suppress(OSError):  # another process was faster
            entry = leftover.lstat()
            if time.time() - entry.st_mtime < age:
                continue
            if stat.S_ISDIR(entry.st_mode):
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()


@contextlib.contextmanager
def explain_disk_full(path: Path, needed: int) -> Iterator[None]:
    """Say how many bytes were needed if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise DiskFullError(
            error.errno,
            f"The disk is full: {path} needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free. What was written "
            "before is still valid. Make room, or write elsewhere",
        ) from error
