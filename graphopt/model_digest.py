"""A digest of what a forward model computes, whatever its values and its inner names are.

It is the same for nodes in another order, and for other names of what is between them. It is
another one for another operator, attribute, connection or constant.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import AttributeProto

from graphopt import marks
from graphopt.manifest import is_stripped
from graphopt.mapped_values import array_of, give_back

Digests = Mapping[str, bytes]


@dataclass(frozen=True)
class Node:
    """A node, and the digest of what it computes.

    Attributes:
        name: Its name; that of its first output, if it has none.
    """

    op_type: str
    name: str
    digest: bytes


def digests(
    model: onnx.ModelProto, trained: frozenset[str], stored: Mapping[str, onnx.TensorProto]
) -> tuple[bytes, tuple[Node, ...]]:
    """The digest of a model, and its nodes.

    Args:
        model: The model, whose trained initializers need no values.
        trained: The names of initializers that are known by their name, not by their value.
        stored: Tensors that stand for initializers without a value, by name.

    Example:
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }''')
        >>> digest, nodes = digests(model, frozenset({"w"}), {})
        >>> len(digest), nodes[0].op_type
        (32, 'MatMul')
    """
    walk = _Walk(model)
    constants = {
        tensor.name: _digest(b"trained", tensor.name.encode())
        if tensor.name in trained
        else _tensor(stored.get(tensor.name, tensor) if is_stripped(tensor) else tensor)
        for tensor in model.graph.initializer
    }
    nodes: list[Node] = []
    outputs = walk.graph(model.graph, constants, nodes)
    return _digest(b"model", *outputs), tuple(nodes)


class _Walk:
    """Goes through the graphs of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._versions = {entry.domain: entry.version for entry in model.opset_import}
        self._functions: dict[tuple[str, str], bytes] = {}
        for function in model.functions:
            body = onnx.FunctionProto()
            body.CopyFrom(function)
            body.ClearField("doc_string")
            key = function.domain, function.name
            self._functions[key] = _digest(body.SerializeToString(deterministic=True))

    def graph(self, graph: onnx.GraphProto, known: Digests, nodes: list[Node]) -> list[bytes]:
        """The digests of its outputs; its nodes are added to the list."""
        values = dict(known)
        for value in graph.input:
            if value.name not in values:
                kind = str(value.type.tensor_type.elem_type).encode()
                values[value.name] = _digest(b"input", value.name.encode(), kind)
        for tensor in graph.sparse_initializer:
            content = tensor.SerializeToString(deterministic=True)
            values[tensor.values.name] = _digest(b"sparse", content)
        for node in graph.node:
            digest = self._node(node, values)
            nodes.append(Node(node.op_type, node.name or next(iter(node.output), ""), digest))
            for index, name in enumerate(node.output):
                values[name] = _digest(digest, str(index).encode())
        return [values.get(value.name, b"") for value in graph.output]

    def _node(self, node: onnx.NodeProto, values: Digests) -> bytes:
        function = self._functions.get((node.domain, node.op_type))
        version = _since(node.op_type, self._versions.get(node.domain, 0), node.domain)
        stops = any(entry.key == marks.STOP_GRADIENT for entry in node.metadata_props)
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        return _digest(
            node.domain.encode(),
            node.op_type.encode(),
            function or str(version).encode(),
            b"stops" if stops else b"",
            *(values.get(name, name.encode()) for name in node.input),
            *(self._attribute(attribute, values) for attribute in attributes),
        )

    def _attribute(self, attribute: onnx.AttributeProto, values: Digests) -> bytes:
        name = attribute.name.encode()
        if attribute.type == AttributeProto.TENSOR:
            return _digest(name, _tensor(attribute.t))
        if attribute.type == AttributeProto.GRAPH:
            inner = attribute.g
            constants = {tensor.name: _tensor(tensor) for tensor in inner.initializer}
            places = {
                value.name: _digest(b"place", str(index).encode())
                for index, value in enumerate(inner.input)
            }
            return _digest(name, *self.graph(inner, {**values, **constants, **places}, []))
        plain = onnx.AttributeProto()
        plain.CopyFrom(attribute)
        plain.ClearField("doc_string")
        return _digest(plain.SerializeToString(deterministic=True))


def _digest(*parts: bytes | memoryview) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def _tensor(tensor: onnx.TensorProto) -> bytes:
    array = array_of(tensor)
    kind = f"{tensor.data_type} {list(tensor.dims)}".encode()
    if array.dtype == np.object_:
        return _digest(kind, *tensor.string_data)
    found = _digest(kind, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    give_back(array)
    return found


@cache
def _since(op_type: str, version: int, domain: str) -> int:
    """The version in which an operator became what it is in this one."""
    try:
        return int(onnx.defs.get_schema(op_type, version, domain).since_version)
    except onnx.defs.SchemaError:
        return version
