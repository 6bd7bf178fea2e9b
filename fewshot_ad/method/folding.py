"""BatchNorm layers folded into the convolutions before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def fold_batch_norms(model: nn.Module, images: torch.Tensor) -> int:
    """Move every BatchNorm that only follows a convolution into that convolution, in place.

    The order of layers is observed in a forward pass, so it does not depend on how timm's networks are written. The
    outputs stay the same up to rounding.

    Parameters
    ----------
    model : torch.nn.Module
        A network in eval mode that returns a list of tensors.
    images : torch.Tensor
        Images (N, 3, H, W), on the model's device and in its dtype.

    Returns
    -------
    int
        Number of folded layers.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return 0
    made: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}
    followed: dict[nn.Conv2d, list[nn.Module]] = {}

    def after_conv(conv: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)  # nosec B101
        made[id(output)] = (conv, output)  # kept alive, so that its id is not reused

    def before_norm(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            followed.setdefault(made[id(inputs[0])][0], []).append(norm)

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
    before = model(images)
    for handle in handles:
        handle.remove()

    kept = {conv: (conv.weight, conv.bias) for conv in followed}
    replaced: dict[str, nn.Module] = {}
    names = {module: name for name, module in model.named_modules()}
    for conv, norms in followed.items():
        if len(norms) > 1:
            continue
        norm: Any = norms[0]
        scale = norm.running_var.double().add(norm.eps).rsqrt()
        shift = -norm.running_mean.double() * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        if conv.bias is not None:
            shift = shift + conv.bias * scale
        conv.weight, conv.bias = (
            nn.Parameter(value.to(conv.weight.dtype), requires_grad=False)
            for value in (conv.weight * scale.view(-1, 1, 1, 1), shift)
        )
        replaced[names[norm]] = norm
        # timm's BatchNormAct2d holds the activation too.
        model.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
    # Detects a convolution whose output is also used elsewhere.
    if not all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.std().nan_to_num()))
        for a, b in zip(model(images), before, strict=True)
    ):
        for conv, (weight, bias) in kept.items():
            conv.weight, conv.bias = weight, bias
        for name, norm in replaced.items():
            model.set_submodule(name, norm)
        return 0
    return len(replaced)
