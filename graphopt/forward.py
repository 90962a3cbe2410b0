"""Reading the forward model that a user hands over."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt._files import PathLike, existing_file
from graphopt._slips import is_of_torch, kind_of
from graphopt.external_data import check_values, checked_file, load_values
from graphopt.graphs import proto_graphs, subgraphs
from graphopt.limits import asked_for_by
from graphopt.mapped_values import LeftTensor, use_left_tensors
from graphopt.soundness.errors import about
from graphopt.soundness.file import read_model

ForwardModel = PathLike | onnx.ModelProto | ir.Model


def read_forward(model: ForwardModel, *, leaving: bool = False) -> ir.Model:
    """A forward model as `onnx_ir.Model`; see `read_any`.

    Raises:
        ValueError: It is a training graph.
    """
    return read_any(model, check_is_forward, leaving=leaving)


def read_any(
    model: ForwardModel,
    check: Callable[[onnx.ModelProto], None] = lambda _: None,
    *,
    leaving: bool = False,
) -> ir.Model:
    """The model as `onnx_ir.Model`; what is handed over is never changed.

    Args:
        model: The model.
        check: Refuses what it must not be, where it is not an `onnx_ir.Model` already.
        leaving: See `read_with_files`.
    """
    if isinstance(model, ir.Model):
        _check_files(model)
        return model
    proto, _ = read_with_files(model, leaving=leaving)
    with about(model):
        check(proto)
        return to_ir(proto)


def to_ir(proto: onnx.ModelProto) -> ir.Model:
    """The model as `onnx_ir.Model`; the values of its tensors stay where they are until needed.

    Raises:
        ValueError: It is damaged.
    """
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # noqa: BLE001 - whatever onnx-ir finds wrong
        raise ValueError(f"the model is damaged: {error}") from None
    use_left_tensors(model)
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
    """The model as ``onnx.ModelProto``; see `read_with_files`."""
    return read_with_files(model)[0]


def read_with_files(
    model: ForwardModel, *, leaving: bool = False
) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """The model as ``onnx.ModelProto``, whose tensors have the values that their shapes need.

    Args:
        model: The model.
        leaving: Leave the values of large initializers in their files, for `mapped_values`.

    Returns:
        The model, and the files that it was read from: its own first, then those that have values
        of it; none where it was in memory.

    Raises:
        FileNotFoundError: There is no such file, or none beside it that holds values of it.
        ValueError: The file is not an ONNX model, or a tensor of it is damaged.
        TypeError: ``model`` is neither a path nor a model.
    """
    if isinstance(model, str | os.PathLike):
        with asked_for_by(model):
            return _read(existing_file(model), leaving=leaving)
    if isinstance(model, ir.Model):
        proto = _loaded(model)
    elif isinstance(model, onnx.ModelProto):
        proto = model
    else:
        raise TypeError(
            f"model: got {_described(model)}, "
            "expected a path, an onnx.ModelProto or an onnx_ir.Model"
        )
    check_values(proto)
    return proto, ()


def check_is_forward(model: onnx.ModelProto) -> None:
    """Refuse a training graph where the forward model is meant.

    Raises:
        ValueError: It declares what is carried from step to step.
    """
    if any(info.update_binding for info in model.training_info):
        raise ValueError(
            "the model is a training graph already; give the forward model that it was made from, "
            "or take the one in it, graphopt.load(path).forward({})"
        )


def _described(model: object) -> str:
    """What was given in place of a model, and what to do."""
    if is_of_torch(model):
        return f"{kind_of(model)} (export it first, with graphopt.torch.export)"
    if type(model).__name__ == "TrainingGraph":
        return "a TrainingGraph (its forward model is graph.forward({}))"
    return type(model).__name__


def _read(path: Path, *, leaving: bool) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    try:
        proto = read_model(path, leaving=leaving)
        if not proto.graph.node or not proto.opset_import:
            raise ValueError("it holds no graph")
    except ValueError as error:
        raise ValueError(f"'{path}' is not an ONNX model: {error}") from None
    try:
        files = load_values(proto, path, leaving=leaving)
        check_values(proto)
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged: {error}") from None
    return proto, (path, *files)


def _loaded(model: ir.Model) -> onnx.ModelProto:
    """A model in memory with the values that it has left in files."""
    _check_files(model)
    try:
        return ir.to_proto(ir.external_data.load_to_model(model.clone()))
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever onnx-ir finds wrong
        raise ValueError(f"the model is damaged: {error}") from None


def _check_files(model: ir.Model) -> None:
    """Refuse a model whose files are not beside it."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for inner in (graph, *graph.subgraphs()):
            for value in inner.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor) and not isinstance(tensor, LeftTensor):
                    path = Path(tensor.base_dir, "model")
                    checked_file(str(tensor.location), f"initializer '{value.name}'", path)


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
