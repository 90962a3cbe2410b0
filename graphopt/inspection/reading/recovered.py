"""The optimizer of a graph, recovered from its nodes alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from graphopt.inspection.facts import GroupFacts, OptimizerFacts, ParameterFacts, Schedule
from graphopt.inspection.reading import rates
from graphopt.inspection.reading.accumulating import (
    Accumulating,
    accumulating,
    parts,
    sums,
    with_sum,
)
from graphopt.inspection.reading.averages import Averages, averages
from graphopt.inspection.reading.counters import Counters, counters
from graphopt.inspection.reading.dataflow import Dataflow, Value
from graphopt.inspection.reading.members import Member, listed, members
from graphopt.inspection.reading.metadata import Described
from graphopt.inspection.reading.pattern import Any, Number, Op, match
from graphopt.inspection.reading.scaling import UNSCALED
from graphopt.inspection.reading.trained import Trained, scaled, unchecked
from graphopt.inspection.reading.update import Update, gradient_of, recognised
from graphopt.inspection.reading.writes import Write
from graphopt.states import ACCUMULATION_COUNT, GLOBAL_STEP, MEAN_SQUARE, OF_PARAMETERS

_ADAMW = "com.microsoft::AdamWOptimizer"
_SGD = "com.microsoft::SGDOptimizerV2"


@dataclass(frozen=True)
class Recovered:
    """What the nodes say.

    Attributes:
        optimizer: The optimizer.
        groups: Parameters with the same rule.
        trained: The parameters, in the order of the writes.
        updates: The update of each bucket, by the name of its input.
        step: What counts the steps: an int64 scalar, or None.
        odd: Inputs whose update is not made as the first one is.
        unchecked: Parameters whose gradient may overflow unseen, where others are checked.
        counters: The loss scale and the counters beside the step.
        averages: Those of the parameters.
        accumulating: How many steps make an update.
    """

    optimizer: OptimizerFacts
    groups: tuple[GroupFacts, ...]
    trained: tuple[Trained, ...]
    updates: dict[str, Update]
    step: Value | None
    odd: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    counters: Counters = field(default_factory=Counters)
    averages: Averages = field(default_factory=Averages)
    accumulating: Accumulating = field(default_factory=Accumulating)


def recovered(
    flow: Dataflow, carried: Sequence[Write], metadata: Described | None = None
) -> Recovered | None:
    """The optimizer that the nodes of a graph are; None if there is none that is known.

    Args:
        flow: The flow of values.
        carried: What is handed from step to step.
        metadata: For the names of parameters that have none in the graph any more.
    """
    step = _step(flow, carried)
    several = accumulates(carried)
    found = _found(carried, unscales=True, accumulates=several)
    if len({update.number("loss_scale", 1.0) for _, update in found}) > 1:
        # A gradient that ends in a division, by the size of the batch for example.
        found = _found(carried, unscales=False)
    found = _without_other_optimizers(flow, carried, found)
    if several:
        of = sums(carried)
        found = [(write, with_sum(update, of.get(write.input.name))) for write, update in found]
    if found:
        reader = _Reader(step, metadata, carried)
        trained = [
            parameter for write, update in found for parameter in reader.parameters(write, update)
        ]
        return _assembled(trained, [update for _, update in found], carried, step)
    inner = updates_of_sequences(flow)
    if inner:
        return _assembled([], inner, carried, step)
    fused = _fused(flow)
    return None if fused is None else Recovered(fused, (), (), {}, step)


def accumulates(carried: Sequence[Write]) -> bool:
    """Whether gradients are added up over several steps."""
    return any(write.input.name == ACCUMULATION_COUNT.name for write in carried)


def _found(
    carried: Sequence[Write], *, unscales: bool, accumulates: bool = False
) -> list[tuple[Write, Update]]:
    """The updates that move the inputs that they are written to."""
    updates = (
        (write, recognised(write.new, unscales=unscales, accumulates=accumulates))
        for write in carried
    )
    return [(w, update) for w, update in updates if update and update.value("w") is w.input]


def _without_other_optimizers(
    flow: Dataflow, carried: Sequence[Write], found: list[tuple[Write, Update]]
) -> list[tuple[Write, Update]]:
    """Those that are no gradient descent of a state, or along something that depends on one.

    The step of any optimizer looks like a gradient; that of Adam depends on its states.
    """
    if all(update.optimizer != "SGD" for _, update in found):
        return found
    states = {id(old) for _, update in found for _, old, _ in update.states()}
    found = [(write, update) for write, update in found if id(write.input) not in states]
    known = states | {id(update.value("w")) for _, update in found}
    others = {
        id(write.input)
        for write in carried
        if id(write.input) not in known and write.input.dtype != "int64"
    }
    after = flow.after(others)
    return [
        (write, update)
        for write, update in found
        if update.optimizer != "SGD" or id(update.value("gradient")) not in after
    ]


class _Reader:
    """Reads parameters out of updates, each schedule once."""

    def __init__(
        self, step: Value | None, metadata: Described | None, carried: Sequence[Write]
    ) -> None:
        self._step = step
        self._carried = {write.input.name: write.input for write in carried}
        self._listed = {} if metadata is None else listed(metadata.buckets, metadata.parameters)
        self._known: dict[int, Schedule] = {}

    def parameters(self, write: Write, update: Update) -> list[Trained]:
        """Those of a bucket."""
        names = self._listed.get(write.input.name)
        found = members(write.input, update, names)
        states, of_sum = self._states(write.input.name, update), parts(update)
        return [
            self._parameter(write, update, member, states, of_sum.get(place))
            for place, member in enumerate(found)
        ]

    def _parameter(
        self,
        write: Write,
        update: Update,
        member: Member,
        states: Mapping[str, int],
        applied: Value | None,
    ) -> Trained:
        gradient = None if member.gradient is None else gradient_of(member.gradient)
        total, share = update.value("sum"), update.value("share")
        if gradient is not None and applied is not None:
            own = gradient_of(applied, adds_up=True)
            total, share = own.value, own.share
            scaling = replace(own.scaling, loss_scale=update.scaling.loss_scale)
            gradient = replace(own, value=gradient.value, scaling=scaling)
        factor = update.value("k")
        if factor is None and gradient is not None:
            factor = gradient.factor
        rate = update.value("lr")
        dtype = write.input.dtype or "float32"
        size = int(np.prod(member.shape, dtype=np.int64))
        facts = ParameterFacts(
            name=member.name,
            shape=member.shape,
            dtype=dtype,
            learning_rate=None if rate is None else self._rate(update, rate),
            weight_decay=self._weight_decay(update, factor, rate),
            grad_centralization=gradient is not None and gradient.centralized,
            states=tuple(states),
            bytes=size * np.dtype(dtype).itemsize,
            state_bytes=size * sum(states.values()),
            gradient=None if gradient is None else gradient.value.name,
            bucket=write.input.name,
        )
        if gradient is None:
            return Trained(facts, update, write, None, rate, factor, update.scaling)
        scaling = update.scaling if gradient.scaling == UNSCALED else gradient.scaling
        return Trained(facts, update, write, gradient.value, rate, factor, scaling, total, share)

    def _states(self, bucket: str, update: Update) -> dict[str, int]:
        """The states of a bucket, and the bytes of an element.

        One on which the parameters do not depend is known by its name.
        """
        found = {state: old for state, old, _ in update.states()}
        kept = ((s, found.get(s) or self._carried.get(s.of(bucket))) for s in OF_PARAMETERS)
        return {
            state.name: np.dtype(old.dtype or state.dtype).itemsize for state, old in kept if old
        }

    def _schedule(self, value: Value) -> Schedule:
        if id(value) not in self._known:
            self._known[id(value)] = rates.schedule_of(value, self._step)
        return self._known[id(value)]

    def _rate(self, update: Update, rate: Value) -> Schedule:
        schedule = self._schedule(rate)
        negative = update.has("negative_rate") and isinstance(schedule, float | int)
        return -schedule if negative else schedule  # type: ignore[operator]

    def _weight_decay(self, update: Update, factor: Value | None, rate: Value | None) -> Schedule:
        """The weight decay, of which the factor may be as large as the loss scale says."""
        if factor is None:
            return _folded_decay(update, rate)
        scale = 1.0 if update.has("decoupled") else update.number("loss_scale", 1.0)
        number = factor.source.number
        if number is not None:
            return without_factor(number, scale)
        found = match(Op("Mul", Any("schedule"), Number("scale")), factor)
        if found is not None and found["scale"] == scale != 1:
            return self._schedule(found.value("schedule"))
        return self._schedule(factor)


def _folded_decay(update: Update, rate: Value | None) -> Schedule:
    """A weight decay that has been multiplied by the learning rate, or none."""
    product = 1 - update.number("kept", 1.0) if update.has("kept") else update.number("lr_k", 0.0)
    if not product:
        return 0.0
    number = None if rate is None else rate.source.number
    return without_factor(float(f"{product:.7g}"), abs(number)) if number else None


def without_factor(product: float, factor: float) -> float:
    """The shortest decimal of which the product with a factor is this number in float32."""
    for digits in range(1, 10):
        candidate = float(f"{product / factor:.{digits}g}")
        if np.float32(candidate * factor) == np.float32(product):
            return candidate
    return product / factor


def _assembled(
    trained: Sequence[Trained],
    updates: Sequence[Update],
    carried: Sequence[Write],
    step: Value | None,
) -> Recovered:
    """Parameters with the same rule become a group."""
    masks = [parameter.update.condition.entry for parameter in trained]
    rules = [
        repr((parameter.facts.learning_rate, parameter.facts.weight_decay, mask))
        for parameter, mask in zip(trained, masks, strict=True)
    ]
    order = dict(zip(rules, masks, strict=True))
    if None not in masks and len(set(masks)) == len(order):
        # As the input ``group_mask`` counts them.
        order = dict(sorted(order.items(), key=lambda item: item[1] or 0))
    number = {rule: index for index, rule in enumerate(order)}
    groups: list[list[Trained]] = [[] for _ in order]
    numbered = []
    for parameter, rule in zip(trained, rules, strict=True):
        facts = replace(parameter.facts, group=number[rule])
        numbered.append(replace(parameter, facts=facts))
        groups[number[rule]].append(numbered[-1])
    by_bucket = {parameter.write.input.name: parameter.update for parameter in numbered}
    made = {p.write.input.name: (_made(p.update), p.scaling.kind) for p in reversed(numbered)}
    first = made[numbered[0].write.input.name] if numbered else None
    scale = numbered[0].scaling.loss_scale if numbered else None
    counted = counters(carried, scale)
    kept = averages(carried, list(by_bucket), step)
    steps = accumulating(carried, numbered)
    optimizer = replace(_optimizer(updates, carried), average=kept.rule, accumulation=steps.rule)
    return Recovered(
        scaled(optimizer, numbered, counted),
        tuple(_group(members, step) for members in groups),
        tuple(numbered),
        by_bucket,
        step,
        tuple(name for name in by_bucket if made[name] != first),
        unchecked(numbered),
        counted,
        kept,
        steps,
    )


def _made(update: Update) -> tuple[object, ...]:
    """What all updates of an optimizer have in common."""
    numbers = (update.number(name, 0.0) for name in ("decay", "momentum", "epsilon"))
    marks = ("centered", "nesterov", "epsilon_outside", "rate_outside", "guarded")
    scale = update.number("loss_scale", 1.0)
    skips = bool(update.condition.finite)
    return (update.optimizer, *numbers, scale, skips, *(update.has(mark) for mark in marks))


def _group(members: Sequence[Trained], step: Value | None) -> GroupFacts:
    first = members[0]
    return GroupFacts(
        parameters=tuple(parameter.facts.name for parameter in members),
        learning_rate=first.facts.learning_rate,
        weight_decay=first.facts.weight_decay,
        grad_centralization=any(parameter.facts.grad_centralization for parameter in members),
        curve=() if first.rate is None else rates.curve(first.rate, step, None),
    )


def _optimizer(updates: Sequence[Update], carried: Sequence[Write]) -> OptimizerFacts:
    first = updates[0]
    if first.optimizer == "SGD":
        return OptimizerFacts("SGD", "graph", momentum=first.number("momentum", 0.0))
    momentum = first.number("momentum", 0.0)
    centered = first.has("centered")
    return OptimizerFacts(
        name="RMSProp",
        source="graph",
        decay=first.number("decay", 0.0),
        momentum=momentum,
        epsilon=first.number("epsilon", 0.0),
        centered=centered,
        loss_scale=first.number("loss_scale", 1.0),
        epsilon_inside_root=not first.has("epsilon_outside"),
        initial_mean_square=_initial_mean_square(updates, carried),
        learning_rate_inside_moment=not (momentum and first.has("rate_outside")),
        decoupled_weight_decay=any(update.has("decoupled") for update in updates),
        nesterov=first.has("nesterov"),
        group_mask=any(_is_masked(update) for update in updates),
        guarded=all(update.has("guarded") for update in updates) if centered else None,
    )


def _is_masked(update: Update) -> bool:
    """Whether anything but an overflow keeps parameters as they are."""
    condition = update.condition
    return condition.mask is not None or bool(condition.others)


def _initial_mean_square(updates: Sequence[Update], carried: Sequence[Write]) -> float | None:
    states = {id(update.value(MEAN_SQUARE.symbol)) for update in updates}
    starts = {write.initial for write in carried if id(write.input) in states}
    found = starts.pop() if len(starts) == 1 else None
    return found if isinstance(found, float) else None


def _step(flow: Dataflow, carried: Sequence[Write]) -> Value | None:
    """What counts the steps, as an int64 scalar."""
    inputs = (write.input for write in carried)
    counters = [value for value in inputs if value.dtype == "int64" and value.shape == ()]
    if counters:
        return min(counters, key=lambda value: value.name != GLOBAL_STEP.name)
    for name in (GLOBAL_STEP.name, "step"):
        value = flow.values.get(name)
        if value is not None and value.is_input:
            return value if name == GLOBAL_STEP.name and value.dtype == "int64" else _counted(value)
    return None


def _counted(numbers: Value) -> Value | None:
    """The scalar that is computed from an input of another shape or type."""
    for reader in numbers.readers:
        if reader.op_type == "Sub":  # ONNX Runtime counts from 1
            return reader.outputs[0]
        for product in (value for value in reader.outputs if reader.op_type == "Cast"):
            for multiplied in (r for r in product.readers if r.op_type == "Mul"):
                for total in multiplied.outputs[0].readers:
                    if total.op_type == "ReduceSum":
                        return total.outputs[0]
    return None


def updates_of_sequences(flow: Dataflow) -> list[Update]:
    """The updates of a model that gets its parameters as sequences, so that no input is one."""
    if not any(operation.op_type == "SequenceAt" for operation in flow.operations):
        return []
    candidates = (o.outputs[0] for o in flow.operations if o.op_type == "Sub" and o.outputs)
    found = (recognised(candidate) for candidate in candidates)
    return [update for update in found if update is not None and update.optimizer == "RMSProp"]


def _fused(flow: Dataflow) -> OptimizerFacts | None:
    """An optimizer that is one operator of ONNX Runtime."""
    for operation in flow.operations:
        if operation.op_type == _ADAMW:
            others = {name: operation.number(name, 0.0) for name in ("alpha", "beta", "epsilon")}
            others |= {
                name: operation.number(name, 0.0)
                for name in ("weight_decay", "adam_mode", "correct_bias")
                if name in operation.attributes
            }
            return OptimizerFacts("AdamW", "graph", epsilon=others["epsilon"], others=others)
        if operation.op_type == _SGD:
            return OptimizerFacts("SGD", "graph", momentum=0.0)
    return None
