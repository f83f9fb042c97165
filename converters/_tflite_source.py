"""The source as TFLite's own interpreter runs it, on its builtin kernels and without delegates."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgerun.converters._ort import first_line
from edgerun.converters._tflite_files import Net
from edgerun.errors import EdgerunError
from edgerun.passes import Feeds


class Source:
    """A file as a function; `names` are what the converted model calls its inputs, in the net's order."""

    def __init__(self, data: bytes, net: Net, names: Sequence[str]) -> None:
        self._data, self._net, self.names = data, net, names
        self._inputs = dict(zip(names, net.inputs.values(), strict=True))
        self._called = dict(zip(names, net.inputs, strict=True))

    @functools.cached_property
    def _interpreter(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType  # type: ignore[import-untyped]

        try:
            return Interpreter(
                model_content=self._data, num_threads=1, experimental_preserve_all_tensors=True,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise EdgerunError("TFLite's interpreter refuses the file", got=first_line(error)) from error

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The outputs, by the net's names."""
        self.invoke(feeds)
        return {name: self.tensor(index) for name, index in self._net.outputs.items()}

    def tensor(self, index: int) -> np.ndarray:
        """What a tensor of the net holds after the latest run."""
        return np.asarray(self._interpreter.get_tensor(index, self._net.subgraph))

    def invoke(self, feeds: Feeds) -> None:
        """Run once; every tensor keeps what it held."""
        interpreter = self._interpreter
        if self._net.subgraph:
            self._signature(feeds)
            return
        sizes = {detail["index"]: detail["shape"].tolist() for detail in interpreter.get_input_details()}
        for name, index in self._inputs.items():
            if sizes[index] != list(feeds[name].shape):
                interpreter.resize_tensor_input(index, feeds[name].shape)
        try:
            interpreter.allocate_tensors()
            interpreter.reset_all_variables()  # an LSTM would go on from its last run
            for name, index in self._inputs.items():
                interpreter.set_tensor(index, feeds[name])
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise _fails(feeds, error) from error

    def _signature(self, feeds: Feeds) -> None:
        """Run another subgraph than the first, which only a signature reaches."""
        try:
            run = self._interpreter.get_signature_runner(self._net.signature)
            run(**{self._called[name]: array for name, array in feeds.items()})
        except (RuntimeError, ValueError) as error:
            raise _fails(feeds, error) from error


def _fails(feeds: Feeds, error: Exception) -> EdgerunError:
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    return EdgerunError("TFLite's interpreter fails", got=f"{shapes}: {first_line(error)}",
                        do="give --input with fixed sizes that the model takes")  # fmt: skip
