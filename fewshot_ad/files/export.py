"""A fitted detector as one ONNX graph: teacher, students, support and scoring (`docs/deployment.md`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from .resizing import OPSET, resizing

FORMAT = "fewshot_ad onnx 2"
SIGN = "score: high = normal, anomalous where score < offset; anomaly_map: high = anomalous"
# The first release whose exporter supports a dynamic number and size of images.
_TORCH = "2.8"


def write(path: str | os.PathLike[str], fitted: FittedSupport, settings: Settings, *, force: bool = False) -> None:
    """Write a fitted state as ONNX, atomically; see `DualDistillationDetector.export`. `settings` find the teacher."""
    check_destination(path, force=force)
    write_atomically(Path(path), _model(fitted, settings).SerializeToString(deterministic=True))


class Graph(nn.Module):
    """The traced module: from resized images to scores and maps, by the functions of the scorer.

    Parameters
    ----------
    scorer : Scorer
        A scorer on the CPU.
    n_support : int
        Number of support images.
    """

    def __init__(self, scorer: Scorer, n_support: int) -> None:
        super().__init__()
        self.scorer = scorer
        self.n_support = n_support
        self.teacher = scorer.extract.teacher
        self.students = nn.ModuleList(expert.student for expert in scorer.memory.experts)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score images (N, 3, H, W) in [0, 1]: (N,), high = normal, and maps (N, H, W), high = anomalous."""
        maps = self.teacher(image)
        shown = self.scorer.layers.for_student(maps)
        shapes = [m.shape[2:] for m in shown[:-1]]
        students = (expert.student for expert in self.scorer.memory.experts)
        seen = [student(student.inputs(image, shown), shapes) for student in students]
        nothing = image.new_zeros(image.shape[0], self.n_support, dtype=torch.bool)
        evidence, _ = self.scorer.compare(maps, seen, nothing, image.shape[2:])
        return -self.scorer.image_scores(evidence), self.scorer.fuse(evidence)


@contextmanager
def _out_of_place(graph: nn.Module) -> Iterator[None]:
    """Let activations return new tensors: torch's exporter takes half as long again to rewrite in-place ones."""
    modules: list[Any] = [module for module in graph.modules() if getattr(module, "inplace", False)]
    for module in modules:
        module.inplace = False
    try:
        yield
    finally:
        for module in modules:
            module.inplace = True


def _model(fitted: FittedSupport, settings: Settings) -> Any:
    """Trace the graph, and describe it in its metadata."""
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise MissingExtraError(
            f'Export needs onnx and onnxscript ({error}). Install the extra: pip install "fewshot-ad[export]".'
        ) from error
    if torch.__version__ < _TORCH:
        raise MissingExtraError(
            f"Export needs torch {_TORCH} or newer, but this is {torch.__version__}. Install the extra: pip install "
            '"fewshot-ad[export]".'
        )
    op: Any = onnxscript.opset18

    def mean(self: Any, dim: Sequence[int], keepdim: bool = False, dtype: int = -1) -> Any:
        # Axis by axis: runtimes sum all numbers sequentially, which loses digits over a map's 16,384. Arguments must be
        # named as in torch: otherwise the exporters of torch 2.8 and 2.9 silently ignore the function.
        for axis in dim:
            self = op.ReduceMean(self, op.Constant(value_ints=[axis]), keepdims=1)
        return self if keepdim else op.Squeeze(self, op.Constant(value_ints=dim))

    def rounded(number: Any, ndigits: None = None) -> Any:
        return op.Cast(op.Round(number), to=onnx.TensorProto.INT64)

    translations: dict[Any, Any] = {torch.ops.aten.mean.dim: mean, round: rounded}
    runtime = resolve_runtime("cpu", "float32")
    extract, _ = find_teacher(settings, fitted.evidence, runtime, fitted.teacher_fingerprint)
    graph = Graph(fitted.scorer(extract), len(fitted.names)).eval()
    geometry = fitted.geometry
    free: dict[int, Any] = {0: torch.export.Dim("n")}
    shape = geometry.fixed
    if shape is None:
        # timm's names for layers that pad by the size of their input, and for rotary positions (DINOv3): tracing the
        # former with dynamic sides does not end, and the latter would keep the size of the trace.
        kinds = [type(module).__name__ for module in graph.modules()]
        if any(kind.endswith("Same") or kind.startswith("Rotary") for kind in kinds):
            raise ValueError(
                f"{settings.backbone!r} depends on the image size in its padding or positions, and cannot be exported "
                "for images of any proportions. Fit with aspect='square', or with image_size=(H, W)."
            )
        free |= {2 + i: geometry.multiple * torch.export.Dim(name) for i, name in enumerate(("rows", "columns"))}
        shape = 5 * geometry.multiple, 7 * geometry.multiple
    # While torch traces, the networks have no values, and the whole process uses other kernels.
    with alone(), torch.no_grad(), _out_of_place(graph):
        # Traced here, because torch.onnx would silently fix sizes that cannot be dynamic.
        traced = torch.export.export(graph, (torch.rand(3, 3, *shape),), dynamic_shapes=(free,), strict=False)
        program: Any = torch.onnx.export(
            traced, dynamo=True, opset_version=OPSET, input_names=["resized"], output_names=["score", "anomaly_map"],
            dynamic_shapes=(free,), custom_translation_table=translations, verbose=False,
        )  # fmt: skip
    network = program.model_proto
    model = onnx.compose.merge_models(resizing(geometry, network.ir_version), network, [("resized", "resized")])
    # Dynamic sides are declared as multiples; they get their names back.
    for side, name in zip(model.graph.output[1].type.tensor_type.shape.dim[1:], ("rows", "columns"), strict=True):
        if side.dim_param:
            side.dim_param = name
    # The tracer's metadata contain paths and source lines of this machine.
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
        "image_size": fitted.geometry.image_size,
        "aspect": settings.aspect,
        "value_range": settings.value_range,
        "evidence": fitted.evidence,
        "backbone": settings.backbone,
        "layers": fitted.layers.numbers,
        "teacher_fingerprint": fitted.teacher_fingerprint,
        "n_support": len(names),
        "support_names": names,
    }
