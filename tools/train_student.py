"""Train the packaged student on episodes, in which each task is a photograph or a rendered picture.

python tools/train_student.py PHOTOGRAPHS --out compact_student.safetensors

Query and support are different crops and views of the same picture. The student is trained at three scales, of which
the deepest are kept (--scales): each is computed from the deeper one, so it does not depend on the scales removed. The
same command with --resume continues an interrupted run.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import load_photographs, random_crop, render

from fewshot_ad import pretrain
from fewshot_ad.data.views import random_views
from fewshot_ad.files.checkpoints import FORMAT, load_student, save
from fewshot_ad.method.student import count_scales


def views_of(picture: torch.Tensor, n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Create a task from a picture: views like several objects of one kind, (n, size, size, 3) uint8.

    For every other picture the crops are nearly the same, as with a fixed camera; for the rest they are random.
    """
    if rng.random() < 0.5:
        frame = random_crop(picture, size, (0.2, 1.0), rng) / 255
        views = torch.stack(random_views([frame], n, rng))
    else:
        smallest = np.exp(rng.uniform(np.log(0.05), np.log(0.5)))
        views = (
            torch.stack([random_crop(picture, size, (smallest, min(1.0, 2 * smallest)), rng) for _ in range(n)]) / 255
        )
    if rng.random() < 0.4:
        views = views.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (views * 255).round().byte().permute(0, 2, 3, 1).numpy()


def deepest(
    tensors: dict[str, torch.Tensor], header: dict[str, Any], n_scales: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Remove the shallow scales of a student."""
    left_out = max(0, count_scales(header["decoder_blocks"]) - n_scales)
    kept = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[:2] == ["net", "stages"] and int(parts[2]) >= n_scales:
            continue
        if parts[:2] == ["weighting", "phi"]:  # shallow to deep, whereas the stages are deep to shallow
            if int(parts[2]) < left_out:
                continue
            parts[2] = str(int(parts[2]) - left_out)
        kept[".".join(parts)] = tensor
    blocks = [n if i < n_scales else 0 for i, n in enumerate(header["decoder_blocks"])]
    return kept, {**header, "decoder_blocks": blocks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of .jpg or .png files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="compact")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--views", type=int, default=12, help="number of images per task")
    parser.add_argument("--rendered", type=int, default=400, help="number of rendered pictures")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--lam", type=float, default=1.0)
    parser.add_argument("--blocks", type=int, nargs=3, default=(2, 2, 2))
    parser.add_argument("--scales", type=int, choices=(1, 2, 3), default=1, help="number of scales kept, deepest first")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    pictures = load_photographs(args.photographs) + render(args.rendered, args.seed)
    tasks = {
        f"{i:05}": views_of(picture, args.views, args.size, np.random.default_rng((args.seed, i)))
        for i, picture in enumerate(pictures)
    }
    full = args.out.with_name(f"{args.out.stem}_float32.safetensors")
    pretrain(
        tasks, full, backbone=args.backbone, weights=args.weights, image_size=args.size, n_steps=args.steps,
        lam=args.lam, decoder_blocks=tuple(args.blocks), batch_size=8, held_out=0.02, cache=args.cache,
        resume=args.resume, random_state=args.seed,
    )  # fmt: skip
    tensors, header = deepest(*load_student(full), args.scales)
    # A summary replaces the list of tasks.
    header["settings"]["tasks"] = f"{len(pictures) - args.rendered} photographs, {args.rendered} rendered pictures"
    save(args.out, {key: value.half() for key, value in tensors.items()}, FORMAT, header)
    data = args.out.read_bytes()
    print(f"{args.out}: {len(data) / 1e6:.2f} MB, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
