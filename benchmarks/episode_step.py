"""Time of a training step compared with the published implementation, as Markdown on standard output.

python benchmarks/episode_step.py [--backbone wide_resnet50_2] [--blocks 3 4 6] [--rounds 5]

Published: each of B queries has its own K support images, and teacher and student process all of them in the step, B
(1 + K) passes each, in float32. Ours: the queries share their support, B + K student passes; the teacher's features are
computed in advance, once for each distinct image; precision "auto" is bfloat16 on hardware with native support.
Student, losses, optimiser, K and B are the same. Both are timed alternately; the median over rounds is printed. Weights
are random, which does not affect the time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_model
from torch import nn

from fewshot_ad.method.losses import distillation_loss, dual_loss
from fewshot_ad.method.student import StudentNetwork, build_student
from fewshot_ad.method.teacher import Backbone, build_backbone
from fewshot_ad.runtime import resolve_runtime
from fewshot_ad.training.episodes import Episode
from fewshot_ad.training.loop import episode_loss, make_optimizer

LAM = 0.1


def published_loss(
    teacher: Backbone, student: StudentNetwork, queries: torch.Tensor, supports: torch.Tensor
) -> torch.Tensor:
    """Compute the loss of queries (B, 3, S, S), each with its own support (B, K, 3, S, S), in K + 1 batches."""
    batches = [queries, *supports.unbind(1)]
    targets, maps = [], []
    for batch in batches:
        with torch.no_grad():
            features = teacher(batch)
        targets.append(features[:3])
        maps.append(student(student.inputs(batch, features), [m.shape[2:] for m in features[:3]]))
    query = maps[0]
    references = []
    for n in range(len(queries)):
        own = [torch.stack([level[n] for level in levels]) for levels in zip(*maps[1:], strict=True)]
        references.append(student.weighting([level[n : n + 1] for level in query], own)[0])
    joined = [torch.cat(level) for level in zip(*references, strict=True)]
    ssd = distillation_loss(query, joined, "flattened")
    tsd = distillation_loss(targets[0], query, "flattened")
    return dual_loss(ssd, tsd, LAM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--blocks", type=int, nargs=3, default=(2, 2, 2), help="residual blocks of the decoder")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    runtime = resolve_runtime("cpu", "auto")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "random.safetensors")
        save_model(timm.create_model(args.backbone), file)
        teacher = build_backbone(args.backbone, args.image_size, weights=file)
    students = [
        build_student(
            "decoder",
            teacher,
            args.backbone,
            blocks=args.blocks,
            attention=True,
            sharpness=1.0,
            seed=0,
        ).train()
        for _ in range(2)
    ]
    generator = torch.Generator().manual_seed(0)
    size = (3, args.image_size, args.image_size)
    queries = torch.rand(args.batch_size, *size, generator=generator)
    supports = torch.rand(args.batch_size, args.shots, *size, generator=generator)
    with torch.no_grad():
        query_maps, support_maps = teacher(queries), teacher(supports[0])
    episode = Episode(query_maps[-1], query_maps[:3], support_maps[-1])

    def step(student: StudentNetwork, loss: object) -> float:
        optimizer = optimizers[id(student)]
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        value.item()
        return time.perf_counter() - start

    optimizers = {id(student): make_optimizer(student, 1e-4) for student in students}
    ways = {
        "published": lambda: step(students[0], lambda: published_loss(teacher, students[0], queries, supports)),
        "ours": lambda: step(students[1], lambda: episode_loss(students[1], episode, LAM, "flattened", runtime)),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            times[name].append(way())
    ratios = sorted(a / b for a, b in zip(times["published"], times["ours"], strict=True))
    precision = "bfloat16" if runtime.training_dtype else "float32"
    print("| backbone | blocks | K | B | threads | ours in | published, s | ours, s | ratio (spread) |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {args.backbone} | {tuple(args.blocks)} | {args.shots} | {args.batch_size} | {torch.get_num_threads()} "
        f"| {precision} | "
        f"{statistics.median(times['published']):.2f} | {statistics.median(times['ours']):.3f} | "
        f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) |"
    )


if __name__ == "__main__":
    main()
