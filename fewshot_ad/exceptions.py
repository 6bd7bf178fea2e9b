"""Errors and warnings; each is also the builtin that a caller would expect."""

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
    """Base of every error that this package raises on purpose."""


class ImageError(FewShotADError, ValueError):
    """An image cannot be read, or is not what an image may be."""


class WeightsNotFoundError(FewShotADError, OSError):
    """The teacher's weights are missing, unreadable, or belong to another network."""


class CheckpointError(FewShotADError, ValueError):
    """A student's checkpoint or a model file is unreadable, altered, or belongs to another teacher."""


class DiskFullError(FewShotADError, OSError):
    """A checkpoint or features do not fit on the disk."""


class OutputError(FewShotADError, OSError):
    """A file cannot be written where it was asked for."""


class OutputExistsError(OutputError, FileExistsError):
    """A file would be overwritten that nobody said may be."""


class MissingExtraError(FewShotADError, ImportError):
    """An optional package is needed that is not installed."""


class TrainingError(FewShotADError, RuntimeError):
    """The student's training did not stay finite."""


class OutOfMemoryError(FewShotADError, MemoryError):
    """Memory ran out although the batch had been halved."""


class PretrainingStopped(KeyboardInterrupt, FewShotADError):
    """A signal stopped a pretraining; it can be gone on with."""


class ImageSkippedWarning(UserWarning):
    """An unreadable image was left out (`on_error="skip"`)."""


class ImageWarning(UserWarning):
    """An image was read, and may not be what was meant: its orientation, transparency or channels are in doubt."""


class MemoryWarning(UserWarning):
    """Memory ran out, and the work goes on in smaller batches."""


class MixedSeriesWarning(UserWarning):
    """DICOM files of several sizes, modalities or photometric interpretations are in one support."""


class SupportWarning(UserWarning):
    """The support is too small, too alike or oddly labelled for thresholds to be trusted."""


class TaskSkippedWarning(UserWarning):
    """A task with fewer than two usable images was left out of a pretraining."""


class VersionWarning(UserWarning):
    """A pickle was written by another release of the package."""


_PACKAGE = os.path.dirname(__file__)


def warn(message: str, category: type[Warning] = SupportWarning) -> None:
    """Warn whoever called the package, however deep in it the reason was found."""
    frame, depth, level = inspect.currentframe(), 0, 0
    while frame is not None:  # to the outermost of the package's: decorators' frames lie between
        depth += 1
        if frame.f_code.co_filename.startswith(_PACKAGE):
            level = depth
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)
