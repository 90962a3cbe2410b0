"""Functions of a graph as kernels for the CPU and for CUDA, a library built with a C compiler.

Each function of `graphopt.update.core` runs as one kernel, in one pass over the memory, where a
session has them; where it does not, ONNX Runtime runs the function's body, operator by operator.
The results are the same bits on ONNX Runtime 1.32, and close on older ones. On the CPU, so do
convolutions in two dimensions of each channel by itself, batch normalization's statistics, LSTMs
and GRUs over all steps, the gradients of these, of LayerNormalization, RMS normalization, Softmax,
Gelu, Swish, Relu, MaxPool in two dimensions, cross entropy and Gather, and, where the processor has
AVX-512, products of matrices; what they compute is rounded otherwise than in the bodies.

The library opens CUDA's driver when it needs it, which compiles the kernels for the GPU there is;
no toolkit is needed, neither to build nor to run.

Kernels are for float32; on the CPU also for float64, by names that end so, and for parameters that
are float16, with states that are float32.
"""

import ctypes
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import onnx

from graphopt import _runtime
from graphopt.local_functions import DOMAIN
from graphopt.update.functions import FLOAT16, FLOAT64, is_all_finite, is_ready

# There is none, or one that no GPU has run yet: their functions' bodies run there.
_NOT_FOR_CUDA = re.compile("Scale|ClipValue|AllFinite|WeightedSum|Float64|Float16")
_LAYER = re.compile(r"((?:Depthwise|BatchNorm|Lstm|Gru|MatMul|Turned)\w*?|[A-Z]\w*?Gradient)\d*")
_SUMS = frozenset(("WeightedSum", "WeightedSumMask"))
# What the library reads in the options, and what it leaves there.
_FOR_CUDA = "graphopt.cuda"
_REGISTERED = ("graphopt.kernels", "graphopt.kernels.cuda")


