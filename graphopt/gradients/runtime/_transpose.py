"""Transpose: the runtime's gradient needs the permutation written out."""

import onnx_ir as ir

from graphopt.operators.rewriting import describe


def rewrite_transpose(node: ir.Node) -> None:
    """Write out the default, which reverses the axes."""
    if "perm" in node.attributes:
        return
    x = node.inputs[0]
    if x is None or x.shape is None:
        raise ValueError(
            f"{describe(node)}: the rank of its input is unknown; "
            "declare the shapes of the model's inputs"
        )
    node.attributes["perm"] = ir.AttrInt64s("perm", list(reversed(range(len(x.shape)))))
