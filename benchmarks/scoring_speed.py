"""Scoring speed from files in one process, in images per second, and memory, as Markdown on standard output.

python benchmarks/scoring_speed.py FOLDER --threads 1 2
python benchmarks/scoring_speed.py FOLDER --threads 2 1 --small
python benchmarks/scoring_speed.py FOLDER --processes 2
python benchmarks/scoring_speed.py FOLDER --rounds 0 --many 20000

The first four files of the folder are the support. Numbers of threads are timed alternately, and the median over rounds
is printed. Processor time excludes other programs. --many scores this number of files in one call, by repetition, and
prints the peak resident memory compared with that of a call with 1,000. --processes times joblib's processes of one
thread each against this process with its threads, alternately. --small times one array at a time, and 32 of the files
as arrays and as JPEGs of several sizes, alternately.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from PIL import Image

from fewshot_ad import DualDistillationDetector
from fewshot_ad.data import images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--files", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="time one image, and JPEGs against arrays, instead")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="time this number of joblib's processes against one process, instead"
    )
    parser.add_argument(
        "--many", type=int, metavar="N", help="number of files in one call, to measure the growth of memory"
    )
    args = parser.parse_args()

    files = images.files(args.folder)
    detector = DualDistillationDetector(random_state=0).fit(files[:4])
    files = files[4 : 4 + args.files]
    if args.many:
        torch.set_num_threads(args.threads[0])
        show_growth(detector, files, args.many)
    if args.processes:
        show_processes(args, detector, files)
    elif args.small:
        show_small(args, detector, files)
    elif args.rounds:
        show_speed(args, detector, files)


def show_growth(detector: DualDistillationDetector, files: list[Path], n: int) -> None:
    """Score 1,000 files, then n; print the peak resident memory after each."""
    for count in (1000, n):
        start = time.perf_counter()
        detector.score_samples([files[i % len(files)] for i in range(count)])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{count} files in one call: {count / (time.perf_counter() - start):.1f} images/s, peak {peak:.0f} MiB")


def show_processes(args: argparse.Namespace, detector: DualDistillationDetector, files: list[Path]) -> None:
    """Time N running processes against one with all threads, alternately; print medians in images per second."""
    size = -(-len(files) // args.processes)
    parts = [files[i : i + size] for i in range(0, len(files), size)]
    pairs = []
    with Parallel(n_jobs=args.processes) as parallel:
        for _ in range(args.rounds + 1):  # the first round warms up
            start = time.perf_counter()
            detector.score_samples(files)
            middle = time.perf_counter()
            parallel(delayed(detector.score_samples)(part) for part in parts)
            pairs.append((len(files) / (middle - start), len(files) / (time.perf_counter() - middle)))
    one, several = (statistics.median(found) for found in zip(*pairs[1:], strict=True))
    ratio = statistics.median(b / a for a, b in pairs[1:])
    print(f"{len(files)} files, images/s: one process, {torch.get_num_threads()} threads {one:.0f};", end=" ")
    print(f"{args.processes} processes {several:.0f}; ratio {ratio:.2f}")


def show_small(args: argparse.Namespace, detector: DualDistillationDetector, files: list[Path]) -> None:
    """Time one array at a time, and JPEGs of several sizes against arrays; print medians and interquartile ranges."""
    sides = detector.fitted_.geometry.usual[::-1]
    pictures = [Image.open(file).convert("RGB").resize(sides) for file in files[:32]]
    arrays = [np.asarray(picture) for picture in pictures]

    def seconds(X: list) -> float:
        start = time.perf_counter()
        detector.anomaly_score(X)
        return time.perf_counter() - start

    def middle(values: list[float]) -> str:
        low, median, high = statistics.quantiles(values, n=4)
        return f"{median:.3g} ({low:.3g} to {high:.3g})"

    for n in args.threads:
        torch.set_num_threads(n)
        one = [1e3 * seconds([array]) for array in [*arrays, *arrays]][len(arrays) :]
        print(f"{n} thread(s), one array: {middle(one)} ms")
        for side in (128, 512, 1500):
            with tempfile.TemporaryDirectory() as folder:
                jpegs = [Path(folder) / f"{i}.jpg" for i in range(len(pictures))]
                for picture, jpeg in zip(pictures, jpegs, strict=True):
                    picture.resize((side, side)).save(jpeg, quality=90)
                pairs = [(seconds(arrays), seconds(jpegs)) for _ in range(args.rounds + 1)][1:]
            speed = [len(jpegs) / of_files for _, of_files in pairs]
            ratio = [of_arrays / of_files for of_arrays, of_files in pairs]
            print(f"{n} thread(s), JPEGs of {side} px: {middle(speed)} images/s, {middle(ratio)} of those from arrays")


def show_speed(args: argparse.Namespace, detector: DualDistillationDetector, files: list[Path]) -> None:
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
        images.load(file, i, detector.fitted_.geometry)
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
