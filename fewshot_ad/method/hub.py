"""Weights from timm's hub: without a network, at once, where they are looked for and how to bring them there."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from ..exceptions import WeightsNotFoundError

# Seconds to wait for a connection; the hub's client by itself takes a minute to give up.
_PATIENCE = 3.0
# What timm takes where there is no safetensors file.
_OLDER = "pytorch_model.bin"


def cached_weights(name: str, config: Any) -> Path | None:
    """Find weights that cannot be fetched now.

    Parameters
    ----------
    name : str
        Of the backbone, for messages.
    config : timm.models.PretrainedCfg or None
        Where timm has its weights.

    Returns
    -------
    Path or None
        The file in the cache, where there is no network; None where timm is to look for itself.

    Raises
    ------
    WeightsNotFoundError
        There is no network, and they are not in the cache. Names repository, file, and where to put it.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if config is not None and config.hf_hub_id:
        repository = config.hf_hub_id.partition("@")[0]
        file = config.hf_hub_filename or "model.safetensors"
        names = [file] if config.hf_hub_filename else [file, _OLDER]
        looked_up = (try_to_load_from_cache(repository, each, cache_dir=constants.HF_HUB_CACHE) for each in names)
        cached = next((Path(found) for found in looked_up if isinstance(found, str)), None)
        folder = f"models--{repository.replace('/', '--')}"
        place = Path(constants.HF_HUB_CACHE, folder, "snapshots", "main", file)
        source = f"{constants.ENDPOINT}/{repository}/resolve/main/{file}"
    elif config is not None and config.url:
        repository = source = config.url
        file = os.path.basename(urlsplit(source).path)
        place = Path(torch.hub.get_dir(), "checkpoints", file)
        cached = place if place.is_file() else None
    else:
        return None
    if (problem := _why_unreachable(source)) is None:
        return None
    if cached is not None:
        return cached if cached.suffix == ".safetensors" else None
    raise WeightsNotFoundError(
        f"Backbone {name!r} has no weights here: {file} of {repository} is not in the hub's cache, and cannot be "
        f"fetched ({problem}). Bring {source} from a machine with network, and either put it at {place}, or pass its "
        "path by weights=FILE; so you may with another one, a safetensors file in timm's naming, or choose a backbone "
        "from timm.list_models(pretrained=True) whose weights are here."
    )


def _why_unreachable(source: str) -> str | None:
    """Try to connect to an address, or to the proxy before it; None if that can be done."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    proxies, parts = urllib.request.getproxies(), urlsplit(source)
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    said: list[str | None] = [f"no answer from {parts.hostname}"]

    def connect() -> None:
        try:
            port = parts.port or (80 if parts.scheme == "http" else 443)
            socket.create_connection((parts.hostname or "", port), _PATIENCE).close()
            said[0] = None
        except (OSError, ValueError) as error:
            said[0] = f"{parts.hostname}: {error}"

    # A thread, as looking for an address has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return said[0]
