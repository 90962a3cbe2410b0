"""Appends the update of all parameters to a graph that has their gradients.

First everything that may fail or that reads parameters: gradients are flattened, bucket by bucket,
and learning rates computed. Then the gate opens (see `gate`), and what is carried is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.carried import NEXT, Array, Carried, View, joined
from graphopt.operators.rewriting import RunningStatistic
from graphopt.parameter import Parameter
from graphopt.rmsprop import RMSProp, Rule
from graphopt.schedules.base import Fixed
from graphopt.stage import UPDATE_PREFIX
from graphopt.states import ACCUMULATED, AVERAGE, GLOBAL_STEP, State, moved_by
from graphopt.update import functions
from graphopt.update.accumulate import Accumulator
from graphopt.update.averages import Averages
from graphopt.update.core import Variant, variant
from graphopt.update.counters import count_draws, count_step
from graphopt.update.gate import DeviceGate, Gate
from graphopt.update.gradient_scale import GradientScale
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
        self.gradients = dict(gradients)
        self.initial = initial
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
        self.mask = (
            op.input("group_mask", np.bool_, [len(optimizer.groups)]) if group_mask else None
        )
        self.group_of: dict[str | None, int] = {
            parameter.name: rule.group
            for parameter, rule in zip(optimizer.params, optimizer.rules, strict=True)
        }
        self.variants: dict[str, Variant] = {}  # by bucket
        self.on: dict[int | None, ir.Value] = {}  # by group
        self.counts: dict[int | None, ir.Value | None] = {}
        self.scale = self._gradient_scale()

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
            self._limit_norms(self.gradients)
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
        carried += [
            self._carry(old, new, initial=state.start(self.optimizer))
            for state, old, new in counted
        ]
        carried += self._count_draws(gate)
        variants = tuple(self.variants[bucket.name] for bucket in layout.buckets)
        return AppendedUpdate(tuple(carried), layout, variants)

    def _count_draws(self, gate: Gate | DeviceGate) -> list[Carried]:
        """What random numbers are made of, where the graph draws some; every step is another."""
        return [
            self._carry(old, new, initial=state.start(self.optimizer))
            for state, old, new in count_draws(self.op, gate)
        ]

    def _gradient_scale(self) -> GradientScale:
        """The scalars that depend on the gradients."""
        optimizer, gradients = self.optimizer, dict(self.gradients)
        if optimizer.unscales_first or optimizer.skip_on_overflow:
            for p in optimizer.params:
                gradients[p.name] = self._wide(gradients[p.name], p.dtype)
        share = None if self.accumulator is None else self.accumulator.share
        self.gradients = gradients  # in what is looked at: a Cast and back might be left out
        return GradientScale(self.op, optimizer, gradients.values(), self.mask, share)

    def _limit_norms(self, gradients: Mapping[str, ir.Value]) -> None:
        """Find the norms of gradients, by parameter; each is scaled where it has one of its own."""
        self.scale.limit_norms(
            (rule.group, p.name, gradients[p.name])
            for p, rule in zip(self.optimizer.params, self.optimizer.rules, strict=True)
        )
        for name, gradient in list(gradients.items()):
            if (factor := self.scale.factor_of(name)) is not None:
                self.gradients[name] = functions.call(self.op, "Scale", gradient, factor)

    def _append_buckets(
        self, buckets: Sequence[Bucket], first: Sequence[ir.Value]
    ) -> tuple[list[Carried], Gate]:
        """The update of one bucket after the other, once all gradients are there."""
        self.gate = gate = Gate(self.op)
        for value in first:
            gate.wait_for(value)
        computed = self._last_first(buckets) if len(buckets) > 1 else []
        alone, joined, inputs, gradients = {*computed}, [], [], []
        for bucket in buckets:
            with self.op.named(f"{UPDATE_PREFIX}{bucket.name}"):
                inputs.append(self.packing.input_of(bucket))
                gradients.append(self._concat([self._gradient(p, bucket.rule) for p in bucket]))
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
                views = [View(ACCUMULATED.of(p.name), p.shape, at) for p, at in bucket.offsets()]
                old = self.op.input(ACCUMULATED.of(bucket.name), self.optimizer.dtype, bucket.shape)
                waited = self._wide(_waited(bucket, gradient, gate), bucket.dtype)
                new = self.accumulator.added(old, waited, self.scale.unscales, self.scale.finite)
                if isinstance(gate, Gate):
                    gate.wait_for(new)
                carried.append(self._carry(old, new, views, initial=0.0))
                totals.append(new)
        applied = self._applied(buckets, totals)
        if self.scale.finite is not None:
            sound = functions.all_finite(self.op, totals)
            if self.scale.norm is not None:
                sound = self.op.And(sound, self.op.Not(self.op.IsInf(self.scale.norm)))
            self.accumulator.is_sound = sound
        return carried, applied

    def _applied(self, buckets: Sequence[Bucket], totals: Sequence[ir.Value]) -> list[ir.Value]:
        """Sums of gradients, after what is done with each parameter's alone."""
        pairs = list(zip(buckets, totals, strict=True))
        alone = self.optimizer.clip_norm_per == "parameter"
        of_parameters: dict[str, ir.Value] = {}
        for bucket, total in pairs:
            if alone or bucket.rule.grad_centralization:
                parts = zip(bucket, self.packing.split(total, bucket), strict=True)
                of_parameters |= {parameter.name: part for parameter, part in parts}
        if alone:
            self._limit_norms(of_parameters)
        else:
            self.scale.limit_norms((b.rule.group, b.name, total) for b, total in pairs)
            self.gradients |= of_parameters
        applied = []
        for bucket, total in pairs:
            if alone or bucket.rule.grad_centralization:
                parts_of = [self._prepared(p, bucket.rule) for p in bucket]
                flat = self._concat([self.op.Reshape(part, [-1]) for part in parts_of])
                total = self.op.Reshape(flat, np.array(bucket.shape, np.int64))  # noqa: PLW2901
            applied.append(total)
        return applied

    def _last_first(self, buckets: Iterable[Bucket]) -> list[ir.Value]:
        """The gradients that the graph computes, those first that it computes last.

        So each is computed as soon as what it reads is there, which then need not be held, even if
        its bucket has gradients that come much later.
        """
        place = {value: at for at, node in enumerate(self.op.graph) for value in node.outputs}
        values = {self.gradients[parameter.name] for bucket in buckets for parameter in bucket}
        return sorted(values & place.keys(), key=place.__getitem__, reverse=True)

    def _append_together(
        self, buckets: Sequence[Bucket], first: Sequence[ir.Value]
    ) -> tuple[list[Carried], DeviceGate]:
        """The update of all buckets of a rule by one node, each bucket a parameter."""
        carried: list[Carried] = []
        gradients: dict[str, ir.Value] = {}
        together: dict[tuple[int, Rule], list[Bucket]] = {}
        for number, bucket in enumerate(buckets):
            with self.op.named(f"{UPDATE_PREFIX}{bucket.name}"):
                gradients[bucket.name] = self._gradient(next(iter(bucket)), bucket.rule)
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
        w = [self._wide(v, bucket.dtype) for v, bucket in zip(old, buckets, strict=True)]
        g = [gradients[bucket.name] for bucket in buckets]
        if not (rule.grad_centralization or self.accumulator):
            g = [self._wide(v, bucket.dtype) for v, bucket in zip(g, buckets, strict=True)]
        states = [
            [
                op.input(kind.of(bucket.name), self.optimizer.dtype, bucket.shape)
                for bucket in buckets
            ]
            for kind in kinds
        ]
        made = variant(self.optimizer, rule, mask=self._masks, tensors=len(buckets))
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
            narrow = self._as(new_w, bucket.dtype)
            averages = self.averages.rule is not None
            flat = op.Reshape(narrow, [-1]) if averages else narrow
            by_name[bucket.name] = [
                self._carry_parameters(bucket, old[index], narrow),
                *(
                    self._carry_state(bucket, kind, of_kind[index], new_state)
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
            scalars.append(self._is_on(rule.group))
        return scalars

    @property
    def _masks(self) -> bool:
        """Whether what is carried may stay as it is."""
        return any(value is not None for value in (self.mask, self.scale.finite, self.accumulator))

    def _is_on(self, group: int | None) -> ir.Value:
        """Whether what belongs to a group is updated in this step; None: to no group."""
        on = self._counts(group)
        if self.accumulator is None:
            assert on is not None
            return on
        if group not in self.on:
            applies = self.accumulator.applies
            self.on[group] = applies if on is None else self.op.And(on, applies)
        return self.on[group]

    def _counts(self, group: int | None) -> ir.Value | None:
        """Whether this step counts for what belongs to a group; None: it always does."""
        if group not in self.counts:
            finite, enabled = self.scale.finite, None
            if self.mask is not None and group is not None:
                enabled = self.op.Gather(self.mask, group, axis=0)
            conditions = [value for value in (enabled, finite) if value is not None]
            both = len(conditions) == 2
            self.counts[group] = self.op.And(*conditions) if both else next(iter(conditions), None)
        return self.counts[group]

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
            wide = [self._wide(batch, _dtype(old)) for _, old, batch in entries]
            sound = functions.all_finite(self.op, wide)
        for statistic, old, _ in entries:
            new, group = moved[statistic.name], self.group_of.get(statistic.parameter)
            counts = self._counts(group)
            if counts is not None and sound is not None:
                counts = self.op.And(counts, sound)
            if counts is not None:
                new = functions.call(self.op, "Mask", counts, old, new)
            carried.append(self._carry(old, new, initial=self.initial.get(statistic.name)))
            if self.averages.rule is not None and self.averages.rule.statistics:
                carried.append(self._average_statistic(old, new, group))
        return carried

    def _average_statistic(self, old: ir.Value, new: ir.Value, group: int | None) -> Carried:
        average = self.op.input(AVERAGE.of(str(old.name)), self.optimizer.dtype, old.shape or [])
        wide = self._wide(new, _dtype(old))
        masks = self._counts(group) is not None or self.accumulator is not None
        moved = self.averages.moved(average, wide, self._is_on(group) if masks else None)
        return self._carry(average, moved, initial=old.name)

    def _gradient(self, parameter: Parameter, rule: Rule) -> ir.Value:
        """What is applied of a gradient, or what is added up first."""
        if self.accumulator is not None:
            return self.gradients[parameter.name]
        return self._prepared(parameter, rule)

    def _prepared(self, parameter: Parameter, rule: Rule) -> ir.Value:
        gradient = self.gradients[parameter.name]
        if not rule.grad_centralization:
            return gradient
        # The mean is over each row, so this one stage comes before flattening.
        return self.arithmetic.centralized(
            self.op,
            rule,
            self.packing.parameter(parameter.name),
            gradient,
            lambda value: self._wide(
                self.op.Reshape(value, [parameter.shape[0], -1]), parameter.dtype
            ),
            self.scale.factor(rule.group),
        )

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
        states = [
            self.op.input(kind.of(bucket.name), self.optimizer.dtype, bucket.shape)
            for kind in kinds
        ]
        made = variant(
            optimizer,
            rule,
            mask=self._masks,
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
            self._carry_parameters(bucket, old, new_w),
            *(
                self._carry_state(bucket, kind, state, new)
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
        views = [View(AVERAGE.of(p.name), p.shape, offset) for p, offset in bucket.offsets()]
        old = self.op.input(AVERAGE.of(bucket.name), self.optimizer.dtype, bucket.shape)
        on = self._is_on(bucket.rule.group) if self._masks else None
        moved = self.averages.moved(old, self._wide(new, bucket.dtype), on)
        return [self._carry(old, moved, views, initial=parameters.name)]

    def _carry_parameters(self, bucket: Bucket, old: ir.Value, new: ir.Value) -> Carried:
        views = [View(parameter.name, parameter.shape, at) for parameter, at in bucket.offsets()]
        carried = self._carry(old, new, views, initial=None)
        if views[0].name in self.initial:  # then all of them are, see `plan`
            carried = replace(carried, initial=joined(carried, self.initial))
        return carried

    def _carry_state(self, bucket: Bucket, kind: State, old: ir.Value, new: ir.Value) -> Carried:
        views = [View(kind.of(p.name), p.shape, offset) for p, offset in bucket.offsets()]
        return self._carry(old, new, views, initial=kind.start(self.optimizer))

    def _wide(self, value: ir.Value, dtype: str) -> ir.Value:
        """A value of a dtype in that of the arithmetic."""
        return value if dtype == self.optimizer.dtype else self.op.Cast(value, to=self.op.real)

    def _as(self, value: ir.Value, dtype: str) -> ir.Value:
        """A value of the arithmetic in the dtype of what it feeds."""
        if dtype == self.optimizer.dtype:
            return value
        return self.op.Cast(value, to=ir.DataType.from_numpy(np.dtype(dtype)))

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

    def _carry(
        self,
        value: ir.Value,
        new: ir.Value,
        views: Sequence[View] = (),
        *,
        initial: Array | float | str | None,
    ) -> Carried:
        """Let ``new`` feed the input ``value`` at the next step."""
        assert value.dtype is not None
        assert value.shape is not None
        name, shape = str(value.name), tuple(value.shape.numpy())
        output = self.op.output(new, f"{name}{NEXT}")
        output.dtype, output.shape = value.dtype, ir.Shape(shape)
        return Carried(
            name,
            f"{name}{NEXT}",
            shape,
            _dtype(value),
            tuple(views or [View(name, shape)]),
            initial,
        )


def _dtype(value: ir.Value) -> str:
    """NumPy's name of the element type of an input."""
    assert value.dtype is not None
    return value.dtype.numpy().name


def _waited(bucket: Bucket, gradient: ir.Value, gate: Gate | DeviceGate) -> ir.Value:
    """The gradient of a bucket in its shape, not there before the gate opens."""
    if bucket.rows is None or isinstance(gate, DeviceGate):
        return gate.flatten(gradient)
    return gate.cut(gradient, bucket.rows)
