"""The one type that flows on the workstation: a frozen ONNX model with its door, its contract and its history."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun import distribution, files, guard
from edgerun.errors import EdgerunError, Unsupported, out_of_memory
from edgerun.runtime.spec import TensorSpec
from edgerun.specs import require_arrays, specs

if TYPE_CHECKING:
    import onnx
    import onnx_ir

HISTORY = "edgerun.history"
PREPROCESSING, POSTPROCESSING = "edgerun.preprocessing", "edgerun.postprocessing"
DEVICE = "this reads the model as a graph, which takes more than a device install has"
COMPILED = {
    ".xml": "OpenVINO's",
    ".ort": "ONNX Runtime's own",
    ".engine": "TensorRT's",
    ".recipe": "a recipe",
}  # no ONNX
WHOLE_BYTES = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16})  # TensorProto types that are not packed
# What a provider compiled stands in a model as bytes (EPContext); onnx_ir would say so in every step.
logging.getLogger("onnx_ir.serde").addFilter(lambda record: "ep_cache_context" not in record.getMessage())


@dataclass(frozen=True)
class Step:
    """One thing that was done to a model: `name` as `quantize/static_int8`, with digests (SHA-256) before and after.

    `options` are JSON values; `data` is the digest of the calibration data ("" when none was used).
    """

    name: str
    version: str
    options: Mapping[str, Any] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    data: str = ""


@dataclass(frozen=True)
class Model:
    """A frozen model. `ir` is owned by this object: clone it before changing anything.

    `inputs` and `outputs` are the graph's door; `preprocessing` and `postprocessing` are the contracts as JSON values,
    or None; `history` is every Step since the model came in.
    """

    ir: onnx_ir.Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Mapping[str, Any] | None = None
    history: tuple[Step, ...] = ()
    postprocessing: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: onnx_ir.Model) -> Model:
        """Take an `onnx_ir.Model`, reading history and contracts out of its `metadata_props`.

        Initializers that name a file by its absolute path come into memory, or are mapped in a model over 1.8 GB.
        """
        from edgerun import external

        external.attach(model)
        if "ai.onnx" in model.opset_imports:  # the default domain's long name
            model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
        props = model.metadata_props
        try:
            history = tuple(Step(**step) for step in json.loads(props.get(HISTORY, "[]")))
            before, after = (
                json.loads(props[key]) if key in props else None for key in (PREPROCESSING, POSTPROCESSING)
            )
            for contract in (before, after):
                if not isinstance(contract, dict | None):
                    raise TypeError(f"the contract is a {type(contract).__name__}")
        except (ValueError, TypeError, RecursionError) as error:
            raise EdgerunError(
                "the model's edgerun.* metadata is damaged", got=str(error), do="remove these metadata_props"
            ) from error
        given = [value for value in model.graph.inputs if value.name not in model.graph.initializers]  # no default
        return cls(model, specs(given), specs(model.graph.outputs), before, history, after)

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read an `.onnx` file that passed the static guard; weights beside it are mapped from 1.8 GB on.

        Raises EdgerunError when it is refused, and Unsupported where onnx is not installed (a device).
        """
        try:
            import onnx_ir  # noqa: F401
        except ImportError as error:
            raise Unsupported(DEVICE, got=str(error), do=distribution.install("compress")) from error
        path = files.path_of(path, "a path, or a Model", "edgerun.model.Model.from_bytes(…), or .from_proto(…)")
        try:
            guard.check_onnx(path)
            return _imported(cls.of(_read(path)))
        except EdgerunError as error:
            raise _refusal(error, path) from None
        except Exception as error:  # protobuf's, onnx_ir's and Python's own: damage that sizes alone don't show
            if out_of_memory(error):
                raise
            raise EdgerunError(f"{path}: the file is damaged", got=str(error)[:300], do="export it again") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> Model:
        """As `load`, for the bytes of an `.onnx` file that names no data outside itself."""
        try:
            import onnx
        except ImportError as error:
            raise Unsupported(DEVICE, got=str(error), do=distribution.install("compress")) from error
        guard.check_bytes(data)
        try:
            return _imported(cls.from_proto(onnx.ModelProto.FromString(data)))
        except EdgerunError:
            raise
        except Exception as error:  # protobuf's and onnx_ir's: damage that sizes alone don't show
            if out_of_memory(error):
                raise
            raise EdgerunError("the model is damaged", got=str(error)[:300], do="export it again") from error

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto) -> Model:
        """Take an `onnx.ModelProto`; its arrays are shared until something changes them."""
        import onnx_ir as ir

        require_arrays(proto)
        return cls.of(ir.from_proto(proto))

    def to_proto(self) -> onnx.ModelProto:
        """The model as protobuf, history and contract included; what is mapped is named by its file's absolute path."""
        import onnx_ir as ir

        self._tell()
        return ir.to_proto(self.ir)

    def to_bytes(self) -> bytes:
        """The model as one deterministic byte string. Raises EdgerunError at 2 GiB, protobuf's limit; MemoryError."""
        if self.is_large():
            raise EdgerunError("the model is over 2 GiB", do="save it to a file: weights go beside it")
        from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

        try:
            return bytes(self.to_proto().SerializeToString(deterministic=True))
        except EncodeError as error:  # below its limit, it says so of memory alone
            raise MemoryError(str(error)) from error

    def parts(self) -> tuple[bytes, dict[str, np.ndarray], Path | None]:
        """What a runtime opens: `to_bytes` alone, or, from 256 MB of weights on, the graph, the weights in memory that
        it names as external, and the folder in whose files the others lie (`edgerun.external.apart`): bytes would hold
        each weight once more, and so would what a runtime reads of them."""
        from edgerun import external

        if self.weight_bytes() <= min(external.APART, external.ABOVE):
            return self.to_bytes(), {}, None
        self._tell()
        return external.apart(self.ir)

    def save(self, path: str | Path, beside: int | None = None) -> None:
        """Write atomically; weights over 1.8 GB, or over `beside` bytes, go to a file beside it, one at a time
        (`edgerun.pair.write`)."""
        from edgerun import external, pair

        if self.weight_bytes() <= min(external.ABOVE, external.ABOVE if beside is None else beside):
            pair.replace(Path(path), self.to_bytes())
            return
        self._tell()
        pair.write(Path(path), *external.split(self.ir))

    def digest(self) -> str:
        """SHA-256 over the graph and then its weights; `edgerun.*` metadata is left out: history does not change it."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        from edgerun import external

        props = self.ir.metadata_props
        told = dict(props)
        for key in told:
            if key.startswith("edgerun."):
                del props[key]
        try:
            data, weights = external.split(self.ir)
        finally:
            props.clear()  # in their old order again
            props.update(told)
        return external.digest(data, weights)

    @property
    def metadata(self) -> dict[str, str]:
        """What a session of it tells as its metadata: the graph's, and history and contracts."""
        return {**self.ir.metadata_props, **self._metadata()}

    def clone(self) -> onnx_ir.Model:
        """A private copy of the graph, history and contracts in it; weights are shared until they are replaced."""
        self._tell()
        return self.ir.clone()

    def weight_bytes(self) -> int:
        """Bytes of all initializers."""
        from edgerun import external

        return external.weight_bytes(self.ir)

    def is_large(self) -> bool:
        """Whether its weights lie beside the graph in a file, 1.8 GB and more: protobuf ends at 2 GiB."""
        from edgerun import external

        return self.weight_bytes() > external.ABOVE

    def with_step(self, step: Step) -> Model:
        """The same model with one more Step in its history."""
        return self.retold(self.preprocessing, (*self.history, step))

    def retold(self, preprocessing: Mapping[str, Any] | None, history: tuple[Step, ...]) -> Model:
        """The same graph with this contract and history; a digest that is known goes along."""
        return self._replaced(preprocessing=preprocessing, history=history)

    def answering(self, postprocessing: Mapping[str, Any] | None) -> Model:
        """The same graph with this contract of what its outputs mean."""
        return self._replaced(postprocessing=postprocessing)

    def _replaced(self, **changes: Any) -> Model:
        other = replace(self, **changes)
        if known := vars(self).get("_digest"):
            vars(other)["_digest"] = known
        return other

    def _tell(self) -> None:
        """History and contracts into the graph's metadata."""
        told = self._metadata()
        for key in {HISTORY, PREPROCESSING, POSTPROCESSING} - told.keys():
            self.ir.metadata_props.pop(key, None)
        self.ir.metadata_props.update(told)

    def _metadata(self) -> dict[str, str]:
        texts = {HISTORY: json.dumps([asdict(s) for s in self.history], sort_keys=True)} if self.history else {}
        for key, contract in ((PREPROCESSING, self.preprocessing), (POSTPROCESSING, self.postprocessing)):
            if contract is not None:
                texts[key] = json.dumps(contract, sort_keys=True)
        return texts


