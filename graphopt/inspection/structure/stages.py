"""The stage of a training step to which each node belongs, by what its results are for."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx

from graphopt._nodes import operands
from graphopt._subgraphs import subgraphs
from graphopt.carried import NEXT
from graphopt.on_device.tensor_names import GRADIENT_BUFFER
from graphopt.operators import of
from graphopt.stage import STAGES, Stage


def stages_of(
    graph: onnx.GraphProto,
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
    nodes = list(graph.node)
    if not gradients and not carried and not any(map(_writes, nodes)):
        return ["forward"] * len(nodes)
    found: list[Stage | None] = [None] * len(nodes)
    shown = _of_the_forward_pass(graph, nodes, set(reported) - {*gradients, *carried, *loss})
    if shown:
        _claim(found, nodes, shown, "forward")
        _claim(found, nodes, loss, "loss")
    else:
        _claim(found, nodes, loss, "forward")
        for at in _final_nodes(graph, nodes, found, carried):
            found[at] = "loss"
    _claim(found, nodes, gradients, "backward")
    writers = [name for node in nodes if _writes(node) for name in node.output if name]
    _claim(found, nodes, [*carried, *writers], "update")
    return _with_shapes(nodes, found)


def values(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads the elements of, as results that it computes from them.

    Not the shape that it gives its result, nor an operand of which it needs the shape alone.
    """
    count = of(node).elements
    yield from operands(node) if count is None else filter(None, node.input[:count])


def _claim(
    found: list[Stage | None],
    nodes: Sequence[onnx.NodeProto],
    outputs: Iterable[str],
    stage: Stage,
) -> None:
    """Give the nodes from which these are computed to a stage, if they have none yet."""
    needed = set(outputs)
    for at in range(len(nodes) - 1, -1, -1):
        if not needed.isdisjoint(nodes[at].output):
            needed.update(values(nodes[at]))
            found[at] = found[at] or stage


def _of_the_forward_pass(
    graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], reported: Collection[str]
) -> list[str]:
    """The reported outputs that are computed from an input.

    One that only says that a step is over is computed from shapes, or from nothing.
    """
    stored = {tensor.name for tensor in graph.initializer}
    computed = {value.name for value in graph.input} - stored
    for node in nodes:
        if not computed.isdisjoint(values(node)) and not _writes(node):
            computed.update(node.output)
    return [name for name in reported if name in computed]


def _final_nodes(
    graph: onnx.GraphProto,
    nodes: Sequence[onnx.NodeProto],
    found: Sequence[Stage | None],
    carried: Collection[str],
) -> list[int]:
    """The nodes of the loss, where no output says where the forward pass ends."""
    inside = [at for at, stage in enumerate(found) if stage == "forward"]
    weights = _weights(graph, [nodes[at] for at in inside], carried)
    reads_weight = {at for at in inside if not weights.isdisjoint(values(nodes[at]))}
    # Backwards: what leads to a node that reads a parameter is not the loss.
    leads_to_weight: set[str] = set()
    final = []
    for at in reversed(inside):
        read = list(values(nodes[at]))
        if at in reads_weight or not leads_to_weight.isdisjoint(nodes[at].output):
            leads_to_weight.update(read)
        else:
            final.append(at)
    labels = {value.name for value in graph.input} - leads_to_weight - weights
    if not any(not labels.isdisjoint(values(nodes[at])) for at in final):
        return []
    return final


def _weights(
    graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], carried: Collection[str]
) -> set[str]:
    """Parameters and what is computed from them alone."""
    inputs = {value.name for value in graph.input}
    known = {name.removesuffix(NEXT) for name in carried if name.endswith(NEXT)} & inputs
    known |= {
        name.removesuffix(GRADIENT_BUFFER) for name in inputs if name.endswith(GRADIENT_BUFFER)
    }
    known |= {t.name for t in graph.initializer if len(t.dims) > 1}
    constants = {t.name for t in graph.initializer}
    for node in nodes:
        read = set(values(node))
        if not known.isdisjoint(read) and read <= known | constants:
            known.update(filter(None, node.output))
    return known


def _with_shapes(nodes: Sequence[onnx.NodeProto], found: Sequence[Stage | None]) -> list[Stage]:
    """The stages of all, those included that compute shapes or wait for others.

    Such a node belongs to the first stage that uses it, but is not before what it reads.
    """
    first: dict[str, int] = {}
    wanted = []
    last = len(STAGES) - 1
    for node, stage in zip(reversed(nodes), reversed(found), strict=True):
        at = min((first.get(name, last) for name in node.output), default=last)
        at = at if stage is None else STAGES.index(stage)
        wanted.append(at)
        for name in operands(node):
            first[name] = min(first.get(name, last), at)
    made: dict[str, int] = {}
    stages: list[Stage] = []
    for node, stage, earliest in zip(nodes, found, reversed(wanted), strict=True):
        read = operands(node) if stage is None else ()
        at = max([earliest, *(made.get(name, 0) for name in read)])
        made |= dict.fromkeys(filter(None, node.output), at)
        stages.append(STAGES[at])
    return stages


def _writes(node: onnx.NodeProto) -> bool:
    """Whether a node writes over an input, so that nobody may read what it gives."""
    return of(node).overwrites or any(
        _writes(inner) for graph in subgraphs(node) for inner in graph.node
    )
