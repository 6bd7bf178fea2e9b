"""Inputs of the commands: images, and the detector that scores them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .data import datasets, images, layouts
from .data.listing import SUFFIXES, LeftOut, left_out_messages, list_images
from .exceptions import FewShotADError, ImageError, ImageSkippedWarning, warn
from .explanation import moved_offset
from .files import model_file
from .files.header import SAVED
from .session import Session
from .support import FittedSupport

# Only for types: scikit-learn takes a second to import, and scoring with a model file does not need it.
if TYPE_CHECKING:
    from .detector import DualDistillationDetector


class Listed(NamedTuple):
    """Images, each with the name of its results; and the files that are left out, with reasons."""

    items: list[tuple[Any, Path]]
    left_out: LeftOut


def fit_on(support: Sequence[Any], settings: dict[str, Any]) -> DualDistillationDetector:
    """Fit a detector on the images that can be read."""
    from .detector import DualDistillationDetector

    detector = DualDistillationDetector(**settings, on_error="skip").fit(support)
    # Only the command skips unreadable images; the saved detector has the default.
    return detector.set_params(on_error="raise")


def open_detector(
    paths: Sequence[Path], support: Sequence[Path] | None, settings: dict[str, Any]
) -> tuple[DualDistillationDetector, Sequence[Path]]:
    """Load the model that is named first, or fit on the support; return it and the paths of the images.

    `settings["threshold"]` is the new threshold, on the scale of `relative_score`.
    """
    model = _model(paths, support)
    parameters = {name: value for name, value in settings.items() if name != "threshold"}
    if model is None:
        det = fit_on([item for item, _ in list_given(support or ()).items], parameters)
    else:
        from .detector import DualDistillationDetector

        det = DualDistillationDetector.load(model, weights=settings["weights"])
        det.set_params(n_jobs=settings.get("n_jobs"), verbose=settings["verbose"])
    det.fitted_ = _moved(det.fitted_, settings)
    return det, paths if model is None else paths[1:]


def open_session(
    paths: Sequence[Path], support: Sequence[Path] | None, settings: dict[str, Any]
) -> tuple[Session, Sequence[Path]]:
    """Open a session in the same way as `open_detector`; a model file is read without scikit-learn."""
    model = _model(paths, support)
    stored = None if model is None else _parameters(model)
    if model is None or stored is None or SAVED - stored:
        # A detector to fit, no model file, or one of a release that lacked a parameter: the detector knows its default.
        det, given = open_detector(paths, support, settings)
        return det.session(), given
    local = {"n_jobs": settings.get("n_jobs"), "memory": None, "verbose": settings["verbose"]}
    return Session(_moved(model_file.load(model, local, weights=settings["weights"]), settings)), paths[1:]


def _moved(fitted: FittedSupport, settings: dict[str, Any]) -> FittedSupport:
    """Move the threshold of a fitted state if the settings say so."""
    threshold = settings.get("threshold", 1.0)
    return fitted if threshold == 1 else fitted.with_offset(moved_offset(threshold, fitted.offset))


def _model(paths: Sequence[Path], support: Sequence[Path] | None) -> Path | None:
    """Return the model file that is named first; None if a detector is to be fitted on the support."""
    check_existence([*paths, *(support or ())])
    model = next((path for path in paths if _is_model(path)), None)
    if support is not None:
        if model is not None:
            raise ValueError(f"{model} is a model file, and --support was given as well. Leave one of them out.")
        return None
    if model is not None and model != paths[0]:
        raise ValueError(f"{paths[0]} is named first, but the model file is {model}. Name the model first.")
    if paths[0].is_dir() or len(paths) < 2:
        raise ValueError(
            "Which images are normal? Name a file from `fewshot-ad fit` first, then the images; or pass --support with "
            "a few normal images."
        )
    return paths[0]


def _is_model(path: Path) -> bool:
    return _parameters(path) is not None


def _parameters(path: Path) -> set[str] | None:
    """List the parameters in a model file; None if the file is not a model file."""
    if path.name.lower().endswith(SUFFIXES):
        return None
    try:
        return set(model_file.describe(path)["parameters"])
    except (FewShotADError, OSError):
        return None


def check_existence(paths: Sequence[Path]) -> None:
    """Check that the files and folders exist."""
    for path in paths:
        if not path.exists():
            raise ImageError(f"{path} does not exist. Name image files, or folders of them.")
        if not (path.is_file() or path.is_dir()):
            raise ImageError(
                f"{path} is not a regular file, but a pipe or a device. Write it to a file, and name that."
            )


def list_given(paths: Sequence[Path]) -> Listed:
    """List image files, and those in folders and their sub-folders; warn of other files in the folders."""
    files: list[tuple[Path, Path]] = []
    left_out: LeftOut = []
    for path in paths:
        if not path.is_dir():
            files.append((path, Path(path.name)))
            continue
        listing = list_images(path, below=True)
        files += [(file, file.relative_to(path)) for file in listing.files]
        left_out += listing.left_out
    messages = list(left_out_messages(left_out))
    if not files:
        raise ImageError("; ".join([f"There are no images in {', '.join(str(path) for path in paths)}", *messages]))
    for message in messages:
        warn(message, ImageSkippedWarning)
    relative = dict(files)
    items = []
    for item in images.frames([file for file, _ in files]):
        file = Path(item.path if isinstance(item, images.Frame) else item)
        items.append((item, relative[file].with_name(Path(str(item)).name)))
    return Listed(items, left_out)


def list_labelled(paths: Sequence[Path]) -> tuple[list[Any], list[int] | None, LeftOut]:
    """List images, and their labels if they are a single folder with a layout that `load_folder` reads."""
    root = paths[0]
    if len(paths) > 1 or not root.is_dir() or not layouts.is_labelled(root):
        listed = list_given(paths)
        return [item for item, _ in listed.items], None, listed.left_out
    folder = datasets.load_folder(root, on_error="skip")
    labels = {path: label for path, label, train in zip(folder.paths, folder.y, folder.train, strict=True) if not train}
    left_out = [
        *folder.skipped,
        *((path, "a training image") for path in folder.paths if path not in labels),
    ]
    for message in left_out_messages(left_out):
        warn(message, ImageSkippedWarning)
    items = images.frames(labels)
    return items, [labels[Path(item.path if isinstance(item, images.Frame) else item)] for item in items], left_out
