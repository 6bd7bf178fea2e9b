"""The packaged networks, and a check of their files."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..exceptions import CheckpointError

_FOLDER = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Packaged:
    """One teacher and its student.

    Attributes
    ----------
    network : str
        timm's name of the teacher's architecture.
    teacher, student : Path
        safetensors files.
    hashes : dict of str to str
        sha256 of each file, hexadecimal, by its name.
    """

    network: str
    teacher: Path
    student: Path
    hashes: dict[str, str]

    def check(self, path: Path) -> Path:
        """Return the path of one of the two files, after a check of its sha256.

        Raises
        ------
        CheckpointError
            The file is missing, or differs from the packaged one.
        """
        try:
            entry = path.stat()
            digest = _sha256(path, entry.st_mtime_ns, entry.st_size)
        except OSError as error:
            raise CheckpointError(f"The packaged weights {path} cannot be read ({error}). {_WAY_OUT}") from error
        if digest != self.hashes[path.name]:
            raise CheckpointError(
                f"The packaged weights {path} were altered: sha256 {digest}, expected {self.hashes[path.name]}. "
                f"{_WAY_OUT}"
            )
        return path


@functools.lru_cache(maxsize=4)
def _sha256(path: Path, modified: int, size: int) -> str:
    """Hash a file, again only if it changed: every scoring call requests its teacher."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


_WAY_OUT = "Install fewshot-ad again (pip install --force-reinstall --no-deps fewshot-ad)."
PACKAGED = {
    "compact": Packaged(
        "lcnet_100",
        _FOLDER / "compact_teacher.safetensors",
        _FOLDER / "compact_student.safetensors",
        {
            "compact_teacher.safetensors": "eb4e8030be6028f49dddb880ec181cb1894b18b89236255228584ef130f8f51c",
            "compact_student.safetensors": "3c5aa3212a4f3100e1061230f4644bc28ab3bd86ab424bd8c0081d600a1971a2",
        },
    ),
}


def timm_name(backbone: str) -> str:
    """Return the timm name of a backbone, or of a packaged teacher's architecture."""
    return PACKAGED[backbone].network if backbone in PACKAGED else backbone


def teacher_file(backbone: str, weights: str | os.PathLike[str] | None) -> Path | None:
    """Return the file of a teacher's weights; None if they are the hub's."""
    if weights is not None:
        return Path(weights).expanduser()
    return PACKAGED[backbone].check(PACKAGED[backbone].teacher) if backbone in PACKAGED else None
