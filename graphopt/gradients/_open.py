"""Opening a forward model: without functions, at an opset of ours, with shapes."""

from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder
from graphopt.forward import to_ir
from graphopt.gradients._constants import propagate_constants
from graphopt.gradients._control_flow import write_out
from graphopt.gradients._exporter import check_export, restore_training_mode
from graphopt.gradients._inline import (
    inline_schema_functions,
    wanted_nodes,
    without_functions,
)
from graphopt.gradients._lists import write_lists
from graphopt.gradients._opset import convert_opset
from graphopt.gradients._scopes import join_scopes
from graphopt.gradients._sequences import write_tensors
from graphopt.gradients._stops import mark_stops, note_stops
from graphopt.operators import OPERATORS
from graphopt.shapes.in_place import infer_shapes
from graphopt.versions import IR_VERSION, MAX_OPSET, MIN_OPSET, NEWEST_IR_VERSION

_ROUNDS = 10
_LOOPS = {"Range"}  # operators whose definition is a loop
_WRITTEN_OUT = {"If", "Loop", "Scan", "SequenceAt", "SequenceLength", "ConcatFromSequence"}


def open_model(
    proto: onnx.ModelProto,
    known: Collection[str],
    trained: Collection[str],
    outputs: Collection[str] | None = None,
    least: int = MIN_OPSET,
) -> ir.Model:
    """A model without functions, at an opset of ours, whose shapes are known.

    Args:
        proto: The forward model, which is left as it is.
        known: Operators that stay as they are; others that ONNX defines by simpler ones are
            written out.
        trained: The names of the trained parameters.
        outputs: The names of the outputs that the loss reads; None for all. What is not between a
            trained parameter and one of these stays as it is, as far as it can.
        least: The opset that the model has at least.

    Raises:
        ValueError: An exporter has changed what is to be trained; the model contradicts itself, or
            cannot be brought to such an opset.
    """
    check_export(proto, set(trained))
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    _open_sizes(own)
    note_stops(own)
    restore_training_mode(own)
    if own.functions:
        own = without_functions(own)
    # Before the conversion, which knows no newer operators, and after it: HardSigmoid has a
    # definition from opset 18 on.
    kept = {*known, *_LOOPS}
    own = inline_schema_functions(own, kept, trained, outputs)
    rewritten = {name for name, operator in OPERATORS.items() if operator.rewrite is not None}
    own = convert_opset(own, least, MAX_OPSET, rewritten)
    own = inline_schema_functions(own, kept, trained, outputs)
    model = to_ir(own)
    mark_stops(model.graph)
    passes.InlinePass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = min(max(model.ir_version, IR_VERSION), NEWEST_IR_VERSION)
    join_scopes(model.graph)
    infer_shapes(model, symbols=False)
    # What the shapes determine may determine shapes, branches and rounds, and these may shapes.
    for _ in range(_ROUNDS):
        graph = model.graph
        calculated = propagate_constants(graph.all_nodes(), graph.opset_imports[""], trained)
        written = _write_out(model, trained, outputs)
        folded = _has_unknown_rank(graph) and _fold_integers(graph)
        if not (written or folded or (calculated and _has_unknown_size(graph))):
            break
        infer_shapes(model)
    return model


def _open_sizes(proto: onnx.ModelProto) -> None:
    """Leave out sizes that are none: older exporters write -1, or "?" or "" for each."""
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0 or (dim.HasField("dim_param") and dim.dim_param in ("", "?")):
                dim.Clear()


def _write_out(model: ir.Model, trained: Collection[str], outputs: Collection[str] | None) -> bool:
    """Replace branches, loops and sequences that a gradient goes through, where they are known."""
    wanted = wanted_nodes(model, trained, outputs)
    if not any(node.op_type in _WRITTEN_OUT and not node.domain for node in wanted):
        return False
    op = GraphBuilder(model.graph)
    changed = write_out(op, wanted, trained)
    changed |= write_tensors(op, wanted, trained)
    if not changed:  # what is left of them is not known
        changed = write_lists(op, wanted)
    model.graph.sort()
    return changed


def _has_unknown_size(graph: ir.Graph) -> bool:
    return any(
        value.shape is None or any(not isinstance(size, int) for size in value.shape)
        for node in graph
        for value in node.outputs
    )


def _has_unknown_rank(graph: ir.Graph) -> bool:
    return any(value.shape is None for node in graph for value in node.outputs)


def _fold_integers(graph: ir.Graph) -> bool:
    """Replace nodes whose integer result is known; whether there were any."""
    op = GraphBuilder(graph)
    folded = False
    for node in list(graph):
        value = node.outputs[0] if len(node.outputs) == 1 else None
        if (
            value is None
            or node.op_type == "Constant"
            or value.const_value is None
            or value.is_graph_output()
            or value.dtype not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
        ):
            continue
        ir.convenience.replace_all_uses_with(value, op.constant(value.const_value.numpy()))
        graph.remove(node, safe=True)
        folded = True
    return folded
