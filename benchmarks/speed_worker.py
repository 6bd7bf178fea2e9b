"""Worker process of speed.py: one line of JSON in, one line of JSON out.

It imports the first fewshot_ad on PYTHONPATH and uses only names that are public in earlier versions too, except that
the commands `networks`, `patchcore` and `profile` need the package that this file comes with.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import fewshot_ad
from fewshot_ad import DualDistillationDetector

# PatchCore's batch size: its package's default.
PATCHCORE_BATCH = 32
# Queries are different crops from the support's.
FIRST_QUERY = 10_000


@functools.lru_cache(maxsize=1)
def photographs() -> list[Image.Image]:
    return [Image.fromarray(image) for image in load_sample_images().images]


@functools.lru_cache(maxsize=4096)
def picture(i: int, side: int) -> Image.Image:
    """Crop a square from a photograph, and resize it."""
    rng = np.random.default_rng(i)
    photograph = photographs()[i % 2]
    n = int(rng.integers(160, min(photograph.size)))
    left, top = (int(rng.integers(length - n + 1)) for length in photograph.size)
    return photograph.crop((left, top, left + n, top + n)).resize((side, side), Image.Resampling.BICUBIC)


def arrays(first: int, n: int, side: int) -> list[np.ndarray]:
    """Create n pictures, (side, side, 3) uint8."""
    return [np.asarray(picture(i, side)) for i in range(first, first + n)]


def ready(given: list[np.ndarray]) -> torch.Tensor:
    """Convert arrays to a network's input, (N, 3, S, S) in [0, 1]."""
    found = torch.from_numpy(np.stack(given)).permute(0, 3, 1, 2).float() / 255
    return found.contiguous(memory_format=torch.channels_last)


class Worker:
    """The fitted detectors by name; each public method is a command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, DualDistillationDetector] = {}
        self.peers: dict[str, Callable[[torch.Tensor], None]] = {}
        photographs()

    def about(self) -> dict[str, Any]:
        """Return the package's version and the machine."""
        return {
            "package": str(Path(fewshot_ad.__file__).parents[1]), "torch": torch.__version__,
            "threads": torch.get_num_threads(), "peak": self.peak(),
        }  # fmt: skip

    def fit(self, name: str, shots: int, side: int, **parameters: Any) -> float:
        """Fit a detector on squares; return the seconds."""
        detector = DualDistillationDetector(**{"image_size": side, "random_state": 0, **parameters})
        support = arrays(0, shots, side)
        start = time.perf_counter()
        self.made[name] = detector.fit(support)
        return time.perf_counter() - start

    def change(self, name: str, **parameters: Any) -> None:
        """Change parameters of the call."""
        self.made[name].set_params(**parameters)

    def score(self, name: str, n: int, side: int) -> float:
        """Score n arrays in one call; return the seconds."""
        given = arrays(FIRST_QUERY, n, side)
        start = time.perf_counter()
        self.made[name].anomaly_score(given)
        return time.perf_counter() - start

    def score_files(self, name: str, n: int, side: int) -> float:
        """Score n JPEG files in one call; return the seconds."""
        files = [self.folder / f"{side}-{i}.jpg" for i in range(n)]
        for i, file in enumerate(files):
            if not file.exists():
                picture(FIRST_QUERY + i, side).save(file, quality=90)
        start = time.perf_counter()
        self.made[name].anomaly_score(files)
        return time.perf_counter() - start

    def score_each(self, name: str, n: int, side: int) -> float:
        """Score n arrays, one per call; return the median in seconds."""
        seconds = []
        for array in arrays(FIRST_QUERY, n, side):
            start = time.perf_counter()
            self.made[name].anomaly_score([array])
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def bits(self, name: str, n: int, side: int) -> str:
        """Hash the scores of n arrays."""
        return hashlib.sha256(self.made[name].anomaly_score(arrays(FIRST_QUERY, n, side)).tobytes()).hexdigest()

    def save(self, name: str, file: str) -> int:
        """Save a detector; return the size of the file in bytes."""
        self.made[name].save(file, force=True)
        return Path(file).stat().st_size

    def write_image(self, file: str, side: int) -> None:
        """Write a query to a file."""
        picture(FIRST_QUERY, side).save(file)

    def peak(self) -> float:
        """Return the peak memory of this process in MB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

    def networks(self, name: str, n: int, side: int, in_threads: bool) -> float:
        """Pass n ready tensors through a detector's teacher and student only; return the seconds.

        The batches have the size used for scoring, and use torch's threads, or run concurrently with one thread each,
        as in scoring.
        """
        from fewshot_ad.method.features import batch_size
        from fewshot_ad.threads import computed

        scorer = self.made[name].session().scorer
        teacher, runtime = scorer.extract.teacher, scorer.extract.runtime
        students = [expert.student for expert in scorer.memory.experts]

        def forward(part: torch.Tensor) -> None:
            with torch.inference_mode(), runtime.autocast():
                maps = teacher(part)
                for student in students:
                    student(student.inputs(part, maps), [m.shape[2:] for m in maps[:3]])

        given = ready(arrays(FIRST_QUERY, n, side))
        parts = given.split(batch_size(given.shape, runtime.device))
        start = time.perf_counter()
        if in_threads:
            for _ in computed((functools.partial(forward, part) for part in parts), runtime):
                pass
        else:
            for part in parts:
                forward(part)
        return time.perf_counter() - start

    def patchcore(self, name: str, shots: int, side: int, ratio: float) -> int:
        """Fit anomalib's PatchCore with the network of `compact`; return its bank's size."""
        import peers

        from fewshot_ad.method.packaged import teacher_file, timm_name
        from fewshot_ad.method.teacher import build_backbone

        teacher = build_backbone(timm_name("compact"), side, weights=teacher_file("compact", None))
        model = peers.build("patchcore", teacher, "compact", 0)
        model.train()
        model((ready(arrays(0, shots, side)) - teacher.mean) / teacher.std)
        peers.choose_coreset(model, ratio)
        model.eval()

        def score(given: torch.Tensor) -> None:
            with torch.inference_mode():
                for part in ((given - teacher.mean) / teacher.std).split(PATCHCORE_BATCH):
                    model(part)

        self.peers[name] = score
        return len(model.memory_bank)

    def score_patchcore(self, name: str, n: int, side: int) -> float:
        """Score n ready tensors with PatchCore; return the seconds."""
        given = ready(arrays(FIRST_QUERY, n, side))
        start = time.perf_counter()
        self.peers[name](given)
        return time.perf_counter() - start

    def profile(self, name: str, n: int, side: int) -> dict[str, float]:
        """Score n arrays in one thread; return ms of processor time per image, by part."""
        from scoring_profile import profile

        detector = self.made[name]
        given = arrays(FIRST_QUERY, n, side)
        detector.anomaly_score(given)  # warm
        return profile(lambda: detector.anomaly_score(given), n)


def main() -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with answers
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder))
        for line in sys.stdin:
            asked = json.loads(line)
            found = getattr(worker, asked.pop("command"))(**asked)
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
