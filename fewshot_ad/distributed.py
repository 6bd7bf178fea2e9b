"""Scoring of files on a Ray cluster (extra `ray`)."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import images
from .cluster import connect, settle
from .data.formats import Frame
from .data.listing import left_out_messages, list_images
from .exceptions import ImageError, ImageSkippedWarning, warn
from .files import checkpoints
from .regions import Region

if TYPE_CHECKING:
    from .detector import DualDistillationDetector

__all__ = ["connect", "list_files", "score"]

# Seconds after which temporary files of a killed process are removed.
_ABANDONED = 86400.0


def score(
    detector: DualDistillationDetector,
    source: Any,
    *,
    num_actors: int | None = None,
    num_cpus: int = 1,
    batch_size: int = 64,
    maps: bool = False,
    regions: bool = False,
    out: str | os.PathLike[str] | None = None,
    address: str | None = None,
) -> Any:
    """Score image files on a Ray cluster, with the fitted detector in several actors.

    Ray Data restarts an actor that dies, and its files are scored again: each file has one row. An unreadable file
    affects only its own row.

    Parameters
    ----------
    detector : DualDistillationDetector
        Fitted detector. It is sent without its teacher: a file `weights` must be accessible on all machines.
    source : path, sequence of paths, or ray.data.Dataset
        Folder, including its sub-folders; files, or frames of files (`images.frames`); or a dataset with a column
        "path".
    num_actors : int, optional
        Number of actors. The default is one per GPU of the cluster (unless the detector's `device` is the CPU), else
        one per `num_cpus` processors.
    num_cpus : int, optional
        Number of processors, and of threads, per actor.
    batch_size : int, optional
        Number of files per batch. Scores do not depend on it.
    maps : bool, optional
        Whether to return the anomaly maps too.
    regions : bool, optional
        Whether to return the regions too.
    out : path, optional
        Folder of Parquet files to write, atomically. It must be accessible on all machines.
    address : str, optional
        See `connect`.

    Returns
    -------
    ray.data.Dataset
        Materialised dataset, or read from `out`, with one row per file in the order of their paths: "path"; "score", as
        from `score_samples`, NaN for an unreadable file; "label", +1 for normal and -1 for anomalous files, null for
        unreadable ones; "hot_spot", row and column of the map's maximum in pixels of the image, or null; "error", null
        or the reason why the file could not be read; and with `maps` "map", (H, W) float32 as from `anomaly_map`, all
        NaN for an unreadable file. With `regions` "regions", a list of regions with the attributes of `Region`, and
        "size", height and width of the original image; both null for an unreadable file. Ray returns maps as arrays of
        different shapes; in the Parquet files each map has "data", a flat list, and "shape". On the CPU the numbers are
        bitwise identical to those of the detector itself with the same number of threads.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    ImageError
        `source` holds no files.
    ValueError
        `out` already exists.
    """
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(detector)
    if out is not None and Path(out).exists():
        raise ValueError(f"out={str(out)!r} already exists. Remove it, or pass another name.")
    ray = connect(address)
    cluster = ray.cluster_resources()
    on_gpu = cluster.get("GPU", 0) >= 1 and str(detector.device) != "cpu"
    if num_actors is None:
        num_actors = max(1, int(cluster["GPU"] if on_gpu else cluster.get("CPU", 1) // num_cpus))
    # An actor sees only its own GPU.
    sent = copy.copy(detector).set_params(verbose=0, **({"device": "auto"} if on_gpu else {}))
    paths, batch_size = _paths(source, batch_size, num_actors)
    paths.context.execution_options.preserve_order = True
    scored = paths.map_batches(
        _Actor,
        fn_constructor_kwargs={
            "detector": [ray.put(sent)],
            "maps": maps,
            "regions": regions,
            "num_cpus": num_cpus,
            "cwd": os.getcwd(),
            "max_pixels": images.MAX_PIXELS,
        },
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
    """Create a dataset of sorted paths with one block per batch, and return it with the batch size.

    It is materialised before the actors take all processors.
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
    """Split an item for a table into its path and its frame index, -1 for a plain path."""
    return (os.fspath(item.path), item.index) if isinstance(item, Frame) else (os.fspath(item), -1)


def _join(path: str, index: int) -> str | Frame:
    return path if index < 0 else Frame(path, index)


def list_files(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Frame]) -> list[str | Frame]:
    """List the image files of a folder and its sub-folders, or the given files, in the order of their paths.

    Raises
    ------
    ImageError
        The folder does not exist or has no images.

    Warns
    -----
    ImageSkippedWarning
        The folder contains other files.
    """
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_dir():
            raise ImageError(f"{source} is not a folder. Pass a folder of images, or a list of paths.")
        listing = list_images(Path(source), below=True)
        files: Sequence[Any] = listing.files
        for message in left_out_messages(listing.left_out):
            warn(message, ImageSkippedWarning)
    else:
        files = source
    if len(files) == 0:
        raise ImageError(f"There are no image files in {source}. Pass at least one.")
    return [_join(*parts) for parts in sorted(map(_split, files))]


