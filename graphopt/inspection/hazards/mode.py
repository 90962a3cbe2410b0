"""A model that is in the mode of training."""

from collections.abc import Iterator

from graphopt.dropping import random_masks
from graphopt.inspection.hazards.hazard import Finding, Subject, hazard
from graphopt.inspection.reading.dataflow import Operation

_WITH_IS_TEST = 7  # the first opset in which is_test, which is 0 by default, is gone
_DROPOUT_BY_INPUT = 12
_NORMALIZATION_BY_ATTRIBUTE = 14


@hazard("training-mode", "warning")
def training_mode(subject: Subject) -> Iterator[Finding]:
    """A model without an optimizer normalizes by the batch, or drops out at random."""
    if subject.carried or subject.buffers:
        return
    model = subject.file.model
    opset = model.graph.opset_imports.get("", _NORMALIZATION_BY_ATTRIBUTE)
    where = [
        operation.outputs[0].name
        for operation in subject.flow.operations
        if operation.outputs and _is_training(operation, opset)
    ]
    where += [str(mask.name) for mask in random_masks(model.graph)]
    yield Finding(
        where,
        "it computes the mean and variance of the batch, or draws what it drops: what the model "
        "gives for a sample depends on the other samples or on chance",
        "train it as it is; for inference export the module after eval(), or what was trained with "
        "session.export(path) without training=True",
    )


def _is_training(operation: Operation, opset: int) -> bool:
    """Whether a node is in training mode; opsets differ in what says so."""
    if operation.op_type not in ("BatchNormalization", "Dropout"):
        return False
    if opset < _WITH_IS_TEST:
        return not operation.number("is_test", 0)
    if operation.op_type == "BatchNormalization":
        if opset < _NORMALIZATION_BY_ATTRIBUTE:
            return len(operation.outputs) > 1
        return bool(operation.number("training_mode", 0))
    mode = operation.inputs[2] if opset >= _DROPOUT_BY_INPUT and operation.inputs[2:] else None
    return mode is not None and mode.constant is not None and bool(mode.constant.any())
