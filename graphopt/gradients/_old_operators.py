"""Operators as they were, where onnx's version converter refuses them or changes what they compute.

| until opset | operator | what it was | what becomes of it |
|---|---|---|---|
| 5 | all | `consumed_inputs` | left out |
| 5 | Cast | `to` by name | its number |
| 5 | Selu | alpha 1.6732 and gamma 1.0507 by default | written down |
| 5 | Tile | `tiles` and `axis` | `repeats` |
| 4 | Reshape | the attribute `shape` | an input |
| 3 | Concat | axis 1 by default | written down |
| 1 | Pad | `paddings` | `pads` |
| 1 | Split | its sizes may be an input | an attribute |
| 1 | GlobalLpPool, LpPool | `p` is a float | an int |
| 6 | Add, And, Div, Equal, ... | `broadcast` and `axis` | Unsqueeze of the second operand |
| 6 | PRelu | a slope of one axis belongs to axis 1 | Unsqueeze of the slope |
| 6 | Gemm | `broadcast` | left out: it is so since |
| 6 | GRU, LSTM, RNN | `output_sequence` | left out: who reads Y has it |
| 6 | Upsample | `height_scale` and `width_scale` | `scales` |
| 6 | BatchNormalization, Dropout | in training mode unless `is_test` | `training_mode` |
| 8 | BatchNormalization | `spatial=0`, statistics of each element | refused |
| 13 | BatchNormalization | in training mode if it has several outputs | `training_mode` |
| 10 | Resize, Upsample | from x / scale, nearest below (above, where the size shrinks) | said so |
| 12 | Hardmax | of all axes from one on | Flatten, Hardmax, Reshape |

What else has changed the converter handles, or it is only types and documentation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from graphopt.graphs import proto_graphs, proto_nodes

Nodes = Sequence[onnx.NodeProto]
Rewrite = Callable[["OldOperators", onnx.NodeProto], Nodes]

_FIRST_WITH_NUMPY = 7  # the opset since which operands are broadcast as in NumPy


@dataclass
class OldOperators:
    """Brings nodes to what onnx's converter understands, and completes what it has made of them.

    Attributes:
        proto: The model, changed in place.
        opset: The opset that it had.
        tensors: Its constants, by name.
    """

    proto: onnx.ModelProto
    opset: int
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _ranks: dict[str, int] | None = None
    _trains: set[str] = field(default_factory=set)
    _samples: dict[str, str] = field(default_factory=dict)

    def prepare(self) -> onnx.ModelProto:
        """The model, at opset 7 at least.

        Raises:
            ValueError: A node cannot be told in newer operators.
        """
        for graph in proto_graphs(self.proto.graph):
            self._names.update(name for node in graph.node for name in node.output)
            self._names.update(tensor.name for tensor in graph.initializer)
        self.tensors = _constants(self.proto)
        if self.opset < _FIRST_WITH_NUMPY:
            self._rewrite(_SINCE | _BEFORE_7)
            for entry in self.proto.opset_import:
                if not entry.domain:
                    entry.version = _FIRST_WITH_NUMPY
            self._rewrite(_BY_RANKS)
        else:
            self._rewrite(_SINCE)
        return self.proto

    def at_opset_10(self, proto: onnx.ModelProto) -> None:
        """Remember what is resized: this is the last opset in which it was so.

        ONNX Runtime and ONNX's test data take the next element where a size shrinks, and the one
        before where it grows.

        Raises:
            ValueError: A node does both.
        """
        tensors = _constants(proto)
        for node in proto_nodes(proto.graph.node):
            if node.op_type != "Resize" or node.domain:
                continue
            known = tensors.get(node.input[1])
            scales = np.ones(1) if known is None else numpy_helper.to_array(known)
            is_nearest = _get(node, "mode", b"nearest") == b"nearest"
            if is_nearest and scales.min() < 1 < scales.max():
                raise self.error(node, "it shrinks along one axis and grows along another")
            self._samples[node.output[0]] = "ceil" if scales.min() < 1 else "floor"

    def complete(self, converted: onnx.ModelProto) -> onnx.ModelProto:
        """What the converter has lost, or cannot know; it keeps the names of values."""
        for graph in proto_graphs(converted.graph):
            for node in graph.node:
                name = node.output[0] if node.output else ""
                if node.op_type == "Resize" and name in self._samples:
                    _set(node, "coordinate_transformation_mode", "asymmetric")
                    _set(node, "nearest_mode", self._samples[name])
                elif name in self._trains and node.op_type == "BatchNormalization":
                    _set(node, "training_mode", 1)
                elif name in self._trains and node.op_type == "Dropout":
                    mode = numpy_helper.from_array(np.array(True), self.fresh(f"{name}/training"))
                    graph.initializer.append(mode)
                    node.input.extend(["", ""][: 2 - len(node.input)])
                    node.input.append(mode.name)
        return converted

    def _rewrite(self, rewrites: Mapping[str, Rewrite]) -> None:
        for graph in proto_graphs(self.proto.graph):
            nodes: list[onnx.NodeProto] = []
            for node in graph.node:
                if self.opset < 6:
                    _pop(node, "consumed_inputs")
                rewrite = None if node.domain else rewrites.get(node.op_type)
                nodes.extend([node] if rewrite is None else rewrite(self, node))
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del graph.node[:]
            graph.node.extend(copies)

    # What rewrites ask for --------------------------------------------------------------------

    def rank(self, node: onnx.NodeProto, name: str) -> int:
        """The number of axes of an operand.

        Raises:
            ValueError: It is not known.
        """
        if name in self.tensors:
            return len(self.tensors[name].dims)
        if self._ranks is None:
            graph = shape_inference.infer_shapes(self.proto).graph
            self._ranks = {
                value.name: len(value.type.tensor_type.shape.dim)
                for value in (*graph.input, *graph.value_info, *graph.output)
                if value.type.tensor_type.HasField("shape")
            }
        if name not in self._ranks:
            raise self.error(node, f"the number of axes of '{name}' is unknown")
        return self._ranks[name]

    def constant(self, node: onnx.NodeProto, name: str) -> np.ndarray:
        """The value of an operand.

        Raises:
            ValueError: It is not known.
        """
        if name not in self.tensors:
            raise self.error(node, f"'{name}' is not a constant")
        return numpy_helper.to_array(self.tensors[name])

    def input(self, node: onnx.NodeProto, array: np.ndarray) -> str:
        """A new initializer, which a node reads."""
        tensor = numpy_helper.from_array(array, self.fresh(f"{node.output[0]}/{node.op_type}"))
        self.proto.graph.initializer.append(tensor)
        return tensor.name

    def unsqueezed(self, node: onnx.NodeProto, index: int, more: int) -> Nodes:
        """The node, one of whose operands gets more axes of size 1 behind its own."""
        if more <= 0:
            return [node]
        name = node.input[index]
        rank = self.rank(node, name)
        node.input[index] = self.fresh(f"{node.output[0]}/{name}")
        axes = list(range(rank, rank + more))
        return [helper.make_node("Unsqueeze", [name], [node.input[index]], axes=axes), node]

    def trains(self, node: onnx.NodeProto, outputs: int) -> None:
        """Remember that a node is in training mode; so many of its outputs are kept.

        Raises:
            ValueError: Another one is read.
        """
        read = {name for node in proto_nodes(self.proto.graph.node) for name in node.input}
        read.update(value.name for value in self.proto.graph.output)
        if others := [name for name in node.output[outputs:] if name in read]:
            raise self.error(node, f"it is in training mode, and its output '{others[0]}' is read")
        del node.output[outputs:]
        self._trains.add(node.output[0])

    def error(self, node: onnx.NodeProto, problem: str) -> ValueError:
        """An error that names a node."""
        return ValueError(
            f"{node.op_type} '{node.name or node.output[0]}': {problem}, and the model has opset "
            f"{self.opset}, in which that matters; export it again with opset 17"
        )

    def fresh(self, hint: str) -> str:
        """A name that no value has."""
        name = hint
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name


def _constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers and constants, by name."""
    found: dict[str, onnx.TensorProto] = {}
    for graph in proto_graphs(proto.graph):
        found |= {tensor.name: tensor for tensor in graph.initializer}
        found |= {
            node.output[0]: node.attribute[0].t
            for node in graph.node
            if node.op_type == "Constant" and node.attribute[0].name == "value"
        }
    return found


