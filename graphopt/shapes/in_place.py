"""The shapes and dtypes of the values of a graph, written into it."""

from dataclasses import replace
from itertools import count

import onnx_ir as ir

from graphopt.shapes.engine import Shapes
from graphopt.shapes.values import NO_DTYPE, TensorInfo, declared

_UNKNOWN = "unk__"  # how the names of sizes begin that are not known


def infer_shapes(model: ir.Model, *, symbols: bool = True) -> None:
    """Set the shapes and dtypes of a model's values.

    What follows from the inputs is set, whatever the model declares: a declaration may be older
    than its inputs. Only a size that does not follow is taken from it. One that is not known at
    all gets a name, by which it is recognised in other shapes.

    Args:
        model: Changed in place.
        symbols: Whether symbolic sizes may be taken from declarations too. Exporters use one for
            sizes that differ.

    Raises:
        ValueError: The model contradicts itself.
    """
    used = _symbols(model.graph)
    names = (name for at in count() if (name := f"{_UNKNOWN}{at}") not in used)

    def says(value: ir.Value) -> TensorInfo:
        info = declared(value)
        if symbols or value.producer() is None or info.shape is None:
            return info
        sizes = tuple(size if isinstance(size, int) else None for size in info.shape)
        return replace(info, shape=sizes)

    def named(info: TensorInfo) -> TensorInfo:
        if info.shape is None or None not in info.shape:
            return info
        sizes = tuple(next(names) if size is None else size for size in info.shape)
        return replace(info, shape=sizes)

    for node in model.graph.all_nodes():
        if node.domain not in model.opset_imports:
            raise ValueError(
                f"the model contradicts itself: it has a {node.op_type} of the domain "
                f"'{node.domain}', which it does not import"
            )
    found = Shapes(model, says, named)
    for node in model.graph:
        for value in node.outputs:
            info = found.scope.of(value)
            if info.dtype != NO_DTYPE and not (value.type is not None and value.is_graph_output()):
                kind = ir.TensorType(info.dtype)
                value.type = ir.SequenceType(kind) if info.is_sequence else kind
            if info.shape is not None:
                value.shape = ir.Shape(info.shape)


def _symbols(graph: ir.Graph) -> set[str | None]:
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return {
        size.value
        for value in values
        for size in value.shape or ()
        if isinstance(size, ir.SymbolicDim)
    }
