"""Options of the command line that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .argument_types import layers, number_or_auto, positive, size


def network(add: Any) -> None:
    """Add the teacher, and where it runs."""
    add("--backbone", default="compact", metavar="NAME", help="teacher: compact (packaged), or timm's name")
    weights(add)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add(
        "--precision", choices=("auto", "float64", "float32", "bfloat16", "float16"), default="auto", help="of networks"
    )


def weights(add: Any) -> None:
    """Add the teacher's weights."""
    add(
        "--weights", type=Path, default=None, metavar="FILE",
        help="teacher's weights in timm's naming; default: the file of the fit, packaged, or the hub's",
    )  # fmt: skip


def jobs(add: Any) -> None:
    """Add the number of threads."""
    add(
        "--jobs", dest="n_jobs", type=int, metavar="N",
        help="threads, -1 for as many as there are processors; no score depends on it; default: as many as torch has",
    )  # fmt: skip


def settings(add: Any) -> None:
    """Add what a detector is made with."""
    network(add)
    add(
        "--layers", type=layers, default="auto", metavar="N,N,...",
        help="teacher's layers: blocks of a transformer, or stages, as 4,5,7,10; auto; or last, the last block",
    )  # fmt: skip
    add(
        "--image-size", type=size, default="auto", metavar="N",
        help="square root of the area that each image is resized to, pixels; or height and width of all, as 96x256; "
        "auto is 128, and up to 448 for a transformer",
    )  # fmt: skip
    add(
        "--aspect", choices=("keep", "square"), default="keep",
        help="whether images keep their own proportions, up to 4:1, or become squares",
    )  # fmt: skip
    jobs(add)
    add("--init", metavar="FILE", help="pretrained student of this teacher; default: the packaged one")
    add("--lam", type=float, metavar="X", help="weight of TSD beside SSD; default: 0.1")
    add(
        "--evidence", nargs="+", choices=("ssd", "tsd", "patch", "embedding", "subspace"),
        help="what makes the score; default: patch, and what has a weight",
    )  # fmt: skip
    add("--student-weight", type=float, metavar="X", help="weight of ssd and tsd, beside 1 of patch; 0 leaves them out")
    add("--embedding-weight", type=float, metavar="X", help="weight of embedding, likewise")
    add("--contamination", type=number_or_auto, metavar="X", help="share of the support beyond the threshold, or auto")
    add("--value-range", type=float, nargs=2, metavar="V", help="values that are black and white, as a CT window")
    add("--no-augment", dest="augment", action="store_false", help="rotated and flipped images are not normal")


def model_and_paths(add: Any) -> None:
    """Add a model and the images that it is to judge."""
    add(
        "paths", type=Path, nargs="+", metavar="PATH",
        help="file from `fewshot-ad fit`, then images or folders of them; with --support, images and folders alone",
    )  # fmt: skip
    add("--support", type=Path, nargs="+", default=None, metavar="PATH", help="normal images, or folders, to fit on")
    add(
        "--threshold", type=positive, default=1.0, metavar="X",
        help="move the threshold to the score X, as the detector's own one makes it; scores are then counted from the "
        "new one, which is 1 again",
    )  # fmt: skip
    weights(add)
    jobs(add)


def regions(add: Any) -> None:
    """Add the file of regions."""
    add("--regions", type=Path, default=None, metavar="FILE", help="boxes and outlines to write as COCO JSON, .json")


def force(add: Any) -> None:
    """Add whether files are replaced."""
    add("--force", action="store_true", default=False, help="replace files that exist")


def common(add: Any, seed: bool = False) -> None:
    """Add what all commands have."""
    if seed:
        add("--random-state", type=int, default=0, metavar="N", help="seed")
    add("--json", action="store_true", default=False, help="JSON on standard output")
    add("--quiet", dest="verbose", action="store_const", const=0, default=1, help="no progress bars")
