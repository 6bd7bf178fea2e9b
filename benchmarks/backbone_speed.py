"""Speed of a transformer backbone compared with anomalib's AnomalyDINO, with random weights, as Markdown.

python benchmarks/backbone_speed.py
python benchmarks/backbone_speed.py --side 224 --images 4 --rounds 3 --shots 1

Both have the same weights of DINOv2 S/14 and process the same arrays. They are timed alternately, and the median of the
ratios within a round is printed. anomalib's model processes one image at a time with all of torch's threads (batches
were not faster per image); ours processes as many images at a time as there are threads. The load of the machine before
and after is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from parity_anomalydino import NETWORK, as_peers_input, build_peer, make_images, write_weights

from fewshot_ad import DualDistillationDetector

# Ours: the recipe, and the default for this network; each of these in two precisions.
OURS = {
    "recipe anomalydino": {**DualDistillationDetector.recipe("anomalydino").get_params(), "backbone": NETWORK},
    "default": {"backbone": NETWORK},
    "default, evidence subspace": {"backbone": NETWORK, "evidence": "subspace"},
}
PRECISIONS = ("float32", "auto", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=448, help="side of the square images, a multiple of 14")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--images", type=int, default=8, help="images scored in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["auto", "bfloat16"], choices=PRECISIONS)
    args = parser.parse_args()

    warnings.simplefilter("ignore")
    before = os.getloadavg()[0]
    print("| normal images | detector | precision | ms an image | times as fast as anomalib | fit, s | file, MB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder, "weights.safetensors"))
        for shots in args.shots:
            show(args, weights, shots, Path(folder))
    print(
        f"\n{args.side} px, {torch.get_num_threads()} threads, {args.rounds} rounds of {args.images} images; load "
        f"{before:.1f} before, {os.getloadavg()[0]:.1f} after."
    )


def show(args: argparse.Namespace, weights: Path, shots: int, folder: Path) -> None:
    """Time anomalib's model and each of our detectors with this number of normal images; print a row for each."""
    support, images = make_images(shots, args.side, 0), make_images(args.images, args.side, 1)
    peer = build_peer(weights)

    def learn() -> None:
        with torch.inference_mode():
            for image in support:
                peer.train()(as_peers_input(image[None]))
            peer.fit()
            peer.eval()

    def score() -> None:
        with torch.inference_mode():
            for image in images:
                peer(as_peers_input(image[None]))

    fit_times, calls, sizes = [timed(learn)], [score], [peer.memory_bank.nbytes / 1e6]
    names = [("anomalib, AnomalyDINO", "float32")]
    for name, parameters in OURS.items():
        for precision in args.precision:
            det = DualDistillationDetector(
                **{**parameters, "weights": weights, "image_size": args.side, "precision": precision, "random_state": 0}
            )
            fit_times.append(timed(lambda det=det: det.fit(list(support))))
            det.save(folder / "model.fsad", force=True)
            sizes.append((folder / "model.fsad").stat().st_size / 1e6)
            calls.append(lambda det=det: det.score_samples(list(images)))
            names.append((name, precision))
    for call in calls:  # one-time initialisation
        call()
    times = np.array([[timed(call) for call in calls] for _ in range(args.rounds)])
    ratios = times[:, :1] / times
    for i, (name, precision) in enumerate(names):
        ms, ratio = statistics.median(times[:, i]) / args.images * 1e3, statistics.median(ratios[:, i])
        print(f"| {shots} | {name} | {precision} | {ms:.0f} | {ratio:.2f} | {fit_times[i]:.1f} | {sizes[i]:.1f} |")


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
