"""The same work on a Ray cluster (extra `ray`): scoring any number of files, and the workers of a pretraining."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .data.formats import Frame
from .data.listing import list_images, say_left_out
from .exceptions import FewShotADError, ImageError, ImageSkippedWarning, MissingExtraError, TrainingError
from .explanation import hot_spots
from .training.loop import Workers

# Restarts of a pretraining's workers, each from the last checkpoint.
_MAX_FAILURES = 3
# Seconds that workers wait for each other; while features are computed the last one may be long in coming.
_PATIENCE = 24 * 3600


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


def score(
    detector: Any,
    source: Any,
    *,
    num_actors: int | None = None,
    num_cpus: int = 1,
    batch_size: int = 64,
    maps: bool = False,
    out: str | os.PathLike[str] | None = None,
    address: str | None = None,
) -> Any:
    """Score image files on a Ray cluster, a fitted detector in each of several actors.

    An actor that dies is started again (by Ray Data), and what it was at is scored anew: each file has one row. A file
    that cannot be read costs nothing but its own row's score.

    Parameters
    ----------
    detector : DualDistillationDetector
        Fitted. It travels without its teacher: `weights`, where given, must be a file that all machines reach.
    source : path, sequence of paths, or ray.data.Dataset
        A folder, whose sub-folders are looked into as well; files, or frames of them (`images.frames`); or a dataset
        with a column "path".
    num_actors : int, optional
        By default one for each GPU of the cluster (unless the detector's `device` is the CPU), else for each
        `num_cpus` of its processors.
    num_cpus : int, optional
        Of each actor; it computes with as many threads.
    batch_size : int, optional
        Files that an actor is handed at a time. Scores do not depend on it.
    maps : bool, optional
        Whether to return the anomaly maps too.
    out : path, optional
        Folder to write, of Parquet files. It is there whole, or not at all. All machines must reach it.
    address : str, optional
        See `connect`.

    Returns
    -------
    ray.data.Dataset
        Computed already, or read from `out`. A row for each file, in the order of their paths: "path"; "score", as from
        `score_samples`, NaN for an unreadable file; "label", +1 for normal and -1 for anomalous files, null for
        unreadable ones; "hot_spot", row and column of the map's hottest pixel, or null; "error", null or why the file
        could not be read; and with `maps` "map", (image_size, image_size) float32, high = anomalous. On the CPU the
        numbers are, bit for bit, those of the detector itself with as many threads.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    ImageError
        `source` holds no files.
    ValueError
        `out` exists already.
    """
    check_is_fitted(detector)
    if out is not None and Path(out).exists():
        raise ValueError(f"out={str(out)!r} exists already. Remove it, or pass another name.")
    ray = connect(address)
    cluster = ray.cluster_resources()
    on_gpu = cluster.get("GPU", 0) >= 1 and str(detector.device) != "cpu"
    if num_actors is None:
        num_actors = max(1, int(cluster["GPU"] if on_gpu else cluster.get("CPU", 1) // num_cpus))
    # Ray shows an actor no GPU but its own.
    sent = copy.copy(detector).set_params(verbose=0, **({"device": "auto"} if on_gpu else {}))
    paths, batch_size = _paths(source, batch_size, num_actors)
    paths.context.execution_options.preserve_order = True
    scored = paths.map_batches(
        _Actor,
        fn_constructor_kwargs={"detector": [ray.put(sent)], "maps": maps, "num_cpus": num_cpus, "cwd": os.getcwd()},
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=num_cpus,
        num_gpus=1 if on_gpu else 0,
        udf_modifying_row_count=False,
    )
    if out is None:
        return scored.materialize()
    _write(scored, Path(out).absolute())
    written = ray.data.read_parquet(str(Path(out).absolute()))
    written.context.execution_options.preserve_order = True
    return written


def _paths(source: Any, batch_size: int, num_actors: int) -> tuple[Any, int]:
    """Make a dataset of sorted paths, with a block for each batch, and say how large these are.

    It is computed before the actors take all processors.
    """
    import pyarrow
    from ray.data import Dataset, from_arrow

    if isinstance(source, Dataset):
        if "path" not in (source.columns() or ()):
            raise ImageError(f"The dataset has the columns {source.columns()}; paths are expected in 'path'.")
        ordered = source.select_columns(["path"]).sort("path").materialize()
        n = ordered.count()
        size = max(1, min(batch_size, -(-n // num_actors)))
        return ordered.repartition(max(1, -(-n // size))).materialize(), size
    paths = list_files(source)
    size = min(batch_size, -(-len(paths) // num_actors))
    files, indices = zip(*map(_split, paths), strict=True)
    table = pyarrow.table({"path": files, "index": indices})
    return from_arrow([table.slice(i, size) for i in range(0, len(table), size)]), size


def _split(item: str | os.PathLike[str] | Frame) -> tuple[str, int]:
    """Take an image apart for a table: its file, and which of its images it is, -1 for a path."""
    return (os.fspath(item.path), item.index) if isinstance(item, Frame) else (os.fspath(item), -1)


def _join(path: str, index: int) -> str | Frame:
    return path if index < 0 else Frame(path, index)


def list_files(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Frame]) -> list[str | Frame]:
    """List the image files of a folder and its sub-folders, or the given ones, in the order of their paths.

    Raises
    ------
    ImageError
        No such folder, or nothing in it.

    Warns
    -----
    ImageSkippedWarning
        What else is in the folder.
    """
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_dir():
            raise ImageError(f"{source} is not a folder. Pass a folder of images, or a list of paths.")
        listing = list_images(Path(source), below=True)
        found: Sequence[Any] = listing.files
        for line in say_left_out(listing.left_out):
            warnings.warn(line, ImageSkippedWarning, stacklevel=2)
    else:
        found = source
    if len(found) == 0:
        raise ImageError(f"There are no image files in {source}. Pass at least one.")
    return [_join(*place) for place in sorted(map(_split, found))]


class _Actor:
    """A detector in a process of its own."""

    def __init__(self, detector: list[Any], maps: bool, num_cpus: int, cwd: str) -> None:
        import ray

        _settle(num_cpus, cwd)
        self.detector, self.maps = ray.get(detector[0]), maps

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        items = batch["path"].to_pylist()
        if "index" in batch.column_names:
            items = list(map(_join, items, batch["index"].to_pylist()))
        columns = self.detector._score_files(items, True)
        failed = np.isnan(columns["score"])
        spots = hot_spots(columns["map"], float(self.detector.border_weight))
        found = {
            "path": pyarrow.array(columns["path"], pyarrow.string()),
            "score": pyarrow.array(columns["score"]),
            "label": pyarrow.array(columns["label"], pyarrow.int64(), mask=failed),
            "hot_spot": pyarrow.array(
                [None if no else spot for spot, no in zip(spots, failed, strict=True)], pyarrow.list_(pyarrow.int64())
            ),
        }
        # With its type said: in most batches there is none.
        found["error"] = pyarrow.array(columns["error"], pyarrow.string())
        if self.maps:
            found["map"] = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(columns["map"])
        return pyarrow.table(found)


def _settle(num_cpus: int, cwd: str) -> None:
    """Make a worker's process what the caller's is, as far as that goes."""
    torch.set_num_threads(num_cpus)
    with contextlib.suppress(OSError):  # another machine may not have that folder; absolute paths are still good
        os.chdir(cwd)


def _write(dataset: Any, out: Path) -> None:
    """Write a folder of Parquet files under a temporary name, then rename it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        # The actors hold all processors: a writer that asked for one would wait for ever.
        dataset.write_parquet(str(temporary), ray_remote_args={"num_cpus": 0})
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def run_on_ray(function: Callable[..., Any], arguments: dict[str, Any], num_workers: int) -> None:
    """Call a training function in all workers of a Ray Train group; after a lost worker, all start again.

    Parameters
    ----------
    function : callable
        Called with `arguments`, and with `engine`, its `Workers`, and `resume=True`.
    arguments : dict
        `device`, `out`, `tasks` and `verbose` among them.
    num_workers : int

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    FewShotADError
        What `function` raised.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers} was given; accepted is an integer of at least 1.")
    ray = connect()
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    out = Path(arguments["out"]).absolute()
    on_gpu = ray.cluster_resources().get("GPU", 0) >= num_workers and str(arguments["device"]) != "cpu"
    device = {"device": "cuda" if on_gpu else "cpu"} if str(arguments["device"]) == "auto" else {}
    # Sent once: tasks may be images in memory.
    arguments = {**arguments, **device, "tasks": [ray.put(arguments["tasks"])], "resume": True}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".ray", dir=out.parent) as storage:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"function": function, "arguments": arguments, "cwd": os.getcwd()},
            torch_config=TorchConfig(timeout_s=_PATIENCE),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=on_gpu),
            run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=_MAX_FAILURES)),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as failure:
            for error in getattr(failure, "worker_failures", {}).values():
                if isinstance(error, (FewShotADError, ValueError)):
                    raise error from failure
            raise TrainingError(
                f"The workers were lost {_MAX_FAILURES + 1} times: {failure} Go on from the last checkpoint: with the "
                "same arguments and resume."
            ) from failure


def _work(config: dict[str, Any]) -> None:
    """Be one worker of a training."""
    import ray

    _settle(1, config["cwd"])
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    arguments = {**config["arguments"], "engine": workers}
    arguments["tasks"] = ray.get(arguments["tasks"][0])
    if workers.rank > 0:
        arguments["verbose"] = 0
    config["function"](**arguments)
