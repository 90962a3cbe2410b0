"""``training_model.onnx``: what ONNX Runtime's ``TrainStep`` runs.

It feeds, after the inputs of the application, every tensor of the checkpoint that is an input of
the graph, a buffer for the gradient of each trainable one, and whether the buffers start anew. It
finds them by their names. What a step changes, the graph writes over its inputs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt import in_place
from graphopt.builder import GraphBuilder
from graphopt.carried import Array, Carried, filled
from graphopt.differentiated import Differentiated
from graphopt.graph import finished, manifest_of
from graphopt.graphs import put_last
from graphopt.on_device import _step_numbers
from graphopt.on_device._branch import only_if
from graphopt.on_device._writer import Writer, once_written
from graphopt.on_device.tensor_names import ACCUMULATED, RESET, UPDATE, accumulated, gradient_buffer
from graphopt.rmsprop import RMSProp
from graphopt.states import COUNTERS
from graphopt.update.counters import count_draws
from graphopt.update.emit import AppendedUpdate, append_update
from graphopt.update.gate import Gate
from graphopt.update.layout import Layout
from graphopt.update.statistics import moved_statistic


@dataclass(frozen=True)
class TrainingModel:
    """The model and what it starts from.

    Attributes:
        model: The model.
        trainable: The values of the parameters before the first step, by name.
        frozen: Those of everything else that is carried from step to step, by name.
    """

    model: onnx.ModelProto
    trainable: dict[str, Array]
    frozen: dict[str, Array]


def with_update(
    built: Differentiated,
    optimizer: RMSProp,
    *,
    outputs: Sequence[str] = (),
    group_mask: bool = False,
    accumulate: bool = False,
) -> TrainingModel:
    """The gradients and the whole update: a step is one ``TrainStep``.

    Args:
        built: The graph with its gradients; changed in place.
        optimizer: What to apply.
        outputs: Outputs of the forward model that are outputs of this one, after ``loss``.
        group_mask: Add the input ``group_mask``.
        accumulate: Add the input ``update``, bool [1].
    """
    optimizer = optimizer.drawing(built.seed)
    gradients, statistics = built.gradients.gradients, built.gradients.statistics
    op = GraphBuilder(built.gradients.model.graph)
    writer = Writer(op)
    buffers, reset = _gradient_buffers(op, built.gradients.parameters)
    if accumulate:
        update = op.input(UPDATE, np.bool_, [1])
        anew = _count_steps(op, writer, reset, update)
        gradients = {
            name: writer.accumulate(buffers[name], gradient, anew)[1]
            for name, gradient in gradients.items()
        }
    appended = append_update(
        op,
        optimizer,
        built.gradients.parameters,
        gradients,
        layout="separate",
        initial=built.initial,
        statistics=statistics.values(),
        group_mask=group_mask,
    )
    _write(op, writer, [value for value in appended.carried if value.input in statistics])
    updating = Writer(op)
    _write(op, updating, [value for value in appended.carried if value.input not in statistics])
    flags = [only_if(op, update, updating.flags)] if accumulate else updating.flags
    _report(op, [*outputs, *_said(optimizer)], [*writer.flags, *flags])
    initial = _initial(appended.carried)
    if accumulate:
        initial[ACCUMULATED] = np.zeros(1, np.float32)
    return _training_model(built, optimizer, appended, initial, group_mask=group_mask)


def with_gradients(
    built: Differentiated, optimizer: RMSProp, *, outputs: Sequence[str] = ()
) -> TrainingModel:
    """The gradients alone, added up in ONNX Runtime's buffers; its ``OptimizerStep`` updates.

    Args:
        built: The graph with its gradients; changed in place.
        optimizer: Whose parameters have gradients.
        outputs: Outputs of the forward model that are outputs of this one, after ``loss``.
    """
    optimizer = optimizer.drawing(built.seed)
    gradients, statistics = built.gradients.gradients, built.gradients.statistics
    op = GraphBuilder(built.gradients.model.graph)
    writer = Writer(op)
    buffers, reset = _gradient_buffers(op, built.gradients.parameters)
    sums = {
        name: writer.accumulate(buffers[name], gradient, reset)[0]
        for name, gradient in gradients.items()
    }
    gate = Gate(op)
    for value in (*op.graph.outputs, *gradients.values()):
        gate.wait_for(value)
    inputs = {str(value.name): value for value in op.graph.inputs}
    for name, (statistic, batch) in statistics.items():
        old = inputs[name]
        writer.write(old, moved_statistic(op, gate, statistic, old, batch))
    initial = dict(built.initial)
    for state, old, new in count_draws(op, gate):
        writer.write(_float_counter(op, old), _step_numbers.encoded(op, new))
        initial[state.name] = _step_numbers.encode(int(state.start(optimizer)))
    _report(op, outputs, writer.flags)
    for name, flag in sums.items():
        op.output(flag, accumulated(name))
    nothing = AppendedUpdate((), Layout("separate", ()), ())
    return _training_model(built, optimizer, nothing, initial)


def _said(optimizer: RMSProp) -> list[str]:
    """What a step says of its gradients."""
    said = {
        "updated": optimizer.skip_on_overflow or optimizer.accumulation is not None,
        "gradient_norm": optimizer.clip_norm is not None,
    }
    return [name for name, is_said in said.items() if is_said]


def _initial(carried: Sequence[Carried]) -> dict[str, Array]:
    """What is carried begins with; counters as two numbers."""
    first = {
        value.input: value.initial if isinstance(value.initial, np.ndarray) else filled(value)
        for value in carried
        if not isinstance(value.initial, str)
    }
    first |= {
        value.input: first[value.initial].reshape(value.shape).astype(value.dtype)
        for value in carried
        if isinstance(value.initial, str)
    }
    ordered = {value.input: first[value.input] for value in carried}
    for name in COUNTERS & ordered.keys():
        ordered[name] = _step_numbers.encode(int(ordered[name]))
    return ordered


def _gradient_buffers(
    op: GraphBuilder, parameters: Mapping[str, ir.Value]
) -> tuple[dict[str, ir.Value], ir.Value]:
    """The inputs in which ONNX Runtime adds gradients up, and that which lets them start anew."""
    buffers = {}
    for name, parameter in parameters.items():
        assert parameter.dtype is not None
        assert parameter.shape is not None
        buffers[name] = op.input(gradient_buffer(name), parameter.dtype, parameter.shape)
    return buffers, op.input(RESET, np.bool_, [1])


def _count_steps(op: GraphBuilder, writer: Writer, reset: ir.Value, update: ir.Value) -> ir.Value:
    """Count those since the last update; returns whether gradients start anew, bool [1]."""
    count = op.input(ACCUMULATED, np.float32, [1])
    anew = op.Or(reset, op.Less(count, 1.0))
    counted = op.Where(anew, np.ones(1, np.float32), op.Add(count, 1.0))
    writer.write(count, op.Where(update, np.zeros(1, np.float32), counted))
    return anew


def _write(op: GraphBuilder, writer: Writer, carried: Iterable[Carried]) -> None:
    """Write carried values over the inputs that they feed, and take them out of the outputs."""
    graph = op.graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    for value in carried:
        old, new = inputs[value.input], outputs[value.output]
        graph.outputs.remove(new)
        if value.input in COUNTERS:
            old, new = _float_counter(op, old), _step_numbers.encoded(op, new)
        writer.write(old, new)


def _float_counter(op: GraphBuilder, counter: ir.Value) -> ir.Value:
    """Compute an input such as ``global_step`` from one of two numbers, which has its name."""
    name = str(counter.name)
    counter.name = op.fresh_name(f"{name}/decoded")
    op.release_name(name)
    numbers = op.input(name, np.float32, [2])
    with op.at_front():
        counter.replace_all_uses_with(_step_numbers.decoded(op, numbers))
    op.graph.inputs.remove(counter)
    return numbers


def _report(op: GraphBuilder, outputs: Sequence[str], flags: Sequence[ir.Value]) -> None:
    """Make the loss the first output, which is there when everything is written."""
    values = {str(value.name): value for value in op.graph.outputs}
    loss = values["loss"]
    kept = [values[name] for name in outputs]
    op.graph.outputs.clear()
    if flags:
        loss.name = op.fresh_name("loss/computed")
        op.release_name("loss")
        op.output(once_written(op, loss, flags), "loss")
    else:
        op.graph.outputs.append(loss)
    op.graph.outputs.extend(kept)


def _training_model(
    built: Differentiated,
    optimizer: RMSProp,
    update: AppendedUpdate,
    initial: dict[str, Array],
    *,
    group_mask: bool = False,
) -> TrainingModel:
    """The finished model, whose inputs are in the order in which ONNX Runtime feeds them."""
    model = built.gradients.model
    trainable = {name: initial.pop(name) for name in built.gradients.parameters}
    buffers = map(gradient_buffer, trainable)
    put_last(model.graph.inputs, [*trainable, *initial, *buffers, RESET])
    model.graph.sort()
    passes.RemoveUnusedNodesPass()(model)
    manifest = manifest_of(optimizer, update, built.class_labels, group_mask, built.loss)
    proto = finished(model, update.variants, manifest)
    early = in_place.early_writes(proto)
    assert not early, f"{', '.join(early)} may be overwritten too early"
    return TrainingModel(proto, trainable, initial)