class _Actor:
    """A detector in a separate process."""

    def __init__(
        self, detector: list[Any], maps: bool, regions: bool, num_cpus: int, cwd: str, max_pixels: int | None
    ) -> None:
        import ray

        images.MAX_PIXELS = max_pixels  # a setting per process
        settle(num_cpus, cwd)
        self.session, self.maps, self.regions = ray.get(detector[0]).session(), maps, regions

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        items = batch["path"].to_pylist()
        if "index" in batch.column_names:
            items = list(map(_join, items, batch["index"].to_pylist()))
        scored = list(self.session.score_each(items, maps=self.maps, regions=self.regions))
        columns = {
            "path": pyarrow.array([one.path for one in scored], pyarrow.string()),
            "score": pyarrow.array([one.score for one in scored], pyarrow.float64(), from_pandas=False),
            "label": pyarrow.array([None if one.error else one.label for one in scored], pyarrow.int64()),
            "hot_spot": pyarrow.array([one.hot_spot for one in scored], pyarrow.list_(pyarrow.int64())),
            # With an explicit type, as most batches have no error.
            "error": pyarrow.array([one.error for one in scored], pyarrow.string()),
        }
        if self.regions:
            rows = [None if one.regions is None else list(map(_plain, one.regions)) for one in scored]
            columns["regions"] = pyarrow.array(rows, pyarrow.list_(_type_of_regions()))
            columns["size"] = pyarrow.array([one.size for one in scored], pyarrow.list_(pyarrow.int64()))
        if self.maps:
            columns["map"] = self._column([one.map for one in scored])
        return pyarrow.table(columns)

    def _column(self, maps: Sequence[np.ndarray | None]) -> Any:
        """Convert maps of any shapes to a column; a missing map is all NaN."""
        from ray.data.extensions import ArrowVariableShapedTensorArray

        missing = np.full(self.session.fitted.geometry.usual, np.nan, np.float32)
        column = np.empty(len(maps), object)
        for i, one in enumerate(maps):
            column[i] = missing if one is None else one
        return ArrowVariableShapedTensorArray.from_numpy(column)


def _plain(region: Region) -> dict[str, Any]:
    return {**vars(region), "polygon": region.polygon.tolist()}


def _type_of_regions() -> Any:
    import pyarrow

    integer, real = pyarrow.int64(), pyarrow.float64()
    return pyarrow.struct({
        "box": pyarrow.list_(integer), "area": integer, "peak": real, "peak_at": pyarrow.list_(integer), "mean": real,
        "centroid": pyarrow.list_(real), "score": real, "polygon": pyarrow.list_(pyarrow.list_(real)),
    })  # fmt: skip


def with_regions(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the regions in a row of `score` back to `Region` objects.

    Parameters
    ----------
    row : mapping
        Row from `Dataset.iter_rows`, computed with `regions`.

    Returns
    -------
    dict
        The same row, with `Region` objects.
    """
    rows = row["regions"]
    size = None if row["size"] is None else (int(row["size"][0]), int(row["size"][1]))
    return {**row, "size": size, "regions": None if rows is None else [_region(one) for one in rows]}


def _region(row: Mapping[str, Any]) -> Region:
    integers = {name: tuple(map(int, row[name])) for name in ("box", "peak_at")}
    polygon = np.array([list(corner) for corner in row["polygon"]], np.float64)
    return Region(**{**row, **integers, "centroid": tuple(map(float, row["centroid"])), "polygon": polygon})


def _write(dataset: Any, out: Path) -> None:
    """Write a folder of Parquet files under a temporary name, then rename it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.remove_leftovers(out, _ABANDONED)
    temporary = checkpoints.temporary_name(out)
    temporary.mkdir()
    try:
        # The actors occupy all processors: a writer that requested one would wait forever.
        dataset.write_parquet(str(temporary), ray_remote_args={"num_cpus": 0})
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
