"""The parser of the command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from . import __version__, options
from .argument_types import length, parameter, table_name

# Options with any number of values, and the pattern of a value.
_VALUES = {"--shots": r"-?\d+", "--evidence": "ssd|tsd|patch|embedding|subspace", "--against": r"\w+=.*"}


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Parse the command line. Options may stand anywhere, even before the command.

    Parameters
    ----------
    argv : sequence of str

    Returns
    -------
    dict
        "run", the name of the command, and its arguments.

    Raises
    ------
    SystemExit
        With status 2 and a line on standard error if an argument is not valid; with 0 after --help and --version.
    """
    parser, commands = _build()
    # argparse takes a number such as -1e3 for an option, and a path that begins with "-" too, even after "--".
    end = list(argv).index("--") if "--" in argv else len(argv)
    words = [_decimal(word) for word in argv[:end]]
    paths = [f".{os.sep}{word}" if word.startswith("-") else word for word in argv[end + 1 :]]
    at = next((i for i, word in enumerate(words) if word in commands), None)
    if at is None or {"-h", "--help", "--version"} & set(words[:at]):
        return vars(parser.parse_args([*words, *paths]))
    command = commands[words[at]]
    return vars(command.parse_intermixed_args(_lists_last([*words[:at], *words[at + 1 :]], paths)))


def _decimal(word: str) -> str:
    return f"{Decimal(word):f}" if re.fullmatch(r"-(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}", word) else word


