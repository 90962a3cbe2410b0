"""What the nodes that run were made from: the stage of the step, and the bucket.

Tensors keep their names where they still exist, and through these a node is traced back to the
node that it was made from. One that was not made from any works for those that read its result.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph import TrainingGraph
from graphopt.graphs import needed_for, operands
from graphopt.stage import BACKWARD_PREFIX, STAGES, UPDATE_PREFIX

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


class Origins:
    """The nodes of a training graph, by which those that run are told.

    Args:
        graph: Every node of it has a name.
    """

    def __init__(self, graph: TrainingGraph) -> None:
        self._buckets = {bucket.name for bucket in graph.buckets}
        self._by_value: dict[str, Origin] = {}
        self._by_name: dict[str, Origin] = {}
        model = ir.from_proto(graph.model)
        forward, loss = _forward_pass(graph, model.graph)
        for node in model.graph:
            name, made = str(node.name), set(node.outputs)
            origin = self._origin(name, bool(made & forward), bool(made & loss))
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
            found.append(origin)
            for name in _names(operands(node)):
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


def _of_readers(readers: Sequence[Origin]) -> Origin:
    """A node that was not there before works for the first stage that needs it."""
    stage = min((reader.stage for reader in readers), key=PARTS.index, default="other")
    readers = [reader for reader in readers if reader.stage == stage]
    return Origin(
        stage,
        bucket=_common(reader.bucket for reader in readers),
        forward_node=_common(reader.forward_node for reader in readers),
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
