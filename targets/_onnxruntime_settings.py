"""ONNX Runtime's SessionOptions, out of ours."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import Options, machine
from edgerun.targets import _onnxruntime_providers as providers

# Our keys in Options.extra, beside the providers' and ONNX Runtime's own session.*, optimization.* and mlas.* keys.
OPTIMIZATION, PATTERN, FORMAT = "graph_optimization_level", "enable_mem_pattern", "FORMAT"
ORDER = "execution_order"
ORDERS = {"default": "DEFAULT", "priority": "PRIORITY_BASED"}
LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
MEMORY, SMALL = "MEMORY", "small"
SPINNING = "SPINNING"
ARENA = "enable_cpu_mem_arena"
FORMATS = ("onnx", "ort", "optimized", "context")  # what `compile` makes
# It reads bytes that Python has given up by then: a segmentation fault with 1.31.
REFUSED = {"session.use_ort_model_bytes_directly": "load an .ort file by its name: it is mapped, not copied"}
FOLDER = "session.model_external_initializers_file_folder_path"
BLOCKED_MATH = "session.qdq_matmulnbits_accuracy_level"  # as MatMulNBits' accuracy_level
FOLDED = (FOLDER, "session.use_memory_mapped_ort_model")  # which 1.31 for x86-64 has in its instructions, not as text
_KEY = rb"\0((?:session|optimization|mlas)\.[\w.]+)(?=\0)"
PREPACKING = "session.disable_prepacking"
SPINS = ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning")
SHARED = "session.use_env_allocators"  # the arena that was registered last, in place of one of the session's own
_REGISTERING = threading.Lock()
EXACT = 1  # kSameAsRequested: an arena grows by what is asked for, and not to the next power of two
TAKES = {
    f"{FORMAT}={'|'.join(FORMATS)}": "what compile makes: the model, optimized (.ort, .onnx), by the provider",
    **providers.TAKES,
    f"{MEMORY}={SMALL}": "what a run took goes back to the system when it ends",
    f"{SPINNING}=0|1": "threads that wait do so busily; 0 where a cgroup pays for fewer cores than there are",
    f"{OPTIMIZATION}={'|'.join(LEVELS)}": "how far the graph is optimized; all where nothing is said",
    f"{PATTERN}=0|1": "memory of a run is planned ahead; 1 where nothing is said",
    f"{ORDER}={'|'.join(ORDERS)}": "priority: nodes run as soon as they can; default where nothing is said",
    f"{ARENA}=0|1": "memory that was freed is kept for the next run; 1 where nothing is said",
    "session.*, optimization.*, mlas.*": "ONNX Runtime's own keys",
}


def settings(runtime: Any, options: Options, own: Any = None) -> Any:
    """SessionOptions of `runtime`, or the caller's `own`, where what is left open is set. Raises EdgerunError for a key
    or value that there is none of."""
    found = runtime.SessionOptions() if own is None else own
    if not found.intra_op_num_threads:
        found.intra_op_num_threads = machine.threads(options.threads, options.streams)
    if own is None:
        found.inter_op_num_threads = 1
        found.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        found.log_severity_level = 4  # errors come back as exceptions; the log would only repeat them
    keep = _told if own is None else leave  # in new ones nothing stands yet, and to be told so takes 0.1 ms
    for key, do in REFUSED.items():
        if keep(found, key, "0") != "0":
            raise Unsupported(f"{key} is not safe from Python", got="1", do=do)
    # 4-bit weights in Q/DQ form are multiplied in float32, as the model says; else it rounds their inputs to 8 bits.
    keep(found, BLOCKED_MATH, "1")
    # A spinning thread spends the quota that the others need; one thread alone has none to wait for.
    if found.intra_op_num_threads > 1 and machine.quota() < max(machine.visible(), found.intra_op_num_threads):
        keep(found, SPINS[0], "0")
    if providers.choice(options).key != "CPU":
        keep(found, providers.RECORD, "1")
        runtime.set_default_logger_severity(4)
    for key, value in options.extra.items():
        if key in providers.KEYS or (key == FORMAT and value in FORMATS) or (key, value) == (MEMORY, SMALL):
            continue  # of the provider, of `compile`, of the runs
        if key.startswith("mlas."):
            _require_kernels(runtime, key, value)
        if key in REFUSED:
            raise Unsupported(f"{key} is not safe from Python", got=value, do=REFUSED[key])
        if key == OPTIMIZATION and value in LEVELS:
            found.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, LEVELS[value])
        elif key == ORDER and value in ORDERS:
            found.execution_order = getattr(runtime.ExecutionOrder, ORDERS[value])
        elif key == SPINNING and value in ("0", "1"):
            for name in SPINS:
                found.add_session_config_entry(name, value)
        elif key in (PATTERN, ARENA) and value in ("0", "1"):
            setattr(found, key, value == "1")
        elif key.startswith(("session.", "optimization.", "mlas.")):
            _require_known(runtime, key)
            found.add_session_config_entry(key, value)
        else:
            raise EdgerunError(f"ONNX Runtime has no option {key}={value}", wanted=", ".join(TAKES))
    return found


def leave(settings: Any, key: str, value: str) -> str:
    """The entry `key`, which is set where nothing was said of it: saying it twice is warned of."""
    try:
        return str(settings.get_session_config_entry(key))
    except RuntimeError:
        return _told(settings, key, value)


def _told(settings: Any, key: str, value: str) -> str:
    settings.add_session_config_entry(key, value)
    return value


def unpacked(settings: Any, options: Options) -> None:
    """Let weights stay in the files that they are mapped from, unless `options` say otherwise.

    Laid out for the kernels they would be in memory, which the system cannot take back; a run of one row is as fast.
    """
    if PREPACKING not in options.extra:
        settings.add_session_config_entry(PREPACKING, "1")


def _require_kernels(runtime: Any, key: str, value: str) -> None:
    from edgerun.targets import _onnxruntime_arm as arm

    if key in arm.KEYS:
        arm.require(runtime, key, value)


def _require_known(runtime: Any, key: str) -> None:
    # Raise EdgerunError for a key that is nowhere in the runtime's own library, which takes it without a word.
    #
    # A library that tells of no key at all has them elsewhere: then every one is taken.
    if key in FOLDED or holds(runtime.__file__, key.encode() + b"\0"):
        return
    known = {found.decode() for path in _libraries(runtime.__file__) for found in re.findall(_KEY, path.read_bytes())}
    if known:
        from difflib import get_close_matches

        near = " or ".join(get_close_matches(key, known, cutoff=0.8))
        do = f"did you mean {near}?" if near else "leave it out"
        raise EdgerunError(
            f"ONNX Runtime {runtime.__version__} has no option {key}", wanted="a key that its library holds", do=do
        )


@functools.cache
def holds(runtime: str, mark: bytes) -> bool:
    """Whether these bytes stand in the library of a runtime, given as its module's `__file__`.

    It is read in parts: a bound on memory may be near.
    """
    for path in _libraries(runtime):
        with path.open("rb") as file:
            last = b""
            while part := file.read(1 << 20):
                if mark in (last := last + part):
                    return True
                last = last[-len(mark) :]
    return False


def _libraries(runtime: str) -> Iterable[Path]:
    return (Path(runtime).parent / "capi").glob("*.so*")


def lean(options: Options) -> bool:
    """Whether memory counts more than time: freed blocks go back to the system, and so does what a run allocated."""
    return options.extra.get(MEMORY) == SMALL or bool(options.max_rss and providers.choice(options).key == "CPU")


@contextmanager
def bounded(runtime: Any, settings: Any, options: Options, payload: bytes | Path) -> Iterator[None]:
    """The session that is made inside, of `settings`, has an arena of its own, which ends where `options.max_rss` does:
    at what the process may hold beyond now and the weights, which lie outside and are as large as `payload`."""
    if not (options.max_rss and lean(options) and settings.enable_cpu_mem_arena):
        yield
        return
    from edgerun.runtime import memory

    kind = runtime.OrtMemoryInfo("Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT)
    settings.add_session_config_entry(SHARED, "1")
    with _REGISTERING:
        weights = len(payload) if isinstance(payload, bytes) else payload.stat().st_size
        room = max(1, options.max_rss - memory.held() - weights)
        arena = runtime.OrtArenaCfg({"max_mem": room, "arena_extend_strategy": EXACT})
        runtime.create_and_register_allocator(kind, arena)  # replaces the last one, which its sessions keep
        yield


def runs(runtime: Any, options: Options) -> Any:
    """RunOptions of `runtime` for every run, or None. Where memory is short, what a run took goes back at its end."""
    if not lean(options):
        return None
    if providers.choice(options).key != "CPU":
        raise Unsupported(f"{MEMORY}={SMALL} is of the CPU's memory", got=f"{providers.PROVIDER} as well")
    found = runtime.RunOptions()
    if options.extra.get(ARENA) != "0":
        found.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return found
