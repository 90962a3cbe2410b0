"""The version of graphopt, and those of the file format and of the operators that graphs have."""

GRAPHOPT = "0.1.0"
"""That of this package."""

IR_VERSION = 8
"""That of a file: the first that has functions."""
NEWEST_IR_VERSION = 10
"""That of a file which begins as somebody else's: the newest that ONNX Runtime 1.19 reads."""

MIN_OPSET, MAX_OPSET = 17, 21
"""Older operators are not what the rules know; newer ones are not in the runtimes of many users."""
