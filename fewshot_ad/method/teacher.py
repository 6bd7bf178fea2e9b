"""The frozen teacher: any timm backbone with named stages, and the mean and standard deviation it was trained with."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..data.geometry import Geometry, asked
from ..exceptions import OutOfMemoryError, WeightsNotFoundError
from ..runtime import Lock, is_out_of_memory, own_torch_state, seeded
from .hub import cached_weights

_PYRAMID_STRIDES = (4, 8, 16)
_INIT_SEED = 0x5EED_AD
# Begins the names of networks that only their repository describes.
_HUB = "hf-hub:"
_HOOKED = Lock()
_WAYS = (
    "Pass the path of a safetensors file in timm's naming for this very network, or weights=None to take the "
    "backbone's own."
)
_ONE_SHAPE = "It takes images of one shape only: pass aspect='square', or image_size=(H, W)."
_FILE = "Pass weights=FILE, a safetensors file in timm's naming for this very network."


class Backbone(nn.Module):
    """A timm network that returns the maps of chosen stages.

    Parameters
    ----------
    model : torch.nn.Module
        timm network made with `features_only=True`, or `lcnet.LCNet`.
    mean, std : sequence of three floats
        Normalisation that the network was trained with, for images in [0, 1].

    Attributes
    ----------
    channels : tuple of int
        Of each returned map, shallow to deep.
    shapes : tuple of (int, int)
        Height and width of each returned map of a square image; known once one has passed (`build_backbone` sees to
        that).
    signed : tuple of bool
        Whether each returned map has negative values, that is, does not end in a ReLU.
    geometry : Geometry
        What images are resized to; known likewise.
    """

    mean: torch.Tensor
    std: torch.Tensor
    shapes: tuple[tuple[int, int], ...]
    signed: tuple[bool, ...]
    geometry: Geometry

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.channels = model.channels if hasattr(model, "channels") else tuple(model.feature_info.channels())
        # feature_info says how a transformer lays out its maps; the getter wrapper has already turned its own to NCHW.
        self.channels_last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
        self._has_hooks = any(getattr(model, name, None) is not None for name in ("hooks", "feature_hooks"))
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Map images (N, 3, H, W) in [0, 1] to feature maps (N, C_l, H_l, W_l)."""
        # timm's hooks leave a pass's maps in the network, for whoever comes first.
        with _HOOKED if self._has_hooks else nullcontext():
            maps = self.model((images - self.mean) / self.std)
        return [m.permute(0, 3, 1, 2) if self.channels_last else m for m in maps]

    def fingerprint(self) -> str:
        """Hash the weights (sha256, hexadecimal): the same network has the same fingerprint on every machine."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@own_torch_state()
def build_backbone(
    name: str,
    image_size: int | tuple[int, int],
    *,
    square: bool = True,
    weights: str | Path | None = None,
    embedding: bool = True,
) -> Backbone:
    """Make a frozen teacher in eval mode.

    Pyramids give their stages at strides 4, 8 and 16 (paper, section 3) and, as embedding, the next deeper one.
    Networks that have no such strides give their last three stages before the embedding; plain transformers, whose
    blocks share one stride, blocks at a quarter, a half and three quarters of their depth, and the last as embedding.

    Parameters
    ----------
    name : str
        timm name of a network that `features_only` serves.
    image_size : int or tuple of two ints
        See `Geometry`.
    square : bool, default=True
        Whether images that `image_size` does not give both sides of become squares; otherwise the network has to take
        images of any proportions.
    weights : path, optional
        safetensors file in timm's naming. By default timm looks in the hub's cache, then in the hub.
    embedding : bool, optional
        Whether the last returned map is the embedding that a decoder student starts from.

    Returns
    -------
    Backbone
        On the CPU, float32, its parameters frozen.

    Raises
    ------
    WeightsNotFoundError
        Unknown name; weights missing, unreadable, or of another network.
    ValueError
        The network does not take images of this size, or not of any proportions.
    OutOfMemoryError
    """
    from timm.data import resolve_model_data_config

    if name.startswith(_HUB):
        cached_weights(name, SimpleNamespace(hf_hub_id=name.removeprefix(_HUB), hf_hub_filename="config.json"))
    fixed = Geometry(image_size, square).fixed
    probe = _create(name, fixed)
    strides = _strides(probe)
    chosen = _choose_stages(strides, embedding=False)
    geometry = Geometry(image_size, square, strides[chosen[-1]])
    geometry.check(name, strictly=len(set(strides)) == 1)
    shape = geometry.usual
    try:
        with torch.inference_mode():
            probe.eval()(torch.zeros(1, 3, *shape, dtype=torch.float32))
            if fixed is None:
                probe(torch.zeros(1, 3, shape[0], shape[1] + geometry.multiple, dtype=torch.float32))
    except (MemoryError, RuntimeError, AssertionError, ValueError) as error:
        if is_out_of_memory(error):
            raise no_memory(name, asked(fixed)) from error
        raise ValueError(
            f"{name!r} does not take image_size={image_size}"
            + (f": {error}" if fixed is not None else f" with aspect='keep': {error}. {_ONE_SHAPE}")
        ) from error
    indices = _choose_stages(strides, embedding)
    held = _tensor_names(weights) if weights is not None else None
    file = weights if weights is not None else cached_weights(name, _config(name))
    source = {"file": str(Path(file).expanduser()), "custom_load": False} if file is not None else None
    model = _create(name, fixed, pretrained=True, pretrained_cfg_overlay=source, out_indices=indices)
    ways = _WAYS if weights is not None else _FILE
    missing = _missing(model, probe.state_dict(), held)
    if missing:
        raise WeightsNotFoundError(
            f"{weights or name} does not hold all weights of {name!r}: {len(missing)} are missing, among them "
            f"{missing[0]!r}. {ways}"
        )
    config = resolve_model_data_config(model)
    backbone = Backbone(model, config["mean"], config["std"]).eval().requires_grad_(False)
    if not all(torch.isfinite(m).all() for m in observe(backbone, geometry)):
        raise WeightsNotFoundError(f"{weights or name} holds weights that make features which are not finite. {ways}")
    return backbone


@torch.inference_mode()
def observe(backbone: Backbone, geometry: Geometry) -> list[torch.Tensor]:
    """Let an image of noise through a teacher, note what its maps are like, and return them."""
    generator = torch.Generator().manual_seed(_INIT_SEED)
    noise = torch.rand(1, 3, *geometry.usual, dtype=torch.float32, generator=generator)
    maps: list[torch.Tensor] = backbone(noise)
    backbone.shapes = tuple((m.shape[2], m.shape[3]) for m in maps)
    backbone.signed = tuple(bool((m < 0).any()) for m in maps)
    backbone.geometry = geometry
    return maps


@torch.no_grad()
def fold_batch_norms(model: nn.Module, images: torch.Tensor) -> int:
    """Move every BatchNorm that only follows a convolution into that convolution, in place.

    What follows what is seen as the images pass, so it does not depend on how timm's networks are written. The outputs
    stay the same up to rounding.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode, returning a list of tensors.
    images : torch.Tensor
        (N, 3, H, W), of the model's device and dtype.

    Returns
    -------
    int
        How many were folded.
    """
    made: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}
    followed: dict[nn.Conv2d, list[nn.Module]] = {}

    def after_conv(conv: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)  # nosec B101
        made[id(output)] = (conv, output)  # held, so that its id is not given to another

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
    # A convolution whose output went elsewhere as well would show here.
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


def untrained_backbone(name: str, geometry: Geometry) -> Backbone:
    """Make the three stages of `build_backbone` with trainable weights, drawn as `seeded` around the call says."""
    from timm.data import resolve_model_data_config

    with seeded(None):
        indices = _choose_stages(_strides(_create(name, geometry.fixed)), embedding=False)
        model = _create(name, geometry.fixed, seed=None, out_indices=indices)
        config = resolve_model_data_config(model)
        return Backbone(model, config["mean"], config["std"])


def _strides(model: Any) -> list[int]:
    return [entry["reduction"] for entry in model.feature_info.info]


def _choose_stages(strides: Sequence[int], embedding: bool) -> tuple[int, ...]:
    last = len(strides) - 1
    if len(set(strides)) == 1 and last >= 3:
        chosen = tuple(round((last + 1) * quarter / 4) - 1 for quarter in (1, 2, 3))
        deeper = [last]
    else:
        chosen = tuple(strides.index(stride) for stride in _PYRAMID_STRIDES if stride in strides)
        if len(chosen) < 3:
            # Leave the deepest for the embedding where there is one to spare.
            chosen = tuple(range(len(strides)))[-4:][:3]
        deeper = [i for i in range(len(strides)) if i > chosen[-1]] or [chosen[-1]]
    return (*chosen, deeper[0]) if embedding and deeper[0] != chosen[-1] else chosen


def _create(name: str, shape: tuple[int, int] | None, *, seed: int | None = _INIT_SEED, **options: Any) -> Any:
    """Make a network for images of a shape, or of any: of the size that it was trained with, and pliant."""
    import timm

    cfg = _config(name)
    if cfg is not None and cfg.fixed_input_size:
        options |= {"dynamic_img_size": True} if shape is None else {"img_size": shape}
    said = asked(shape)
    try:
        with seeded(seed), _quiet():
            return timm.create_model(name, features_only=True, **options)
    except Exception as error:  # timm, the hub client and torch each raise their own
        if is_out_of_memory(error):
            raise no_memory(name, said) from error
        options_text = (
            "weights=FILE, a safetensors file in timm's naming, or a name from timm.list_models(pretrained=True)"
        )
        if not timm.is_model(name):
            raise WeightsNotFoundError(
                f"Backbone {name!r} is not a network that timm knows ({type(error).__name__}: {str(error)[:300]}). "
                "Pass a name from timm.list_models(), or import the module that registers it."
            ) from error
        overlay = options.get("pretrained_cfg_overlay")
        subject = f"{overlay['file']} for backbone {name!r}" if overlay else f"Backbone {name!r}"
        if not options.get("pretrained"):
            why = f": {error}." if shape is not None else f". {_ONE_SHAPE}"
            raise ValueError(f"Backbone {name!r} cannot be used with {said}{why}") from error
        elif overlay:
            problem = f"does not fit with {said}"
        else:
            problem = "has no weights here: they are not in the hub's cache and could not be fetched"
        raise WeightsNotFoundError(
            f"{subject} {problem} ({type(error).__name__}: {str(error)[:300]}). Pass {options_text}, on a machine with "
            "network or with the file in the hub's cache."
        ) from error


def _config(name: str) -> Any:
    """Look up what timm knows of a network's weights; None for a network that it does not know."""
    import timm

    if not timm.is_model(name):
        return None
    try:
        return timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        network, _, tag = name.partition(".")
        known = ", ".join(timm.list_pretrained(f"{network}.*")) or "none"
        raise WeightsNotFoundError(
            f"Backbone {name!r}: timm has no weights {tag!r} of {network!r}, but {known}. Pass one of these names."
        ) from error


