"""The two distillation losses (equations in `docs/method.md`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_TINY = 1e-16  # vectors of zeros have distance 1 to everything


def cosine_distance(a: torch.Tensor, b: torch.Tensor, form: str = "position") -> torch.Tensor:
    """Compute 1 - cosine of two feature maps.

    Parameters
    ----------
    a, b : torch.Tensor
        (N, C, H, W).
    form : {"position", "flattened"}
        Over the channels at each position, or over the whole map.

    Returns
    -------
    torch.Tensor
        In [0, 2]; (N, H, W) for "position", (N,) for "flattened".
    """
    if form == "flattened":
        a, b = a.flatten(1), b.flatten(1)
    # Sums of products: torch's cosine_similarity takes two to five times as long if the axis is not the last.
    of_a, of_b = (a * a).sum(1), (b * b).sum(1)
    product = (a * b).sum(1)
    if torch.compiler.is_compiling():  # a graph has no branches, and needs no gradients
        by_a, by_b = (squares.clamp_min(torch.finfo(squares.dtype).tiny).rsqrt() for squares in (of_a, of_b))
        return 1 - product * by_a * by_b
    norms = of_a * of_b
    distance = 1 - product * norms.clamp_min(_TINY).rsqrt()
    product, norms, of_a, of_b = product.detach(), norms.detach(), of_a.detach(), of_b.detach()
    if not norms.numel() or (norms.min() >= _TINY and norms.max() < torch.inf):
        return distance
    # Very short and very long vectors, whose product of norms leaves the range of float32, are rescaled first. Their
    # gradient stays that of the line above, which is bounded; that of an angle is not as a vector shrinks.
    extreme = ((norms < _TINY) | (norms == torch.inf)) & (of_a > 0) & (of_b > 0)
    by_a, by_b = (squares.clamp_min(torch.finfo(squares.dtype).tiny).rsqrt() for squares in (of_a, of_b))
    angle = product * by_a * by_b * ((of_a * by_a * by_a) * (of_b * by_b * by_b)).rsqrt()
    return distance + torch.where(extreme, 1 - angle - distance.detach(), 0.0)


def distillation_loss(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], form: str) -> torch.Tensor:
    """Sum over scales of the mean cosine distance.

    With (teacher, student) of the queries it is TSD, with (student, weighted support) it is SSD.

    Parameters
    ----------
    a, b : list of (N, C_l, H_l, W_l)
        Feature maps of each scale.
    form : {"position", "flattened"}
        See `cosine_distance`.

    Returns
    -------
    torch.Tensor
        Scalar in [0, 2 L].
    """
    return torch.stack([cosine_distance(x, y, form).mean() for x, y in zip(a, b, strict=True)]).sum()


def dual_loss(ssd: torch.Tensor, tsd: torch.Tensor, lam: float) -> torch.Tensor:
    """Combine SSD + lam * TSD; `lam=inf` is TSD alone."""
    return tsd if lam == float("inf") else ssd + lam * tsd
