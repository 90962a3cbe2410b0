"""Layer normalization: the runtime's gradient needs a bias and all outputs."""

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.rewriting import add_outputs, describe


def rewrite_layer_normalization(op: GraphBuilder, node: ir.Node) -> None:
    """Give one node what is optional in ONNX."""
    add_outputs(op, node, 3)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return
    scale = node.inputs[1]
    sizes = [d for d in scale.shape if isinstance(d, int)] if scale and scale.shape else []
    if scale is None or scale.shape is None or len(sizes) != len(scale.shape):
        raise ValueError(f"{describe(node)}: the shape of its scale is unknown; make it static")
    dtype = scale.dtype.numpy() if scale.dtype is not None else np.dtype(np.float32)
    node.resize_inputs(3)
    node.replace_input_with(2, op.constant(np.zeros(sizes, dtype)))
