"""ONNX Runtime's session of a training graph, with the kernels of the update where they can run."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx

from graphopt import _runtime, kernels as fused
from graphopt.graph import TrainingGraph
from graphopt.graphs import without_functions
from graphopt.half import lacking
from graphopt.large_models import MOST, values_of, write_beside
from graphopt.mapped_values import loaded
from graphopt.soundness.errors import about

_CAPTURE = "enable_cuda_graph"  # an option of the CUDA execution provider


def runtime_session(
    graph: TrainingGraph,
    providers: Sequence[Any],
    session_options: Any,
    *,
    kernels: bool,
    deterministic: bool = False,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Any, tuple[str, ...]]:
    """The session of the runtime, and the functions that it runs as kernels.

    Args:
        graph: What it runs.
        providers: Execution providers in order of preference.
        session_options: An ``onnxruntime.SessionOptions``, or None.
        kernels: Use the kernels where they are installed.
        deterministic: Compute the same bits whatever the number of cores.
        sizes: What symbolic dimensions are in each run; not used with options of one's own.

    Raises:
        ImportError: ONNX Runtime is not installed.
        TypeError: These are no session options.
        ValueError: A provider is not available, ONNX Runtime cannot run the graph, or the options
            have another number of threads than one, and it is to be deterministic.
    """
    runtime = _runtime.onnxruntime()
    _runtime.check_available(providers)
    if session_options is not None:
        _runtime.check_session_options(session_options)

    def chosen() -> Any:
        options = session_options or _options(runtime, sizes)
        if deterministic:
            _make_deterministic(options, given=session_options is not None)
        return options

    options = chosen()
    if _runtime.CUDA in _runtime.provider_names(providers):
        _runtime.load_cuda(runtime)
    source = graph.lean  # without training_info and metadata, which the runtime does not read
    model = onnx.ModelProto(ir_version=source.ir_version, graph=source.graph)
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    called = fused.called(model, providers) if kernels else ()
    provider = fused.provider_of(providers)
    if called and provider and fused.register(options, called, provider):
        with suppress(Exception):  # without them it may run, or say why it does not
            return _created(model, options, providers), called
        options = chosen()
    try:
        if fused.registered(options):  # by an earlier session: leave no function to replace
            model = without_functions(model)
        return _created(model, options, providers), ()
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's have no common base
        with about(graph):
            raise ValueError(
                f"onnxruntime {runtime.__version__} cannot run this training graph: {error}"
                f"{lacking(model, str(error), providers)}"
            ) from None


def captures(provider: Any) -> bool:
    """Whether an execution provider, as a session takes it, is to capture a CUDA graph."""
    given = provider[1] if isinstance(provider, tuple) else {}
    return str(given.get(_CAPTURE, 0)).lower() in ("1", "true")


def without_capture(provider: Any) -> Any:
    """The same execution provider, without capturing a CUDA graph."""
    if not isinstance(provider, tuple):
        return provider
    name, options = provider
    return name, {key: value for key, value in options.items() if key != _CAPTURE}


def _options(runtime: Any, sizes: Mapping[str, int]) -> Any:
    """Options for a session with these sizes of symbolic dimensions."""
    options = _runtime.session_options(runtime)
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    return options


def _make_deterministic(options: Any, *, given: bool) -> None:
    """Let a session compute the same bits whatever the number of cores.

    Where a product has a long inner axis, the runtime adds up other parts of it with another number
    of threads, and no option of it says which; so there is one thread.

    Raises:
        ValueError: The options are the user's, and have another number of threads.
    """
    if given and options.intra_op_num_threads != 1:
        raise ValueError(
            "deterministic: got session_options with intra_op_num_threads="
            f"{options.intra_op_num_threads}, expected 1: with another number of threads, sums are "
            "rounded otherwise; for the same bits on machines with as many cores, leave out "
            "deterministic and set options.use_deterministic_compute"
        )
    options.intra_op_num_threads = 1
    options.use_deterministic_compute = True


def _created(model: onnx.ModelProto, options: Any, providers: Sequence[Any]) -> Any:
    runtime = _runtime.onnxruntime()
    if values_of(model) < MOST:
        data = loaded(model).SerializeToString()
        return runtime.InferenceSession(data, options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:  # frozen weights that no message can hold
        path = Path(folder, "model.onnx")
        write_beside(model, path)
        return runtime.InferenceSession(str(path), options, providers=providers)
