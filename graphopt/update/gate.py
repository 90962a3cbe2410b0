"""Making writes wait for reads.

ONNX Runtime runs nodes in any order that respects their inputs, not in file order. If a consumer
lets an output overwrite the input that it feeds at the next step, a parameter could be overwritten
while a gradient still needs it. So every node that writes a carried value waits for all gradients
and all other outputs of the graph: it takes the shape operand of a Reshape from a chain of Size
nodes that read them. Reshaping is free, so is the wait. It also means that a step that fails has
written nothing.

On a device, the processor would have to wait for it where it computes with those sizes. There, one
node reads all the values and gives a bool, and nothing else needs to be in order.

The same chain goes on from bucket to bucket. That keeps the number of nodes that are ready at once
small, which ONNX Runtime 1.19 needs to load a large graph in linear time.
"""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.local_functions import DOMAIN
from graphopt.update import functions

_MOST_AT_ONCE = 64
"""For how many values a node waits, so that few are ready at the same time."""


def only_waits(node: ir.Node) -> bool:
    """Whether what a node gives does not depend on the values that it reads, but comes after."""
    return node.op_type == "Size" or (node.domain == DOMAIN and functions.is_ready(node.op_type))


class Gate:
    """A chain of waits: the int64 tensor ``[-1]``, computed from every value waited for."""

    def __init__(self, op: GraphBuilder) -> None:
        """A gate that waits for nothing yet."""
        self._op = op
        self.shape = op.constant([-1], name="flat")

    def wait_for(self, value: ir.Value) -> None:
        """Let what passes the gate from now on run after ``value`` has been computed."""
        self.wait_for_all([value])

    def wait_for_all(self, values: Sequence[ir.Value]) -> None:
        """The same for several values, the last of which ONNX Runtime then computes first.

        Of what a node reads, it goes first for what was appended last: so all sizes are appended
        before what waits for some of them and for those of later values.
        """
        sizes = [self._op.Size(value) for value in values]
        for end in range(len(sizes), 0, -_MOST_AT_ONCE):
            several = sizes[max(0, end - _MOST_AT_ONCE) : end]
            self.shape = self._op.Min(*several, self.shape)

    def flatten(self, value: ir.Value) -> ir.Value:
        """The value as a 1-D tensor that is not there before the gate opens."""
        return self._op.Reshape(value, self.shape)

    def opened(self) -> ir.Value:
        """True, when all that it waits for is there."""
        return self._op.Less(self._op.Squeeze(self.shape), 0)

    def after(self, counter: ir.Value) -> ir.Value:
        """An int64 scalar, one larger, that is not there before the gate opens."""
        return self._op.Sub(counter, self._op.Squeeze(self.shape))

    def cut(self, value: ir.Value, rows: int) -> ir.Value:
        """The value as a matrix of so many rows that is not there before the gate opens.

        One Reshape, whose shape is a product: ONNX Runtime makes one Reshape of two, and computes
        beforehand what a Concat says, and neither then waits.
        """
        return self._op.Reshape(value, self._op.Mul(self.shape, [-rows, 1]))


class DeviceGate:
    """One wait for everything, of which nothing is on the CPU.

    Args:
        op: Appends the nodes.
        values: What must be there.
    """

    def __init__(self, op: GraphBuilder, values: Sequence[ir.Value]) -> None:
        """A gate that opens when all these values are there."""
        self._op = op
        self.ready = functions.ready(op, values)

    def flatten(self, value: ir.Value) -> ir.Value:
        """The value as a 1-D tensor that is not there before the gate opens."""
        return self._op.Reshape(self.hold(value), [-1])

    def opened(self) -> ir.Value:
        """True, when all that it waits for is there."""
        return self.ready

    def after(self, counter: ir.Value) -> ir.Value:
        """An int64 scalar, one larger, that is not there before the gate opens."""
        return self._op.Squeeze(self._op.Add(self.flatten(counter), [1]))

    def hold(self, value: ir.Value) -> ir.Value:
        """The value, not there before the gate opens."""
        return self._op.Where(self.ready, value, value)
