"""The stage of a training step to which each node belongs, by what its results are for."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx_ir as ir

from graphopt.carried import NEXT
from graphopt.graphs import operands, subgraphs
from graphopt.on_device.tensor_names import GRADIENT_BUFFER
from graphopt.operators import of
from graphopt.stage import STAGES, Stage


def stages_of(
    graph: ir.Graph,
    *,
    reported: Collection[str],
    loss: Collection[str],
    gradients: Collection[str],
    carried: Collection[str],
) -> list[Stage]:
    """The stage of each node of a graph, in which nodes stand after what they read.

    What the reported outputs are computed from is the forward pass; what else the loss is
    computed from is the loss, and what else the gradients, the backward pass. The rest is the
    update. A node that only computes a shape belongs to the first that uses it.

    A training graph that reports nothing but its loss does not say where the forward pass ends.
    There the loss begins after the last node that reads a parameter, where what an input such as
    the labels comes in; without such an input, all is the forward pass.

    Args:
        graph: The graph.
        reported: Names of the outputs that are neither the loss nor carried.
        loss: The name of the loss, if there is one.
        gradients: Names of the gradients.
        carried: Names of the outputs that feed inputs at the next step.
    """
    nodes = list(graph)
    if not gradients and not carried and not any(map(_writes, nodes)):
        return ["forward"] * len(nodes)
    found: list[Stage | None] = [None] * len(nodes)
    named = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    ends = [[named[name] for name in names if name in named] for names in (loss, gradients)]
    new = [named[name] for name in carried if name in named]
    others = set(new).union(*ends)
    results = [named[name] for name in reported if name in named and named[name] not in others]
    if shown := _of_the_forward_pass(graph, nodes, results):
        _claim(found, nodes, shown, "forward")
        _claim(found, nodes, ends[0], "loss")
    else:
        _claim(found, nodes, ends[0], "forward")
        for at in _final_nodes(graph, nodes, found, carried):
            found[at] = "loss"
    _claim(found, nodes, ends[1], "backward")
    written = [value for node in nodes if _writes(node) for value in node.outputs]
    _claim(found, nodes, [*new, *written], "update")
    return _with_shapes(nodes, found)


def values(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads the elements of, as results that it computes from them.

    Not the shape that it gives its result, nor an operand of which it needs the shape alone.
    """
    count = of(node).elements
    yield from operands(node) if count is None else filter(None, node.inputs[:count])


def _claim(
    found: list[Stage | None],
    nodes: Sequence[ir.Node],
    outputs: Iterable[ir.Value],
    stage: Stage,
) -> None:
    """Give the nodes from which these are computed to a stage, if they have none yet."""
    needed = set(outputs)
    for at in range(len(nodes) - 1, -1, -1):
        if not needed.isdisjoint(nodes[at].outputs):
            needed.update(values(nodes[at]))
            found[at] = found[at] or stage


def _of_the_forward_pass(
    graph: ir.Graph, nodes: Sequence[ir.Node], reported: Sequence[ir.Value]
) -> list[ir.Value]:
    """The reported outputs that are computed from an input.

    One that only says that a step is over is computed from shapes, or from nothing.
    """
    computed = {value for value in graph.inputs if not value.is_initializer()}
    for node in nodes:
        if not computed.isdisjoint(values(node)) and not _writes(node):
            computed.update(node.outputs)
    return [value for value in reported if value in computed]


def _final_nodes(
    graph: ir.Graph,
    nodes: Sequence[ir.Node],
    found: Sequence[Stage | None],
    carried: Collection[str],
) -> list[int]:
    """The nodes of the loss, where no output says where the forward pass ends."""
    inside = [at for at, stage in enumerate(found) if stage == "forward"]
    weights = _weights(graph, [nodes[at] for at in inside], carried)
    reads_weight = {at for at in inside if not weights.isdisjoint(values(nodes[at]))}
    # Backwards: what leads to a node that reads a parameter is not the loss.
    leads_to_weight: set[ir.Value] = set()
    final = []
    for at in reversed(inside):
        read = list(values(nodes[at]))
        if at in reads_weight or not leads_to_weight.isdisjoint(nodes[at].outputs):
            leads_to_weight.update(read)
        else:
            final.append(at)
    labels = set(graph.inputs) - leads_to_weight - weights
    if not any(not labels.isdisjoint(values(nodes[at])) for at in final):
        return []
    return final


def _weights(graph: ir.Graph, nodes: Sequence[ir.Node], carried: Collection[str]) -> set[ir.Value]:
    """Parameters and what is computed from them alone."""
    names = {name.removesuffix(NEXT) for name in carried if name.endswith(NEXT)}
    inputs = [str(value.name) for value in graph.inputs]
    names |= {n.removesuffix(GRADIENT_BUFFER) for n in inputs if n.endswith(GRADIENT_BUFFER)}
    constants = set(graph.initializers.values())
    known = {value for value in (*graph.inputs, *constants) if value.name in names}
    known |= {value for value in constants if value.shape is not None and len(value.shape) > 1}
    for node in nodes:
        read = set(values(node))
        if not known.isdisjoint(read) and read <= known | constants:
            known.update(node.outputs)
    return known


def _with_shapes(nodes: Sequence[ir.Node], found: Sequence[Stage | None]) -> list[Stage]:
    """The stages of all, those included that compute shapes or wait for others.

    Such a node belongs to the first stage that uses it, but is not before what it reads.
    """
    first: dict[ir.Value, int] = {}
    wanted = []
    last = len(STAGES) - 1
    for node, stage in zip(reversed(nodes), reversed(found), strict=True):
        at = min((first.get(value, last) for value in node.outputs), default=last)
        at = at if stage is None else STAGES.index(stage)
        wanted.append(at)
        for value in operands(node):
            first[value] = min(first.get(value, last), at)
    made: dict[ir.Value, int] = {}
    stages: list[Stage] = []
    for node, stage, earliest in zip(nodes, found, reversed(wanted), strict=True):
        read = operands(node) if stage is None else ()
        at = max([earliest, *(made.get(value, 0) for value in read)])
        made |= dict.fromkeys(node.outputs, at)
        stages.append(STAGES[at])
    return stages


def _writes(node: ir.Node) -> bool:
    """Whether a node writes over an input, so that nobody may read what it gives."""
    return of(node).overwrites or any(
        _writes(inner) for graph in subgraphs(node) for inner in graph
    )
