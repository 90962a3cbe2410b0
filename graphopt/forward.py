"""Reading the forward model that a user hands over."""

import math
import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from graphopt._files import PathLike, existing_file
from graphopt.dtypes import BITS
from graphopt.graphs import proto_graphs, subgraphs

ForwardModel = PathLike | onnx.ModelProto | ir.Model


def read_forward(model: ForwardModel) -> ir.Model:
    """The model as `onnx_ir.Model`; what is handed over is never changed."""
    if isinstance(model, ir.Model):
        return model
    return to_ir(read_proto(model))


def to_ir(proto: onnx.ModelProto) -> ir.Model:
    """The model as `onnx_ir.Model`; the values of its tensors stay where they are until needed.

    Raises:
        ValueError: It is damaged.
    """
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # noqa: BLE001 - whatever onnx-ir finds wrong
        raise ValueError(f"the model is damaged: {error}") from None
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        _own_outputs(graph, ())
    return model


def _own_outputs(graph: ir.Graph, around: Sequence[ir.Graph]) -> None:
    """Let graphs in nodes copy what they give, where that is a value of the graphs around them.

    onnx-ir leaves such an output without its value, and ONNX Runtime refuses it.
    """
    for node in graph:
        for inner in subgraphs(node):
            _own_outputs(inner, (graph, *around))
    for index, value in enumerate(graph.outputs if around else ()):
        if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
            named = (
                ir.convenience.create_value_mapping(outer).get(str(value.name)) for outer in around
            )
            if (source := next(filter(None, named), None)) is not None:
                copy = ir.node("Identity", [source])
                copy.outputs[0].name = value.name
                graph.append(copy)
                graph.outputs[index] = copy.outputs[0]


def read_proto(model: ForwardModel) -> onnx.ModelProto:
    """The model as ``onnx.ModelProto``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an ONNX model.
        TypeError: ``model`` is neither a path nor a model.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, ir.Model):
        return ir.to_proto(ir.external_data.load_to_model(model.clone()))
    if isinstance(model, str | os.PathLike):
        path = existing_file(model)
        try:
            proto = onnx.load(path, format="protobuf", load_external_data=False)
            _check_data_files(path, proto)
            load_external_data_for_model(proto, str(path.parent))
        except FileNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001 - protobuf's, onnx's and the file system's
            raise ValueError(f"'{path}' is not an ONNX model: {error}") from None
        if not proto.graph.node or not proto.opset_import:
            raise ValueError(f"'{path}' is not an ONNX model: it holds no graph")
        for tensor in proto.graph.initializer:
            _check_size(path, tensor)
        return proto
    raise TypeError(
        f"model: got {type(model).__name__}, "
        "expected a path, an onnx.ModelProto or an onnx_ir.Model"
    )


def check_loaded(proto: onnx.ModelProto) -> None:
    """Refuse a model in memory whose values have been left in files.

    Raises:
        ValueError: It has such an initializer.
    """
    for tensor in proto.graph.initializer:
        if uses_external_data(tensor):
            raise ValueError(
                f"initializer '{tensor.name}' has its values in the file '{_location(tensor)}', "
                "which was not loaded; give the path of the model, or load it with "
                "onnx.load(path), which reads them"
            )


def _check_data_files(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse a model without the files that hold its values."""
    for tensor in proto.graph.initializer:
        if uses_external_data(tensor) and not (path.parent / _location(tensor)).exists():
            raise FileNotFoundError(
                f"'{path}': no file '{path.parent / _location(tensor)}', which holds the values of "
                f"initializer '{tensor.name}'; put it beside the model"
            )


def _location(tensor: onnx.TensorProto) -> str:
    return next((e.value for e in tensor.external_data if e.key == "location"), "")


def with_weights(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The model in which the constants that have these names are initializers of its graph.

    These are nodes Constant, and constants in the branches of If and the bodies of loops. So are
    the running statistics of batch normalization, which training may move.

    Args:
        proto: The model, which is left as it is.
        names: Those of trained parameters. Where several graphs in nodes have the name, all stay.
    """
    statistics = {
        name
        for node in proto.graph.node
        if node.op_type == "BatchNormalization" and not node.domain
        for name in node.input[3:5]
    }
    graphs = list(proto_graphs(proto.graph))
    counted = Counter(name for graph in graphs for name in _constants(graph, names))
    once = {name for name, count in counted.items() if count == 1}
    moved = _constants(proto.graph, statistics.union(names))
    outer = moved.keys() - {tensor.name for tensor in proto.graph.initializer}
    if not outer and not any(_constants(graph, once) for graph in graphs[1:]):
        return proto
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    weights: dict[str, onnx.TensorProto] = {}
    for index, graph in enumerate(proto_graphs(own.graph)):
        weights |= _taken(graph, once if index else outer)
    for name, tensor in weights.items():
        initializer = own.graph.initializer.add()
        initializer.CopyFrom(tensor)
        initializer.name = name
    return own


def _constants(graph: onnx.GraphProto, names: Collection[str]) -> dict[str, onnx.TensorProto]:
    """The initializers and the nodes Constant of a graph that have these names."""
    found = {tensor.name: tensor for tensor in graph.initializer if tensor.name in names}
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain and node.output[0] in names:
            tensors = [entry.t for entry in node.attribute if entry.name == "value"]
            found |= zip(node.output, tensors, strict=False)
    return found


def _taken(graph: onnx.GraphProto, names: Collection[str]) -> dict[str, onnx.TensorProto]:
    """Take these constants out of a graph."""
    found = {}
    for name, tensor in _constants(graph, names).items():
        found[name] = onnx.TensorProto()
        found[name].CopyFrom(tensor)
    if found:
        nodes = [node for node in graph.node if found.keys().isdisjoint(node.output)]
        tensors = [tensor for tensor in graph.initializer if tensor.name not in found]
        for field, kept in ((graph.node, nodes), (graph.initializer, tensors)):
            del field[:]
            field.extend(kept)
    return found


def _check_size(path: Path, tensor: onnx.TensorProto) -> None:
    """Refuse a tensor that has not the bytes of its shape, before something reads past its end."""
    if not tensor.HasField("raw_data") or tensor.data_type not in BITS:
        return
    expected = math.ceil(math.prod(tensor.dims) * BITS[tensor.data_type] / 8)
    if len(tensor.raw_data) != expected:
        raise ValueError(
            f"'{path}' is damaged: initializer '{tensor.name}' of shape {list(tensor.dims)} has "
            f"{len(tensor.raw_data)} bytes, expected {expected}"
        )
