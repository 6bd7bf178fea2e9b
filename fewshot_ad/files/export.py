"""A fitted detector as one ONNX graph: teacher, students, support and scoring (`docs/deployment.md`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..exceptions import MissingExtraError
from ..method.scoring import Scorer
from ..runtime import alone, resolve_runtime
from ..settings import Settings
from ..support import FittedSupport, find_teacher
from .checkpoints import check_destination, write_atomically
from .model_file import bare_names

FORMAT = "fewshot_ad onnx 1"
SIGN = "score: high = normal, anomalous where score < offset; anomaly_map: high = anomalous"
# The first that onnxscript writes without converting.
_OPSET = 18
# The first whose exporter leaves the number and the size of images free.
_TORCH = "2.8"


def write(path: str | os.PathLike[str], fitted: FittedSupport, settings: Settings, *, force: bool = False) -> None:
    """Write a fitted state as ONNX, atomically; see `DualDistillationDetector.export`. `settings` find the teacher."""
    check_destination(path, force=force)
    write_atomically(Path(path), _model(fitted, settings).SerializeToString(deterministic=True))


class Graph(nn.Module):
    """What is exported: from images of any one size to scores and maps, by the scorer's own functions.

    Parameters
    ----------
    scorer : Scorer
        On the CPU.
    size : int
        Side that its teacher takes, pixels.
    n_support : int
    """

    def __init__(self, scorer: Scorer, size: int, n_support: int) -> None:
        super().__init__()
        self.scorer = scorer
        self.size = size
        self.n_support = n_support
        self.teacher = scorer.extract.teacher
        self.students = nn.ModuleList(expert.student for expert in scorer.memory.experts)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score images (N, 3, H, W) in [0, 1]: (N,), high = normal, and maps (N, S, S), high = anomalous."""
        rows, columns = (shrinking(n, self.size) for n in image.shape[-2:])
        image = (rows @ image @ columns.T).clamp(0, 1)
        maps = self.teacher(image)
        seen = [expert.student(expert.student.inputs(image, maps)) for expert in self.scorer.memory.experts]
        nothing = image.new_zeros(image.shape[0], self.n_support, dtype=torch.bool)
        evidence, _ = self.scorer.compare(maps, seen, nothing, self.size)
        return -self.scorer.judge(evidence), self.scorer.fuse(evidence)


def shrinking(n: int, size: int) -> torch.Tensor:
    """Make the matrix (size, n) that resizes a column of n pixels as `images.load` does, bilinear and antialiased.

    ONNX has an operator for it, but OpenVINO leaves out its antialiasing without a word.
    """
    ratio = n / size
    reach: Any = torch.sym_max(ratio, 1.0)  # in a graph n is free, and max() would ask for it
    centres = (torch.arange(size, dtype=torch.float32) + 0.5) * ratio
    distances = (torch.arange(n, dtype=torch.float32) + 0.5 - centres[:, None]).abs() / reach
    weights = (1 - distances).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def _model(fitted: FittedSupport, settings: Settings) -> Any:
    """Trace the graph, and say in its metadata what it is."""
    try:
        import onnx  # noqa: F401
        import onnxscript
    except ImportError as error:
        raise MissingExtraError(
            f'Export needs onnx and onnxscript ({error}). Install the extra: pip install "fewshot-ad[export]".'
        ) from error
    if torch.__version__ < _TORCH:
        raise MissingExtraError(
            f"Export needs torch {_TORCH} or newer, and this is {torch.__version__}. Install the extra: pip install "
            '"fewshot-ad[export]".'
        )
    op: Any = onnxscript.opset18

    def mean(self: Any, dim: Sequence[int], keepdim: bool = False, dtype: int = -1) -> Any:
        # Axis by axis: runtimes add up all numbers in a row, and a map's 16,384 lose digits. Names are those of
        # torch's function: with others the exporters of torch 2.8 and 2.9 take their own way, without a word.
        for axis in dim:
            self = op.ReduceMean(self, op.Constant(value_ints=[axis]), keepdims=1)
        return self if keepdim else op.Squeeze(self, op.Constant(value_ints=dim))

    runtime = resolve_runtime("cpu", "float32")
    extract, _ = find_teacher(settings, fitted.evidence, runtime, fitted.teacher_fingerprint)
    graph = Graph(fitted.scorer(extract), settings.image_size, len(fitted.names)).eval()
    free = {axis: torch.export.Dim(name) for axis, name in ((0, "n"), (2, "height"), (3, "width"))}
    # While torch traces, the networks hold no numbers, and the whole process computes by other kernels.
    with alone(), torch.no_grad():
        # Traced here, not by torch.onnx: where a size cannot be left free that would fix it, without a word.
        traced = torch.export.export(graph, (torch.rand(3, 3, 96, 112),), dynamic_shapes=(free,), strict=False)
        program: Any = torch.onnx.export(
            traced, dynamo=True, opset_version=_OPSET, input_names=["image"], output_names=["score", "anomaly_map"],
            dynamic_shapes=(free,), custom_translation_table={torch.ops.aten.mean.dim: mean}, verbose=False,
        )  # fmt: skip
    model = program.model_proto
    # The tracer's notes: folders and lines of this machine's Python.
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    for key, value in _about(fitted).items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    return model


def _about(fitted: FittedSupport) -> dict[str, Any]:
    names, settings = bare_names(fitted), fitted.settings
    return {
        "format": FORMAT,
        "fewshot_ad": __version__,
        "offset": fitted.offset,
        "sign": SIGN,
        "image_size": settings.image_size,
        "value_range": settings.value_range,
        "evidence": fitted.evidence,
        "backbone": settings.backbone,
        "teacher_fingerprint": fitted.teacher_fingerprint,
        "n_support": len(names),
        "support_names": names,
    }
