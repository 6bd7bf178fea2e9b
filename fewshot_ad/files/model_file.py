"""Fitted detectors on disk: one safetensors file with a JSON header, no pickle; `docs/files.md` says what is in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__, history
from ..data.rows import Table
from ..exceptions import CheckpointError, WeightsNotFoundError
from ..method.evidence import kinds, needs_student
from ..method.features import FeatureExtractor
from ..method.student import Decoder
from ..runtime import resolve_runtime
from ..settings import Settings, checked
from ..support import FittedSupport, find_teacher
from . import calibration_entry, checkpoints, format_1
from .header import LEFT_OUT, check_header
from .model_tensors import Tensors, read_expert, read_patches, read_subspaces

FORMAT = "fewshot_ad model 2"
_WHAT = "a detector's model file"
_MADE_BY = "DualDistillationDetector.save()"


def save(
    path: str | os.PathLike[str],
    fitted: FittedSupport,
    settings: Settings,
    *,
    support: bool = False,
    force: bool = False,
) -> None:
    """Write a fitted state, atomically; see `DualDistillationDetector.save`. `settings` go into it as parameters."""
    path = Path(path)
    checkpoints.check_destination(path, force=force)
    if support and fitted.images is None:
        raise CheckpointError(
            "support=True is not possible: this detector was loaded from a file that holds no support images."
        )
    tensors = _tensors(fitted, support)
    header = _header(fitted, settings, support)
    check_header(path, header)  # what cannot be read is not written
    checkpoints.save(path, tensors, FORMAT, {**header, "sha256": _digest(header, tensors)})


def load(
    path: str | os.PathLike[str],
    defaults: Mapping[str, Any],
    *,
    device: str | torch.device | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> FittedSupport:
    """Read what `save` wrote; see `DualDistillationDetector.load`. `defaults` are those of all parameters."""
    tensors, header, form = checkpoints.load_any(path, (FORMAT, format_1.FORMAT), _WHAT, _MADE_BY)
    expected = header.pop("sha256", None)
    if _digest(header, tensors) != expected:
        raise CheckpointError(
            f"{path} was altered or damaged: its contents do not have the checksum in its header. Copy it again from "
            "where it came from, or save the detector again."
        )
    header = format_1.renamed(header) if form == format_1.FORMAT else header
    check_header(path, header)
    if form == format_1.FORMAT:
        header, tensors = format_1.upgrade(path, header, tensors, defaults)
    given = {**defaults, **header["parameters"], "device": "auto" if device is None else device}
    hint = given["weights"]
    if weights is not None or hint is None or not os.path.isfile(os.path.expanduser(hint)):
        given["weights"] = weights
    settings = checked(given)
    found = header["fitted"]
    evidence = found["evidence_"]
    evidence = tuple(evidence) if isinstance(evidence, list) else evidence
    extract = _extractor(path, settings, evidence, found["teacher_fingerprint_"], hint)
    table = None
    if "n_features_in_" in found and found["row_range_"] is not None:
        names = found.get("feature_names_in_")
        table = Table(found["n_features_in_"], names and tuple(names), tuple(found["row_range_"]))
    tensor = Tensors(path, tensors, extract.runtime.dtype)
    k, teacher = len(found["_support_hashes"]), extract.teacher
    scores = tensor.take("support_scores", (k,), torch.float64).numpy()
    scores.flags.writeable = False
    curve = tensor.take("loss_curve", (None,), torch.float64).tolist()
    patches = embeddings = subspaces = images = None
    if "patch" in kinds(evidence) or "patches" in tensor.left:
        patches = read_patches(tensor, k, teacher)
    if "embedding" in kinds(evidence) or "embeddings" in tensor.left:
        embeddings = tensor.take("embeddings", (k, None, teacher.channels[-1]))
    if "subspace" in kinds(evidence) or "subspace_bases" in tensor.left:
        subspaces = read_subspaces(tensor, k, teacher)
    if found.get("layers_", list(teacher.layers.numbers)) != list(teacher.layers.numbers):
        raise CheckpointError(f"{path} is not valid: it is of the layers {found['layers_']}.")
    if header["support_images"]:
        images = tuple(tensor.take(f"support.{i}", (3, None, None), torch.float32) for i in range(k))
    if needs_student(evidence) and not header["students"]:
        raise CheckpointError(f"{path} is not valid: evidence={evidence!r} needs a student, but it has none.")
    experts = [read_expert(i, form, k, settings, extract, tensor) for i, form in enumerate(header["students"])]
    groups = tuple(found.get("groups", range(k)))
    calibration, calibration_images = calibration_entry.read(path, found, tensor.take, tensor.left)
    if tensor.left:
        raise CheckpointError(f"{path} is not valid: its tensor {min(tensor.left)!r} belongs to nothing.")
    return FittedSupport(
        settings=settings, names=tuple(found["_support_names"]), hashes=tuple(found["_support_hashes"]),
        geometry=teacher.geometry, images=images, patches=patches, embeddings=embeddings, subspaces=subspaces,
        layers=teacher.layers, experts=tuple(experts),
        evidence=evidence, lam=found["lam_"], scales=found["scales_"], scores=scores,
        groups=groups, offset=found["offset_"],
        offset_given=found.get("offset_given", False), loss_curve=tuple(curve),
        teacher_fingerprint=found["teacher_fingerprint_"], table=table, held_out_seed=found["_held_out_seed"],
        history=history.from_json(found.get("history", [])),
        predictive=calibration_entry.predictive(found, scores, groups), calibration=calibration,
        calibration_images=calibration_images,
    )  # fmt: skip


def save_student(path: str | os.PathLike[str], fitted: FittedSupport) -> None:
    """Write a student that was trained elsewhere than on the support; see `DualDistillationDetector.save_student`."""
    if not fitted.experts:
        raise ValueError(f"There is no student to save: evidence={fitted.evidence!r} trains none.")
    if fitted.experts[0].seen.any():
        raise ValueError(
            "A student that was trained on the support is of use for that support only. Pass auxiliary= to fit, images "
            "of other kinds, to train one that can be used elsewhere."
        )
    student = fitted.experts[0].student
    header = checkpoints.student_header(fitted.settings.backbone, fitted.teacher_fingerprint, student)
    checkpoints.save_student(path, student, header)


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
        (whether they are in the file), `"offset_"`, `"lam_"`, `"scales_"`, `"layers_"` (None in older files),
        `"n_features_in_"` (None unless fitted on rows), "calibration" (what `calibration_` says, but for the scores;
        None without), "students" (form of each), "parameters" (of the constructor), "history" (what `fewshot-ad update`
        added: a dict of "date" (UTC), "version", "added" (names) and "n_support" for each time).

    Raises
    ------
    CheckpointError
        No such file, not a model file, of another version, or with a header that is not valid.
    """
    header, form = checkpoints.load_header(path, (FORMAT, format_1.FORMAT), _WHAT, _MADE_BY)
    header.pop("sha256", None)
    header = format_1.renamed(header) if form == format_1.FORMAT else header
    check_header(path, header)
    fitted = header["fitted"]
    return {
        "format": form,
        "bytes": Path(path).stat().st_size,
        "versions": header["versions"],
        "backbone": header["parameters"]["backbone"],
        "teacher_fingerprint": fitted["teacher_fingerprint_"],
        "n_support": len(fitted["_support_names"]),
        "support_names": fitted["_support_names"],
        "support_images": header["support_images"],
        **{
            name: fitted.get(name)
            for name in ("offset_", "lam_", "scales_", "layers_", "n_features_in_", "calibration")
        },
        "students": header["students"],
        "parameters": header["parameters"],
        "history": fitted.get("history", []),
    }


