"""What the forward pass and the loss are made of, node by node and tensor by tensor."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper

from graphopt.carried import View
from graphopt.graphs import subgraphs
from graphopt.inspection.facts import Contents
from graphopt.inspection.reading.rates import rate_at
from graphopt.inspection.reading.read_model import Reading
from graphopt.manifest import Manifest
from graphopt.stage import Stage

_STAGES = {"forward", "loss"}
_GRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


def contents_of(reading: Reading, stages: Sequence[Stage]) -> Contents:
    """The nodes of the forward pass and of the loss, and the values that training begins with.

    Args:
        reading: The model.
        stages: The stage of each node.
    """
    graph = reading.file.model.graph
    nodes = [node for node, stage in zip(graph, stages, strict=True) if stage in _STAGES]
    return Contents(
        {name: _facts(node) for node in nodes for name, node in _inner("", node)},
        dict(_initial_values(reading)) | dict(_constants(nodes)),
        _rates(reading),
    )


def digest(tensor: ir.TensorProtocol | np.ndarray) -> str | None:
    """A short text that is the same for the same values only; None where they are not at hand."""
    array = values(tensor)
    if array is None:
        return None
    if array.dtype == object:
        return hashlib.sha256(repr(array.tolist()).encode()).hexdigest()[:12]
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


def values(tensor: ir.TensorProtocol | np.ndarray) -> np.ndarray | None:
    """The values of a tensor; None where they lie in another file, or are damaged."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if isinstance(tensor, ir.ExternalTensor):
        return None
    try:
        return tensor.numpy()
    except (TypeError, ValueError):
        return None


def _inner(prefix: str, node: ir.Node) -> Iterator[tuple[str, ir.Node]]:
    """A node and those in its graphs, each with its name."""
    name = prefix + str(node.name or next((v.name for v in node.outputs), ""))
    yield name, node
    for graph in subgraphs(node):
        for inner in graph:
            yield from _inner(f"{name}/", inner)


def _facts(node: ir.Node) -> dict[str, str]:
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    attributes = {
        attribute.name: _text(attribute)
        for attribute in node.attributes.values()
        if attribute.type not in _GRAPHS and not _is_constant(node)
    }
    return {"operator": operator} | attributes


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and not node.domain


def _text(attribute: ir.Attr) -> str:
    value = attribute.value
    if isinstance(value, float):
        return str(np.float32(value))
    if attribute.type == ir.AttributeType.TENSOR:
        return f"sha256 {digest(value)}"
    return str(list(value) if isinstance(value, tuple) else value)


def _constants(nodes: Sequence[ir.Node]) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """What these nodes read that does not change."""
    for outer in nodes:
        for _, node in _inner("", outer):
            for value in (*node.inputs, *(node.outputs if _is_constant(node) else ())):
                tensor = None if value is None else ir.convenience.get_const_tensor(value)
                if value is not None and tensor is not None and not value.is_graph_input():
                    yield str(value.name), tensor


def _initial_values(reading: Reading) -> Iterator[tuple[str, np.ndarray]]:
    """What each parameter and running statistic starts from, and the state that is not a number.

    Values in other files are not read.
    """
    carried = {write.input.name for write in reading.carried if write.initial == "values"}
    try:
        views = Manifest.read(reading.file.model, "views").views or {}
    except ValueError:
        views = {}
    for info in reading.file.training:
        for tensor in info.initialization.initializer:
            if tensor.name in carried and not tensor.external_data:
                yield from _views(
                    numpy_helper.to_array(tensor), views.get(tensor.name, ()), tensor.name
                )


def _rates(reading: Reading) -> dict[str, Callable[[int], float | None]]:
    """The learning rate of each parameter at any step; one that several have is computed once."""
    if reading.recovered is None:
        return {}
    shared: dict[int, Callable[[int], float | None]] = {}
    found = {}
    for trained in reading.recovered.trained:
        if (rate := trained.rate) is not None:
            at = cache(partial(rate_at, rate, reading.recovered.step))
            found[trained.facts.name] = shared.setdefault(id(rate.source), at)
    return found


def _views(array: np.ndarray, views: Sequence[View], name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The parts that a tensor has by its metadata, where those fit it."""
    flat = array.reshape(-1)
    if not views or any(view.offset + view.size > flat.size for view in views):
        yield name, array
        return
    for view in views:
        yield view.name, flat[view.offset : view.offset + view.size].reshape(view.shape)
