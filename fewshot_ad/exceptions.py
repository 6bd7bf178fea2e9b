"""Errors and warnings; each is also the builtin that a caller would expect."""

__all__ = [
    "CheckpointError",
    "DiskFullError",
    "FewShotADError",
    "ImageError",
    "ImageSkippedWarning",
    "ImageWarning",
    "MissingExtraError",
    "MixedSeriesWarning",
    "OutOfMemoryError",
    "OutputError",
    "OutputExistsError",
    "PretrainingStopped",
    "SupportWarning",
    "TaskSkippedWarning",
    "TrainingError",
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


class MixedSeriesWarning(UserWarning):
    """DICOM files of several sizes, modalities or photometric interpretations are in one support."""


class SupportWarning(UserWarning):
    """The support is too small, too alike or oddly labelled for thresholds to be trusted."""


class TaskSkippedWarning(UserWarning):
    """A task with fewer than two usable images was left out of a pretraining."""