# ---- what is in a file


def _header(fitted: FittedSupport, settings: Settings, support: bool) -> dict[str, Any]:
    import timm

    parameters = {}
    for name, value in settings.flat().items():
        if name in LEFT_OUT:
            continue
        if name == "random_state" and not isinstance(value, (int, np.integer)):
            value = None  # a generator's state is not a parameter
        try:
            parameters[name] = _plain(value)
        except TypeError as error:
            raise CheckpointError(f"{name}={value!r:.80} cannot be saved: {error}. Fit with a plain value.") from error
    table = fitted.table
    state: dict[str, Any] = {
        "teacher_fingerprint_": fitted.teacher_fingerprint, "offset_": fitted.offset,
        "offset_given": fitted.offset_given, "evidence_": fitted.evidence, "lam_": fitted.lam,
        "scales_": fitted.scales, "row_range_": table and table.value_range, "_support_names": bare_names(fitted),
        "_support_hashes": fitted.hashes, "groups": fitted.groups, "_held_out_seed": fitted.held_out_seed,
        "predictive": tuple(fitted.predictive),
        "layers_": fitted.layers.numbers,
    }  # fmt: skip
    if fitted.history:
        state["history"] = history.to_json(fitted.history)
    if fitted.calibration is not None:
        state["calibration"] = calibration_entry.entry(fitted.calibration)
    if table is not None:
        state["n_features_in_"] = table.n_features
        if table.feature_names is not None:
            state["feature_names_in_"] = table.feature_names
    return {
        "versions": {"fewshot_ad": __version__, "torch": str(torch.__version__), "timm": timm.__version__},
        "parameters": parameters,
        "fitted": _plain(state),
        "support_images": support,
        "students": [
            {
                "student": expert.student.form,
                "decoder_blocks": _plain(expert.student.net.blocks)
                if isinstance(expert.student.net, Decoder)
                else None,
                "weighting": "attention" if expert.student.weighting.attention else "uniform",
                "sharpness": _plain(expert.student.weighting.sharpness),
                "shown": list(expert.shown),
            }
            for expert in fitted.experts
        ],
    }


