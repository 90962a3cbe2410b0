"""An LSTM over all steps as a function that has a kernel, and its gradient as another.

Their bodies are Scans of the cell, which run where there are no kernels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.graphs import captured
from graphopt.local_functions import DOMAIN, VERSION, add_body, call_body
from graphopt.operators._rounds import answer, report
from graphopt.operators.backward import Backward
from graphopt.operators.record import NoGradient

_CELL = "graphopt.lstm"
"""Metadata of a Scan of an LSTM's cell."""


@dataclass(frozen=True)
class _Cell:
    """What is known of the body of a Scan.

    Attributes:
        gates: The gates i, o and f, [batch, 3 hidden].
        block: What goes into the state by the gate i, [batch, hidden].
        hidden: How many units there are.
        backwards: Whether the last step comes first.
        outputs: The outputs of the body, if they are those of the function.
    """

    gates: ir.Value
    block: ir.Value
    hidden: int
    backwards: bool
    outputs: Sequence[ir.Value] = ()

    @property
    def name(self) -> str:
        return "LstmLayerReverse" if self.backwards else "LstmLayer"


def mark_lstm(
    scan: ir.Node, gates: ir.Value, block: ir.Value, *, hidden: int, backwards: bool
) -> None:
    """Say that a Scan is an LSTM whose gates are sigmoids, and all else of it hyperbolic tangents.

    Args:
        scan: Its states are h and c, its rows are x W + b of all gates, its list is that of h.
        gates: In its body, the gates i, o and f, [batch, 3 hidden].
        block: In its body, what goes into the state by the gate i, [batch, hidden].
        hidden: How many units there are.
        backwards: Whether the last step comes first.
    """
    scan.meta[_CELL] = _Cell(gates, block, hidden, backwards)


def is_lstm(b: Backward) -> bool:
    """Whether a Scan is an LSTM that may run as a kernel."""
    return _CELL in b.node.meta and b.has_kernels(*(b.input(index) for index in range(3)))


def lstm_gradients(b: Backward) -> Iterator[ir.Value | NoGradient]:
    """Those of a Scan that is an LSTM: the gates of all steps are kept, and the states before them.

    With dh = dh' + dy, where dh' is what the step behind passes on, and t = tanh(c):
    dc = dc' + dh o (1 - t²), di = dc g i (1 - i), do = dh t o (1 - o), df = dc c₀ f (1 - f),
    dg = dc i (1 - g²), of all of which dx consists; dh' = dx R, dc' = dc f. The gradient of R is
    Σ dxᵀ h₀.
    """
    op, node = b.op, b.node
    cell: _Cell = node.meta[_CELL]
    body = node.attributes["body"].as_graph()
    before = list(body.inputs)[:2]
    steps = b.shape(b.input(2))[0]
    count = steps if isinstance(steps, int) else None
    h, c, gates, block = (
        report(op, node, value, count) for value in (*before, cell.gates, cell.block)
    )
    node.attributes["scan_output_directions"] = ir.AttrInt64s(
        "scan_output_directions", [int(cell.backwards)] * (len(node.outputs) - len(before))
    )
    node.meta[_CELL] = replace(cell, outputs=tuple(body.outputs))
    (r,) = _weights(node)
    name = f"{cell.name}Gradient"
    operands = [b.gradient(2), b.gradient(0), b.gradient(1), gates, block, c, r]
    of = cell.hidden, cell.backwards
    dx, dh, dc = call_body(op, name, operands, _Gradient(cell), of, outputs=3)
    for gradient, index in ((dh, 0), (dc, 1), (dx, 2)):
        gradient.shape = b.input(index).shape
    dr = op.Gemm(op.Flatten(dx, axis=2), op.Flatten(h, axis=2), transA=1)
    yield from answer(b, {0: dh, 1: dc, 2: dx, r: dr})


def call_lstm(op: GraphBuilder, node: ir.Node) -> None:
    """Let a Scan whose gradient `lstm_gradients` has given call a function; others stay."""
    cell = node.meta.get(_CELL)
    if not isinstance(cell, _Cell) or not cell.outputs:
        return
    body, read = node.attributes["body"].as_graph(), captured(node)
    weights = _weights(node)
    if tuple(body.outputs) != cell.outputs or len(weights) != 1:
        return
    h, c, x = node.inputs
    assert h is not None
    assert c is not None
    assert x is not None
    operands = [x, *weights, h, c]
    of = cell.hidden, cell.backwards
    name = add_body(op, cell.name, operands, _Forward(cell), of)
    body.outputs.clear()
    body.remove(list(body), safe=True)  # they read the weights no more
    for value in read:
        if value.is_initializer() and not value.uses():
            op.graph.initializers.pop(str(value.name))
    node.op_type, node.domain = name, DOMAIN
    op.graph.opset_imports[DOMAIN] = VERSION
    node.attributes.clear()
    node.resize_inputs(len(operands))
    for index, value in enumerate(operands):
        node.replace_input_with(index, value)


