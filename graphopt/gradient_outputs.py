"""Gradients that a training graph reports."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.loss_scale import input_of
from graphopt.rmsprop import RMSProp

GradientOutputs = bool | Collection[str]


def checked_names(optimizer: RMSProp, wanted: Any) -> list[str]:
    """The parameters whose gradients are reported, in the order of the optimizer.

    Raises:
        TypeError: It is neither a bool nor a collection of names.
        ValueError: A name is none of a parameter.
    """
    names = [parameter.name for parameter in optimizer.params]
    if isinstance(wanted, bool):
        return names if wanted else []
    if isinstance(wanted, str) or not isinstance(wanted, Collection):
        raise TypeError(
            f"gradient_outputs: got {wanted!r}, expected True, False or a list of parameters' names"
        )
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(
            f"gradient_outputs: got '{unknown[0]}', which is not a parameter of the optimizer"
        )
    return [name for name in names if name in wanted]


def report_gradients(
    op: GraphBuilder, optimizer: RMSProp, gradients: Mapping[str, ir.Value], names: Collection[str]
) -> None:
    """Make gradients outputs of the graph, called ``<parameter>_grad``, without the loss scale.

    Args:
        op: Appends to the graph, whose update has not been appended yet.
        optimizer: What the gradients are for.
        gradients: The gradient of each parameter, with the loss scale.
        names: Which to report.
    """
    scale = optimizer.loss_scale
    for parameter in optimizer.params:
        if parameter.name not in names:
            continue
        gradient, name = gradients[parameter.name], f"{parameter.name}_grad"
        if scale != 1 and gradient.name == name:
            gradient.name = op.fresh_name(f"{name}/scaled")
            op.release_name(name)
        dtype = ir.DataType.from_numpy(np.dtype(parameter.dtype))
        if scale != 1:  # in float32: another dtype may not hold the scale
            divisor = np.float32(scale) if isinstance(scale, float) else input_of(op, scale)
            wide = op.Cast(gradient, to=ir.DataType.FLOAT)
            gradient = op.Cast(op.Div(wide, divisor), to=dtype)
        reported = op.output(gradient, name)
        reported.dtype = dtype
        reported.shape = ir.Shape(parameter.shape)
