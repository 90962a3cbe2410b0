"""What the nodes that run were made from: the stage of the step, and the bucket.

Tensors keep their names where they still exist, and through these a node is traced back to the
node that it was made from. One that was not made from any works for those that read its result.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx

from graphopt._nodes import first_output, operands
from graphopt.graph import TrainingGraph
from graphopt.stage import BACKWARD_PREFIX, STAGES, UPDATE_PREFIX

PARTS = (*STAGES, "other")

_Value = TypeVar("_Value", bound=Hashable)


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


class Origins:
    """The nodes of a training graph, by which those that run are told.

    Args:
        graph: Every node of it has a name.
    """

    def __init__(self, graph: TrainingGraph) -> None:
        self._buckets = {bucket.name for bucket in graph.buckets}
        self._by_value: dict[str, Origin] = {}
        self._by_name: dict[str, Origin] = {}
        forward, loss = _forward_pass(graph)
        for node in graph.model.graph.node:
            output = first_output(node)
            origin = self._origin(node.name, output in forward, output in loss)
            self._by_value |= dict.fromkeys(filter(None, node.output), origin)
            self._by_name.setdefault(node.name, origin)

    def of(self, nodes: Sequence[onnx.NodeProto]) -> list[Origin]:
        """The origin of each node of the graph that runs, which are in topological order."""
        readers: defaultdict[str, list[Origin]] = defaultdict(list)
        found = []
        for node in reversed(nodes):
            origin = self._made_from(node) or _of_readers(
                [reader for value in node.output for reader in readers[value]]
            )
            found.append(origin)
            for value in operands(node):
                readers[value].append(origin)
        return found[::-1]

    def _made_from(self, node: onnx.NodeProto) -> Origin | None:
        by_value = (self._by_value.get(value) for value in node.output)
        return next(filter(None, by_value), None) or self._by_name.get(node.name)

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


def _of_readers(readers: Sequence[Origin]) -> Origin:
    """A node that was not there before works for the first stage that needs it."""
    stage = min((reader.stage for reader in readers), key=PARTS.index, default="other")
    readers = [reader for reader in readers if reader.stage == stage]
    return Origin(
        stage,
        bucket=_common(reader.bucket for reader in readers),
        forward_node=_common(reader.forward_node for reader in readers),
    )


def _common(values: Iterable[_Value | None]) -> _Value | None:
    """The value that all have, if they have the same."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _forward_pass(graph: TrainingGraph) -> tuple[set[str], set[str]]:
    """The values that the outputs of the forward model need, and those that only the loss needs.

    All are the forward model's where it computes the loss itself.
    """
    carried = {value.output for value in graph.carried}
    outputs = {value.name for value in graph.model.graph.output} - carried - {"updated"}
    if outputs != {"loss"} and "loss" not in _forward_outputs(graph):
        outputs.discard("loss")
    forward = _needed_for(outputs, graph.model)
    return forward, _needed_for({"loss"}, graph.model) - forward


def _forward_outputs(graph: TrainingGraph) -> set[str]:
    try:
        return {value.name for value in graph.forward({}).graph.output}
    except ValueError:  # it holds none
        return set()


def _needed_for(outputs: Iterable[str], model: onnx.ModelProto) -> set[str]:
    needed = set(outputs)
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.output)
            needed.update(operands(node))
    return needed
