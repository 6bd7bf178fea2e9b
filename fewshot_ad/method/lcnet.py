"""PP-LCNet, the packaged teacher's architecture: bit-identical to timm's `lcnet_100`, without importing timm."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..data.geometry import Geometry, asked
from ..runtime import is_out_of_memory
from .layers import choose, embedding_place, usual_size
from .teacher import Backbone, no_memory, observe

# Normalisation of `lcnet_100` in timm.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STEM = 16
# For each stage: channels, kernel of each block, stride of the first block, and whether it has squeeze-and-excite.
_STAGES = (
    (32, (3,), 1, False),
    (64, (3, 3), 2, False),
    (128, (3, 3), 2, False),
    (256, (3, 5), 2, False),
    (256, (5, 5, 5, 5), 1, False),
    (512, (5, 5), 2, True),
)
# The last stages of each stride, and these strides.
_ENDS, _STRIDES = (0, 1, 2, 4, 5), (2, 4, 8, 16, 32)


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels // 4, 1)
        self.conv_expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = self.conv_reduce(x.mean((2, 3), keepdim=True)).relu_()
        return x * nn.functional.hardsigmoid(self.conv_expand(squeezed))


class _Block(nn.Module):
    """A depthwise convolution and a pointwise one."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, excite: bool) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(n_in, n_in, kernel, stride, kernel // 2, groups=n_in, bias=False)
        self.bn1 = nn.BatchNorm2d(n_in)
        self.se = _SqueezeExcite(n_in) if excite else nn.Identity()
        self.conv_pw = nn.Conv2d(n_in, n_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.act = nn.Hardswish(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.se(self.act(self.bn1(self.conv_dw(x))))
        return self.act(self.bn2(self.conv_pw(x)))


class LCNet(nn.Module):
    """The network without its classifier; attributes have timm's names, to match its files.

    Parameters
    ----------
    returned : collection of int
        Stages whose maps are returned. Later stages exist for their weights, but are not computed.

    Attributes
    ----------
    channels : tuple of int
        Channels of each returned map, shallow to deep.
    """

    def __init__(self, returned: Collection[int]) -> None:
        super().__init__()
        self.channels = tuple(_STAGES[i][0] for i in sorted(returned))
        self._returned = frozenset(returned)
        self.conv_stem = nn.Conv2d(3, _STEM, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.act1 = nn.Hardswish(inplace=True)
        self.blocks = nn.ModuleList()
        n_in = _STEM
        for n_out, kernels, stride, excite in _STAGES:
            stage = nn.Sequential()
            for i, kernel in enumerate(kernels):
                stage.append(_Block(n_in, n_out, kernel, 1 if i else stride, excite))
                n_in = n_out
            self.blocks.append(stage)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map normalised images (N, 3, H, W) to maps (N, C_l, H_l, W_l)."""
        x = self.act1(self.bn1(self.conv_stem(x)))
        maps = []
        for i, stage in enumerate(self.blocks[: max(self._returned) + 1]):
            x = stage(x)
            if i in self._returned:
                maps.append(x)
        return maps


def build_lcnet(
    name: str,
    image_size: str | int | tuple[int, int],
    *,
    square: bool = True,
    weights: Path,
    embedding: bool,
    layers: str | Sequence[int] = "auto",
) -> Backbone:
    """Build the same frozen teacher as `teacher.build_backbone` does from a complete file of `lcnet_100`.

    Parameters
    ----------
    name : str
        Name for messages.
    image_size, square, layers
        See `teacher.build_backbone`.
    weights : Path
        safetensors file in timm's naming.
    embedding : bool
        Whether to return the embedding, the input of a decoder student, as the last map.

    Returns
    -------
    Backbone
        The teacher, on the CPU, in float32, with frozen parameters.

    Raises
    ------
    ValueError
        The given sides are not multiples of 16, or the layers do not exist.
    OutOfMemoryError
    """
    chosen, places = choose(name, layers, _STRIDES)
    deepest = embedding_place(places, _STRIDES) if embedding else None
    returned = [_ENDS[place] for place in (*places, *(() if deepest is None else (deepest,)))]
    size = usual_size(_STRIDES) if isinstance(image_size, str) else image_size
    geometry = Geometry(size, square, _STRIDES[places[-1]])
    geometry.check(name, strictly=False)
    try:
        with torch.device("meta"):  # draws no weights, and so leaves the generator as it is
            model = LCNet(returned)
        state = load_file(weights)
        model.load_state_dict(
            {
                key: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
                for key, value in state.items()
            },
            assign=True,
        )
        backbone = Backbone(model, _MEAN, _STD, chosen).eval().requires_grad_(False)
        observe(backbone, geometry)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise no_memory(name, asked(geometry.fixed)) from error
        raise
    return backbone
