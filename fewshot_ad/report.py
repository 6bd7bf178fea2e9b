"""Scores, anomaly maps and the images themselves in one HTML file, to look through in any browser."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, features
from sklearn.utils.validation import check_consistent_length
from tqdm.auto import tqdm

from . import __version__
from .data import images
from .data.geometry import Geometry
from .data.listing import LeftOut
from .drawing import CONTOUR, FILL, WARM, warm
from .exceptions import ImageError
from .explanation import as_uint8, opacity, relative_score
from .files import checkpoints
from .report_curves import Curves, curves
from .session import Session
from .support import FittedSupport

if TYPE_CHECKING:
    from .detector import DualDistillationDetector
    from .explanation import Box, Explanation

# Less than an image takes up in any report, bytes: a disk with less room is refused at once.
_LEAST = 2000
_QUALITY = 80
# Of a map's opacity.
_STEPS = 64
# Contours are in this part of a pixel, so that they need no decimal points.
_TENTHS = 10


def write_report(
    det: DualDistillationDetector,
    paths: Sequence[Any],
    out: str | os.PathLike[str],
    *,
    y: Any = None,
    title: str | None = None,
    force: bool = False,
    max_side: int | None = 640,
    progress: bool = False,
    left_out: LeftOut | None = None,
    moved: float = 1.0,
) -> list[tuple[str, str]]:
    """Score images and write a report to look through: one HTML file that needs no network.

    It shows each image, its anomaly map and the normal image that counted most side by side; a histogram of the scores
    with a threshold to drag, and the command line's flag for it; and marks, normal or anomalous, to set and to export.

    Parameters
    ----------
    det : DualDistillationDetector
        Fitted.
    paths : sequence of path
        Image files. Those that cannot be read are listed in the report with the reason, whatever `on_error` is.
    out : path
        The file to write, in a folder that exists. It is there whole, or not at all.
    y : array-like of shape (n_samples,), optional
        +1 normal, -1 anomalous, 0 not known. With it the report tells sensitivity and specificity at any threshold, and
        draws the ROC and the precision-recall curve.
    title : str, optional
        By default "Anomaly report".
    force : bool, default=False
        Whether a file that is there already is replaced.
    max_side : int or None, default=640
        Longest side of the pictures, pixels; they keep the proportions of their files, and are never larger than these.
        None keeps what the detector saw, and reads each file only once.
    progress : bool, default=False
        Whether to show a progress bar.
    left_out : list of (path, str), optional
        Files that were not to be scored, and why; the report lists them.
    moved : float, default=1
        What the threshold of the model's file was multiplied by (`--threshold`): the flag for the command line counts
        from there.

    Returns
    -------
    list of (str, str)
        Files that could not be read, and why.

    Raises
    ------
    OutputExistsError, OutputError
        `out` exists, or cannot be written; told before anything is scored.
    DiskFullError
        Too little room; what was there before stays.
    ImageError
        None of the files could be read.
    ValueError
        `y` has another length or other labels, or `max_side` is not a positive integer.

    Notes
    -----
    Scores are those of `explanation.relative_score`: 1 is the detector's threshold, high = anomalous. An image takes up
    4 to 80 kB. Colour is on one scale for all maps, that of `explanation.opacity`: half at an
    image's `level`, which its hottest places are above where it is called anomalous. Its regions are outlined. The file
    names the images by the paths that were given.
    """
    size = None if max_side is None else images.FigureSize(max_side)
    items = images.as_items(paths)
    labels = _labels(y, items)
    out = Path(out)
    checkpoints.check_destination(out, force=force, least=len(items) * _LEAST)

    session = det.session()
    records, unreadable = _collect(session, items, _names(items), labels, size, progress)
    if not records:
        raise ImageError(f"None of the {len(items)} files could be read: {' '.join(unreadable[0])}")
    drawn = curves(*(np.array([record[key] for record in records]) for key in ("label", "score")))
    data = _data(session.fitted, records, unreadable, title, labels is not None, drawn, moved)
    data["left_out"] = [[str(path), reason] for path, reason in left_out or ()]
    checkpoints.write_atomically(out, _document(data, drawn.svg if drawn else "").encode("utf-8", "replace"))
    return unreadable


def _labels(y: Any, items: Sequence[Any]) -> np.ndarray | None:
    if y is None:
        return None
    labels = np.asarray(y).ravel()
    check_consistent_length(items, labels)
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(
            f"y has the labels {np.unique(labels)[:5].tolist()}; accepted are +1 normal, -1 anomalous and 0 not known."
        )
    return labels


def _names(items: Sequence[Any]) -> list[str]:
    """Name the images by their paths, less the folder that is common to all."""
    names = [images.label(item, index) for index, item in enumerate(items)]
    try:
        common = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # on several drives, or some relative and some not
        return names
    return [os.path.relpath(name, common or ".") for name in names]


def _collect(
    session: Session,
    items: Sequence[Any],
    names: Sequence[str],
    labels: np.ndarray | None,
    size: images.FigureSize | None,
    progress: bool,
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Encode what the report shows of each readable image, and tell why the others could not be read."""
    records: list[dict[str, Any]] = []
    errors: dict[int, ImageError] = {}
    found = session.explanations(items, errors.__setitem__, size)
    for i, explanation in tqdm(found, total=len(items), desc="report", disable=not progress):
        records.append({
            "name": names[i],
            "label": 0 if labels is None else int(labels[i]),
            **_shown(explanation.picture),
            "path": images.label(items[i], i),
            "score": float(relative_score(explanation.score, session.fitted.offset)),
            **_explained(explanation),
        })  # fmt: skip
    unreadable = []
    for i in sorted(errors):
        reason = str(errors[i]).replace(images.label(items[i], i), names[i])
        unreadable.append((names[i], reason.removeprefix(f"{names[i]} ")))
    return records, unreadable


