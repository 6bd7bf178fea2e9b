"""The command `fewshot-ad`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from . import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        By default the process's.

    Returns
    -------
    int
        Exit status: 0, 1 for an error that is explained on standard error, 130 after a stop by a signal.
    """
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    # Only now: torch takes seconds to import, and --help must not wait for it.
    from .exceptions import FewShotADError, PretrainingStopped

    warnings.showwarning = lambda message, *_: print(f"fewshot-ad: warning: {message}", file=sys.stderr)
    try:
        run(arguments)
    except PretrainingStopped as stop:
        print(f"fewshot-ad: {str(stop).replace('resume.', '--resume.')}", file=sys.stderr)
        return 130
    except (FewShotADError, ValueError) as error:
        print(f"fewshot-ad: error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewshot-ad", description="Few-shot image anomaly detection.")
    parser.add_argument("--version", action="version", version=f"fewshot-ad {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pretrain = commands.add_parser(
        "pretrain",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        help="train a student on other kinds of normal images",
        description="Train a student by episodes over tasks of normal images, for "
        "DualDistillationDetector(backbone=NAME, init=FILE).",
        argument_default=argparse.SUPPRESS,
    )
    add = pretrain.add_argument
    add("tasks", type=Path, metavar="TASKS_DIR", help="folder; each sub-folder holds the normal images of one task")
    add("--out", type=Path, required=True, metavar="FILE", help="student to write, .safetensors")
    add("--backbone", default="compact", metavar="NAME", help="teacher: compact (packaged), or timm's name")
    add("--weights", type=Path, metavar="FILE", help="teacher's weights in timm's naming; default: packaged or hub's")
    add("--image-size", type=int, default=128, metavar="N", help="side that images are resized to, pixels")
    add("--student", choices=("decoder", "encoder"), default="decoder", help="form of the student")
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
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add(
        "--precision", choices=("auto", "float64", "float32", "bfloat16", "float16"), default="auto", help="of training"
    )
    add("--random-state", type=int, default=0, metavar="N", help="seed")
    add("--quiet", dest="verbose", action="store_const", const=0, default=1, help="no progress bars")
    pretrain.set_defaults(run=_pretrain)
    return parser


def _pretrain(arguments: dict) -> None:
    from .pretraining import pretrain

    print(f"wrote {pretrain(**arguments)}")


if __name__ == "__main__":
    sys.exit(main())
