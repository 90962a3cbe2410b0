"""From the nodes of a typical step to its stages, and to the buckets and groups of the update."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

import numpy as np

from graphopt.carried import Carried
from graphopt.graph import TrainingGraph
from graphopt.profiling._origins import PARTS
from graphopt.profiling._typical import TypicalStep
from graphopt.profiling.results import (
    PASSES,
    BucketTime,
    GroupTime,
    ModuleTime,
    NodeTime,
    StageTime,
    summed,
)
from graphopt.states import OF_PARAMETERS


def by_stage(step: TypicalStep) -> tuple[StageTime, ...]:
    """The parts of a step, which add up to it, and the profiler's own work, which is no part."""
    total = step.milliseconds
    outside = {"runtime": step.runtime, "python": step.python}
    return (
        *(StageTime(s, *summed([n for n in step.nodes if n.stage == s], total)) for s in PARTS),
        *(StageTime(name, 0, taken, taken / total) for name, taken in outside.items()),
        StageTime("profiler", 0, step.profiler, 0.0),
    )


def shared(step: TypicalStep) -> StageTime:
    """The update less that of its buckets."""
    nodes = [node for node in step.nodes if node.stage == "update" and node.bucket is None]
    return StageTime("shared", *summed(nodes, step.milliseconds))


def by_bucket(
    step: TypicalStep, graph: TrainingGraph, kernels: Collection[str]
) -> tuple[BucketTime, ...]:
    """The update by bucket, in the order of the layout."""
    nodes: defaultdict[str | None, list[NodeTime]] = defaultdict(list)
    for node in step.nodes:
        nodes[node.bucket].append(node)
    holders = {view.name: value for value in graph.carried for view in value.views}
    return tuple(
        BucketTime(
            bucket.name,
            bucket.function,
            bucket.function in kernels,
            bucket.group,
            bucket.parameters,
            math.prod(bucket.shape),
            _bytes_moved(bucket.parameters[0], holders),
            *summed(nodes[bucket.name], step.milliseconds),
        )
        for bucket in graph.buckets
    )


def by_module(step: TypicalStep) -> tuple[ModuleTime, ...]:
    """The forward and the backward pass by module, and what is in none; those that ran."""
    nodes: defaultdict[str, list[NodeTime]] = defaultdict(list)
    for node in step.nodes:
        if node.stage in PASSES:
            nodes[node.module].append(node)
            for around in accumulate(node.module.split(".")[:-1], "{}.{}".format):
                nodes[around].append(node)
    return tuple(
        _module(name, nodes[name], step.milliseconds) for name in (*step.modules, "") if nodes[name]
    )


def _module(name: str, nodes: Sequence[NodeTime], step: float) -> ModuleTime:
    forward = sum(node.milliseconds for node in nodes if node.stage == "forward")
    count, taken, share = summed(nodes, step)
    return ModuleTime(name, count, forward, taken - forward, taken, share)


def by_group(buckets: Sequence[BucketTime]) -> tuple[GroupTime, ...]:
    """The update by parameter group, in the order of the groups."""
    members: defaultdict[int, list[BucketTime]] = defaultdict(list)
    for bucket in buckets:
        members[bucket.group].append(bucket)
    return tuple(
        GroupTime(
            index=index,
            buckets=tuple(bucket.name for bucket in group),
            parameters=sum(len(bucket.parameters) for bucket in group),
            elements=sum(bucket.elements for bucket in group),
            bytes=sum(bucket.bytes for bucket in group),
            nodes=sum(bucket.nodes for bucket in group),
            milliseconds=sum(bucket.milliseconds for bucket in group),
            share=sum(bucket.share for bucket in group),
        )
        for index, group in sorted(members.items())
    )


def _bytes_moved(parameter: str, holders: Mapping[str, Carried]) -> int:
    """What the update of the bucket reads and writes that holds a parameter."""
    states = (holders.get(state.of(parameter)) for state in OF_PARAMETERS)
    carried = [holders[parameter], *filter(None, states)]
    sizes = [math.prod(value.shape) * np.dtype(value.dtype).itemsize for value in carried]
    return 2 * sum(sizes) + sizes[0]  # the gradient has the size of the parameter
