"""The patch tokens of a plain transformer, normalised by the network."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import FeatureGetterNet


class Tokens(FeatureGetterNet):  # type: ignore[misc]
    """Returns maps of the tokens of chosen blocks, each through the network's final norm.

    Class and register tokens are not part of the maps. The embedding is the class token after the last block, also
    normalised; for a network without class token, the mean of the last block's tokens.

    Parameters
    ----------
    model : torch.nn.Module
        A timm network with `forward_intermediates`.
    out_indices : sequence of int
        Blocks, counted from 0.
    **options
        Passed to timm's `FeatureGetterNet`.

    Attributes
    ----------
    channels : tuple of int
        Channels of each returned map.
    """

    def __init__(self, model: Any, out_indices: Any, **options: Any) -> None:
        super().__init__(model, out_indices, **{**options, "norm": True})
        self.channels: tuple[int, ...] = tuple(self.feature_info.channels())
        self._there: list[int] = list(self.out_indices)  # type: ignore[arg-type]
        self._blocks = tuple(self._there)
        self._embedding = False
        known = inspect.signature(model.forward_intermediates).parameters
        self._prefixed = bool(getattr(model, "num_prefix_tokens", 0)) and "return_prefix_tokens" in known
        self._has_class = self._prefixed and getattr(model, "cls_token", None) is not None

    def return_only(self, blocks: Sequence[int], embedding: bool) -> None:
        """Set the blocks whose maps are returned; `embedding` adds the last block's map and the embedding (C, 1, 1).

        Parameters
        ----------
        blocks : sequence of int
            A subset of `out_indices`, which must include the last block for an embedding.
        embedding : bool
        """
        self._blocks, self._embedding = tuple(blocks), embedding
        self.channels = self.channels[-1:] * (len(blocks) + 2 * embedding)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map normalised images (N, 3, H, W) to maps (N, C, h, w)."""
        prefix = {"return_prefix_tokens": True} if self._prefixed else {}
        model: Any = self.model
        outputs = model.forward_intermediates(
            x, indices=self._there, norm=True, output_fmt="NCHW", intermediates_only=True, **prefix
        )
        maps = [one[0] for one in outputs] if self._prefixed else list(outputs)
        by_block = dict(zip(self._there, maps, strict=True))
        returned = [by_block[block] for block in self._blocks]
        if self._embedding:
            pooled = outputs[-1][1][:, 0, :, None, None] if self._has_class else maps[-1].mean((2, 3), keepdim=True)
            returned += [maps[-1], pooled]
        return returned
