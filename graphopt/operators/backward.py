"""What a gradient rule gets."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import onnx_ir as ir

from graphopt import _words
from graphopt.builder import GraphBuilder, Operand
from graphopt.graphs import captured
from graphopt.local_functions import may_run_as_kernel
from graphopt.operators.rewriting import concat, describe, mean_over, reduced, size_of

Dim = int | str | None
_LARGEST_TABLE = 2**31  # bytes
_COUNTS = "graphopt.counts"  # in the metadata of a graph while it is built
Inner = Callable[
    [ir.Graph, Iterable[ir.Value], Mapping[ir.Value, ir.Value]], dict[ir.Value, ir.Value]
]
"""Differentiates a graph in a node: from values, and the gradients of values that are computed from
them, to those of all between. It appends where the builder appends."""


class Backward:
    """One node, and the gradients of its outputs.

    Attributes:
        op: Appends nodes to the graph.
        node: The node of the forward pass; a rule may replace it by nodes that compute the same.
        inputs: Its inputs, None where an optional one is left out; then, of a node with graphs in
            it, what these read of those around them.
        outputs: Its outputs.
        provider: The execution provider for which the fastest of several formulations is chosen.
        is_steep: Whether the gradients of its outputs may be infinite, or not a number. Then 0
            times such a gradient is not 0, and a rule must not mask it by a product.
        differentiate: Differentiates a graph in the node.
        infinite: Of its inputs and outputs, those at which its slope may be infinite, or not a
            number, where nothing counts but what a later node selects.
        trained: The values of the graph that depend on a parameter.
        summed_inputs: Those whose gradient the rule has summed itself, by `summed`.
    """

    def __init__(
        self,
        op: GraphBuilder,
        node: ir.Node,
        gradients: Sequence[ir.Value | None],
        needed: Iterable[int],
        provider: str,
        differentiate: Inner,
        *,
        is_steep: bool = False,
        infinite: Collection[ir.Value] = (),
        trained: Collection[ir.Value] = frozenset(),
    ) -> None:
        self.op = op
        self.node = node
        self.inputs = (*node.inputs, *captured(node))
        self.outputs = tuple(node.outputs)
        self.provider = provider
        self.differentiate = differentiate
        self.is_steep = is_steep
        self.infinite = infinite
        self.trained = trained
        self.summed_inputs: set[int] = set()
        self._gradients = tuple(gradients)
        self._needed = frozenset(needed)

    # What the node has -----------------------------------------------------------------------

    def has_kernels(self, *values: ir.Value) -> bool:
        """Whether a function of these values may run as a kernel."""
        return self.provider == "CPUExecutionProvider" and may_run_as_kernel(self.op, *values)

    @property
    def x(self) -> ir.Value:
        """The first input."""
        return self.input(0)

    @property
    def y(self) -> ir.Value:
        """The first output."""
        return self.outputs[0]

    @property
    def dy(self) -> ir.Value:
        """The gradient of the first output, of its shape and dtype."""
        return self.gradient(0)

    def input(self, index: int) -> ir.Value:
        """An input that is not left out."""
        value = self.inputs[index]
        assert value is not None
        return value

    def optional(self, index: int) -> ir.Value | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def gradient(self, index: int) -> ir.Value:
        """The gradient of an output; zeros where none flows into it."""
        gradient = self._gradients[index]
        return self.zeros_like(self.outputs[index]) if gradient is None else gradient

    def has_gradient(self, index: int) -> bool:
        """Whether a gradient flows into this output."""
        return index < len(self._gradients) and self._gradients[index] is not None

    def needs(self, index: int) -> bool:
        """Whether the gradient of this input is asked for."""
        return index in self._needed

    def error(self, problem: str) -> ValueError:
        """An error that names the node."""
        return ValueError(f"{describe(self.node)}: {problem}")

    def check_table(self, shape: Iterable[int]) -> None:
        """Refuse a constant that its rule is to make of eight bytes an element, before it is made.

        Raises:
            ValueError: No file of ONNX could hold it.
        """
        if (needed := 8 * math.prod(shape)) >= _LARGEST_TABLE:
            raise self.error(
                f"its gradient needs a table of {_words.size(needed)}, and an ONNX file holds less "
                "than 2 GiB; its sizes are too large, or damaged"
            )

    def named_as_node(self) -> AbstractContextManager[None]:
        """For nodes of the forward pass that take the place of the node."""
        return self.op.named(self.node.name or str(self.y.name))

    # Shapes ----------------------------------------------------------------------------------

    def shape(self, value: ir.Value) -> list[Dim]:
        """The dimensions of a value of the forward pass: a size, a symbol, or None if unknown.

        Raises:
            ValueError: Not even its rank is known.
        """
        if value.shape is None:
            raise self.error(
                f"its gradient needs the rank of '{value.name}', which shape inference does not "
                "find; declare the shapes of the model's inputs, and by value_info those of what "
                "operators of other domains give"
            )
        return [d if isinstance(d, int) else d.value for d in value.shape]

    def rank(self, value: ir.Value) -> int:
        """The number of dimensions; raises as `shape` does."""
        return len(self.shape(value))

    def sizes(self, value: ir.Value, axes: Iterable[int] | None = None) -> list[int]:
        """The sizes of these axes, or of all.

        Raises:
            ValueError: One is not known before the graph runs.
        """
        shape = self.shape(value)
        sizes = [shape[axis] for axis in (range(len(shape)) if axes is None else axes)]
        if not all(isinstance(size, int) for size in sizes):
            known = ", ".join(str(size) if isinstance(size, int) else "?" for size in shape)
            raise self.error(
                f"its gradient needs sizes of '{value.name}', whose shape is [{known}]; "
                "declare the model's inputs so that only the batch is dynamic"
            )
        return [size for size in sizes if isinstance(size, int)]

    def axis(self, value: ir.Value, default: int) -> int:
        """The node's attribute ``axis``, counted from the front."""
        axis = self.node.attributes.get_int("axis", default)
        return axis + self.rank(value) if axis < 0 else axis

    def shape_of(self, value: ir.Value) -> Operand:
        """The shape as an operand: a constant where it is known."""
        shape = value.shape
        if shape is not None and all(isinstance(size, int) for size in shape):
            return np.array(shape.numpy(), np.int64)
        return self.op.Shape(value)

    def size(self, value: ir.Value, axis: int) -> Operand:
        """The size of an axis, as a vector of one: a constant where it is known."""
        self.rank(value)
        return size_of(self.op, value, axis)

    def concat(self, sizes: Sequence[Operand]) -> Operand:
        """Sizes in one vector: a constant where all are."""
        return concat(self.op, sizes)

    def count(self, value: ir.Value, axes: Sequence[int], like: ir.Value | None = None) -> Operand:
        """How many elements these axes have together, as a float scalar operand.

        Args:
            value: Whose elements.
            axes: Its axes.
            like: What has the dtype; the value by default.
        """
        op, like = self.op, value if like is None else like
        shape = self.shape(value)
        known = float(math.prod(size for axis in axes if isinstance(size := shape[axis], int)))
        counted: Operand = known
        unknown = [axis for axis in axes if not isinstance(shape[axis], int)]
        if not unknown:
            return known
        if self.provider == "CPUExecutionProvider":
            if len(axes) == len(shape):
                return op.CastLike(op.Size(value), like)
            counts = op.Gather(op.Shape(value), np.array(axes, np.int64))
            return op.CastLike(op.ReduceProd(counts, keepdims=0), like)
        # A device would wait for a copy of what is known on the CPU, so it counts by itself.
        for axis in unknown:
            counted = op.Mul(self._counted(value, axis), counted)
        return counted if like.dtype == ir.DataType.FLOAT else op.CastLike(counted, like)

    def elements(self, value: ir.Value) -> ir.Value:
        """How many elements a value has, int64 [1]."""
        op = self.op
        if self.provider == "CPUExecutionProvider":
            return op.Reshape(op.Size(value), [1])
        # ONNX Runtime knows a shape before the value is there, but no size.
        return reduced(op, "ReduceProd", op.Shape(value), [0])

    def _counted(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of an axis, counted on the device; once for all axes of one name."""
        op, name = self.op, self.shape(value)[axis]
        counts: dict[object, ir.Value] = op.graph.meta.setdefault(_COUNTS, {})
        key = name or (value, axis)
        if key not in counts:
            size = op.Shape(value, start=axis, end=axis + 1)
            ones = op.ConstantOfShape(size, value=ir.tensor(np.ones(1, np.float32)))
            counts[key] = op.ReduceSum(ones, keepdims=0)
        return counts[key]

    # Nodes that many rules append ------------------------------------------------------------

    def constant(self, operand: ir.Value | None) -> np.ndarray | None:
        """The value of an operand that is known before the graph runs, and is not trained."""
        if operand is None or any(operand is self.inputs[index] for index in self._needed):
            return None
        tensor = ir.convenience.get_const_tensor(operand)
        return None if tensor is None else tensor.numpy()

    def sum(self, x: ir.Value, axes: Sequence[int], *, keepdims: bool = False) -> ir.Value:
        """Sum over these axes; over none, nothing is done."""
        return self.op.ReduceSum(x, list(axes), keepdims=int(keepdims)) if axes else x

    def mean(self, x: ir.Value, axes: Sequence[int], *, keepdims: bool = False) -> ir.Value:
        """Mean over these axes; over none, nothing is done."""
        return mean_over(self.op, x, list(axes), keepdims=keepdims) if axes else x

    def reshape_like(self, x: ir.Value, value: ir.Value) -> ir.Value:
        """``x`` in the shape of ``value``; a batch alone may be unknown before the graph runs."""
        shape = self.shape(value)
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) <= 1 and 0 not in sizes:
            return self.op.Reshape(x, np.array(sizes, np.int64))
        return self.op.Reshape(x, self.shape_of(value), allowzero=1)

    def masked(self, gradient: ir.Value, condition: ir.Value) -> ir.Value:
        """A gradient that comes from the outputs where a condition holds, otherwise 0.

        On a CPU a product is up to four times as fast as Where.
        """
        if self.is_steep or self.provider != "CPUExecutionProvider":
            return self.op.Where(condition, gradient, 0.0)
        return self.op.Mul(gradient, self.op.CastLike(condition, gradient))

    def weighted(self, gradient: ir.Value, weights: ir.Value) -> ir.Value:
        """A gradient times weights, which is 0 where the weight is."""
        if weights.dtype != gradient.dtype:
            weights = self.op.CastLike(weights, gradient)
        product = self.op.Mul(gradient, weights)
        return (
            self.op.Where(self.op.Equal(weights, 0.0), 0.0, product) if self.is_steep else product
        )

    def where_it_counts(self, gradient: ir.Value) -> ir.Value:
        """A gradient of the shape of dy, and 0 where dy is 0, whatever the slope is there.

        That is done for the rule of an elementwise operator. It costs a node where a later node
        may select something else than a result that is infinite, or whose slope is.
        """
        if not self._reads_infinite(gradient):
            return gradient
        return self.op.Where(self.op.Equal(self.dy, 0.0), 0.0, gradient)

    def _reads_infinite(self, gradient: ir.Value) -> bool:
        """Whether a gradient was computed from dy and what may be infinite."""
        seen, left = {self.dy} if self.infinite else set(), [gradient]
        while left and self.infinite:
            value = left.pop()
            if value in self.infinite:
                return True
            producer = value.producer()
            if value not in seen and producer is not None:
                left.extend(read for read in producer.inputs if read is not None)
            seen.add(value)
        return False

    def zeros(self, shape: Operand, dtype: ir.DataType | None) -> ir.Value:
        """Zeros of a shape and a dtype."""
        array = np.zeros(1, (dtype or ir.DataType.FLOAT).numpy())
        zeros = self.op.ConstantOfShape(shape, value=ir.tensor(array))
        if dtype is not None:
            zeros.dtype = dtype
        return zeros

    def zeros_like(self, value: ir.Value) -> ir.Value:
        """Zeros of a value's shape and dtype."""
        return self.zeros(self.shape_of(value), value.dtype)

    def summed(self, gradient: ir.Value, index: int) -> ir.Value:
        """A gradient in the shape of an input that is broadcast.

        That is done for the rule, unless what comes after the sum is less work than before it.
        """
        self.summed_inputs.add(index)
        return self.unbroadcast(self.where_it_counts(gradient), self.input(index))

    def unbroadcast(
        self, gradient: ir.Value, operand: ir.Value, wide: Sequence[Dim] | None = None
    ) -> ir.Value:
        """Sum a gradient over the axes along which an operand was broadcast.

        Where an unknown size may have been 1, the graph finds out when it runs.

        Args:
            gradient: Has the shape to which the operand was broadcast.
            operand: The result has its shape.
            wide: The dimensions of ``gradient``; those of the first output if left out.
        """
        wide = self.shape(self.y) if wide is None else wide
        narrow = self.shape(operand)
        lead = len(wide) - len(narrow)
        axes = list(range(lead))
        unknown = False
        for axis, size in enumerate(narrow, start=lead):
            if size == 1 and wide[axis] != 1:
                axes.append(axis)
            elif not isinstance(size, int) and (size is None or size != wide[axis]):
                unknown = True
        if unknown:
            return self._unbroadcast_at_run_time(gradient, operand, len(wide))
        if len(axes) == lead:
            return self.sum(gradient, axes)
        if not lead:
            return self.sum(gradient, axes, keepdims=True)
        return self.reshape_like(self.sum(gradient, axes), operand)

    def _unbroadcast_at_run_time(
        self, gradient: ir.Value, operand: ir.Value, rank: int
    ) -> ir.Value:
        op = self.op
        lead = rank - self.rank(operand)
        shape = op.Shape(operand)
        padded = op.Concat(np.ones(lead, np.int64), shape, axis=0) if lead else shape
        differs = op.Not(op.Equal(padded, op.Shape(gradient)))
        # An axis in front is summed in any case: without axes, ONNX Runtime 1.19 sums all of an
        # empty tensor.
        axes = op.Compress(np.arange(rank + 1), op.Concat([True], differs, axis=0), axis=0)
        summed = op.ReduceSum(op.Unsqueeze(gradient, [0]), axes, keepdims=0)
        return op.Reshape(summed, shape, allowzero=1)
