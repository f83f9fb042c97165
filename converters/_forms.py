"""Bodies for operators, or uses of them, that runtimes lack and the standard does not define by others.

Each is a function in ONNX's own text, made for one node: what it computes for any inputs of these types is what the
operator computes. Where ranks must be known and are not, there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import TYPE_CHECKING

from edgerun.converters import _facts as facts
from edgerun.converters import _forms_windows as windows

if TYPE_CHECKING:
    import onnx

Types = Sequence["onnx.TypeProto"]
Form = Callable[["onnx.NodeProto", Types], "str | None"]
END = 2**31 - 1  # behind the end of every axis
# The largest finite value, by the number of the type in TensorProto.
FLOAT8 = {17: 448.0, 19: 57344.0}  # E4M3FN, E5M2
INTEGERS = {2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 12: 32, 7: 64, 13: 64}  # and their bits
BOOL = 9
LARGEST = 4  # matrix whose determinant is written out: 24 products


def form(node: onnx.NodeProto, types: Types, opset: int) -> onnx.FunctionProto | None:
    """The function that computes `node` from inputs of `types` (empty: absent, or not known), or None."""
    import onnx

    made = FORMS[node.op_type](node, types) if node.op_type in FORMS and opset >= 18 else None
    if made is None:
        return None
    function: onnx.FunctionProto = onnx.parser.parse_function(
        f'<domain: "", opset_import: ["": {opset}]>\n{node.op_type} {made}'
    )
    for inner in function.node:
        if inner.op_type == node.op_type:  # the same operator in a plainer use: what it was told otherwise stays
            told = {attribute.name for attribute in inner.attribute}
            inner.attribute.extend(a for a in node.attribute if a.name not in told)
    return function


def _unsqueeze(node: onnx.NodeProto, types: Types) -> str | None:
    """Axes that are computed: y is x in the shape that has a 1 at each of them, in any order and from either end."""
    rank, shape = facts.rank(types[0]), facts.shape(types[1]) if len(types) > 1 else None
    if rank is None or not shape or shape[0] is None:
        return None
    n = rank + shape[0]
    return f"""(x, axes) => (y) {{
        one = Constant <value_ints: ints = [1]> ()
        n = Constant <value_ints: ints = [{n}]> ()
        ones = Constant <value_ints: ints = [{facts.repeated(1, n)}]> ()
        zeros = Constant <value_ints: ints = [{facts.repeated(0, shape[0])}]> ()
        first = Constant <value_int: int = 0> ()
        shifted = Add (axes, n)
        at = Mod (shifted, n)
        kept = ScatterElements <axis: int = 0> (ones, at, zeros)
        count = CumSum (kept, first)
        place = Sub (count, kept)
        shape = Shape (x)
        longer = Concat <axis: int = 0> (shape, one)
        sizes = Gather (longer, place)
        old = Equal (kept, one)
        result = Where (old, sizes, one)
        y = Reshape <allowzero: int = 1> (x, result)
    }}"""


def _recurrent(node: onnx.NodeProto, types: Types) -> str | None:
    """layout 1, batch first: the same with layout 0 between transpositions."""
    if facts.integer(node, "layout", 0) != 1:
        return None
    inputs = ["x", "w", "r", "b", "lengths", "h", "c", "p"][: len(node.input)]
    outputs = ["y", "y_h", "y_c"][: len(node.output)]
    given = [name for name, actual in zip(inputs, node.input, strict=True) if actual]
    made = [name for name, actual in zip(outputs, node.output, strict=True) if actual]
    turned = {name for name in given if name in ("x", "h", "c")}
    args = ", ".join(f"{name}_" if name in turned else name if name in given else facts.ABSENT for name in inputs)
    results = ", ".join(f"{name}_" if name in made else facts.ABSENT for name in outputs)
    lines = [f"{name}_ = Transpose <perm: ints = [1, 0, 2]> ({name})" for name in sorted(turned)]
    lines.append(f"{results} = {node.op_type} <layout: int = 0> ({args})")
    for name in made:
        order = "2, 0, 1, 3" if name == "y" else "1, 0, 2"
        lines.append(f"{name} = Transpose <perm: ints = [{order}]> ({name}_)")
    return f"({', '.join(inputs)}) => ({', '.join(outputs)}) {{\n" + "\n".join(lines) + "\n}"


def _cumprod(node: onnx.NodeProto, types: Types) -> str | None:
    """p_i = p_{i-1}·x_i along the axis, as a Scan over the middle of x as [before, axis, behind]; exclusive ones are
    told before the product."""
    rank, dtype = facts.rank(types[0]), facts.element(types[0])
    if not rank or dtype is None:
        return None
    way, told = facts.integer(node, "reverse", 0), "state" if facts.integer(node, "exclusive", 0) else "next"
    return f"""(x, axis) => (y) {{
        one = Constant <value_ints: ints = [1]> ()
        zero = Constant <value_ints: ints = [0]> ()
        end = Constant <value_ints: ints = [{END}]> ()
        rank = Constant <value_ints: ints = [{rank}]> ()
        given = Reshape (axis, one)
        wide = Cast <to: int = 7> (given)
        shifted = Add (wide, rank)
        at = Mod (shifted, rank)
        behind = Add (at, one)
        shape = Shape (x)
        longer = Concat <axis: int = 0> (one, shape, one)
        left = Slice (longer, zero, behind, zero)
        second = Add (behind, one)
        right = Slice (longer, second, end, zero)
        pre = ReduceProd <keepdims: int = 1> (left)
        post = ReduceProd <keepdims: int = 1> (right)
        size = Gather (shape, at)
        block = Concat <axis: int = 0> (pre, size, post)
        x3 = Reshape (x, block)
        plane = Concat <axis: int = 0> (pre, post)
        unit = CastLike (one, x)
        start = Expand (unit, plane)
        last, y3 = Scan <num_scan_inputs: int = 1, scan_input_axes: ints = [1], scan_output_axes: ints = [1],
            scan_input_directions: ints = [{way}], scan_output_directions: ints = [{way}],
            body: graph = product ({dtype}[P, Q] state, {dtype}[P, Q] item) => ({dtype}[P, Q] next, {dtype}[P, Q] out)
            {{ next = Mul (state, item)
               out = Identity ({told}) }}> (start, x3)
        y = Reshape (y3, shape)
    }}"""


def _tensor_scatter(node: onnx.NodeProto, types: Types) -> str | None:
    """Rows `update` go to the places write_indices[b], write_indices[b] + 1, … of axis `axis`, in batch element b."""
    rank = facts.rank(types[0])
    if rank is None:
        return None
    axis = facts.integer(node, "axis", -2) % rank
    inner = [d for d in range(1, rank) if d != axis]
    mode = facts.string(node, "mode", "linear")
    first = "indices" if len(node.input) > 2 and node.input[2] else "start"
    return f"""(cache, update, indices) => (y) {{
        one = Constant <value_ints: ints = [1]> ()
        start = Constant <value_ints: ints = [0]> ()
        begin = Constant <value_int: int = 0> ()
        step = Constant <value_int: int = 1> ()
        along = Constant <value_int: int = {axis}> ()
        inner = Constant <value_ints: ints = [{", ".join(map(str, inner))}]> ()
        shape = Shape (update)
        rows = Gather (shape, along)
        places = Range (begin, rows, step)
        written = Unsqueeze ({first}, one)
        plain = Add (written, places)
        whole = Shape (cache)
        length = Gather (whole, along)
        at = {"Mod (plain, length)" if mode == "circular" else "Identity (plain)"}
        thin = Unsqueeze (at, inner)
        index = Expand (thin, shape)
        y = ScatterElements <axis: int = {axis}> (cache, index, update)
    }}"""


def _saturating(node: onnx.NodeProto, types: Types) -> str | None:
    """A Cast to an 8-bit float that saturates: clipped before, and NaN, which Clip may lose, put back."""
    to = facts.integer(node, "to", 0)
    if to not in FLOAT8 or not facts.integer(node, "saturate", 1):
        return None
    return f"""(x) => (y) {{
        most = Constant <value_float: float = {FLOAT8[to]}> ()
        high = CastLike (most, x)
        low = Neg (high)
        clipped = Clip (x, low, high)
        odd = IsNaN (x)
        kept = Where (odd, x, clipped)
        y = Cast <saturate: int = 0, to: int = {to}> (kept)
    }}"""


def _bit_cast(node: onnx.NodeProto, types: Types) -> str | None:
    """Between integers of one width, where a Cast wraps; a bool has the bits of 0 and 1."""
    to, of = facts.integer(node, "to", 0), types[0].tensor_type.elem_type
    same = INTEGERS.get(of, 0) == INTEGERS.get(to, -1) or (of == BOOL and INTEGERS.get(to) == 8)
    return f"(x) => (y) {{ y = Cast <to: int = {to}> (x) }}" if same else None


def _determinant(node: onnx.NodeProto, types: Types) -> str | None:
    """Of matrices up to 4x4, by Leibniz: the sum over all permutations p of sign(p)·Π a[i, p(i)]."""
    shape = facts.shape(types[0])
    n = shape[-1] if shape else None
    if n is None or not 0 < n <= LARGEST:
        return None
    orders = list(permutations(range(n)))
    signs = [float((-1) ** sum(p[i] > p[j] for j in range(n) for i in range(j))) for p in orders]
    places = [i * n + p[i] for p in orders for i in range(n)]
    return f"""(x) => (y) {{
        front = Shape <end: int = -2> (x)
        flat = Constant <value_ints: ints = [{n * n}]> ()
        long = Concat <axis: int = 0> (front, flat)
        elements = Reshape (x, long)
        listed = Constant <value_ints: ints = [{", ".join(map(str, places))}]> ()
        split = Constant <value_ints: ints = [{len(orders)}, {n}]> ()
        places = Reshape (listed, split)
        factors = Gather <axis: int = -1> (elements, places)
        last = Constant <value_ints: ints = [-1]> ()
        products = ReduceProd <keepdims: int = 0> (factors, last)
        given = Constant <value_floats: floats = [{", ".join(map(str, signs))}]> ()
        signs = CastLike (given, x)
        y = MatMul (products, signs)
    }}"""


FORMS: dict[str, Form] = {
    "BitCast": _bit_cast, "Cast": _saturating, "CumProd": _cumprod, "GRU": _recurrent, "LSTM": _recurrent,
    "DeformConv": windows.deform_conv, "Det": _determinant,
    "MaxUnpool": windows.max_unpool, "RNN": _recurrent, "TensorScatter": _tensor_scatter, "Unsqueeze": _unsqueeze,
}  # fmt: skip
