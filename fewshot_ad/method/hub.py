"""Weights from timm's hub; without a network connection, an immediate error that explains where to put them."""

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

# Seconds to wait for a connection; the hub's client itself gives up after a minute.
_PATIENCE = 2.5
# The file that timm uses if there is no safetensors file.
OLDER = "pytorch_model.bin"
# Format of the files that `fewshot-ad weights` writes; their header names the training.
WEIGHTS_FORMAT = "fewshot_ad weights 1"


class Source(NamedTuple):
    """Location of weights in the hub and on this machine.

    Attributes
    ----------
    repository, file : str
        Repository and file in the hub; for weights outside a repository, their URL and the file's name.
    url : str
    place : Path
        Where timm looks for the file on this machine.
    cached : Path or None
        The file, or an older one that timm uses instead; None if neither exists.
    """

    repository: str
    file: str
    url: str
    place: Path
    cached: Path | None


def pretrained_config(name: str) -> Any:
    """Return timm's configuration of a network's weights; None for an unknown network.

    Raises
    ------
    WeightsNotFoundError
        timm has no weights with this tag.
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
            f"Backbone {name!r}: timm has no weights {tag!r} of {network!r}, only {known}. Pass one of these names."
        ) from error


def tagged_name(name: str, config: Any) -> str:
    """Return a network's name with the tag of its weights, if any; by default timm's first tag."""
    network, tag = name.partition(".")[0], getattr(config, "tag", None)
    return f"{network}.{tag}" if tag else network


def check_training(name: str, weights: str | os.PathLike[str]) -> None:
    """Check that a file of `fewshot-ad weights` holds the weights, by network and tag, that a backbone's name denotes.

    Other files do not state their tag, and pass.

    Raises
    ------
    WeightsNotFoundError
        They differ; the message gives both names.
    """
    with safe_open(Path(weights).expanduser(), framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != WEIGHTS_FORMAT:
        return
    try:
        stored = str(json.loads(metadata["header"])["backbone"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsNotFoundError(f"{weights} is damaged: its header does not name the network.") from error
    asked = tagged_name(name, pretrained_config(name))
    if stored != asked:
        default = f", the default of {name!r}" if name != asked else ""
        what = "network" if stored.partition(".")[0] != asked.partition(".")[0] else "training"
        raise WeightsNotFoundError(
            f"{weights} holds weights of another {what} than the backbone's: {stored!r}, not {asked!r}{default}. Name "
            f"{stored!r} as the backbone, or use the weights of {asked!r}."
        )


def locate(config: Any) -> Source | None:
    """Return where timm has weights; None if it has none.

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
        cached = next((Path(entry) for entry in looked_up if isinstance(entry, str)), None)
        folder = f"models--{repository.replace('/', '--')}"
        place = Path(constants.HF_HUB_CACHE, folder, "snapshots", "main", file)
        return Source(repository, file, f"{constants.ENDPOINT}/{repository}/resolve/main/{file}", place, cached)
    if config is not None and config.url:
        file = os.path.basename(urlsplit(config.url).path)
        place = Path(torch.hub.get_dir(), "checkpoints", file)
        return Source(config.url, file, config.url, place, place if place.is_file() else None)
    return None


def cached_weights(name: str, config: Any) -> Path | None:
    """Find cached weights if there is no network connection.

    Parameters
    ----------
    name : str
        Name of the backbone, for messages.
    config : timm.models.PretrainedCfg or None
        timm's configuration of the weights.

    Returns
    -------
    Path or None
        The cached file, if there is no network connection; None if timm can find the weights itself.

    Raises
    ------
    WeightsNotFoundError
        There is no network connection, and the cache lacks them; the message gives repository, file and destination.
    """
    source = locate(config)
    if source is None or (problem := Probe(source.url).problem()) is None:
        return None
    if source.cached is not None:
        return source.cached if source.cached.suffix == ".safetensors" else None
    command = "" if name.startswith("hf-hub:") else f" (`fewshot-ad weights {name} --to DIR` does this)"
    raise WeightsNotFoundError(
        f"Backbone {name!r} has no weights here: {source.file} of {source.repository} is not in the hub's cache, and "
        f"cannot be downloaded ({problem}). Download {source.url} on a machine with network access{command}, and put "
        f"it at {source.place}, or pass its path with weights=FILE. Any other safetensors file in timm's naming works "
        "too; or choose a backbone from timm.list_models(pretrained=True) whose weights are in the cache."
    )


class Probe:
    """An attempt in the background to connect to an address, or to its proxy.

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
        self._problem: str | None = f"no answer from {parts.hostname}"
        self._parts, self._end = parts, time.monotonic() + _PATIENCE
        self._thread: threading.Thread | None = None
        if constants.HF_HUB_OFFLINE:
            self._problem = "HF_HUB_OFFLINE is set"
        else:
            # A thread, because name resolution has no time limit.
            self._thread = threading.Thread(target=self._connect, daemon=True)
            self._thread.start()

    def _connect(self) -> None:
        parts = self._parts
        try:
            port = parts.port or (80 if parts.scheme == "http" else 443)
            socket.create_connection((parts.hostname or "", port), _PATIENCE).close()
            self._problem = None
        except (OSError, ValueError) as error:
            self._problem = f"{parts.hostname}: {error}"

    def problem(self) -> str | None:
        """Return why the connection failed, or None; waits until 2.5 seconds after the start at most."""
        if self._thread is not None:
            self._thread.join(max(0.0, self._end - time.monotonic()))
        return self._problem


@contextmanager
def quiet() -> Iterator[None]:
    """Silence timm's messages about unused classifier weights, and those of the hub's client about retries."""
    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