def _weights(node: ir.Node) -> list[ir.Value]:
    """What the body of a Scan reads around it, without the sizes of a Split."""
    return [value for value in captured(node) if value.dtype == ir.DataType.FLOAT]


class _Scanned:
    """A body of a function: a Scan of a cell."""

    def __init__(self, cell: _Cell) -> None:
        self.hidden, self.way = cell.hidden, int(cell.backwards)

    def split(self, op: GraphBuilder, value: ir.Value, *gates: int) -> Sequence[ir.Value]:
        """Cut into parts of so many gates."""
        sizes = np.array(gates, np.int64) * self.hidden
        return op.node("Split", [value, sizes], outputs=len(gates), axis=-1)

    def scan(
        self,
        op: GraphBuilder,
        states: Sequence[ir.Value],
        lists: Sequence[ir.Value],
        results: Sequence[ir.Value],
        body: ir.Graph,
        way: int,
    ) -> Sequence[ir.Value]:
        """Append the Scan."""
        body.outputs.extend(results)
        count = len(results) - len(states)
        return op.node(
            "Scan",
            [*states, *lists],
            outputs=len(results),
            body=body,
            num_scan_inputs=len(lists),
            scan_input_directions=[way] * len(lists),
            scan_output_directions=[way] * count,
        )


def _rows(op: GraphBuilder, count: int) -> tuple[ir.Graph, list[ir.Value]]:
    """The body of a Scan, which has no nodes yet, and its inputs."""
    rows = [ir.val(op.fresh_name("row"), ir.DataType.FLOAT) for _ in range(count)]
    return ir.Graph(rows, [], nodes=[], name="cell"), rows


class _Forward(_Scanned):
    """x [steps, batch, 4 hidden], r [4 hidden, hidden], h and c [batch, hidden].

    To h and c after all steps, and of each step h after and before it, c before it, its gates i, o
    and f, and what goes into the state.
    """

    def __call__(
        self, op: GraphBuilder, x: ir.Value, r: ir.Value, h: ir.Value, c: ir.Value
    ) -> Sequence[ir.Value]:
        body, (h_row, c_row, x_row) = _rows(op, 3)
        with op.inside(body):
            gates, block = self.split(op, op.Gemm(h_row, r, x_row, transB=1), 3, 1)
            gates, block = op.Sigmoid(gates), op.Tanh(block)
            i, o, f = self.split(op, gates, 1, 1, 1)
            c_after = op.Add(op.Mul(f, c_row), op.Mul(i, block))
            h_after = op.Mul(o, op.Tanh(c_after))
            lists = [op.Identity(h_after), op.Identity(h_row), op.Identity(c_row), gates, block]
        return self.scan(op, [h, c], [x], [h_after, c_after, *lists], body, self.way)


class _Gradient(_Scanned):
    """The operands and the results of `lstm_gradients`: dx, dh and dc."""

    def __call__(
        self,
        op: GraphBuilder,
        dy: ir.Value,
        dh: ir.Value,
        dc: ir.Value,
        gates: ir.Value,
        block: ir.Value,
        c: ir.Value,
        r: ir.Value,
    ) -> Sequence[ir.Value]:
        body, (dh_row, dc_row, dy_row, gates_row, g, c_row) = _rows(op, 6)
        with op.inside(body):
            i, o, f = self.split(op, gates_row, 1, 1, 1)
            t = op.Tanh(op.Add(op.Mul(f, c_row), op.Mul(i, g)))
            of_h = op.Add(dh_row, dy_row)
            slope = op.Sub(1.0, op.Mul(t, t))
            of_c = op.Add(dc_row, op.Mul(op.Mul(of_h, o), slope))
            of_gates = op.Concat(op.Mul(of_c, g), op.Mul(of_h, t), op.Mul(of_c, c_row), axis=-1)
            of_gates = op.Mul(of_gates, op.Mul(gates_row, op.Sub(1.0, gates_row)))
            of_block = op.Mul(op.Mul(of_c, i), op.Sub(1.0, op.Mul(g, g)))
            dx = op.Concat(of_gates, of_block, axis=-1)
            results = [op.MatMul(dx, r), op.Mul(of_c, f), dx]
        dh, dc, dx = self.scan(op, [dh, dc], [dy, gates, block, c], results, body, 1 - self.way)
        return dx, dh, dc
