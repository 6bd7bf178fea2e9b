"""The frozen teacher: any timm backbone with feature maps, and the normalisation that it was trained with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..data.geometry import Geometry, asked
from ..exceptions import OutOfMemoryError, WeightsNotFoundError
from ..runtime import Lock, is_out_of_memory, own_torch_state, seeded
from .hub import cached_weights, check_training, pretrained_config, quiet
from .layers import N_SCALES, USUAL_SIZE, Layers, choose, embedding_place, is_plain, usual_size

_INIT_SEED = 0x5EED_AD
# Prefix of networks that are described by their hub repository only.
_HUB = "hf-hub:"
_HOOKED = Lock()
_WAYS = (
    "Pass the path of a safetensors file in timm's naming for this network, or weights=None to use the backbone's own."
)
_ONE_SHAPE = "It accepts images of one shape only: pass aspect='square', or image_size=(H, W)."
_FILE = "Pass weights=FILE, a safetensors file in timm's naming for this network."


class Backbone(nn.Module):
    """A timm network that returns the maps of chosen stages.

    Parameters
    ----------
    model : torch.nn.Module
        timm network made with `features_only=True`, or `lcnet.LCNet`.
    mean, std : sequence of three floats
        Normalisation that the network was trained with, for images in [0, 1].
    layers : Layers
        Roles of its maps.

    Attributes
    ----------
    channels : tuple of int
        Channels of each returned map, shallow to deep.
    shapes : tuple of (int, int)
        Height and width of each returned map of a square image; set by `observe`.
    signed : tuple of bool
        Whether each returned map has negative values, that is, does not end in a ReLU.
    geometry : Geometry
        Size that images are resized to; set by `observe`.
    """

    mean: torch.Tensor
    std: torch.Tensor
    shapes: tuple[tuple[int, int], ...]
    signed: tuple[bool, ...]
    geometry: Geometry

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float], layers: Layers) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.channels = model.channels if hasattr(model, "channels") else tuple(model.feature_info.channels())
        # feature_info gives the layout of a transformer's maps; the getter wrapper has converted its own to NCHW.
        self.channels_last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
        self._has_hooks = any(getattr(model, name, None) is not None for name in ("hooks", "feature_hooks"))
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Map images (N, 3, H, W) in [0, 1] to feature maps (N, C_l, H_l, W_l)."""
        # timm's hooks store the maps of a pass in the network, so passes must not overlap.
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
    image_size: str | int | tuple[int, int],
    *,
    square: bool = True,
    weights: str | Path | None = None,
    embedding: bool = True,
    layers: str | Sequence[int] = "auto",
) -> Backbone:
    """Build a frozen teacher in eval mode.

    Pyramids return their stages at strides 4, 8 and 16 (paper, section 3) and, as embedding, the next deeper one.
    Networks without these strides return their last three stages before the embedding. Plain transformers, whose blocks
    share one stride, return the tokens of blocks in their upper half, and the class token (`tokens.Tokens`).

    Parameters
    ----------
    name : str
        timm name of a network that supports `features_only`.
    image_size : "auto", int or tuple of two ints
        See `Geometry`; "auto" is `layers.usual_size`.
    square : bool, default=True
        Whether images become squares unless `image_size` gives both sides; if False, the network must accept images of
        any proportions.
    weights : path, optional
        safetensors file in timm's naming. By default timm looks in the hub's cache, then in the hub.
    embedding : bool, optional
        Whether to return the input of a decoder student and the embedding too.
    layers : {"auto", "last"} or sequence of int, optional
        See `layers.choose`.

    Returns
    -------
    Backbone
        The teacher, on the CPU, in float32, with frozen parameters.

    Raises
    ------
    WeightsNotFoundError
        Unknown name; weights missing, unreadable, or of another network.
    ValueError
        The network does not accept images of this size or of any proportions, or it lacks the layers.
    OutOfMemoryError
    """
    from timm.data import resolve_model_data_config

    if name.startswith(_HUB):
        cached_weights(name, SimpleNamespace(hf_hub_id=name.removeprefix(_HUB), hf_hub_filename="config.json"))
    # The default size depends on the network, and some networks accept one size only.
    fixed = Geometry(USUAL_SIZE if isinstance(image_size, str) else image_size, square).fixed
    probe = _create(name, fixed)
    strides = _strides(probe)
    chosen, places = choose(name, layers, strides)
    geometry = Geometry(usual_size(strides) if isinstance(image_size, str) else image_size, square, strides[places[-1]])
    if fixed != geometry.fixed:
        fixed = geometry.fixed
        probe = _create(name, fixed)
    geometry.check(name, strictly=chosen.tokens)
    # Blocks that accept one shape accept any; large ones are slow.
    shape = geometry.usual if fixed is not None or not chosen.tokens else (2 * geometry.multiple,) * 2
    try:
        with torch.inference_mode():
            probe.eval()(torch.zeros(1, 3, *shape, dtype=torch.float32))
            if fixed is None:
                probe(torch.zeros(1, 3, shape[0], shape[1] + geometry.multiple, dtype=torch.float32))
    except (MemoryError, RuntimeError, AssertionError, ValueError) as error:
        if is_out_of_memory(error):
            raise no_memory(name, asked(fixed)) from error
        raise ValueError(
            f"{name!r} does not accept image_size={image_size}"
            + (f": {error}" if fixed is not None else f" with aspect='keep': {error}. {_ONE_SHAPE}")
        ) from error
    stored = _tensor_names(weights) if weights is not None else None
    if weights is not None:
        check_training(name, weights)
    file = weights if weights is not None else cached_weights(name, pretrained_config(name))
    source = {"file": str(Path(file).expanduser()), "custom_load": False} if file is not None else None
    model = _of_layers(name, fixed, places, strides, embedding, pretrained=True, pretrained_cfg_overlay=source)
    ways = _WAYS if weights is not None else _FILE
    missing = _missing(model, probe.state_dict(), stored)
    if missing:
        raise WeightsNotFoundError(
            f"{weights or name} does not hold all weights of {name!r}: {len(missing)} are missing, among them "
            f"{missing[0]!r}. {ways}"
        )
    config = resolve_model_data_config(model)
    backbone = Backbone(model, config["mean"], config["std"], chosen).eval().requires_grad_(False)
    if not all(torch.isfinite(m).all() for m in observe(backbone, geometry)):
        raise WeightsNotFoundError(f"{weights or name} holds weights that give features which are not finite. {ways}")
    return backbone


