"""Recurrent layers in operators that have a rule.

One cell is scanned over the steps; a few steps are unrolled, one cell each, and all of them where a
device or a runtime asks for it.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators._recurrent_layer import Cell, Direction, Layer, MakeCell, State
from graphopt.operators.flops import Outputs, plus, times
from graphopt.operators.record import operator
from graphopt.operators.recurrent_functions import Gru, Lstm
from graphopt.shapes import networks
from graphopt.shapes.node import Node

_MOST_UNROLLED = 8  # a round of a Scan takes as long as some nodes


def rewrite_recurrent(
    op: GraphBuilder, node: ir.Node, trained: Collection[str], unrolled: int = _MOST_UNROLLED
) -> None:
    """Replace an LSTM, GRU or RNN by one cell a time step, or by a Scan of one.

    Args:
        op: Appends the nodes.
        node: The LSTM, GRU or RNN.
        trained: The names of the trained parameters.
        unrolled: Of so many steps, if it is known that there are not more, each has a cell.

    Raises:
        ValueError: There are no time steps, or an attribute is not valid.
    """
    del trained
    with op.named(node.name or str(node.outputs[0].name)):
        layer = Layer(op, node, _CELLS[node.op_type], unrolled)
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


def _lstm(layer: Layer, d: Direction) -> Cell:
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
            gates = functions[0](gates)
            i, o, f = layer.split(gates, 1, 1, 1)
        else:
            i, o, f, block = layer.split(gates, 1, 1, 1, 1)
            i = functions[0](op.Add(i, op.Mul(c, p_i)))
            f = functions[0](op.Add(f, op.Mul(c, p_f)))
        if coupled:
            f = op.Sub(1.0, i)
        block = functions[1](block)
        c = op.Add(op.Mul(f, c), op.Mul(i, block))
        if d.peepholes is not None:
            o = functions[0](op.Add(o, op.Mul(c, p_o)))
        elif not coupled and layer.is_plain:
            kept = [layer.sized(gates, 3), layer.sized(block)]
            layer.scanned_cell = Lstm(layer.hidden, d.backwards, kept, [d.r])
        return op.Mul(o, functions[2](c)), c

    return cell


def _gru(layer: Layer, d: Direction) -> Cell:
    op, functions = layer.op, d.functions
    reset_last = layer.node.attributes.get_int("linear_before_reset", 0)
    if layer.is_scanned and layer.is_plain and reset_last:
        return _gru_of_one_product(layer, d)
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


def _gru_of_one_product(layer: Layer, d: Direction) -> Cell:
    """One that resets products: those of all gates are one."""
    op, functions = layer.op, d.functions
    bias = None
    if d.wb is not None and d.rb is not None:
        (wb, wb_n), (rb, bias_n) = layer.split(d.wb, 2, 1), layer.split(d.rb, 2, 1)
        bias = op.Concat(op.Add(wb, rb), wb_n, axis=0)
    else:
        # A constant would look like a weight that is not trained.
        zero = ir.tensor(np.zeros(1, layer.dtype.numpy()))
        bias_n = op.ConstantOfShape([layer.hidden], value=zero)
        bias_n.dtype = layer.dtype
    x = layer.project(d.w, bias, 3)

    def cell(step: int, state: State) -> State:
        (h,) = state
        of_h, u = layer.split(layer.product(h, d.r, None), 2, 1)
        of_x, of_new = layer.split(x[step], 2, 1)
        gates, u = functions[0](op.Add(of_x, of_h)), op.Add(u, bias_n)
        update, reset = layer.split(gates, 1, 1)
        new = functions[1](op.Add(of_new, op.Mul(reset, u)))
        kept = [layer.sized(gates, 2), layer.sized(new), layer.sized(u)]
        layer.scanned_cell = Gru(layer.hidden, d.backwards, kept, [d.r, bias_n])
        return [op.Add(new, op.Mul(update, op.Sub(h, new)))]

    return cell


def _rnn(layer: Layer, d: Direction) -> Cell:
    bias = None if d.wb is None else layer.op.Add(d.wb, d.rb)
    x = layer.project(d.w, bias, 1)

    def cell(step: int, state: State) -> State:
        return [d.functions[0](layer.product(state[0], d.r, x[step]))]

    return cell


_CELLS: dict[str, MakeCell] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
RECURRENT = frozenset(_CELLS)
"""The operators that `rewrite_recurrent` takes."""


def _flops(node: Node, outputs: Outputs) -> int | None:
    """Its matrix products alone, which is nearly all."""
    del outputs
    weights = (times(*node.shape(index)) for index in (1, 2))
    return times(2, times(*node.shape()[:2]), plus(*weights))


operator(
    *_CELLS,
    rewrite=rewrite_recurrent,
    weights=(1, 2),
    starts=(5, 6),
    flops=_flops,
    shape=networks.recurrent,
)