def _explained(found: Explanation) -> dict[str, Any]:
    """Encode an explanation, so that its arrays need not be kept."""
    match = found.matches
    return {
        "map": _heat(found),
        "contour": _contour(found),
        "hot": _box(found.hot_box),
        "weights": [round(float(weight), 4) for weight in found.support_weights],
        "support": int(found.support_index),
        "match": match and {
            "support": int(match.support_index), "box": _box(found.match_box), "similarity": float(match.similarity),
        },
    }  # fmt: skip


def _box(box: Box | None) -> list[float] | None:
    return box and [round(number, 2) for number in box]


def _shown(picture: np.ndarray) -> dict[str, Any]:
    """Encode a picture; its size is told too, so that nothing moves when it appears."""
    height, width = picture.shape[:2]
    return {"picture": _encoded(picture), "aspect": round(width / height, 4), "size": [height, width]}


def _encoded(pixels: np.ndarray) -> str:
    """Encode a picture as WebP, which takes up half of what JPEG does; as JPEG where Pillow was built without."""
    kind = "webp" if features.check("webp") else "jpeg"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=_QUALITY)
    return _url(kind, file)


def _heat(found: Explanation) -> str:
    """Draw a map in warm colours, more or less opaque; a palette takes up little."""
    steps = np.linspace(0, 1, _STEPS)
    picture = Image.fromarray(np.rint(opacity(found) * (_STEPS - 1)).astype(np.uint8), "P")
    picture.putpalette(np.rint(warm(steps)).astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, transparency=np.rint(255 * steps).astype(np.uint8).tobytes())
    return _url("png", file)


def _contour(found: Explanation) -> str:
    """Outline the regions, as an SVG path in parts of a pixel of the picture."""
    outlines = (np.rint(one * _TENTHS).astype(int).tolist() for one in found.outlines(found.picture.shape[:2]))
    return "".join("M" + "L".join(f"{x} {y}" for y, x in corners) + "Z" for corners in outlines)


def _url(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _data(
    fitted: FittedSupport,
    records: list[dict[str, Any]],
    unreadable: list[tuple[str, str]],
    title: str | None,
    labelled: bool,
    drawn: Curves | None,
    moved: float,
) -> dict[str, Any]:
    """Put together what the template's script reads."""
    n_support = len(records[0]["weights"])
    settings, evidence = fitted.settings, fitted.evidence
    return {
        "title": title or "Anomaly report",
        "summary": f"{_number(len(records), 'image')}, judged by {_number(n_support, 'normal image')}.",
        "labelled": labelled,
        "moved": moved,
        "auroc": drawn and drawn.auroc,
        "average_precision": drawn and drawn.average_precision,
        "colours": {"warm": WARM, "contour": CONTOUR, "fill": round(100 * FILL), "scale": _TENTHS},
        "detector": [
            ["fewshot_ad", __version__],
            ["Teacher", f"{settings.backbone}, {fitted.teacher_fingerprint[:12]}"],
            ["Image size", _image_size(fitted.geometry)],
            ["Layers", ", ".join(map(str, fitted.layers.numbers))],
            ["Evidence", evidence if isinstance(evidence, str) else ", ".join(evidence)],
            ["lambda", f"{fitted.lam:g}"],
            ["offset_", f"{fitted.offset:.6g}"],
        ],
        "names": _names(fitted.names),
        # As the detector saw them, where it still holds them.
        "support": fitted.images and [_shown(as_uint8(image)) for image in fitted.images],
        "reference": relative_score(fitted.scores, fitted.offset).tolist(),
        "images": sorted(records, key=lambda record: -record["score"]),
        "unreadable": unreadable,
    }


def _image_size(geometry: Geometry) -> str:
    if geometry.fixed is not None:
        return f"{geometry.fixed[0]} x {geometry.fixed[1]} px"
    return f"own proportions, area of {geometry.image_size} x {geometry.image_size} px"


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _document(data: dict[str, Any], svg: str) -> str:
    """Fill the template; its policy lets no script or style run but its own."""
    template = resources.files(__package__).joinpath("templates", "report.html").read_text("utf-8")

    def allowed(tag: str) -> str:
        found = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        assert found is not None  # nosec B101
        return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()

    # "<" is all that could end the element; U+2028 and the like are escaped by `dumps`.
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    values = {
        "title": html.escape(data["title"]),
        "style-hash": allowed("style"),
        "script-hash": allowed("script"),
        "curves": svg,
        "data": embedded,
    }
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda match: values[match[1]], template)
