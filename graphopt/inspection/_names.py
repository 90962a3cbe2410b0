"""Names that graphs of graphopt and of ONNX Runtime give to what they carry."""

NEXT = ".next"
"""The end of the name of an output that feeds the input without it at the next step."""
GRADIENT_BUFFER = "_grad.accumulation.buffer"
"""The end of the name of the input in which ONNX Runtime adds up the gradient of a parameter."""
