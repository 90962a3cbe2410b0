"""A forward model with its loss and the gradients, before anything uses them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from graphopt import _checks, states
from graphopt._memory import give_back_memory
from graphopt.accumulation import UPDATE_INPUT
from graphopt.builder import GraphBuilder
from graphopt.carried import NEXT
from graphopt.forward import ForwardModel, check_is_forward, read_with_files, to_ir, with_weights
from graphopt.gradients import (
    GradientGraph,
    Memory,
    check_rounding,
    compute_random_numbers,
    convert_opset,
    differentiate,
    given_gradients,
    prepare,
    with_straight_through,
    write_functions_that_draw,
)
from graphopt.gradients.runtime import build_gradients, prepare_for_builder
from graphopt.half import Precision, check_float32, check_precision, own_half
from graphopt.large_models import with_values_aside
from graphopt.loss_scale import scaled
from graphopt.losses import LABELS, LossFunction, append_loss, loss_entry, read_by, report_loss
from graphopt.manifest import LossEntry
from graphopt.mapped_values import array_of
from graphopt.operators.labels import ClassLabels, remembered
from graphopt.parameter import Parameter
from graphopt.rmsprop import RMSProp
from graphopt.soundness.errors import about
from graphopt.state_inputs import state_of
from graphopt.states import RANDOM_SEED
from graphopt.versions import MIN_OPSET

_NAMES = {
    "loss",
    "updated",
    "gradient_norm",
    UPDATE_INPUT,
    "group_mask",
    *(state.name for state in states.OF_GRAPHS),
}


@dataclass(frozen=True)
class Differentiated:
    """A forward model with its loss and the gradients, before anything uses them.

    Attributes:
        gradients: The graph.
        forward: The forward model as it was given; None where there is none.
        class_labels: The inputs of the graph that hold class indices.
        files: The files that the forward model was read from.
        loss: What the loss is, where there is one.
        seed: What its random numbers begin with; None where it draws none, or the runtime does.
        held: The arrays in which values of both are, as long as somebody holds them.
    """

    gradients: GradientGraph
    forward: onnx.ModelProto | None = None
    class_labels: Sequence[ClassLabels] = ()
    files: tuple[Path, ...] = ()
    loss: LossEntry | None = None
    seed: int | None = None
    held: Sequence[np.ndarray] = ()

    @property
    def initial(self) -> dict[str, np.ndarray]:
        """The values of parameters and running statistics in the forward model."""
        moving = {*self.gradients.parameters, *self.gradients.statistics}
        return {
            tensor.name: array_of(tensor)
            for tensor in (self.forward.graph.initializer if self.forward else ())
            if tensor.name in moving
        }


def differentiated(
    model: ForwardModel,
    loss: str | LossFunction | None,
    optimizer: RMSProp,
    *,
    loss_output: str | None = None,
    labels: str = LABELS,
    portable: bool = True,
    provider: str = "CPUExecutionProvider",
    straight_through: bool = False,
    memory: Memory = "fast",
    precision: Precision | None = None,
    seed: int | None = None,
) -> Differentiated:
    """Append the loss, times the loss scale, and the gradients; see `training_graph`."""
    if loss is None:
        raise TypeError("loss: got NoneType, expected a string or a function")
    for name, text in (("loss_output", loss_output), ("labels", labels)):
        if not isinstance(text, str | None):
            raise TypeError(f"{name}: got {text!r} ({type(text).__name__}), expected a string")
    if not labels:
        raise ValueError("labels: got an empty string, expected the name of an input")
    if not portable:
        _checks.unused(
            "portable=False",
            straight_through=straight_through,
            memory=memory != "fast",
            precision=precision is not None,
        )
    half = check_precision(precision, provider)
    names = [parameter.name for parameter in optimizer.params]
    proto, files = read_with_files(model, leaving=portable)
    with about(model):
        check_is_forward(proto)
        forward = with_weights(proto, names)
        del proto
        forward, held = with_values_aside(forward) if portable else (forward, [])
        give_back_memory(sum(array.nbytes for array in held))
        _check_parameters(forward, optimizer.params)
        if half is not None:
            check_float32(optimizer.params, str(precision))
        read = read_by(loss, loss_output, [value.name for value in forward.graph.output])
        source = with_straight_through(forward, names) if straight_through else forward
        if portable:
            prepared, statistics = prepare(source, names, read, provider, half)
        else:
            prepared, statistics = prepare_for_builder(source, names, read)
        if portable:
            half = half or own_half(prepared.graph, provider)
        op = GraphBuilder(prepared.graph)
        _free_names(op, {*_NAMES, labels}, names)
    # What a function of the user's raises is not about the model.
    with about(model) if isinstance(loss, str) else nullcontext():
        before = len(prepared.graph)
        value = append_loss(op, loss, loss_output, labels)
        appended = prepared.graph[before:]
        entry = loss_entry(loss, loss_output, appended, straight_through, precision)
    with about(model):
        if portable and not straight_through:
            check_rounding(prepared.graph, names, value)
        value = scaled(op, value, optimizer.loss_scale)
        if portable:
            seeded = seed is not None
            gradients = differentiate(
                prepared, names, value, statistics, provider, memory, half, seeded=seeded
            )
        else:
            gradients = build_gradients(prepared, names, value, statistics)
            if seed is not None:
                compute_random_numbers(GraphBuilder(gradients.model.graph))
    draws = state_of(gradients.model.graph, RANDOM_SEED) is not None
    seed = seed if draws else None
    labeled = remembered(prepared.graph)
    return Differentiated(gradients, forward, labeled, files, entry, seed, held)


def self_differentiated(
    model: ForwardModel,
    loss: str | None,
    optimizer: RMSProp,
    gradients: Mapping[str, str],
    seed: int | None,
) -> Differentiated:
    """A model that computes its gradients itself."""
    forward, files = read_with_files(model, leaving=True)
    forward, held = with_values_aside(forward)
    names = [parameter.name for parameter in optimizer.params]
    missing = [name for name in names if name not in gradients]
    unknown = [name for name in gradients if name not in names]
    if missing or unknown:
        raise ValueError(
            f"gradients: {', '.join(repr(name) for name in missing or unknown)} "
            + ("has no gradient" if missing else "is not a parameter of the optimizer")
        )
    inputs = {value.name for value in forward.graph.input}
    _check_parameters(forward, [p for p in optimizer.params if p.name not in inputs])
    prepared = to_ir(convert_opset(forward, MIN_OPSET, onnx.defs.onnx_opset_version()))
    if seed is not None:
        write_functions_that_draw(prepared)
    built = given_gradients(prepared, {name: gradients[name] for name in names})
    op = GraphBuilder(prepared.graph)
    _free_names(op, _NAMES, (), set(gradients.values()))
    if loss is not None:
        outputs = {str(value.name): value for value in prepared.graph.outputs}
        if loss not in outputs:
            raise ValueError(
                f"loss: got '{loss}', expected a scalar output of the model "
                f"({', '.join(repr(name) for name in outputs)}), which computes it itself"
            )
        report_loss(op, outputs[loss])
    entry = LossEntry(loss) if loss else None
    if seed is not None and not compute_random_numbers(op):
        seed = None
    return Differentiated(built, forward, files=files, loss=entry, seed=seed, held=held)


def _check_parameters(forward: onnx.ModelProto, params: Iterable[Parameter]) -> None:
    tensors = {tensor.name: tensor for tensor in forward.graph.initializer}
    for parameter in params:
        tensor = tensors.get(parameter.name)
        if tensor is None:
            raise ValueError(
                f"parameter '{parameter.name}' is not an initializer of the model"
                f"{_hint(forward.graph, parameter.name)} (graphopt.parameters(model) lists them)"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        if "float" not in dtype:
            raise ValueError(
                f"parameter '{parameter.name}' is {dtype} in the model, so it has no gradient; "
                "if it is quantized, train the model before quantizing it, or put its dequantized "
                "value before a QuantizeLinear as a float initializer, and pass "
                "straight_through=True"
            )
        if tuple(tensor.dims) != parameter.shape or dtype != parameter.dtype:
            raise ValueError(
                f"parameter '{parameter.name}' is {parameter.dtype}{list(parameter.shape)} in the "
                f"optimizer, but {dtype}{list(tensor.dims)} in the model"
            )


def _hint(graph: onnx.GraphProto, name: str) -> str:
    """What stands under this name instead, or what the user may have meant."""
    if any(value.name == name for value in graph.input):
        return ", but an input: give it a value as an initializer to train it"
    for node in graph.node:
        if name in node.output:
            if node.op_type == "Constant":
                return ", but a Constant node: make it an initializer to train it"
            source = f" of '{node.input[0]}'" if node.input else ""
            if node.op_type == "DequantizeLinear":
                return (
                    f", but the dequantized value{source}: train the model before quantizing it, "
                    f"or put '{name}' before a QuantizeLinear as a float initializer, and pass "
                    "straight_through=True"
                )
            return f", but the output of {node.op_type}{source}, which may be what is to be trained"
    close = difflib.get_close_matches(name, [tensor.name for tensor in graph.initializer], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _free_names(
    op: GraphBuilder, wanted: set[str], trained: Iterable[str], kept: Iterable[str] = ()
) -> None:
    """Rename inner values of the forward model that have a name the training graph needs."""
    interface = set(kept) | {
        str(value.name)
        for value in (*op.graph.inputs, *op.graph.outputs, *op.graph.initializers.values())
    }
    for name in trained:
        for taken in (f"{name}_grad", f"{name}{NEXT}"):
            if taken in interface:
                raise ValueError(
                    f"the model has '{taken}', which is what the training graph calls a value of "
                    f"parameter '{name}'; rename one of them in the model"
                )
    inner = (graph.inputs for graph in op.graph.subgraphs() if graph is not op.graph)
    for values in (*(node.outputs for node in op.graph.all_nodes()), *inner):
        for value in values:
            name = str(value.name)
            needed = (
                name in wanted or name.endswith(("_grad", NEXT)) or states.is_called_as_one(name)
            )
            if needed and name not in interface:
                value.name = op.fresh_name(f"forward/{name}")
                op.release_name(name)
