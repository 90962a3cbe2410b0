"""What goes wrong with a training graph, or may: one function a hazard.

| kind | level | |
|---|---|---|
| metadata-differs | error | the metadata says something else than the nodes compute |
| mixed-updates | error | parameters are updated by different formulas or hyperparameters |
| no-gradient | error | nothing updates a trained parameter, or its gradient is a constant |
| state-not-carried | error | what the update computes for a state does not feed it again |
| epsilon-too-small | error, warning | epsilon is zero, or less than a normal number, in its dtype |
| schedule-too-short | error, warning, note | the learning rate ends before the planned steps |
| above-target | error | the target does not know the opset or the file format |
| early-write | error, note | an input may be overwritten before all that read it have run |
| metadata-damaged | warning | the metadata cannot be read |
| unknown-update | warning | a value is carried by a formula that is not known |
| no-group | warning | a parameter is updated, but in no group |
| unstable | warning | a decay or momentum of 1 or more: what it averages grows |
| unguarded-centered | warning | centered, and a radicand that is not positive gives NaN |
| loss-scale-unchecked | warning, note | nothing looks for overflow; a note without float16 |
| noise-gradient | note | a bias before batch normalization, whose gradient is rounding error |
| not-trained | note | a weight is not given to the optimizer |
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from graphopt.inspection.facts import LEVELS, Hazard, Level, Stage, StateFacts
from graphopt.inspection.reading.dataflow import Dataflow, Operation, Value
from graphopt.inspection.reading.merged import Merged
from graphopt.inspection.reading.rates import schedule_steps
from graphopt.inspection.reading.recovered import KINDS, Recovered
from graphopt.inspection.reading.writes import Write

_MOST = 50  # names in one hazard

# What batch normalization is in forward passes: ONNX's, and ONNX Runtime's for training.
_NORMALIZATION = {
    "BatchNormalization",
    "com.microsoft::BatchNormInternal",
    "com.microsoft::BatchNormalizationInternal",
}
# What else may read the value that it normalizes.
_BESIDE_IT = {"ReduceMean", "Shape", "Size", "Sub"}
_BIAS_INPUTS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
# These read a shape, not values.
_SHAPE_ONLY = {"Shape", "Size"}
_OVERFLOW_CHECKS = {"IsInf", "IsNaN"}


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        model: The model.
        flow: Its flow of values.
        carried: What it hands from step to step.
        recovered: The optimizer in its nodes.
        merged: The optimizer.
        frozen: Initializers that could be trained.
        stages: The stage of each node.
        steps: The number of planned steps, if it is known.
        above_target: What the target does not know.
        damage: What is wrong with the metadata.
        buffers: The parameters for whose gradients ONNX Runtime has a buffer.
        early: Inputs that may be overwritten before all that read them have run.
        state: What is carried, and what each is.
        in_place: Whether nodes write over inputs, or outputs have memory of their own.
    """

    model: onnx.ModelProto
    flow: Dataflow
    carried: Sequence[Write]
    recovered: Recovered | None
    merged: Merged
    frozen: Sequence[str] = ()
    stages: Sequence[Stage] = ()
    steps: int | None = None
    above_target: Sequence[str] = ()
    damage: str | None = None
    buffers: Mapping[str, Value] | None = None
    early: Sequence[str] = ()
    state: Sequence[StateFacts] = ()
    in_place: bool = False


def hazards(subject: Subject) -> tuple[Hazard, ...]:
    """All that are found, the worst first."""
    found = [hazard for check in _CHECKS for hazard in check(subject)]
    return tuple(sorted(found, key=lambda hazard: LEVELS.index(hazard.level)))


def _metadata_differs(subject: Subject) -> Iterator[Hazard]:
    if subject.merged.differences:
        yield _hazard(
            "metadata-differs",
            "error",
            ["metadata"],
            f"{'; '.join(subject.merged.differences[:5])}: the nodes are what runs",
            "build the graph again; whoever changed it did not change both",
        )


def _metadata_damaged(subject: Subject) -> Iterator[Hazard]:
    if subject.damage:
        yield _hazard(
            "metadata-damaged",
            "warning",
            ["metadata"],
            subject.damage,
            "build the graph again; what is shown was read in the nodes",
        )


def _mixed_updates(subject: Subject) -> Iterator[Hazard]:
    odd = subject.recovered.odd if subject.recovered is not None else ()
    if odd:
        yield _hazard(
            "mixed-updates",
            "error",
            odd,
            "it is updated with other hyperparameters than the first, or by another formula; "
            "what is shown are those of the first",
            "build the graph again",
        )


