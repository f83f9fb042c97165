"""The sizes inside a TFLite net as far as those of its inputs tell, and what it computes from sizes as constants.

A file may leave open what follows from its inputs: it reshapes by numbers that it takes from the shape of a tensor.
Here every operator is followed once, on sizes alone. What is known then stands in the net: sizes in its tensors, whole
numbers as constants, and the operators that made those are gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edgerun.converters._tflite_contents import CONTENTS, MOST, Known, Size, Sizes, cut
from edgerun.converters._tflite_files import Net, Operator, Tensor
from edgerun.converters._tflite_parts import FAR, entries

_INTEGERS = ("int32", "int64")
_WHOLE = np.iinfo(np.int32).max  # an end that no axis reaches


def settled(net: Net, doors: Sequence[Sequence[Size]]) -> Net:
    """The net with all that is known for inputs of the sizes `doors`, in its order, where a name is an open size.

    Sizes that the file tells stay; what does not fit together is left for the rules to refuse.
    """
    tensors = list(net.tensors)
    sizes: dict[int, Sizes] = {i: tensor.shape for i, tensor in enumerate(tensors)}
    sizes |= {index: tuple(door) for door, index in zip(doors, net.inputs.values(), strict=True)}
    contents = {
        i: tensor.data.astype(object)
        for i, tensor in enumerate(tensors)
        if tensor.data is not None and tensor.dtype in _INTEGERS and tensor.data.size <= MOST and not tensor.quant
    }
    operators = []
    for operator in net.operators:
        known = _followed(operator, tensors, sizes, contents)
        arrays = {index: _array(contents.get(index), tensors[index].dtype) for index in operator.outputs}
        if arrays and all(array is not None for array in arrays.values()):
            for index, array in arrays.items():
                tensors[index] = replace(tensors[index], data=array)
        else:
            operators.append(_opened(operator, known, tensors))
    for index, found in sizes.items():
        shape = tuple(size if isinstance(size, int) else None for size in found)
        tensors[index] = replace(tensors[index], shape=shape) if tensors[index].shape != shape else tensors[index]
    return replace(net, tensors=tensors, operators=operators)


def _array(content: np.ndarray | None, dtype: str) -> np.ndarray | None:
    """Contents that are all known, and that the dtype holds."""
    try:
        return None if content is None else content.astype(dtype)
    except (TypeError, ValueError, OverflowError):  # a None, a name, a number that is too large
        return None


def _followed(
    operator: Operator, tensors: Sequence[Tensor], sizes: dict[int, Sizes], contents: dict[int, np.ndarray]
) -> Known:
    """Adds what is known of what one operator makes; the operator with what it reads."""
    reads = operator.inputs
    known = Known(operator.options, [sizes.get(i, ()) for i in reads], [contents.get(i) for i in reads],
                  [sizes[i] for i in operator.outputs])  # fmt: skip
    try:
        found = SIZES[operator.kind](known)
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError):
        found = []
    for index, told in zip(operator.outputs, found, strict=False):
        have = sizes[index]
        sizes[index] = tuple(map(_either, have, told)) if len(have) == len(told) else told
    known = replace(known, made=[sizes[i] for i in operator.outputs])
    if all(tensors[i].dtype in _INTEGERS and tensors[i].quant is None and _few(sizes[i]) for i in operator.outputs):
        try:
            arrays = CONTENTS[operator.kind](known)
        except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError):
            arrays = []
        for index, array in zip(operator.outputs, arrays, strict=False):
            contents |= {index: array} if tuple(array.shape) == sizes[index] else {}
    return known


def _few(sizes: Sizes) -> bool:
    """Whether so many elements are followed."""
    return all(isinstance(size, int) for size in sizes) and math.prod(sizes) <= MOST  # type: ignore[arg-type]


def _either(have: Size, told: Size) -> Size:
    return told if have is None else have


def _opened(operator: Operator, known: Known, tensors: list[Tensor]) -> Operator:
    """A slice up to the end of an axis of open size, with an end that says so."""
    place = {"STRIDED_SLICE": 2, "SLICE": 2}.get(operator.kind)
    if place is None or known.contents[place] is None:
        return operator
    whole, ends = _WHOLE if operator.kind == "STRIDED_SLICE" else -1, known.content(place).tolist()
    begins = known.contents[1]
    plain = operator.kind == "SLICE" or not (operator.options.ellipsisMask or operator.options.newAxisMask)
    if begins is None or not plain or len(ends) != len(begins):
        return operator
    pairs = zip(begins.tolist(), ends, known.sizes[0], strict=False)
    ends = [whole if isinstance(end, str) and end == size and begin == 0 else end for begin, end, size in pairs]
    if not all(isinstance(end, int) for end in ends) or ends == known.content(place).tolist():
        return operator
    old = tensors[operator.inputs[place]]
    tensors.append(replace(old, name=f"{old.name}/opened", data=np.array(ends, old.dtype)))
    inputs = list(operator.inputs)
    inputs[place] = len(tensors) - 1
    return replace(operator, inputs=tuple(inputs))


def _same(known: Known) -> list[Sizes]:
    return [known.sizes[0]]


def _broadcast(known: Known) -> list[Sizes]:
    """Of sizes that meet, the one that is not 1; a number wins against what is not known, which is it or 1."""
    rank, found = max(map(len, known.sizes)), list[Size]()
    for met in zip(*((*[1] * (rank - len(sizes)), *sizes) for sizes in known.sizes), strict=True):
        wide = [size for size in met if size != 1]
        numbers = [size for size in wide if isinstance(size, int)]
        found.append(numbers[0] if numbers else wide[0] if len(set(wide)) == 1 else None if wide else 1)
    return [tuple(found)]


def _steps(size: Size, kernel: Size, stride: int, dilation: int, same: bool) -> Size:
    """⌈n/s⌉ places, or ⌈(n - d·(k - 1))/s⌉ without padding."""
    if stride == 1 and (same or kernel == 1):
        return size
    if not isinstance(size, int) or not isinstance(kernel, int):
        return None
    return -(-(size - (0 if same else dilation * (kernel - 1))) // stride)


def _window(known: Known) -> list[Sizes]:
    options, sizes = known.options, known.sizes[0]
    pooled = hasattr(options, "filterHeight")
    kernel = (options.filterHeight, options.filterWidth) if pooled else known.sizes[1][1:3]
    dilations = [getattr(options, f"dilation{way}Factor", 1) for way in "HW"]
    strides = (options.strideH, options.strideW)
    places = [_steps(*each, options.padding == 0) for each in zip(sizes[1:3], kernel, strides, dilations, strict=True)]
    return [(sizes[0], *places, sizes[3] if pooled else None)]


def _padded(known: Known) -> list[Sizes]:
    amounts = np.reshape(known.whole(1), (-1, 2)).sum(1).tolist()
    return [tuple(s + n if isinstance(s, int) else s if not n else None for s, n in zip(known.sizes[0], amounts,
                                                                                         strict=True))]  # fmt: skip


def _reduced(known: Known) -> list[Sizes]:
    axes = {known.axis(axis) for axis in known.whole(1)}
    if getattr(known.options, "keepDims", False):
        return [tuple(1 if axis in axes else size for axis, size in enumerate(known.sizes[0]))]
    return [tuple(size for axis, size in enumerate(known.sizes[0]) if axis not in axes)]


def _reshape(known: Known) -> list[Sizes]:
    """-1, or the one size that is not known, is what the others leave; open sizes that stay cancel out."""
    target = known.content(1).tolist() if len(known.contents) > 1 else [int(n) for n in known.options.newShape]
    target = [None if size == -1 else size for size in target]
    before, after = list(known.sizes[0]), [size for size in target if size is not None]
    for size in [size for size in after if isinstance(size, str) and size in before]:
        before.remove(size)
        after.remove(size)
    if target.count(None) == 1 and all(isinstance(size, int) for size in (*before, *after)):
        rest, held = math.prod(before), math.prod(after)  # type: ignore[arg-type]
        target[target.index(None)] = rest // held
    elif target.count(None) == 1 and not after and len(before) == 1:
        target[target.index(None)] = before[0]
    return [tuple(target)]


def _concatenation(known: Known) -> list[Sizes]:
    axis, found = known.axis(known.options.axis), [*_broadcast(known)[0]]
    along = [sizes[axis] for sizes in known.sizes]
    found[axis] = sum(along) if all(isinstance(size, int) for size in along) else None  # type: ignore[arg-type]
    return [tuple(found)]


def _pack(known: Known) -> list[Sizes]:
    found = list(known.sizes[0])
    found.insert(known.options.axis % (len(found) + 1), len(known.sizes))
    return [tuple(found)]


def _unpack(known: Known) -> list[Sizes]:
    axis = known.axis(known.options.axis)
    return [known.sizes[0][:axis] + known.sizes[0][axis + 1 :]] * len(known.made)


def _split(known: Known) -> list[Sizes]:
    (axis,) = known.whole(2)
    found = []
    for part in known.whole(1):
        sizes = list(known.sizes[0])
        sizes[axis] = part if part >= 0 else None
        found.append(tuple(sizes))
    return found


def _transposed(known: Known) -> list[Sizes]:
    return [tuple(known.sizes[0][axis] for axis in known.whole(1))]


def _expanded(known: Known) -> list[Sizes]:
    (axis,), found = known.whole(1), list(known.sizes[0])
    found.insert(axis % (len(found) + 1), 1)
    return [tuple(found)]


def _squeezed(known: Known) -> list[Sizes]:
    given = known.options.squeezeDims
    gone = {known.axis(int(a)) for a in given} if given is not None and len(given) else None
    pairs = list(enumerate(known.sizes[0]))
    if gone is None and not all(isinstance(size, int) for _, size in pairs):
        raise ValueError("which axes go is not known")
    return [tuple(size for axis, size in pairs if (size != 1 if gone is None else axis not in gone))]


def _strided(known: Known) -> list[Sizes]:
    found = list(known.sizes[0])
    begins, ends, strides = (known.content(index).tolist() for index in (1, 2, 3))
    cuts, gone, new = entries(known.options, begins, ends, strides, len(found))
    for axis, begin, end, step in cuts:
        if (begin, end, step) != (0, found[axis], 1) and (begin, end, step) != (0, FAR, 1):
            size = found[axis]
            found[axis] = len(range(*cut(begin, end, step).indices(size))) if isinstance(size, int) else None
    kept = [size for axis, size in enumerate(found) if axis not in gone]
    for place in new:
        kept.insert(place, 1)
    return [tuple(kept)]


def _sliced(known: Known) -> list[Sizes]:
    begins, counts = (known.content(index).tolist() for index in (1, 2))
    return [tuple((n - at if isinstance(n, int) and isinstance(at, int) else n if at == 0 else None)
                  if count == -1 else count
                  for n, at, count in zip(known.sizes[0], begins, counts, strict=True))]  # fmt: skip


def _gathered(known: Known) -> list[Sizes]:
    axis, batches = known.axis(known.options.axis), known.options.batchDims
    return [known.sizes[0][:axis] + known.sizes[1][batches:] + known.sizes[0][axis + 1 :]]


def _rows(known: Known) -> list[Sizes]:
    """What a FULLY_CONNECTED makes: a row for as many numbers as a column of weights has, or all axes but the last."""
    sizes, (units, width) = known.sizes[0], known.sizes[1]
    if known.options.keepNumDims:
        return [(*sizes[:-1], units)]
    if len(sizes) == 2 and sizes[1] == width:
        return [(sizes[0], units)]
    whole = all(isinstance(size, int) for size in sizes)
    return [(math.prod(sizes) // width if whole else None, units)]  # type: ignore[arg-type, operator]


def _product(known: Known) -> list[Sizes]:
    left, right = known.sizes
    (batch,) = _broadcast(replace(known, sizes=[left[:-2], right[:-2]]))
    return [(*batch, left[-1 if known.options.adjX else -2], right[-2 if known.options.adjY else -1])]


def _spectrum(known: Known) -> list[Sizes]:
    height, width = known.whole(1)
    return [(*known.sizes[0][:-2], height, width // 2 + 1)]


def _counted(known: Known) -> list[Sizes]:
    return [(len(range(*(known.whole(index)[0] for index in range(3)))),)]


_SAME = ("ABS", "CAST", "CEIL", "COS", "CUMSUM", "DEQUANTIZE", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "IMAG",
         "L2_NORMALIZATION", "LEAKY_RELU", "LOCAL_RESPONSE_NORMALIZATION", "LOG", "LOGICAL_NOT", "LOGISTIC",
         "LOG_SOFTMAX", "NEG", "PRELU", "QUANTIZE", "REAL", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1",
         "REVERSE_V2", "ROUND", "RSQRT", "SIGN", "SIN", "SOFTMAX", "SQRT", "SQUARE", "TANH", "ZEROS_LIKE",
         "COMPLEX_ABS")  # fmt: skip
_MET = ("ADD", "ADD_N", "DIV", "EQUAL", "FLOOR_DIV", "FLOOR_MOD", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL",
        "LOGICAL_AND", "LOGICAL_OR", "MAXIMUM", "MINIMUM", "MUL", "NOT_EQUAL", "POW", "SELECT_V2", "SQUARED_DIFFERENCE",
        "SUB")  # fmt: skip
_REDUCING = ("ARG_MAX", "ARG_MIN", "MEAN", "REDUCE_ALL", "REDUCE_ANY", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "SUM")
_WINDOWS = ("AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "L2_POOL_2D", "MAX_POOL_2D")

SIZES: dict[str, Callable[[Known], list[Sizes]]] = {
    **dict.fromkeys(_SAME, _same), **dict.fromkeys(_MET, _broadcast), **dict.fromkeys(_REDUCING, _reduced),
    **dict.fromkeys(_WINDOWS, _window), **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD"), _padded),
    "RESHAPE": _reshape, "CONCATENATION": _concatenation, "PACK": _pack, "UNPACK": _unpack, "SPLIT_V": _split,
    "TRANSPOSE": _transposed, "EXPAND_DIMS": _expanded, "SQUEEZE": _squeezed, "STRIDED_SLICE": _strided,
    "SLICE": _sliced, "GATHER": _gathered, "FULLY_CONNECTED": _rows, "BATCH_MATMUL": _product, "RFFT2D": _spectrum,
    "SHAPE": lambda known: [(len(known.sizes[0]),)], "RANGE": _counted, "FILL": lambda known: [_sizes_in(known, 0)],
    "BROADCAST_TO": lambda known: [_sizes_in(known, 1)],
}  # fmt: skip


def _sizes_in(known: Known, index: int) -> Sizes:
    return tuple(known.content(index).tolist())
