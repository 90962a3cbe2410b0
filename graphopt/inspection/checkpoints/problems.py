"""What is wrong with the values of a checkpoint, and how they do not fit its graph."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from graphopt.inspection.checkpoints.checkpoint_facts import Kind, ParameterValues, TensorValues
from graphopt.inspection.facts import Hazard, Inspection, Level, static
from graphopt.states import MEAN_GRAD, MEAN_SQUARE, MOMENT, STATISTIC

_ABOVE = 1 + 1e-6  # rounding of a mean square that decays
_ANOTHER_COPY = "take another copy of the checkpoint"
_ANOTHER_GRAPH = "take a checkpoint of this graph, or build the graph that it belongs to"
_KINDS: Mapping[str, tuple[Level, str]] = {
    "no-step": ("error", _ANOTHER_COPY),
    "not-finite": (
        "error",
        "go back to an earlier checkpoint, and lower the learning rate or the loss scale",
    ),
    "negative-mean-square": ("error", _ANOTHER_COPY),
    "zero-state": (
        "warning",
        "see whether the loss depends on the parameter, and whether its group is updated",
    ),
    "missing-tensor": ("error", _ANOTHER_GRAPH),
    "unexpected-tensor": ("error", _ANOTHER_GRAPH),
    "other-shape-or-dtype": ("error", _ANOTHER_GRAPH),
}


def problem(kind: str, name: str, why: str) -> Hazard:
    """What is wrong with a tensor, and what helps against that kind."""
    level, fix = _KINDS[kind]
    return Hazard(kind, level, (name,), why, fix)


def value_problems(
    step: int | None, parameters: Sequence[ParameterValues], others: Sequence[TensorValues]
) -> Iterator[Hazard]:
    """What is wrong with the values."""
    for tensor in tensors_of(parameters, others):
        yield from _not_finite(tensor)
    floor = min((mean.minimum for p in parameters if (mean := _mean_square(p))), default=0.0)
    for parameter in parameters:
        value, mean = parameter.value, _mean_square(parameter)
        reached = mean is not None and mean.maximum > _ABOVE * max(floor, 0.0)
        reached = reached and not _is_zero(parameter.states.get(MEAN_GRAD.name))
        for kind, state in parameter.states.items():
            if state.shape != value.shape:
                why = f"it has shape {list(state.shape)}, and its parameter {list(value.shape)}"
                yield problem("other-shape-or-dtype", state.name, why)
            if not (kind == MOMENT.name and reached):
                yield from _odd_state(kind, state, step)


class _Mean(NamedTuple):
    minimum: float
    maximum: float


def _mean_square(parameter: ParameterValues) -> _Mean | None:
    """Where the mean square of a parameter lies.

    That of a parameter which no gradient has reached only decays, and so is the lowest of all; one
    above it has had a gradient, and its moment is zero where the learning rate was.
    """
    state = parameter.states.get(MEAN_SQUARE.name)
    found = None if state is None else state.statistics
    if found is None or found.minimum is None or found.maximum is None:
        return None
    return _Mean(found.minimum, found.maximum)


def _is_zero(tensor: TensorValues | None) -> bool:
    found = None if tensor is None else tensor.statistics
    return tensor is not None and found is not None and found.zeros == math.prod(tensor.shape)


def tensors_of(
    parameters: Sequence[ParameterValues], others: Sequence[TensorValues]
) -> Iterator[TensorValues]:
    """The parameters, each before its states, and the other tensors."""
    for parameter in parameters:
        yield parameter.value
        yield from parameter.states.values()
    yield from others


def _not_finite(tensor: TensorValues) -> Iterator[Hazard]:
    found = tensor.statistics
    if found is not None and (found.nan or found.inf):
        counts = {"NaN": found.nan, "infinite": found.inf}
        what = " and ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        why = f"of its {math.prod(tensor.shape):,} elements {what}"
        yield problem("not-finite", tensor.name, why)


def _odd_state(kind: str, state: TensorValues, step: int | None) -> Iterator[Hazard]:
    found, size = state.statistics, math.prod(state.shape)
    if found is None or not size:
        return
    if kind == MEAN_SQUARE.name and found.minimum is not None and found.minimum < 0:
        why = f"its lowest element is {found.minimum:.3g}, and a mean of squares is never negative"
        yield problem("negative-mean-square", state.name, why)
    if step and found.zeros == size:
        why = f"it is zero throughout after {step:,} steps: no gradient has reached the parameter"
        yield problem("zero-state", state.name, why)


def incomplete(
    known: Sequence[str], parameters: Sequence[ParameterValues], others: Sequence[TensorValues]
) -> Iterator[Hazard]:
    """What a checkpoint seems to lack, by what else it has."""
    kinds = dict.fromkeys(kind for parameter in parameters for kind in parameter.states)
    for parameter in parameters:
        for kind in kinds:
            if kind not in parameter.states:
                name = f"{kind}.{parameter.value.name}"
                why = f"it is missing, and other parameters have their {kind}"
                yield problem("missing-tensor", name, why)
    layers = {parameter.value.name.partition(".")[0] for parameter in parameters}
    for tensor in others:
        kind, _, parameter_name = tensor.name.partition(".")
        if kind in known and parameter_name and kind not in layers:
            why = f"it is a state of '{parameter_name}', which is missing"
            yield problem("unexpected-tensor", tensor.name, why)


def misfits(
    kind: Kind,
    parameters: Sequence[ParameterValues],
    others: Sequence[TensorValues],
    graph: Inspection,
) -> Iterator[Hazard]:
    """How the tensors differ from those that the graph carries."""
    expected = _expected(graph)
    found = {tensor.name: tensor for tensor in tensors_of(parameters, others)}
    for name, wanted in expected.items():
        if name not in found:
            yield problem("missing-tensor", name, "the checkpoint lacks it")
        else:
            yield from _misfit(found[name], *wanted)
    known = {*expected, *(state.input for state in graph.state)}
    unexpected = {parameter.value.name for parameter in parameters}
    if graph.optimizer is not None and graph.optimizer.name == "RMSProp":
        unexpected |= {state.name for p in parameters for state in p.states.values()}
    if kind == "session checkpoint":  # on-device ones have frozen parameters too
        unexpected |= {tensor.name for tensor in others}
    for name in found:
        if name in unexpected and name not in known:
            yield problem("unexpected-tensor", name, "the graph does not have it")


def _expected(graph: Inspection) -> dict[str, tuple[tuple[int, ...] | None, str]]:
    """The shape and the dtype of the tensors that a checkpoint of a graph must have."""
    expected: dict[str, tuple[tuple[int, ...] | None, str]] = {}
    for parameter in graph.parameters:
        expected[parameter.name] = parameter.shape, parameter.dtype
        for kind in parameter.states:
            expected[f"{kind}.{parameter.name}"] = parameter.shape, "float32"
    for state in graph.state:
        if state.kind in (STATISTIC.name, "loss scale", "counter", "seed"):
            expected[state.input] = static(state.shape), state.dtype
    return expected


def _misfit(tensor: TensorValues, wanted: tuple[int, ...] | None, dtype: str) -> Iterator[Hazard]:
    shape = tensor.shape if wanted is None else wanted
    if (tensor.shape, tensor.dtype) != (shape, dtype):
        why = (
            f"it is {tensor.dtype}{list(tensor.shape)} in the checkpoint, "
            f"but {dtype}{list(shape)} in the graph"
        )
        yield problem("other-shape-or-dtype", tensor.name, why)
