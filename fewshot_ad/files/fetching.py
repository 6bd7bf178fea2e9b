"""Download of timm weights from the hub to a file, with checks."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..exceptions import OutputError, WeightsNotFoundError
from ..method.hub import OLDER, WEIGHTS_FORMAT, Probe, Source, locate, pretrained_config, quiet, tagged_name
from ..method.packaged import PACKAGED
from .checkpoints import check_destination, save, write_atomically

_BLOCK = 1 << 20


class Fetched(NamedTuple):
    """Result of `fetch_weights`.

    Attributes
    ----------
    file, note : Path
        The weights, and a text file that describes them.
    backbone : str
        timm's name of the network, with the tag of its weights.
    source : str
        URL of the weights.
    checked : str or None
        Properties stated by the hub that were verified: size, and sha256 or git checksum. None if it states none.
    licence : str or None
        Licence according to timm.
    sha256 : str
        sha256 of the written file.
    """

    file: Path
    note: Path
    backbone: str
    source: str
    checked: str | None
    licence: str | None
    sha256: str


def fetch_weights(name: str, folder: str | os.PathLike[str], *, force: bool = False, progress: bool = False) -> Fetched:
    """Download the weights of a network from the hub, check them, and write a file for `weights=`.

    Parameters
    ----------
    name : str
        timm's name of a network, preferably with a tag.
    folder : path
        Folder to write to; it is created if needed. `NAME.safetensors` is written atomically, and `NAME.txt` describes
        it. The hub's client keeps a copy in its cache.
    force : bool, default=False
        Whether to replace existing files.
    progress : bool, default=False
        Whether to show a progress bar.

    Returns
    -------
    Fetched

    Raises
    ------
    WeightsNotFoundError
        timm has no weights of this name; they are not in the hub's cache and there is no network connection (raised
        within seconds); they differ from what the hub states; or some weights of the network are missing.
    OutputError, DiskFullError
        A file cannot be written.
    """
    from huggingface_hub import constants

    if name in PACKAGED:
        raise WeightsNotFoundError(f"{name!r} comes with the package: there is nothing to download.")
    if name.startswith("hf-hub:"):
        raise _no_weights(name)
    probe = Probe(constants.ENDPOINT)
    if not _may_be_cached(name) and (problem := probe.problem()) is not None:  # before timm, which takes seconds
        raise _unreachable(name, problem)
    config, source = _look_up(name)
    full_name, target = tagged_name(name, config), Path(folder)
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
    fetched, stated = _from_cache(source) if problem is not None else _fetch(full_name, source, progress)
    checked = _check(fetched, stated)
    header = {
        "backbone": full_name, "source": source.url, "sha256 of source": _digest(fetched, hashlib.sha256()),
        "licence": config.license,
    }  # fmt: skip
    save(file, _load(name, fetched), WEIGHTS_FORMAT, header)
    result = Fetched(file, note, full_name, source.url, checked, config.license, _digest(file, hashlib.sha256()))
    write_atomically(note, _note(result).encode())
    return result


def _may_be_cached(name: str) -> bool:
    """Return whether the caches may hold weights of a network, judging by names."""
    from huggingface_hub import constants

    network = glob.escape(name.partition(".")[0])
    folders = Path(constants.HF_HUB_CACHE).glob(f"models--*--{network}*")
    return any(folders) or any(Path(torch.hub.get_dir(), "checkpoints").glob("*"))


def _unreachable(name: str, problem: str) -> WeightsNotFoundError:
    return WeightsNotFoundError(
        f"The weights of {name} cannot be downloaded here ({problem}). Run `fewshot-ad weights {name} --to DIR` on a "
        f"machine with network access, copy DIR/{name}.safetensors here, and pass its path with weights=FILE."
    )


def _no_weights(name: str) -> WeightsNotFoundError:
    return WeightsNotFoundError(
        f"timm has no weights of {name!r}. Pass a name from timm.list_pretrained(); for a repository "
        "(hf-hub:OWNER/NAME), copy the hub's cache instead (docs/offline.md)."
    )


def _look_up(name: str) -> tuple[Any, Source]:
    """Return timm's configuration of the weights of a network, and their location in the hub."""
    config = pretrained_config(name)
    source = locate(config)
    if source is None:
        raise _no_weights(name)
    return config, source


