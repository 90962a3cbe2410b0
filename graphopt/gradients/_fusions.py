"""What ONNX Runtime computes wrongly, written in another way.

Its optimizer fuses nodes whose operands are not constant, as those of a training graph are, where
it leaves alone or computes in advance the same nodes of a forward model. Tested with 1.19 and 1.32:

- A product of a transposed matrix and a vector takes the matrix as it was (both).
- A product with one number loses the axes of size 1 that the number has brought (1.19).
- A transposition that moves nothing becomes one of a Gemm that does (1.19).

And ScatterND with a reduction, on several threads, loses rows where indices repeat (both).

What is written instead is right wherever it runs.
"""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.scatter import rewrite_scatter_nd
from graphopt.shapes.in_place import infer_shapes

# Behind these, the optimizer still sees a Transpose.
_TRANSPARENT = {"Identity", "Cast", "CastLike", "Mul", "Div", "Dropout", "Reshape"}
_DEPTH = 8


def avoid_fusions(op: GraphBuilder, model: ir.Model) -> None:
    """Rewrite the nodes of a graph that ONNX Runtime would compute wrongly.

    Args:
        op: Appends to the graph of the model.
        model: Changed in place; what it computes stays the same, and the shapes of its values are
            known as far as they can be.
    """
    infer_shapes(model)
    _drop_transposes(model.graph)
    changed = [
        _REWRITES[node.op_type](op, node)
        for node in list(model.graph.all_nodes())
        if node.op_type in _REWRITES and not node.domain
    ]
    if any(changed):
        model.graph.sort()
        infer_shapes(model)


def _drop_transposes(graph: ir.Graph) -> None:
    """Those that move nothing."""
    for node in graph.all_nodes():
        perm = list(node.attributes.get_ints("perm", ()))
        moves_nothing = perm and perm == list(range(len(perm)))
        if node.op_type == "Transpose" and not node.domain and moves_nothing:
            node.attributes.clear()
            node.op_type = "Identity"


def _ranks(node: ir.Node) -> list[int] | None:
    """Of the two operands; None where one is not known."""
    shapes = [None if value is None else value.shape for value in node.inputs[:2]]
    return [len(shape) for shape in shapes if shape is not None] if None not in shapes else None


def _matrix_product(op: GraphBuilder, node: ir.Node) -> bool:
    """Vectors become matrices of one row or of one column; whether there were any."""
    operands, ranks = list(node.inputs), _ranks(node)
    if ranks is None:
        for index, value in enumerate(operands):
            if _is_transposed(value):
                node.replace_input_with(index, _before(op, node, "Sum", [value]))
        return False
    axes = []
    for index, (front, behind) in enumerate(((0, -2), (1, -1))):
        if ranks[index] == 1:
            axis = op.constant([front])
            operands[index] = _before(op, node, "Unsqueeze", [operands[index], axis])
            axes.append(behind)
    if axes:
        _then(op, node, operands, "Squeeze", axes)
    return bool(axes)


def _is_transposed(value: ir.Value | None) -> bool:
    """Whether the optimizer may see a Transpose behind a value."""
    for _ in range(_DEPTH):
        node = None if value is None else value.producer()
        if node is None or node.domain:
            return False
        if node.op_type == "Transpose":
            return True
        if node.op_type not in _TRANSPARENT:
            return False
        value = next((v for v in node.inputs if v is not None and v.producer()), None)
    return True


def keep_axes(op: GraphBuilder, node: ir.Node) -> bool:
    """Let a factor of one element, if a node multiplies by one, have no more axes than the other.

    Returns:
        Whether it had: then the other one has as many now.
    """
    ranks = _ranks(node)
    if ranks is None:
        return False
    for index in (0, 1) if node.op_type == "Mul" else (1,):
        more, factor = ranks[index] - ranks[1 - index], node.inputs[index]
        if more > 0 and factor is not None and all(size == 1 for size in factor.shape or ()):
            axes = op.constant(list(range(more)))
            value = _before(op, node, "Unsqueeze", [node.inputs[1 - index], axes])
            node.replace_input_with(1 - index, value)
            return True
    return False


def _before(
    op: GraphBuilder, node: ir.Node, op_type: str, operands: Sequence[ir.Value | None]
) -> ir.Value:
    """The result of a new node in front of another, in whatever graph that is."""
    new = ir.node(op_type, list(operands))
    new.outputs[0].name = op.fresh_name(f"{node.outputs[0].name}/{op_type}")
    new.name = f"{node.name}/{new.outputs[0].name}" if node.name else new.outputs[0].name
    new.outputs[0].type = node.outputs[0].type
    assert node.graph is not None
    node.graph.insert_before(node, new)
    return new.outputs[0]


def _then(
    op: GraphBuilder,
    node: ir.Node,
    operands: Sequence[ir.Value | None],
    op_type: str,
    axes: Sequence[int],
) -> None:
    """Let a node, whose result stays the same value, change the axes of what it computed."""
    result = _before(op, node, node.op_type, operands)
    producer = result.producer()
    assert producer is not None
    producer.name, node.name = node.name, producer.name
    node.op_type = op_type
    node.replace_input_with(0, result)
    node.replace_input_with(1, op.constant(list(axes)))


def _scattered(op: GraphBuilder, node: ir.Node) -> bool:
    """Rows are combined by ScatterElements, where that is possible; whether it is."""
    graph = node.graph
    assert graph is not None
    with op.inside(graph):
        rewrite_scatter_nd(op, node, ())
    return node.graph is None


_REWRITES = {
    "MatMul": _matrix_product,
    "Mul": keep_axes,
    "Div": keep_axes,
    "ScatterND": _scattered,
}
