"""The header of a model file: its entries and their checks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .. import __version__
from ..exceptions import CheckpointError
from ..history import is_history
from ..method.packaged import PACKAGED
from ..settings import RULES, STUDENT_PREFIX, STUDENT_RULES, Rule
from .calibration_entry import is_entry, is_predictive

# Parameters that depend on the machine, which are not stored.
LEFT_OUT = ("device", "n_jobs", "memory", "verbose")
_OF_STUDENT = {STUDENT_PREFIX + name for name in STUDENT_RULES}
# Parameters in every file of this release; those of a student are stored only if one was given.
SAVED = RULES.keys() - {*LEFT_OUT, "student"} - _OF_STUDENT
# An image of this side takes 200 MB; a header with a larger one is rejected.
_MAX_SIDE = 4096
_ALWAYS = {"backbone", "weights", "image_size"}
_STUDENT = {"student", "decoder_blocks", "weighting", "sharpness"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_list_of(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(kind, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_hex(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32,64}", value) is not None


def _is_student(value: Any) -> bool:
    # Files of format 1 lack "shown": the student compares with all support images.
    if not isinstance(value, dict) or value.keys() - {"shown"} != _STUDENT:
        return False
    blocks = value["decoder_blocks"]
    return (
        (blocks is None if value["student"] == "encoder" else STUDENT_RULES["decoder_blocks"].holds(blocks))
        and value["student"] in ("decoder", "encoder")
        and _is_list_of(value.get("shown", []), _is_integer)
        and value["weighting"] in ("attention", "uniform")
        and _is_number(value["sharpness"])
    )


_NUMBERS = Rule(_is_number, "a finite number")
_INTEGERS = Rule(_is_integer, "an integer of at least 0")
_HEADER: dict[str, Rule] = {
    "versions": Rule(
        lambda v: (
            isinstance(v, dict) and v.keys() == {"fewshot_ad", "torch", "timm"} and all(map(_is_text, v.values()))
        ),
        "the versions of fewshot_ad, torch and timm",
    ),
    "parameters": Rule(lambda v: isinstance(v, dict), "a dict"),
    "fitted": Rule(lambda v: isinstance(v, dict), "a dict"),
    "support_images": Rule(lambda v: isinstance(v, bool), "true or false"),
    "students": Rule(lambda v: _is_list_of(v, _is_student), "a list of students"),
}
# The fitted state except tensors. "history" is present only after an update, "calibration" after `calibrate`, and the
# last two if the detector was fitted on rows.
_FITTED: dict[str, Rule] = {
    "teacher_fingerprint_": Rule(_is_hex, "a hexadecimal hash"),
    "offset_": _NUMBERS,
    "evidence_": RULES["evidence"],
    "lam_": Rule(lambda v: v == float("inf") or _is_number(v), "a number"),
    "scales_": Rule(
        lambda v: isinstance(v, dict) and all(_is_number(scale) and scale > 0 for scale in v.values()),
        "a dict of positive numbers",
    ),
    "row_range_": Rule(
        lambda v: v is None or (_is_list_of(v, _is_number) and len(v) == 2 and v[0] < v[1]),
        "null or two numbers, the lower one first",
    ),
    "_support_names": Rule(lambda v: _is_list_of(v, _is_text) and len(v) > 0, "a list of names"),
    "_support_hashes": Rule(lambda v: _is_list_of(v, _is_hex), "a list of hexadecimal hashes"),
    "_held_out_seed": _INTEGERS,
    "groups": Rule(lambda v: _is_list_of(v, _is_integer), "a list of integers"),
    "offset_given": Rule(lambda v: isinstance(v, bool), "true or false"),
    "history": Rule(is_history, "a list of additions"),
    "predictive": Rule(is_predictive, "middle, scale and degrees of freedom"),
    "calibration": Rule(is_entry, "the result of `calibrate`"),
    "layers_": Rule(lambda v: _is_list_of(v, _is_integer) and len(v) > 0, "a list of integers"),
    "n_features_in_": _INTEGERS,
    "feature_names_in_": Rule(lambda v: _is_list_of(v, _is_text), "a list of names"),
}
# Missing in earlier files, without `calibrate`, or if the detector was fitted on images.
_OPTIONAL = (
    "n_features_in_", "feature_names_in_", "offset_given", "groups", "history", "predictive", "calibration", "layers_",
)  # fmt: skip


def check_header(path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    """Check that a header is valid.

    Parameters
    ----------
    path : path
        Path of the file, for messages.
    header : dict
        Header, of JSON types.

    Raises
    ------
    CheckpointError
        An entry is missing, unknown or not valid.
    """
    _check_entries(path, "its header", header, _HEADER)
    _check_entries(path, "its fitted state", header["fitted"], _FITTED, optional=_OPTIONAL)
    given = header["parameters"]
    _check_parameters(path, given, header["versions"]["fewshot_ad"])
    n_names, n_hashes = (len(header["fitted"][name]) for name in ("_support_names", "_support_hashes"))
    if len(header["fitted"].get("groups", range(n_hashes))) != n_hashes:
        raise CheckpointError(f"{path} is not valid: its groups are not those of {n_hashes} support images.")
    if n_names != n_hashes:
        raise CheckpointError(f"{path} is not valid: it names {n_names} support images, but has {n_hashes} hashes.")
    backbone = given["backbone"]
    if backbone in PACKAGED:
        return
    import timm

    # With a name of another form, such as "hf-hub:...", timm would download from wherever the file says.
    if not timm.is_model(backbone):
        raise CheckpointError(
            f"{path}: the backbone {backbone!r} is not a network that timm {timm.__version__} knows by name (the file "
            f"was written with timm {header['versions']['timm']}). Import the module that registers it, or install "
            "that version of timm; networks from other sources cannot be saved and loaded."
        )


def _check_parameters(path: str | os.PathLike[str], given: Mapping[str, Any], version: str) -> None:
    unknown = sorted(given.keys() - SAVED - _OF_STUDENT)
    if unknown:
        raise CheckpointError(
            f"{path} has the parameter {unknown[0]!r:.80}, which fewshot-ad {__version__} does not read from a file. "
            f"Install the release that wrote it, {version:.40}, or a newer one."
        )
    # A missing parameter is newer than the file, and has its default; these three were always present.
    wrong = _differences(given.keys() & _ALWAYS, _ALWAYS)
    if wrong:
        raise CheckpointError(f"{path} is not valid: among its parameters it has {wrong}.")
    for name, value in given.items():
        if not RULES[name].holds(value):
            raise CheckpointError(
                f"{path} is not valid: its parameter {name}={value!r:.80} must be {RULES[name].accepted}."
            )
    if given["image_size"] != "auto" and np.max(given["image_size"]) > _MAX_SIDE:
        raise CheckpointError(f"{path} is not valid: image_size={given['image_size']} is above {_MAX_SIDE}.")


def _check_entries(
    path: str | os.PathLike[str],
    where: str,
    entries: Mapping[str, Any],
    checks: Mapping[str, Rule],
    optional: Iterable[str] = (),
) -> None:
    wrong = _differences(entries, checks, optional)
    if wrong:
        raise CheckpointError(f"{path} is not valid: {where} has {wrong}.")
    for name, value in entries.items():
        if not checks[name].holds(value):
            raise CheckpointError(
                f"{path} is not valid: {where} has {name}={value!r:.80}, expected {checks[name].accepted}."
            )


def _differences(names: Iterable[str], expected: Iterable[str], optional: Iterable[str] = ()) -> str:
    """Describe a missing and an unknown name; "" if there is neither."""
    unknown, missing = sorted(set(names) - set(expected)), sorted(set(expected) - set(names) - set(optional))
    parts = [f"no {missing[0]!r}"] if missing else []
    parts += [f"{unknown[0]!r:.80}, which this release does not know"] if unknown else []
    return " and ".join(parts)
