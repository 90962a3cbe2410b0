"""What is carried from step to step: the input of each value, and what feeds that in the next."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.carried import NEXT, Array, Carried, View, joined
from graphopt.rmsprop import RMSProp
from graphopt.states import State
from graphopt.update.layout import Bucket


class Carrying:
    """Declares what is carried, and takes it to the dtype of the arithmetic and back.

    Args:
        op: Appends inputs, outputs and nodes.
        optimizer: Says what states start at, and the dtype of the arithmetic.
        initial: Values of parameters and running statistics before the first step.
    """

    def __init__(self, op: GraphBuilder, optimizer: RMSProp, initial: Mapping[str, Array]) -> None:
        """Nothing is carried yet."""
        self._op = op
        self._optimizer = optimizer
        self._initial = initial

    def input_of(self, bucket: Bucket, kind: State) -> ir.Value:
        """The input that carries a state of the parameters of a bucket."""
        return self._op.input(kind.of(bucket.name), self._optimizer.dtype, bucket.shape)

    def parameters(self, bucket: Bucket, old: ir.Value, new: ir.Value) -> Carried:
        """Carry the parameters of a bucket."""
        views = [View(parameter.name, parameter.shape, at) for parameter, at in bucket.offsets()]
        carried = self.value(old, new, views, initial=None)
        if views[0].name in self._initial:  # then all of them are, see `plan`
            carried = replace(carried, initial=joined(carried, self._initial))
        return carried

    def state(
        self,
        bucket: Bucket,
        kind: State,
        old: ir.Value,
        new: ir.Value,
        initial: str | None = None,
    ) -> Carried:
        """Carry a state of the parameters of a bucket.

        Args:
            bucket: The bucket.
            kind: Which state.
            old: What carries it.
            new: Its new value.
            initial: The input as which it starts; None where it starts at a number.
        """
        views = [View(kind.of(p.name), p.shape, offset) for p, offset in bucket.offsets()]
        start = kind.start(self._optimizer) if initial is None else initial
        return self.value(old, new, views, initial=start)

    def statistic(self, name: str, old: ir.Value, new: ir.Value) -> Carried:
        """Carry a running statistic."""
        return self.value(old, new, initial=self._initial.get(name))

    def of_graph(self, kind: State, old: ir.Value, new: ir.Value) -> Carried:
        """Carry a state of the graph."""
        return self.value(old, new, initial=kind.start(self._optimizer))

    def value(
        self,
        value: ir.Value,
        new: ir.Value,
        views: Sequence[View] = (),
        *,
        initial: Array | float | str | None,
    ) -> Carried:
        """Let ``new`` feed the input ``value`` at the next step."""
        assert value.dtype is not None
        assert value.shape is not None
        name, shape = str(value.name), tuple(value.shape.numpy())
        output = self._op.output(new, f"{name}{NEXT}")
        output.dtype, output.shape = value.dtype, ir.Shape(shape)
        return Carried(
            name,
            f"{name}{NEXT}",
            shape,
            dtype_of(value),
            tuple(views or [View(name, shape)]),
            initial,
        )

    def wide(self, value: ir.Value, dtype: str) -> ir.Value:
        """A value of a dtype in that of the arithmetic."""
        if dtype == self._optimizer.dtype:
            return value
        return self._op.Cast(value, to=self._op.real)

    def narrow(self, value: ir.Value, dtype: str) -> ir.Value:
        """A value of the arithmetic in the dtype of what it feeds."""
        if dtype == self._optimizer.dtype:
            return value
        return self._op.Cast(value, to=ir.DataType.from_numpy(np.dtype(dtype)))


def dtype_of(value: ir.Value) -> str:
    """NumPy's name of the element type of an input."""
    assert value.dtype is not None
    return value.dtype.numpy().name