def _get(node: onnx.NodeProto, name: str, default: object = None) -> object:
    found = [a for a in node.attribute if a.name == name]
    return helper.get_attribute_value(found[0]) if found else default


def _pop(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of an attribute, which the node no longer has."""
    value = _get(node, name, default)
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(copies)
    return value


def _set(node: onnx.NodeProto, name: str, value: object) -> None:
    _pop(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def _broadcast(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    """The second operand begins at an axis of the first, or ends where that does."""
    axis = _pop(node, "axis")
    if not _pop(node, "broadcast", 0) or not isinstance(axis, int):
        return [node]
    ranks = [old.rank(node, name) for name in node.input]
    axis += ranks[0] if axis < 0 else 0
    return old.unsqueezed(node, 1, ranks[0] - axis - ranks[1])


def _p_relu(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    slope = node.input[1]
    is_single = slope in old.tensors and list(old.tensors[slope].dims) == [1]
    if old.rank(node, slope) != 1 or is_single:
        return [node]
    return old.unsqueezed(node, 1, old.rank(node, node.input[0]) - 2)


def _cast(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    del old
    to = _get(node, "to")
    if isinstance(to, bytes):
        _set(node, "to", onnx.TensorProto.DataType.Value(to.decode().upper()))
    return [node]


def _selu(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    if old.opset < 6:
        _set(node, "alpha", _get(node, "alpha", 1.6732))
        _set(node, "gamma", _get(node, "gamma", 1.0507))
    return [node]


def _tile(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    if old.opset < 6:
        repeats = np.ones(old.rank(node, node.input[0]), np.int64)
        axis, times = (old.constant(node, name).item() for name in node.input[2:0:-1])
        repeats[int(axis)] = times
        node.input[1] = old.input(node, repeats)
        del node.input[2:]
    return [node]


def _reshape(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    shape = _pop(node, "shape")
    if len(node.input) < 2:
        node.input.append(old.input(node, np.array(shape, np.int64)))
    return [node]


def _concat(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    del old
    _set(node, "axis", _get(node, "axis", 1))
    return [node]


def _pad(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    del old
    paddings = _pop(node, "paddings")
    if paddings is not None:
        _set(node, "pads", paddings)
    return [node]


def _split(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    if len(node.input) > 1:
        _set(node, "split", old.constant(node, node.input[1]).astype(int).ravel().tolist())
        del node.input[1:]
    return [node]


def _lp_pool(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    p = _get(node, "p")
    if isinstance(p, float):
        if p != int(p):
            raise old.error(node, f"its p is {p:g}, expected a whole number")
        _set(node, "p", int(p))
    return [node]


def _without(name: str) -> Rewrite:
    def rewrite(old: OldOperators, node: onnx.NodeProto) -> Nodes:
        del old
        _pop(node, name)
        return [node]

    return rewrite


def _upsample(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    del old
    height, width = _pop(node, "height_scale"), _pop(node, "width_scale")
    if height is not None:
        _set(node, "scales", [1.0, 1.0, height, width])
    return [node]


def _batch_normalization(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    if old.opset > 13:
        return [node]
    if not _pop(node, "spatial", 1):
        raise old.error(node, "it has a statistic for each element (spatial=0)")
    is_test = _pop(node, "is_test", 0)
    if len(node.output) > 1 or (old.opset < _FIRST_WITH_NUMPY and not is_test):
        old.trains(node, 3)
        while len(node.output) < 3:
            node.output.append(old.fresh(f"{node.output[0]}/moved"))
    return [node]


def _dropout(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    if not _pop(node, "is_test", 0):
        old.trains(node, 1)
    return [node]


def _hardmax(old: OldOperators, node: onnx.NodeProto) -> Nodes:
    if old.opset > 12:
        return [node]
    (x,), (y,) = node.input, node.output
    axis = _get(node, "axis", 1)
    shape, flat, chosen = (old.fresh(f"{y}/{part}") for part in ("shape", "flat", "chosen"))
    node.input[0], node.output[0] = flat, chosen
    _set(node, "axis", 1)
    return [
        helper.make_node("Shape", [x], [shape]),
        helper.make_node("Flatten", [x], [flat], axis=axis),
        node,
        helper.make_node("Reshape", [chosen, shape], [y], name=f"{node.name or y}/Reshape"),
    ]


_SINCE: dict[str, Rewrite] = {
    "BatchNormalization": _batch_normalization,
    "Hardmax": _hardmax,
}
"""Rewrites of operators that changed later too."""

_BEFORE_7: dict[str, Rewrite] = {
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _without("output_sequence")),
    **dict.fromkeys(("GlobalLpPool", "LpPool"), _lp_pool),
    "Cast": _cast,
    "Concat": _concat,
    "Dropout": _dropout,
    "Gemm": _without("broadcast"),
    "Pad": _pad,
    "Reshape": _reshape,
    "Selu": _selu,
    "Split": _split,
    "Upsample": _upsample,
}
"""What else has changed until opset 7."""

_BY_RANKS: dict[str, Rewrite] = {
    **dict.fromkeys(("Add", "And", "Div", "Equal", "Greater", "Less"), _broadcast),
    **dict.fromkeys(("Mul", "Or", "Pow", "Sub", "Xor"), _broadcast),
    "PRelu": _p_relu,
    "Tile": _tile,
}
"""And what depends on how many axes operands have."""
