"""ONNX Runtime's session of a training graph, with the kernels of the update where they can run."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import onnx
from onnx import inliner

from graphopt import _runtime, kernels as fused
from graphopt.graph import TrainingGraph


def runtime_session(
    graph: TrainingGraph, providers: Sequence[Any], session_options: Any, *, kernels: bool
) -> tuple[Any, tuple[str, ...]]:
    """The session of the runtime, and the functions that it runs as kernels.

    Args:
        graph: What it runs.
        providers: Execution providers in order of preference.
        session_options: An ``onnxruntime.SessionOptions``, or None.
        kernels: Use the kernels where they are installed.

    Raises:
        ImportError: ONNX Runtime is not installed.
        TypeError: These are no session options.
        ValueError: A provider is not available, or ONNX Runtime cannot run the graph.
    """
    runtime = _runtime.onnxruntime()
    available = runtime.get_available_providers()
    for name in _runtime.provider_names(providers):
        if name not in available:
            raise ValueError(
                f"providers: '{name}' is not available, "
                f"onnxruntime {runtime.__version__} has {', '.join(available)}"
            )
    if session_options is not None:
        _runtime.check_session_options(session_options)
    source = graph.model  # without training_info and metadata, which the runtime does not read
    model = onnx.ModelProto(ir_version=source.ir_version, graph=source.graph)
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    called = fused.called(model, providers) if kernels else ()
    if called:
        options = session_options or _runtime.session_options(runtime)
        if fused.register(options, called):
            with suppress(Exception):  # without them it may run, or say why it does not
                return _created(model, options, providers), called
    options = session_options or _runtime.session_options(runtime)
    try:
        if fused.registered(options):  # by an earlier session: leave no function to replace
            model = inliner.inline_local_functions(model)
        return _created(model, options, providers), ()
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's have no common base
        raise ValueError(
            f"onnxruntime {runtime.__version__} cannot run this training graph: {error}"
        ) from None


def _created(model: onnx.ModelProto, options: Any, providers: Sequence[Any]) -> Any:
    runtime = _runtime.onnxruntime()
    return runtime.InferenceSession(model.SerializeToString(), options, providers=providers)
