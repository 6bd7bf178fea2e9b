"""Time per image of an exported detector compared with the package, as Markdown on standard output.

python benchmarks/export_speed.py FOLDER --threads 1 2 --batches 1 8

The first four files of the folder are the support, the next ones the queries, read in advance and resized to one size.
All run on the CPU: the package with precision="float32" (which compares all patches, as the graph does) and with
"auto", the graph in onnxruntime and in OpenVINO. They are timed alternately; medians over rounds and interquartile
ranges are printed. Ratios are of times within one round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch

from fewshot_ad import DualDistillationDetector
from fewshot_ad.data import images
from fewshot_ad.data.geometry import Geometry

REPEATS = 3
Run = Callable[[np.ndarray], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER")
    add("--backbone", default="compact")
    add("--weights", type=Path, help="safetensors file of the backbone; default: packaged, or the hub's")
    add("--image-size", type=int, default=128)
    add("--aspect", choices=["keep", "square"], default="keep")
    add("--shown", type=int, nargs=2, metavar=("H", "W"), help="size of the queries; default: squares of --image-size")
    add("--threads", type=int, nargs="+", default=[1])
    add("--batches", type=int, nargs="+", default=[1, 8])
    add("--rounds", type=int, default=15)
    args = parser.parse_args()

    files = images.files(args.folder)
    network = {"backbone": args.backbone, "weights": args.weights, "image_size": args.image_size, "aspect": args.aspect}
    native = {
        precision: DualDistillationDetector(**network, precision=precision, device="cpu", random_state=0).fit(files[:4])
        for precision in ("float32", "auto")
    }
    shown = Geometry(tuple(args.shown or (args.image_size, args.image_size)))
    queries = np.stack([images.load(file, 0, shown).numpy() for file in files[4 : 4 + max(args.batches)]])
    print("| threads | batch | what | ms an image | of float32 |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.onnx")
        native["float32"].export(model)
        for n in args.threads:
            torch.set_num_threads(n)
            rivals = {
                **{f'precision="{name}"': in_package(detector) for name, detector in native.items()},
                "onnxruntime": in_onnxruntime(model, n),
                "OpenVINO": in_openvino(model, n),
            }
            for size in args.batches:
                show(f"{n} | {size}", rivals, queries[:size], args.rounds)


def in_package(detector: DualDistillationDetector) -> Run:
    """Score with the package itself."""
    return lambda batch: detector.score_samples(torch.from_numpy(batch))


def in_onnxruntime(model: Path, n_threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"image": batch})


def in_openvino(model: Path, n_threads: int) -> Run:
    precisely = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": n_threads}
    compiled = openvino.Core().compile_model(model, "CPU", precisely)
    return lambda batch: list(compiled(batch).values())


def show(what: str, rivals: dict[str, Run], batch: np.ndarray, rounds: int) -> None:
    """Time the contenders alternately; print medians and interquartile ranges."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            run(batch)  # threads of the previous one may still spin
            start = time.perf_counter()
            for _ in range(REPEATS):
                run(batch)
            times[name].append(1e3 * (time.perf_counter() - start) / REPEATS / len(batch))
    first = next(iter(times.values()))
    for name, found in times.items():
        ratios = [one / base for one, base in zip(found, first, strict=True)]
        print(f"| {what} | {name} | {middle(found, 1)} | {middle(ratios, 2)} |", flush=True)


def middle(values: list[float], digits: int) -> str:
    low, median, high = (f"{value:.{digits}f}" for value in statistics.quantiles(values, n=4))
    return f"{median} ({low} to {high})"


if __name__ == "__main__":
    main()
