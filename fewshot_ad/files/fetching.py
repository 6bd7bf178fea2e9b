"""Weights of timm's from the hub into a file: what is fetched because somebody asked for it, and checked."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..exceptions import OutputError, WeightsNotFoundError
from ..method.hub import OLDER, WEIGHTS_FORMAT, Probe, Source, locate, pretrained_config, quiet, whole_name
from ..method.packaged import PACKAGED
from .checkpoints import check_destination, save, write_atomically

_BLOCK = 1 << 20


class Fetched(NamedTuple):
    """What `fetch_weights` wrote.

    Attributes
    ----------
    file, note : Path
    backbone : str
        The network's name with the tag of its training.
    source : str
        Address that the weights are from.
    checked : str or None
        What the hub states of its file and was found true: its size, sha256 or git's sum. None if it states nothing.
    licence : str or None
        As timm states it.
    sha256 : str
        Of the file that was written.
    """

    file: Path
    note: Path
    backbone: str
    source: str
    checked: str | None
    licence: str | None
    sha256: str


def fetch_weights(name: str, folder: str | os.PathLike[str], *, force: bool = False, progress: bool = False) -> Fetched:
    """Fetch the weights of a network from the hub, check them, and write them for `weights=`.

    Parameters
    ----------
    name : str
        timm's name of a network, by preference with the tag of a training.
    folder : path
        Is made if need be. `NAME.safetensors` is written there, whole or not at all, and `NAME.txt`, which says what it
        is. The hub's client keeps its own copy in its cache.
    force : bool, default=False
        Whether to replace these files.
    progress : bool, default=False
        Whether to show a progress bar.

    Returns
    -------
    Fetched

    Raises
    ------
    WeightsNotFoundError
        Not a network of timm's that has weights; not in the hub's cache and no network connection, said within seconds;
        not what the hub says they are; or not all weights of this network.
    OutputError, DiskFullError
    """
    from huggingface_hub import constants

    if name in PACKAGED:
        raise WeightsNotFoundError(f"{name!r} comes with the package: there is nothing to fetch.")
    if name.startswith("hf-hub:"):
        raise _nothing_there(name)
    probe = Probe(constants.ENDPOINT)
    if not _may_be_cached(name) and (problem := probe.problem()) is not None:  # before timm, which takes seconds
        raise _unreachable(name, problem)
    config, source = _look_up(name)
    whole, target = whole_name(name, config), Path(folder)
    if not source.url.startswith(constants.ENDPOINT):
        probe = Probe(source.url)
    problem = probe.problem()
    if problem is not None and source.cached is None:
        raise _unreachable(name, problem)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file. Name a folder with --to.")
    target.mkdir(parents=True, exist_ok=True)
    file, note = target / f"{name}.safetensors", target / f"{name}.txt"
    for path in (file, note):
        check_destination(path, force=force)
    fetched, stated = _from_cache(source) if problem is not None else _fetch(whole, source, progress)
    checked = _check(fetched, stated)
    header = {
        "backbone": whole, "source": source.url, "sha256 of source": _digest(fetched, hashlib.sha256()),
        "licence": config.license,
    }  # fmt: skip
    save(file, _load(name, fetched), WEIGHTS_FORMAT, header)
    found = Fetched(file, note, whole, source.url, checked, config.license, _digest(file, hashlib.sha256()))
    write_atomically(note, _note(name, found, source).encode())
    return found


def _may_be_cached(name: str) -> bool:
    """Tell whether the caches hold something of a network, or of one that is called like it."""
    from huggingface_hub import constants

    network = glob.escape(name.partition(".")[0])
    folders = Path(constants.HF_HUB_CACHE).glob(f"models--*--{network}*")
    return any(folders) or any(Path(torch.hub.get_dir(), "checkpoints").glob("*"))


def _unreachable(name: str, problem: str) -> WeightsNotFoundError:
    return WeightsNotFoundError(
        f"The weights of {name} cannot be fetched here ({problem}). Run `fewshot-ad weights {name} --to DIR` on a "
        f"machine with network, copy DIR/{name}.safetensors here, and pass its path by weights=FILE."
    )


def _nothing_there(name: str) -> WeightsNotFoundError:
    return WeightsNotFoundError(
        f"timm has no weights of {name!r} to fetch. Pass a name from timm.list_pretrained(); of a repository "
        "(hf-hub:OWNER/NAME), copy the hub's cache instead (docs/offline.md)."
    )


def _look_up(name: str) -> tuple[Any, Source]:
    """Find where the hub has the weights of a network."""
    config = pretrained_config(name)
    source = locate(config)
    if source is None:
        raise _nothing_there(name)
    return config, source


class _Stated(NamedTuple):
    """What the hub states of a file: bytes, and a sum of 64 hexadecimal digits, or of 40 as git's, or its beginning."""

    size: int | None
    digest: str | None


