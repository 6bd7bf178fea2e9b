"""Regions as COCO JSON, which annotation tools and pycocotools read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .files.checkpoints import check_destination, write_atomically
from .regions import Region

_Entry = tuple[str, tuple[int, int] | None, Sequence[Region] | None]


def as_coco(entries: Iterable[_Entry]) -> dict[str, Any]:
    """Describe images and their regions in COCO's format of object detection.

    Parameters
    ----------
    entries : iterable of (str, (int, int) or None, sequence of Region or None)
        Of each image what it is called, its height and width in pixels, and its regions. An image without a size, which
        could not be read, is left out.

    Returns
    -------
    dict
        "images": "id", "file_name", "width", "height". "annotations": "id", "image_id", "category_id" (1),
        "bbox" [x, y, width, height], "area" in pixels, "segmentation" with the outer outline [[x, y, x, y, ...]],
        "iscrowd" (0), and "score" (1 is the threshold, high = anomalous). "categories": "anomaly" alone. x is the
        column and y the row, from the upper left corner of the image.

    References
    ----------
    https://cocodataset.org/#format-data

    Examples
    --------
    >>> import numpy as np
    >>> from fewshot_ad.coco import as_coco
    >>> from fewshot_ad.regions import find_regions
    >>> regions = find_regions(np.array([[0, 2, 2], [0, 2, 2]]), 1.0)
    >>> found = as_coco([("a.png", (2, 3), regions)])
    >>> found["images"], found["annotations"][0]["bbox"]
    ([{'id': 1, 'file_name': 'a.png', 'width': 3, 'height': 2}], [1, 0, 2, 2])
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, size, regions in entries:
        if size is None:
            continue
        images.append({"id": len(images) + 1, "file_name": name, "width": size[1], "height": size[0]})
        for region in regions or ():
            annotations.append({"id": len(annotations) + 1, "image_id": len(images), **_annotation(region)})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "anomaly"}]}


def _annotation(region: Region) -> dict[str, Any]:
    top, left, bottom, right = region.box
    outline = region.polygon[:-1, ::-1]  # closed without saying so
    return {
        "category_id": 1, "bbox": [left, top, right - left, bottom - top], "area": region.area,
        "segmentation": [outline.ravel().tolist()], "iscrowd": 0, "score": region.score,
    }  # fmt: skip


def write_coco(path: str | os.PathLike[str], entries: Iterable[_Entry], *, force: bool = False) -> None:
    """Write `as_coco` to a file, which is there whole or not at all.

    Parameters
    ----------
    path : path
        The file to write, `.json` by convention.
    entries : iterable
        See `as_coco`.
    force : bool, default=False
        Whether a file that exists is replaced.

    Raises
    ------
    OutputExistsError, OutputError, DiskFullError
        The file exists, and `force` is False; it cannot be written there.
    """
    check_destination(path, force=force)
    # Names of files need not be UTF-8: what is not ASCII is written as escapes.
    write_atomically(Path(path), json.dumps(as_coco(entries), allow_nan=False).encode())
