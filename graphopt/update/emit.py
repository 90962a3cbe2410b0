"""Appends the update of all parameters to a graph that has their gradients.

First everything that may fail or that reads parameters: gradients are flattened, bucket by bucket,
and learning rates computed. Then the gate opens (see `gate`), and what is carried is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.carried import Array, Carried, View
from graphopt.parameters import Parameter
from graphopt.rmsprop import RMSProp, Rule
from graphopt.schedules import LearningRateSchedule
from graphopt.schedules._base import Fixed
from graphopt.schedules._parse import emit as emit_schedule
from graphopt.update import core, functions
from graphopt.update.gate import Gate
from graphopt.update.layout import Bucket, plan


class Statistic(Protocol):
    """A running statistic: an input of the graph that moves towards a value of the batch."""

    @property
    def name(self) -> str:
        """The name of the input."""

    @property
    def momentum(self) -> float:
        """How much of the old value stays."""

    @property
    def parameter(self) -> str | None:
        """The parameter whose group it belongs to."""


def append_update(
    op: GraphBuilder,
    optimizer: RMSProp,
    parameters: Mapping[str, ir.Value],
    gradients: Mapping[str, ir.Value],
    *,
    initial: Mapping[str, Array] | None = None,
    statistics: Iterable[tuple[Statistic, ir.Value]] = (),
    group_mask: bool = False,
) -> list[Carried]:
    """Append the update, the counter of steps and the output ``updated``.

    Args:
        op: Appends to the graph, which has its other outputs already.
        optimizer: What to apply.
        parameters: The graph's input of each parameter, by parameter name.
        gradients: The gradient of each, of the same shape and dtype.
        initial: Values of parameters and running statistics before the first step.
        statistics: The running statistics of batch normalization, each with that of the batch.
        group_mask: Add the input ``group_mask``, which says which groups are updated.

    Returns:
        Everything that the graph carries from step to step.
    """
    with op.named("update"):
        update = _Update(op, optimizer, parameters, gradients, initial or {}, group_mask)
        return update.append(statistics)


class _Update:
    def __init__(
        self,
        op: GraphBuilder,
        optimizer: RMSProp,
        parameters: Mapping[str, ir.Value],
        gradients: Mapping[str, ir.Value],
        initial: Mapping[str, Array],
        group_mask: bool,
    ) -> None:
        self.op = op
        self.optimizer = optimizer
        self.parameters = parameters
        self.gradients = gradients
        self.initial = initial
        self.gate = Gate(op)
        for value in op.graph.outputs:
            self.gate.wait_for(value)
        self.global_step = op.input("global_step", np.int64, [])
        self.mask = (
            op.input("group_mask", np.bool_, [len(optimizer.groups)]) if group_mask else None
        )
        self.group_of: dict[str | None, int] = {
            parameter.name: rule.group
            for parameter, rule in zip(optimizer.params, optimizer.rules, strict=True)
        }
        self.scheduled: dict[LearningRateSchedule, ir.Value] = {}

    def append(self, statistics: Iterable[tuple[Statistic, ir.Value]]) -> list[Carried]:
        op, gate = self.op, self.gate
        rules = self.optimizer.rules
        buckets = plan(zip(self.optimizer.params, rules, strict=True))
        for rule in rules:
            for schedule in (rule.learning_rate, rule.weight_decay):
                if not isinstance(schedule, Fixed):
                    gate.wait_for(self._schedule(schedule))
        gradients = []
        for bucket in buckets:
            gradients.append(self._concat([self._gradient(p, bucket.rule) for p in bucket]))
            gate.wait_for(gradients[-1])

        passed = op.Squeeze(gate.shape)
        updated = op.output(op.Less(passed, 0), "updated")
        updated.dtype, updated.shape = ir.DataType.BOOL, ir.Shape([])
        carried = []
        for bucket, gradient in zip(buckets, gradients, strict=True):
            carried += self._update_bucket(bucket, gradient)
        inputs = {value.name: value for value in op.graph.inputs}
        for statistic, batch in statistics:
            carried.append(self._update_statistic(statistic, inputs[statistic.name], batch))
        step = op.Sub(self.global_step, passed)
        carried.append(self._carry(self.global_step, step, initial=0))
        return carried

    def _update_statistic(self, statistic: Statistic, old: ir.Value, batch: ir.Value) -> Carried:
        dtype = old.dtype.numpy().name if old.dtype is not None else "float32"
        average = self._float32(old, dtype)
        value = self._float32(self.gate.flatten(batch), dtype)
        moved = self._call("MovingAverage", [average, value], decay=statistic.momentum)
        new = self._as(moved, dtype)
        group = self.group_of.get(statistic.parameter)
        if self.mask is not None and group is not None:
            new = self._call("Mask", [self.op.Gather(self.mask, group, axis=0), old, new])
        return self._carry(old, new)

    def _schedule(self, schedule: LearningRateSchedule) -> ir.Value:
        """The value of a schedule at this step, computed once."""
        if schedule not in self.scheduled:
            self.scheduled[schedule] = emit_schedule(schedule, self.op, self.global_step)
        return self.scheduled[schedule]

    def _gradient(self, parameter: Parameter, rule: Rule) -> ir.Value:
        gradient = self.gradients[parameter.name]
        if not rule.grad_centralization:
            return gradient
        # The mean is over each row, so this one stage comes before flattening; and so does
        # weight decay, which comes before it.
        rows = [parameter.shape[0], -1]
        g = self._float32(self.op.Reshape(gradient, rows), parameter.dtype)
        if rule.decays and not self.optimizer.decoupled_weight_decay:
            w = self.op.Reshape(self.parameters[parameter.name], rows)
            g = self._decayed(self._float32(w, parameter.dtype), g, rule)
        return self._call("Centralize", [g])

    def _update_bucket(self, bucket: Bucket, gradient: ir.Value) -> list[Carried]:
        optimizer, rule = self.optimizer, bucket.rule
        inputs = [self.parameters[parameter.name] for parameter in bucket]
        old_w = self._concat(inputs)
        w = self._float32(old_w, bucket.dtype)
        g = self.gate.flatten(gradient)
        lr = self._schedule(rule.learning_rate)
        if rule.decays and optimizer.decoupled_weight_decay:
            w = self._call("DecoupledWeightDecay", [w, lr, self._schedule(rule.weight_decay)])
        if not rule.grad_centralization:
            g = self._float32(g, bucket.dtype)
            if rule.decays and not optimizer.decoupled_weight_decay:
                g = self._decayed(w, g, rule)
        if optimizer.loss_scale != 1:
            g = self._call("Unscale", [g], loss_scale=optimizer.loss_scale)
        states = [
            self.op.input(f"{kind}.{bucket.name}", np.float32, [bucket.size])
            for kind in optimizer.states
        ]
        new_w, *new_states = self.op.node(
            core.name(optimizer),
            [w, g, *map(self.gate.flatten, states), lr],
            domain=functions.DOMAIN,
            outputs=1 + len(states),
            **core.attributes(optimizer),
        )
        new_w = self._as(new_w, bucket.dtype)
        if self.mask is not None:
            enabled = self.op.Gather(self.mask, rule.group, axis=0)
            new_w, *new_states = (
                self._call("Mask", [enabled, old, new])
                for old, new in zip([old_w, *states], [new_w, *new_states], strict=True)
            )
        self.gate.wait_for(new_w)

        carried = [
            self._carry(value, part)
            for value, part in zip(inputs, self._split(new_w, bucket), strict=True)
        ]
        for kind, state, new in zip(optimizer.states, states, new_states, strict=True):
            views = [View(f"{kind}.{p.name}", p.shape, offset) for p, offset in bucket.offsets()]
            first = optimizer.initial_mean_square if kind == "mean_square" else 0.0
            carried.append(self._carry(state, new, views, initial=first))
        return carried

    def _decayed(self, w: ir.Value, g: ir.Value, rule: Rule) -> ir.Value:
        """The gradient with weight decay, which carries the loss scale as the gradient does."""
        loss_scale = self.optimizer.loss_scale
        if isinstance(rule.weight_decay, Fixed):
            factor = self._schedule(Fixed(rule.weight_decay.constant * loss_scale))
        else:
            factor = self._schedule(rule.weight_decay)
            if loss_scale != 1:
                factor = self.op.Mul(factor, np.float32(loss_scale))
        return self._call("WeightDecay", [w, g, factor])

    def _call(self, function: str, operands: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        return self.op.node(function, operands, domain=functions.DOMAIN, **attributes)[0]

    def _float32(self, value: ir.Value, dtype: str) -> ir.Value:
        return value if dtype == "float32" else self.op.Cast(value, to=ir.DataType.FLOAT)

    def _as(self, value: ir.Value, dtype: str) -> ir.Value:
        """A float32 value in the dtype of what it feeds."""
        if dtype == "float32":
            return value
        return self.op.Cast(value, to=ir.DataType.from_numpy(np.dtype(dtype)))

    def _flat(self, value: ir.Value) -> ir.Value:
        is_flat = value.shape is not None and len(value.shape) == 1
        return value if is_flat else self.gate.flatten(value)

    def _concat(self, values: list[ir.Value]) -> ir.Value:
        """The values one after another, 1-D, after the gate's last wait."""
        if len(values) == 1:
            return self.gate.flatten(values[0])
        return self.op.Concat(*(self._flat(value) for value in values), axis=0)

    def _split(self, flat: ir.Value, bucket: Bucket) -> Iterable[ir.Value]:
        sizes = [parameter.size for parameter in bucket]
        parts: Sequence[ir.Value] = [flat]
        if len(sizes) > 1:
            parts = self.op.node("Split", [flat, sizes], outputs=len(sizes), axis=0)
        for parameter, part in zip(bucket, parts, strict=True):
            if len(parameter.shape) == 1:
                yield part
            else:
                yield self.op.Reshape(part, np.array(parameter.shape, np.int64))

    def _carry(
        self,
        value: ir.Value,
        new: ir.Value,
        views: Sequence[View] = (),
        *,
        initial: float | None = None,
    ) -> Carried:
        """Let ``new`` feed the input ``value`` at the next step."""
        assert value.dtype is not None
        assert value.shape is not None
        name, shape = str(value.name), tuple(value.shape.numpy())
        output = self.op.output(new, f"{name}.next")
        output.dtype, output.shape = value.dtype, ir.Shape(shape)
        first = self.initial.get(name) if initial is None else initial
        dtype = value.dtype.numpy().name
        return Carried(
            name, f"{name}.next", shape, dtype, tuple(views or [View(name, shape)]), first
        )
