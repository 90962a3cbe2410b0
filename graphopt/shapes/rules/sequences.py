"""Sequences of tensors."""

from dataclasses import replace

import onnx_ir as ir

from graphopt.shapes.values import INT64, Dim, Node, Rule, TensorInfo, either, tensor


def _of(*items: TensorInfo) -> list[TensorInfo]:
    return [replace(either(items), numbers=None, is_sequence=True)]


def _construct(node: Node) -> list[TensorInfo]:
    return _of(*(node.input(index) for index in range(len(node.inputs))))


def _empty(node: Node) -> list[TensorInfo]:
    return _of(tensor(node.attributes.dtype("dtype", ir.DataType.FLOAT), None))


def _insert(node: Node) -> list[TensorInfo]:
    return _of(node.input(0), node.input(1))


def _erase(node: Node) -> list[TensorInfo]:
    return _of(node.input(0))


def _at(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    return [TensorInfo(first.dtype, first.shape)]


def _length(node: Node) -> list[TensorInfo]:
    del node
    return [tensor(INT64, ())]


def _split(node: Node) -> list[TensorInfo]:
    sizes: list[Dim] = list(node.shape())
    axis, lengths = node.axis(0, len(sizes)), node.sizes(1)
    if node.has(1):
        sizes[axis] = lengths[0] if lengths and len(set(lengths)) == 1 else None
    elif node.attributes.integer("keepdims", 1):
        sizes[axis] = 1
    else:
        del sizes[axis]
    return _of(TensorInfo(node.input(0).dtype, tuple(sizes)))


def _concat(node: Node) -> list[TensorInfo]:
    sizes: list[Dim] = list(node.shape())
    if node.attributes.integer("new_axis"):
        sizes.insert(node.axis(0, len(sizes) + 1), None)
    else:
        sizes[node.axis(0, len(sizes))] = None
    return [tensor(node.input(0).dtype, sizes)]


RULES: dict[str, Rule] = {
    "ConcatFromSequence": _concat,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SplitToSequence": _split,
}
