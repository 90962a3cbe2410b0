"""Appends the update of all parameters to a graph that has their gradients.

ONNX Runtime runs nodes in any order that respects their inputs, not in file order. If a consumer
lets an output overwrite the input that it feeds at the next step, a parameter could be overwritten
while a gradient still needs it. So every node that writes a carried value waits for all gradients
and all other outputs of the graph: it takes its shape operand from a chain of ``Size`` nodes that
read them. Reshaping is free, so is the wait. It also means that a step that fails has written
nothing.

The same chain goes on from bucket to bucket. That keeps the number of nodes that are ready at once
small, which ONNX Runtime 1.19 needs to load a large graph in linear time.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.carried import Array, Carried, View
from graphopt.rmsprop import RMSProp
from graphopt.schedules._parse import emit as emit_rate
from graphopt.update import functions
from graphopt.update.layout import Bucket, plan

_INITIAL_STATE = {"mean_square": 1.0, "mean_grad": 0.0, "moment": 0.0}


class Gate:
    """A chain of waits: the int64 tensor ``[-1]``, computed from every value waited for."""

    def __init__(self, op: GraphBuilder) -> None:
        """A gate that waits for nothing yet."""
        self._op = op
        self.shape = op.constant([-1], name="flat")

    def wait_for(self, value: ir.Value) -> None:
        """Let what passes the gate from now on run after ``value`` has been computed."""
        self.shape = self._op.Min(self._op.Size(value), self.shape)

    def flatten(self, value: ir.Value) -> ir.Value:
        """The value as a 1-D tensor that is not there before the gate opens."""
        return self._op.Reshape(value, self.shape)


def append_update(
    op: GraphBuilder,
    optimizer: RMSProp,
    parameters: Mapping[str, ir.Value],
    gradients: Mapping[str, ir.Value],
    initial: Mapping[str, Array],
    statistics: Mapping[str, ir.Value],
) -> list[Carried]:
    """Append the update, the counter of steps and the output ``updated``.

    Args:
        op: Appends to the graph, which has its other outputs already.
        optimizer: What to apply.
        parameters: The graph's input of each parameter, by parameter name.
        gradients: The gradient of each, of the same shape and dtype.
        initial: Values of parameters and running statistics before the first step.
        statistics: The new values of running statistics, by the name of the input that they feed.

    Returns:
        Everything that the graph carries from step to step.
    """
    gate = Gate(op)
    for value in op.graph.outputs:
        gate.wait_for(value)
    global_step = op.input("global_step", np.int64, [])
    buckets = plan(zip(optimizer.params, optimizer.rules, strict=True))
    flat_gradients = []
    for bucket in buckets:
        flat = _concat(op, [_flat(gate, gradients[p.name]) for p in bucket.parameters])
        gate.wait_for(flat)
        flat_gradients.append(flat)

    carried = []
    passed = op.Squeeze(gate.shape)
    updated = op.output(op.Less(passed, 0), "updated")
    updated.dtype, updated.shape = ir.DataType.BOOL, ir.Shape([])
    for bucket, flat in zip(buckets, flat_gradients, strict=True):
        carried += _update_bucket(
            op, optimizer, bucket, gate, global_step, parameters, flat, initial
        )
    for name, value in statistics.items():
        statistic = next(v for v in op.graph.inputs if v.name == name)
        carried.append(_carry(op, statistic, gate.flatten(value), initial=initial.get(name)))
    carried.append(_carry(op, global_step, op.Sub(global_step, passed), initial=0))
    return carried


def function_names(optimizer: RMSProp) -> list[str]:
    """The functions that the update of this optimizer may call."""
    return [_core(optimizer), "WeightDecay", "Unscale"]


def _core(optimizer: RMSProp) -> str:
    centered = "Centered" if optimizer.centered else ""
    return f"{centered}RMSProp{'Momentum' if optimizer.momentum > 0 else ''}"


def _update_bucket(
    op: GraphBuilder,
    optimizer: RMSProp,
    bucket: Bucket,
    gate: Gate,
    global_step: ir.Value,
    parameters: Mapping[str, ir.Value],
    gradient: ir.Value,
    initial: Mapping[str, Array],
) -> list[Carried]:
    def call(function: str, operands: Sequence[ir.Value], **attributes: float) -> list[ir.Value]:
        outputs = 1 + len(optimizer.states) if function == _core(optimizer) else 1
        return list(
            op.node(function, operands, domain=functions.DOMAIN, outputs=outputs, **attributes)
        )

    inputs = [parameters[parameter.name] for parameter in bucket.parameters]
    w = _concat(op, [_flat(gate, value) for value in inputs])
    g = gate.flatten(gradient)
    if bucket.dtype != "float32":
        w, g = (op.Cast(value, to=ir.DataType.FLOAT) for value in (w, g))
    if bucket.rule.weight_decay:
        (g,) = call("WeightDecay", [w, g], factor=bucket.rule.weight_decay * optimizer.loss_scale)
    if optimizer.loss_scale != 1:
        (g,) = call("Unscale", [g], loss_scale=optimizer.loss_scale)
    states = [
        op.input(op_name, np.float32, [bucket.size])
        for op_name in (f"{kind}.{bucket.name}" for kind in optimizer.states)
    ]
    new_w, *new_states = call(
        _core(optimizer),
        [w, g, *states, emit_rate(bucket.rule.learning_rate, op, global_step)],
        decay=optimizer.decay,
        epsilon=optimizer.epsilon,
        **({"momentum": optimizer.momentum} if optimizer.momentum > 0 else {}),
    )
    if bucket.dtype != "float32":
        new_w = op.Cast(new_w, to=ir.DataType.from_numpy(np.dtype(bucket.dtype)))
    gate.wait_for(new_w)

    carried = []
    for value, part in zip(inputs, _split(op, new_w, bucket), strict=True):
        carried.append(_carry(op, value, part, initial=initial.get(str(value.name))))
    for kind, state, new in zip(optimizer.states, states, new_states, strict=True):
        views = [View(f"{kind}.{p.name}", p.shape, offset) for p, offset in bucket.offsets()]
        carried.append(_carry(op, state, new, views, initial=_INITIAL_STATE[kind]))
    return carried


def _flat(gate: Gate, value: ir.Value) -> ir.Value:
    return value if value.shape is not None and len(value.shape) == 1 else gate.flatten(value)


def _concat(op: GraphBuilder, values: list[ir.Value]) -> ir.Value:
    return values[0] if len(values) == 1 else op.Concat(*values, axis=0)


def _split(op: GraphBuilder, flat: ir.Value, bucket: Bucket) -> Iterable[ir.Value]:
    if len(bucket.parameters) == 1:
        parts: Sequence[ir.Value] = [flat]
    else:
        sizes = [parameter.size for parameter in bucket.parameters]
        parts = op.node("Split", [flat, sizes], outputs=len(sizes), axis=0)
    for parameter, part in zip(bucket.parameters, parts, strict=True):
        if len(parameter.shape) == 1:
            yield part
        else:
            yield op.Reshape(part, op.constant(np.array(parameter.shape, np.int64)))


def _carry(
    op: GraphBuilder,
    value: ir.Value,
    new: ir.Value,
    views: Sequence[View] = (),
    *,
    initial: Array | float | None,
) -> Carried:
    """Let ``new`` feed the input ``value`` at the next step."""
    assert value.dtype is not None
    assert value.shape is not None
    name, shape = str(value.name), value.shape.numpy()
    output = op.output(new, f"{name}.next")
    output.dtype, output.shape = value.dtype, ir.Shape(shape)
    views = views or [View(name, shape)]
    return Carried(name, f"{name}.next", shape, value.dtype.numpy().name, tuple(views), initial)
