"""The outputs of the forward model that a training graph carries, in float64."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from graphopt._words import shown
from graphopt.builder import GraphBuilder
from graphopt.carried import parts
from graphopt.forward import to_ir
from graphopt.gradients import convert_opset
from graphopt.graph import TrainingGraph
from graphopt.graphs import without_functions
from graphopt.inspection.verification.interpreter import Interpreter, as_double, in_double
from graphopt.inspection.verification.runnable import GraphFailsError, NotRunError, in_a_line
from graphopt.inspection.verification.whole_graph import loaded_whole
from graphopt.losses import BUILT_IN, append_loss, report_loss
from graphopt.manifest import Manifest
from graphopt.operators import of
from graphopt.versions import MAX_OPSET, MIN_OPSET


def forward_outputs(
    graph: TrainingGraph,
    known: Mapping[str, Any],
    trained: Collection[str],
    ends: float,
    providers: Sequence[str],
) -> tuple[dict[str, Any], bool]:
    """What the forward model and its loss give for parameters and feeds, as training means it.

    Batch normalization whose scale or bias is trained normalizes by the batch.

    Args:
        graph: The training graph.
        known: What the training graph is fed, its carried values included.
        trained: The names of the parameters.
        ends: When to give up.
        providers: The execution providers.

    Returns:
        The outputs, by name, and whether an operator ran in float32 that has no kernel in float64.

    Raises:
        GraphFailsError: The runtime does not take it.
        NotRunError: There is none, it draws random numbers, or it does not run node by node.
    """
    if Manifest.read(graph.model, "forward").forward is None:
        raise NotRunError("the graph carries no forward model")
    values = {
        view.name: array
        for value in graph.carried
        for view, array in parts(value, known[value.input])
    }
    proto = graph.forward(values)
    if proto.functions:
        proto = without_functions(proto)
    model = to_ir(convert_opset(proto, MIN_OPSET, MAX_OPSET))
    for node in model.graph.all_nodes():
        if of(node).is_random and _draws(node):
            raise NotRunError(f"'{shown(node.name or node.op_type)}' draws random numbers")
        weights = node.inputs[1:3] if node.op_type == "BatchNormalization" else ()
        if any(value is not None and value.name in trained for value in weights):
            node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    _append_loss(model, graph)
    in_double(model)
    interpreter = Interpreter(model, ends, rounds=True)
    names = [str(value.name) for value in model.graph.outputs]
    inputs = {str(value.name) for value in model.graph.inputs}
    feeds = {n: as_double(v) for n, v in known.items() if n in inputs and n not in values}
    try:
        found = interpreter.run(interpreter.needed(names), feeds)
    except NotRunError:
        _check_runs(proto, providers)
        raise
    return {name: found[name] for name in names}, bool(interpreter.rounded)


def _append_loss(model: ir.Model, graph: TrainingGraph) -> None:
    """Append the loss that the metadata names to the forward model, if it is a built-in one."""
    said = Manifest.read(graph.model, "loss").loss
    own = {str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)}
    special = {"group_mask", *graph.fed_rates, graph.fed_loss_scale}
    labels = [feed.name for feed in graph.inputs if feed.name not in own | special]
    if said is None or said.name not in BUILT_IN or len(labels) != 1 or "loss" in own:
        return
    op = GraphBuilder(model.graph)
    try:
        report_loss(op, append_loss(op, said.name, said.output, labels[0]))
    except ValueError as error:
        raise GraphFailsError(f"the loss that the metadata names: {in_a_line(error)}") from None


def _check_runs(model: onnx.ModelProto, providers: Sequence[str]) -> None:
    try:
        loaded_whole(model, providers)
    except GraphFailsError as error:
        raise GraphFailsError(f"the forward model that it carries: {error}") from None


def _draws(node: ir.Node) -> bool:
    return node.op_type != "Dropout" or (len(node.inputs) > 2 and node.inputs[2] is not None)
