"""Errors and warnings; each also derives from the builtin class that a caller would expect."""

import inspect
import os
import warnings

__all__ = [
    "CheckpointError",
    "DiskFullError",
    "FewShotADError",
    "ImageError",
    "ImageSkippedWarning",
    "ImageWarning",
    "MemoryWarning",
    "MissingExtraError",
    "MixedSeriesWarning",
    "OutOfMemoryError",
    "OutputError",
    "OutputExistsError",
    "PretrainingStopped",
    "SupportWarning",
    "TaskSkippedWarning",
    "TrainingError",
    "VersionWarning",
    "WeightsNotFoundError",
]


class FewShotADError(Exception):
    """Base class of the errors of this package."""


class ImageError(FewShotADError, ValueError):
    """An image cannot be read, or is not valid."""


class WeightsNotFoundError(FewShotADError, OSError):
    """The teacher's weights are missing, unreadable, or belong to another network."""


class CheckpointError(FewShotADError, ValueError):
    """A student's checkpoint or a model file is unreadable, altered, or belongs to another teacher."""


class DiskFullError(FewShotADError, OSError):
    """A file does not fit on the disk."""


class OutputError(FewShotADError, OSError):
    """A file cannot be written."""


class OutputExistsError(OutputError, FileExistsError):
    """A file exists already and may not be overwritten."""


class MissingExtraError(FewShotADError, ImportError):
    """A required optional package is not installed."""


class TrainingError(FewShotADError, RuntimeError):
    """The loss of the student's training became infinite or NaN."""


class OutOfMemoryError(FewShotADError, MemoryError):
    """Memory ran out even with a smaller batch."""


class PretrainingStopped(KeyboardInterrupt, FewShotADError):
    """A signal stopped a pretraining, which can be resumed."""


class ImageSkippedWarning(UserWarning):
    """An unreadable image was left out (`on_error="skip"`)."""


class ImageWarning(UserWarning):
    """An image was read, but its orientation, transparency or channels are ambiguous."""


class MemoryWarning(UserWarning):
    """Memory ran out; the work continues in smaller batches."""


class MixedSeriesWarning(UserWarning):
    """DICOM files of several sizes, modalities or photometric interpretations are in one support."""


class SupportWarning(UserWarning):
    """The threshold may be unreliable, as the support or its labels are unusual."""


class TaskSkippedWarning(UserWarning):
    """A task with fewer than two usable images was left out of a pretraining."""


class VersionWarning(UserWarning):
    """A pickle was written by another release of the package."""


_PACKAGE = os.path.dirname(__file__)


def warn(message: str, category: type[Warning] = SupportWarning) -> None:
    """Warn with the line of code outside the package that called it."""
    frame, depth, level = inspect.currentframe(), 0, 0
    while frame is not None:  # find the package's outermost frame: frames of decorators lie between
        depth += 1
        if frame.f_code.co_filename.startswith(_PACKAGE):
            level = depth
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)
