"""The trainable student: a mirrored residual decoder, or an encoder of the teacher's own architecture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..runtime import seeded
from .teacher import Backbone, untrained_backbone
from .weighting import LearnToWeight

# Residual blocks at strides 16, 8, 4 of the paper's student.
PAPER_BLOCKS = (3, 4, 6)


def _norm(channels: int) -> nn.Module:
    # Not batch norm: the statistics of episodes, each of a few images of one kind, do not describe a fresh image.
    return nn.GroupNorm(math.gcd(channels, 16), channels)


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; the first of a stage enlarges the map by `ratio` with a transposed convolution."""

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
    """Cut or repeat the last rows and columns: odd-sized stages are rounded up or down by the teacher."""
    missing = (max(0, width - x.shape[3]), max(0, height - x.shape[2]))
    if any(missing):
        x = F.pad(x, (0, missing[0], 0, missing[1]), mode="replicate")
    return x[:, :, :height, :width]


class Decoder(nn.Module):
    """Student `g = D(e(x))`: from the teacher's embedding back up to its three stages (paper, section 3).

    Parameters
    ----------
    channels : sequence of int
        Of the teacher's stages, shallow to deep, the embedding last.
    shapes : sequence of (int, int)
        Height and width of the same maps.
    signed : sequence of bool
        Whether the teacher's map has negative values: the student's then ends without a ReLU.
    blocks : sequence of three ints, optional
        Residual blocks in each stage, deep to shallow.

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
        self.shapes = [tuple(shape) for shape in shapes[:3]]
        self.blocks = list(blocks)
        stages = []
        for level, n_blocks in zip((2, 1, 0), blocks, strict=True):
            # A teacher without a deeper stage hands its third map in as the embedding.
            below = min(level + 1, len(channels) - 1)
            ratio = max(round(shapes[level][i] / shapes[below][i]) for i in (0, 1))
            c = channels[level]
            layers = [_Bottleneck(c if i else channels[below], c, None if i else ratio) for i in range(n_blocks)]
            layers[-1].signed = signed[level]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)

    def forward(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        """Map embeddings (N, C, H, W) to three maps with the teacher's shapes, shallow to deep."""
        maps: list[torch.Tensor] = []
        x = embedding
        for level, stage in zip((2, 1, 0), self.stages, strict=True):
            x = _fit(stage(x), *self.shapes[level])
            maps.insert(0, x)
        return maps


class Student(nn.Module):
    """What is trained: the student's network and its learn-to-weight attention.

    Parameters
    ----------
    form : {"decoder", "encoder"}
        Whether `net` starts from the teacher's embedding or from the image.
    net : torch.nn.Module
        Returns three maps with the teacher's shapes.
    weighting : LearnToWeight
        For the same three scales.
    """

    def __init__(self, form: str, net: nn.Module, weighting: LearnToWeight) -> None:
        super().__init__()
        self.form = form
        self.net = net
        self.weighting = weighting

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Map embeddings or images (see `form`) to three feature maps (N, C_l, H_l, W_l)."""
        return self.net(inputs)

    def inputs(self, images: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Pick what this form of student starts from, of the images and of the teacher's features."""
        return images if self.form == "encoder" else features[-1]


def build_student(
    form: str,
    teacher: Backbone,
    name: str,
    image_size: int,
    *,
    blocks: Sequence[int] = PAPER_BLOCKS,
    attention: bool,
    sharpness: float,
    seed: int,
) -> Student:
    """Make an untrained student for a teacher.

    Parameters
    ----------
    form : {"decoder", "encoder"}
        See `Student`.
    teacher : Backbone
        Made with `embedding=True` for a decoder.
    name, image_size
        As the teacher was made with.
    blocks : sequence of three ints, optional
        See `Decoder`.
    attention, sharpness
        See `LearnToWeight`.
    seed : int
        Of the random weights; torch's global generator is left as it was.

    Returns
    -------
    Student
    """
    with seeded(seed):
        net: nn.Module
        if form == "encoder":
            net = untrained_backbone(name, image_size)
        else:
            net = Decoder(teacher.channels, teacher.shapes, teacher.signed, blocks)
        return Student(form, net, LearnToWeight(teacher.channels[:3], attention, sharpness))
