"""Command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .argument_types import layers, number_or_auto, positive, size


def network(add: Any) -> None:
    """Add the options of the teacher, its device and its precision."""
    add("--backbone", default="compact", metavar="NAME", help="teacher: compact (packaged), or a timm model name")
    weights(add)
    add("--device", default="auto", help="torch device of the networks: auto, cpu, cuda, cuda:1, ...")
    add(
        "--precision", choices=("auto", "float64", "float32", "bfloat16", "float16"), default="auto",
        help="precision of the networks",
    )  # fmt: skip


def weights(add: Any) -> None:
    """Add the option of the teacher's weights."""
    add(
        "--weights", type=Path, default=None, metavar="FILE",
        help="teacher's weights, with timm's tensor names; default: the file used to fit, the packaged weights, or the "
        "hub's",
    )  # fmt: skip


def jobs(add: Any) -> None:
    """Add the option of the number of threads."""
    add(
        "--jobs", dest="n_jobs", type=int, metavar="N",
        help="number of threads, -1 for one per processor; scores do not depend on it; default: torch's number",
    )  # fmt: skip


def settings(add: Any) -> None:
    """Add the options of a detector's parameters."""
    network(add)
    add(
        "--layers", type=layers, default="auto", metavar="N,N,...",
        help="layers of the teacher: blocks of a transformer, or stages of another network, such as 4,5,7,10; auto; or "
        "last, the last block",
    )  # fmt: skip
    add(
        "--image-size", type=size, default="auto", metavar="N",
        help="square root of the area that each image is resized to, in pixels; or height and width of all, such "
        "as 96x256; auto is 128, and up to 448 for a transformer",
    )  # fmt: skip
    add(
        "--aspect", choices=("keep", "square"), default="keep",
        help="whether images keep their aspect ratio, up to 4:1, or become squares",
    )  # fmt: skip
    jobs(add)
    add("--init", metavar="FILE", help="pretrained student for this teacher; default: the packaged one")
    add("--lam", type=float, metavar="X", help="weight of TSD relative to SSD; default: 0.1")
    add(
        "--evidence", nargs="+", choices=("ssd", "tsd", "patch", "embedding", "subspace"),
        help="score components; default: patch, and every component that has a weight",
    )  # fmt: skip
    add("--student-weight", type=float, metavar="X", help="weight of ssd and tsd relative to patch; 0 omits them")
    add("--embedding-weight", type=float, metavar="X", help="weight of embedding relative to patch; 0 omits it")
    add(
        "--contamination", type=number_or_auto, metavar="X",
        help="fraction of the support images called anomalous, or auto",
    )  # fmt: skip
    add(
        "--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="input window that is mapped to black and white, such as a CT window",
    )  # fmt: skip
    add(
        "--no-augment", dest="augment", action="store_false",
        help="do not add rotated and mirrored copies of the support: such images are not normal",
    )  # fmt: skip


def model_and_paths(add: Any) -> None:
    """Add the options of a model and of the images to score."""
    add(
        "paths", type=Path, nargs="+", metavar="PATH",
        help="file from `fewshot-ad fit`, then images or folders of images; with --support, only images and folders",
    )  # fmt: skip
    add(
        "--support", type=Path, nargs="+", default=None, metavar="PATH",
        help="normal images, or folders of them, to fit on",
    )  # fmt: skip
    add(
        "--threshold", type=positive, default=1.0, metavar="X",
        help="move the threshold to the score X on the scale of the model, where 1 is its threshold; scores are then "
        "rescaled so that 1 is the new threshold",
    )  # fmt: skip
    weights(add)
    jobs(add)


def regions(add: Any) -> None:
    """Add the option of a file for the regions."""
    add(
        "--regions", type=Path, default=None, metavar="FILE",
        help="COCO JSON file to write, with bounding boxes and outlines of the regions",
    )  # fmt: skip


def force(add: Any) -> None:
    """Add the option that replaces files."""
    add("--force", action="store_true", default=False, help="replace existing files")


def common(add: Any, seed: bool = False) -> None:
    """Add the options of all commands."""
    if seed:
        add("--random-state", type=int, default=0, metavar="N", help="random seed")
    add("--json", action="store_true", default=False, help="write JSON to standard output")
    add("--quiet", dest="verbose", action="store_const", const=0, default=1, help="do not show progress bars")