def no_memory(name: str, said: str) -> OutOfMemoryError:
    """Say that a teacher does not fit into memory; `said` as of `geometry.asked`."""
    return OutOfMemoryError(
        f"Memory ran out in building {name!r} for {said}. Lower image_size, take a smaller backbone, or free memory."
    )


def _missing(model: nn.Module, initial: dict[str, torch.Tensor], held: set[str] | None) -> list[str]:
    """List the weights that are as the seed made them, and (where there is a file) whose names it does not hold."""
    untouched = [
        key
        for key, value in model.state_dict().items()
        if value.is_floating_point() and key in initial and torch.equal(value, initial[key])
    ]
    if held is None:  # vectors begin as ones or zeros, and may have stayed so in training
        return [key for key in untouched if initial[key].ndim >= 2]
    return [key for key in untouched if _flat(key) not in held]


def _flat(key: str) -> str:
    # timm's feature wrappers put "model." before a name, or an underscore in place of its first dots.
    return key.removeprefix("model.").replace(".", "_")


def _tensor_names(weights: str | Path) -> set[str]:
    """Check that a weights file can be read, and list what it holds."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsNotFoundError(f"The weights file {path} does not exist. {_WAYS}")
    if path.suffix != ".safetensors":
        raise WeightsNotFoundError(
            f"{path} is not a .safetensors file; pickled weights are not read, since they can run code. {_WAYS}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {_flat(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsNotFoundError(f"{path} is not a readable safetensors file ({error}). {_WAYS}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep timm from printing that a classifier's weights are left over, and the hub's client that it tries again."""
    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
