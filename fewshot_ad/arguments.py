"""The arguments of the command line: which there are, and how they are read."""

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

# Options with any number of values, and what these look like.
_VALUES = {"--shots": r"-?\d+", "--evidence": "ssd|tsd|patch|embedding|subspace", "--against": r"\w+=.*"}


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Read the command line. Options may stand anywhere, also before the command.

    Parameters
    ----------
    argv : sequence of str

    Returns
    -------
    dict
        "run", the command, and its arguments.

    Raises
    ------
    SystemExit
        With status 2, after a line on standard error; or after --help and --version.
    """
    parser, commands = _build()
    # A number like -1e3 is an option to argparse, and so may be a path that begins with "-", even after "--".
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
    """Move options with any number of values behind the paths, which they would take for more values."""
    kept: list[str] = []
    moved: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        values = _VALUES.get(word)  # not those of --support, which are paths themselves
        (kept if values is None else moved).append(word)
        while values is not None and left and re.fullmatch(values, left[0]):
            moved.append(left.pop(0))
    return [*kept, *paths, *moved]


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line.

    Returns
    -------
    argparse.ArgumentParser
    """
    return _build()[0]


def _build() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Make the parser, and list those of the commands."""
    parser = argparse.ArgumentParser(
        prog="fewshot-ad",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Few-shot image anomaly detection: show it a few normal images, and it tells which others are\n"
        "anomalous, how much, and where.",
        epilog="First steps:\n"
        "  fewshot-ad demo -o demo                          see it work on images that it makes\n"
        "  fewshot-ad fit normal/ -o model.fsad             two to eight normal images\n"
        "  fewshot-ad report model.fsad new/ -o report.html\n",
    )
    parser.add_argument("--version", action="version", version=f"fewshot-ad {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = _command(
        commands, "demo", "see it work, on images that it makes of a photograph",
        "Makes normal and scratched images, fits on four normal ones, and writes scores.csv, maps/, report.html and "
        "model.fsad beside the images.",
        "fewshot-ad demo -o demo",
    )  # fmt: skip
    add("-o", "--out", type=Path, default=Path("fewshot_ad_demo"), metavar="DIR", help="new folder to write")
    options.common(add, seed=True)

    add = _command(
        commands, "fit", "fit on a few normal images, and write the detector to a file",
        "Fits on two to eight normal images. The file holds them, in the detector's size, for `report` and for further "
        "images (unless --no-keep-support), and no teacher.",
        "fewshot-ad fit normal/*.png -o model.fsad",
    )  # fmt: skip
    add("support", type=Path, nargs="+", metavar="SUPPORT", help="normal images, or folders of them")
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="file to write, .fsad by convention")
    add(
        "--keep-support", action=argparse.BooleanOptionalAction, default=True,
        help="put the support images into the file, small, for reports and partial_fit; 0.8 MB for four",
    )  # fmt: skip
    add("--n-support", type=int, metavar="N", help="how many of the images are drawn to fit on; default: all")
    options.force(add)
    options.settings(add)
    options.common(add, seed=True)

    add = _command(
        commands, "score", "score images",
        "Scores images with a detector from `fewshot-ad fit`, or with one that is fitted on --support. The table has "
        "the columns path; score, high = anomalous; threshold, always 1; label, -1 anomalous where the score is above "
        "the threshold, else +1, empty if unreadable; hot_spot, row and column of the hottest place, pixels of the "
        "image; error; regions, how many parts of the image are anomalous, of which --json lists the boxes: top, left, "
        "bottom, right. Rows are written as they come, to FILE.partial first. Exit status 1 says that some files could "
        "not be read.",
        "fewshot-ad score model.fsad new/ -o scores.csv\n  fewshot-ad score new/ --support normal/",
    )  # fmt: skip
    options.model_and_paths(add)
    add(
        "-o", "--out", type=table_name, default=None, metavar="FILE",
        help="table to write, .csv or .parquet; without it CSV on standard output",
    )  # fmt: skip
    options.regions(add)
    options.force(add)
    add("--engine", choices=("local", "ray"), default="local", help="this process, or the actors of a Ray cluster")
    add("--num-actors", type=int, default=None, metavar="N", help="of engine ray; one for each GPU, else processor")
    add("--address", default=None, help="of a running Ray cluster; $RAY_ADDRESS, or one is started here")
    options.common(add, seed=True)

    add = _command(
        commands, "map", "write where images are anomalous",
        "Writes two files for each image: NAME.overlay.png, the image under its map, of at most 640 pixels; and "
        "NAME.map.tiff, the map itself in 32-bit floating point (high = anomalous), of the size that the detector saw "
        "the image in, or of its own. Sub-folders are kept. Or one DICOM object for each DICOM image, which refers to "
        "it and lies where it does: NAME.seg.dcm, a segmentation of where the map is above its level, or NAME.pmap.dcm,"
        " a parametric map of its values.",
        "fewshot-ad map model.fsad new/ -o maps/\n  fewshot-ad map model.fsad study/ --format dicom-seg -o objects/",
    )  # fmt: skip
    options.model_and_paths(add)
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    add(
        "--format", choices=("pictures", "dicom-seg", "dicom-pmap"), default="pictures",
        help="pictures and TIFF; or segmentations or parametric maps of DICOM, for images that are DICOM",
    )  # fmt: skip
    add("--original-size", action="store_true", default=False, help="NAME.map.tiff has a pixel for each of the image's")
    options.regions(add)
    options.force(add)
    options.common(add, seed=True)

    add = _command(
        commands, "report", "write a page to look through: images, maps, threshold, histogram",
        "Writes one HTML file that needs no network. Where the folder has good/ and bad/ (or is laid out as MVTec AD "
        "or others, see evaluate), the page also tells sensitivity and specificity.",
        "fewshot-ad report model.fsad new/ -o report.html",
    )  # fmt: skip
    options.model_and_paths(add)
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="file to write, .html")
    add("--title", default=None, metavar="TEXT", help="of the page")
    add("--max-side", type=length, default=640, metavar="N", help="longest side of the pictures, pixels")
    options.force(add)
    options.common(add, seed=True)

    add = _command(
        commands, "evaluate", "measure accuracy on folders of normal and anomalous images",
        "FOLDER has good/ and bad/ (and perhaps masks/, named as the images of bad/), is one category of MVTec AD, "
        "AD 2 or LOCO, VisA, BTAD, KolektorSDD2, DAGM or Real-IAD, or holds such folders. For each seed, as many "
        "normal images as --shots are the support; the next 150 normal and the first 100 anomalous ones are the test, "
        "or the test images that there are. With --against, the same images are also given to a detector with other "
        "parameters, and the difference in image AUROC is told, with a 95 % interval.",
        "fewshot-ad evaluate FOLDER --shots 2 4 8\n  fewshot-ad evaluate FOLDER --against image_size=192 aspect=square",
    )  # fmt: skip
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="images, by kind; or folders of them")
    add("--shots", type=int, nargs="+", default=[4], metavar="K", help="normal images to fit on")
    add("--seeds", type=int, default=5, metavar="N", help="draws of the support")
    add(
        "--against", type=parameter, nargs="+", default=(), metavar="NAME=VALUE",
        help="parameters of the detector to compare with, in JSON or as a word; the others are the same",
    )  # fmt: skip
    options.settings(add)
    options.common(add)

    add = _command(
        commands, "update", "add normal images to the support of a detector",
        "Adds images to those that a detector from `fewshot-ad fit` compares with, as false alarms that turned out to "
        "be normal. The threshold follows, unless it was set. Nothing is trained. MODEL itself is written, whole or "
        "not at all; it has to hold its support images, and keeps a history of what was added. Exit status 1 says that "
        "some images could not be read; the others are added.",
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
        commands, "drift", "say whether images, as a whole, left the range of the normal ones",
        "Compares new images, five or more, as a whole with the support and, where it is given, a reference: "
        "brightness, highlights, clipping, contrast, focus, and the anomaly score. Says drift where p is below 0.01: "
        "another light, focus, camera or product, for which the detector was not fitted. Single anomalous images are "
        "no drift. Exit status 1 says that some images could not be read, 0 nothing of drift.",
        "fewshot-ad drift model.fsad new/ --reference fresh/",
    )  # fmt: skip
    options.model_and_paths(add)
    add(
        "--reference", type=Path, nargs="+", default=None, metavar="PATH",
        help="further normal images, or folders, to compare with beside the support",
    )  # fmt: skip
    options.common(add, seed=True)

    add = _command(
        commands, "calibrate", "choose a detector's threshold by fresh images",
        "Moves the threshold of a detector from `fewshot-ad fit`, so that at most the given share of fresh normal "
        "images is called anomalous. Takes normal images that it was not fitted on: 19 for 5 per cent, 99 for 1; with "
        "fewer the threshold is an estimate. With --bad it also says how many anomalous images are found.",
        "fewshot-ad calibrate model.fsad fresh/ --false-alarm-rate 0.05 -o calibrated.fsad",
    )  # fmt: skip
    add("model", type=Path, metavar="MODEL", help="file from `fewshot-ad fit`")
    add("normal", type=Path, nargs="+", metavar="NORMAL", help="fresh normal images, or folders of them")
    add("--bad", type=Path, nargs="+", default=None, metavar="PATH", help="anomalous images, or folders of them")
    add(
        "--false-alarm-rate", type=float, default=0.05, metavar="X",
        help="share of normal images that may be called anomalous, above 0 and at most 0.5",
    )  # fmt: skip
    add(
        "--goal", choices=("false_alarm_rate", "f1"), default="false_alarm_rate",
        help="keep that rate, or take the threshold with the best F1 (needs --bad)",
    )  # fmt: skip
    add(
        "-o", "--out", type=Path, default=None, metavar="FILE",
        help="file to write, .fsad by convention; without it MODEL is replaced, which takes --force",
    )  # fmt: skip
    options.force(add)
    options.weights(add)
    options.jobs(add)
    options.common(add)

    add = _command(
        commands, "info", "say what is in a model file",
        "Reads the header of a file from `fewshot-ad fit`.",
        "fewshot-ad info model.fsad",
    )  # fmt: skip
    add("model", type=Path, metavar="MODEL", help="file from `fewshot-ad fit`")
    add("--json", action="store_true", default=False, help="JSON on standard output")

    add = _command(
        commands, "export", "write a detector as ONNX, to run without this package",
        "Writes a detector from `fewshot-ad fit` as one ONNX graph: image in [0, 1] in, score (high = normal) and "
        "anomaly_map out; the threshold is in its metadata.",
        "fewshot-ad export model.fsad -o model.onnx",
    )  # fmt: skip
    add("model", type=Path, metavar="MODEL", help="file from `fewshot-ad fit`")
    options.weights(add)
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="file to write, .onnx by convention")
    options.force(add)
    add("--json", action="store_true", default=False, help="JSON on standard output")

    add = _command(
        commands, "weights", "fetch a teacher's weights from the hub, for machines without network",
        "Fetches the weights of a network of timm's, checks them, and writes DIR/NAME.safetensors for --weights, and "
        "DIR/NAME.txt, which says where they are from, their licence and how to use them. A name without a tag, as "
        "wide_resnet50_2, is timm's first training; with one, as wide_resnet50_2.tv_in1k, that training.",
        "fewshot-ad weights wide_resnet50_2.tv_in1k --to weights/",
    )  # fmt: skip
    add("name", metavar="NAME", help="timm's name of a network, by preference with the tag of a training")
    add("--to", type=Path, required=True, metavar="DIR", help="folder to write to")
    options.force(add)
    options.common(add)

    add = _command(
        commands, "pretrain", "train a student on other kinds of normal images",
        "Trains a student by episodes over tasks of normal images, for DualDistillationDetector(backbone=NAME, "
        "init=FILE) or `fewshot-ad fit --backbone NAME --init FILE`.",
        "fewshot-ad pretrain TASKS_DIR --out student.safetensors",
    )  # fmt: skip
    add("tasks", type=Path, metavar="TASKS_DIR", help="folder; each sub-folder holds the normal images of one task")
    add("--out", type=Path, required=True, metavar="FILE", help="student to write, .safetensors")
    options.network(add)
    add("--image-size", type=int, default=128, metavar="N", help="side of the squares that images become, pixels")
    add("--architecture", choices=("decoder", "encoder"), default="decoder", help="of the student")
    add("--decoder-blocks", type=int, nargs=3, default=(2, 2, 2), metavar="N", help="at strides 16, 8, 4")
    add("--weighting", choices=("attention", "uniform"), default="attention", help="of the support")
    add("--sharpness", type=float, default=1.0, metavar="X", help="factor on the attention's logits")
    add("--lam", type=float, default=0.1, metavar="X", help="weight of TSD in the loss SSD + lam * TSD")
    add("--loss", choices=("position", "flattened"), default="position", help="form of the cosine")
    add("--n-shots", type=int, default=4, metavar="N", help="support images of an episode")
    add("--n-steps", type=int, default=5000, metavar="N", help="episodes")
    add("--batch-size", type=int, default=16, metavar="N", help="queries of an episode")
    add("--learning-rate", type=float, default=1e-3, metavar="X", help="of Adam, at the start")
    add("--held-out", type=float, default=0.2, metavar="X", help="share of the tasks that validate")
    add("--cache", type=Path, metavar="DIR", help="keep the teacher's features there; default: removed at the end")
    add("--checkpoint-minutes", type=float, default=5.0, metavar="X", help="between two checkpoints")
    add("--resume", action="store_true", default=False, help="go on from the last checkpoint")
    add("--engine", choices=("local", "ray"), default="local", help="this process, or the workers of a Ray cluster")
    add("--num-workers", type=int, default=2, metavar="N", help="of engine ray")
    options.common(add, seed=True)
    return parser, commands.choices


def _command(commands: Any, name: str, short: str, description: str, example: str) -> Any:
    """Make a command, and return what adds its arguments."""
    parser = commands.add_parser(
        name, help=short, description=description, epilog=f"Example:\n  {example}", argument_default=argparse.SUPPRESS,
        formatter_class=_Formatter,
    )  # fmt: skip
    parser.set_defaults(run=name)
    return parser.add_argument


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults that say something, and leaves the example's lines as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.nargs != 0 and action.default not in (None, argparse.SUPPRESS)
        return super()._get_help_string(action) if said else action.help

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = argparse.RawDescriptionHelpFormatter if text.startswith("Example:") else argparse.HelpFormatter
        return fill._fill_text(self, text, width, indent)  # type: ignore[attr-defined]
