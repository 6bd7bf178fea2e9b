"""A Ray cluster (extra `ray`): the connection to it, and what its processes begin with."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch

from .exceptions import MissingExtraError


def connect(address: str | None = None) -> Any:
    """Connect to a Ray cluster, unless this process is connected already.

    Parameters
    ----------
    address : str, optional
        Of a running cluster ("auto" is one on this machine). By default that in the environment variable RAY_ADDRESS,
        else a cluster of this machine's processors is started.

    Returns
    -------
    module
        `ray`.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
        import ray.train.torch
    except ImportError as error:
        raise MissingExtraError(
            f'Ray is not installed, or not all of it ({error}). Install the extra: pip install "fewshot-ad[ray]"'
        ) from error
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, ignore_reinit_error=True)
    return ray


def settle(num_cpus: int, cwd: str) -> None:
    """Make a worker's process what the caller's is, as far as that goes."""
    torch.set_num_threads(num_cpus)
    with contextlib.suppress(OSError):  # another machine may not have that folder; absolute paths are still good
        os.chdir(cwd)
