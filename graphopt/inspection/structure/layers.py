"""The graph by stage and layer: nodes grouped by the forward node that they belong to."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.graphs import operands
from graphopt.inspection.facts import LayerFacts
from graphopt.module_names import layer_names
from graphopt.stage import STAGES, Stage


def layers(
    graph: ir.Graph, stages: Sequence[Stage], parameters: Collection[str]
) -> tuple[LayerFacts, ...]:
    """The nodes of each stage, grouped by the forward node that they belong to.

    A layer is called after its forward node: the scope in its name, such as ``conv1`` in
    ``conv1/Relu``, its name, its result, or its operator and index. In the backward pass it has the
    same name as in the forward pass; in the update it is called after the bucket, or after what
    is carried.

    Args:
        graph: The graph.
        stages: The stage of each node.
        parameters: Names of the trained parameters.

    Returns:
        Stage by stage, each layer where its first node stands.
    """
    nodes, trained = list(graph), set(parameters)
    names = layer_names(nodes, stages, trained)
    found: dict[tuple[Stage, str], Counter[str]] = {}
    after: defaultdict[tuple[Stage, str], dict[str, None]] = defaultdict(dict)
    made: dict[ir.Value, tuple[Stage, str]] = {}
    reads: dict[str, dict[str, None]] = {}
    for node, stage, name in zip(nodes, stages, names, strict=True):
        key = stage, name
        found.setdefault(key, Counter())[node.op_type] += 1
        for value in operands(node):
            if value.name in trained and stage in ("forward", "loss"):
                reads.setdefault(name, {})[str(value.name)] = None
            source = made.get(value)
            if source is not None and source != key and source[0] == stage:
                after[key][source[1]] = None
        made |= dict.fromkeys(node.outputs, key)
    return tuple(
        LayerFacts(
            stage,
            name,
            dict(op_types),
            op_types.total(),
            tuple(reads.get(name, ())) if stage != "update" else (),
            tuple(after[stage, name]),
        )
        for wanted in STAGES
        for (stage, name), op_types in found.items()
        if stage == wanted
    )
