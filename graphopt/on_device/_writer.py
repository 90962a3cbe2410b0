"""Writing over the inputs of a graph while it runs.

ONNX Runtime's training API has no outputs that become inputs: parameters and states are written
where they are, by its operator ``InPlaceAccumulatorV2``.
"""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.in_place import ACCUMULATOR

MICROSOFT = "com.microsoft"


class Writer:
    """Writes values over inputs of a graph.

    Attributes:
        flags: For each write a bool [1] that is there once it is done.
    """

    def __init__(self, op: GraphBuilder) -> None:
        """A writer that has written nothing yet."""
        self._op = op
        self.flags: list[ir.Value] = []
        op.graph.opset_imports[MICROSOFT] = 1

    def write(self, buffer: ir.Value, value: ir.Value) -> None:
        """Let a float32 input hold the value from then on."""
        always = self._op.constant(np.array([True]), name="always")
        self.flags.append(self.accumulate(buffer, value, always)[0])

    def accumulate(
        self, buffer: ir.Value, value: ir.Value, overwrite: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Add the value to a float32 input, or write it there; returns the flag and the sum."""
        flag, total = self._op.node(
            ACCUMULATOR, [buffer, value, overwrite], domain=MICROSOFT, outputs=2
        )
        flag.dtype, flag.shape = ir.DataType.BOOL, ir.Shape([1])
        total.shape = buffer.shape
        if buffer.dtype is not None:
            total.dtype = buffer.dtype
        return flag, total


def once_written(op: GraphBuilder, value: ir.Value, flags: Iterable[ir.Value]) -> ir.Value:
    """A scalar that is not there before all writes are done.

    It keeps them in the graph, too: ONNX Runtime may leave out nodes whose output nobody wants.
    Its new shape, that of a scalar, is cut from their flags.
    """
    written = op.Concat(*flags, axis=0)
    nothing = op.Slice(written, [0], [0])
    reported = op.Reshape(value, op.Cast(nothing, to=ir.DataType.INT64))
    reported.shape = ir.Shape([])
    if value.dtype is not None:
        reported.dtype = value.dtype
    return reported
