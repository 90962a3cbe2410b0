"""Looking into one checkpoint."""

import math
from collections.abc import Mapping, Sequence

from graphopt._files import PathLike
from graphopt.carried import Array
from graphopt.inspection.checkpoints.checkpoint_facts import (
    CheckpointInspection,
    CheckpointTotals,
    ParameterValues,
    TensorValues,
)
from graphopt.inspection.checkpoints.contents import Opened, open_checkpoint
from graphopt.inspection.checkpoints.problems import incomplete, misfits, tensors_of, value_problems
from graphopt.inspection.checkpoints.roles import roles_of
from graphopt.inspection.checkpoints.step_size import (
    Settings,
    common_settings,
    settings_by_parameter,
    step_sizes,
)
from graphopt.inspection.checkpoints.tensor_statistics import tensor_values
from graphopt.inspection.facts import Inspection, worst_first
from graphopt.states import MEAN_GRAD, MEAN_SQUARE


def inspect_checkpoint(path: PathLike, graph: Inspection | None = None) -> CheckpointInspection:
    """Look into a checkpoint of a session or of on-device training.

    Args:
        path: The file. On-device checkpoints may be ONNX Runtime's own, for example of its AdamW.
        graph: The inspection of the graph that it belongs to. It says what the checkpoint should
            hold, and the hyperparameters for the sizes of the steps; without it they are given per
            unit of learning rate.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint, is damaged, or is a nominal one, without values.

    Example:
        >>> found = inspect_checkpoint("state.safetensors")  # doctest: +SKIP
        >>> found.step, found.parameters[0].value.statistics.rms  # doctest: +SKIP
        (1000, 0.0712)
    """
    with open_checkpoint(path) as opened:
        settings = {} if graph is None else settings_by_parameter(graph, opened.step)
        otherwise = Settings() if graph is None else common_settings(graph)
        states_of, neither = roles_of(opened, settings)
        parameters = tuple(
            _parameter(opened, name, states, settings.get(name, otherwise))
            for name, states in states_of.items()
        )
        others = tuple(tensor_values(name, opened.read(name), "linear") for name in neither)
        problems = [*opened.problems, *value_problems(opened.step, parameters, others)]
        if graph is None:
            problems += incomplete(opened.kinds, parameters, others)
        else:
            problems += misfits(opened.kind, parameters, others, graph)
        return CheckpointInspection(
            name=str(path),
            kind=opened.kind,
            bytes=opened.bytes,
            step=opened.step,
            learning_rate=opened.learning_rate,
            parameters=parameters,
            others=others,
            totals=_totals(parameters, others),
            problems=worst_first(problems),
        )


def _parameter(
    opened: Opened, name: str, states: Mapping[str, str], settings: Settings
) -> ParameterValues:
    value = tensor_values(name, opened.read(name), "linear")
    found: dict[str, TensorValues] = {}
    kept: dict[str, Array] = {}
    for kind, state in states.items():
        array = opened.read(state)
        found[kind] = tensor_values(state, array, "log10")
        if kind in (MEAN_SQUARE.name, MEAN_GRAD.name):
            kept[kind] = array
    sizes = None
    if MEAN_SQUARE.name in kept:
        sizes = step_sizes(kept[MEAN_SQUARE.name], kept.get(MEAN_GRAD.name), settings)
    return ParameterValues(value, found, sizes)


def _totals(
    parameters: Sequence[ParameterValues], others: Sequence[TensorValues]
) -> CheckpointTotals:
    tensors = list(tensors_of(parameters, others))
    values = [parameter.value for parameter in parameters]
    states = [state for parameter in parameters for state in parameter.states.values()]
    statistics = [t.statistics for t in tensors if t.statistics is not None]
    return CheckpointTotals(
        tensors=len(tensors),
        elements=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=sum(tensor.bytes for tensor in tensors),
        parameters=len(values),
        parameter_elements=sum(math.prod(tensor.shape) for tensor in values),
        parameter_bytes=sum(tensor.bytes for tensor in values),
        state_bytes=sum(tensor.bytes for tensor in states),
        zeros=sum(found.zeros for found in statistics),
        nan=sum(found.nan for found in statistics),
        inf=sum(found.inf for found in statistics),
    )
