"""Students on disk: one safetensors file with a JSON header, no pickle."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from .exceptions import CheckpointError, DiskFullError
from .networks.student import Decoder, Student

FORMAT = "fewshot_ad student 1"


def student_header(backbone: str, fingerprint: str, student: Student) -> dict[str, Any]:
    """Say what a detector must know of a student before it can use it: form, size, and the teacher it belongs to."""
    return {
        "backbone": backbone,
        "teacher": fingerprint,
        "student": student.form,
        "decoder_blocks": student.net.blocks if isinstance(student.net, Decoder) else None,
        "weighting": "attention" if student.weighting.attention else "uniform",
    }


def save_student(path: str | os.PathLike, student: Student, header: dict[str, Any]) -> None:
    """Write a student, atomically: the file is there whole, or not at all.

    Parameters
    ----------
    path : path
        Ends in `.safetensors`.
    student : Student
    header : dict
        JSON: `student_header`, and anything else that is worth knowing.

    Raises
    ------
    DiskFullError
        What was there before stays.
    """
    save(path, student.state_dict(), FORMAT, header)


def load_student(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_student` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    tensors : dict of str to torch.Tensor
    header : dict

    Raises
    ------
    CheckpointError
        No such file, or not a student of this package.
    """
    return load(path, FORMAT, "a student's checkpoint")


def save(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], form: str, header: dict[str, Any]) -> None:
    """Write tensors and a JSON header atomically; `form` names the format and its version."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomically(Path(path), to_bytes(tensors, {"format": form, "header": json.dumps(header, sort_keys=True)}))


def load(path: str | os.PathLike, form: str, what: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save` wrote in the same format; `what` it should be is for messages."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist; {what} was expected there.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != form:
                raise CheckpointError(
                    f"{path} is not {what}: its header says {metadata.get('format')!r}, expected {form!r}. Write one "
                    "with save_student() or pretrain()."
                )
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(metadata["header"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file with {what} ({error}).") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename.

    Raises
    ------
    DiskFullError
        What was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explain_disk_full(path, len(data)):
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of writers of this path that were killed."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


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
