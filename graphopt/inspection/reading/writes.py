"""What a graph hands from step to step, however it says so."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from graphopt.carried import NEXT
from graphopt.in_place import ACCUMULATOR
from graphopt.inspection.reading.dataflow import Dataflow, Value
from graphopt.inspection.reading.pattern import Any, Named, Op, is_counter, match
from graphopt.inspection.reading.update import recognised
from graphopt.manifest import Manifest
from graphopt.on_device.tensor_names import GRADIENT_BUFFER

_ACCUMULATOR = f"com.microsoft::{ACCUMULATOR}"


@dataclass(frozen=True)
class Write:
    """An input and its new value.

    Attributes:
        input: The input.
        new: Its value at the next step.
        output: The output that is the new value; None if the input is written in place.
        initial: What it starts from: "values", a number that fills it, or None if unknown.
        counter: Where two float32 numbers stand for an int64 scalar: that scalar, and its value at
            the next step.
    """

    input: Value
    new: Value
    output: str | None
    initial: float | str | None = None
    counter: tuple[Value, Value] | None = None


def writes(
    model: ir.Model, training: Sequence[onnx.TrainingInfoProto], flow: Dataflow
) -> list[Write]:
    """All of them: as ``training_info`` says, or the metadata, or the graph itself."""
    in_place = list(_in_place(flow))
    if in_place:
        return in_place
    initial = _initial(training)
    return [
        Write(flow.values[before], flow.values[after], after, initial.get(before))
        for before, after in _binding(model, training, flow).items()
        if before in flow.values and after in flow.values and flow.values[before].is_input
    ]


def gradient_buffers(flow: Dataflow) -> dict[str, Value]:
    """Where ONNX Runtime adds gradients up: what is added for each parameter, by its name."""
    return {
        buffer.name.removesuffix(GRADIENT_BUFFER): value
        for buffer, value, _ in _accumulated(flow)
        if buffer.name.endswith(GRADIENT_BUFFER)
    }


def _binding(
    model: ir.Model, training: Sequence[onnx.TrainingInfoProto], flow: Dataflow
) -> Mapping[str, str]:
    declared = {e.key: e.value for info in training for e in info.update_binding}
    return declared or _from_metadata(model) or _by_name(model) or _by_update(model, flow)


def _from_metadata(model: ir.Model) -> Mapping[str, str]:
    try:
        return Manifest.read(model, "update_binding").update_binding or {}
    except ValueError:
        return {}


def _by_name(model: ir.Model) -> Mapping[str, str]:
    inputs = {value.name for value in model.graph.inputs}
    names = (str(value.name) for value in model.graph.outputs)
    return {
        name.removesuffix(NEXT): name
        for name in names
        if name.endswith(NEXT) and name.removesuffix(NEXT) in inputs
    }


def _by_update(model: ir.Model, flow: Dataflow) -> Mapping[str, str]:
    """Outputs that are the new value of an input, by what they compute."""
    outputs = {str(v.name): flow.values[str(v.name)] for v in model.graph.outputs}
    by_value = {id(value.source): name for name, value in outputs.items()}
    binding = {}
    for name, value in outputs.items():
        update = recognised(value)
        if update is None or update.optimizer != "RMSProp":  # much looks like gradient descent
            continue
        made: list[tuple[Value | None, str | None]] = [(update.value("w"), name)]
        made += [(old, by_value.get(id(new.source))) for _, old, new in update.states()]
        for before, output in made:
            if before is not None and before.is_input and output is not None:
                binding[before.name] = output
    return binding


def _initial(training: Iterable[onnx.TrainingInfoProto]) -> dict[str, float | str]:
    """What the initialization starts each value from."""
    found: dict[str, float | str] = {}
    for info in training:
        found.update((tensor.name, "values") for tensor in info.initialization.initializer)
        for node in info.initialization.node:
            if node.op_type == "ConstantOfShape" and node.output:
                value = next((a.t for a in node.attribute if a.name == "value"), None)
                number = 0.0 if value is None else Value("", tensor=ir.from_proto(value)).number
                if number is not None:
                    found[node.output[0]] = number
            elif node.op_type == "Cast" and node.output:  # of what another value starts from
                found[node.output[0]] = "values"
    return found


def _in_place(flow: Dataflow) -> Iterator[Write]:
    """The inputs that the graph writes over, gradient buffers aside."""
    for buffer, value, overwrite in _accumulated(flow):
        if overwrite.number == 1.0 and buffer.is_input:
            yield Write(buffer, value, None, "values", _counter(flow, buffer, value))


def _counter(flow: Dataflow, numbers: Value, new: Value) -> tuple[Value, Value] | None:
    """The scalar that two numbers stand for, and the one that their new values stand for."""
    decoded = (o.outputs[0] for o in flow.operations if is_counter(o.outputs[0], numbers))
    whole = match(Op("Mod", Op("Div", Named("new", Any("any")), Any("powers")), Any("base")), new)
    held = next(decoded, None)
    return None if held is None or whole is None else (held, whole.value("new"))


def _accumulated(flow: Dataflow) -> Iterator[tuple[Value, Value, Value]]:
    """The buffers that are written in place, each with what is added, and whether it replaces."""
    for operation in flow.operations:
        if operation.op_type == _ACCUMULATOR and len(operation.inputs) >= 3:
            buffer, value, overwrite = operation.inputs[:3]
            if buffer is not None and value is not None and overwrite is not None:
                yield buffer, value, overwrite
