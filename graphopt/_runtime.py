"""The one place that imports ONNX Runtime, so that graphopt imports without it."""

import importlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import helper, parser

from graphopt.versions import IR_VERSION, MIN_OPSET

CPU = "CPUExecutionProvider"
"""The execution provider that is always there."""

CUDA = "CUDAExecutionProvider"
"""That of NVIDIA's GPUs."""

# A model that waits as `update.gate` lets writes wait.
_WAITS = f"""<ir_version: {IR_VERSION}, opset_import: ["": {MIN_OPSET}]>
wait (float[2,2] x, float[2,2] y) => (float[4] z, float[1,4] u)
    <int64[1] flat = {{-1}}, int64[2] rows = {{-1, 1}}>
{{
    waited_for = Neg (x)
    size = Size (waited_for)
    shape = Min (size, flat)
    z = Reshape (y, shape)
    matrix = Mul (shape, rows)
    u = Reshape (y, matrix)
}}"""
_INSTALL = "install graphopt[runtime] (ONNX Runtime for the CPU) or graphopt[cuda]"
_ERROR = 3  # ONNX Runtime's level of severity


def onnxruntime() -> ModuleType:
    """The installed ONNX Runtime.

    Raises:
        ImportError: None of its packages is installed.
    """
    try:
        with _hidden("onnxruntime.training"):
            return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(f"ONNX Runtime is needed to run a graph: {_INSTALL}") from error


def session_options(runtime: Any) -> Any:
    """Options for a session that reports errors only, and computes quantized operators as written.

    In integers, as the runtime would fuse them, a result may be another by one step of its scale.

    Memory is taken when a node runs, and given back when the last reader of its result has run:
    nothing is planned ahead for the sizes of a step (``enable_mem_pattern``), and no result is
    written where one of the same shape was (``enable_mem_reuse``). A plan keeps apart what is
    never held at the same time, which took up to half as much memory again; memory that is to be
    reused is held from its last reader to its next writer, which took up to a quarter more. Neither
    saved time that could be measured. On a GPU, memory on the CPU that a node of it still reads
    must not be used again in any case: once, the size that it read was another one's.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = _ERROR
    options.enable_mem_pattern = False
    options.enable_mem_reuse = False
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def of_text(runtime: Any, array: np.ndarray) -> Any:
    """The value of an array of strings, which the runtime makes of none: a model gives it."""
    tensor = onnx.TensorProto(dims=array.shape, data_type=onnx.TensorProto.STRING)
    tensor.string_data.extend(one if isinstance(one, bytes) else one.encode() for one in array.flat)
    node = helper.make_node("Constant", [], ["text"], value=tensor)
    result = helper.make_tensor_value_info("text", onnx.TensorProto.STRING, array.shape)
    model = helper.make_model(
        helper.make_graph([node], "text", [], [result]),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", MIN_OPSET)],
    )
    session = runtime.InferenceSession(
        model.SerializeToString(), session_options(runtime), providers=[CPU]
    )
    return session.run_with_ort_values(["text"], {})[0]


def check_session_options(options: Any) -> None:
    """Refuse what are no options for a session.

    Raises:
        TypeError: They are not.
    """
    if not isinstance(options, onnxruntime().SessionOptions):
        raise TypeError(
            f"session_options: got {type(options).__name__}, expected onnxruntime.SessionOptions"
        )


def checked_providers(providers: Sequence[Any] | None) -> list[Any]:
    """Execution providers as ONNX Runtime takes them: names, or tuples of a name and options.

    Raises:
        TypeError: They are not.
        ValueError: There is none.
    """
    if providers is None:
        return [CPU]
    if isinstance(providers, str) or not all(isinstance(p, str | tuple) for p in providers):
        raise TypeError(f"providers: got {providers!r}, expected a list such as ['{CPU}']")
    if not providers:
        raise ValueError("providers: got an empty list, expected at least one")
    return list(providers)


def check_available(providers: Sequence[Any]) -> None:
    """Refuse execution providers that the installed ONNX Runtime does not have.

    Raises:
        ImportError: None of its packages is installed.
        ValueError: It lacks one.
    """
    runtime = onnxruntime()
    available = runtime.get_available_providers()
    for name in provider_names(providers):
        if name not in available:
            raise ValueError(
                f"providers: '{name}' is not available, "
                f"onnxruntime {runtime.__version__} has {', '.join(available)}"
            )


def provider_names(providers: Sequence[Any]) -> list[str]:
    """The names of execution providers."""
    return [provider[0] if isinstance(provider, tuple) else provider for provider in providers]


@cache
def load_cuda(runtime: Any) -> None:
    """Load CUDA's libraries from the packages beside the runtime, which does not look there.

    Older runtimes cannot; there the system must find them.
    """
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let a package seem not to be installed, unless it has been imported already.

    Importing ``onnxruntime`` from a training package imports ``onnxruntime.training`` where that
    succeeds, and with it PyTorch: seconds, and hundreds of megabytes, for nothing.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def training_package(argument: str, without: str) -> Any:
    """The native module of onnxruntime-training.

    Args:
        argument: What needs it.
        without: What one gets without that.

    Raises:
        ImportError: Another ONNX Runtime is installed.
    """
    runtime = onnxruntime()
    native = importlib.import_module("onnxruntime.capi._pybind_state")
    if not hasattr(native, "GradientGraphBuilder"):
        raise ImportError(
            f"{argument} needs onnxruntime-training, but onnxruntime {runtime.__version__} is "
            f"installed: leave it out {without}, or install graphopt[training-cpu] in an "
            "environment of its own"
        )
    return native


def save_in_ort_format(source: Path, target: Path) -> None:
    """Write a model in ONNX Runtime's own format."""
    runtime = onnxruntime()
    options = session_options(runtime)
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    runtime.InferenceSession(str(source), options, providers=[CPU])


def gradient_model(forward: bytes, names: set[str], loss: str) -> bytes:
    """The forward model with the gradient ``<name>_grad`` of each name.

    Raises:
        ImportError: The installed ONNX Runtime cannot build gradients.
        ValueError: An operator has no gradient.
    """
    native = training_package("portable=False", "for gradients in standard ONNX")
    options = session_options(onnxruntime())
    try:
        optimized = native.get_optimized_model(forward, names, options)
        builder = native.GradientGraphBuilder(optimized, {loss}, names, loss, options)
        builder.build()
        return bytes(builder.get_model())
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common base
        raise ValueError(f"ONNX Runtime cannot build the gradients: {error}") from None


@contextmanager
def written_to(folder: str, what: str) -> Iterator[None]:
    """Let what the runtime fails to write, or has not written whole, be said by its folder.

    Raises:
        OSError: Anything was raised inside.
    """
    try:
        yield
    except Exception as error:
        raise OSError(
            f"cannot write {what} to the temporary folder '{folder}': {error}; free space there, "
            "or set the environment variable TMPDIR to another folder"
        ) from error


@cache
def keeps_order(runtime: Any) -> bool:
    """Whether the runtime's optimizer keeps the nodes by which writes wait for reads.

    It could know the size of a tensor without waiting for it. The versions that were tested do
    not look; should a later one, then nothing is overwritten in place.
    """
    model = parser.parse_model(_WAITS)
    with tempfile.TemporaryDirectory() as folder, written_to(folder, "a model of some bytes"):
        options = session_options(runtime)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        runtime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        optimized = onnx.load(options.optimized_model_filepath)
    return {"Neg", "Size", "Min", "Mul"} <= {node.op_type for node in optimized.graph.node}