def _fetch(whole: str, source: Source, progress: bool) -> tuple[Path, _Stated]:
    """Fetch a file from the hub, or find it in the cache."""
    import huggingface_hub as client
    from huggingface_hub import constants, errors
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    try:
        if not progress:
            disable_progress_bars()
        if source.repository == source.url:
            if source.cached is None:
                source.place.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(source.url, str(source.place), progress=progress)
            return _from_cache(source)
        for file in dict.fromkeys((source.file, OLDER)):
            try:
                with quiet():
                    said = client.get_hf_file_metadata(
                        client.hf_hub_url(source.repository, file, endpoint=constants.ENDPOINT)
                    )
                    # The newest: the cache finds that again without network. What came is checked by its sum.
                    newest, cache = constants.DEFAULT_REVISION, constants.HF_HUB_CACHE
                    fetched = client.hf_hub_download(source.repository, file, revision=newest, cache_dir=cache)
                return Path(fetched), _Stated(said.size, said.etag)
            except errors.LocalEntryNotFoundError:  # the network's fault
                raise
            except errors.EntryNotFoundError:
                continue
        problem = f"the repository has no {source.file}"
    except errors.GatedRepoError as error:
        raise WeightsNotFoundError(
            f"The weights of {whole} are for those who accept their terms. Accept them at "
            f"{constants.ENDPOINT}/{source.repository}, and set the environment variable HF_TOKEN to a token of yours."
        ) from error
    except Exception as error:  # the hub's client, its own client, and torch each raise their own
        problem = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        if not progress and not hidden:
            enable_progress_bars()
    raise WeightsNotFoundError(f"The weights of {whole} could not be fetched from {source.url} ({problem}).")


def _from_cache(source: Source) -> tuple[Path, _Stated]:
    """Return a file that is in the cache, and what its name there states of it."""
    path = source.cached or source.place
    blob = path.resolve()  # the hub's client calls a file by the hub's sum of it, timm one that is no repository's
    stated = blob.name if blob.parent.name == "blobs" else ""
    if found := re.search(r"-([0-9a-f]{8,})\.\w+$", source.url):
        stated = found[1]
    return path, _Stated(None, stated or None)


def _check(path: Path, stated: _Stated) -> str | None:
    """Compare a file with what the hub states of it, and return that in words."""
    size, parts = path.stat().st_size, []
    wrong = f"{path.resolve()} is not what the hub has: {{}}. Remove it, and run the command again."
    if stated.size is not None:
        if size != stated.size:
            raise WeightsNotFoundError(wrong.format(f"{size} bytes, not {stated.size}"))
        parts.append(f"{size} bytes")
    if stated.digest is not None and re.fullmatch(r"[0-9a-f]{8,64}", stated.digest):
        git = len(stated.digest) == 40
        found = _digest(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else hashlib.sha256())
        kind = "git's sum" if git else "sha256"
        if not found.startswith(stated.digest):
            raise WeightsNotFoundError(wrong.format(f"{kind} {found}, not {stated.digest}"))
        parts.append(f"{kind} {stated.digest}")
    return ", ".join(parts) or None


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def _load(name: str, path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a network from a file that must hold all of them, in timm's naming."""
    import timm

    try:
        with quiet():
            source: dict[str, Any] = {"file": str(path)}
            if path.suffix != ".safetensors":
                source = {"state_dict": timm.models.load_state_dict(str(path), weights_only=True)}
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={**source, "custom_load": False})
    except Exception as error:  # safetensors, torch and timm each raise their own
        raise WeightsNotFoundError(
            f"{path} does not hold the weights of {name} ({type(error).__name__}: {str(error)[:500]})."
        ) from error
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def _note(name: str, found: Fetched, source: Source) -> str:
    """Say what a file is, whose, and how to use it."""
    hub = found.source.partition("/resolve/")[0]
    return f"""\
{found.file.name}: weights of {found.backbone}
Source: {found.source}
Checked against the hub: {found.checked or "it states neither size nor sum"}
Licence, as timm states it: {found.licence or "none stated"}. What holds is said at {hub}
sha256 of {found.file.name}: {found.sha256}

In Python:        DualDistillationDetector({found.backbone!r}, weights="{found.file.name}")
Command line:     fewshot-ad fit normal/ -o model.fsad --backbone {found.backbone} --weights {found.file.name}
Without network:  copy {found.file.name} to the machine; nothing else is needed.
"""
