"""Average pooling as a depthwise convolution.

The runtime's own gradient of average pooling ends the process where the batch is dynamic.
"""

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.rewriting import describe, replace


def rewrite_average_pool(op: GraphBuilder, node: ir.Node) -> None:
    """Replace one node, whose pads are explicit."""
    x = node.inputs[0]
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    if not isinstance(channels, int) or node.attributes.get_int("ceil_mode", False):
        raise ValueError(
            f"{describe(node)}: its gradient needs a known number of channels and ceil_mode=0; "
            "declare the shapes of the model's inputs, or export it so"
        )
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * len(kernel)))
    window = {
        "group": channels,
        "pads": pads,
        "strides": list(node.attributes.get_ints("strides", [1] * len(kernel))),
        "dilations": list(node.attributes.get_ints("dilations", [1] * len(kernel))),
    }
    dtype = x.dtype.numpy() if x is not None and x.dtype is not None else np.dtype(np.float32)
    ones = np.ones((channels, 1, *kernel), dtype)
    if not any(pads) or node.attributes.get_int("count_include_pad", False):
        y = op.Conv(x, (ones / np.prod(kernel)).astype(dtype), **window)
    else:  # each place is divided by how many elements its window really has
        count = op.Conv(op.Expand(np.ones((), dtype), op.Shape(x)), ones, **window)
        y = op.Div(op.Conv(x, ones, **window), count)
    replace(op, node, y)