def _no_gradient(subject: Subject) -> Iterator[Hazard]:
    buffers = subject.buffers or {}
    written = _written(subject)
    missing = [
        name for name in subject.merged.not_updated if name not in buffers and name not in written
    ]
    if missing and (subject.carried or buffers):
        yield _hazard(
            "no-gradient",
            "error",
            missing,
            "the metadata lists it as trained, and no node updates it",
            "build the graph again, or leave it out of the optimizer",
        )
    if subject.recovered is None:
        return
    moving = _dependent(subject.flow)
    constant = [
        trained.facts.name
        for trained in subject.recovered.trained
        if trained.gradient is None or id(trained.gradient) not in moving
    ]
    if constant:
        yield _hazard(
            "no-gradient",
            "error",
            constant,
            "its gradient is a constant: it depends on nothing that is fed or trained",
            "let the loss depend on it, or leave it out of the optimizer",
        )


def _dependent(flow: Dataflow) -> set[int]:
    """The values that depend on the values of some input."""
    found = {id(value) for value in flow.values.values() if value.is_input}
    for operation in flow.operations:
        if operation.op_type not in _SHAPE_ONLY and any(
            operand is not None and (operand.is_input or id(operand) in found)
            for operand in operation.inputs
        ):
            found.update(id(value) for value in operation.outputs)
    return found


def _written(subject: Subject) -> set[str]:
    """The parameters of the metadata that are in a value that is carried."""
    carried = {write.input.name for write in subject.carried}
    inside = {name for name, bucket in subject.merged.buckets.items() if bucket in carried}
    return carried | inside


def _unknown_update(subject: Subject) -> Iterator[Hazard]:
    written = _written(subject)
    unknown = [name for name in subject.merged.not_updated if name in written]
    if subject.recovered is not None and subject.recovered.trained:
        unknown += [state.input for state in subject.state if _is_unknown(state)]
    if unknown and subject.carried:
        yield _hazard(
            "unknown-update",
            "warning",
            list(dict.fromkeys(unknown)),
            "the formula of its new value is not known: what is shown of its update is what the "
            "metadata says, if anything",
            "compare it with what was built (graphopt verify)",
        )


def _is_unknown(state: StateFacts) -> bool:
    return state.kind == "other" and state.dtype.startswith(("float", "bfloat"))


def _no_group(subject: Subject) -> Iterator[Hazard]:
    if subject.merged.in_no_group:
        yield _hazard(
            "no-group",
            "warning",
            subject.merged.in_no_group,
            "it is updated, but in no group of the metadata: no one sets its learning rate",
            "put it into a group, and build the graph again",
        )


def _not_trained(subject: Subject) -> Iterator[Hazard]:
    if subject.frozen and subject.recovered is not None and subject.recovered.trained:
        yield _hazard(
            "not-trained",
            "note",
            subject.frozen,
            "the optimizer does not have it, so it stays as it is",
            "if it is to be trained, give it to the optimizer",
        )


def _unstable(subject: Subject) -> Iterator[Hazard]:
    facts = subject.merged.optimizer
    if facts is None or subject.recovered is None:
        return
    for name, value in (("decay", facts.decay), ("momentum", facts.momentum)):
        if value is not None and value >= 1:
            yield _hazard(
                "unstable",
                "warning",
                [name],
                f"{name} is {value:g}: what it averages never forgets, and grows",
                f"take a {name} below 1",
            )


def _state_not_carried(subject: Subject) -> Iterator[Hazard]:
    if subject.recovered is None:
        return
    writes = {id(write.input): write for write in subject.carried}
    lost = []
    for bucket, update in subject.recovered.updates.items():
        for letter, kind in KINDS.items():
            old, new = update.value(letter), update.value(f"{letter}1")
            if old is None or (letter == "m" and new is None):
                continue
            write = writes.get(id(old.source))
            if write is None or not _computes(write.new, new, old):
                lost.append(f"{kind}.{bucket}")
    if lost:
        yield _hazard(
            "state-not-carried",
            "error",
            lost,
            "what the update computes for it does not feed it at the next step",
            "make its new value an output, and bind it in training_info.update_binding",
        )


def _computes(value: Value, wanted: Value | None, old: Value) -> bool:
    """Whether a value is another one, or a choice between that and the old one."""
    source = value.source
    if wanted is None or source is wanted.source:
        return wanted is not None
    operation = source.operation
    if operation is None or operation.op_type != "Where":
        return False
    operands = {id(operand.source) for operand in operation.inputs[1:] if operand is not None}
    return operands == {id(wanted.source), id(old.source)}


