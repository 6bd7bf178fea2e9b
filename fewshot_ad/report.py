"""HTML report: scores, anomaly maps and images in one file, for any browser."""

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

# Lower bound of the bytes per image: a disk with less free space is refused at once.
_LEAST = 2000
_QUALITY = 80
# Levels of opacity of a map.
_STEPS = 64
# Contours are in units of a tenth of a pixel, so that they need no decimal points.
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
    """Score images and write an HTML report in one file that works offline.

    It shows each image next to its anomaly map and the support image with the largest weight; a histogram of the scores
    with an adjustable threshold and the corresponding command-line option; and marks, normal or anomalous, that can be
    set and exported.

    Parameters
    ----------
    det : DualDistillationDetector
        Fitted detector.
    paths : sequence of path
        Image files. Unreadable files are listed in the report with the reason, whatever `on_error` is.
    out : path
        File to write, in an existing folder. It is written atomically.
    y : array-like of shape (n_samples,), optional
        +1 normal, -1 anomalous, 0 unknown. With labels the report shows sensitivity and specificity at any threshold,
        and the ROC and precision-recall curves.
    title : str, optional
        Title of the page; by default "Anomaly report".
    force : bool, default=False
        Whether to replace an existing file.
    max_side : int or None, default=640
        Longest side of the pictures, pixels; they keep the aspect ratio of their files and are never enlarged. None
        shows the resized images that are scored, and reads each file only once.
    progress : bool, default=False
        Whether to show a progress bar.
    left_out : list of (path, str), optional
        Files that are not scored, and the reasons; the report lists them.
    moved : float, default=1
        Factor on the threshold in the model file (`--threshold`); the command-line option in the report includes it.

    Returns
    -------
    list of (str, str)
        Unreadable files, and the reasons.

    Raises
    ------
    OutputExistsError, OutputError
        `out` exists or cannot be written; raised before anything is scored.
    DiskFullError
        There is too little disk space; an existing file is unchanged.
    ImageError
        None of the files could be read.
    ValueError
        `y` has another length or other labels, or `max_side` is not a positive integer.

    Notes
    -----
    Scores are those of `explanation.relative_score`: 1 is the detector's threshold, high = anomalous. An image takes up
    4 to 80 kB. All maps have the colour scale of `explanation.opacity`: half opaque at the `level` of an image, which
    the hottest pixels of an anomalous image exceed. Regions are outlined. The file contains the paths of the images.
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
            f"y has the labels {np.unique(labels)[:5].tolist()}; accepted are +1 normal, -1 anomalous and 0 unknown."
        )
    return labels


def _names(items: Sequence[Any]) -> list[str]:
    """Name the images by their paths relative to their common folder."""
    names = [images.label(item, index) for index, item in enumerate(items)]
    try:
        common = os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # several drives, or absolute and relative paths
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
    """Encode each readable image for the report, and list the others with the reasons."""
    records: list[dict[str, Any]] = []
    errors: dict[int, ImageError] = {}
    explanations = session.explanations(items, errors.__setitem__, size)
    for i, explanation in tqdm(explanations, total=len(items), desc="report", disable=not progress):
        records.append({
            "name": names[i],
            "label": 0 if labels is None else int(labels[i]),
            **_with_size(explanation.picture),
            "path": images.label(items[i], i),
            "score": float(relative_score(explanation.score, session.fitted.offset)),
            **_explained(explanation),
        })  # fmt: skip
    unreadable = []
    for i in sorted(errors):
        reason = str(errors[i]).replace(images.label(items[i], i), names[i])
        unreadable.append((names[i], reason.removeprefix(f"{names[i]} ")))
    return records, unreadable


def _explained(explanation: Explanation) -> dict[str, Any]:
    """Encode an explanation, so that its arrays need not stay in memory."""
    match, match_box = explanation.matches, explanation.match_box
    return {
        "map": _heat_map(explanation),
        "contour": _contour(explanation),
        "hot": _box(explanation.hot_box),
        "weights": [round(float(weight), 4) for weight in explanation.support_weights],
        "support": int(explanation.support_index),
        "match": match and {
            "support": int(match.support_index), "box": _box(match_box), "similarity": float(match.similarity),
        },
    }  # fmt: skip


def _box(box: Box | None) -> list[float] | None:
    return box and [round(number, 2) for number in box]


def _with_size(picture: np.ndarray) -> dict[str, Any]:
    """Encode a picture with its size, so that the layout does not shift when it loads."""
    height, width = picture.shape[:2]
    return {"picture": _encoded(picture), "aspect": round(width / height, 4), "size": [height, width]}


def _encoded(pixels: np.ndarray) -> str:
    """Encode a picture as WebP, which is half as large as JPEG; as JPEG if Pillow was built without WebP."""
    kind = "webp" if features.check("webp") else "jpeg"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=_QUALITY)
    return _url(kind, file)


def _heat_map(explanation: Explanation) -> str:
    """Draw the heat map in warm colours of varying opacity; a palette keeps the file small."""
    steps = np.linspace(0, 1, _STEPS)
    picture = Image.fromarray(np.rint(opacity(explanation) * (_STEPS - 1)).astype(np.uint8), "P")
    picture.putpalette(np.rint(warm(steps)).astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, transparency=np.rint(255 * steps).astype(np.uint8).tobytes())
    return _url("png", file)


def _contour(explanation: Explanation) -> str:
    """Outline the regions, as an SVG path in tenths of a pixel of the picture."""
    shape = explanation.picture.shape[:2]
    outlines = (np.rint(one * _TENTHS).astype(int).tolist() for one in explanation.outlines(shape))
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
    """Assemble the data for the script in the template."""
    n_support = len(records[0]["weights"])
    settings, evidence = fitted.settings, fitted.evidence
    return {
        "title": title or "Anomaly report",
        "summary": f"{_number(len(records), 'image')}, scored against {_number(n_support, 'normal image')}.",
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
            ["Score components", evidence if isinstance(evidence, str) else ", ".join(evidence)],
            ["lambda", f"{fitted.lam:g}"],
            ["offset_", f"{fitted.offset:.6g}"],
        ],
        "names": _names(fitted.names),
        # Resized, if the detector still holds them.
        "support": fitted.images and [_with_size(as_uint8(image)) for image in fitted.images],
        "reference": relative_score(fitted.scores, fitted.offset).tolist(),
        "images": sorted(records, key=lambda record: -record["score"]),
        "unreadable": unreadable,
    }


def _image_size(geometry: Geometry) -> str:
    if geometry.fixed is not None:
        return f"{geometry.fixed[0]} x {geometry.fixed[1]} px"
    return f"own aspect ratio, area of {geometry.image_size} x {geometry.image_size} px"


def _number(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _document(data: dict[str, Any], svg: str) -> str:
    """Fill in the template; its content security policy allows only its own script and style."""
    template = resources.files(__package__).joinpath("templates", "report.html").read_text("utf-8")

    def allowed(tag: str) -> str:
        match = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        assert match is not None  # nosec B101
        return "sha256-" + base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()

    # Only "<" could end the element; `dumps` escapes U+2028 and so on.
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    values = {
        "title": html.escape(data["title"]),
        "style-hash": allowed("style"),
        "script-hash": allowed("script"),
        "curves": svg,
        "data": embedded,
    }
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda match: values[match[1]], template)
