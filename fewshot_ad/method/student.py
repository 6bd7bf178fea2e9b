"""The trainable student: a residual decoder that mirrors the teacher, or an encoder of the teacher's architecture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from ..runtime import seeded
from .layers import N_SCALES
from .teacher import Backbone, untrained_backbone
from .weighting import LearnToWeight

_OfScale = TypeVar("_OfScale")
# Residual blocks at strides 16, 8, 4 of the paper's student.
PAPER_BLOCKS = (3, 4, 6)


def _norm(channels: int) -> nn.Module:
    # Not batch norm: the statistics of an episode, a few images of one kind, do not apply to a new image.
    return nn.GroupNorm(math.gcd(channels, 16), channels)


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; `ratio` upsamples by a transposed convolution, in the first block of a stage."""

    def __init__(self, c_in: int, c_out: int, ratio: int | None = None) -> None:
        super().__init__()
        self.signed = False
        width = max(c_out // 2, 8)
        spatial: nn.Module
        if ratio is None:
            spatial = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.shortcut: nn.Module = nn.Identity()
        else:
            spatial = nn.ConvTranspose2d(width, width, ratio, stride=ratio, bias=False)
            self.shortcut = nn.Sequential(
                nn.ConvTranspose2d(c_in, c_out, ratio, stride=ratio, bias=False), _norm(c_out)
            )
        self.branch = nn.Sequential(
            nn.Conv2d(c_in, width, 1, bias=False), _norm(width), nn.ReLU(inplace=True),
            spatial, _norm(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, c_out, 1, bias=False), _norm(c_out),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.branch(x) + self.shortcut(x)
        return x if self.signed else torch.relu(x)


def _fit(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Crop or repeat the last rows and columns: the teacher may round odd sizes up or down."""
    for axis, size in ((2, height), (3, width)):
        if torch.compiler.is_compiling():  # a graph has no branches
            x = x.index_select(axis, torch.arange(size, device=x.device).clamp(max=x.shape[axis] - 1))
        elif x.shape[axis] < size:
            x = F.pad(x, (0, 0, 0, size - x.shape[2]) if axis == 2 else (0, size - x.shape[3], 0, 0), mode="replicate")
        else:
            x = x.narrow(axis, 0, size)
    return x


class Decoder(nn.Module):
    """Student `g = D(e(x))`: from the teacher's embedding back up to its three stages (paper, section 3).

    Parameters
    ----------
    channels : sequence of int
        Channels of the teacher's stages, shallow to deep, the embedding last.
    shapes : sequence of (int, int)
        Height and width of the same maps for any image; only their ratios are used.
    signed : sequence of bool
        Whether the teacher's map has negative values; the student's stage then ends without a ReLU.
    blocks : sequence of three ints, optional
        Residual blocks in each stage, deep to shallow. The first 0 ends the decoder.

    Notes
    -----
    With the paper's teacher (WideResNet-50-2) it has 24.9 M parameters.
    """

    def __init__(
        self,
        channels: Sequence[int],
        shapes: Sequence[tuple[int, int]],
        signed: Sequence[bool],
        blocks: Sequence[int] = PAPER_BLOCKS,
    ) -> None:
        super().__init__()
        self.blocks = list(blocks)
        stages = []
        for level, n_blocks in list(zip((2, 1, 0), blocks, strict=True))[: count_scales(blocks)]:
            # Without a deeper stage, the teacher's third map is the embedding.
            below = min(level + 1, len(channels) - 1)
            ratio = max(round(shapes[level][i] / shapes[below][i]) for i in (0, 1))
            c = channels[level]
            layers = [_Bottleneck(c if i else channels[below], c, None if i else ratio) for i in range(n_blocks)]
            layers[-1].signed = signed[level]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)

    def forward(self, embedding: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Map embeddings (N, C, H, W) to maps of the teacher's three shapes (H_l, W_l), shallow to deep."""
        maps: list[torch.Tensor] = []
        x = embedding
        for stage, shape in zip(self.stages, reversed(shapes), strict=False):
            x = _fit(stage(x), *shape)
            maps.insert(0, x)
        return maps


def count_scales(blocks: Sequence[int]) -> int:
    """Return the number of scales of a decoder with these blocks: those before the first 0."""
    return [*blocks, 0].index(0)


class StudentNetwork(nn.Module):
    """All trained weights: the student's network and its learn-to-weight attention.

    Parameters
    ----------
    form : {"decoder", "encoder"}
        Whether the input of `net` is the teacher's embedding or the image.
    net : torch.nn.Module
        Network that returns maps with the teacher's shapes at its three scales, or at the deeper ones.
    weighting : LearnToWeight
        Attention at the same scales.

    Attributes
    ----------
    n_scales : int
        Number of scales.
    """

    def __init__(self, form: str, net: nn.Module, weighting: LearnToWeight) -> None:
        super().__init__()
        self.form = form
        self.net = net
        self.weighting = weighting
        self.n_scales = count_scales(net.blocks) if isinstance(net, Decoder) else N_SCALES

    def forward(self, inputs: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Map embeddings or images (see `form`) to feature maps (N, C_l, H_l, W_l), given the teacher's (H_l, W_l)."""
        return self.net(inputs, shapes) if self.form == "decoder" else self.net(inputs)

    def inputs(self, images: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the input of this form of student: the images, or one of the teacher's maps (`Layers.for_student`)."""
        return images if self.form == "encoder" else features[-1]

    def targets(self, features: Sequence[_OfScale]) -> list[_OfScale]:
        """Return the maps of the teacher (`Layers.for_student`), or their properties, that this student imitates."""
        return list(features[N_SCALES - self.n_scales : N_SCALES])


def build_student(
    form: str,
    teacher: Backbone,
    name: str,
    *,
    blocks: Sequence[int] = PAPER_BLOCKS,
    attention: bool,
    sharpness: float,
    seed: int,
) -> StudentNetwork:
    """Build an untrained student for a teacher.

    Parameters
    ----------
    form : {"decoder", "encoder"}
        See `StudentNetwork`.
    teacher : Backbone
        Built with `embedding=True` for a decoder.
    name : str
        Name that the teacher was built with.
    blocks : sequence of three ints, optional
        See `Decoder`.
    attention, sharpness
        See `LearnToWeight`.
    seed : int
        Seed of the random weights; torch's global generator is not changed.

    Returns
    -------
    StudentNetwork
    """
    with seeded(seed):
        net: nn.Module
        if form == "encoder":
            net = untrained_backbone(name, teacher)
            channels = teacher.layers.for_student(teacher.channels)[:N_SCALES]
        else:
            pick = teacher.layers.for_student
            net = Decoder(pick(teacher.channels), pick(teacher.shapes), pick(teacher.signed), blocks)
            channels = pick(teacher.channels)[N_SCALES - count_scales(blocks) : N_SCALES]
        return StudentNetwork(form, net, LearnToWeight(channels, attention, sharpness))
