"""What rounding and overflow do to an update that is right in exact arithmetic."""

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.inspection.hazards.hazard import Finding, Subject, hazard
from graphopt.inspection.reading.dataflow import Operation, Value
from graphopt.operators import of

_OVERFLOW_CHECKS = {"IsInf", "IsNaN"}
# What batch normalization is in forward passes: ONNX's, and ONNX Runtime's for training.
_NORMALIZATION = {
    "BatchNormalization",
    "com.microsoft::BatchNormInternal",
    "com.microsoft::BatchNormalizationInternal",
}
# What else may read the value that it normalizes.
_BESIDE_IT = {"ReduceMean", "Shape", "Size", "Sub"}

_QUANTIZING = {"DequantizeLinear", "QuantizeLinear"}


@hazard("unguarded-centered", "warning")
def unguarded_centered(subject: Subject) -> Iterator[Finding]:
    """A radicand that is not positive gives NaN."""
    if subject.recovered is not None:
        yield Finding(
            [
                bucket
                for bucket, update in subject.recovered.updates.items()
                if update.has("centered") and not update.has("guarded")
            ],
            "the mean square minus the square of the mean gradient may be negative by rounding; "
            "its root then is NaN, which stays in the parameter for ever",
            "keep parameter and moment where the denominator is not greater than 0",
        )


@hazard("loss-scale-unchecked", "warning", "note")
def loss_scale_unchecked(subject: Subject) -> Iterator[Finding]:
    """Nothing looks for overflow; a note without float16, where a loss scale has no use."""
    recovered = subject.recovered
    if recovered is None or recovered.optimizer.loss_scale in (None, 1.0):
        return
    if recovered.optimizer.skip_on_overflow:
        return
    gradients = {id(t.gradient) for t in recovered.trained if t.gradient is not None}
    computed = subject.flow.after(gradients) | gradients
    if any(
        operation.op_type in _OVERFLOW_CHECKS and id(operation.inputs[0]) in computed
        for operation in subject.flow.operations
        if operation.inputs
    ):
        return
    halves = any(trained.facts.dtype == "float16" for trained in recovered.trained)
    casts = (operation for operation in subject.flow.operations if operation.op_type == "Cast")
    if halves or any(cast.number("to", 0) == ir.DataType.FLOAT16 for cast in casts):
        yield Finding(
            ["loss_scale"],
            "a gradient that overflows float16 becomes infinite, and nothing keeps it from "
            "parameters and states",
            "build it with skip_on_overflow=True, or with loss_scale=DynamicLossScale()",
        )
    else:
        yield Finding(
            ["loss_scale"],
            "nothing looks for gradients that overflow; a loss scale is of use in float16 alone",
            "leave loss_scale at 1.0",
            "note",
        )


@hazard("float16-unscaled", "warning")
def float16_unscaled(subject: Subject) -> Iterator[Finding]:
    """Gradients are computed in float16 without a loss scale, and small ones become 0."""
    recovered = subject.recovered
    if recovered is None or recovered.optimizer.loss_scale not in (None, 1.0):
        return
    yield Finding(
        [
            operation.outputs[0].name
            for operation in subject.flow.operations
            if operation.op_type == "Cast"
            and operation.number("to", 0) == ir.DataType.FLOAT16
            and subject.stages[operation.node] == "backward"
        ],
        "what is smaller than 3e-8 becomes 0 in float16, and loses digits below 6e-5",
        "build it with loss_scale=DynamicLossScale(), or with precision='bfloat16'",
    )


@hazard("unchecked-gradient", "error")
def unchecked_gradient(subject: Subject) -> Iterator[Finding]:
    """Steps with gradients that overflow are skipped, but for those of some parameters."""
    if subject.recovered is not None:
        yield Finding(
            subject.recovered.unchecked,
            "its gradient may be infinite or NaN and the step is made, though steps that overflow "
            "are to be skipped",
            "build the graph again; whoever changed it left it out of the check",
        )


@hazard("growth-each-step", "warning")
def growth_each_step(subject: Subject) -> Iterator[Finding]:
    """A dynamic loss scale grows after each step that does not overflow."""
    merged = subject.merged.optimizer
    scale = None if merged is None else merged.dynamic_loss_scale
    if scale is not None and scale.get("growth_interval") == 1 and scale.get("ceiling") is None:
        yield Finding(
            ["loss_scale"],
            "it grows after each step, so that gradients overflow and steps are skipped again and "
            "again",
            "choose a growth_interval of hundreds or thousands of steps, or a ceiling",
        )


@hazard("noise-gradient", "note")
def noise_gradient(subject: Subject) -> Iterator[Finding]:
    """A bias stands before batch normalization, so that its gradient is rounding error."""
    if subject.carried:
        names = [parameter.name for parameter in subject.merged.parameters]
        yield Finding(
            [name for name in names if _is_before_normalization(subject, name)],
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
    place = of(reader.op_type).bias
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
    forward = [reader for reader in value.readers if subject.stages[reader.node] == "forward"]
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


@hazard("quantized-fusion", "note")
def quantized_fusion(subject: Subject) -> Iterator[Finding]:
    """Operators between DequantizeLinear and QuantizeLinear may be computed in integers."""
    if subject.carried:
        yield Finding(
            [
                operation.outputs[0].name
                for operation in subject.flow.operations
                if _is_between_quantizations(operation)
            ],
            "ONNX Runtime computes it in integers, unless a gradient reads a value in between; a "
            "result may then be another by one step of its scale, and the loss with it",
            "with session options of your own, set the entry session.disable_quant_qdq to 1, as a "
            "Session without them does",
        )


def _is_between_quantizations(operation: Operation) -> bool:
    if operation.op_type in _QUANTIZING or len(operation.outputs) != 1:
        return False
    sources = [value.source.operation for value in operation.inputs if value is not None]
    readers = {reader.op_type for reader in operation.outputs[0].readers}
    is_dequantized = any(s is not None and s.op_type == "DequantizeLinear" for s in sources)
    return is_dequantized and readers == {"QuantizeLinear"}