def _early_write(subject: Subject) -> Iterator[Hazard]:
    if not subject.early:
        return
    if subject.in_place:
        yield _hazard(
            "early-write",
            "error",
            subject.early,
            "a node writes over it, perhaps before all that read it have run: ONNX Runtime runs "
            "nodes in any order that their inputs allow",
            "let the node that writes depend on every node that reads",
        )
    else:
        yield _hazard(
            "early-write",
            "note",
            subject.early,
            "its new value may be there before all that read the old one have run",
            "keep input and output in different memory, or let the output depend on every reader",
        )


def _epsilon_too_small(subject: Subject) -> Iterator[Hazard]:
    recovered = subject.recovered
    if recovered is None or recovered.optimizer.name != "RMSProp":
        return
    said = subject.merged.optimizer.epsilon if subject.merged.optimizer else None
    for dtype, buckets in _arithmetic(recovered).items():
        epsilon = recovered.optimizer.epsilon if said is None else said
        if epsilon is None:
            continue
        smallest = float(np.finfo(dtype).smallest_normal)
        with np.errstate(under="ignore"):
            kept = float(np.dtype(dtype).type(epsilon))
        fix = f"take an epsilon of {smallest:.2g} or more"
        if epsilon == 0:
            why = "there is no epsilon: a gradient of 0 divides by 0"
            fix = "take a larger epsilon, or leave out the tool that took it for 0 and away"
        elif kept == 0:
            why = f"epsilon {epsilon:g} is 0 in {dtype}: a gradient of 0 divides by 0"
        elif kept < smallest:
            why = (
                f"epsilon {epsilon:g} is no normal number in {dtype}, and 0 where the processor "
                "rounds such numbers to 0"
            )
        else:
            continue
        yield _hazard(
            "epsilon-too-small",
            "warning" if kept else "error",
            buckets,
            why,
            fix,
        )


def _arithmetic(recovered: Recovered) -> Mapping[str, list[str]]:
    """The buckets by the dtype in which epsilon is added."""
    found: dict[str, list[str]] = {}
    for bucket, update in recovered.updates.items():
        state = update.value("s")
        dtype = (state.dtype if state is not None else None) or "float32"
        found.setdefault(dtype if dtype in ("float16", "float64") else "float32", []).append(bucket)
    return found or {"float32": ["epsilon"]}


def _schedule_too_short(subject: Subject) -> Iterator[Hazard]:
    for index, group in enumerate(subject.merged.groups):
        last, schedule = schedule_steps(group.learning_rate), group.learning_rate
        kind = schedule["schedule"] if isinstance(schedule, Mapping) else ""
        if subject.steps is None or kind in ("", "WarmUpLR"):
            continue
        end = group.curve[-1][1] if group.curve else None
        if last is None and end == 0:
            last = next(step for step, rate in group.curve if rate == 0)
        if last is None or last >= subject.steps:
            continue
        level: Level = "note"
        why = f"the learning rate is the same from step {last} on, and {subject.steps} are planned"
        if kind == "list":
            level = "error"
            why = (
                f"there are learning rates for {last} steps, and {subject.steps} are planned: the "
            )
            why += "next step fails"
        elif end == 0:
            level = "warning"
            why = f"the learning rate is 0 from step {last} on, and {subject.steps} are planned: "
            why += "nothing moves any more"
        yield _hazard(
            "schedule-too-short",
            level,
            [f"group {index}"],
            why,
            "make the schedule as long as the training, or end it with a rate > 0",
        )


def _above_target(subject: Subject) -> Iterator[Hazard]:
    if subject.above_target:
        yield _hazard(
            "above-target",
            "error",
            ["model"],
            "; ".join(subject.above_target),
            "export the forward model with a lower opset, or run a newer ONNX Runtime",
        )


def _unguarded_centered(subject: Subject) -> Iterator[Hazard]:
    if subject.recovered is None:
        return
    unguarded = [
        bucket
        for bucket, update in subject.recovered.updates.items()
        if update.has("centered") and not update.has("guarded")
    ]
    if unguarded:
        yield _hazard(
            "unguarded-centered",
            "warning",
            unguarded,
            "the mean square minus the square of the mean gradient may be negative by rounding; "
            "its root then is NaN, which stays in the parameter for ever",
            "keep parameter and moment where the denominator is not greater than 0",
        )


