"""Recurrent layers over all steps as functions that have kernels, and their gradients as others.

Where there are no kernels, ONNX Runtime runs their bodies: Scans of the cell.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.graphs import captured
from graphopt.local_functions import add_body, become_call, call_body
from graphopt.operators._rounds import answer, report
from graphopt.operators.backward import Backward
from graphopt.operators.record import NoGradient

_CELL = "graphopt.cell"
"""Metadata of a Scan of a cell."""


@dataclass
class ScannedCell(ABC):
    """A kind of cell, and what a Scan of it consists of.

    The Scan gives its states, the first of which is h, then the list of h; its rows are what the
    gates get of the input.

    Attributes:
        hidden: How many units there are.
        backwards: Whether the last step comes first.
        kept: In the body of the Scan, what the gradient reads beside the states before the step.
        weights: What the body reads around it: those of h, r [gates hidden, hidden], first.
        outputs: The outputs of the body, once they are those of the function.
    """

    hidden: int
    backwards: bool
    kept: Sequence[ir.Value]
    weights: Sequence[ir.Value]
    outputs: Sequence[ir.Value] = field(default=(), init=False)

    kind = ""
    """What the names of functions begin with."""
    states = 1

    @property
    def name(self) -> str:
        """The function's."""
        return f"{self.kind}Reverse" if self.backwards else self.kind

    @abstractmethod
    def forward(self, op: GraphBuilder, *operands: ir.Value) -> Sequence[ir.Value]:
        """From x [steps, batch, gates hidden], the weights and the states before all steps.

        To the states after them, and lists: of h, of each state before a step, of what is kept.
        """

    @abstractmethod
    def gradient(self, op: GraphBuilder, *operands: ir.Value) -> Sequence[ir.Value]:
        """From the gradients of the list of h and of the states, what is kept, a state, and r.

        The state is the last one, of each step before it. To the gradients of x and of the states,
        and, where that is another than that of x, to the one of the products with r.
        """

    def gradients_of_weights(
        self, op: GraphBuilder, products: ir.Value, h: ir.Value
    ) -> Iterator[ir.Value]:
        """From the gradient of the products, and h before each step."""
        yield op.Gemm(op.Flatten(products, axis=2), op.Flatten(h, axis=2), transA=1)

    def split(self, op: GraphBuilder, value: ir.Value, *gates: int) -> Sequence[ir.Value]:
        """Cut into parts of so many gates."""
        sizes = np.array(gates, np.int64) * self.hidden
        return op.node("Split", [value, sizes], outputs=len(gates), axis=-1)

    def scan(
        self,
        op: GraphBuilder,
        body: ir.Graph,
        operands: Sequence[ir.Value],
        results: Sequence[ir.Value],
        *,
        backwards: bool,
    ) -> Sequence[ir.Value]:
        """Append the Scan of a body, from what it begins with and its lists to its results."""
        body.outputs.extend(results)
        lists, way = len(operands) - self.states, int(backwards)
        return op.node(
            "Scan",
            operands,
            outputs=len(results),
            body=body,
            num_scan_inputs=lists,
            scan_input_directions=[way] * lists,
            scan_output_directions=[way] * (len(results) - self.states),
        )


def mark(scan: ir.Node, cell: ScannedCell) -> None:
    """Say that a Scan is of this cell."""
    scan.meta[_CELL] = cell


def has_kernel(b: Backward) -> bool:
    """Whether a Scan is of a cell, and all steps of it may run as a kernel."""
    cell = b.node.meta.get(_CELL)
    if not isinstance(cell, ScannedCell):
        return False
    return b.has_kernels(*map(b.input, range(cell.states + 1)), *cell.weights)


