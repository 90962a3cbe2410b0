"""Recurrent layers: their operands, and a cell that is unrolled or scanned over the steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.operators._recurrent_activations import Activation, activations
from graphopt.operators._rounds import give
from graphopt.operators.recurrent_functions import ScannedCell, mark
from graphopt.operators.rewriting import describe

State = Sequence[ir.Value]
"""The hidden state, then that of an LSTM's cell."""
Cell = Callable[[int, State], State]
"""From a time step and the state before it to the state after it."""

_BACKWARDS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_FUNCTIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@dataclass(frozen=True)
class Direction:
    """The operands of one direction.

    Attributes:
        backwards: Whether it begins with the last step.
        w: Weights of the input, [gates * hidden, input].
        r: Weights of the hidden state, [gates * hidden, hidden].
        wb: Bias of the input, [gates * hidden].
        rb: Bias of the hidden state.
        peepholes: Weights of the cell's state in the gates i, o and f, [3 * hidden].
        initial: The state before the first step.
        functions: The activation functions.
    """

    backwards: bool
    w: ir.Value
    r: ir.Value
    wb: ir.Value | None
    rb: ir.Value | None
    peepholes: ir.Value | None
    initial: State
    functions: Sequence[Activation]


class Layer:
    """A recurrent node, and the nodes that all kinds of cells have in common.

    Attributes:
        steps: The number of time steps; None where it is open.
        is_scanned: Whether one cell is scanned over them.
        batch: The number of samples, or the symbol of it.
        valid: Of a cell that is scanned, which samples have not ended, of each step, if some may
            have.
        is_plain: Whether its functions are the usual ones, which clip nothing.
        scanned_cell: What is scanned, if there may be a kernel for all steps of it.
    """

    def __init__(
        self, op: GraphBuilder, node: ir.Node, make_cell: "MakeCell", unrolled: int
    ) -> None:
        self.op = op
        self.node = node
        self._make_cell = make_cell
        self.layout = node.attributes.get_int("layout", 0)
        self.hidden = self._hidden_size()
        self._check_sizes()
        x = self._input(0)
        assert x is not None
        self.dtype = x.dtype or ir.DataType.FLOAT
        self.steps, self.batch = self._steps_and_batch(x)
        self.is_scanned = self.steps is None or self.steps > unrolled
        by_step = op.Transpose(x, perm=[1, 0, 2]) if self.layout else x
        self.rows = op.Flatten(by_step, axis=2)
        known = isinstance(self.batch, int)
        self.batch_size: Operand = [self.batch] if known else op.Shape(by_step, start=1, end=2)
        self.lengths = self.valid = None
        self.scanned_cell: ScannedCell | None = None
        named = [name.lower() for name in node.attributes.get_strings("activations", ())]
        usual = [name.lower() for name in _FUNCTIONS[node.op_type]]
        is_usual = named == usual * (len(named) // len(usual))
        self.is_plain = is_usual and "clip" not in node.attributes
        if (lengths := self._input(4)) is not None:
            self.lengths = op.Unsqueeze(lengths, [1])
            self.lengths.shape = ir.Shape([self.batch, 1])
        self._scanned: list[tuple[ir.Value, ir.Value]] = []
        if self.is_scanned:
            self._count: Operand = [self.steps or 0]
            if self.steps is None:
                self._count = op.Shape(by_step, start=0, end=1)
            if self.lengths is not None:
                places = op.Range(0, op.Squeeze(self._count, [0]), 1)
                places = op.Unsqueeze(op.Cast(places, to=ir.DataType.INT32), [1, 2])
                self.valid = op.Less(places, self.lengths)

    def directions(self) -> list[Direction]:
        """The operands of each direction.

        Raises:
            ValueError: ``direction`` or ``activations`` is not valid.
        """
        kind = self.node.op_type
        name = self.node.attributes.get_string("direction", "forward")
        if name not in _BACKWARDS:
            raise ValueError(
                f"{describe(self.node)}: got direction '{name}', expected one of "
                f"{', '.join(_BACKWARDS)}"
            )
        backwards = _BACKWARDS[name]
        count = len(backwards)
        states = [self._each(i, count, self.layout) for i in ((5, 6) if kind == "LSTM" else (5,))]
        w, r, biases, peepholes = (self._each(index, count) for index in (1, 2, 3, 7))
        functions = activations(self.op, self.node, _FUNCTIONS[kind], count)
        directions = []
        for i, is_backwards in enumerate(backwards):
            weight, recurrent, bias = w[i], r[i], biases[i]
            assert weight is not None
            assert recurrent is not None
            wb = rb = None
            if bias is not None:
                wb, rb = self.split(bias, _GATES[kind], _GATES[kind])
            initial = [self._initial(state[i]) for state in states]
            directions.append(
                Direction(
                    is_backwards, weight, recurrent, wb, rb, peepholes[i], initial, functions[i]
                )
            )
        return directions

    def run(self, direction: Direction) -> tuple[Sequence[ir.Value], State]:
        """The output of each step, and the state after all of them.

        Of a cell that is scanned, the output is one value [steps, batch, hidden].
        """
        if self.is_scanned or self.steps is None:
            return self._scan(direction)
        return self._unroll(direction, self.steps)

    def _scan(self, direction: Direction) -> tuple[Sequence[ir.Value], State]:
        op = self.op
        self._scanned, self.scanned_cell = [], None
        cell = self._make_cell(self, direction)
        before = [self._row(self.hidden, "state") for _ in direction.initial]
        initial = list(direction.initial)
        body = ir.Graph([], [], nodes=[], name=op.fresh_name("cell"))
        with op.inside(body):
            state = cell(0, before)
            output = state[0]
            if self.valid is not None:
                valid = self._row(1, "valid", ir.DataType.BOOL)
                self._scanned.append((self.valid, valid))
                output = op.Where(valid, output, 0.0)
                state = [op.Where(valid, *values) for values in zip(state, before, strict=True)]
            give(op, body, [*state, output])
        for result in body.outputs:
            self.sized(result)
        body.inputs.extend([*before, *(row for _, row in self._scanned)])
        if self.lengths is not None:  # an empty sequence ends as zeros in ONNX Runtime
            begins = op.Greater(self.lengths, np.array(0, np.int32))
            initial = [op.Where(begins, value, 0.0) for value in initial]
        way = int(direction.backwards)
        *states, sequence = op.node(
            "Scan",
            [*initial, *(value for value, _ in self._scanned)],
            outputs=len(body.outputs),
            body=body,
            num_scan_inputs=len(self._scanned),
            scan_input_directions=[way] * len(self._scanned),
            scan_output_directions=[way],
        )
        node = sequence.producer()
        if self.scanned_cell is not None and self.valid is None and node is not None:
            mark(node, self.scanned_cell)
        for value in states:
            self.sized(value)
        sequence.dtype = self.dtype
        sequence.shape = ir.Shape([self.steps, self.batch, self.hidden])
        return [sequence], states

    def _row(self, size: int, name: str, dtype: ir.DataType | None = None) -> ir.Value:
        """An input of the cell that is scanned, with a row for each sample."""
        kind = ir.TensorType(dtype or self.dtype)
        name = self.op.fresh_name(f"{self.node.outputs[0].name or describe(self.node)}/{name}")
        return ir.Value(name=name, type=kind, shape=ir.Shape([self.batch, size]))

    def _unroll(self, direction: Direction, steps: int) -> tuple[Sequence[ir.Value], State]:
        cell = self._make_cell(self, direction)
        outputs = []
        state = direction.initial
        order = range(steps)[:: -1 if direction.backwards else 1]
        for step in order:
            output, state = self._masked(step, cell(step, state), state)
            outputs.append(output)
        return outputs[:: -1 if direction.backwards else 1], state

    def sequence(self, outputs: Sequence[Sequence[ir.Value]]) -> ir.Value:
        """The output of the layer, from those of each step in each direction."""
        op = self.op
        if self.is_scanned:
            each = [op.Unsqueeze(value, [1]) for (value,) in outputs]
            joined = op.Concat(*each, axis=1)
            return op.Transpose(joined, perm=[2, 0, 1, 3]) if self.layout else joined
        joined = op.Concat(*(h for step in zip(*outputs, strict=True) for h in step), axis=1)
        shape = [-1, self.steps, len(outputs), self.hidden]
        by_sample = op.Reshape(joined, np.array(shape, np.int64))
        return by_sample if self.layout else op.Transpose(by_sample, perm=[1, 2, 0, 3])

    def last(self, states: State) -> ir.Value:
        """The state of the layer, from that of each direction."""
        op, axis = self.op, self.layout
        return op.Concat(*(op.Unsqueeze(state, [axis]) for state in states), axis=axis)

    def project(self, w: ir.Value, bias: ir.Value | None, gates: int) -> list[ir.Value]:
        """The input times a weight, plus a bias, of each step: one product for all of them.

        Of a cell that is scanned, that of its step.
        """
        op, count = self.op, self.steps
        product = self.product(self.rows, w, bias)
        if self.is_scanned or count is None:
            shape = op.Concat(self._count, self.batch_size, [gates * self.hidden], axis=0)
            steps = op.Reshape(product, shape)
            steps.dtype = self.dtype
            steps.shape = ir.Shape([count, self.batch, gates * self.hidden])
            row = self._row(gates * self.hidden, "x")
            self._scanned.append((steps, row))
            return [row]
        known = isinstance(self.batch, int)
        sizes = [self.batch] * count if known else op.Expand(self.batch_size, [count])
        parts = op.node("Split", [product, sizes], outputs=count, axis=0)
        return [self.sized(value, gates) for value in parts]

    def product(self, x: ir.Value, w: ir.Value, addend: ir.Value | None) -> ir.Value:
        """Rows times a weight, plus something, if there is something."""
        return self.op.Gemm(*((x, w) if addend is None else (x, w, addend)), transB=1)

    def split(self, value: ir.Value, *gates: int, axis: int = -1) -> Sequence[ir.Value]:
        """Cut into parts of so many gates."""
        sizes = np.array(gates, np.int64) * self.hidden
        parts = self.op.node("Split", [value, sizes], outputs=len(gates), axis=axis)
        for part in parts:
            part.dtype = self.dtype
        return parts

    def _masked(self, step: int, new: State, old: State) -> tuple[ir.Value, State]:
        """The output and the state after a step, which is past the end of some sequences."""
        op = self.op
        if self.lengths is None:
            return new[0], new
        valid = op.Greater(self.lengths, np.array(step, np.int32))
        if step == 0:
            # It is past the end of empty sequences alone, which end as zeros in ONNX Runtime.
            state = [op.Where(valid, value, 0.0) for value in new]
            return state[0], state
        state = [op.Where(valid, *values) for values in zip(new, old, strict=True)]
        return op.Where(valid, new[0], 0.0), state

    def _initial(self, state: ir.Value | None) -> ir.Value:
        if state is None:
            shape = self.op.Concat(self.batch_size, [self.hidden], axis=0)
            zero = ir.tensor(np.zeros(1, self.dtype.numpy()))
            state = self.op.ConstantOfShape(shape, value=zero)
        return self.sized(state)

    def sized(self, value: ir.Value, gates: int = 1) -> ir.Value:
        """A value with a row for each sample of the batch, which shape inference may not see."""
        value.dtype = self.dtype
        value.shape = ir.Shape([self.batch, gates * self.hidden])
        return value

    def _each(self, index: int, count: int, axis: int = 0) -> list[ir.Value | None]:
        """An input of the node, of each direction."""
        value = self._input(index)
        if value is None:
            return [None] * count
        parts: Sequence[ir.Value] = [value]
        if count > 1:
            parts = self.op.node("Split", [value, [1] * count], outputs=count, axis=axis)
        return [self.op.Squeeze(part, [axis]) for part in parts]

    def _input(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def _hidden_size(self) -> int:
        weights = self.node.inputs[2]
        assert weights is not None
        inferred = None if weights.shape is None else weights.shape[-1]
        size = self.node.attributes.get_int("hidden_size", 0) or inferred
        if not isinstance(size, int):
            raise ValueError(f"{describe(self.node)}: its attribute hidden_size is missing")
        return size

    def _check_sizes(self) -> None:
        """What is of another hidden_size would be broadcast, or fit nothing."""
        rows, units = _GATES[self.node.op_type] * self.hidden, self.hidden
        last: dict[int, list[int]] = {1: [rows, -1], 2: [rows, units], 5: [units], 6: [units]}
        for index, sizes in last.items():
            value = self._input(index)
            if value is None or value.shape is None:
                continue
            found = value.shape[-len(sizes) :]
            if any(isinstance(a, int) and a != b >= 0 for a, b in zip(found, sizes, strict=False)):
                raise ValueError(
                    f"{describe(self.node)}: its input '{value.name}' has shape "
                    f"{list(value.shape)}, which does not fit its hidden_size {units}; PyTorch's "
                    "exporter writes such a node for an LSTM with proj_size, which ONNX does not "
                    "have: leave proj_size out"
                )

    def _steps_and_batch(self, x: ir.Value) -> tuple[int | None, int | str]:
        dims = [d if isinstance(d, int) else d.value for d in x.shape or ir.Shape([None, None])]
        steps, batch = dims[self.layout], dims[1 - self.layout]
        if steps == 0:
            raise ValueError(f"{describe(self.node)}: '{x.name}' has no time steps")
        return steps if isinstance(
            steps, int
        ) else None, f"{describe(self.node)}/batch" if batch is None else batch


MakeCell = Callable[[Layer, Direction], Cell]
"""Makes the cell of a direction, and appends what it needs of the whole sequence."""
