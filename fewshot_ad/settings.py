"""Rules for the parameters of a detector: one table for the estimator, pretraining and files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np
import torch

from .method.evidence import EVIDENCE, parse_evidence
from .runtime import PRECISIONS


class Rule(NamedTuple):
    """The values that a parameter accepts.

    Attributes
    ----------
    holds : callable
        Returns whether a value is accepted.
    accepted : str
        The accepted values in words, to follow "it must be".
    """

    holds: Callable[[Any], bool]
    accepted: str


def one_of(*values: Any) -> Rule:
    """Accept one of several values."""
    named = ", ".join(map(repr, values))
    return Rule(
        lambda v: isinstance(v, type(values[0])) and v in values, named if len(values) == 1 else f"one of {named}"
    )


def number(low: float, high: float = math.inf, *, open_low: bool = False, finite: bool = True) -> Rule:
    """Accept a real number within bounds."""
    return _bounded(Real, "a number", low, high, open_low, finite)


def integer(low: int, high: float = math.inf) -> Rule:
    """Accept an integer within bounds."""
    return _bounded(Integral, "an integer", low, high, False, True)


# About the largest float64: larger integers cannot be computed with.
_LARGEST = 1.7e308


def _bounded(kind: Any, what: str, low: float, high: float, open_low: bool, finite: bool) -> Rule:
    def holds(value: Any) -> bool:
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        return low <= value <= high and not (open_low and value == low) and not (finite and abs(value) > _LARGEST)

    bounds = f"{'above' if open_low else 'of at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
    return Rule(holds, f"{what} {bounds}")


def either(first: Rule, *others: Rule) -> Rule:
    """Accept what one of several rules accepts."""
    rules = (first, *others)
    return Rule(lambda v: any(rule.holds(v) for rule in rules), " or ".join(rule.accepted for rule in rules))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_window(value: Any) -> bool:
    if not (_is_sequence(value) or isinstance(value, np.ndarray)) or len(value) != 2:
        return False
    return all(number(-_LARGEST, _LARGEST).holds(v) for v in value) and bool(value[0] < value[1])


def _is_shape(value: Any) -> bool:
    integers = _is_sequence(value) and all(integer(1).holds(n) for n in value)
    return integers and (len(value) == 2 or (len(value) == 3 and value[2] in (1, 3)))


def _is_blocks(value: Any) -> bool:
    integers = _is_sequence(value) and len(value) == 3 and all(integer(0).holds(n) for n in value)
    return integers and value[0] > 0 and (value[1] > 0 or value[2] == 0)


def _is_layers(value: Any) -> bool:
    return _is_sequence(value) and bool(value) and all(integer(0).holds(n) for n in value)


def _is_size(value: Any) -> bool:
    return _is_sequence(value) and len(value) == 2 and all(integer(8).holds(n) for n in value)


def _is_jobs(value: Any) -> bool:
    return integer(-(2**31), 2**31).holds(value) and value != 0


def _is_evidence(value: Any) -> bool:
    if not isinstance(value, (str, list, tuple, Mapping)):
        return False
    if not isinstance(value, str) and not all(isinstance(name, str) for name in value):
        return False
    try:
        parse_evidence(value, 0.1)
    except ValueError:
        return False
    return True


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and bool(value))


def _is_random_state(value: Any) -> bool:
    return (
        value is None
        or value is np.random
        or isinstance(value, np.random.RandomState)
        or integer(0, 2**32 - 1).holds(value)
    )


NOTHING = Rule(lambda v: v is None, "None")
YES_OR_NO = Rule(lambda v: isinstance(v, (bool, np.bool_)), "True or False")
PATH = Rule(
    lambda v: isinstance(v, (str, os.PathLike)) and str(v) != "" and "\0" not in str(v), "a path"
)  # fmt: skip
_BLOCKS = Rule(_is_blocks, "a tuple of three integers, the first of them at least 1, with only zeros after a 0")
_KINDS = ", ".join(map(repr, EVIDENCE))
_AUTO = one_of("auto")
_EVIDENCE = Rule(_is_evidence, f"one or several of {_KINDS}, or a dict of these with weights above 0")
_RANDOM_STATE = Rule(_is_random_state, "None, an integer from 0 to 4294967295, or a numpy RandomState")
# `Student` itself is a scikit-learn estimator, and scikit-learn takes long to import.
_STUDENT = Rule(lambda v: all(hasattr(v, name) for name in StudentSettings.__dataclass_fields__), "a Student")
WINDOW = Rule(_is_window, "(low, high), two finite numbers with low < high")


def _rules_of(table: type) -> dict[str, Rule]:
    hints = get_type_hints(table, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


@dataclass(frozen=True, eq=False)
class StudentSettings:
    """Parameters of `Student`, each with its rule; `Student` documents them."""

    architecture: Annotated[str, one_of("decoder", "encoder")] = "decoder"
    decoder_blocks: Annotated[tuple[int, int, int], _BLOCKS] = (2, 2, 2)
    weighting: Annotated[str, one_of("attention", "uniform")] = "attention"
    sharpness: Annotated[float, number(0)] = 0.003
    loss: Annotated[str, one_of("position", "flattened")] = "position"
    n_steps: Annotated[str | int, either(_AUTO, integer(0))] = "auto"
    batch_size: Annotated[int, integer(1)] = 16
    learning_rate: Annotated[float, number(0, open_low=True)] = 1e-3
    tol: Annotated[float, number(0)] = 1e-3


@dataclass(frozen=True, eq=False)
class Settings:
    """Parameters of `DualDistillationDetector`, each with its rule; the detector documents them."""

    backbone: Annotated[str, Rule(lambda v: isinstance(v, str) and bool(v), "'compact' or the name of a timm network")]
    image_size: Annotated[
        str | int | tuple[int, int], either(_AUTO, integer(8), Rule(_is_size, "(H, W), two such integers"))
    ]
    aspect: Annotated[str, one_of("keep", "square")]
    value_range: Annotated[tuple[float, float] | None, either(NOTHING, WINDOW)]
    contamination: Annotated[str | float, either(_AUTO, number(0, 0.5, open_low=True))]
    evidence: Annotated[str | tuple[str, ...] | dict[str, float], either(_AUTO, _EVIDENCE)]
    embedding_weight: Annotated[float | None, either(NOTHING, number(0))]
    student_weight: Annotated[float | None, either(NOTHING, number(0))]
    lam: Annotated[float, number(0, finite=False)]
    student: Annotated[StudentSettings | None, either(NOTHING, _STUDENT)]
    init: Annotated[str | os.PathLike[str] | None, either(NOTHING, _AUTO, PATH)]
    aggregation: Annotated[str | float, either(one_of("max", "mean"), number(0, 1, open_low=True))]
    blur_sigma: Annotated[float, number(0, 10_000)]
    border_weight: Annotated[float, number(0, 1)]
    contrast: Annotated[float, number(0, 1)]
    upsampling: Annotated[str, one_of("half_pixel", "align_corners")]
    augment: Annotated[bool, YES_OR_NO]
    foreground: Annotated[bool | float, either(YES_OR_NO, number(0, open_low=True))]
    max_patches: Annotated[int, integer(1)]
    n_support: Annotated[int | None, either(NOTHING, integer(1))]
    weights: Annotated[str | os.PathLike[str] | None, either(NOTHING, PATH)]
    layers: Annotated[str | tuple[int, ...], either(one_of("auto", "last"), Rule(_is_layers, "a tuple of integers"))]
    image_shape: Annotated[tuple[int, ...] | None, either(NOTHING, Rule(_is_shape, "(H, W), (H, W, 1) or (H, W, 3)"))]
    on_error: Annotated[str, one_of("raise", "skip")]
    memory: Annotated[Any, either(NOTHING, PATH, Rule(lambda v: hasattr(v, "cache"), "a joblib.Memory"))]
    device: Annotated[str | torch.device, Rule(_is_device, "'auto' or a device, such as 'cpu' and 'cuda'")]
    precision: Annotated[str, one_of(*PRECISIONS)]
    n_jobs: Annotated[int | None, either(NOTHING, Rule(_is_jobs, "an integer other than 0"))]
    random_state: Annotated[Any, _RANDOM_STATE]
    verbose: Annotated[int, either(integer(0), YES_OR_NO)]

    @property
    def training(self) -> StudentSettings:
        """The student's parameters: those given, or the defaults."""
        return self.student or StudentSettings()

    def flat(self) -> dict[str, Any]:
        """Return all parameters by their names in `get_params`; those of a given student are `student__...`."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "student"}
        if self.student is None:
            return values
        return values | {STUDENT_PREFIX + name: value for name, value in vars(self.student).items()}


# Prefix of the student's parameters in `get_params`.
STUDENT_PREFIX = "student__"
STUDENT_RULES = _rules_of(StudentSettings)
RULES = _rules_of(Settings) | {STUDENT_PREFIX + name: rule for name, rule in STUDENT_RULES.items()}
# Rules of `pretrain`: the estimator's, except for parameters that are new, or stricter, in a pretraining.
PRETRAINING_RULES = {name: RULES[name] for name in ("backbone", "weights", "device", "precision", "verbose")}
PRETRAINING_RULES |= STUDENT_RULES
PRETRAINING_RULES.pop("tol")
PRETRAINING_RULES |= {
    "lam": number(0, finite=False), "n_shots": integer(1), "n_steps": integer(1), "held_out": number(0, 0.5),
    "cache": either(NOTHING, PATH), "checkpoint_minutes": number(0), "resume": YES_OR_NO,
    "random_state": integer(0, 2**32 - 1), "num_workers": integer(1), "image_size": integer(8),
}  # fmt: skip
# Where and how the work is done. No score depends on these: each call uses their current values, and those of the last
# fit for all other parameters.
CALL_PARAMETERS = ("weights", "device", "n_jobs", "memory", "on_error", "verbose")


def check(given: Mapping[str, Any], rules: Mapping[str, Rule] = RULES) -> None:
    """Check parameters.

    Parameters
    ----------
    given : dict
        Values by name; each name has a rule.
    rules : dict of str to Rule, optional

    Raises
    ------
    ValueError
        A value is not accepted. The message names the parameter, the value, and what is accepted.
    """
    for name, value in given.items():
        if not rules[name].holds(value):
            raise ValueError(f"{name}={value!r} was given; it must be {rules[name].accepted}.")


def checked(given: Mapping[str, Any]) -> Settings:
    """Check all parameters, and copy them, so that the caller cannot change them later.

    Parameters
    ----------
    given : dict
        As `get_params` returns them, deep or not.

    Returns
    -------
    Settings

    Raises
    ------
    ValueError
        See `check`.
    """
    values = dict(given)
    if RULES["student"].holds(student := values.get("student")) and student is not None:
        values |= {STUDENT_PREFIX + name: getattr(student, name) for name in STUDENT_RULES}
    check(values)
    frozen = {name: _frozen(value) for name, value in values.items()}
    detector = {name: value for name, value in frozen.items() if not name.startswith(STUDENT_PREFIX)}
    training = {name.removeprefix(STUDENT_PREFIX): value for name, value in frozen.items() if name not in detector}
    return Settings(**{**detector, "student": StudentSettings(**training) if training else None})


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
