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
    """Convert images and their regions to COCO's object-detection format.

    Parameters
    ----------
    entries : iterable of (str, (int, int) or None, sequence of Region or None)
        File name, (height, width) in pixels, and regions of each image. An image without a size (an unreadable one) is
        left out.

    Returns
    -------
    dict
        "images": "id", "file_name", "width", "height". "annotations": "id", "image_id", "category_id" (1),
        "bbox" [x, y, width, height], "area" in pixels, "segmentation" with the outer outline [[x, y, x, y, ...]],
        "iscrowd" (0), and "score" (1 is the threshold, high = anomalous). "categories": only "anomaly". x is the column
        and y the row, from the upper left corner of the image.

    References
    ----------
    https://cocodataset.org/#format-data

    Examples
    --------
    >>> import numpy as np
    >>> from fewshot_ad.coco import as_coco
    >>> from fewshot_ad.regions import find_regions
    >>> regions = find_regions(np.array([[0, 2, 2], [0, 2, 2]]), 1.0)
    >>> coco = as_coco([("a.png", (2, 3), regions)])
    >>> coco["images"], coco["annotations"][0]["bbox"]
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
    outline = region.polygon[:-1, ::-1]  # COCO closes polygons implicitly
    return {
        "category_id": 1, "bbox": [left, top, right - left, bottom - top], "area": region.area,
        "segmentation": [outline.ravel().tolist()], "iscrowd": 0, "score": region.score,
    }  # fmt: skip


def write_coco(path: str | os.PathLike[str], entries: Iterable[_Entry], *, force: bool = False) -> None:
    """Write the result of `as_coco` to a file, atomically.

    Parameters
    ----------
    path : path
        File to write, `.json` by convention.
    entries : iterable
        See `as_coco`.
    force : bool, default=False
        Whether to replace an existing file.

    Raises
    ------
    OutputExistsError, OutputError, DiskFullError
        The file exists and `force` is False, or it cannot be written.
    """
    check_destination(path, force=force)
    # File names need not be UTF-8: non-ASCII characters are escaped.
    write_atomically(Path(path), json.dumps(as_coco(entries), allow_nan=False).encode())
