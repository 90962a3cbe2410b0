"""The call that measures a graph."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from graphopt import _checks, _runtime
from graphopt._files import PathLike
from graphopt.carried import Carried
from graphopt.graph import TrainingGraph, as_training_graph
from graphopt.profiling import _rollup
from graphopt.profiling._feeds import random_feeds
from graphopt.profiling._run import Run
from graphopt.profiling._typical import typical_step
from graphopt.profiling.results import Profile
from graphopt.soundness.errors import about


def profile(
    graph: TrainingGraph | onnx.ModelProto | PathLike,
    feeds: Mapping[str, Any] | None = None,
    *,
    steps: int = 20,
    warm_up: int = 5,
    batch_size: int | None = None,
    dims: Mapping[str, int] | None = None,
    parameters: Mapping[str, Any] | None = None,
    providers: Sequence[Any] | None = None,
    threads: int | None = None,
    kernels: bool = True,
) -> Profile:
    """Measure where a training step goes.

    The graph is left as it is. It is trained on the same batch again and again, without the
    profiler and then with it; the result of that training is thrown away.

    Args:
        graph: A `TrainingGraph`, an ``onnx.ModelProto`` of one, or the path of one.
        feeds: An array for each input of a step; by default random ones, class labels and the
            indices of embeddings in their range, other integers zero.
        steps: How many steps to measure.
        warm_up: How many steps to run before.
        batch_size: The open first dimension of random feeds; by default 32.
        dims: The sizes of other open dimensions of random feeds, by name.
        parameters: Values to start from, as for `Session`; those that have none start at zero.
        providers: Execution providers, as for `Session`.
        threads: The number of threads of ONNX Runtime; by default its own choice.
        kernels: Use the fused CPU kernels where they are installed.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: An argument has the wrong type.
        ValueError: The graph is none, or cannot run; a feed does not fit, or cannot be made up;
            the graph has learning rates for fewer steps.
        RuntimeError: A step failed, or the profile is incomplete.

    Example:
        >>> from graphopt import Parameter, RMSProp, update_graph
        >>> update = update_graph(RMSProp([Parameter("w", (3,))], learning_rate=0.01))
        >>> measured = profile(update, {"w_grad": np.ones(3, np.float32)}, steps=2)
        >>> [(bucket.name, bucket.elements) for bucket in measured.buckets]
        [('w', 3)]
    """
    _checks.steps("steps", steps)
    optional = {"warm_up": warm_up or None, "batch_size": batch_size, "threads": threads}
    for name, count in (optional | _sizes_to_check(dims)).items():
        if count is not None:
            _checks.steps(name, count)
    graph = as_training_graph(graph)
    _check_rates(graph, warm_up, steps)
    providers = _runtime.checked_providers(providers)
    if feeds is None:
        feeds = random_feeds(graph, batch_size, dims or {})
    elif batch_size is not None or dims:
        raise ValueError("batch_size and dims are for random feeds; leave out them or the feeds")
    run = Run(
        graph,
        feeds,
        steps=steps,
        warm_up=warm_up,
        threads=threads,
        settings={
            "parameters": _initial_parameters(graph.carried, parameters),
            "providers": providers,
            "kernels": kernels,
        },
    )
    unprofiled = run.unprofiled()
    record = run.profiled()
    step = typical_step(record, statistics.median(unprofiled))
    with about(graph):
        buckets = _rollup.by_bucket(step, graph, record.kernels)
    return Profile(
        onnxruntime=_runtime.onnxruntime().__version__,
        providers=tuple(_runtime.provider_names(providers)),
        threads=threads,
        kernels=record.kernels,
        steps=steps,
        warm_up=warm_up,
        graph_nodes=len(graph.lean.graph.node),
        milliseconds=step.milliseconds,
        median_milliseconds=statistics.median(record.milliseconds),
        unprofiled_milliseconds=statistics.median(unprofiled),
        stages=_rollup.by_stage(step),
        groups=_rollup.by_group(buckets),
        buckets=buckets,
        shared=_rollup.shared(step),
        modules=_rollup.by_module(step),
        nodes=step.nodes,
    )


def _sizes_to_check(dims: Any) -> dict[str, Any]:
    """The sizes of dimensions under the names that messages call them by."""
    if not isinstance(dims, Mapping | None):
        raise TypeError(f"dims: got {type(dims).__name__}, expected a dict of sizes by name")
    return {f"dims['{name}']": size for name, size in (dims or {}).items()}


def _check_rates(graph: TrainingGraph, warm_up: int, steps: int) -> None:
    if graph.steps is not None and graph.steps < warm_up + steps:
        raise ValueError(
            f"steps: got {warm_up} to warm up and {steps} to measure, but the graph has learning "
            f"rates for {graph.steps} steps only; ask for fewer"
        )


def _initial_parameters(carried: Iterable[Carried], given: Any) -> Any:
    """Zeros for parameters of which nobody gives a value: the time does not depend on it."""
    if not isinstance(given, Mapping | None):
        return given  # the session says what is wrong
    zeros = {
        view.name: np.zeros(view.shape, value.dtype)
        for value in carried
        if value.initial is None
        for view in value.views
    }
    return zeros | dict(given or {})
