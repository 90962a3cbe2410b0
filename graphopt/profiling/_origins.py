"""What the nodes that run were made from: the stage of the step, and the bucket.

Tensors keep their names where they still exist, and through these a node is traced back to the
node that it was made from. One that was not made from any works for those that read its result.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import onnx_ir as ir

from graphopt.graph import TrainingGraph
from graphopt.graphs import needed_for, operands
from graphopt.module_names import Path, modules
from graphopt.profiling.results import PASSES
from graphopt.stage import BACKWARD_PREFIX, STAGES, UPDATE_PREFIX, Stage

PARTS = (*STAGES, "other")


@dataclass(frozen=True)
class Origin:
    """What a node that runs was made from.

    Attributes:
        stage: One of `PARTS`; "other" where it cannot be told.
        name: The node of the training graph; "" if there is none.
        bucket: The bucket whose update it is part of, if of one.
        forward_node: The forward node whose gradient it computes, if of one.
    """

    stage: str
    name: str = ""
    bucket: str | None = None
    forward_node: str | None = None
    module: str = ""


class Origins:
    """The nodes of a training graph, by which those that run are told.

    Args:
        graph: Every node of it has a name.

    Attributes:
        modules: The names of the modules of the forward pass, each behind those around it.
    """

    def __init__(self, graph: TrainingGraph) -> None:
        self._buckets = {bucket.name for bucket in graph.buckets}
        self._by_value: dict[str, Origin] = {}
        self._by_name: dict[str, Origin] = {}
        model = ir.from_proto(graph.model)
        forward, loss = _forward_pass(graph, model.graph)
        origins = []
        for node in model.graph:
            made = set(node.outputs)
            origins.append(self._origin(str(node.name), bool(made & forward), bool(made & loss)))
        paths = _modules(graph, model.graph, origins)
        self.modules = _names_of_modules(path for path in paths if path)
        self._of_parameters = _readers_of_parameters(graph, model.graph, origins, paths)
        for node, plain, path in zip(model.graph, origins, paths, strict=True):
            name, origin = str(node.name), replace(plain, module=".".join(path))
            self._by_value |= dict.fromkeys(_names(node.outputs), origin)
            self._by_name.setdefault(name, origin)

    def of(self, nodes: Sequence[ir.Node]) -> list[Origin]:
        """The origin of each node of the graph that runs, which are in topological order."""
        readers: defaultdict[str, list[Origin]] = defaultdict(list)
        found = []
        for node in reversed(nodes):
            origin = self._made_from(node) or _of_readers(
                [reader for name in _names(node.outputs) for reader in readers[name]]
            )
            read = _names(operands(node))
            if origin.stage == "forward" and not origin.module:
                # The runtime joins what has weights with what comes after it, in no module.
                joined = (self._of_parameters.get(name) for name in read)
                origin = replace(origin, module=next(filter(None, joined), ""))
            found.append(origin)
            for name in read:
                readers[name].append(origin)
        return found[::-1]

    def _made_from(self, node: ir.Node) -> Origin | None:
        by_value = (self._by_value.get(name) for name in _names(node.outputs))
        return next(filter(None, by_value), None) or self._by_name.get(str(node.name))

    def _origin(self, name: str, is_forward: bool, is_loss: bool) -> Origin:
        """By the values that the node computes, and by its name, which the model may share."""
        scope = name.rpartition("/")[0]
        if (
            scope.startswith(UPDATE_PREFIX)
            and (bucket := scope.removeprefix(UPDATE_PREFIX)) in self._buckets
        ):
            return Origin("update", name, bucket=bucket)
        if is_forward:
            return Origin("forward", name)
        if is_loss:
            return Origin("loss", name)
        if name.startswith(UPDATE_PREFIX):
            return Origin("update", name)
        is_ours = scope.startswith(BACKWARD_PREFIX)
        return Origin(
            "backward", name, forward_node=scope.removeprefix(BACKWARD_PREFIX) if is_ours else None
        )


def _modules(training: TrainingGraph, graph: ir.Graph, origins: Sequence[Origin]) -> list[Path]:
    """The module of each node, in the backward pass one of the forward pass, in the update none."""
    stages = [cast("Stage", origin.stage) for origin in origins]
    buckets = {bucket.name: bucket.group for bucket in training.buckets}
    parameters = [name for bucket in training.buckets for name in bucket.parameters]
    paths = modules(graph, stages, parameters, buckets)
    known: set[Path] = {()}
    for stage, path in zip(stages, paths, strict=True):
        if stage == "forward":
            known |= {path[:depth] for depth in range(1, len(path) + 1)}
    found = []
    for stage, path in zip(stages, paths, strict=True):
        depth = len(path) if stage in PASSES else 0
        while path[:depth] not in known:
            depth -= 1
        found.append(path[:depth])
    return found


def _readers_of_parameters(
    training: TrainingGraph, graph: ir.Graph, origins: Sequence[Origin], paths: Sequence[Path]
) -> dict[str, str]:
    """The module of the forward pass that reads each parameter first."""
    parameters = {name for bucket in training.buckets for name in bucket.parameters}
    found: dict[str, str] = {}
    for node, origin, path in zip(graph, origins, paths, strict=True):
        if origin.stage == "forward":
            for name in parameters.intersection(_names(operands(node))):
                found.setdefault(name, ".".join(path))
    return found


def _names_of_modules(paths: Iterable[Path]) -> tuple[str, ...]:
    """Each where it is met first, and behind those around it."""
    inside: dict[str, Any] = {}
    for path in paths:
        here = inside
        for part in path:
            here = here.setdefault(part, {})
    return tuple(_flat(inside))


def _flat(inside: Mapping[str, Any], around: str = "") -> Iterator[str]:
    for part, more in inside.items():
        yield around + part
        yield from _flat(more, f"{around}{part}.")


def _of_readers(readers: Sequence[Origin]) -> Origin:
    """A node that was not there before works for the first stage that needs it."""
    stage = min((reader.stage for reader in readers), key=PARTS.index, default="other")
    readers = [reader for reader in readers if reader.stage == stage]
    return Origin(
        stage,
        bucket=_common(reader.bucket for reader in readers),
        forward_node=_common(reader.forward_node for reader in readers),
        module=_common(reader.module for reader in readers) or "",
    )


def _common(values: Iterable[str | None]) -> str | None:
    """The value that all have, if they have the same."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _forward_pass(training: TrainingGraph, graph: ir.Graph) -> tuple[set[ir.Value], set[ir.Value]]:
    """The values that the outputs of the forward model need, and those that only the loss needs.

    All are the forward model's where it computes the loss itself.
    """
    outputs = {str(value.name): value for value in graph.outputs}
    wanted = outputs.keys() - {"updated", *(value.output for value in training.carried)}
    if wanted != {"loss"} and "loss" not in _forward_outputs(training):
        wanted.discard("loss")
    forward = needed_for((outputs[name] for name in wanted), graph)
    loss = (value for name, value in outputs.items() if name == "loss")
    return forward, needed_for(loss, graph) - forward


def _forward_outputs(graph: TrainingGraph) -> set[str]:
    try:
        return {value.name for value in graph.forward({}).graph.output}
    except ValueError:  # it holds none
        return set()


def _names(values: Iterable[ir.Value]) -> list[str]:
    """The names of the values that have one."""
    return [value.name for value in values if value.name]
