"""Fitted detectors on disk: one safetensors file with a JSON header, no pickle; `docs/files.md` says what is in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import timm
import torch
from sklearn.utils.validation import check_is_fitted

from .. import __version__
from ..exceptions import CheckpointError, WeightsNotFoundError
from ..method.features import FeatureExtractor
from ..method.packaged import PACKAGED, timm_name
from ..method.scoring import Expert, parse_evidence
from ..method.student import Decoder, Student, build_student
from ..runtime import PRECISIONS
from . import checkpoints

FORMAT = "fewshot_ad model 1"
_WHAT = "a detector's model file"
_MADE_BY = "DualDistillationDetector.save()"
# Parameters that belong to a machine, not to a detector.
_LEFT_OUT = ("device", "memory", "verbose")
# An image of this side is 200 MB; a header that asks for more is not believed.
_MAX_SIDE = 4096

_Detector = TypeVar("_Detector")


def save(path: str | os.PathLike[str], detector: Any, *, support: bool = False, force: bool = False) -> None:
    """Write a fitted detector, atomically; see `DualDistillationDetector.save`."""
    check_is_fitted(detector)
    path = Path(path)
    checkpoints.check_destination(path, force=force)
    if support and not hasattr(detector, "support_"):
        raise CheckpointError(
            "support=True cannot be had: this detector was loaded from a file that holds no support images."
        )
    tensors = _tensors(detector, support)
    header = _header(detector, tensors)
    _check_header(path, header)  # what cannot be read is not written
    _make(path, header, type(detector), {})
    checkpoints.save(path, tensors, FORMAT, {**header, "sha256": _digest(header, tensors)})


def load(
    path: str | os.PathLike[str],
    make: Callable[..., _Detector],
    *,
    device: str | torch.device | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> _Detector:
    """Read what `save` wrote, into a detector of the class `make`; see `DualDistillationDetector.load`."""
    tensors, header = checkpoints.load(path, FORMAT, _WHAT, _MADE_BY)
    expected = header.pop("sha256", None)
    if _digest(header, tensors) != expected:
        raise CheckpointError(
            f"{path} was altered or damaged: its contents do not have the checksum in its header. Copy it again from "
            "where it came from, or save the detector again."
        )
    _check_header(path, header)
    hint = header["parameters"]["weights"]
    if weights is None and hint is not None and os.path.isfile(os.path.expanduser(hint)):
        weights = hint
    detector: Any = _make(path, header, make, {"device": "auto" if device is None else device, "weights": weights})
    for name, value in header["fitted"].items():
        setattr(detector, name, value)
    if isinstance(detector.evidence_, list):
        detector.evidence_ = tuple(detector.evidence_)
    detector.row_range_ = None if detector.row_range_ is None else tuple(detector.row_range_)
    detector._support_hashes = np.array(detector._support_hashes)
    if hasattr(detector, "feature_names_in_"):
        detector.feature_names_in_ = np.array(detector.feature_names_in_, dtype=object)
    _put_tensors(path, header, tensors, detector, _extractor(path, detector, hint))
    return detector


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Say what is in a model file, from its header alone: the checksum of its tensors is not looked at.

    Parameters
    ----------
    path : path
        What `DualDistillationDetector.save` wrote.

    Returns
    -------
    dict
        JSON types. "format", "bytes" (of the file), "versions" (of fewshot_ad, torch and timm that wrote it),
        "backbone", "teacher_fingerprint" (sha256), "n_support", "support_names" (without folders), "support_images"
        (whether they are in the file), `"offset_"`, `"lam_"`, `"scales_"`, `"n_features_in_"` (None unless fitted on
        rows), "students" (form of each), "parameters" (of the constructor).

    Raises
    ------
    CheckpointError
        No such file, not a model file, of another version, or with a header that cannot be right.
    """
    header = checkpoints.load_header(path, FORMAT, _WHAT, _MADE_BY)
    header.pop("sha256", None)
    _check_header(path, header)
    fitted = header["fitted"]
    return {
        "format": FORMAT,
        "bytes": Path(path).stat().st_size,
        "versions": header["versions"],
        "backbone": header["parameters"]["backbone"],
        "teacher_fingerprint": fitted["teacher_fingerprint_"],
        "n_support": len(fitted["_support_names"]),
        "support_names": fitted["_support_names"],
        "support_images": header["support_images"],
        **{name: fitted.get(name) for name in ("offset_", "lam_", "scales_", "n_features_in_")},
        "students": header["students"],
        "parameters": header["parameters"],
    }


