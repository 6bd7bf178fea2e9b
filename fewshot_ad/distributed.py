"""Scoring any number of files on a Ray cluster (extra `ray`)."""

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
from .data.listing import list_images, say_left_out
from .exceptions import ImageError, ImageSkippedWarning, warn
from .files import checkpoints
from .regions import Region

if TYPE_CHECKING:
    from .detector import DualDistillationDetector

__all__ = ["connect", "list_files", "score"]

# Seconds after which what a killed process left behind is removed.
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
    regions : bool, optional
        Whether to return the regions too.
    out : path, optional
        Folder to write, of Parquet files. It is there whole, or not at all. All machines must reach it.
    address : str, optional
        See `connect`.

    Returns
    -------
    ray.data.Dataset
        Computed already, or read from `out`. A row for each file, in the order of their paths: "path"; "score", as from
        `score_samples`, NaN for an unreadable file; "label", +1 for normal and -1 for anomalous files, null for
        unreadable ones; "hot_spot", row and column of the hottest place in the image's pixels, or null; "error", null
        or why the file could not be read; and with `maps` "map", (H, W) float32 as from `anomaly_map`, of NaN for an
        unreadable file. With `regions` "regions", a list of what `Region` holds, by the names of its attributes, and
        "size", height and width of the image as it was given; both null for an unreadable file.
        Ray hands maps out as arrays of their own shapes; programs that read the Parquet files without Ray find "data",
        a flat list, and "shape" in each. On the CPU the numbers are, bit for bit, those of the detector itself with as
        many threads.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    ImageError
        `source` holds no files.
    ValueError
        `out` exists already.
    """
    from sklearn.utils.validation import check_is_fitted

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
            warn(line, ImageSkippedWarning)
    else:
        found = source
    if len(found) == 0:
        raise ImageError(f"There are no image files in {source}. Pass at least one.")
    return [_join(*place) for place in sorted(map(_split, found))]


class _Actor:
    """A detector in a process of its own."""

    def __init__(
        self, detector: list[Any], maps: bool, regions: bool, num_cpus: int, cwd: str, max_pixels: int | None
    ) -> None:
        import ray

        images.MAX_PIXELS = max_pixels  # a setting of a process
        settle(num_cpus, cwd)
        self.session, self.maps, self.regions = ray.get(detector[0]).session(), maps, regions

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        items = batch["path"].to_pylist()
        if "index" in batch.column_names:
            items = list(map(_join, items, batch["index"].to_pylist()))
        scored = list(self.session.score_each(items, maps=self.maps, regions=self.regions))
        found = {
            "path": pyarrow.array([one.path for one in scored], pyarrow.string()),
            "score": pyarrow.array([one.score for one in scored], pyarrow.float64(), from_pandas=False),
            "label": pyarrow.array([None if one.error else one.label for one in scored], pyarrow.int64()),
            "hot_spot": pyarrow.array([one.hot_spot for one in scored], pyarrow.list_(pyarrow.int64())),
            # With its type said: in most batches there is none.
            "error": pyarrow.array([one.error for one in scored], pyarrow.string()),
        }
        if self.regions:
            rows = [None if one.regions is None else list(map(_plain, one.regions)) for one in scored]
            found["regions"] = pyarrow.array(rows, pyarrow.list_(_type_of_regions()))
            found["size"] = pyarrow.array([one.size for one in scored], pyarrow.list_(pyarrow.int64()))
        if self.maps:
            found["map"] = self._column([one.map for one in scored])
        return pyarrow.table(found)

    def _column(self, maps: Sequence[np.ndarray | None]) -> Any:
        """Put maps of any shapes into a column; one that is missing is of NaN."""
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

    whole, real = pyarrow.int64(), pyarrow.float64()
    return pyarrow.struct({
        "box": pyarrow.list_(whole), "area": whole, "peak": real, "peak_at": pyarrow.list_(whole), "mean": real,
        "centroid": pyarrow.list_(real), "score": real, "polygon": pyarrow.list_(pyarrow.list_(real)),
    })  # fmt: skip


def with_regions(row: Mapping[str, Any]) -> dict[str, Any]:
    """Make a row of `score`, computed with `regions`, hold the regions themselves.

    Parameters
    ----------
    row : mapping
        From `Dataset.iter_rows`.

    Returns
    -------
    dict
    """
    found = row["regions"]
    size = None if row["size"] is None else (int(row["size"][0]), int(row["size"][1]))
    return {**row, "size": size, "regions": None if found is None else [_whole(one) for one in found]}


def _whole(one: Mapping[str, Any]) -> Region:
    places = {name: tuple(map(int, one[name])) for name in ("box", "peak_at")}
    polygon = np.array([list(corner) for corner in one["polygon"]], np.float64)
    return Region(**{**one, **places, "centroid": tuple(map(float, one["centroid"])), "polygon": polygon})


def _write(dataset: Any, out: Path) -> None:
    """Write a folder of Parquet files under a temporary name, then rename it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.remove_leftovers(out, _ABANDONED)
    temporary = checkpoints.temporary_name(out)
    temporary.mkdir()
    try:
        # The actors hold all processors: a writer that asked for one would wait for ever.
        dataset.write_parquet(str(temporary), ray_remote_args={"num_cpus": 0})
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
