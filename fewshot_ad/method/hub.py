"""Weights from timm's hub: without a network, at once, where they are looked for and how to bring them there."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from safetensors import safe_open

from ..exceptions import WeightsNotFoundError

# Seconds to wait for a connection; the hub's client by itself takes a minute to give up.
_PATIENCE = 2.5
# What timm takes where there is no safetensors file.
OLDER = "pytorch_model.bin"
# Of the files that `fewshot-ad weights` writes; their header names the training.
WEIGHTS_FORMAT = "fewshot_ad weights 1"


class Source(NamedTuple):
    """Where the hub has weights, and where they lie on this machine.

    Attributes
    ----------
    repository, file : str
        Of the hub; for weights that are no repository's, their address and the file's name.
    url : str
    place : Path
        Where timm looks for the file on this machine.
    cached : Path or None
        The file, or an older one that timm takes in its place, where it is there.
    """

    repository: str
    file: str
    url: str
    place: Path
    cached: Path | None


def pretrained_config(name: str) -> Any:
    """Look up what timm knows of a network's weights; None for a network that it does not know.

    Raises
    ------
    WeightsNotFoundError
        The network has no training of this tag.
    """
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


def whole_name(name: str, config: Any) -> str:
    """Return a network's name with the tag of its training, where there is one: timm's first where none is named."""
    network, tag = name.partition(".")[0], getattr(config, "tag", None)
    return f"{network}.{tag}" if tag else network


def check_training(name: str, weights: str | os.PathLike[str]) -> None:
    """Check that a file of `fewshot-ad weights` holds the training that a backbone's name asks for.

    Other files do not say which training they hold, and pass.

    Raises
    ------
    WeightsNotFoundError
        Names both.
    """
    with safe_open(Path(weights).expanduser(), framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != WEIGHTS_FORMAT:
        return
    try:
        found = str(json.loads(metadata["header"])["backbone"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsNotFoundError(f"{weights} is damaged: its header does not say whose weights it holds.") from error
    asked = whole_name(name, pretrained_config(name))
    if found != asked:
        default = f", which {name!r} stands for" if name != asked else ""
        what = "network" if found.partition(".")[0] != asked.partition(".")[0] else "training"
        raise WeightsNotFoundError(
            f"{weights} holds weights of another {what} than the backbone's: {found!r}, not {asked!r}{default}. Name "
            f"{found!r} as the backbone, or take the weights of {asked!r}."
        )


def locate(config: Any) -> Source | None:
    """Say where timm has weights; None where it has none.

    Parameters
    ----------
    config : timm.models.PretrainedCfg or None
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if config is not None and config.hf_hub_id:
        repository = config.hf_hub_id.partition("@")[0]
        file = config.hf_hub_filename or "model.safetensors"
        names = [file] if config.hf_hub_filename else [file, OLDER]
        looked_up = (try_to_load_from_cache(repository, each, cache_dir=constants.HF_HUB_CACHE) for each in names)
        cached = next((Path(found) for found in looked_up if isinstance(found, str)), None)
        folder = f"models--{repository.replace('/', '--')}"
        place = Path(constants.HF_HUB_CACHE, folder, "snapshots", "main", file)
        return Source(repository, file, f"{constants.ENDPOINT}/{repository}/resolve/main/{file}", place, cached)
    if config is not None and config.url:
        file = os.path.basename(urlsplit(config.url).path)
        place = Path(torch.hub.get_dir(), "checkpoints", file)
        return Source(config.url, file, config.url, place, place if place.is_file() else None)
    return None


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
    source = locate(config)
    if source is None or (problem := Probe(source.url).problem()) is None:
        return None
    if source.cached is not None:
        return source.cached if source.cached.suffix == ".safetensors" else None
    command = "" if name.startswith("hf-hub:") else f" (`fewshot-ad weights {name} --to DIR` fetches it there)"
    raise WeightsNotFoundError(
        f"Backbone {name!r} has no weights here: {source.file} of {source.repository} is not in the hub's cache, and "
        f"cannot be fetched ({problem}). Bring {source.url} from a machine with network{command}, and either put it at "
        f"{source.place}, or pass its path by weights=FILE; so you may with another one, a safetensors file in timm's "
        "naming, or choose a backbone from timm.list_models(pretrained=True) whose weights are here."
    )


class Probe:
    """A try to connect to an address, or to the proxy before it, while others work.

    Parameters
    ----------
    url : str
    """

    def __init__(self, url: str) -> None:
        from huggingface_hub import constants

        proxies, parts = urllib.request.getproxies(), urlsplit(url)
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
            parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        self._said: str | None = f"no answer from {parts.hostname}"
        self._parts, self._end = parts, time.monotonic() + _PATIENCE
        self._thread: threading.Thread | None = None
        if constants.HF_HUB_OFFLINE:
            self._said = "HF_HUB_OFFLINE is set"
        else:
            # A thread, as looking for an address has no time limit of its own.
            self._thread = threading.Thread(target=self._connect, daemon=True)
            self._thread.start()

    def _connect(self) -> None:
        parts = self._parts
        try:
            port = parts.port or (80 if parts.scheme == "http" else 443)
            socket.create_connection((parts.hostname or "", port), _PATIENCE).close()
            self._said = None
        except (OSError, ValueError) as error:
            self._said = f"{parts.hostname}: {error}"

    def problem(self) -> str | None:
        """Say what hinders; None if a connection was made. Waits for 2.5 seconds from the start at most."""
        if self._thread is not None:
            self._thread.join(max(0.0, self._end - time.monotonic()))
        return self._said


@contextmanager
def quiet() -> Iterator[None]:
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
