"""Differences between the scores of an exported detector and the package's on real images, as Markdown.

python benchmarks/export_parity.py DATA --shots 1 2 4 8 --seeds 1
python benchmarks/export_parity.py DATA --shots 4 --seeds 3 --int8

DATA has one folder for each task; supports and test images are those of quality.py, at their original sizes.
The graph is scored in onnxruntime and in OpenVINO, one image at a time, and compared with the package at --precision
(float32 compares all patches, as the graph does): largest difference of a score and of a pixel of a map, and number of
changed decisions. --int8 prints the image AUROC instead: of the graph as exported, and with the teacher's convolutions
quantised to 8 bits (static, calibrated on the support's views), both in onnxruntime; the package itself does not
quantise.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from export_speed import in_onnxruntime, in_openvino
from onnxruntime import quantization
from PIL import Image
from protocol import Draw, draw, find_tasks, shown, table
from sklearn.metrics import roc_auc_score
from torch import nn
from tqdm.auto import tqdm

from fewshot_ad import DualDistillationDetector
from fewshot_ad.data.views import rotated_and_mirrored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA")
    add("--shots", type=int, nargs="+", default=[4], metavar="K")
    add("--seeds", type=int, default=1)
    add("--limit", type=int, metavar="N", help="limit on the test images of each class")
    add("--backbone", default="compact")
    add("--weights", type=Path, help="safetensors file of the backbone; default: packaged, or the hub's")
    add("--aspect", choices=["keep", "square"], default="keep")
    add("--precision", default="float32", help="precision of the package")
    add("--threads", type=int, default=1)
    add("--int8", action="store_true", help="print the image AUROC in 8 bits instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")

    tasks = find_tasks(args.data)
    found = []
    for task in tqdm(tasks):
        for n_shots in args.shots:
            for seed in range(args.seeds):
                drawn = draw(task, n_shots, seed, limit=args.limit)
                support, queries = ([read(path) for path in paths] for paths in (drawn.support, drawn.queries))
                det = DualDistillationDetector(
                    args.backbone, weights=args.weights, aspect=args.aspect, precision=args.precision, device="cpu",
                    random_state=seed,
                ).fit(support)  # fmt: skip
                with tempfile.TemporaryDirectory() as folder:
                    model = Path(folder, "model.onnx")
                    det.export(model)
                    if args.int8:
                        found.append(aurocs(det, model, support, queries, drawn, args.threads))
                    else:
                        found.append(differences(det, model, queries, args.threads))
    if args.int8:
        by_task = np.array(found).reshape(len(tasks), -1, 2)
        rows = [[t.name, *(shown(by_task[i : i + 1, :, j]) for j in (0, 1))] for i, t in enumerate(tasks)]
        print(table(["task", "float32", "int8"], [*rows, ["mean", *(shown(by_task[..., j]) for j in (0, 1))]]))
    else:
        print(f"{sum(len(scores) for scores, *_ in found)} images, {len(found)} detectors")
        rows = []
        for i, name in enumerate(("onnxruntime", "OpenVINO"), 1):
            score, pixel, decisions = zip(*(one[i] for one in found), strict=True)
            rows.append([name, f"{max(score):.1e}", f"{max(pixel):.1e}", str(sum(decisions))])
        nearest = min(np.abs(decision).min() for decision, *_ in found)
        print(table(["", "score", "map", "changed decisions"], rows) + f"nearest to a threshold: {nearest:.1e}")


def read(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


def tensor(image: np.ndarray) -> np.ndarray:
    """Convert an image to the graph's input."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(255)


def differences(det: DualDistillationDetector, model: Path, queries: list[np.ndarray], n_threads: int) -> list:
    """Return the package's decision function, and the differences of the graph in each runtime."""
    score, pixels = det.score_samples(queries), det.anomaly_map(queries)
    results = [score - det.offset_]
    for run in (in_onnxruntime(model, n_threads), in_openvino(model, n_threads)):
        parts = [run(tensor(image)) for image in queries]
        scores = np.concatenate([part[0] for part in parts])
        changed = (scores.astype(float) < det.offset_) != (results[0] < 0)
        of_map = max(np.abs(part[1][0] - expected).max() for part, expected in zip(parts, pixels, strict=True))
        results.append((np.abs(scores - score).max(), of_map, int(changed.sum())))
    return results


def aurocs(
    det: DualDistillationDetector,
    model: Path,
    support: list[np.ndarray],
    queries: list[np.ndarray],
    drawn: Draw,
    n_threads: int,
) -> list[float]:
    """Compute the image AUROC of the graph in float32, and with the teacher in 8 bits."""
    small = model.with_name("int8.onnx")
    quantize(det, model, small, support)
    found = []
    for file in (model, small):
        run = in_onnxruntime(file, n_threads)
        scores = np.concatenate([run(tensor(image))[0] for image in queries])
        found.append(float(roc_auc_score(drawn.y, scores)))
    return found


def quantize(det: DualDistillationDetector, model: Path, out: Path, support: list[np.ndarray]) -> None:
    """Write the graph with the teacher's convolutions, which are its first nodes, quantised to 8 bits."""
    n_convolutions = sum(isinstance(module, nn.Conv2d) for module in det.session().scorer.extract.teacher.modules())
    names = [node.name for node in onnx.load(model).graph.node if node.op_type == "Conv"][:n_convolutions]
    quantization.quantize_static(
        model, out, Views(support), per_channel=True, nodes_to_quantize=names,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip


class Views(quantization.CalibrationDataReader):
    """The support, rotated and flipped, one view at a time."""

    def __init__(self, support: list[np.ndarray]) -> None:
        images = (torch.from_numpy(tensor(image)[0]) for image in support)
        self.batches = (view[None] for image in images for view in rotated_and_mirrored(image))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, or None after the last."""
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch.contiguous().numpy()}


if __name__ == "__main__":
    main()
