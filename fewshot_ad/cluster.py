"""Ray cluster (extra `ray`): connection, and set-up of its processes."""

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
        Address of a running cluster ("auto" finds one on this machine). The default is the environment variable
        RAY_ADDRESS; without it, a cluster of this machine's processors is started.

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
            f'Ray is not installed, or not completely ({error}). Install the extra: pip install "fewshot-ad[ray]"'
        ) from error
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, ignore_reinit_error=True)
    return ray


def settle(num_cpus: int, cwd: str) -> None:
    """Set the number of threads and the working directory of a worker process."""
    torch.set_num_threads(num_cpus)
    with contextlib.suppress(OSError):  # the folder may not exist on another machine; absolute paths still work
        os.chdir(cwd)
