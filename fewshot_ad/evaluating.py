"""The command `evaluate`: metrics of each task, their means, and a comparison of two detectors, as text."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import draws, evaluation
from .data.listing import LeftOut
from .detector import DualDistillationDetector
from .evaluation import Comparison
from .outcome import Outcome, plain
from .settings import RULES


def evaluate_all(
    folders: Sequence[Path],
    shots: Sequence[int],
    seeds: int,
    against: Mapping[str, Any],
    progress: bool,
    settings: Mapping[str, Any],
) -> Outcome:
    """Measure accuracy on all tasks of some folders.

    Parameters
    ----------
    folders : sequence of Path
        Tasks, or folders of tasks.
    shots : sequence of int
        Numbers of support images.
    seeds : int
        Number of draws.
    against : mapping
        Parameters of the other detector that differ; empty without a comparison.
    progress : bool
        Whether to show progress bars.
    settings : mapping
        Parameters of the detector.

    Returns
    -------
    Outcome
        Tables in Markdown, and sentences.
    """
    det = DualDistillationDetector(**settings, on_error="skip")
    if unknown := sorted(set(against) - RULES.keys()):
        raise ValueError(f"The detector has no parameter {unknown[0]}; accepted are {', '.join(sorted(RULES))}.")
    other = DualDistillationDetector(**settings, on_error="skip").set_params(**against) if against else None
    tasks = _named([task for folder in folders for task in evaluation.tasks(folder)])
    shots = list(dict.fromkeys(shots))
    if len(tasks) > 1:  # an error in the last task is raised before the work, not after it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for task in tasks.values():
                draws.draw(task, shots, seeds, None)
    results: dict[str, list[dict[str, Any]]] = {}
    compared: dict[int, dict[str, Comparison]] = {k: {} for k in shots}
    left_out: LeftOut = []
    for name, task in tasks.items():
        if other is None:
            options: dict[str, Any] = {"n_shots": shots, "n_seeds": seeds, "progress": progress, "left_out": left_out}
            results[name] = evaluation.evaluate(det, task, **options)
            continue
        results[name] = []
        for i, k in enumerate(shots):
            options = {"n_shots": k, "n_seeds": seeds, "progress": progress, "left_out": None if i else left_out}
            compared[k][name] = evaluation.compare(det, other, task, **options)
            results[name] += compared[k][name].rows[0]
    means = {name: list(evaluation.summary(rows)) for name, rows in results.items()}
    overall = list(evaluation.across(results))
    text = "\n".join([*_table(means, overall), *_sentences(results, overall, seeds), *_comparisons(compared, against)])
    failed = {path: error for rows in results.values() for row in rows for path, error in row["failed"].items()}
    note = "\n".join([*failed.values(), f"{len(failed)} unreadable images are not counted"]) if failed else ""
    return Outcome(text, _result(tasks, results, means, overall, compared, left_out), len(failed), note)


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Name each task after its folder, or by its path if two folders have the same name."""
    names = [path.resolve().name for path in paths]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, paths, strict=True)}


def _table(means: Mapping[str, list[dict[str, Any]]], overall: Sequence[Mapping[str, Any]]) -> list[str]:
    names, several = evaluation.METRICS, len(means) > 1
    lines = ["| normal images |" + (" task |" if several else "") + f" {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 1 + several) + "|")
    for i, one in enumerate(overall):
        for task, of_task in means.items():
            cells = [_mean_and_error(of_task[i][name]) for name in names]
            lines.append(f"| {of_task[i]['shots']} |" + (f" {task} |" if several else "") + f" {' | '.join(cells)} |")
        if several:
            cells = ["–" if one[name] is None else f"{one[name][0]:.3f}" for name in names]
            lines.append(f"| {one['shots']} | mean | {' | '.join(cells)} |")
    return lines


def _sentences(
    results: Mapping[str, list[dict[str, Any]]], overall: Sequence[Mapping[str, Any]], seeds: int
) -> list[str]:
    drawn = f"Mean ± standard error over {seeds} draws" if seeds > 1 else "One draw"
    row = next(iter(results.values()))[0]
    tested = f"{row['n_normal']} normal and {row['n_anomalous']} anomalous images"
    lines = [f"\n{drawn} of the support, tested on {tested}." if len(results) == 1 else f"\n{drawn} of the support."]
    for one in overall:
        if one["image_auroc"] is None:
            continue
        mean, low, high = one["image_auroc"]
        interval = f" (95 % confidence interval over draws {low:.3f} to {high:.3f})" if np.isfinite(low) else ""
        of = f" over {len(results)} tasks" if len(results) > 1 else ""
        worst = f"; the worst task is {one['worst']}" if len(results) > 1 else ""
        lines.append(f"{one['shots']} normal images: mean image AUROC{of} {mean:.3f}{interval}{worst}.")
    return lines


def _comparisons(compared: Mapping[int, Mapping[str, Comparison]], against: Mapping[str, Any]) -> list[str]:
    if not against:
        return []
    lines = [f"\nThe first is the detector above, the second has {', '.join(f'{n}={v}' for n, v in against.items())}."]
    for k, by_task in compared.items():
        if len(by_task) > 1:
            lines += [f"{k} normal images, {name}: {one}" for name, one in by_task.items()]
        overall = evaluation.joined(list(by_task.values()))
        lines.append(f"{k} normal images{', all tasks' if len(by_task) > 1 else ''}: {overall}")
    return lines


def _result(
    tasks: Mapping[str, Path],
    results: Mapping[str, list[dict[str, Any]]],
    means: Mapping[str, list[dict[str, Any]]],
    overall: Sequence[Mapping[str, Any]],
    compared: Mapping[int, Mapping[str, Comparison]],
    left_out: LeftOut,
) -> dict[str, Any]:
    comparisons = [
        {
            "shots": k, "task": name, "first": one.first, "second": one.second, "difference": one.difference,
            "low": one.low, "high": one.high, "clear": one.clear,
        }
        for k, by_task in compared.items()
        for name, one in [*by_task.items(), *([(None, evaluation.joined(list(by_task.values())))] if by_task else [])]
    ]  # fmt: skip
    common = {"across": list(overall), "comparisons": comparisons, "left_out": plain(left_out)}
    if len(tasks) == 1:
        ((name, path),) = tasks.items()
        return {"folder": str(path), "means": means[name], "draws": results[name], **common}
    return {
        "tasks": [
            {"task": name, "folder": str(path), "means": means[name], "draws": results[name]}
            for name, path in tasks.items()
        ],
        **common,
    }


def _mean_and_error(summary: tuple[float, float] | None) -> str:
    if summary is None:
        return "–"
    mean, error = summary
    return f"{mean:.3f}" + (f" ± {error:.3f}" if np.isfinite(error) else "")