def _refusal(error: EdgerunError, path: Path) -> EdgerunError:
    """`error`, or for what was compiled from an ONNX file, that one."""
    if path.suffix not in COMPILED or not path.is_file():
        return error
    do = "give the .onnx that it was made from; edgerun compress writes one for every --target with -o small.onnx"
    return EdgerunError(f"{path}: this reads ONNX", got=COMPILED[path.suffix], wanted="an .onnx file", do=do)


def _read(path: Path) -> onnx_ir.Model:
    """The graph of an `.onnx` file, every weight in an array of its own.

    Protobuf frees a message only as a whole: weights left in it would stay after all of them but one were replaced.
    """
    import onnx
    import onnx_ir as ir

    proto, arrays = onnx.load_model(path, load_external_data=False), {}
    require_arrays(proto)
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) >= 1024 and tensor.data_type in WHOLE_BYTES:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            arrays[tensor.name] = np.frombuffer(tensor.raw_data, dtype).reshape(tensor.dims)
            tensor.ClearField("raw_data")
    model: onnx_ir.Model = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    for name, array in arrays.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    return model


def _imported(model: Model) -> Model:
    """The model itself. Raises EdgerunError for a node whose domain's opset it does not import: nobody knows what the
    node means."""
    found: Any = model.ir
    functions = {(key[0], key[1]) for key in found.functions}
    for part in (found.graph, *found.functions.values()):
        known = {"", "ai.onnx", *found.opset_imports, *getattr(part, "opset_imports", ())}
        for node in part.all_nodes():
            if node.domain not in known and (node.domain, node.op_type) not in functions:
                name = node.name or node.outputs[0].name
                raise EdgerunError(
                    "a node's domain has no opset import", got=f"{name} ({node.domain}.{node.op_type})",
                    wanted=f"an opset_import of {node.domain!r}", do="export the model again with it",
                )  # fmt: skip
    return model
