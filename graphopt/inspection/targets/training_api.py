"""Whether the inputs and outputs of a model are those of ONNX Runtime's training API."""

import onnx_ir as ir

from graphopt.inspection.opening.sound_model import kind_of
from graphopt.inspection.targets.releases import listed
from graphopt.on_device.tensor_names import GRADIENT_BUFFER, OPTIMIZER_INPUTS, RESET, SEQUENCES
from graphopt.operators import name_of

_MOST = 5  # reasons of a kind
_OPTIMIZERS = {
    "com.microsoft::AdamWOptimizer": OPTIMIZER_INPUTS,
    "com.microsoft::SGDOptimizerV2": OPTIMIZER_INPUTS[:-1],
}
_NO_TRAINING_MODEL = (
    f"a training model has the inputs '{RESET}' and '<parameter>{GRADIENT_BUFFER}', this one has "
    "not; use graphopt.export_on_device"
)
_NO_OPTIMIZER_MODEL = (
    "an optimizer model has one node AdamWOptimizer or SGDOptimizerV2 in its main graph, this one "
    "has {}; use graphopt.export_on_device(..., optimizer_model=True)"
)


def misfits(graph: ir.Graph) -> list[str]:
    """Why the inputs and outputs are not those of on-device training."""
    inputs = [str(value.name) for value in graph.inputs if not value.is_initializer()]
    optimizers = [name for name in map(name_of, graph) if name in _OPTIMIZERS]
    is_optimizer = {*SEQUENCES[:2]} <= set(inputs)
    if is_optimizer or (optimizers and RESET not in inputs):
        return _optimizer_interface(inputs, optimizers)
    buffers = [value for value in inputs if value.endswith(GRADIENT_BUFFER)]
    if RESET not in inputs and not buffers:
        return [_NO_TRAINING_MODEL]
    reasons = []
    if RESET not in inputs:
        reasons.append(f"it lacks the input '{RESET}'")
    if not buffers:
        reasons.append(f"no parameter has an input '<parameter>{GRADIENT_BUFFER}'")
    reasons += [
        f"the input '{value}' belongs to no input '{value.removesuffix(GRADIENT_BUFFER)}'"
        for value in buffers
        if value.removesuffix(GRADIENT_BUFFER) not in inputs
    ][:_MOST]
    if not graph.outputs or not _may_be_scalar(graph.outputs[0]):
        reasons.append("its first output must be the loss, a single number")
    return reasons


def _optimizer_interface(inputs: list[str], optimizers: list[str]) -> list[str]:
    """Why a model is no optimizer model."""
    if len(optimizers) != 1:
        return [_NO_OPTIMIZER_MODEL.format(len(optimizers))]
    expected = _OPTIMIZERS[optimizers[0]]
    if tuple(inputs) == expected:
        return []
    kind = optimizers[0].rpartition(":")[2]
    return [f"its inputs are {listed(inputs)}, expected for {kind}: {', '.join(expected)}"]


def _may_be_scalar(value: ir.Value) -> bool:
    sizes = () if value.shape is None else value.shape
    return kind_of(value) == "tensor" and all(size == 1 for size in sizes if isinstance(size, int))
