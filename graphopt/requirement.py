"""What a runtime must support to run a graph."""

from dataclasses import dataclass
from typing import Protocol

import onnx
import onnx_ir as ir

from graphopt._files import PathLike
from graphopt.forward import read_any
from graphopt.graphs import all_nodes, functions


class HasModel(Protocol):
    """A `TrainingGraph`, or whatever else has a model."""

    @property
    def model(self) -> onnx.ModelProto:
        """The model."""
        ...


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


def requirements(graph: HasModel | onnx.ModelProto | ir.Model | PathLike) -> Requirements:
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
    inner = getattr(graph, "model", graph)
    model = read_any(inner if isinstance(inner, onnx.ModelProto | ir.Model) else graph)  # type: ignore[arg-type]  # which refuses what it does not know
    bodies = functions(model)
    opsets = dict(model.graph.opset_imports)
    operators: dict[str, set[str]] = {}
    called: set[tuple[str, str]] = set()
    waiting = [model.graph]
    while waiting:
        for node in all_nodes(waiting.pop()):
            name = node.domain, node.op_type
            body = bodies.get(name)
            if body is None:
                operators.setdefault(node.domain, set()).add(node.op_type)
            elif name not in called:
                called.add(name)
                for domain, version in body.opset_imports.items():
                    opsets[domain] = max(opsets.get(domain, 0), version)
                waiting.append(body.graph)
    return Requirements(
        model.ir_version,
        opsets,
        {domain: sorted(names) for domain, names in sorted(operators.items())},
        sorted(f"{domain}::{name}" for domain, name in called),
    )
