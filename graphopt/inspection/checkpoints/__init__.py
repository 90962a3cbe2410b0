"""What a checkpoint holds, tensor by tensor, and how two checkpoints differ.

Tensors are read one after the other, and looked at in pieces of them, so that memory is needed for
the tensors of one parameter. On-device checkpoints are read as a whole.
"""

from graphopt.inspection.checkpoints.checkpoint_facts import (
    BINS,
    CheckpointDifference,
    CheckpointInspection,
    CheckpointTotals,
    DifferenceTotals,
    Histogram,
    Kind,
    ParameterValues,
    Statistics,
    StepSizes,
    TensorDifference,
    TensorValues,
)
from graphopt.inspection.checkpoints.comparing import diff_checkpoints
from graphopt.inspection.checkpoints.contents import is_checkpoint
from graphopt.inspection.checkpoints.inspecting import inspect_checkpoint

__all__ = [
    "BINS",
    "CheckpointDifference",
    "CheckpointInspection",
    "CheckpointTotals",
    "DifferenceTotals",
    "Histogram",
    "Kind",
    "ParameterValues",
    "Statistics",
    "StepSizes",
    "TensorDifference",
    "TensorValues",
    "diff_checkpoints",
    "inspect_checkpoint",
    "is_checkpoint",
]
