"""Whether the functions of an untrusted model end, and stay small when they are written out."""

from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import onnx

from graphopt._words import shown
from graphopt.graphs import proto_subgraphs
from graphopt.soundness.nodes import MOST_NODES, Place, describe

_Name = tuple[str, str]
"""Domain and name. The overload is left out: not all that reads a model knows of it."""

_Bodies = dict[_Name, list[onnx.FunctionProto]]
"""The functions of a name, which differ in their overload."""


def check_functions(model: onnx.ModelProto, found: Iterable[Place]) -> None:
    """Refuse functions that call themselves, and models that are huge with their functions.

    Nothing is written out for that: the nodes of each function are counted once.

    Args:
        model: The model.
        found: Its graphs and function bodies.

    Raises:
        ValueError: It is one of these, two functions have the same name, or a call has more
            inputs or outputs than its function.
    """
    bodies: _Bodies = {}
    for function in model.functions:
        bodies.setdefault(_name(function.domain, function.name), []).append(function)
    for name, overloads in bodies.items():
        if not name[1]:
            raise ValueError("a function has no name")
        if len({function.overload for function in overloads}) < len(overloads):
            raise ValueError(f"the function {_shown(name)} is defined twice")
    for place in found:
        for node in place.body.node:
            _check_call(node, bodies)
    calls = {
        name: _calls((function.node for function in overloads), bodies)
        for name, overloads in bodies.items()
    }
    sizes: dict[_Name, int] = {}
    callees = {name: [c for c in called if c is not None] for name, called in calls.items()}
    try:
        for name in TopologicalSorter(callees).static_order():
            sizes[name] = _size(calls[name], sizes, f"the function {_shown(name)}")
    except CycleError as error:
        raise ValueError(f"the function {_shown(error.args[1][0])} calls itself") from None
    graphs = [model.graph, *(info.initialization for info in model.training_info)]
    graphs += [info.algorithm for info in model.training_info]
    _size(_calls((graph.node for graph in graphs), bodies), sizes, "the model")


def _check_call(node: onnx.NodeProto, bodies: _Bodies) -> None:
    overloads = bodies.get(_name(node.domain, node.op_type))
    if overloads is None:
        return
    most = [max(len(getattr(f, key)) for f in overloads) for key in ("input", "output")]
    if len(node.input) > most[0] or len(node.output) > most[1]:
        raise ValueError(
            f"{describe(node)} has {len(node.input)} inputs and {len(node.output)} outputs, "
            f"but its function has {most[0]} and {most[1]}"
        )


def _calls(
    graphs: Iterable[Iterable[onnx.NodeProto]], bodies: Mapping[_Name, object]
) -> dict[_Name | None, int]:
    """How often each function is called, also in branches and loops; None stands for operators."""
    calls: dict[_Name | None, int] = {}
    for nodes in graphs:
        for node in _nodes(nodes):
            called = _name(node.domain, node.op_type)
            key = called if called in bodies else None
            calls[key] = calls.get(key, 0) + 1
    return calls


def _size(calls: Mapping[_Name | None, int], sizes: Mapping[_Name, int], where: str) -> int:
    """The nodes of a body with its functions written out."""
    size = sum(
        count if name is None else count * max(sizes[name], 1) for name, count in calls.items()
    )
    if size >= MOST_NODES:
        raise ValueError(
            f"{where} has {MOST_NODES} nodes or more, its functions written out where they are "
            "called"
        )
    return size


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, also those inside branches and loops."""
    for node in nodes:
        yield node
        if node.attribute:
            for graph in proto_subgraphs(node):
                yield from _nodes(graph.node)


def _name(domain: str, name: str) -> _Name:
    return "" if domain == "ai.onnx" else domain, name


def _shown(name: _Name) -> str:
    return f"'{shown(name[0])}::{shown(name[1])}'"
