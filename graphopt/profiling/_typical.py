"""A typical step: the median of each part over the steps, which interruptions do not move."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from graphopt.profiling._events import ProfiledStep, matched, measured_steps, node_name, op_type_of
from graphopt.profiling._origins import Origin, Origins
from graphopt.profiling._run import Record
from graphopt.profiling.results import NodeTime


@dataclass(frozen=True)
class TypicalStep:
    """A typical step, in milliseconds.

    Attributes:
        nodes: The nodes, the most expensive first.
        modules: The names of the modules of the graph, each behind those around it.
        runtime: ONNX Runtime between the nodes.
        python: Around the run.
        profiler: The profiler's own work, which a step without it does not have.
        milliseconds: The sum of these, and what shares are of: without the profiler's own work.
    """

    nodes: tuple[NodeTime, ...]
    modules: tuple[str, ...]
    runtime: float
    python: float
    profiler: float
    milliseconds: float


class _Node(NamedTuple):
    """A node that runs, by what tells it."""

    place: int | None  # in the graph that runs
    name: str
    op_type: str


def typical_step(record: Record, unprofiled: float) -> TypicalStep:
    """The typical step of a record.

    Args:
        record: What the profiler wrote.
        unprofiled: Milliseconds of a step without the profiler: what one with it takes longer is
            the profiler's own work, as far as that stands between the nodes.
    """
    steps = measured_steps(record)
    nodes = _medians(steps, record.nodes)
    runtime = statistics.median(s.run - sum(e["dur"] for e in s.nodes) / 1e3 for s in steps)
    python = statistics.median(step.milliseconds - step.run for step in steps)
    total = sum(nodes.values()) + runtime + python
    profiler = min(runtime, max(0.0, total - unprofiled))
    own = total - profiler
    origins = Origins(record.graph)
    times = _node_times(nodes, origins.of(record.nodes), own)
    return TypicalStep(times, origins.modules, runtime - profiler, python, profiler, own)


def _medians(steps: Sequence[ProfiledStep], nodes: Sequence[ir.Node]) -> dict[_Node, float]:
    """The milliseconds of each node; a step in which it did not run counts as none."""
    taken: defaultdict[_Node, list[float]] = defaultdict(list)
    for step in steps:
        of_step: Counter[_Node] = Counter()
        for event, place in zip(step.nodes, matched(step.nodes, nodes), strict=True):
            of_step[_Node(place, node_name(event), op_type_of(event))] += event["dur"]
        for node, microseconds in of_step.items():
            taken[node].append(microseconds / 1e3)
    return {
        node: statistics.median(times + [0.0] * (len(steps) - len(times)))
        for node, times in taken.items()
    }


def _node_times(
    nodes: Mapping[_Node, float], origins: Sequence[Origin], total: float
) -> tuple[NodeTime, ...]:
    times = []
    for node, milliseconds in sorted(nodes.items(), key=lambda item: -item[1]):
        origin = Origin("other") if node.place is None else origins[node.place]
        times.append(
            NodeTime(
                name=origin.name or node.name,
                op_type=node.op_type,
                stage=origin.stage,
                bucket=origin.bucket,
                forward_node=origin.forward_node,
                module=origin.module,
                milliseconds=milliseconds,
                share=milliseconds / total,
            )
        )
    return tuple(times)