def gradients_of_cell(b: Backward) -> Iterator[ir.Value | NoGradient]:
    """Those of a Scan of a cell, by one function: see `ScannedCell.gradient`."""
    op, node = b.op, b.node
    cell: ScannedCell = node.meta[_CELL]
    n, body = cell.states, node.attributes["body"].as_graph()
    steps = b.shape(b.input(n))[0]
    before, kept = (
        [report(op, node, value, steps if isinstance(steps, int) else None) for value in values]
        for values in (list(body.inputs)[:n], cell.kept)
    )
    node.attributes["scan_output_directions"] = ir.AttrInt64s(
        "scan_output_directions", [int(cell.backwards)] * (len(node.outputs) - n)
    )
    cell.outputs = tuple(body.outputs)
    operands = [b.gradient(n), *map(b.gradient, range(n)), *kept, before[-1], cell.weights[0]]
    name, of = f"{cell.name}Gradient", (cell.hidden, cell.backwards)
    results = call_body(op, name, operands, cell.gradient, of, outputs=3)
    found: dict[int | ir.Value, ir.Value] = dict(enumerate((*results[1 : n + 1], results[0])))
    products = results[-1] if len(results) > n + 1 else results[0]
    products.shape = b.input(n).shape
    for index in range(n + 1):
        found[index].shape = b.input(index).shape
    of_weights = cell.gradients_of_weights(op, products, before[0])
    yield from answer(b, found | dict(zip(cell.weights, of_weights, strict=True)))


def call_layer(op: GraphBuilder, node: ir.Node) -> None:
    """Let a Scan whose gradient is that of its cell call a function; others stay."""
    cell = node.meta.get(_CELL)
    if not isinstance(cell, ScannedCell) or not cell.outputs:
        return
    body, read = node.attributes["body"].as_graph(), captured(node)
    if tuple(body.outputs) != tuple(cell.outputs) or not set(cell.weights) <= set(read):
        return
    *states, x = (value for value in node.inputs if value is not None)
    operands = [x, *cell.weights, *states]
    name = add_body(op, cell.name, operands, cell.forward, (cell.hidden, cell.backwards))
    body.outputs.clear()
    body.remove(list(body), safe=True)  # they read the weights no more
    become_call(op, node, name, operands)
    for value in read:
        if value.is_initializer() and not value.uses():
            op.graph.initializers.pop(str(value.name))


def _rows(op: GraphBuilder, count: int) -> tuple[ir.Graph, list[ir.Value]]:
    """The body of a Scan, which has no nodes yet, and its inputs."""
    rows = [ir.val(op.fresh_name("row"), ir.DataType.FLOAT) for _ in range(count)]
    return ir.Graph(rows, [], nodes=[], name="cell"), rows


class Lstm(ScannedCell):
    """With gates i, o and f, which are kept, and g, which is kept too; its states are h and c."""

    kind = "LstmLayer"
    states = 2

    def forward(self, op: GraphBuilder, *operands: ir.Value) -> Sequence[ir.Value]:
        """c = f c₀ + i g; h = o tanh(c)."""
        x, r, *states = operands
        body, (h_before, c_before, row) = _rows(op, 3)
        with op.inside(body):
            gates, g = self.split(op, op.Gemm(h_before, r, row, transB=1), 3, 1)
            gates, g = op.Sigmoid(gates), op.Tanh(g)
            i, o, f = self.split(op, gates, 1, 1, 1)
            c = op.Add(op.Mul(f, c_before), op.Mul(i, g))
            h = op.Mul(o, op.Tanh(c))
            before = op.Identity(h_before), op.Identity(c_before)
            results = [h, c, op.Identity(h), *before, gates, g]
        return self.scan(op, body, [*states, x], results, backwards=self.backwards)

    def gradient(self, op: GraphBuilder, *operands: ir.Value) -> Sequence[ir.Value]:
        """With t = tanh(c), and dh' and dc' what the step behind passes on.

        dh = dh' + dy; dc = dc' + dh o (1 - t²); dx = dc g i (1 - i), dh t o (1 - o),
        dc c₀ f (1 - f), dc i (1 - g²); then dh' = dx R, dc' = dc f.
        """
        dy, dh, dc, gates, block, c, r = operands
        body, (dh_row, dc_row, dy_row, gates_row, g, c_before) = _rows(op, 6)
        with op.inside(body):
            i, o, f = self.split(op, gates_row, 1, 1, 1)
            t = op.Tanh(op.Add(op.Mul(f, c_before), op.Mul(i, g)))
            of_h = op.Add(dh_row, dy_row)
            slope = op.Sub(1.0, op.Mul(t, t))
            of_c = op.Add(dc_row, op.Mul(op.Mul(of_h, o), slope))
            of_gates = op.Concat(op.Mul(of_c, g), op.Mul(of_h, t), op.Mul(of_c, c_before), axis=-1)
            of_gates = op.Mul(of_gates, op.Mul(gates_row, op.Sub(1.0, gates_row)))
            of_block = op.Mul(op.Mul(of_c, i), op.Sub(1.0, op.Mul(g, g)))
            dx = op.Concat(of_gates, of_block, axis=-1)
            results = [op.MatMul(dx, r), op.Mul(of_c, f), dx]
        starts, lists = [dh, dc], [dy, gates, block, c]
        dh, dc, dx = self.scan(op, body, [*starts, *lists], results, backwards=not self.backwards)
        return dx, dh, dc


