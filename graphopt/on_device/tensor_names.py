"""What the tensors of on-device training are called."""

from graphopt.states import GLOBAL_STEP

RESET = "lazy_reset_grad"
"""The input by which ONNX Runtime says that gradients start anew."""
UPDATE = "update"
"""The input that says whether a step updates, or only adds its gradients to those before."""
ACCUMULATED = "accumulated_steps"
"""The number of steps whose gradients have been added since the last update."""
STEP = GLOBAL_STEP.name
"""The number of steps, as two float32 numbers."""
ACCUMULATED_OUT = "_grad.accumulation.out"
"""The end of the names of outputs that ONNX Runtime keeps from the application."""
GRADIENT_BUFFER = "_grad.accumulation.buffer"
"""The end of the names of the inputs in which ONNX Runtime adds gradients up."""

SEQUENCES = ("params", "gradients", "first_order_moments", "second_order_moments")
"""The sequences that ONNX Runtime's ``OptimizerStep`` feeds."""
OPTIMIZER_INPUTS = ("learning_rate", "step", *SEQUENCES)
"""All that it feeds to its AdamW; its SGD has no second order moments."""
MOMENTUMS = {"momentum0": "first_order_moments", "momentum1": "second_order_moments"}
"""The states of a parameter in its checkpoints, and the sequence of each."""


def gradient_buffer(parameter: str) -> str:
    """ONNX Runtime's buffer for the gradient of a parameter."""
    return f"{parameter}{GRADIENT_BUFFER}"


def accumulated(parameter: str) -> str:
    """The output by which ONNX Runtime knows that a gradient is in its buffer."""
    return f"{parameter}{ACCUMULATED_OUT}"
