"""Model files of fitted detectors: safetensors with a JSON header, no pickle; `docs/files.md` describes them."""

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
    """Write a fitted state atomically; see `DualDistillationDetector.save`. `settings` are stored as parameters."""
    path = Path(path)
    checkpoints.check_destination(path, force=force)
    if support and fitted.images is None:
        raise CheckpointError(
            "support=True is not possible: this detector was loaded from a file that holds no support images."
        )
    tensors = _tensors(fitted, support)
    header = _header(fitted, settings, support)
    check_header(path, header)  # refuse to write a file that could not be read
    checkpoints.save(path, tensors, FORMAT, {**header, "sha256": _digest(header, tensors)})


def load(
    path: str | os.PathLike[str],
    defaults: Mapping[str, Any],
    *,
    device: str | torch.device | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> FittedSupport:
    """Read a model file; see `DualDistillationDetector.load`. `defaults` are the defaults of all parameters."""
    tensors, header, form = checkpoints.load_any(path, (FORMAT, format_1.FORMAT), _WHAT, _MADE_BY)
    expected = header.pop("sha256", None)
    if _digest(header, tensors) != expected:
        raise CheckpointError(
            f"{path} was altered or damaged: its contents do not match the checksum in its header. Copy it again from "
            "its source, or save the detector again."
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
    state = header["fitted"]
    evidence = state["evidence_"]
    evidence = tuple(evidence) if isinstance(evidence, list) else evidence
    extract = _extractor(path, settings, evidence, state["teacher_fingerprint_"], hint)
    table = None
    if "n_features_in_" in state and state["row_range_"] is not None:
        names = state.get("feature_names_in_")
        table = Table(state["n_features_in_"], names and tuple(names), tuple(state["row_range_"]))
    tensor = Tensors(path, tensors, extract.runtime.dtype)
    k, teacher = len(state["_support_hashes"]), extract.teacher
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
    if state.get("layers_", list(teacher.layers.numbers)) != list(teacher.layers.numbers):
        raise CheckpointError(f"{path} is not valid: it has features of the layers {state['layers_']}.")
    if header["support_images"]:
        images = tuple(tensor.take(f"support.{i}", (3, None, None), torch.float32) for i in range(k))
    if needs_student(evidence) and not header["students"]:
        raise CheckpointError(f"{path} is not valid: evidence={evidence!r} needs a student, but it has none.")
    experts = [read_expert(i, form, k, settings, extract, tensor) for i, form in enumerate(header["students"])]
    groups = tuple(state.get("groups", range(k)))
    calibration, calibration_images = calibration_entry.read(path, state, tensor.take, tensor.left)
    if tensor.left:
        raise CheckpointError(f"{path} is not valid: its tensor {min(tensor.left)!r} is not known.")
    return FittedSupport(
        settings=settings, names=tuple(state["_support_names"]), hashes=tuple(state["_support_hashes"]),
        geometry=teacher.geometry, images=images, patches=patches, embeddings=embeddings, subspaces=subspaces,
        layers=teacher.layers, experts=tuple(experts),
        evidence=evidence, lam=state["lam_"], scales=state["scales_"], scores=scores,
        groups=groups, offset=state["offset_"],
        offset_given=state.get("offset_given", False), loss_curve=tuple(curve),
        teacher_fingerprint=state["teacher_fingerprint_"], table=table, held_out_seed=state["_held_out_seed"],
        history=history.from_json(state.get("history", [])),
        predictive=calibration_entry.predictive(state, scores, groups), calibration=calibration,
        calibration_images=calibration_images,
    )  # fmt: skip


def save_student(path: str | os.PathLike[str], fitted: FittedSupport) -> None:
    """Write a student that was not trained on the support; see `DualDistillationDetector.save_student`."""
    if not fitted.experts:
        raise ValueError(f"There is no student to save: evidence={fitted.evidence!r} trains none.")
    if fitted.experts[0].seen.any():
        raise ValueError(
            "A student that was trained on the support is useful for this support only. Pass auxiliary= to fit, images "
            "of other kinds, to train one for other detectors."
        )
    student = fitted.experts[0].student
    header = checkpoints.student_header(fitted.settings.backbone, fitted.teacher_fingerprint, student)
    checkpoints.save_student(path, student, header)


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a model file by its header, without reading tensors or checking the checksum.

    Parameters
    ----------
    path : path
        File from `DualDistillationDetector.save`.

    Returns
    -------
    dict
        JSON types. "format", "bytes" (file size), "versions" (of the fewshot_ad, torch and timm that wrote it),
        "backbone", "teacher_fingerprint" (sha256), "n_support", "support_names" (without folders), "support_images"
        (whether the file holds them), `"offset_"`, `"lam_"`, `"scales_"`, `"layers_"` (None in older files),
        `"n_features_in_"` (None unless fitted on rows), "calibration" (`calibration_` without the scores; None without
        calibration), "students" (form of each), "parameters" (of the constructor), "history" (one dict per
        `fewshot-ad update`: "date" in UTC, "version", "added" file names, and "n_support").

    Raises
    ------
    CheckpointError
        The file does not exist, is not a model file, has another format version, or its header is not valid.
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


# ---- writing


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
    """List the names of the support's files without folders, which may reveal where and of whom images are."""
    return [re.split(r"[/\\]", name)[-1] for name in fitted.names]


def _tensors(fitted: FittedSupport, support: bool) -> dict[str, torch.Tensor]:
    tensors = {
        "support_scores": torch.from_numpy(fitted.scores.copy()),
        "loss_curve": torch.tensor(fitted.loss_curve, dtype=torch.float64),
    }
    if fitted.patches is not None:
        # A transformer's patches have been rounded to float16 already.
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
        # uint8, as copying a bool tensor would hide a flipped bit.
        tensors[f"students.{i}.seen"] = expert.seen.to(torch.uint8)
    return tensors


def _plain(value: Any) -> Any:
    """Convert to JSON types."""
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
    raise TypeError(f"JSON cannot represent a {type(value).__name__}")


def _digest(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash everything in a file: the header, and the name, dtype, shape and bytes of each tensor."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- reading


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
        saved_from = f" (file at the time of saving: {hint})" if hint is not None else ""
        raise WeightsNotFoundError(
            f"{path} does not include the teacher, and the weights of its backbone {settings.backbone!r} with the "
            f"fingerprint {fingerprint[:12]} are not available{saved_from}: {error} Either pass load(..., "
            "weights=FILE), a safetensors file with these weights, or make them available from the hub or its cache."
        ) from error
