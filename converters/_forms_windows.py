"""Bodies for operators over windows: unpooling, and convolutions whose windows are bent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgerun.converters import _facts as facts

if TYPE_CHECKING:
    import onnx


def max_unpool(node: onnx.NodeProto, types: Sequence[onnx.TypeProto]) -> str | None:
    """Values go back to where they were in the flat output: (size - 1)·stride + kernel - pads, other places are 0.
    Where a larger output is asked for, more of those follow on every axis."""
    rank, kernel = facts.rank(types[0]), facts.integers(node, "kernel_shape")
    if rank is None or not kernel:
        return None
    sized = len(node.input) > 2 and node.input[2]
    padded = """unpooled = Reshape (filled, shape)
        before = Sub (shape, shape)
        behind = Sub (output_shape, shape)
        pads = Concat <axis: int = 0> (before, behind)
        y = Pad (unpooled, pads, like)"""
    n = rank - 2
    strides, pads = facts.integers(node, "strides") or [1] * n, facts.integers(node, "pads") or [0] * (2 * n)
    rest = [kernel[i] - strides[i] - pads[i] - pads[i + n] for i in range(n)]
    return f"""({", ".join(("x", "places", "output_shape")[: len(node.input)])}) => (y) {{
        flat = Constant <value_ints: ints = [-1]> ()
        strides = Constant <value_ints: ints = [1, 1, {", ".join(map(str, strides))}]> ()
        rest = Constant <value_ints: ints = [0, 0, {", ".join(map(str, rest))}]> ()
        small = Shape (x)
        wide = Mul (small, strides)
        shape = Add (wide, rest)
        count = ReduceProd <keepdims: int = 1> (shape)
        zero = Constant <value_float: float = 0.0> ()
        like = CastLike (zero, x)
        empty = Expand (like, count)
        values = Reshape (x, flat)
        index = Reshape (places, flat)
        filled = ScatterElements <axis: int = 0> (empty, index, values)
        {padded if sized else "y = Reshape (filled, shape)"}
    }}"""


def deform_conv(node: onnx.NodeProto, types: Sequence[onnx.TypeProto]) -> str | None:
    """x is read at the places of every window, moved by the offsets (bilinear, 0 outside); what was read is weighted
    by the mask and is the input of a 1x1 convolution. Two axes in space, and constant sizes of x's channels and w."""
    x, w = facts.shape(types[0]), facts.shape(types[1])
    if x is None or w is None or len(x) != 4 or not isinstance(x[1], int) or None in w:
        return None
    outputs, _, high, wide = (int(size or 0) for size in w)
    groups, offset_groups = facts.integer(node, "group", 1), facts.integer(node, "offset_group", 1)
    strides, pads = facts.integers(node, "strides") or [1, 1], facts.integers(node, "pads") or [0] * 4
    dilations = facts.integers(node, "dilations") or [1, 1]
    taps, each = high * wide, x[1] // offset_groups
    rows = [float(i // wide * dilations[0] - pads[0]) for i in range(taps)]
    columns = [float(i % wide * dilations[1] - pads[1]) for i in range(taps)]
    bias = "b" if len(node.input) > 3 and node.input[3] else facts.ABSENT
    masked = len(node.input) > 4 and node.input[4]
    weigh = """folded = Concat <axis: int = 0> (flat, single, taps, size)
        weight = Reshape (mask, folded)
        weighed = Mul (parts, weight)"""
    return f"""({", ".join(("x", "w", "offset", "b", "mask")[: len(node.input)])}) => (y) {{
        flat = Constant <value_ints: ints = [-1]> ()
        single = Constant <value_ints: ints = [1]> ()
        taps = Constant <value_ints: ints = [{taps}]> ()
        pair = Constant <value_ints: ints = [2]> ()
        each = Constant <value_ints: ints = [{each}]> ()
        all = Constant <value_ints: ints = [{x[1] * taps}]> ()
        none = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        edge = Constant <value_ints: ints = [1, 2]> ()
        outer = Constant <value_int: int = -1> ()
        size = Shape <start: int = 2> (offset)
        area = Shape <start: int = 2> (x)
        split = Concat <axis: int = 0> (flat, taps, pair, size)
        moved = Reshape (offset, split)
        down = Gather <axis: int = 2> (moved, none)
        right = Gather <axis: int = 2> (moved, one)
        {_places("row", "none", strides[0], rows)}
        {_places("column", "one", strides[1], columns)}
        tall = Unsqueeze (row_at, outer)
        rows_to = Unsqueeze (row_shift, edge)
        columns_to = Unsqueeze (column_shift, edge)
        row_base = Add (tall, rows_to)
        column_base = Add (column_at, columns_to)
        row_like = CastLike (row_base, offset)
        column_like = CastLike (column_base, offset)
        row = Add (row_like, down)
        column = Add (column_like, right)
        {_normalized("row")}
        {_normalized("column")}
        thin_column = Unsqueeze (column_grid, outer)
        thin_row = Unsqueeze (row_grid, outer)
        points = Concat <axis: int = -1> (thin_column, thin_row)
        across = Gather (size, one)
        breadth = Reshape (across, single)
        zero = Constant <value_ints: ints = [0]> ()
        long = Concat <axis: int = 0> (zero, flat, breadth, pair)
        grid = Reshape (points, long)
        image = Concat <axis: int = 0> (flat, each, area)
        shared = Reshape (x, image)
        read = GridSample <padding_mode: string = "zeros"> (shared, grid)
        apart = Concat <axis: int = 0> (flat, each, taps, size)
        parts = Reshape (read, apart)
        {weigh if masked else "weighed = Identity (parts)"}
        channels = Concat <axis: int = 0> (flat, all, size)
        columns = Reshape (weighed, channels)
        kernel = Constant <value_ints: ints = [{outputs}, -1, 1, 1]> ()
        points_of = Reshape (w, kernel)
        y = Conv <group: int = {groups}> (columns, points_of, {bias})
    }}"""


def _places(name: str, axis: str, stride: int, shifts: Sequence[float]) -> str:
    """Where windows begin along one axis, and how far each tap lies from there; the size of x along it."""
    return f"""{name}_count = Gather (size, {axis})
        {name}_index = Range (none, {name}_count, one)
        {name}_stride = Constant <value_int: int = {stride}> ()
        {name}_begin = Mul ({name}_index, {name}_stride)
        {name}_at = Cast <to: int = 1> ({name}_begin)
        {name}_shift = Constant <value_floats: floats = [{", ".join(map(str, shifts))}]> ()
        {name}_size = Gather (area, {axis})
        {name}_length = CastLike ({name}_size, offset)"""


def _normalized(name: str) -> str:
    """From positions to -1 … 1 between the outer edges of the first and the last element: (2p + 1)/n - 1."""
    return f"""{name}_one = CastLike (one, offset)
        {name}_double = Add ({name}, {name})
        {name}_middle = Add ({name}_double, {name}_one)
        {name}_share = Div ({name}_middle, {name}_length)
        {name}_grid = Sub ({name}_share, {name}_one)"""
