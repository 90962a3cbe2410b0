"""Appends the update of all parameters to a graph that has their gradients.

First everything that may fail or that reads parameters: gradients are flattened, bucket by bucket,
and learning rates computed. Then the gate opens (see `gate`), and what is carried is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.carried import Array, Carried
from graphopt.operators.rewriting import RunningStatistic
from graphopt.rmsprop import RMSProp, Rule
from graphopt.schedules.base import Fixed
from graphopt.stage import UPDATE_PREFIX
from graphopt.states import ACCUMULATED, AVERAGE, GLOBAL_STEP, moved_by
from graphopt.update import functions
from graphopt.update.accumulate import Accumulator
from graphopt.update.averages import Averages
from graphopt.update.carrying import Carrying, dtype_of
from graphopt.update.conditions import Conditions
from graphopt.update.core import Variant, variant
from graphopt.update.counters import count_draws, count_step
from graphopt.update.gate import DeviceGate, Gate
from graphopt.update.gradients import Gradients
from graphopt.update.layout import Bucket, Layout, plan
from graphopt.update.optimizer_arithmetic import Arithmetic
from graphopt.update.packing import Packing
from graphopt.update.statistics import moved_statistic, moved_together


@dataclass(frozen=True)
class AppendedUpdate:
    """What has been appended.

    Attributes:
        carried: Everything that the graph carries from step to step.
        layout: What is updated together.
        variants: The functions that update the buckets, one each.
    """

    carried: tuple[Carried, ...]
    layout: Layout
    variants: tuple[Variant, ...]


def append_update(
    op: GraphBuilder,
    optimizer: RMSProp,
    parameters: Mapping[str, ir.Value],
    gradients: Mapping[str, ir.Value],
    *,
    layout: str = "auto",
    provider: str = "CPUExecutionProvider",
    initial: Mapping[str, Array] | None = None,
    statistics: Iterable[tuple[RunningStatistic, ir.Value]] = (),
    group_mask: bool = False,
) -> AppendedUpdate:
    """Append the update, the counter of steps and the output ``updated``.

    Args:
        op: Appends to the graph, which has its other outputs already.
        optimizer: What to apply.
        parameters: The graph's input of each parameter, by parameter name. Parameters that are
            carried together become one input instead, from which theirs are computed.
        gradients: The gradient of each, of the same shape and dtype.
        layout: What is updated together; see `layout.plan`.
        provider: The execution provider on which the update shall be fast.
        initial: Values of parameters and running statistics before the first step.
        statistics: The running statistics of batch normalization, each with that of the batch.
        group_mask: Add the input ``group_mask``, which says which groups are updated.
    """
    rules = zip(optimizer.params, optimizer.rules, strict=True)
    planned = plan(rules, layout, provider, stored=initial or ())
    with op.named("update"):
        moved = list(statistics)
        update = _Appender(op, optimizer, parameters, gradients, initial or {}, group_mask, moved)
        return update.append(planned)


class _Appender:
    def __init__(
        self,
        op: GraphBuilder,
        optimizer: RMSProp,
        parameters: Mapping[str, ir.Value],
        gradients: Mapping[str, ir.Value],
        initial: Mapping[str, Array],
        group_mask: bool,
        statistics: Sequence[tuple[RunningStatistic, ir.Value]],
    ) -> None:
        self.op = op
        self.op.real = ir.DataType.from_numpy(np.dtype(optimizer.dtype))
        self.statistics = statistics
        self.optimizer = optimizer
        self.carrying = Carrying(op, optimizer, initial)
        self.outputs = list(op.graph.outputs)
        self.gate: Gate | None = None  # of buckets
        self.global_step = op.input(GLOBAL_STEP.name, GLOBAL_STEP.dtype, [])
        self.averages = Averages(op, optimizer.average, self.global_step)
        self.arithmetic = Arithmetic(op, optimizer, lambda: self.global_step)
        self.packing = Packing(
            op,
            parameters,
            lambda rule: rule.grad_centralization and self.arithmetic.adds_decay(rule),
        )
        rule = optimizer.accumulation
        self.accumulator = None if rule is None else Accumulator(op, rule)
        mask = op.input("group_mask", np.bool_, [len(optimizer.groups)]) if group_mask else None
        self.group_of: dict[str | None, int] = {
            parameter.name: rule.group
            for parameter, rule in zip(optimizer.params, optimizer.rules, strict=True)
        }
        self.variants: dict[str, Variant] = {}  # by bucket
        self.gradients = Gradients(
            op,
            optimizer,
            gradients,
            mask,
            self.accumulator,
            arithmetic=self.arithmetic,
            carrying=self.carrying,
            packing=self.packing,
        )
        self.scale = self.gradients.scale
        self.conditions = Conditions(op, mask, self.scale, self.accumulator)

    def append(self, layout: Layout) -> AppendedUpdate:
        op = self.op
        rules = self.optimizer.rules
        used = (s for rule in rules for s in (rule.learning_rate, rule.weight_decay))
        first = [
            *self.outputs,
            *(self.arithmetic.value(s) for s in dict.fromkeys(used) if not isinstance(s, Fixed)),
            *self.averages.weights,
            *self.scale.scalars,
        ]
        if self.accumulator is not None:
            first += self.accumulator.scalars
        else:
            self.gradients.limit_norms()
            if self.scale.norm is not None:
                first.append(self.scale.norm)
        together = layout.name == "foreach"
        append = self._append_together if together else self._append_buckets
        carried, gate = append(layout.buckets, first)
        self.packing.remove_carried()
        if self.scale.norm is not None:
            norm = op.output(self.scale.norm, "gradient_norm")
            norm.dtype, norm.shape = op.real, ir.Shape([])
        carried += self._update_statistics(self.statistics, gate)
        counted = count_step(
            op, self.optimizer, gate, self.global_step, self.scale.finite, self.accumulator
        )
        carried += [self.carrying.of_graph(*state) for state in counted]
        carried += [self.carrying.of_graph(*state) for state in count_draws(op, gate)]
        variants = tuple(self.variants[bucket.name] for bucket in layout.buckets)
        return AppendedUpdate(tuple(carried), layout, variants)

    def _append_buckets(
        self, buckets: Sequence[Bucket], first: Sequence[ir.Value]
    ) -> tuple[list[Carried], Gate]:
        """The update of one bucket after the other, once all gradients are there."""
        self.gate = gate = Gate(self.op)
        for value in first:
            gate.wait_for(value)
        computed = self.gradients.last_first(buckets) if len(buckets) > 1 else []
        alone, joined, inputs, gradients = {*computed}, [], [], []
        for bucket in buckets:
            with self.op.named(f"{UPDATE_PREFIX}{bucket.name}"):
                inputs.append(self.packing.input_of(bucket))
                gradients.append(self._concat([self.gradients.of(p, bucket.rule) for p in bucket]))
                if gradients[-1] not in alone:
                    joined.append(gradients[-1])
        gate.wait_for_all([*joined, *computed])
        carried: list[Carried] = []
        if self.accumulator is not None:
            carried, gradients = self._accumulate(buckets, gradients, gate)
        for bucket, old, gradient in zip(buckets, inputs, gradients, strict=True):
            with self.op.named(f"{UPDATE_PREFIX}{bucket.name}"):
                carried += self._update_bucket(bucket, old, gradient, gate)
        return carried, gate

    def _accumulate(
        self, buckets: Sequence[Bucket], gradients: Sequence[ir.Value], gate: Gate | DeviceGate
    ) -> tuple[list[Carried], list[ir.Value]]:
        """The sums of gradients that the buckets carry, and what is to be applied of them."""
        assert self.accumulator is not None
        carried, totals = [], []
        for bucket, gradient in zip(buckets, gradients, strict=True):
            with self.op.named(f"{UPDATE_PREFIX}{bucket.name}"):
                old = self.carrying.input_of(bucket, ACCUMULATED)
                waited = self.carrying.wide(_waited(bucket, gradient, gate), bucket.dtype)
                new = self.accumulator.added(old, waited, self.scale.unscales, self.scale.finite)
                if isinstance(gate, Gate):
                    gate.wait_for(new)
                carried.append(self.carrying.state(bucket, ACCUMULATED, old, new))
                totals.append(new)
        applied = self.gradients.applied(buckets, totals, self._concat)
        if self.scale.finite is not None:
            sound = functions.all_finite(self.op, totals)
            if self.scale.norm is not None:
                sound = self.op.And(sound, self.op.Not(self.op.IsInf(self.scale.norm)))
            self.accumulator.is_sound = sound
        return carried, applied

    def _append_together(
        self, buckets: Sequence[Bucket], first: Sequence[ir.Value]
    ) -> tuple[list[Carried], DeviceGate]:
        """The update of all buckets of a rule by one node, each bucket a parameter."""
        carried: list[Carried] = []
        gradients: dict[str, ir.Value] = {}
        together: dict[tuple[int, Rule], list[Bucket]] = {}
        for number, bucket in enumerate(buckets):
            with self.op.named(f"{UPDATE_PREFIX}{bucket.name}"):
                gradients[bucket.name] = self.gradients.of(next(iter(bucket)), bucket.rule)
            together.setdefault((number // functions.MOST_TOGETHER, bucket.rule), []).append(bucket)
        gate = DeviceGate(self.op, [*first, *gradients.values()])
        if self.accumulator is not None:
            carried, totals = self._accumulate(buckets, list(gradients.values()), gate)
            gradients = {b.name: total for b, total in zip(buckets, totals, strict=True)}
        made: dict[str, list[Carried]] = {}
        for number, several in enumerate(together.values()):
            with self.op.named(f"{UPDATE_PREFIX}foreach{number}"):
                made |= self._update_together(several, gradients, gate)
        return [*carried, *(value for bucket in buckets for value in made[bucket.name])], gate

    def _update_together(
        self, buckets: Sequence[Bucket], gradients: Mapping[str, ir.Value], gate: DeviceGate
    ) -> dict[str, list[Carried]]:
        """What buckets of one rule carry, by their names."""
        op, rule, kinds = self.op, buckets[0].rule, moved_by(self.optimizer)
        old = [self.packing.input_of(bucket) for bucket in buckets]
        w = [self.carrying.wide(v, bucket.dtype) for v, bucket in zip(old, buckets, strict=True)]
        g = [gradients[bucket.name] for bucket in buckets]
        if not (rule.grad_centralization or self.accumulator):
            g = [self.carrying.wide(v, bucket.dtype) for v, bucket in zip(g, buckets, strict=True)]
        states = [[self.carrying.input_of(bucket, kind) for bucket in buckets] for kind in kinds]
        made = variant(self.optimizer, rule, mask=self.conditions.masks, tensors=len(buckets))
        self.variants |= {bucket.name: made for bucket in buckets}
        new = self.arithmetic.update(
            op,
            made,
            [*w, *g, *(s for of_kind in states for s in of_kind)],
            [gate.ready, *self._scalars(made, rule)],
        )
        count = len(buckets)
        by_name: dict[str, list[Carried]] = {}
        for index, bucket in enumerate(buckets):
            new_w, *new_states = new[index::count]
            narrow = self.carrying.narrow(new_w, bucket.dtype)
            averages = self.averages.rule is not None
            flat = op.Reshape(narrow, [-1]) if averages else narrow
            by_name[bucket.name] = [
                self.carrying.parameters(bucket, old[index], narrow),
                *(
                    self.carrying.state(bucket, kind, of_kind[index], new_state)
                    for kind, of_kind, new_state in zip(kinds, states, new_states, strict=True)
                ),
                *self._average_parameters(bucket, flat, old[index]),
            ]
        return by_name

    def _scalars(self, made: Variant, rule: Rule) -> list[ir.Value]:
        """What a call of the update has in common for all its elements."""
        scalars = [self.arithmetic.value(rule.learning_rate)]
        factor = self.scale.factor(rule.group)
        if made.scale and factor is not None:
            scalars.append(factor)
        if made.weight_decay:
            scalars.append(self.arithmetic.decay_factor(rule))
        if made.mask:
            scalars.append(self.conditions.is_on(rule.group))
        return scalars

    def _update_statistics(
        self, statistics: Sequence[tuple[RunningStatistic, ir.Value]], gate: Gate | DeviceGate
    ) -> list[Carried]:
        values = {value.name: value for value in self.op.graph.inputs}
        entries = [(statistic, values[statistic.name], batch) for statistic, batch in statistics]
        if isinstance(gate, DeviceGate):
            moved = moved_together(self.op, gate, entries)
        else:
            moved = {
                statistic.name: moved_statistic(self.op, gate, statistic, old, batch)
                for statistic, old, batch in entries
            }
        carried = []
        sound = None
        if entries and self.scale.finite is not None:
            # A statistic of the batch may overflow where no gradient does.
            wide = [self.carrying.wide(batch, dtype_of(old)) for _, old, batch in entries]
            sound = functions.all_finite(self.op, wide)
        for statistic, old, _ in entries:
            new, group = moved[statistic.name], self.group_of.get(statistic.parameter)
            counts = self.conditions.counts(group)
            if counts is not None and sound is not None:
                counts = self.op.And(counts, sound)
            if counts is not None:
                new = functions.call(self.op, "Mask", counts, old, new)
            carried.append(self.carrying.statistic(statistic.name, old, new))
            if self.averages.rule is not None and self.averages.rule.statistics:
                carried.append(self._average_statistic(old, new, group))
        return carried

    def _average_statistic(self, old: ir.Value, new: ir.Value, group: int | None) -> Carried:
        average = self.op.input(AVERAGE.of(str(old.name)), self.optimizer.dtype, old.shape or [])
        wide = self.carrying.wide(new, dtype_of(old))
        masks = self.conditions.counts(group) is not None or self.accumulator is not None
        moved = self.averages.moved(average, wide, self.conditions.is_on(group) if masks else None)
        return self.carrying.value(average, moved, initial=old.name)

    def _update_bucket(
        self, bucket: Bucket, old: ir.Value, gradient: ir.Value, gate: Gate
    ) -> list[Carried]:
        optimizer, rule = self.optimizer, bucket.rule
        w = self._flat(old) if bucket.separate else old
        # Everything that is written depends on the gradient, so that only this one must wait.
        g = gradient
        if self.accumulator is None:
            g = _waited(bucket, gradient, gate)
        kinds = moved_by(optimizer)
        states = [self.carrying.input_of(bucket, kind) for kind in kinds]
        made = variant(
            optimizer,
            rule,
            mask=self.conditions.masks,
            chunked=bucket.rows is not None,
            float16=bucket.dtype == "float16",
        )
        self.variants[bucket.name] = made
        new_w, *new_states = self.arithmetic.update(
            self.op, made, [w, g, *states], self._scalars(made, rule)
        )
        average = self._average_parameters(bucket, new_w, old)
        gate.wait_for(new_w)
        if bucket.separate:
            (parameter,) = bucket
            if len(parameter.shape) != 1:
                new_w = self.op.Reshape(new_w, np.array(parameter.shape, np.int64))
        return [
            self.carrying.parameters(bucket, old, new_w),
            *(
                self.carrying.state(bucket, kind, state, new)
                for kind, state, new in zip(kinds, states, new_states, strict=True)
            ),
            *average,
        ]

    def _average_parameters(
        self, bucket: Bucket, new: ir.Value, parameters: ir.Value
    ) -> list[Carried]:
        """The average of a bucket, if there is one, which starts as the parameters."""
        if self.averages.rule is None:
            return []
        old = self.carrying.input_of(bucket, AVERAGE)
        on = self.conditions.is_on(bucket.rule.group) if self.conditions.masks else None
        moved = self.averages.moved(old, self.carrying.wide(new, bucket.dtype), on)
        return [self.carrying.state(bucket, AVERAGE, old, moved, initial=parameters.name)]

    def _flat(self, value: ir.Value) -> ir.Value:
        is_flat = value.shape is not None and len(value.shape) == 1
        if is_flat:
            return value
        return self.gate.flatten(value) if self.gate else self.op.Reshape(value, [-1])

    def _concat(self, values: list[ir.Value]) -> ir.Value:
        """The values one after another, 1-D, after the gate's last wait; a single one as it is."""
        if len(values) == 1:
            return values[0]
        return self.op.Concat(*(self._flat(value) for value in values), axis=0)


def _waited(bucket: Bucket, gradient: ir.Value, gate: Gate | DeviceGate) -> ir.Value:
    """The gradient of a bucket in its shape, not there before the gate opens."""
    if bucket.rows is None or isinstance(gate, DeviceGate):
        return gate.flatten(gradient)
    return gate.cut(gradient, bucket.rows)
