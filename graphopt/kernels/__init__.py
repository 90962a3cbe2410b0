"""The update as kernels for the CPU, a library that is built where there is a C compiler.

Each function of `graphopt.update.core` runs as one kernel, in one pass over the memory, where a
session has them; where it does not, ONNX Runtime runs the function's body, operator by operator.
The results are the same bits on ONNX Runtime 1.32, and close on older ones.

Kernels exist for float32 tensors, which is all that graphopt calls them with.
"""

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import onnx

from graphopt import _runtime
from graphopt.update.functions import DOMAIN

_REGISTERED = "graphopt.kernels"  # what the library leaves in the options


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
    - A node of a kernel's name with tensors other than float32 does not load; graphopt makes none.
    - A model that ONNX Runtime itself saves with these options (``optimized_model_filepath``)
      needs the kernels to be loaded again.

    Calling it again with the same options is harmless.

    Args:
        session_options: An ``onnxruntime.SessionOptions``.
        model: Register only the kernels that this model calls. ONNX Runtime takes about 0.15 ms
            for each of the 480 whenever it creates a session.

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


def register(session_options: Any, wanted: Iterable[str]) -> bool:
    """Let the sessions of these options have these kernels; returns whether they do.

    Options share what is registered, so those that have kernels already get these too.
    """
    path = library()
    native = None if path is None else _load(path)
    if native is None:
        return False
    for name in wanted:
        native.want(name.encode())
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception:  # noqa: BLE001 - ONNX Runtime's have no common base
        return False
    return True


def registered(session_options: Any) -> bool:
    """Whether the sessions of these options have kernels."""
    try:
        session_options.get_session_config_entry(_REGISTERED)
    except RuntimeError:
        return False
    return True


def called(model: onnx.ModelProto, providers: Sequence[Any]) -> tuple[str, ...]:
    """The functions of a model that the kernels are for, sorted.

    Args:
        model: A training graph.
        providers: As a session takes them; the kernels are for the CPU alone.
    """
    if set(_runtime.provider_names(providers)) - {_runtime.CPU}:
        return ()
    nodes = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    return tuple(sorted(nodes & names()))


def names() -> frozenset[str]:
    """The functions that have a kernel; none if the library is missing or does not load."""
    path = library()
    native = None if path is None else _load(path)
    return frozenset() if native is None else native.names


class _Library:
    def __init__(self, path: Path) -> None:
        native = ctypes.CDLL(str(path))
        self.want = native.graphopt_want_kernel
        self.want.argtypes, self.want.restype = [ctypes.c_char_p], None
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
