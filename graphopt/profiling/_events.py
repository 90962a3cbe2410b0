"""What the runtime's profiler says about each step."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graphs import subgraphs
from graphopt.profiling._run import RUN, Event, Record

_KERNEL_TIME = "_kernel_time"


@dataclass(frozen=True)
class ProfiledStep:
    """A step under the profiler.

    Attributes:
        milliseconds: All of it.
        run: How many of them ONNX Runtime took.
        nodes: The events of its nodes in the order in which they ran, without those of the bodies
            of loops, whose time is part of the loop's.
    """

    milliseconds: float
    run: float
    nodes: list[Event]


def measured_steps(record: Record) -> list[ProfiledStep]:
    """The steps after the warm-up."""
    loops = {node.op_type for node in record.nodes if any(subgraphs(node))}
    runs = sorted((e for e in record.events if e["name"] == RUN), key=lambda e: e["ts"])
    nodes = sorted(
        filter(is_of_node, record.events),
        key=lambda e: (e["ts"], op_type_of(e) not in loops),
    )
    starts = [node["ts"] for node in nodes]
    steps = []
    for run, taken in zip(runs[-len(record.milliseconds) :], record.milliseconds, strict=True):
        first, end = (bisect_left(starts, at) for at in (run["ts"], run["ts"] + run["dur"] + 1))
        own = list(_outermost(nodes[first:end], loops))
        steps.append(ProfiledStep(taken, run["dur"] / 1e3, own))
    return steps


def matched(events: Sequence[Event], nodes: Sequence[ir.Node]) -> Sequence[int | None]:
    """The index of the node that each event is of; None where it cannot be told.

    The saved graph has its nodes in the order in which they run, unless an execution provider has
    an order of its own; then their names tell, where they have one.
    """
    if [op_type_of(event) for event in events] == [node.op_type for node in nodes]:
        return range(len(nodes))
    count = Counter(node.name for node in nodes)
    named = {node.name: at for at, node in enumerate(nodes) if count[node.name] == 1}
    return [named.get(node_name(event)) for event in events]


def is_of_node(event: Event) -> bool:
    """Whether an event is the run of a node."""
    return event.get("cat") == "Node" and str(event["name"]).endswith(_KERNEL_TIME)


def node_name(event: Event) -> str:
    """The name of the node that an event is of."""
    return str(event["name"]).removesuffix(_KERNEL_TIME)


def op_type_of(event: Event) -> str:
    """The operator of the node that an event is of."""
    return str(event["args"]["op_name"])


def _outermost(nodes: Iterable[Event], loops: set[str]) -> Iterator[Event]:
    end = 0
    for node in nodes:
        if node["ts"] >= end:
            yield node
            if op_type_of(node) in loops:
                end = node["ts"] + node["dur"]
