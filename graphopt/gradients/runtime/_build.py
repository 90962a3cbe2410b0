"""Building gradients with the gradient builder of onnxruntime-training."""

import re
from collections.abc import Collection

import onnx
import onnx_ir as ir

from graphopt import _runtime
from graphopt.builder import GraphBuilder
from graphopt.gradients._fusions import avoid_fusions
from graphopt.gradients._graph import GradientGraph, initializers_to_inputs, unreached
from graphopt.graphs import by_name, needed_for
from graphopt.operators.rewriting import RunningStatistic
from graphopt.versions import NEWEST_IR_VERSION


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
    reached = needed_for([loss], model.graph)
    if missing := [name for name in names if model.graph.initializers[name] not in reached]:
        raise ValueError(unreached(missing))
    kept = [str(value.name) for value in model.graph.outputs]
    if loss not in model.graph.outputs:
        model.graph.outputs.append(loss)
    avoid_fusions(GraphBuilder(model.graph), model)
    inner = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(inner[statistic.batch] for statistic in statistics)
    initializers_to_inputs(model, {*names, *(statistic.name for statistic in statistics)})
    model.ir_version = NEWEST_IR_VERSION
    try:
        built = _runtime.gradient_model(
            ir.to_proto(model).SerializeToString(), set(names), str(loss.name)
        )
    except ValueError as error:
        raise ValueError(_in_plain_words(str(error))) from None
    result = ir.from_proto(onnx.load_model_from_string(built))
    graph = result.graph
    values = by_name(graph)
    without = [name for name in names if f"{name}_grad" not in values]
    if without:
        raise ValueError(unreached(without))
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
        return unreached([found[1]])
    if found := re.search(r"has not been registered: (\S+) for node (\S*)", message):
        return (
            f"operator {found[1]} (node '{found[2].rstrip()}') has no gradient; "
            "write it with operators that have one, or freeze the parameters before it"
        )
    return message