@torch.inference_mode()
def observe(backbone: Backbone, geometry: Geometry) -> list[torch.Tensor]:
    """Run a teacher on an image of noise, record the shapes and signs of its maps, and return them."""
    generator = torch.Generator().manual_seed(_INIT_SEED)
    noise = torch.rand(1, 3, *geometry.usual, dtype=torch.float32, generator=generator)
    maps: list[torch.Tensor] = backbone(noise)
    backbone.shapes = tuple((m.shape[2], m.shape[3]) for m in maps)
    backbone.signed = tuple(bool((m < 0).any()) for m in maps)
    backbone.geometry = geometry
    return maps


def untrained_backbone(name: str, teacher: Backbone) -> Backbone:
    """Build the layers that a student imitates with trainable weights, drawn from the enclosing `seeded`."""
    from timm.data import resolve_model_data_config

    shape, numbers = teacher.geometry.fixed, teacher.layers.numbers[-N_SCALES:]
    with seeded(None):
        strides = _strides(_create(name, shape))
        layers, places = choose(name, numbers, strides)
        model = _of_layers(name, shape, places, strides, False, seed=None)
        config = resolve_model_data_config(model)
        return Backbone(model, config["mean"], config["std"], layers)


def _strides(model: Any) -> list[int]:
    return [entry["reduction"] for entry in model.feature_info.info]


def _of_layers(
    name: str,
    shape: tuple[int, int] | None,
    places: tuple[int, ...],
    strides: Sequence[int],
    embedding: bool,
    **options: Any,
) -> Any:
    """Build a network that returns the chosen layers and, on request, its embedding."""
    deepest = embedding_place(places, strides) if embedding else None
    returned = tuple(sorted({*places} | ({deepest} if deepest is not None else set())))
    if not is_plain(strides):
        return _create(name, shape, out_indices=returned, **options)
    from .tokens import Tokens

    model = _create(name, shape, out_indices=returned, feature_cls=Tokens, **options)
    model.return_only(places, embedding)
    return model


def _create(name: str, shape: tuple[int, int] | None, *, seed: int | None = _INIT_SEED, **options: Any) -> Any:
    """Build a network for images of a shape; None is any shape, by a network that adapts to its input."""
    import timm

    cfg = pretrained_config(name)
    if cfg is not None and cfg.fixed_input_size:
        options |= {"dynamic_img_size": True} if shape is None else {"img_size": shape}
    request = asked(shape)
    try:
        with seeded(seed), quiet():
            return timm.create_model(name, features_only=True, **options)
    except Exception as error:  # timm, the hub client and torch each raise their own
        if is_out_of_memory(error):
            raise no_memory(name, request) from error
        options_text = (
            "weights=FILE, a safetensors file in timm's naming, or a name from timm.list_models(pretrained=True)"
        )
        if not timm.is_model(name):
            raise WeightsNotFoundError(
                f"Backbone {name!r} is not known to timm ({type(error).__name__}: {str(error)[:300]}). "
                "Pass a name from timm.list_models(), or import the module that registers it."
            ) from error
        overlay = options.get("pretrained_cfg_overlay")
        subject = f"{overlay['file']} for backbone {name!r}" if overlay else f"Backbone {name!r}"
        if not options.get("pretrained"):
            why = f": {error}." if shape is not None else f". {_ONE_SHAPE}"
            raise ValueError(f"Backbone {name!r} cannot be used with {request}{why}") from error
        elif overlay:
            problem = f"does not fit with {request}"
        else:
            problem = "has no weights here: they are not in the hub's cache and could not be downloaded"
        raise WeightsNotFoundError(
            f"{subject} {problem} ({type(error).__name__}: {str(error)[:300]}). Pass {options_text}, on a machine with "
            "network access or with the file in the hub's cache."
        ) from error


def no_memory(name: str, request: str) -> OutOfMemoryError:
    """Return the error for a teacher that does not fit into memory; `request` is from `geometry.asked`."""
    return OutOfMemoryError(
        f"Memory ran out while building {name!r} for {request}. Lower image_size, use a smaller backbone, "
        "or free memory."
    )


def _missing(model: nn.Module, initial: dict[str, torch.Tensor], stored: set[str] | None) -> list[str]:
    """List weights that still have their initial values and, if there is a file, are missing in it."""
    untouched = [
        key
        for key, value in model.state_dict().items()
        if value.is_floating_point() and torch.equal(value, initial.get(key, value.flatten()[0].expand_as(value)))
    ]
    if stored is None:  # vectors are initialised to ones or zeros, and training may not change them
        return [key for key in untouched if key in initial and initial[key].ndim >= 2]
    return [key for key in untouched if _flat(key) not in stored]


def _flat(key: str) -> str:
    # timm's feature wrappers put "model." before a name, or an underscore in place of its first dots.
    return key.removeprefix("model.").replace(".", "_")


def _tensor_names(weights: str | Path) -> set[str]:
    """Check that a weights file can be read, and list its tensors."""
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
