"""Images a second that a fitted detector scores from files, in one process: Markdown on standard output.

python benchmarks/scoring_speed.py FOLDER --threads 1 2

The first four files of the folder are the support. Threads are timed in turn, and the median of the rounds is shown.
Processor time, beside the clock's, does not count what other programs took.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from fewshot_ad import DualDistillationDetector, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--files", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    files = images.files(args.folder)
    detector = DualDistillationDetector(random_state=0).fit(files[:4])
    files = files[4 : 4 + args.files]
    seconds: dict[int, list[tuple[float, float]]] = {n: [] for n in args.threads}
    scores = {}
    for number in range(args.rounds + 1):
        for n in args.threads:
            torch.set_num_threads(n)
            start = time.perf_counter(), time.process_time()
            scores[n] = detector.score_samples(files)
            if number:  # the first round warms up
                seconds[n].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    begin = time.process_time()
    for i, file in enumerate(files):
        images.load(file, i, detector.image_size)
    reading = (time.process_time() - begin) / len(files)
    print(f"{len(files)} files; reading and resizing alone: {1e3 * reading:.1f} ms of processor time each")
    print("| threads | images/s | processor time, ms an image | largest difference from the first |")
    print("|---|---|---|---|")
    for n, found in seconds.items():
        clock, processor = (statistics.median(part) / len(files) for part in zip(*found, strict=True))
        difference = np.abs(scores[n] - scores[args.threads[0]]).max()
        print(f"| {n} | {1 / clock:.1f} | {1e3 * processor:.1f} | {difference:.1g} |")


if __name__ == "__main__":
    main()
