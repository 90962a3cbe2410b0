"""Automatic padding, written out as pads: the runtime's gradient of a convolution gets it wrong."""

import onnx_ir as ir

from graphopt.operators.rewriting import describe
from graphopt.operators.window import same_padding


def write_out_pads(node: ir.Node) -> None:
    """Set the pads of a convolution or pooling node that has ``auto_pad``."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return
    kernel = _kernel(node)
    pads = None
    if mode == "VALID" and kernel is not None:
        pads = [0] * (2 * len(kernel))
    elif kernel is not None and node.op_type != "ConvTranspose":
        pads = _same_pads(node, kernel, larger_at_end=mode == "SAME_UPPER")
    if pads is None:
        raise ValueError(
            f"{describe(node)}: auto_pad={mode} cannot be written as pads, because a size that it "
            "depends on is not known; export the model with explicit pads or static sizes"
        )
    node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _kernel(node: ir.Node) -> list[int] | None:
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    if kernel:
        return kernel
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.shape is None:
        return None
    sizes = [size for size in weight.shape[2:] if isinstance(size, int)]
    return sizes if len(sizes) == len(weight.shape) - 2 else None


def _same_pads(node: ir.Node, kernel: list[int], *, larger_at_end: bool) -> list[int] | None:
    ones = [1] * len(kernel)
    x = node.inputs[0]
    halves = same_padding(
        kernel,
        node.attributes.get_ints("strides", ones),
        node.attributes.get_ints("dilations", ones),
        list(x.shape[2:]) if x is not None and x.shape is not None else [None] * len(kernel),
    )
    if halves is None:
        return None
    smaller, larger = halves
    return smaller + larger if larger_at_end else larger + smaller