def library() -> Path | None:
    """The built library; a program without Python can register it by its path.

    Returns:
        Its path; None if there was no compiler when graphopt was installed.
    """
    folder = Path(__file__).parent
    built = (folder / f"_kernels{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in built if path.is_file()), None)


def register_kernels(session_options: Any, model: onnx.ModelProto | None = None) -> bool:
    """Let the sessions of these options run updates by the kernels.

    For programs that create their own ``onnxruntime.InferenceSession``; `Session` does it by
    itself. What such a program must take care of:

    - Its sessions run on the CPU execution provider alone. On another one, tensors would be copied
      to the CPU and back for each update.
    - The kernels cannot be taken out of the options again.
    - A node of a kernel's name with tensors of another type does not load; graphopt makes none.
    - Without ``model``, there are no kernels for float64 and float16, nor for functions whose names
      end with a number, such as ``BatchNormStatistics1``: their bodies run.
    - A model that ONNX Runtime itself saves with these options (``optimized_model_filepath``)
      needs the kernels to be loaded again.

    Calling it again with the same options is harmless.

    Args:
        session_options: An ``onnxruntime.SessionOptions``.
        model: Register only the kernels that this model calls. ONNX Runtime takes about 0.15 ms
            for each of the 1200 whenever it creates a session.

    Returns:
        Whether sessions of the options have the kernels. False if graphopt was installed without
        a compiler, the library does not load, or ONNX Runtime is older than 1.18.

    Raises:
        ImportError: ONNX Runtime is not installed.
        TypeError: These are no session options, or the model is no ``onnx.ModelProto``.

    Example:
        >>> import onnxruntime
        >>> from graphopt import Parameter, RMSProp, register_kernels, update_graph
        >>> model = update_graph(RMSProp([Parameter("w", (3,))])).model
        >>> options = onnxruntime.SessionOptions()
        >>> registered = register_kernels(options, model)
        >>> session = onnxruntime.InferenceSession(
        ...     model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        ... )
    """
    _runtime.check_session_options(session_options)
    if not isinstance(model, onnx.ModelProto | None):
        raise TypeError(f"model: got {type(model).__name__}, expected an onnx.ModelProto or None")
    return register(session_options, names() if model is None else called(model, [_runtime.CPU]))


def register(session_options: Any, wanted: Iterable[str], provider: str = _runtime.CPU) -> bool:
    """Let the sessions of these options have these kernels; returns whether they do.

    Options share what is registered, so those that have kernels already get these too.

    Args:
        session_options: An ``onnxruntime.SessionOptions``.
        wanted: The names of the kernels.
        provider: The execution provider that runs them: the CPU's or CUDA's.
    """
    path = library()
    native = None if path is None else _load(path)
    if path is None or native is None:
        return False
    for name in wanted:
        native.want(name.encode(), provider == _runtime.CUDA)
    if provider == _runtime.CUDA:
        session_options.add_session_config_entry(_FOR_CUDA, "1")
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception:  # noqa: BLE001 - ONNX Runtime's have no common base
        return False
    return True


def registered(session_options: Any) -> bool:
    """Whether the sessions of these options have kernels."""
    return any(_has_entry(session_options, key) for key in _REGISTERED)


def _has_entry(session_options: Any, key: str) -> bool:
    try:
        session_options.get_session_config_entry(key)
    except RuntimeError:
        return False
    return True


def called(model: onnx.ModelProto, providers: Sequence[Any]) -> tuple[str, ...]:
    """The functions of a model that run as kernels, sorted.

    Args:
        model: A training graph.
        providers: As a session takes them.
    """
    provider = provider_of(providers)
    if provider is None:
        return ()
    bodies = {(function.domain, function.name): function for function in model.functions}
    found, waiting = set[str](), list(model.graph.node)
    while waiting:
        node = waiting.pop()
        if node.domain == DOMAIN and has(node.op_type, provider):
            found.add(node.op_type)
        elif (node.domain, node.op_type) in bodies:
            waiting += bodies[node.domain, node.op_type].node
    return tuple(sorted(found))


def provider_of(providers: Sequence[Any]) -> str | None:
    """The execution provider whose kernels a session can run; None where there are none for it.

    On any other one, tensors would be copied to the CPU and back for each update.

    Args:
        providers: As a session takes them.
    """
    given = _runtime.provider_names(providers)
    if set(given) == {_runtime.CPU}:
        return _runtime.CPU
    if given[0] == _runtime.CUDA and set(given) <= {_runtime.CPU, _runtime.CUDA}:
        return _runtime.CUDA if has_cuda() else None
    return None


def has_cuda() -> bool:
    """Whether the library is there, and a GPU with CUDA's driver."""
    path = library()
    native = None if path is None else _load(path)
    return native is not None and bool(native.has_cuda())


def has(name: str, provider: str = _runtime.CPU) -> bool:
    """Whether there is a kernel of this name for an execution provider."""
    path = library()
    native = None if path is None else _load(path)
    if native is None:
        return False
    if provider == _runtime.CUDA and _NOT_FOR_CUDA.search(name):
        return False
    if layer := _LAYER.fullmatch(name):
        return provider == _runtime.CPU and layer[1] in native.names
    one = re.sub(r"^Foreach[1-9]\d*", "", name)
    if one.endswith(FLOAT16):
        return one == name and one.removesuffix(FLOAT16) in native.names - _SUMS
    if is_all_finite(name):
        return True
    one = one.removesuffix(FLOAT64)
    is_average = one == "MovingAverage" and name.startswith("Foreach")
    return one in native.names or is_ready(name) or is_average


def names() -> frozenset[str]:
    """The functions that have a kernel for one tensor of each kind; none without the library."""
    path = library()
    native = None if path is None else _load(path)
    return frozenset() if native is None else native.names


class _Library:
    def __init__(self, path: Path) -> None:
        native = ctypes.CDLL(str(path))
        self.want = native.graphopt_want_kernel
        self.want.argtypes, self.want.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_int
        self.has_cuda = native.graphopt_has_cuda
        self.has_cuda.argtypes, self.has_cuda.restype = [], ctypes.c_int
        name_of = native.graphopt_kernel_name
        name_of.argtypes, name_of.restype = [ctypes.c_size_t], ctypes.c_char_p
        found: list[str] = []
        while (name := name_of(len(found))) is not None:
            found.append(name.decode())
        self.names = frozenset(found)


@cache
def _load(path: Path) -> _Library | None:
    try:
        return _Library(path)
    except (OSError, AttributeError):  # for another machine, damaged, or of an older graphopt
        return None