def _loss_scale_unchecked(subject: Subject) -> Iterator[Hazard]:
    recovered = subject.recovered
    if recovered is None or recovered.optimizer.loss_scale in (None, 1.0):
        return
    gradients = {id(t.gradient) for t in recovered.trained if t.gradient is not None}
    computed = subject.flow.after(gradients) | gradients
    if any(
        operation.op_type in _OVERFLOW_CHECKS and id(operation.inputs[0]) in computed
        for operation in subject.flow.operations
        if operation.inputs
    ):
        return
    narrow = any(
        trained.facts.dtype == "float16" for trained in recovered.trained
    ) or _casts_to_float16(subject.flow.operations)
    if narrow:
        level: Level = "warning"
        why = (
            "a gradient that overflows float16 becomes infinite, and nothing keeps it from "
            "parameters and states"
        )
        fix = "look at the loss, and go back to a checkpoint with a smaller loss scale if it is NaN"
    else:
        level = "note"
        why = "nothing looks for gradients that overflow; in float32 a loss scale has no use"
        fix = "leave loss_scale at 1.0"
    yield _hazard("loss-scale-unchecked", level, ["loss_scale"], why, fix)


def _casts_to_float16(operations: Sequence[Operation]) -> bool:
    return any(
        operation.op_type == "Cast"
        and "to" in operation.attributes
        and operation.attributes["to"].i == onnx.TensorProto.FLOAT16
        for operation in operations
    )


def _noise_gradient(subject: Subject) -> Iterator[Hazard]:
    names = [parameter.name for parameter in subject.merged.parameters]
    noisy = [name for name in names if _is_before_normalization(subject, name)]
    if noisy and subject.carried:
        yield _hazard(
            "noise-gradient",
            "note",
            noisy,
            "it is a bias before batch normalization, which subtracts it again: its gradient is "
            "nothing but rounding error, of which RMSProp makes steps of up to full size where "
            "epsilon is smaller than its square",
            "build the layer without it, or leave it out of the optimizer",
        )


def _is_before_normalization(subject: Subject, name: str) -> bool:
    values = subject.flow.values
    return any(
        value is not None and _is_normalized(subject, _biased(reader, value))
        for value in (values.get(name), values.get(f"{name}/shaped"))
        for reader in (value.readers if value is not None else ())
    )


def _biased(reader: Operation, bias: Value) -> Value | None:
    """What a node computes by adding a bias to each channel."""
    place = _BIAS_INPUTS.get(reader.op_type)
    is_bias = place is not None and len(reader.inputs) > place and reader.inputs[place] is bias
    is_added = reader.op_type == "Add" and _is_of_channels(bias)
    return reader.outputs[0] if (is_bias or is_added) and reader.outputs else None


def _is_of_channels(bias: Value) -> bool:
    """Whether all axes but one have a single element."""
    shape = bias.shape
    return shape is not None and len([size for size in shape if size != 1]) == 1


def _is_normalized(subject: Subject, value: Value | None) -> bool:
    """Whether nothing but batch normalization by the batch reads a value in the forward pass."""
    if value is None:
        return False
    forward = [
        reader
        for reader in value.readers
        if not subject.stages or subject.stages[reader.node] == "forward"
    ]
    normalizations = [reader for reader in forward if _by_the_batch(reader, value)]
    others = {reader.op_type for reader in forward if reader not in normalizations}
    return bool(normalizations) and others <= _BESIDE_IT


def _by_the_batch(reader: Operation, value: Value) -> bool:
    """Whether a node is a batch normalization of a value by its own mean."""
    if reader.op_type not in _NORMALIZATION or reader.inputs[0] is not value:
        return False
    if reader.op_type != "BatchNormalization" or reader.number("training_mode", 0.0):
        return True
    mean = reader.inputs[3] if len(reader.inputs) > 3 else None
    computed = mean.source.operation if mean is not None else None
    return computed is not None and computed.op_type == "ReduceMean" and computed.inputs[0] is value


def _hazard(kind: str, level: Level, where: Sequence[str], why: str, fix: str) -> Hazard:
    names = tuple(where[:_MOST])
    if len(where) > _MOST:
        names += (f"and {len(where) - _MOST} more",)
    return Hazard(kind, level, names, why, fix)


_CHECKS: tuple[Callable[[Subject], Iterator[Hazard]], ...] = (
    _metadata_differs,
    _metadata_damaged,
    _mixed_updates,
    _no_gradient,
    _no_group,
    _not_trained,
    _unknown_update,
    _unstable,
    _state_not_carried,
    _early_write,
    _epsilon_too_small,
    _schedule_too_short,
    _above_target,
    _unguarded_centered,
    _loss_scale_unchecked,
    _noise_gradient,
)
