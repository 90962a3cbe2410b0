"""What a runtime must support to run a graph."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import onnx

from graphopt._files import PathLike
from graphopt._subgraphs import subgraphs
from graphopt.forward import read_proto


class HasModel(Protocol):
    """A `TrainingGraph`, or whatever else has a model."""

    model: onnx.ModelProto


@dataclass(frozen=True)
class Requirements:
    """What a runtime must support to run a graph.

    Attributes:
        ir_version: The version of the file format.
        opsets: The version of the operators of each domain; "" is ONNX's own.
        operators: The operators that a runtime needs kernels for, by domain, in the graph, in its
            branches and loops, and in the bodies of its functions.
        functions: The operators whose definition is in the file, as ``domain::name``: a runtime
            that knows functions needs no kernel for them.
    """

    ir_version: int
    opsets: dict[str, int]
    operators: dict[str, list[str]]
    functions: list[str]

    @property
    def standard(self) -> bool:
        """Whether ONNX's own operators are all that is needed."""
        return set(self.operators) <= {""}


def requirements(graph: HasModel | onnx.ModelProto | PathLike) -> Requirements:
    """What a runtime must support to run a graph; also in its metadata, as JSON.

    Args:
        graph: A `TrainingGraph`, or any ONNX model or its path.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: ``graph`` is none of these.
        ValueError: The file is not an ONNX model.

    Example:
        >>> needed = requirements(update_graph(RMSProp([Parameter("w", (3,))])))
        >>> needed.ir_version, needed.opsets, needed.standard
        (8, {'': 17, 'graphopt': 1}, True)
        >>> needed.functions[-1], needed.operators[""][:3]
        ('graphopt::ChunkedRMSProp', ['Add', 'Constant', 'Div'])
    """
    model = graph if isinstance(graph, onnx.ModelProto) else _proto(graph)
    bodies = {(function.domain, function.name): function for function in model.functions}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    operators: dict[str, set[str]] = {}
    called: set[tuple[str, str]] = set()
    waiting = list(_nodes(model.graph.node))
    while waiting:
        node = waiting.pop()
        domain = "" if node.domain == "ai.onnx" else node.domain
        body = bodies.get((node.domain, node.op_type))
        if body is None:
            operators.setdefault(domain, set()).add(node.op_type)
        elif (node.domain, node.op_type) not in called:
            called.add((node.domain, node.op_type))
            for entry in body.opset_import:
                opsets[entry.domain] = max(opsets.get(entry.domain, 0), entry.version)
            waiting += _nodes(body.node)
    return Requirements(
        model.ir_version,
        opsets,
        {domain: sorted(names) for domain, names in sorted(operators.items())},
        sorted(f"{domain}::{name}" for domain, name in called),
    )


def _proto(graph: HasModel | PathLike) -> onnx.ModelProto:
    if isinstance(model := getattr(graph, "model", None), onnx.ModelProto):
        return model
    return read_proto(graph)  # type: ignore[arg-type]  # which refuses what it does not know


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, also those inside branches and loops."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from _nodes(graph.node)