def _lists_last(words: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Move options with any number of values behind the paths, which would otherwise be parsed as their values."""
    kept: list[str] = []
    moved: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        values = _VALUES.get(word)  # without --support, whose values are paths themselves
        (kept if values is None else moved).append(word)
        while values is not None and left and re.fullmatch(values, left[0]):
            moved.append(left.pop(0))
    return [*kept, *paths, *moved]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line.

    Returns
    -------
    argparse.ArgumentParser
    """
    return _build()[0]


def _build() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Build the parser, and the parsers of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="fewshot-ad",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Few-shot image anomaly detection: fit on a few normal images, then detect which other images are\n"
        "anomalous, how anomalous, and where.",
        epilog="First steps:\n"
        "  fewshot-ad demo -o demo                          try it on generated images\n"
        "  fewshot-ad fit normal/ -o model.fsad             two to eight normal images\n"
        "  fewshot-ad report model.fsad new/ -o report.html\n",
    )
    parser.add_argument("--version", action="version", version=f"fewshot-ad {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = _command(
        commands, "demo", "try the other commands on images made from a photograph",
        "Generates normal and scratched images, fits on four normal ones, and writes scores.csv, maps/, report.html "
        "and model.fsad to the same folder.",
        "fewshot-ad demo -o demo",
    )  # fmt: skip
    add("-o", "--out", type=Path, default=Path("fewshot_ad_demo"), metavar="DIR", help="new folder to create")
    options.common(add, seed=True)

    add = _command(
        commands, "fit", "fit on a few normal images, and write the detector to a file",
        "Fits on two to eight normal images. The file includes the support images, resized, for `report` and `update` "
        "(unless --no-keep-support), but not the teacher.",
        "fewshot-ad fit normal/*.png -o model.fsad",
    )  # fmt: skip
    add("support", type=Path, nargs="+", metavar="SUPPORT", help="normal images, or folders of them")
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="file to write, .fsad by convention")
    add(
        "--keep-support", action=argparse.BooleanOptionalAction, default=True,
        help="store the resized support images in the file, for `report` and `update`; 0.8 MB for four",
    )  # fmt: skip
    add("--n-support", type=int, metavar="N", help="number of images to draw for the support; default: all")
    options.force(add)
    options.settings(add)
    options.common(add, seed=True)

    add = _command(
        commands, "score", "score images",
        "Scores images with a detector from `fewshot-ad fit`, or with one that is fitted on --support. The columns of "
        "the table are path; score, high = anomalous; threshold, always 1; label, -1 (anomalous) if the score is above "
        "the threshold, else +1, empty if unreadable; hot_spot, row and column of the map's maximum, in pixels of the "
        "image; error; regions, the number of anomalous regions (--json lists their bounding boxes: top, left, bottom, "
        "right). Rows are written to FILE.partial as they are computed; it is renamed at the end. The exit status is 1 "
        "if some files could not be read.",
        "fewshot-ad score model.fsad new/ -o scores.csv\n  fewshot-ad score new/ --support normal/",
    )  # fmt: skip
    options.model_and_paths(add)
    add(
        "-o", "--out", type=table_name, default=None, metavar="FILE",
        help="table to write, .csv or .parquet; default: CSV on standard output",
    )  # fmt: skip
    options.regions(add)
    options.force(add)
    add("--engine", choices=("local", "ray"), default="local", help="run here, or in the actors of a Ray cluster")
    add(
        "--num-actors", type=int, default=None, metavar="N",
        help="number of Ray actors; default: one per GPU, else one per processor",
    )  # fmt: skip
    add("--address", default=None, help="address of a running Ray cluster; default: $RAY_ADDRESS, else a new cluster")
    options.common(add, seed=True)

    add = _command(
        commands, "map", "write anomaly maps of images",
        "Writes two files per image: NAME.overlay.png, the image with its heat map, at most 640 pixels; and "
        "NAME.map.tiff, the anomaly map in 32-bit floating point (high = anomalous), at the size that the image is "
        "resized to, or at its original size. Sub-folders are kept. For DICOM images it can write one DICOM object "
        "each instead, which refers to its source image and shares its geometry: NAME.seg.dcm, a segmentation of the "
        "anomalous regions, or NAME.pmap.dcm, a parametric map with the values of the anomaly map.",
        "fewshot-ad map model.fsad new/ -o maps/\n  fewshot-ad map model.fsad study/ --format dicom-seg -o objects/",
    )  # fmt: skip
    options.model_and_paths(add)
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    add(
        "--format", choices=("pictures", "dicom-seg", "dicom-pmap"), default="pictures",
        help="PNG and TIFF; or DICOM segmentations or parametric maps, for DICOM images only",
    )  # fmt: skip
    add("--original-size", action="store_true", default=False, help="write NAME.map.tiff at the original image size")
    options.regions(add)
    options.force(add)
    options.common(add, seed=True)

    add = _command(
        commands, "report", "write an HTML report: images, anomaly maps, threshold, histogram",
        "Writes one HTML file that works offline. If the folder has good/ and bad/ (or another layout that `evaluate` "
        "reads), the report also shows sensitivity and specificity.",
        "fewshot-ad report model.fsad new/ -o report.html",
    )  # fmt: skip
    options.model_and_paths(add)
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="file to write, .html")
    add("--title", default=None, metavar="TEXT", help="title of the page")
    add("--max-side", type=length, default=640, metavar="N", help="longest side of the pictures, pixels")
    options.force(add)
    options.common(add, seed=True)

    add = _command(
        commands, "evaluate", "measure accuracy on folders of normal and anomalous images",
        "FOLDER has good/ and bad/ (and optionally masks/, named like the images of bad/), is one category of MVTec "
        "AD, AD 2 or LOCO, VisA, BTAD, KolektorSDD2, DAGM or Real-IAD, or contains such folders. For each seed, "
        "--shots normal images are drawn as the support. The test set is the data set's own, else the next 150 normal "
        "images and the first 100 anomalous ones. With --against, a detector with other parameters is evaluated on the "
        "same images, and the difference in image AUROC is reported with a 95 % confidence interval.",
        "fewshot-ad evaluate FOLDER --shots 2 4 8\n  fewshot-ad evaluate FOLDER --against image_size=192 aspect=square",
    )  # fmt: skip
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="normal and anomalous images, or a folder of tasks")
    add("--shots", type=int, nargs="+", default=[4], metavar="K", help="number of normal images to fit on")
    add("--seeds", type=int, default=5, metavar="N", help="number of draws of the support")
    add(
        "--against", type=parameter, nargs="+", default=(), metavar="NAME=VALUE",
        help="parameters of the other detector that differ, with values in JSON or as plain words",
    )  # fmt: skip
    options.settings(add)
    options.common(add)

    add = _command(
        commands, "update", "add normal images to the support of a detector",
        "Adds normal images, such as false alarms, to the support of a detector from `fewshot-ad fit`. The threshold "
        "is updated, unless it was set by hand. Nothing is trained. MODEL is replaced atomically; it must hold its "
        "support images, and records what was added. The exit status is 1 if some images could not be read; the others "
        "are added.",
        "fewshot-ad update model.fsad false_alarms/",
    )  # fmt: skip
    add("model", type=Path, metavar="MODEL", help="file from `fewshot-ad fit`")
    add("images", type=Path, nargs="+", metavar="IMAGE", help="normal images, or folders of them")
    add("-o", "--out", type=Path, default=None, metavar="FILE", help="file to write; default: MODEL")
    options.weights(add)
    options.jobs(add)
    options.force(add)
    options.common(add)

    add = _command(
        commands, "drift", "test whether images, as a whole, differ from the normal ones",
        "Compares new images, five or more, as a whole with the support and the reference, if one is given: "
        "brightness, highlights, clipping, contrast, focus, and the anomaly score. Drift is p below 0.01: another "
        "light, focus, camera or product. Single anomalous images are not drift. The exit status is 1 if some images "
        "could not be read; it does not depend on drift.",
        "fewshot-ad drift model.fsad new/ --reference fresh/",
    )  # fmt: skip
    options.model_and_paths(add)
    add(
        "--reference", type=Path, nargs="+", default=None, metavar="PATH",
        help="further normal images, or folders, to compare with in addition to the support",
    )  # fmt: skip
    options.common(add, seed=True)

    add = _command(
        commands, "calibrate", "calibrate a detector's threshold on new images",
        "Sets the threshold of a detector from `fewshot-ad fit` so that at most the given fraction of new normal "
        "images is called anomalous. Needs normal images that it was not fitted on: 19 for 5 %, 99 for 1 %; with fewer "
        "the threshold is an estimate. With --bad it also reports the recall.",
        "fewshot-ad calibrate model.fsad fresh/ --false-alarm-rate 0.05 -o calibrated.fsad",
    )  # fmt: skip
    add("model", type=Path, metavar="MODEL", help="file from `fewshot-ad fit`")
    add("normal", type=Path, nargs="+", metavar="NORMAL", help="new normal images, or folders of them")
    add("--bad", type=Path, nargs="+", default=None, metavar="PATH", help="anomalous images, or folders of them")
    add(
        "--false-alarm-rate", type=float, default=0.05, metavar="X",
        help="fraction of normal images that may be called anomalous, above 0 and at most 0.5",
    )  # fmt: skip
    add(
        "--goal", choices=("false_alarm_rate", "f1"), default="false_alarm_rate",
        help="keep this rate, or choose the threshold with the best F1 (needs --bad)",
    )  # fmt: skip
    add(
        "-o", "--out", type=Path, default=None, metavar="FILE",
        help="file to write, .fsad by convention; default: MODEL, which needs --force",
    )  # fmt: skip
    options.force(add)
    options.weights(add)
    options.jobs(add)
    options.common(add)

    add = _command(
        commands, "info", "show what a model file contains",
        "Shows the header of a file from `fewshot-ad fit`.",
        "fewshot-ad info model.fsad",
    )  # fmt: skip
    add("model", type=Path, metavar="MODEL", help="file from `fewshot-ad fit`")
    add("--json", action="store_true", default=False, help="JSON on standard output")

    add = _command(
        commands, "export", "export a detector to ONNX, to run without this package",
        "Writes a detector from `fewshot-ad fit` as one ONNX graph. Its input is image, in [0, 1]; its outputs are "
        "score (high = normal) and anomaly_map; the threshold is in its metadata.",
        "fewshot-ad export model.fsad -o model.onnx",
    )  # fmt: skip
    add("model", type=Path, metavar="MODEL", help="file from `fewshot-ad fit`")
    options.weights(add)
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="file to write, .onnx by convention")
    options.force(add)
    add("--json", action="store_true", default=False, help="JSON on standard output")

    add = _command(
        commands, "weights", "download a teacher's weights from the hub, for offline machines",
        "Downloads the weights of a timm model, checks them, and writes DIR/NAME.safetensors for --weights, and "
        "DIR/NAME.txt with their source, their licence and how to use them. A name without a tag, such as "
        "wide_resnet50_2, means timm's default weights; a tag, as in wide_resnet50_2.tv_in1k, selects others.",
        "fewshot-ad weights wide_resnet50_2.tv_in1k --to weights/",
    )  # fmt: skip
    add("name", metavar="NAME", help="timm model name, preferably with a tag")
    add("--to", type=Path, required=True, metavar="DIR", help="folder to write to")
    options.force(add)
    options.common(add)

    add = _command(
        commands, "pretrain", "train a student on normal images of other kinds",
        "Trains a student on episodes of tasks of normal images, for DualDistillationDetector(backbone=NAME, "
        "init=FILE) or `fewshot-ad fit --backbone NAME --init FILE`.",
        "fewshot-ad pretrain TASKS_DIR --out student.safetensors",
    )  # fmt: skip
    add("tasks", type=Path, metavar="TASKS_DIR", help="folder; each sub-folder holds the normal images of one task")
    add("--out", type=Path, required=True, metavar="FILE", help="student to write, .safetensors")
    options.network(add)
    add("--image-size", type=int, default=128, metavar="N", help="side of the squares that images are resized to")
    add("--architecture", choices=("decoder", "encoder"), default="decoder", help="architecture of the student")
    add("--decoder-blocks", type=int, nargs=3, default=(2, 2, 2), metavar="N", help="blocks at strides 16, 8 and 4")
    add("--weighting", choices=("attention", "uniform"), default="attention", help="weighting of the support")
    add("--sharpness", type=float, default=1.0, metavar="X", help="factor on the attention's logits")
    add("--lam", type=float, default=0.1, metavar="X", help="weight of TSD in the loss SSD + lam * TSD")
    add("--loss", choices=("position", "flattened"), default="position", help="form of the cosine distance")
    add("--n-shots", type=int, default=4, metavar="N", help="support images per episode")
    add("--n-steps", type=int, default=5000, metavar="N", help="number of episodes")
    add("--batch-size", type=int, default=16, metavar="N", help="queries per episode")
    add("--learning-rate", type=float, default=1e-3, metavar="X", help="initial learning rate of Adam")
    add("--held-out", type=float, default=0.2, metavar="X", help="fraction of the tasks that is used for validation")
    add("--cache", type=Path, metavar="DIR", help="folder for the teacher's features; default: a temporary one")
    add("--checkpoint-minutes", type=float, default=5.0, metavar="X", help="minutes between checkpoints")
    add("--resume", action="store_true", default=False, help="resume from the last checkpoint")
    add("--engine", choices=("local", "ray"), default="local", help="run here, or on the workers of a Ray cluster")
    add("--num-workers", type=int, default=2, metavar="N", help="number of Ray workers")
    options.common(add, seed=True)
    return parser, commands.choices


def _command(commands: Any, name: str, short: str, description: str, example: str) -> Any:
    """Add a command, and return the function that adds its arguments."""
    parser = commands.add_parser(
        name, help=short, description=description, epilog=f"Example:\n  {example}", argument_default=argparse.SUPPRESS,
        formatter_class=_Formatter,
    )  # fmt: skip
    parser.set_defaults(run=name)
    return parser.add_argument


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show informative defaults only, and keep the lines of the example."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        informative = action.nargs != 0 and action.default not in (None, (), argparse.SUPPRESS)
        return super()._get_help_string(action) if informative else action.help

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = argparse.RawDescriptionHelpFormatter if text.startswith("Example:") else argparse.HelpFormatter
        return fill._fill_text(self, text, width, indent)  # type: ignore[attr-defined]
