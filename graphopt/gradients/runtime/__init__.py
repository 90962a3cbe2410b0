"""Gradients from the builder of onnxruntime-training, with the operators that only it has.

``portable=False``: for comparison with the rules of our own, and as a second opinion.
"""

from graphopt.gradients.runtime._build import build_gradients
from graphopt.gradients.runtime._prepare import prepare_for_builder

__all__ = ["build_gradients", "prepare_for_builder"]