def bare_names(fitted: FittedSupport) -> list[str]:
    """List the names of the support's files without their folders: these say where, and often of whom, images are."""
    return [re.split(r"[/\\]", name)[-1] for name in fitted.names]


def _tensors(fitted: FittedSupport, support: bool) -> dict[str, torch.Tensor]:
    tensors = {
        "support_scores": torch.from_numpy(fitted.scores.copy()),
        "loss_curve": torch.tensor(fitted.loss_curve, dtype=torch.float64),
    }
    if fitted.patches is not None:
        # A transformer's are numbers of float16 already.
        features, halved = fitted.patches.features, fitted.patches.features.half()
        tensors["patches"] = halved if fitted.layers.tokens else features
        tensors |= {"patch_owners": fitted.patches.owners, "patch_spots": fitted.patches.spots}
    if fitted.embeddings is not None:
        tensors["embeddings"] = fitted.embeddings
    if fitted.subspaces is not None:
        tensors |= {"subspace_means": fitted.subspaces.means, "subspace_bases": fitted.subspaces.bases.half()}
    if support and fitted.images is not None:
        tensors |= {f"support.{k}": image for k, image in enumerate(fitted.images)}
    tensors |= calibration_entry.tensors(fitted, support)
    for i, expert in enumerate(fitted.experts):
        tensors |= {f"students.{i}.{name}": value for name, value in expert.student.state_dict().items()}
        for j, maps in enumerate(expert.maps):
            tensors |= {f"students.{i}.maps.{j}.{level}": m for level, m in enumerate(maps)}
        tensors[f"students.{i}.seen"] = expert.seen.to(torch.uint8)  # copying a bool would mend a flipped bit
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


# ---- and out of it again


def _extractor(
    path: str | os.PathLike[str],
    settings: Settings,
    evidence: str | Sequence[str] | Mapping[str, float],
    fingerprint: str,
    hint: str | None,
) -> FeatureExtractor:
    runtime = resolve_runtime(settings.device, settings.precision)
    try:
        return find_teacher(settings, evidence, runtime, fingerprint)[0]
    except WeightsNotFoundError as error:
        kept = f" (when it was saved: {hint})" if hint is not None else ""
        raise WeightsNotFoundError(
            f"{path} holds no teacher, and the weights of its backbone {settings.backbone!r} with the fingerprint "
            f"{fingerprint[:12]} are not here{kept}: {error} Either pass load(..., weights=FILE), a safetensors file "
            "of them, or work where timm may fetch them from the hub or has them in its cache."
        ) from error
