"""Tensors on disk: one safetensors file with a JSON header, never pickled; and students in such files."""

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
# Seconds without a change after which a temporary file is treated as left behind by a killed process.
_ABANDONED = 600.0


def student_header(backbone: str, fingerprint: str, student: StudentNetwork) -> dict[str, Any]:
    """Return what a detector must know to use a student: its form, size and teacher."""
    return {
        "backbone": backbone,
        "teacher": fingerprint,
        "student": student.form,
        "decoder_blocks": student.net.blocks if isinstance(student.net, Decoder) else None,
        "weighting": "attention" if student.weighting.attention else "uniform",
    }


def save_student(path: str | os.PathLike[str], student: StudentNetwork, header: dict[str, Any]) -> None:
    """Write a student atomically.

    Parameters
    ----------
    path : path
        File to write; ends in `.safetensors`.
    student : StudentNetwork
    header : dict
        JSON: `student_header`, and any further information.

    Raises
    ------
    DiskFullError
        The disk is full; an earlier file stays unchanged.
    """
    save(path, student.state_dict(), FORMAT, header)


def load_student(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a student's checkpoint.

    Parameters
    ----------
    path : path
        File from `save_student`.

    Returns
    -------
    tensors : dict of str to torch.Tensor
    header : dict
        Including the entries of `student_header`.

    Raises
    ------
    CheckpointError
        The file does not exist, or is not a student of this package.
    """
    tensors, header = load(path, FORMAT, "a student's checkpoint")
    if not all(isinstance(header.get(name), str) for name in ("backbone", "teacher", "student", "weighting")):
        raise CheckpointError(f"{path} is not valid: its header does not describe the student and its teacher.")
    blocks, stored = header.get("decoder_blocks"), count_blocks(tensors)
    if blocks not in (None, stored):
        raise CheckpointError(
            f"{path} is not valid: it has tensors of {stored} blocks, but its header says {blocks!r:.80}."
        )
    return tensors, header


def count_blocks(names: Iterable[str]) -> list[int]:
    """Count a decoder's blocks at each scale by the names of its tensors: this limits the network that is built."""
    parts = [name.split(".") for name in names]
    return [len({p[3] for p in parts if p[:3] == ["net", "stages", str(i)] and len(p) > 3}) for i in range(3)]


def save(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], form: str, header: dict[str, Any]) -> None:
    """Write tensors and a JSON header atomically; `form` names the format and its version."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    data = serialize(tensors, {"format": form, "header": json.dumps(header)})
    # safetensors writes metadata in varying order; the same state must give the same bytes.
    end = 8 + int.from_bytes(data[:8], "little")
    index = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    index += b" " * (-len(index) % 8)
    write_atomically(Path(path), b"".join([len(index).to_bytes(8, "little"), index, memoryview(data)[end:]]))


def load(
    path: str | os.PathLike[str], form: str, what: str, made_by: str = "save_student() or pretrain()"
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save` wrote in the same format; `what` and `made_by` describe the expected file in messages."""
    return load_any(path, (form,), what, made_by)[:2]


def load_any(
    path: str | os.PathLike[str], forms: Sequence[str], what: str, made_by: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any], str]:
    """Read what `save` wrote in one of several formats, the newest first; return its format too."""
    with _open(path, forms, what, made_by) as (file, header, form):
        # Copies, since tensors are views of the whole file, which would then have to stay unchanged.
        return {key: file.get_tensor(key).clone() for key in file.keys()}, header, form


def load_header(
    path: str | os.PathLike[str], forms: Sequence[str], what: str, made_by: str
) -> tuple[dict[str, Any], str]:
    """Read only the header of what `save` wrote; return its format too."""
    with _open(path, forms, what, made_by) as (_, header, form):
        return header, form


@contextlib.contextmanager
def _open(
    path: str | os.PathLike[str], forms: Sequence[str], what: str, made_by: str
) -> Iterator[tuple[Any, dict[str, Any], str]]:
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist; it should be {what}.")
    try:
        open(path, "rb").close()  # safe_open reports a file without permissions as missing
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); it should be {what}.") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            form = metadata.get("format")
            if form is None or form not in forms:
                raise CheckpointError(_other_format(path, form, forms[0], what, made_by))
            header = json.loads(metadata["header"])
            if not isinstance(header, dict):
                raise CheckpointError(f"{path} is not {what}: its header holds a {type(header).__name__}, not a dict.")
            yield file, header, form
    except CheckpointError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:  # json raises the last three
        raise CheckpointError(f"{path} is not a readable safetensors file with {what} ({error}).") from error


def _other_format(path: str | os.PathLike[str], form: str | None, expected: str, what: str, made_by: str) -> str:
    name, _, version = expected.rpartition(" ")
    if form is not None and form.rpartition(" ")[0] == name:
        return (
            f"{path} is in version {form.rpartition(' ')[2][:20]} of its format, and fewshot-ad {__version__} reads "
            f"version {version}. Install the release of fewshot-ad that wrote it, or make it again with {made_by}."
        )
    return f"{path} is not {what}: its header says {form!r}, expected {expected!r}. Write one with {made_by}."


def check_destination(path: str | os.PathLike[str], *, force: bool, least: int = 0) -> None:
    """Check early whether a file can be written: name in use, missing folder, permissions, disk space.

    Temporary files that a killed process left of the same file are removed.

    Parameters
    ----------
    path : path
        File to write.
    force : bool
        Whether it may exist already.
    least : int, optional
        Minimal size in bytes.

    Raises
    ------
    OutputExistsError, OutputError, DiskFullError
    """
    path = Path(path)
    # os.path reports a name that is too long as missing; lstat below gives the reason.
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder. Name a file in it, for instance {path / 'NAME'}")
    if os.path.exists(path) and not force:
        raise OutputExistsError(f"{path} exists. Pass force=True to replace it, or another name")
    if not os.path.isdir(path.parent):
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}. Create it first")
    remove_leftovers(path, _ABANDONED)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # fails for names that the file system does not accept
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
            f"{path} needs at least {least / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free. Free space, or write "
            "elsewhere",
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename.

    Raises
    ------
    DiskFullError
        The disk is full; an earlier file stays unchanged.
    """
    with explain_disk_full(path, len(data)), _temporary_file(path) as (temporary, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        with contextlib.suppress(OSError):  # a replaced file keeps its permissions
            shutil.copymode(path, temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open a new file beside a path, under an unpredictable name; in the end it is removed or renamed."""
    temporary = temporary_name(path)
    # "x", like mkstemp, neither follows links nor overwrites; and the file has the usual permissions of a new file.
    with temporary.open("xb") as file:
        try:
            yield temporary, file
        finally:
            with contextlib.suppress(OSError):  # pending data that could not be written before
                file.close()
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return a temporary name beside a path, which `remove_leftovers` recognises."""
    return path.with_name(f"{_stem(path)}{secrets.token_hex(8)}.tmp")


def _stem(path: Path) -> str:
    """Return the prefix of a path's temporary names: the start of its name, and a checksum, to limit the length."""
    return f".{path.name[:40]}.{zlib.crc32(os.fsencode(path.name)):08x}."


def remove_leftovers(path: Path, age: float = 0.0) -> None:
    """Remove temporary files of this path left by killed processes, if unchanged for `age` seconds."""
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
    """Raise an error with the number of bytes that are needed if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise DiskFullError(
            error.errno,
            f"The disk is full: {path} needs {needed / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free. Earlier files "
            "are still valid. Free space, or write elsewhere",
        ) from error
