"""Recurrent layers in operators that have a rule.

They are unrolled, one cell a time step; where the number of steps is open, one cell is scanned over
the steps.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.operators._recurrent_activations import Activation, activations
from graphopt.operators.flops import Outputs, plus, times
from graphopt.operators.record import operator
from graphopt.operators.rewriting import describe
from graphopt.shapes import networks
from graphopt.shapes.values import Node

State = Sequence[ir.Value]
"""The hidden state, then that of an LSTM's cell."""
Cell = Callable[[int, State], State]
"""From a time step and the state before it to the state after it."""

_BACKWARDS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_FUNCTIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def rewrite_recurrent(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Replace an LSTM, GRU or RNN by one cell a time step, or by a Scan of one.

    Raises:
        ValueError: There are no time steps, or an attribute is not valid.
    """
    del trained
    with op.named(node.name or str(node.outputs[0].name)):
        layer = _Layer(op, node)
        outputs, states = zip(*(layer.run(d) for d in layer.directions()), strict=True)
        for index, old in enumerate(node.outputs):
            if not old.uses() and not old.is_graph_output():
                continue
            if index:
                new = layer.last([state[index - 1] for state in states])
            else:
                new = layer.sequence(outputs)
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            new.name = old.name
    op.graph.remove(node, safe=True)


@dataclass(frozen=True)
class _Direction:
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


class _Layer:
    """A recurrent node, and the nodes that all kinds of cells have in common.

    Attributes:
        steps: The number of time steps; None where it is open.
        batch: That of samples, or the symbol of it.
        valid: Where it is open, which samples have not ended, of each step, if some may have.
    """

    def __init__(self, op: GraphBuilder, node: ir.Node) -> None:
        self.op = op
        self.node = node
        self.layout = node.attributes.get_int("layout", 0)
        self.hidden = self._hidden_size()
        x = self._input(0)
        assert x is not None
        self.dtype = x.dtype or ir.DataType.FLOAT
        self.steps, self.batch = self._steps_and_batch(x)
        by_step = op.Transpose(x, perm=[1, 0, 2]) if self.layout else x
        self.rows = op.Flatten(by_step, axis=2)
        known = isinstance(self.batch, int)
        self.batch_size: Operand = [self.batch] if known else op.Shape(by_step, start=1, end=2)
        self.lengths = self.valid = None
        if (lengths := self._input(4)) is not None:
            self.lengths = op.Unsqueeze(lengths, [1])
            self.lengths.shape = ir.Shape([self.batch, 1])
        self._scanned: list[tuple[ir.Value, ir.Value]] = []
        if self.steps is None:
            self._count = op.Shape(by_step, start=0, end=1)
            if self.lengths is not None:
                steps = op.Range(0, op.Squeeze(self._count, [0]), 1)
                steps = op.Unsqueeze(op.Cast(steps, to=ir.DataType.INT32), [1, 2])
                self.valid = op.Less(steps, self.lengths)

    def directions(self) -> list[_Direction]:
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
                _Direction(
                    is_backwards, weight, recurrent, wb, rb, peepholes[i], initial, functions[i]
                )
            )
        return directions

    def run(self, direction: _Direction) -> tuple[Sequence[ir.Value], State]:
        """The output of each step, and the state after all of them.

        Where the number of steps is open, the output is one value [steps, batch, hidden].
        """
        return self._scan(direction) if self.steps is None else self._unroll(direction, self.steps)

    def _scan(self, direction: _Direction) -> tuple[Sequence[ir.Value], State]:
        op = self.op
        self._scanned = []
        cell = _CELLS[self.node.op_type](self, direction)
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
            results = [op.Identity(value) for value in (*state, output)]
        for result in results:
            self._rows(result)
        body.inputs.extend([*before, *(row for _, row in self._scanned)])
        body.outputs.extend(results)
        if self.lengths is not None:  # an empty sequence ends as zeros in ONNX Runtime
            begins = op.Greater(self.lengths, np.array(0, np.int32))
            initial = [op.Where(begins, value, 0.0) for value in initial]
        way = int(direction.backwards)
        *states, sequence = op.node(
            "Scan",
            [*initial, *(value for value, _ in self._scanned)],
            outputs=len(results),
            body=body,
            num_scan_inputs=len(self._scanned),
            scan_input_directions=[way] * len(self._scanned),
            scan_output_directions=[way],
        )
        for value in states:
            self._rows(value)
        sequence.dtype = self.dtype
        sequence.shape = ir.Shape([None, self.batch, self.hidden])
        return [sequence], states

    def _row(self, size: int, name: str, dtype: ir.DataType | None = None) -> ir.Value:
        """An input of the cell that is scanned, with a row for each sample."""
        kind = ir.TensorType(dtype or self.dtype)
        name = self.op.fresh_name(f"{self.node.outputs[0].name or describe(self.node)}/{name}")
        return ir.Value(name=name, type=kind, shape=ir.Shape([self.batch, size]))

    def _unroll(self, direction: _Direction, steps: int) -> tuple[Sequence[ir.Value], State]:
        cell = _CELLS[self.node.op_type](self, direction)
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
        if self.steps is None:
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

        Where the number of steps is open, of the step of the cell that is scanned.
        """
        op, count = self.op, self.steps
        product = self.product(self.rows, w, bias)
        if count is None:
            shape = op.Concat(self._count, self.batch_size, [gates * self.hidden], axis=0)
            steps = op.Reshape(product, shape)
            steps.dtype = self.dtype
            steps.shape = ir.Shape([None, self.batch, gates * self.hidden])
            row = self._row(gates * self.hidden, "x")
            self._scanned.append((steps, row))
            return [row]
        known = isinstance(self.batch, int)
        sizes = [self.batch] * count if known else op.Expand(self.batch_size, [count])
        parts = op.node("Split", [product, sizes], outputs=count, axis=0)
        return [self._rows(value, gates) for value in parts]

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
        return self._rows(state)

    def _rows(self, value: ir.Value, gates: int = 1) -> ir.Value:
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

    def _steps_and_batch(self, x: ir.Value) -> tuple[int | None, int | str]:
        dims = [d if isinstance(d, int) else d.value for d in x.shape or ir.Shape([None, None])]
        steps, batch = dims[self.layout], dims[1 - self.layout]
        if steps == 0:
            raise ValueError(f"{describe(self.node)}: '{x.name}' has no time steps")
        return steps if isinstance(
            steps, int
        ) else None, f"{describe(self.node)}/batch" if batch is None else batch


def _lstm(layer: _Layer, d: _Direction) -> Cell:
    op, functions = layer.op, d.functions
    bias = None if d.wb is None else op.Add(d.wb, d.rb)
    x = layer.project(d.w, bias, 4)
    coupled = layer.node.attributes.get_int("input_forget", 0)
    if d.peepholes is not None:
        p_i, p_o, p_f = layer.split(d.peepholes, 1, 1, 1)

    def cell(step: int, state: State) -> State:
        h, c = state
        gates = layer.product(h, d.r, x[step])
        if d.peepholes is None:
            # The function of three gates at once.
            gates, block = layer.split(gates, 3, 1)
            i, o, f = layer.split(functions[0](gates), 1, 1, 1)
        else:
            i, o, f, block = layer.split(gates, 1, 1, 1, 1)
            i = functions[0](op.Add(i, op.Mul(c, p_i)))
            f = functions[0](op.Add(f, op.Mul(c, p_f)))
        if coupled:
            f = op.Sub(1.0, i)
        c = op.Add(op.Mul(f, c), op.Mul(i, functions[1](block)))
        if d.peepholes is not None:
            o = functions[0](op.Add(o, op.Mul(c, p_o)))
        return op.Mul(o, functions[2](c)), c

    return cell


def _gru(layer: _Layer, d: _Direction) -> Cell:
    op, functions = layer.op, d.functions
    reset_last = layer.node.attributes.get_int("linear_before_reset", 0)
    w, w_n = layer.split(d.w, 2, 1, axis=0)
    r, r_n = layer.split(d.r, 2, 1, axis=0)
    bias = bias_n = inner = None
    if d.wb is not None and d.rb is not None:
        (wb, wb_n), (rb, rb_n) = layer.split(d.wb, 2, 1), layer.split(d.rb, 2, 1)
        bias = op.Add(wb, rb)
        bias_n, inner = (wb_n, rb_n) if reset_last else (op.Add(wb_n, rb_n), None)
    x, x_n = layer.project(w, bias, 2), layer.project(w_n, bias_n, 1)

    def cell(step: int, state: State) -> State:
        (h,) = state
        gates = functions[0](layer.product(h, r, x[step]))
        update, reset = layer.split(gates, 1, 1)
        if reset_last:
            new = op.Add(x_n[step], op.Mul(reset, layer.product(h, r_n, inner)))
        else:
            new = layer.product(op.Mul(reset, h), r_n, x_n[step])
        new = functions[1](new)
        return [op.Add(new, op.Mul(update, op.Sub(h, new)))]

    return cell


def _rnn(layer: _Layer, d: _Direction) -> Cell:
    bias = None if d.wb is None else layer.op.Add(d.wb, d.rb)
    x = layer.project(d.w, bias, 1)

    def cell(step: int, state: State) -> State:
        return [d.functions[0](layer.product(state[0], d.r, x[step]))]

    return cell


_CELLS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _flops(node: Node, outputs: Outputs) -> int | None:
    """Its matrix products alone, which is nearly all."""
    del outputs
    weights = (times(*node.shape(index)) for index in (1, 2))
    return times(2, times(*node.shape()[:2]), plus(*weights))


operator(
    *_CELLS,
    rewrite=rewrite_recurrent,
    weights=(1, 2),
    flops=_flops,
    shape=networks.recurrent,
)
