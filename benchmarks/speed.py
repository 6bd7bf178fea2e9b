"""Images a second of scoring, the rivals timed in turn in one run: Markdown on standard output.

python benchmarks/speed.py --backbones compact mobilenetv2_100 wide_resnet50_2

Rivals, all with the same random weights (the time does not depend on them) and the same support:

networks    floor: bare forward passes of teacher and student on ready tensors
published   every batch sees the support anew, one copy for each query (the published code), always in float32
ssd         our paper's setting: the same student, the support stored
teacher     floor: the bare teacher
patch       evidence="patch", augment=False: as many patches as PatchCore has
default     all kinds of evidence
patchcore   anomalib's PatchcoreModel, coreset of all patches, always in float32; left out where it is not installed

Ours start from uint8 arrays: pre-processing, matching, blur and fusion are within their time. With --files the default
is also timed from JPEG files. The ratio is to the rival in the last column: median of the rounds and middle half.
Below: the time of a fit without a student (with the packaged one it is little more), the peak of the resident memory up
to then, all rivals together, and the time of an import.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers
import timm
import torch
from PIL import Image
from safetensors.torch import save_model
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from fewshot_ad import DualDistillationDetector
from fewshot_ad.method.features import CHUNK
from fewshot_ad.method.losses import cosine_distance
from fewshot_ad.method.packaged import timm_name

# What each is compared to.
AGAINST = {
    "ssd": ("published", "networks"),
    "patch": ("patchcore", "teacher"),
    "default": ("networks",),
    "files": ("default",),
}
Way = Callable[[], Any]


def published(teacher: torch.nn.Module, student: Any, queries: torch.Tensor, support: torch.Tensor) -> np.ndarray:
    """Score queries (B, 3, S, S) against a support (K, 3, S, S) that is copied, and computed anew, for each of them."""
    maps = []
    for batch in [queries, *(image.expand(len(queries), -1, -1, -1) for image in support)]:
        features = teacher(batch)
        maps.append(student(student.inputs(batch, features)))
    query, size = maps[0], queries.shape[-1]
    scores = []
    for n in range(len(queries)):
        own = [torch.stack([level[n] for level in levels]) for levels in zip(*maps[1:], strict=True)]
        found = [level[n : n + 1] for level in query]
        reference = student.weighting(found, own)[0]
        shown = sum(
            F.interpolate(d[:, None], size=(size, size), mode="bilinear", align_corners=False)[:, 0]
            for d in map(cosine_distance, found, reference)
        )
        scores.append(gaussian_filter(shown[0].numpy(), 4.0).max())
    return np.array(scores)


class Case:
    """The rivals for one backbone, support, precision and batch."""

    def __init__(self, args: argparse.Namespace, backbone: str, weights: Path, n_shots: int, precision: str) -> None:
        rng = np.random.default_rng(0)
        size = args.image_size
        pictures = rng.integers(0, 256, (n_shots + 32, size, size, 3), dtype=np.uint8)
        self.support, self.queries = pictures[:n_shots], pictures[n_shots:]
        network = {"weights": weights, "image_size": size, "precision": precision, "random_state": 0}
        trained = {"n_steps": 1, "init": None, "decoder_blocks": tuple(args.blocks)}
        auxiliary = {"noise": list(self.queries[:4])}
        name = timm_name(backbone)
        self.ssd = DualDistillationDetector.paper(name, **network, **trained).fit(self.support, auxiliary=auxiliary)
        self.default = DualDistillationDetector(name, **network, **trained).fit(self.support, auxiliary=auxiliary)
        self.patch = DualDistillationDetector(name, **network, evidence="patch", augment=False).fit(self.support)
        start = time.perf_counter()
        DualDistillationDetector(name, **network, evidence=("patch", "embedding")).fit(self.support)
        self.fit_seconds = time.perf_counter() - start
        self.patchcore = None
        self.extract = self.ssd._extractor()
        self.student = self.ssd.experts_[0].student
        if peers.version() is not None:
            from fewshot_ad.method.teacher import build_backbone

            self.patchcore = peers.build("patchcore", build_backbone(name, size, weights=weights), name, size, 0)
            self.patchcore.train()
            self.patchcore(self._ready(self.support))
            self.patchcore.subsample_embedding(1.0)
            self.patchcore.eval()

    @staticmethod
    def _ready(pictures: np.ndarray) -> torch.Tensor:
        found = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        return found.contiguous(memory_format=torch.channels_last)

    def ways(self, batch: int, folder: Path | None) -> dict[str, Way]:
        """Make what is timed: each scores the same queries once."""
        arrays = list(self.queries[:batch])
        ready, support = self._ready(self.queries[:batch]), self._ready(self.support)
        teacher, student, runtime = self.extract.teacher, self.student, self.extract.runtime

        def networks(with_student: bool) -> None:
            with torch.inference_mode(), runtime.autocast():
                for part in ready.split(CHUNK):
                    maps = teacher(part)
                    if with_student:
                        student(student.inputs(part, maps))

        def anew() -> None:
            with torch.inference_mode():
                published(teacher, student, ready, support)

        def patchcore() -> None:
            with torch.inference_mode():
                self.patchcore(ready)

        ways: dict[str, Way] = {
            "networks": lambda: networks(True), "published": anew, "ssd": lambda: self.ssd.anomaly_score(arrays),
            "teacher": lambda: networks(False), "patch": lambda: self.patch.anomaly_score(arrays),
            "default": lambda: self.default.anomaly_score(arrays),
        }  # fmt: skip
        if self.patchcore is not None:
            ways["patchcore"] = patchcore
        if folder is not None:
            files = []
            for i, array in enumerate(arrays):
                files.append(folder / f"{i}.jpg")
                Image.fromarray(array).resize((512, 512)).save(files[-1], quality=90)
            ways["files"] = lambda: self.default.anomaly_score(files)
        return ways


def timed(ways: dict[str, Way], rounds: int, batch: int) -> dict[str, list[float]]:
    """Time each way once a round, after one that warms up; images a second."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            repeats = 1 if name == "published" else max(1, 32 // batch)
            start = time.perf_counter()
            for _ in range(repeats):
                way()
            if number:
                speeds[name].append(repeats * batch / (time.perf_counter() - start))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbones", nargs="+", default=["compact", "mobilenetv2_100", "wide_resnet50_2"])
    add("--shots", type=int, nargs="+", default=[2, 4, 8])
    add("--batches", type=int, nargs="+", default=[1, 32])
    add("--precisions", nargs="+", default=["float32", "bfloat16"])
    add("--blocks", type=int, nargs=3, default=(3, 4, 6), help="of the decoder; default: the paper's")
    add("--image-size", type=int, default=128)
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--files", action="store_true", help="also from JPEG files of 512 pixels")
    add("--leave-out", nargs="+", default=[], metavar="RIVAL")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"{args.image_size} px, {args.threads} threads, decoder {tuple(args.blocks)}.\n")
    print("| backbone | K | precision | batch | rival | images/s | ratio (spread) | to |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    fits = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for backbone in args.backbones:
            weights = folder / f"{backbone}.safetensors"
            save_model(timm.create_model(timm_name(backbone)), weights)
            for n_shots in args.shots:
                for precision in args.precisions:
                    case = Case(args, backbone, weights, n_shots, precision)
                    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    fits.append(f"| {backbone} | {n_shots} | {precision} | {case.fit_seconds:.2f} | {peak:.0f} |")
                    for batch in args.batches:
                        ways = case.ways(batch, folder if args.files else None)
                        ways = {rival: way for rival, way in ways.items() if rival not in args.leave_out}
                        speeds = timed(ways, args.rounds, batch)
                        for rival, found in speeds.items():
                            for base in [b for b in AGAINST.get(rival, ("",)) if b in speeds] or [""]:
                                ratios = sorted(a / b for a, b in zip(found, speeds.get(base, found), strict=True))
                                low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
                                shown = f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})" if base else ""
                                said = (
                                    backbone,
                                    n_shots,
                                    precision,
                                    batch,
                                    rival,
                                    f"{statistics.median(found):.1f}",
                                    shown,
                                    base,
                                )
                                print("| " + " | ".join(map(str, said)) + " |", flush=True)
    print("\n| backbone | K | precision | fit, s | peak, MiB |\n|---|---|---|---|---|")
    print("\n".join(fits))
    for what in ("import fewshot_ad", "from fewshot_ad import DualDistillationDetector"):
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", what], check=True)
            seconds.append(time.perf_counter() - start)
        print(f"\n`{what}` in a new process: {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    sys.exit(main())