class Gru(ScannedCell):
    """With gates z and r, which are kept; then n, and the product u that r multiplies in it.

    Beside the weights of h, it reads the bias of u, [hidden]; its state is h.
    """

    kind = "GruLayer"

    def forward(self, op: GraphBuilder, *operands: ir.Value) -> Sequence[ir.Value]:
        """n = tanh(x + r u); h = n + z (h₀ - n)."""
        x, weights, bias, h = operands
        body, (h_before, row) = _rows(op, 2)
        with op.inside(body):
            of_h, u = self.split(op, op.Gemm(h_before, weights, transB=1), 2, 1)
            of_x, of_new = self.split(op, row, 2, 1)
            gates, u = op.Sigmoid(op.Add(of_x, of_h)), op.Add(u, bias)
            z, r = self.split(op, gates, 1, 1)
            n = op.Tanh(op.Add(of_new, op.Mul(r, u)))
            h_after = op.Add(n, op.Mul(z, op.Sub(h_before, n)))
            results = [h_after, op.Identity(h_after), op.Identity(h_before), gates, n, u]
        return self.scan(op, body, [h, x], results, backwards=self.backwards)

    def gradient(self, op: GraphBuilder, *operands: ir.Value) -> Sequence[ir.Value]:
        """With dh' what the step behind passes on.

        dh = dh' + dy; dz = dh (h₀ - n) z (1 - z); dn = dh (1 - z) (1 - n²); dr = dn u r (1 - r);
        dx = dz, dr, dn, and that of the products is dp = dz, dr, dn r; then dh' = dh z + dp R.
        """
        dy, dh, gates, new, inner, h, weights = operands
        body, (dh_row, dy_row, gates_row, n, u, h_before) = _rows(op, 6)
        with op.inside(body):
            z, r = self.split(op, gates_row, 1, 1)
            of_h = op.Add(dh_row, dy_row)
            of_n = op.Mul(op.Mul(of_h, op.Sub(1.0, z)), op.Sub(1.0, op.Mul(n, n)))
            of_gates = op.Concat(op.Mul(of_h, op.Sub(h_before, n)), op.Mul(of_n, u), axis=-1)
            of_gates = op.Mul(of_gates, op.Mul(gates_row, op.Sub(1.0, gates_row)))
            dx = op.Concat(of_gates, of_n, axis=-1)
            products = op.Concat(of_gates, op.Mul(of_n, r), axis=-1)
            passed = op.Add(op.Mul(of_h, z), op.MatMul(products, weights))
        dh, dx, products = self.scan(
            op,
            body,
            [dh, dy, gates, new, inner, h],
            [passed, dx, products],
            backwards=not self.backwards,
        )
        return dx, dh, products

    def gradients_of_weights(
        self, op: GraphBuilder, products: ir.Value, h: ir.Value
    ) -> Iterator[ir.Value]:
        """Also that of the bias of u."""
        yield from super().gradients_of_weights(op, products, h)
        sums = op.ReduceSum(products, [0, 1], keepdims=0)
        yield self.split(op, sums, 2, 1)[1]
