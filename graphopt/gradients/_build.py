"""Building gradients with the gradient builder of onnxruntime-training."""

import re
from collections.abc import Collection
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from graphopt import _runtime
from graphopt.gradients._batch_normalization import RunningStatistic

_MAX_IR_VERSION = 10  # the newest that onnxruntime-training 1.19.2 reads


@dataclass
class GradientGraph:
    """A graph whose inputs include the parameters, with everything that the update needs.

    Attributes:
        model: The forward graph, the loss and the backward pass.
        parameters: The graph's input of each parameter.
        gradients: The gradient of each parameter.
        statistics: The running statistics, by name, each with that of the batch.
    """

    model: ir.Model
    parameters: dict[str, ir.Value]
    gradients: dict[str, ir.Value]
    statistics: dict[str, tuple[RunningStatistic, ir.Value]]


def build_gradients(
    model: ir.Model,
    names: Collection[str],
    loss: ir.Value,
    statistics: Collection[RunningStatistic],
) -> GradientGraph:
    """The gradients of ``loss`` with respect to the initializers called ``names``.

    The model must be prepared; its outputs are kept.

    Raises:
        ImportError: onnxruntime-training is not installed.
        ValueError: No gradient reaches a parameter, or an operator has none.
    """
    _check_reached(model, names, loss)
    kept = [str(value.name) for value in model.graph.outputs]
    if loss not in model.graph.outputs:
        model.graph.outputs.append(loss)
    inner = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(inner[statistic.batch] for statistic in statistics)
    initializers_to_inputs(model, {*names, *(statistic.name for statistic in statistics)})
    model.ir_version = _MAX_IR_VERSION
    try:
        built = _runtime.gradient_model(
            ir.to_proto(model).SerializeToString(), set(names), str(loss.name)
        )
    except ValueError as error:
        raise ValueError(_in_plain_words(str(error))) from None
    result = ir.from_proto(onnx.load_model_from_string(built))
    graph = result.graph
    values = {str(value.name): value for value in graph.inputs} | dict(graph.initializers)
    values.update((str(value.name), value) for node in graph for value in node.outputs)
    without = [name for name in names if f"{name}_grad" not in values]
    if without:
        raise ValueError(_unreached(without))
    graph.outputs[:] = [values[name] for name in kept]
    return GradientGraph(
        result,
        {name: values[name] for name in names},
        {name: values[f"{name}_grad"] for name in names},
        {s.name: (s, values[s.batch]) for s in statistics},
    )


def _in_plain_words(message: str) -> str:
    """What the runtime's builder says, where it is known; otherwise its own words."""
    if found := re.search(r"partial derivative for '(.+?)' as it's unreachable", message):
        return _unreached([found[1]])
    if found := re.search(r"has not been registered: (\S+) for node (\S*)", message):
        return (
            f"operator {found[1]} (node '{found[2].rstrip()}') has no gradient; "
            "write it with operators that have one, or freeze the parameters before it"
        )
    return message


def _check_reached(model: ir.Model, names: Collection[str], loss: ir.Value) -> None:
    reached: set[ir.Value] = set()
    waiting: list[ir.Value] = [loss]
    while waiting:
        value = waiting.pop()
        if value in reached:
            continue
        reached.add(value)
        node = value.producer()
        if node is not None:
            waiting += [operand for operand in node.inputs if operand is not None]
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    waiting += _outer_values(attribute.as_graph())
    initializers = model.graph.initializers
    unreached = [name for name in names if initializers[name] not in reached]
    if unreached:
        raise ValueError(_unreached(unreached))


def _outer_values(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph.all_nodes() for value in node.inputs if value is not None]


def _unreached(names: Collection[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    return (
        f"no gradient of the loss reaches {listed}: the loss does not depend on "
        f"{'it' if len(names) == 1 else 'them'} in a differentiable way; "
        "leave out of the optimizer what is not trained"
    )


def initializers_to_inputs(model: ir.Model, names: Collection[str]) -> None:
    """Turn these initializers into inputs of the graph."""
    graph = model.graph
    for name in [name for name in graph.initializers if name in names]:
        value = graph.initializers.pop(name)
        assert value.const_value is not None
        value.dtype, value.shape = (
            value.const_value.dtype,
            ir.Shape(value.const_value.shape.numpy()),
        )
        value.const_value = None
        if value not in graph.inputs:
            graph.inputs.append(value)
