"""Learn-to-weight (L2W): how much each support image counts for each query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class LearnToWeight(nn.Module):
    """One weight for each query, support image and scale (paper, section 3; equations in `docs/method.md`).

    `w_lk = softmax_k(sharpness * <vec g_l(x), vec phi_l(g_l(s_k))> / sqrt(C_l))`, with a 1x1 convolution `phi_l` for
    each scale; the reference is `r_l = sum_k w_lk g_l(s_k)`.

    Parameters
    ----------
    channels : sequence of int
        C_l of each scale.
    attention : bool, optional
        False gives every support image the weight 1/K.
    sharpness : float, optional
        Factor on the logits; 1 is the published setting.

    Notes
    -----
    Runs outside autocast, in at least float32: inner products of whole maps exceed the range of float16.
    """

    def __init__(self, channels: Sequence[int], attention: bool = True, sharpness: float = 1.0) -> None:
        super().__init__()
        self.attention = attention
        self.sharpness = float(sharpness)
        self.phi = nn.ModuleList(nn.Conv2d(c, c, 1) for c in channels) if attention else nn.ModuleList()

    def keys(self, support: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute `phi_l(g_l(s_k))`, the part that does not depend on the query: a list of (K, C_l, H_l, W_l)."""
        return [phi(g) for phi, g in zip(self.phi, support, strict=True)] if self.attention else list(support)

    def forward(
        self,
        query: Sequence[torch.Tensor],
        support: Sequence[torch.Tensor],
        keys: Sequence[torch.Tensor] | None = None,
        exclude: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Weigh the support for each query.

        Parameters
        ----------
        query : list of (N, C_l, H_l, W_l)
            Student's maps of the queries.
        support : list of (K, C_l, H_l, W_l)
            Student's maps of the support.
        keys : list of (K, C_l, H_l, W_l), optional
            `self.keys(support)`, if already computed.
        exclude : torch.Tensor of bool, (N, K), optional
            Support images to leave out for a query.

        Returns
        -------
        references : list of (N, C_l, H_l, W_l)
        weights : torch.Tensor, (N, L, K)
            Each row over K sums to 1.
        """
        keys = self.keys(support) if keys is None else keys
        references, weights = [], []
        for g, s, key in zip(query, support, keys, strict=True):
            if self.attention:
                logits = g.flatten(1) @ key.flatten(1).T * (self.sharpness / g.shape[1] ** 0.5)
            else:
                logits = g.new_zeros(g.shape[0], len(s))
            if exclude is not None:
                logits = logits.masked_fill(exclude, -torch.inf)
            w = logits.softmax(1)
            references.append((w @ s.flatten(1)).unflatten(1, s.shape[1:]))
            weights.append(w)
        return references, torch.stack(weights, 1)
