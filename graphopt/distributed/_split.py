"""Cutting a training graph in two: what computes gradients, and what applies them.

The cut goes through the gradients of the parameters, as the backward pass gives them, and through
the batch's part of the running statistics. Nothing else of the batch is read by the update: the
loss scale is taken out, overflows are seen, norms are limited, gradients are added up, and states
are kept behind the cut. So if what passes it is the same everywhere, all that follows is too.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common as passes

from graphopt.build import training_graph
from graphopt.builder import GraphBuilder
from graphopt.carried import declare, initial_values
from graphopt.forward import ForwardModel
from graphopt.graph import TrainingGraph
from graphopt.graphs import by_name, needed_for, operands, put_last, subgraphs
from graphopt.losses import LossFunction
from graphopt.manifest import Manifest, packed, unpacked
from graphopt.operators.labels import ClassLabels
from graphopt.requirement import requirements
from graphopt.rmsprop import RMSProp
from graphopt.states import MEAN_SQUARE
from graphopt.update.gate import only_waits

SHARE = "gradient_share"
"""The input that the gradients are multiplied by: the part of all examples that this batch has."""

_OF_UPDATE = ("updated", "gradient_norm")


@dataclass(frozen=True)
class GradientGraph:
    """The part of a training graph that computes gradients, and the update that takes them.

    Attributes:
        model: An ``onnx.ModelProto`` that carries nothing. Its inputs are those of the batch, what
            it reads of the state, under the names that it has in ``update``, and ``share``, a
            scalar; its outputs those of the forward model, ``loss``, and those of ``flat``.
        flat: Its outputs that the update takes as inputs of the same names, each with its number of
            elements: the gradients of each bucket, ``gradient.<bucket>``, with the loss scale; and
            ``statistics``, the running statistics of the batch, if there are some. 1-D, multiplied
            by ``share``: add them up over all ranks.
        share: The name of the input that says which part of all examples the batch has.
        dtype: NumPy's name of the element type of all these.
        update: The `TrainingGraph` that takes them, and carries all states.
        class_labels: The inputs that hold class indices.
    """

    model: onnx.ModelProto
    flat: Mapping[str, int]
    share: str
    dtype: str
    update: TrainingGraph
    class_labels: Sequence[ClassLabels] = ()


def gradient_graph(
    model: ForwardModel, loss: str | LossFunction | None, optimizer: RMSProp, **options: Any
) -> GradientGraph:
    """What computes the gradients, and what applies them, for whatever adds gradients up between.

    Args:
        model: The forward model.
        loss: The loss, a mean over the examples of the batch.
        optimizer: Whose parameters are trained.
        options: All others of `training_graph`.

    Raises:
        ValueError: As `training_graph`.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }''')
        >>> graph = gradient_graph(model, "mse", RMSProp(parameters(model), learning_rate=0.01))
        >>> [value.name for value in graph.model.graph.input]
        ['x', 'labels', 'w', 'gradient_share']
        >>> [value.name for value in graph.model.graph.output]
        ['y', 'loss', 'gradient.w']
        >>> [value.name for value in graph.update.model.graph.input]
        ['gradient.w', 'w', 'mean_square.w', 'global_step']
    """
    return split(training_graph(model, loss, optimizer, **options))


def split(graph: TrainingGraph) -> GradientGraph:
    """The two halves of a training graph.

    Raises:
        ValueError: The graph does not say what its update reads, or is an update alone.
    """
    said = Manifest.read(graph.model)
    if not said.gradients or said.layout is None:
        raise ValueError(
            "the training graph does not say which of its values are gradients: it is an update "
            "alone, or an older graphopt built it; build it anew with graphopt.training_graph"
        )
    cut = _Cut(graph, said)
    return cut.halves()


class _Cut:
    """Where a graph is cut."""

    def __init__(self, graph: TrainingGraph, said: Manifest) -> None:
        assert said.gradients is not None
        assert said.layout is not None
        self._graph, self._said, self._read = graph, said, said.gradients
        self._buckets = said.layout.buckets
        self._carried = {value.input: value for value in graph.carried}
        self._shapes = {v.name: v.shape for value in graph.carried for v in value.views}
        trained = {name for bucket in self._buckets for name in bucket.parameters}
        self._statistics = [name for name in self._read if name not in trained]
        self._dtype = next(
            value.dtype
            for name, value in self._carried.items()
            if name.startswith(f"{MEAN_SQUARE.name}.")
        )
        taken = {value.name for value in (*graph.model.graph.input, *graph.model.graph.output)}
        taken |= {name for node in graph.model.graph.node for name in node.output}
        taken |= {tensor.name for tensor in graph.model.graph.initializer}
        self._share = _free(SHARE, taken)
        self._names = [_free(f"gradient.{bucket.name}", taken) for bucket in self._buckets]
        self._statistics_name = _free("statistics", taken)

    @property
    def _flat(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The flat values that pass the cut, each with what it is made of."""
        for name, bucket in zip(self._names, self._buckets, strict=True):
            yield name, bucket.parameters
        if self._statistics:
            yield self._statistics_name, self._statistics

    def _size(self, names: Iterable[str]) -> int:
        return sum(math.prod(self._shapes[name]) for name in names)

    def halves(self) -> GradientGraph:
        """The two halves."""
        return GradientGraph(
            self._first_half(),
            {name: self._size(parts) for name, parts in self._flat},
            self._share,
            self._dtype,
            self._second_half(),
            self._said.class_labels or (),
        )

    def _first_half(self) -> onnx.ModelProto:
        """What computes the gradients, which it hands over as flat tensors."""
        model = self._model()
        graph, op = model.graph, GraphBuilder(model.graph)
        op.real = ir.DataType.from_numpy(np.dtype(self._dtype))
        values = by_name(graph)
        carried = {value.output for value in self._carried.values()}
        graph.outputs[:] = [
            value for value in graph.outputs if value.name not in {*carried, *_OF_UPDATE}
        ]
        with op.named("split"):
            share = op.input(self._share, op.real, [])
            for name, parts in self._flat:
                flat = [
                    op.Reshape(op.Cast(values[self._read[part]], to=op.real), [-1])
                    for part in parts
                ]
                joined = op.Concat(*flat, axis=0) if len(flat) > 1 else flat[0]
                output = op.output(op.Mul(joined, share), name)
                output.dtype, output.shape = op.real, ir.Shape([self._size(parts)])
        _prune(model)
        proto = ir.to_proto(model)
        del proto.metadata_props[:]
        return proto

    def _second_half(self) -> TrainingGraph:
        """What applies them, and carries all states."""
        model = self._model()
        graph, op = model.graph, GraphBuilder(model.graph)
        op.real = ir.DataType.from_numpy(np.dtype(self._dtype))
        values = by_name(graph)
        kept = {*(value.output for value in self._carried.values()), *_OF_UPDATE}
        graph.outputs[:] = [value for value in graph.outputs if value.name in kept]
        flat, parts = [], {}
        for name, members in self._flat:
            flat.append(op.input(name, op.real, [self._size(members)]))
            with op.at_front(), op.named("split"):
                pieces = self._pieces(op, flat[-1], members)
            for member, piece in zip(members, pieces, strict=True):
                old = values[self._read[member]]
                old.replace_all_uses_with(piece)
                parts[piece] = flat[-1]
        _wait_for_what_is_there(graph, flat[0])
        _join_again(graph, parts)
        self._forget_types(graph)
        _prune(model)
        self._check_inputs(graph, flat)
        put_last(graph.inputs, self._carried)
        said = replace(
            self._said,
            class_labels=None,
            gradients=None,
            requirements=requirements(model),
            forward=self._forward(),
        )
        proto = ir.to_proto(model)
        helper.set_model_props(proto, said.entries())
        declare(proto, self._graph.carried)
        return TrainingGraph(proto, self._graph.carried, self._graph.files)

    def _pieces(self, op: GraphBuilder, flat: ir.Value, names: Sequence[str]) -> list[ir.Value]:
        """The parts of a flat tensor in their shapes."""
        shapes = [np.array(self._shapes[name], np.int64) for name in names]
        sizes = [math.prod(self._shapes[name]) for name in names]
        split: Sequence[ir.Value] = [flat]
        if len(names) > 1:
            split = op.node("Split", [flat, sizes], outputs=len(names), axis=0)
        return [op.Reshape(part, shape) for part, shape in zip(split, shapes, strict=True)]

    def _forward(self) -> str | None:
        """The forward model, with what stands in the other half."""
        said = self._said.forward
        if said is None:
            return None
        stored = {tensor.name: tensor for tensor in self._graph.model.graph.initializer}
        start = initial_values(self._graph.carried)
        return packed(unpacked(said, {}, start, stored), start)

    def _forget_types(self, graph: ir.Graph) -> None:
        """Half gradients pass the cut in float32, so that nothing is rounded after the sum."""
        narrow = {tensor.dtype for tensor in self._said.parameters or ()} - {self._dtype}
        statistics = {self._carried[name].dtype for name in self._statistics} - {self._dtype}
        if narrow or statistics:
            for node in graph:
                for value in node.outputs:
                    if not value.is_graph_output():
                        value.type = None

    def _check_inputs(self, graph: ir.Graph, flat: Sequence[ir.Value]) -> None:
        fed = {"group_mask", "update", *self._said.fed_rates()}
        if (scale := self._graph.fed_loss_scale) is not None:
            fed.add(scale)
        known = {*self._carried, *(str(value.name) for value in flat), *fed}
        wrong = [str(value.name) for value in graph.inputs if value.name not in known]
        if wrong:
            raise ValueError(
                f"the training graph cannot be split: its update reads '{wrong[0]}', which is an "
                "input of the forward model"
            )

    def _model(self) -> ir.Model:
        """The whole graph, without the values that it starts from."""
        source = self._graph.model
        model = onnx.ModelProto(ir_version=source.ir_version, graph=source.graph)
        model.opset_import.extend(source.opset_import)
        model.functions.extend(source.functions)
        model.producer_name = source.producer_name
        return ir.from_proto(model)


def _free(name: str, taken: set[str]) -> str:
    """A name that is not taken, and now is."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _wait_for_what_is_there(graph: ir.Graph, there: ir.Value) -> None:
    """Let what only waits wait for gradients, in place of what the other half computes."""
    needed: set[ir.Value] = set(graph.outputs)
    waiting = []
    for node in reversed(graph):
        if needed.isdisjoint(node.outputs):
            continue
        if only_waits(node):
            waiting.append(node)
        else:
            needed.update(operands(node))
    for node in waiting:
        for index, value in enumerate(node.inputs):
            computed = value is not None and value.producer() is not None
            if computed and value not in needed:
                node.replace_input_with(index, there)


def _join_again(graph: ir.Graph, parts: Mapping[ir.Value, ir.Value]) -> None:
    """Replace what joins all parts of a flat tensor, in order, by the tensor."""
    members: dict[ir.Value, list[ir.Value]] = {}
    for part, flat in parts.items():
        members.setdefault(flat, []).append(part)
    for node in graph:
        if node.op_type != "Concat" or node.domain:
            continue
        joined = [_reshaped(value) for value in node.inputs]
        whole = parts.get(joined[0]) if joined[0] is not None else None
        if whole is not None and joined == members[whole]:
            node.outputs[0].replace_all_uses_with(whole)


def _reshaped(value: ir.Value | None) -> ir.Value | None:
    """What a value was before it was flattened."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Reshape":
        return value
    split = node.inputs[0].producer() if node.inputs[0] is not None else None
    is_part = split is None or split.op_type == "Split"
    return value if is_part else node.inputs[0]


def _prune(model: ir.Model) -> None:
    """Remove what the outputs do not need."""
    graph = model.graph
    needed = needed_for(graph.outputs, graph)
    for node in reversed(list(graph)):
        if needed.isdisjoint(node.outputs):
            for inner in (inner for body in subgraphs(node) for inner in body.all_nodes()):
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)
            graph.remove(node, safe=True)
    graph.inputs[:] = [value for value in graph.inputs if value in needed]
    for name in [n for n, value in graph.initializers.items() if value not in needed]:
        graph.initializers.pop(name)
    passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    passes.RemoveUnusedOpsetsPass()(model)
