"""The shapes and dtypes of the values of a graph, written into it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count

import onnx
import onnx_ir as ir
from onnx import helper, shape_inference

from graphopt.graphs import all_nodes
from graphopt.operators import of
from graphopt.shapes.engine import Scope, Shapes
from graphopt.shapes.node import Node
from graphopt.shapes.sizes import Number, whole
from graphopt.shapes.values import NO_DTYPE, UNKNOWN, UNNAMED, TensorInfo, declared, tensor


def infer_shapes(model: ir.Model, *, symbols: bool = True) -> None:
    """Set the shapes and dtypes of a model's values, also of those in branches and loops.

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
    for node in all_nodes(model.graph):
        if node.domain not in model.opset_imports:
            raise ValueError(
                f"the model contradicts itself: it has a {node.op_type} of the domain "
                f"'{node.domain}', which it does not import"
            )
    found = _Named(model, symbols=symbols)
    _write(model.graph, found.scope, found)


def _write(graph: ir.Graph | ir.Function, scope: Scope, found: Shapes) -> None:
    """Write down what is known of the values of a graph, and of those in its nodes."""
    for node in graph:
        for value in node.outputs:
            _write_value(value, scope.of(value))
        for body in found.bodies(node, scope):
            if body.kind != "function":
                for value in body.graph.inputs:
                    _write_value(value, body.scope.of(value))
                _write(body.graph, body.scope, found)


def _write_value(value: ir.Value, info: TensorInfo) -> None:
    if info.dtype != NO_DTYPE and not (value.type is not None and value.is_graph_output()):
        kind = ir.TensorType(info.dtype)
        value.type = ir.SequenceType(kind) if info.is_sequence else kind
    if info.shape is not None:
        value.shape = ir.Shape(info.shape)


class _Named(Shapes):
    """Shapes with symbols, in which every size has a name; ONNX helps out where a rule lacks."""

    def __init__(self, model: ir.Model, *, symbols: bool) -> None:
        used = _symbols(model)
        self._inputs = set(model.graph.inputs)
        self._names = (name for at in count() if (name := f"{UNNAMED}{at}") not in used)
        self._takes_symbols = symbols
        super().__init__(model)

    def says(self, value: ir.Value) -> TensorInfo:
        info = declared(value)
        if self._takes_symbols or value in self._inputs or info.shape is None:
            return info
        sizes = tuple(size if isinstance(size, int) else None for size in info.shape)
        return replace(info, shape=sizes)

    def settled(self, info: TensorInfo) -> TensorInfo:
        if info.shape is None or None not in info.shape:
            return info
        sizes = tuple(next(self._names) if size is None else size for size in info.shape)
        return replace(info, shape=sizes)

    def otherwise(self, node: ir.Node, known: Node) -> Sequence[TensorInfo]:
        try:
            found = _by_onnx(node, known, self.model.opset_imports)
        except (
            KeyError,
            ValueError,  # of types that are neither tensors nor sequences of some
            onnx.defs.SchemaError,
            onnx.checker.ValidationError,
            shape_inference.InferenceError,
        ):
            return ()
        if of(node).shape is None:
            return found
        # Sizes that its own rule does not know are not to be relied on.
        return [info if info.shape is None else replace(info, shape=(None,) * len(info.shape))
                for info in found]  # fmt: skip


def _by_onnx(node: ir.Node, known: Node, opsets: Mapping[str, int]) -> list[TensorInfo]:
    """What ONNX's own inference knows of one node."""
    proto = ir.serde.serialize_node(node)
    del proto.attribute[:]  # one may refer to that of a function
    proto.attribute.extend(ir.to_proto(given) for given in known.attributes.all().values())
    for name, attribute in zip(known.attributes.all(), proto.attribute, strict=True):
        attribute.name = name
    types, data = {}, {}
    for name, info in zip(proto.input, known.inputs, strict=True):
        if not name or info is None:
            continue
        kind = helper.make_tensor_type_proto(info.dtype, info.shape)
        types[name] = helper.make_sequence_type_proto(kind) if info.is_sequence else kind
        numbers = [number for number in info.numbers or () if isinstance(number, Number)]
        if info.numbers is not None and len(numbers) == len(info.numbers):
            data[name] = helper.make_tensor(
                name, info.dtype, whole(info.shape or ()) or (), numbers
            )
    schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    found = shape_inference.infer_node_outputs(schema, proto, types, data)
    return [_info(found[name]) if name in found else UNKNOWN for name in proto.output]


def _info(kind: onnx.TypeProto) -> TensorInfo:
    is_sequence = kind.HasField("sequence_type")
    proto = (kind.sequence_type.elem_type if is_sequence else kind).tensor_type
    sizes = [
        size.dim_value if size.HasField("dim_value") else size.dim_param or None
        for size in proto.shape.dim
    ]
    info = tensor(ir.DataType(proto.elem_type), sizes if proto.HasField("shape") else None)
    return replace(info, is_sequence=is_sequence)


def _symbols(model: ir.Model) -> set[str | None]:
    nodes = (all_nodes(model.graph), *map(all_nodes, model.functions.values()))
    graphs = (
        model.graph,
        *model.graph.subgraphs(),
        *(graph for body in model.functions.values() for graph in body.subgraphs()),
    )
    inputs = (value for graph in graphs for value in graph.inputs)
    outputs = (value for node in chain(*nodes) for value in node.outputs)
    return {
        size.value
        for value in chain(inputs, outputs)
        for size in value.shape or ()
        if isinstance(size, ir.SymbolicDim)
    }
