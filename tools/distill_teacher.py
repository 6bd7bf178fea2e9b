"""Distil the packaged teacher: a small network is trained to predict the features of one or two large ones.

python tools/distill_teacher.py PHOTOGRAPHS --teacher mobilenetv2_100 FILE --out compact_teacher.safetensors

At every stage (strides 4, 8, 16, 32) a temporary 1x1 head maps the small network's features to each teacher's:
position-wise cosine plus normalised squared error. A third term, without a head, makes the cosines between the small
network's own features match the first teacher's, because patches are compared by their cosine.

A checkpoint is kept next to --out; the same command resumes from it. Needs timm 1.0.27 or newer, for Muon.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import timm
import torch
from pictures import load_photographs, render, strong_views
from safetensors.torch import save
from timm.data import resolve_model_data_config
from timm.optim import Muon
from torch import nn
from torch.nn import functional as F

STRIDES = (4, 8, 16, 32)
# Stage weights in the first two terms: stride 16 is the hardest to imitate, and matters most.
SHARES = (0.15, 0.15, 0.6, 0.1)
INTERVAL = 50  # steps between two points of the loss curve
SAMPLE = 128  # positions whose similarities are compared, in each picture and stage


def network(name: str, file: str | None = None) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Build a network that returns its stages at `STRIDES`, and its mean and standard deviation."""
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}} if file else {}
    every = timm.create_model(name, features_only=True).feature_info.reduction()
    model = timm.create_model(
        name, features_only=True, out_indices=[i for i, s in enumerate(every) if s in STRIDES], **options
    )
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return model.to(memory_format=torch.channels_last), mean, std


def pooled(stage: torch.Tensor) -> torch.Tensor:
    """Average over 3x3 neighbourhoods, as for patch comparison; rows of norm 1."""
    return F.normalize(F.avg_pool2d(stage, 3, stride=1, padding=1, count_include_pad=False), dim=1)


def stage_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Position-wise cosine distance, plus squared error in units of the target map's variance."""
    cosine = 1 - F.cosine_similarity(predicted, target, dim=1, eps=1e-6).mean()
    variance = target.var(dim=(0, 2, 3), unbiased=False).mean().clamp_min(1e-6)
    return cosine + (predicted - target).pow(2).mean() / variance


