"""The graph as the page draws it: nodes with what they read, and values with their shapes."""

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from graphopt.graphs import operands
from graphopt.inspection.costs.operations import node_costs
from graphopt.inspection.facts import Inspection
from graphopt.inspection.reading.dataflow import dtype_name
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.structure.nodes_of import attributes_text
from graphopt.inspection.structure.roles import stages_of_nodes
from graphopt.module_names import BUCKETS, modules, name_of
from graphopt.shapes.engine import Shapes
from graphopt.shapes.sizes import Dims
from graphopt.shapes.values import UNNAMED
from graphopt.stage import STAGES

_LONGEST_ATTRIBUTES = 300


class _Numbered:
    """Things in the order in which they are met first, each once."""

    def __init__(self) -> None:
        self._places: dict[Any, int] = {}

    def of(self, thing: Any) -> int:
        """The place of a thing."""
        return self._places.setdefault(thing, len(self._places))

    def listed(self) -> list[Any]:
        return list(self._places)


def graph_data(reading: Reading, inspection: Inspection) -> dict[str, Any]:
    """The nodes and the values of a model, for the page.

    Args:
        reading: The model.
        inspection: What is known of it.

    Returns:
        Rows of nodes: name (of its first result, where it has none), operator, stage, module, what
        it reads and what it makes (places among the values, -1 for what is left out), attributes,
        FLOPs and bytes moved. Rows of values: name, shape and dtype (places among those), and
        bytes. The places of stages, modules and attributes are those in the lists beside the rows.
    """
    model, sizes = reading.file.model, inspection.memory.sizes
    graph = model.graph
    stages = stages_of_nodes(reading)
    shapes = reading.file.shapes(sizes)
    names = [parameter.name for parameter in inspection.parameters]
    paths = modules(graph, stages, names, _groups(inspection))
    written, placed = _Numbered(), _Numbered()
    values: dict[ir.Value, int] = {}

    def place(value: ir.Value | None) -> int:
        return -1 if value is None else values.setdefault(value, len(values))

    inputs = [place(value) for value in graph.inputs]
    rows = [
        [
            name_of(node),
            f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            STAGES.index(stage),
            placed.of(path),
            [place(value) for value in _read(node)],
            [place(value) for value in node.outputs],
            written.of(attributes_text(node)[:_LONGEST_ATTRIBUTES]),
            None if cost.unknown else cost.flops,
            None if cost.unknown else cost.bytes,
        ]
        for node, stage, path, cost in zip(
            graph, stages, paths, node_costs(stages, shapes), strict=True
        )
    ]
    outputs = [place(value) for value in graph.outputs]
    return {
        "nodes": rows,
        "modules": placed.listed(),
        "attributes": written.listed(),
        "inputs": inputs,
        "outputs": outputs,
        **_values(values, shapes, reading.file.shapes() if sizes else shapes),
        "buckets": BUCKETS,
    }


def _groups(inspection: Inspection) -> dict[str, int | None]:
    """The group of each bucket."""
    of = {parameter.name: parameter.group for parameter in inspection.parameters}
    return {
        bucket.name: next((of[name] for name in bucket.parameters if name in of), None)
        for bucket in inspection.buckets
    }


def _read(node: ir.Node) -> Iterable[ir.Value | None]:
    """The operands in their places, and what the graphs inside a node read beside them."""
    own = set(node.inputs)
    return (*node.inputs, *(value for value in operands(node) if value not in own))


def _values(places: Mapping[ir.Value, int], known: Shapes, open_: Shapes) -> dict[str, Any]:
    """The values, with the names of open sizes, and their bytes with those that are assumed."""
    shapes, dtypes = _Numbered(), _Numbered()
    rows = []
    for value in places:
        info, named = known.scope.of(value), open_.scope.of(value)
        dtype = dtype_name(named.dtype) or ""
        rows.append(
            [
                str(value.name or ""),
                shapes.of(_shape(named.shape)),
                dtypes.of(f"sequence of {dtype}" if named.is_sequence else dtype),
                info.bytes,
            ]
        )
    return {"values": rows, "shapes": shapes.listed(), "dtypes": dtypes.listed()}


def _shape(shape: Dims | None) -> tuple[int | str | None, ...] | None:
    if shape is None:
        return None
    return tuple(
        None if isinstance(size, str) and size.startswith(UNNAMED) else size for size in shape
    )
