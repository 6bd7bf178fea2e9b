"""Speed of several teachers, timed alternately in one run, in images per second, as Markdown on standard output.

python benchmarks/teacher_speed.py --backbones mobilenetv2_100 compact --precision bfloat16

Bare forward passes up to stride 32. Networks whose weights are not available have random ones, which does not affect
the time. The ratios are relative to the first backbone.
"""

from __future__ import annotations

import argparse
import statistics
import time

import timm
import torch

from fewshot_ad.method.packaged import timm_name

STRIDES = (4, 8, 16, 32)


def make(backbone: str) -> torch.nn.Module:
    name = timm_name(backbone)
    strides = timm.create_model(name, features_only=True).feature_info.reduction()
    indices = [i for i, stride in enumerate(strides) if stride in STRIDES]
    return timm.create_model(name, features_only=True, out_indices=indices).eval().to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["mobilenetv2_100", "compact"])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    teachers = {backbone: make(backbone) for backbone in args.backbones}
    print("| teacher | parameters, M | batch | threads | images/s | ratio (spread) |")
    print("|---|---|---|---|---|---|", flush=True)
    for batch in args.batches:
        images = torch.rand(batch, 3, args.image_size, args.image_size).to(memory_format=torch.channels_last)
        speeds: dict[str, list[float]] = {backbone: [] for backbone in teachers}
        repeats = max(1, 64 // batch)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
            for number in range(args.rounds + 1):
                for backbone, teacher in teachers.items():
                    start = time.perf_counter()
                    for _ in range(repeats):
                        teacher(images)
                    if number:  # the first round warms up
                        speeds[backbone].append(repeats * batch / (time.perf_counter() - start))
        base = speeds[args.backbones[0]]
        for backbone, found in speeds.items():
            ratios = sorted(a / b for a, b in zip(found, base, strict=True))
            low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
            size = sum(p.numel() for p in teachers[backbone].parameters()) / 1e6
            print(
                f"| {backbone} | {size:.2f} | {batch} | {args.threads} | {statistics.median(found):.0f} | "
                f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
