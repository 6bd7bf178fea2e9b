"""Students on disk: one safetensors file with a JSON header, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .exceptions import CheckpointError
from .networks.student import Student

FORMAT = "fewshot_ad student 1"


def save_student(path: str | os.PathLike, student: Student, header: dict[str, Any]) -> None:
    """Write a student, atomically: the file is there whole, or not at all.

    Parameters
    ----------
    path : path
        Ends in `.safetensors`.
    student : Student
    header : dict
        JSON: what is needed to tell which teacher the student belongs to.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in student.state_dict().items()}
    data = save(tensors, {"format": FORMAT, "header": json.dumps(header, sort_keys=True)})
    write_atomically(Path(path), data)


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
    if not Path(path).is_file():
        raise CheckpointError(f"The student's checkpoint {path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} is not a student's checkpoint: its header says {metadata.get('format')!r}, expected "
                    f"{FORMAT!r}. Write one with save_student()."
                )
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(metadata["header"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not a readable student's checkpoint ({error}).") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