# ---- what is in a file


def _header(detector: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    parameters = {}
    for name, value in detector.get_params(deep=False).items():
        if name in _LEFT_OUT:
            continue
        if name == "random_state" and not isinstance(value, (int, np.integer)):
            value = None  # a generator's state is not a parameter
        try:
            parameters[name] = _plain(value)
        except TypeError as error:
            raise CheckpointError(
                f"{name}={value!r:.80} cannot be saved: {error}. Pass set_params a plain value first."
            ) from error
    fitted = {name: _plain(getattr(detector, name)) for name in _FITTED if hasattr(detector, name)}
    fitted["_support_names"] = support_names(detector)
    return {
        "versions": {"fewshot_ad": __version__, "torch": str(torch.__version__), "timm": timm.__version__},
        "parameters": parameters,
        "fitted": fitted,
        "support_images": "support" in tensors,
        "students": [
            {
                "student": expert.student.form,
                "decoder_blocks": _plain(expert.student.net.blocks)
                if isinstance(expert.student.net, Decoder)
                else None,
                "weighting": "attention" if expert.student.weighting.attention else "uniform",
                "sharpness": _plain(expert.student.weighting.sharpness),
            }
            for expert in detector.experts_
        ],
    }


def support_names(detector: Any) -> list[str]:
    """List the names of the support's files without their folders: these say where, and often of whom, images are."""
    return [re.split(r"[/\\]", name)[-1] for name in detector._support_names]


def _tensors(detector: Any, support: bool) -> dict[str, torch.Tensor]:
    tensors = {
        "support_scores": torch.from_numpy(detector.support_scores_),
        "loss_curve": torch.tensor(detector.loss_curve_, dtype=torch.float64),
    }
    optional = {"patches": detector.patches_, "embeddings": detector.embeddings_}
    tensors |= {name: value for name, value in optional.items() if value is not None}
    if support:
        tensors["support"] = torch.from_numpy(detector.support_)
    for i, expert in enumerate(detector.experts_):
        tensors |= {f"students.{i}.{name}": value for name, value in expert.student.state_dict().items()}
        tensors |= {f"students.{i}.maps.{level}": m for level, m in enumerate(expert.maps)}
        tensors[f"students.{i}.seen"] = expert.seen.to(torch.uint8)  # copying a bool would mend a flipped bit
        if expert.student.weighting.attention:  # otherwise they are the maps
            tensors |= {f"students.{i}.keys.{level}": key for level, key in enumerate(expert.keys)}
    return tensors


def _plain(value: Any) -> Any:
    """Turn into what JSON holds."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"JSON has no place for a {type(value).__name__}")


def _digest(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash everything in a file: header, and the name, type, shape and bytes of each tensor."""
    found = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


# ---- is it what it says


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_positive(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_list_of(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(kind, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(value: Any) -> bool:
    return value is None or (isinstance(value, str) and "\0" not in value)


def _is_hex(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32,64}", value) is not None


def _is_evidence(value: Any) -> bool:
    try:
        parse_evidence(value, 0.1)
    except (TypeError, ValueError):
        return False
    return True


def _is_student(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"student", "decoder_blocks", "weighting", "sharpness"}:
        return False
    blocks = value["decoder_blocks"]
    return (
        (blocks is None if value["student"] == "encoder" else _is_list_of(blocks, _is_positive) and len(blocks) == 3)
        and value["student"] in ("decoder", "encoder")
        and value["weighting"] in ("attention", "uniform")
        and _is_number(value["sharpness"])
    )


_Check = tuple[Callable[[Any], bool], str]
_NUMBERS: _Check = (_is_number, "a finite number")
_INTEGERS: _Check = (_is_integer, "an integer, not negative")
_HEADER: dict[str, _Check] = {
    "versions": (
        lambda v: (
            isinstance(v, dict) and v.keys() == {"fewshot_ad", "torch", "timm"} and all(map(_is_text, v.values()))
        ),
        "the versions of fewshot_ad, torch and timm",
    ),
    "parameters": (lambda v: isinstance(v, dict), "a dict"),
    "fitted": (lambda v: isinstance(v, dict), "a dict"),
    "support_images": (lambda v: isinstance(v, bool), "true or false"),
    "students": (lambda v: _is_list_of(v, _is_student), "a list of students"),
}
# The fitted state that is no tensor; the last two only where rows were fitted on.
_FITTED: dict[str, _Check] = {
    "teacher_fingerprint_": (_is_hex, "a hexadecimal hash"),
    "offset_": _NUMBERS,
    "evidence_": (_is_evidence, "kinds of evidence"),
    "lam_": (lambda v: v == float("inf") or _is_number(v), "a number"),
    "scales_": (
        lambda v: isinstance(v, dict) and all(_is_number(scale) and scale > 0 for scale in v.values()),
        "a dict of positive numbers",
    ),
    "row_range_": (
        lambda v: v is None or (_is_list_of(v, _is_number) and len(v) == 2 and v[0] < v[1]),
        "null or two numbers, the lower one first",
    ),
    "_support_names": (lambda v: _is_list_of(v, _is_text) and len(v) > 0, "a list of names"),
    "_support_hashes": (lambda v: _is_list_of(v, _is_hex), "a list of hexadecimal hashes"),
    "_held_out_seed": _INTEGERS,
    "n_features_in_": _INTEGERS,
    "feature_names_in_": (lambda v: _is_list_of(v, _is_text), "a list of names"),
}
_OF_ROWS = ("n_features_in_", "feature_names_in_")
# What the constructor's own checks leave to the first use.
_PARAMETERS: dict[str, _Check] = {
    "backbone": (_is_text, "a name"),
    "weights": (_is_path, "null or a path"),
    "init": (_is_path, "null or a path"),
    "augment": (lambda v: isinstance(v, bool), "true or false"),
    "precision": (lambda v: v in PRECISIONS, f"one of {PRECISIONS}"),
    "image_size": (lambda v: _is_integer(v) and v <= _MAX_SIDE, f"an integer, at most {_MAX_SIDE}"),
    "image_shape": (lambda v: v is None or _is_list_of(v, _is_integer), "null or integers"),
    "random_state": (lambda v: v is None or _is_integer(v), "null or an integer"),
}


def _check_header(path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    _check_entries(path, "its header", header, _HEADER)
    _check_entries(path, "its fitted state", header["fitted"], _FITTED, optional=_OF_ROWS)
    given = header["parameters"]
    _check_entries(path, "its parameters", {k: v for k, v in given.items() if k in _PARAMETERS}, _PARAMETERS)
    n_names, n_hashes = (len(header["fitted"][name]) for name in ("_support_names", "_support_hashes"))
    if n_names != n_hashes:
        raise CheckpointError(f"{path} cannot be right: it names {n_names} support images, and has {n_hashes} hashes.")
    backbone = given["backbone"]
    # A name of another form, as "hf-hub:...", would have timm fetch from wherever the file says.
    if backbone not in PACKAGED and not timm.is_model(backbone):
        raise CheckpointError(
            f"{path}: the backbone {backbone!r} is not a network that timm {timm.__version__} knows by its name (the "
            f"file is of timm {header['versions']['timm']}). Import the module that registers it, or install that "
            "version of timm; networks from elsewhere cannot be saved and loaded."
        )


def _check_entries(
    path: str | os.PathLike[str],
    where: str,
    found: Mapping[str, Any],
    checks: Mapping[str, _Check],
    optional: Iterable[str] = (),
) -> None:
    wrong = _differences(found, checks, optional)
    if wrong:
        raise CheckpointError(f"{path} cannot be right: {where} has {wrong}.")
    for name, value in found.items():
        holds, accepted = checks[name]
        if not holds(value):
            raise CheckpointError(f"{path} cannot be right: {where} has {name}={value!r:.80}, expected {accepted}.")


def _differences(found: Iterable[str], expected: Iterable[str], optional: Iterable[str] = ()) -> str:
    """Say which names are too many or too few; nothing where none are."""
    unknown, missing = sorted(set(found) - set(expected)), sorted(set(expected) - set(found) - set(optional))
    parts = [f"no {missing[0]!r}"] if missing else []
    parts += [f"{unknown[0]!r:.80}, which this release does not know"] if unknown else []
    return " and ".join(parts)


def _make(
    path: str | os.PathLike[str], header: Mapping[str, Any], make: Callable[..., _Detector], here: dict[str, Any]
) -> _Detector:
    """Make a detector that is not fitted; `here` are parameters that do not come from the file."""
    parameters = header["parameters"]
    probe: Any = make()
    # One that is not in the file came later, and has its default.
    unknown = sorted(parameters.keys() - set(probe.get_params(deep=False)) | parameters.keys() & set(_LEFT_OUT))
    if unknown:
        raise CheckpointError(
            f"{path} has the parameter {unknown[0]!r:.80}, which fewshot-ad {__version__} cannot take from a file. "
            f"Install the release that wrote it, {header['versions']['fewshot_ad']:.40}, or a newer one."
        )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()}
    try:
        detector: Any = make(**{**values, **here})
        detector._check_parameters()
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise CheckpointError(f"{path} has a parameter that cannot be right: {error}") from error
    return detector


def _extractor(path: str | os.PathLike[str], detector: Any, hint: str | None) -> FeatureExtractor:
    try:
        return detector._extractor()
    except WeightsNotFoundError as error:
        fingerprint = detector.teacher_fingerprint_[:12]
        kept = f" (when it was saved: {hint})" if hint is not None else ""
        raise WeightsNotFoundError(
            f"{path} holds no teacher, and the weights of its backbone {detector.backbone!r} with the fingerprint "
            f"{fingerprint} are not here{kept}: {error} Either pass load(..., weights=FILE), a safetensors file of "
            "them, or call load() where timm may fetch them from the hub or has them in its cache."
        ) from error


def _put_tensors(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    detector: Any,
    extract: FeatureExtractor,
) -> None:
    """Put the tensors into the detector, each after a look at its shape and type."""
    teacher, dtype = extract.teacher, extract.runtime.dtype
    k, size = len(detector._support_hashes), detector.image_size
    left = dict(tensors)

    def take(name: str, shape: tuple[int | None, ...], kind: torch.dtype = dtype) -> torch.Tensor:
        if name not in left:
            raise CheckpointError(f"{path} cannot be right: it has no tensor {name!r}.")
        found = left.pop(name)
        fits = len(found.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
        if not fits or found.dtype != kind:
            raise CheckpointError(
                f"{path} cannot be right: its tensor {name!r} is {found.dtype} of shape {tuple(found.shape)}, expected "
                f"{kind} of shape ({', '.join('any' if n is None else str(n) for n in shape)})."
            )
        return found

    detector.support_scores_ = take("support_scores", (k,), torch.float64).numpy()
    detector.loss_curve_ = take("loss_curve", (None,), torch.float64).tolist()
    needed = detector._kinds()
    detector.patches_ = detector.embeddings_ = detector._bank = None
    if "patch" in needed or "patches" in left:
        detector.patches_ = take("patches", (k, None, sum(teacher.channels[:3])))
    if "embedding" in needed or "embeddings" in left:
        detector.embeddings_ = take("embeddings", (k, None, teacher.channels[-1]))
    if header["support_images"]:
        detector.support_ = take("support", (k, 3, size, size), torch.float32).numpy()
    if detector._needs_student() and not header["students"]:
        raise CheckpointError(
            f"{path} cannot be right: evidence={detector.evidence_!r} needs a student, and it has none."
        )

    shapes = [(k, c, *shape) for c, shape in zip(teacher.channels[:3], teacher.shapes[:3], strict=True)]
    detector.experts_ = []
    for i, form in enumerate(header["students"]):
        prefix = f"students.{i}."
        held = [name.removeprefix(prefix) for name in left if name.startswith(prefix)]
        student = _student(path, form, held, detector, extract)
        student.load_state_dict(
            {name: take(prefix + name, tuple(value.shape), value.dtype) for name, value in student.state_dict().items()}
        )
        seen = take(f"{prefix}seen", (k,), torch.uint8).bool()
        maps = [take(f"{prefix}maps.{level}", shape) for level, shape in enumerate(shapes)]
        keys = list(maps)
        if student.weighting.attention:
            keys = [take(f"{prefix}keys.{level}", shape) for level, shape in enumerate(shapes)]
        detector.experts_.append(Expert(student, seen, maps, keys))
    if left:
        raise CheckpointError(f"{path} cannot be right: its tensor {min(left)!r} belongs to nothing.")


def _student(
    path: str | os.PathLike[str], form: Mapping[str, Any], held: list[str], detector: Any, extract: FeatureExtractor
) -> Student:
    """Build an untrained student of this form, if there are tensors for one: no more is built than the file fills."""
    blocks = form["decoder_blocks"]
    found = checkpoints.count_blocks(held)
    if not held or blocks not in (None, found):
        raise CheckpointError(f"{path} cannot be right: it has tensors of {found} blocks for a student of {blocks}.")
    student = build_student(
        form["student"],
        extract.teacher,
        timm_name(detector.backbone),
        detector.image_size,
        blocks=blocks or found,
        attention=form["weighting"] == "attention",
        sharpness=form["sharpness"],
        seed=0,
    )
    return student.to(extract.runtime.dtype).eval()
