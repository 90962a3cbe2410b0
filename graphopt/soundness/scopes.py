"""Where the names of an untrusted model are given and read, and the order that follows."""

import heapq
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

import onnx

from graphopt._words import shown
from graphopt.soundness.nodes import Place, describe, inner, outermost


def check_scopes(model: onnx.ModelProto) -> bool:
    """Refuse a model in which a name is given twice, read but never given, or read to give itself.

    Graphs in nodes see the names around them, and may give one of these anew for themselves.

    Args:
        model: Whose graphs are not nested too deeply.

    Returns:
        Whether the nodes of all graphs are in an order in which they can run.

    Raises:
        ValueError: It is one of these.
    """
    in_order = True
    for place in outermost(model):
        free, sorted_here = _check(place)
        in_order &= sorted_here
        if place.around is not None:
            free -= set(_giving(place.around))
        if free:
            name = min(free)
            raise ValueError(f"{_reader(place, name)} reads '{shown(name)}', which nothing gives")
    return in_order


def sort_nodes(model: onnx.ModelProto) -> None:
    """Bring the nodes of all graphs of a model into an order in which they can run, in place."""
    for place in outermost(model):
        _sort(place)


def _sort(place: Place) -> None:
    for node in place.body.node:
        for graph in inner(node, place):
            _sort(graph)
    nodes = list(place.body.node)
    order = _order(nodes, [_read(node, place)[0] for node in nodes], place)
    if order is not None:
        copies = [onnx.NodeProto.FromString(nodes[index].SerializeToString()) for index in order]
        del place.body.node[:]
        place.body.node.extend(copies)


def _check(place: Place) -> tuple[set[str], bool]:
    """The names that a graph takes from around it, and whether its nodes are in order."""
    given = _given(place.body, place)
    read, in_order = [], True
    for node in place.body.node:
        names, sorted_inside = _read(node, place)
        read.append(names)
        in_order &= sorted_inside
    free = set().union(*read)
    if isinstance(place.body, onnx.GraphProto):
        free.update(value.name for value in place.body.output)
    else:
        free.update(place.body.output)
    free -= given
    return free, _order(list(place.body.node), read, place) is None and in_order


def _read(node: onnx.NodeProto, place: Place) -> tuple[set[str], bool]:
    """The names that a node reads, also in its graphs, and whether these are in order."""
    names = {name for name in node.input if name}
    in_order = True
    if node.attribute:
        for graph in inner(node, place):
            free, sorted_inside = _check(graph)
            names |= free
            in_order &= sorted_inside
    return names, in_order


def _order(
    nodes: Sequence[onnx.NodeProto], read: Sequence[set[str]], place: Place
) -> list[int] | None:
    """The order in which nodes can run, as near to theirs as possible; None if it is theirs."""
    producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    before = [{producer[name] for name in names if name in producer} for names in read]
    if all(not needed or max(needed) < index for index, needed in enumerate(before)):
        return None
    sorter = TopologicalSorter(dict(enumerate(before)))
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(
            f"the nodes of {place.name} are in a circle: "
            f"{describe(nodes[error.args[1][0]])} waits for its own result"
        ) from None
    ready: list[int] = []
    order = []
    while sorter.is_active():
        for index in sorter.get_ready():
            heapq.heappush(ready, index)
        order.append(heapq.heappop(ready))
        sorter.done(order[-1])
    return order


def _given(body: onnx.GraphProto | onnx.FunctionProto, place: Place) -> set[str]:
    """The names that a graph gives, each of which it may give once."""
    given: set[str] = set()
    for name in _giving(body):
        if not name:
            raise ValueError(f"{place.name} has an input or initializer without a name")
        if name in given:
            raise ValueError(f"{place.name} gives '{shown(name)}' twice")
        given.add(name)
    return given


def _giving(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[str]:
    if isinstance(body, onnx.GraphProto):
        yield from _interface(body)
    else:
        yield from body.input
    for node in body.node:
        for name in node.output:
            if name:
                yield name


def _interface(graph: onnx.GraphProto) -> Iterator[str]:
    """Inputs and initializers; an initializer may be the default of an input."""
    inputs = {value.name for value in graph.input}
    yield from (value.name for value in graph.input)
    seen: set[str] = set()
    stored = [tensor.name for tensor in graph.initializer]
    stored += [tensor.values.name for tensor in graph.sparse_initializer]
    for name in stored:
        # Twice the same initializer is one time too many also where it is an input.
        if name not in inputs or name in seen:
            yield name
        seen.add(name)


def _reader(place: Place, name: str) -> str:
    """What reads a name, for an error."""
    for node in place.body.node:
        if name in node.input:
            return describe(node)
        for graph in inner(node, place):
            if (reader := _reader(graph, name)) != graph.name:
                return reader
    return place.name