def relation_loss(predicted: torch.Tensor, target: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """Squared difference of the cosines between the same positions (of both crops of a picture) in two networks."""
    a, b = (pooled(m).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)[:, :, picks] for m in (predicted, target))
    return (a.mT @ a - b.mT @ b).pow(2).mean()


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Rise for the first 300 steps, then fall along half a cosine."""
    warm = min(300, n_steps // 10 + 1)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, n_steps - warm)))


def write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of .jpg or .png files")
    parser.add_argument("--teacher", nargs=2, action="append", required=True, metavar=("NAME", "FILE"))
    parser.add_argument(
        "--stages", nargs="+", type=int, help="strides of the stages from the second teacher; default: all four"
    )
    parser.add_argument("--network", default="lcnet_100")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.04)
    parser.add_argument("--relation", type=float, default=10.0, help="weight of the third term")
    parser.add_argument("--rendered", type=int, default=400, help="number of rendered pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=5.0, help="time between checkpoints")
    parser.add_argument("--stop", type=int, help="number of steps in this run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    device = torch.device(args.device)
    teachers = [tuple(part.to(device) for part in network(*teacher)) for teacher in args.teacher]
    for model, _, _ in teachers:
        model.eval().requires_grad_(False)
    small, mean, std = (part.to(device) for part in network(args.network))
    wide = [model.feature_info.channels() for model, _, _ in teachers]
    heads = nn.ModuleList(
        nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(small.feature_info.channels(), each, strict=True))
        for each in wide
    ).to(device)
    taught = [(t, i) for t in range(len(teachers)) for i in (range(4) if t == 0 else args.stages or range(4))]
    trained = nn.ModuleList([small, heads])
    # Muon for channel mixing; its AdamW for depthwise kernels, the first convolution and vectors.
    mixing, others = [], []
    for p in trained.parameters():
        (mixing if p.ndim == 4 and p.shape[1] > 3 else others).append(p)
    optimizer = Muon(
        [{"params": mixing}, {"params": others, "use_fallback": True}],
        lr=args.rate,
        weight_decay=0.02,
        nesterov=True,
        fallback_lr_scale=2.0,
    )

    pictures = load_photographs(args.photographs) + render(args.rendered, args.seed)
    print(f"{len(pictures)} pictures, {sum(p.numel() for p in small.parameters()) / 1e6:.2f} M parameters", flush=True)
    state_file = args.out.with_suffix(".state")
    settings = {
        key: str(value) for key, value in vars(args).items() if key not in {"out", "threads", "minutes", "stop"}
    }
    step, curve, sums = 0, [], np.zeros(3)
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        if state["settings"] != settings:
            differing = sorted(k for k in settings if settings[k] != state["settings"].get(k))
            raise SystemExit(f"{state_file} was written with other {', '.join(differing)}; remove it to start anew.")
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        step, curve, sums = state["step"], state["curve"], np.array(state["sums"])

    def keep() -> None:
        temporary = state_file.with_suffix(".state.tmp")
        parts = {"trained": trained.state_dict(), "optimizer": optimizer.state_dict(), "settings": settings}
        torch.save({**parts, "step": step, "curve": curve, "sums": sums.tolist()}, temporary)
        os.replace(temporary, state_file)
        weights = {
            key: value.half() if value.is_floating_point() else value for key, value in small.state_dict().items()
        }
        header = {
            "network": args.network,
            "taught_by": ", ".join(name for name, _ in args.teacher),
            "pictures": f"{len(pictures) - args.rendered} photographs, {args.rendered} rendered",
            "steps": f"{step} of {args.steps}",
            "settings": json.dumps({key: settings[key] for key in ("batch", "size", "rate", "relation", "seed")}),
        }
        data = save({key: value.cpu().contiguous() for key, value in weights.items()}, header)
        write(args.out, data)
        write(args.out.with_suffix(".curve.json"), json.dumps(curve).encode())
        print(
            f"step {step}: {args.out} ({len(data) / 1e6:.2f} MB, sha256 {hashlib.sha256(data).hexdigest()})", flush=True
        )

    last_kept = last_told = time.monotonic()
    first = step
    small.train()
    while step < args.steps and step - first < (args.stop or args.steps):
        # A function of the step alone: a resumed run uses the same pictures.
        rng = np.random.default_rng((args.seed, step))
        images = (
            strong_views(pictures, args.batch, args.size, rng).to(device).contiguous(memory_format=torch.channels_last)
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        with torch.autocast(device.type, torch.bfloat16), torch.inference_mode():
            wanted = [model((images - m) / s) for model, m, s in teachers]
        # On the CPU, gradients of depthwise convolutions are slower in bfloat16.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = small((images - mean) / std)
            projected = [[head(f) for head, f in zip(each, found, strict=True)] for each in heads]
        wanted = [[w.float().clone() for w in each] for each in wanted]
        copied = sum(SHARES[i] * stage_loss(projected[t][i].float(), wanted[t][i]) for t, i in taught) / sum(
            SHARES[i] for _, i in taught
        )
        related = torch.zeros((), device=device)
        for f, w in zip(found[:3], wanted[0][:3], strict=True):
            picks = torch.from_numpy(rng.integers(0, 2 * f.shape[2] * f.shape[3], SAMPLE)).to(device)
            related = related + relation_loss(f.float(), w, picks)
        loss = copied + args.relation * related
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        step += 1
        sums += loss.item(), copied.item(), related.item()
        if step % INTERVAL == 0:
            curve.append([step, *(sums / INTERVAL).round(5).tolist()])
            rate = INTERVAL * args.batch / (time.monotonic() - last_told)
            print(
                f"{step:6d} loss {curve[-1][1]:.4f} copied {curve[-1][2]:.4f} related {curve[-1][3]:.5f} {rate:.0f}/s",
                flush=True,
            )
            last_told, sums = time.monotonic(), np.zeros(3)
        if time.monotonic() - last_kept > args.minutes * 60:
            keep()
            last_kept = time.monotonic()
    keep()


if __name__ == "__main__":
    main()
