"""First part of an exported ONNX graph: images of any size are resized as in `images.load`."""

from __future__ import annotations

import math
from typing import Any

from ..data.geometry import LONGEST, Geometry

# The first opset that onnxscript writes without conversion.
OPSET = 18
_GRAPH = """<ir_version: {ir_version}, opset_import: ["": {opset}]>
resizing (float[n, 3, height, width] image) => (float[n, 3, rows, columns] resized)
<int64 nought = {{0}}, int64 one = {{1}}, int64[1] first = {{0}}, int64[1] second = {{1}}, float half = {{0.5}},
 float black = {{0}}, float white = {{1}}, {constants}>
{{
  given_rows = Shape <start = 2, end = 3> (image)
  given_columns = Shape <start = 3, end = 4> (image)
{sides}{rows}{columns}
  shorter = MatMul (to_rows, image)
  shown = MatMul (shorter, to_columns)
  resized = Clip (shown, black, white)
}}
"""
# Computed in integers, as in `Geometry`, but stored as floats, since some runtimes only have 32-bit integers.
_BOTH = """
  float_rows = Cast <to = 11> (given_rows)
  float_columns = Cast <to = 11> (given_columns)
  most_rows = Mul (longest, float_columns)
  most_columns = Mul (longest, float_rows)
  at_most_rows = Min (float_rows, most_rows)
  at_most_columns = Min (float_columns, most_columns)
"""
_SIDE = """
  length_{along} = Mul (area, at_most_{along})
  steps_{along} = Mul (odd_squares, at_most_{across})
  is_reached_{along} = LessOrEqual (steps_{along}, length_{along})
  reached_{along} = Cast <to = 7> (is_reached_{along})
  multiples_{along} = ReduceSum <keepdims = 1> (reached_{along})
  side_{along} = Mul (multiples_{along}, multiple)
"""
# Weights of the old pixels in each new one, bilinear and antialiased. ONNX has an operator for this, but OpenVINO
# silently ignores its antialiasing.
_MATRIX = """
  new_{axis} = Squeeze (side_{axis})
  old_{axis} = Squeeze (given_{axis})
  new_size_{axis} = Cast <to = 1> (new_{axis})
  old_size_{axis} = Cast <to = 1> (old_{axis})
  ratio_{axis} = Div (old_size_{axis}, new_size_{axis})
  reach_{axis} = Max (ratio_{axis}, white)
  new_places_{axis} = Range (nought, new_{axis}, one)
  new_numbers_{axis} = Cast <to = 1> (new_places_{axis})
  new_middles_{axis} = Add (new_numbers_{axis}, half)
  new_centres_{axis} = Mul (new_middles_{axis}, ratio_{axis})
  to_new_{axis} = Unsqueeze (new_centres_{axis}, {of_old})
  old_places_{axis} = Range (nought, old_{axis}, one)
  old_numbers_{axis} = Cast <to = 1> (old_places_{axis})
  old_centres_{axis} = Add (old_numbers_{axis}, half)
  from_old_{axis} = Unsqueeze (old_centres_{axis}, {of_new})
  differences_{axis} = Sub (to_new_{axis}, from_old_{axis})
  distances_{axis} = Abs (differences_{axis})
  far_{axis} = Div (distances_{axis}, reach_{axis})
  near_{axis} = Sub (white, far_{axis})
  weights_{axis} = Relu (near_{axis})
  totals_{axis} = ReduceSum <keepdims = 1> (weights_{axis}, {of_old})
  to_{axis} = Div (weights_{axis}, totals_{axis})
"""


def resizing(geometry: Geometry, ir_version: int) -> Any:
    """Create the graph that maps "image" (n, 3, height, width) in [0, 1] to "resized" (n, 3, rows, columns).

    Parameters
    ----------
    geometry : Geometry
    ir_version : int
        Version of ONNX's intermediate representation.

    Returns
    -------
    onnx.ModelProto
    """
    from onnx import parser

    if geometry.fixed is not None:
        rows, columns = geometry.fixed
        constants, sides = f"int64[1] side_rows = {{{rows}}}, int64[1] side_columns = {{{columns}}}", ""
    else:
        assert isinstance(geometry.image_size, int)  # nosec B101
        shared = math.gcd(2 * geometry.image_size, geometry.multiple)
        area, step = ((n // shared) ** 2 for n in (2 * geometry.image_size, geometry.multiple))
        most = geometry.shape(LONGEST, 1)[0] // geometry.multiple
        # A side is rounded to at least k multiples if it is at least (2 k - 1) half multiples; k = 1 is the minimum.
        odd_squares = [0, *(step * (2 * k - 1) ** 2 for k in range(2, most + 1))]
        constants = (
            f"double longest = {{{LONGEST}}}, double area = {{{area}}}, int64 multiple = {{{geometry.multiple}}}, "
            f"double[{most}] odd_squares = {{{', '.join(map(str, odd_squares))}}}"
        )
        sides = _BOTH + "".join(
            _SIDE.format(along=along, across=across) for along, across in (("rows", "columns"), ("columns", "rows"))
        )
    text = _GRAPH.format(
        ir_version=ir_version, opset=OPSET, constants=constants, sides=sides,
        rows=_MATRIX.format(axis="rows", of_new="first", of_old="second"),
        columns=_MATRIX.format(axis="columns", of_new="second", of_old="first"),
    )  # fmt: skip
    return parser.parse_model(text)