class _Stated(NamedTuple):
    """What the hub states about a file: size in bytes, and sha256 (perhaps only its start) or git checksum, in hex."""

    size: int | None
    digest: str | None


def _fetch(full_name: str, source: Source, progress: bool) -> tuple[Path, _Stated]:
    """Download a file from the hub, or find it in the cache."""
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
                    metadata = client.get_hf_file_metadata(
                        client.hf_hub_url(source.repository, file, endpoint=constants.ENDPOINT)
                    )
                    # The newest revision, which the cache also finds offline. The checksum verifies the file.
                    newest, cache = constants.DEFAULT_REVISION, constants.HF_HUB_CACHE
                    fetched = client.hf_hub_download(source.repository, file, revision=newest, cache_dir=cache)
                return Path(fetched), _Stated(metadata.size, metadata.etag)
            except errors.LocalEntryNotFoundError:  # the connection failed
                raise
            except errors.EntryNotFoundError:
                continue
        problem = f"the repository has no {source.file}"
    except errors.GatedRepoError as error:
        raise WeightsNotFoundError(
            f"The weights of {full_name} are gated: their terms must be accepted. Accept them at "
            f"{constants.ENDPOINT}/{source.repository}, and set the environment variable HF_TOKEN to your access token."
        ) from error
    except Exception as error:  # the hub's client, its HTTP client and torch each raise their own errors
        problem = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        if not progress and not hidden:
            enable_progress_bars()
    raise WeightsNotFoundError(f"The weights of {full_name} could not be downloaded from {source.url} ({problem}).")


def _from_cache(source: Source) -> tuple[Path, _Stated]:
    """Return a file in the cache, and the checksum in its name."""
    path = source.cached or source.place
    blob = path.resolve()  # the hub's client names files by their checksum; so does timm outside of repositories
    stated = blob.name if blob.parent.name == "blobs" else ""
    if match := re.search(r"-([0-9a-f]{8,})\.\w+$", source.url):
        stated = match[1]
    return path, _Stated(None, stated or None)


def _check(path: Path, stated: _Stated) -> str | None:
    """Compare a file with what the hub states about it, and return the verified properties in words."""
    size, verified = path.stat().st_size, []
    message = f"{path.resolve()} differs from the file in the hub: {{}}. Remove it, and run the command again."
    if stated.size is not None:
        if size != stated.size:
            raise WeightsNotFoundError(message.format(f"{size} bytes, not {stated.size}"))
        verified.append(f"{size} bytes")
    if stated.digest is not None and re.fullmatch(r"[0-9a-f]{8,64}", stated.digest):
        git = len(stated.digest) == 40
        digest = _digest(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else hashlib.sha256())
        kind = "git checksum" if git else "sha256"
        if not digest.startswith(stated.digest):
            raise WeightsNotFoundError(message.format(f"{kind} {digest}, not {stated.digest}"))
        verified.append(f"{kind} {stated.digest}")
    return ", ".join(verified) or None


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def _load(name: str, path: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a network, in timm's naming, from a file that must hold all of them."""
    import timm

    try:
        with quiet():
            source: dict[str, Any] = {"file": str(path)}
            if path.suffix != ".safetensors":
                source = {"state_dict": timm.models.load_state_dict(str(path), weights_only=True)}
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={**source, "custom_load": False})
    except Exception as error:  # safetensors, torch and timm each raise their own errors
        raise WeightsNotFoundError(
            f"{path} does not hold the weights of {name} ({type(error).__name__}: {str(error)[:500]})."
        ) from error
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def _note(result: Fetched) -> str:
    """Describe the weights: source, licence, checksum, and how to use them."""
    page = result.source.partition("/resolve/")[0]
    return f"""\
{result.file.name}: weights of {result.backbone}
Source: {result.source}
Verified against the hub: {result.checked or "it states neither size nor checksum"}
Licence according to timm: {result.licence or "none stated"}. The binding terms are at {page}
sha256 of {result.file.name}: {result.sha256}

Python:        DualDistillationDetector({result.backbone!r}, weights="{result.file.name}")
Command line:  fewshot-ad fit normal/ -o model.fsad --backbone {result.backbone} --weights {result.file.name}
Offline:       copy {result.file.name} to the machine; nothing else is needed.
"""
