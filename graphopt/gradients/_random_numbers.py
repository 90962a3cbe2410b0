"""Operators that draw random numbers, written so that the numbers follow from a seed and the step.

A runtime's own generator starts anew with each session and knows no state, so that a run that goes
on is another one. Here the numbers are a function of the states ``random_seed`` and
``random_step``, of the node, and of the place in its result; ``graphopt.random_numbers`` says how.
The seeds that nodes have as attributes are not read.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder
from graphopt.graphs import subgraphs
from graphopt.local_functions import DOMAIN, VERSION
from graphopt.marks import FROZEN
from graphopt.operators import of
from graphopt.operators.dropout import constant_ratio
from graphopt.operators.rewriting import replace
from graphopt.random_numbers import columns, nodes
from graphopt.state_inputs import input_of_state
from graphopt.states import RANDOM_SEED, RANDOM_STEP
from graphopt.update import functions

_MIX, _KEYS = "RandomMix", "RandomKeys"
_KEPT, _UNIFORM = "RandomKept", "RandomUniform"
_KEYS_OF = {"Dropout": 1, "RandomNormal": 4, "RandomNormalLike": 4}
_KEYS_OF_OTHERS = 2  # of a uniform number
_MODE = 2  # the input of Dropout that says whether it drops
_FLOAT = ir.DataType.FLOAT


def compute_random_numbers(op: GraphBuilder) -> bool:
    """Write all nodes of a graph that draw random numbers; whether there are any."""
    drawing = [node for node in op.graph.all_nodes() if _draws(node)]
    if not drawing:
        return False
    op.graph.opset_imports[DOMAIN] = VERSION
    with op.at_front(), op.named("random"):
        seed, step = (input_of_state(op, state) for state in (RANDOM_SEED, RANDOM_STEP))
        count = sum(_KEYS_OF.get(node.op_type, _KEYS_OF_OTHERS) for node in drawing)
        keys = functions.call(op, _KEYS, op.constant(nodes(count)), seed, step)
    _write(op, op.graph, _Source(op, keys), ())
    return True


def write_functions_that_draw(model: ir.Model) -> None:
    """Write out the functions of a model in place, if one of them draws random numbers."""
    nodes = (node for function in model.functions.values() for node in function.all_nodes())
    if any(map(_draws, nodes)):
        passes.InlinePass()(model)


def _draws(node: ir.Node) -> bool:
    """Whether a node draws: of Dropout, one in training mode."""
    by_mode = node.op_type == "Dropout"
    return of(node).is_random and not (
        by_mode and (len(node.inputs) < _MODE + 1 or node.inputs[_MODE] is None)
    )


def _write(
    op: GraphBuilder, graph: ir.Graph, source: "_Source", iterations: Sequence[ir.Value]
) -> None:
    """Write the nodes of a graph that draw, and those of the graphs in its nodes.

    Args:
        op: Appends nodes.
        graph: The graph.
        source: Where the random numbers come from.
        iterations: The counters of the loops that the graph is in, the outermost first.
    """
    for node in list(graph):
        if _draws(node):
            with op.inside(graph), op.before(node), op.named(str(node.name or "random")):
                source.iterations = iterations
                made = _WRITTEN[node.op_type](op, node, source)
                named = sum(1 for value in node.outputs if value.name)
                settings = [value for value in node.inputs if value is not None]
                replace(op, node, *made[:named])
            for value in settings:
                _remove_unread(op.graph, value)
        for inner in subgraphs(node):
            if any(map(_draws, inner.all_nodes())):
                with op.inside(graph), op.before(node):
                    counter = _counter(op, node, inner)
                _write(op, inner, source, (*iterations, *counter))


def _remove_unread(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant that nothing reads any more, and what it was computed from."""
    node = value.producer()
    if value.uses() or value.is_graph_output():
        return
    if node is None:
        graph.initializers.pop(str(value.name), None)
    elif node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
        operands = [v for v in node.inputs if v is not None]
        node.graph.remove(node, safe=True)
        for operand in operands:
            _remove_unread(graph, operand)


def _counter(op: GraphBuilder, node: ir.Node, body: ir.Graph) -> list[ir.Value]:
    """What counts how often the body of a loop has run, an int64 scalar."""
    if node.op_type == "Loop":
        return [body.inputs[0]]
    if node.op_type != "Scan":
        return []
    scanned = node.attributes.get_int("num_scan_inputs", 0)
    axes = node.attributes.get_ints("scan_input_axes", [0] * scanned)
    first = node.inputs[-scanned]
    assert first is not None
    length = op.Gather(op.Shape(first), axes[0])
    node.resize_inputs(len(node.inputs) + 1)
    node.replace_input_with(len(node.inputs) - 1, op.Range(0, length, 1))
    counter = ir.val(op.fresh_name("iteration"), ir.DataType.INT64, [])
    body.inputs.append(counter)
    node.attributes.add(ir.AttrInt64("num_scan_inputs", scanned + 1))
    for name in ("scan_input_axes", "scan_input_directions"):
        if name in node.attributes:
            numbers = node.attributes.get_ints(name, [0] * scanned)
            node.attributes.add(ir.AttrInt64s(name, [*numbers, 0]))
    return [counter]


class _Source:
    """Random numbers for one node after the other."""

    def __init__(self, op: GraphBuilder, keys: ir.Value) -> None:
        self._op, self._keys = op, keys
        self._used = 0
        self._columns = op.constant(columns(), "random/columns")
        self._columns.metadata_props[FROZEN] = "a constant of random numbers"
        self.iterations: Sequence[ir.Value] = ()

    def kept(self, ratio: ir.Value, shape: ir.Value) -> ir.Value:
        """A bool tensor of a shape, True with the probability 1 - ratio."""
        kept = functions.call(self._op, _KEPT, self._key(), self._columns, ratio, shape)
        kept.dtype = ir.DataType.BOOL
        return kept

    def uniform(self, shape: ir.Value) -> ir.Value:
        """Float32 numbers of a shape from 0 to 1, without 1."""
        uniform = functions.call(self._op, _UNIFORM, self._key(), self._key(), self._columns, shape)
        uniform.dtype = _FLOAT
        return uniform

    def _key(self) -> ir.Value:
        """One that nothing else has in this step, int64 [1, 9]."""
        key = self._op.Gather(self._keys, [self._used], axis=0)
        self._used += 1
        for iteration in self.iterations:
            key = functions.call(self._op, _MIX, key, iteration)
        return key


def _shape_of(op: GraphBuilder, value: ir.Value) -> ir.Value:
    shape = value.shape
    if shape is not None and shape.is_static():
        return op.constant(np.array(shape.numpy(), np.int64))
    return op.Shape(value)


def _dropout(op: GraphBuilder, node: ir.Node, source: _Source) -> list[ir.Value]:
    """Y = x times 0 with the probability of the ratio, otherwise times 1 / (1 - ratio)."""
    x, ratio, mode = node.inputs
    assert x is not None
    assert mode is not None
    dtype = x.dtype or _FLOAT
    number = constant_ratio(node)
    if number is not None:
        bound, scale = (
            op.constant(np.float32(number)),
            op.constant(np.array(1 / (1 - number), dtype.numpy())),
        )
    else:
        assert ratio is not None
        bound = op.Cast(ratio, to=_FLOAT)
        # ONNX Runtime refuses other ratios; here the loss says it.
        is_known = op.And(op.GreaterOrEqual(bound, 0.0), op.Less(bound, 1.0))
        scale = op.Where(is_known, op.Reciprocal(op.Sub(1.0, bound)), math.nan)
        scale = op.Cast(scale, to=dtype)
    kept = source.kept(bound, _shape_of(op, x))
    if ir.convenience.get_const_tensor(mode) is None:
        kept = op.Or(kept, op.Not(mode))
        scale = op.Where(mode, scale, np.ones((), dtype.numpy()))
    kept.shape = x.shape
    factor = op.Mul(op.Cast(kept, to=dtype), scale)
    y = op.Mul(x, factor)
    for value in (factor, y):
        value.shape = x.shape
    return [y, kept]


def _like(op: GraphBuilder, node: ir.Node) -> tuple[ir.Value, ir.DataType]:
    """The shape and the dtype of a node's result."""
    kind = node.attributes.get_int("dtype", 0)
    if node.inputs:
        like = node.inputs[0]
        assert like is not None
        return _shape_of(op, like), ir.DataType(kind or like.dtype or _FLOAT)
    shape = np.array(node.attributes.get_ints("shape"), np.int64)
    return op.constant(shape), ir.DataType(kind or _FLOAT)


def _cast(op: GraphBuilder, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return value if dtype == _FLOAT else op.Cast(value, to=dtype)


def _uniform(op: GraphBuilder, node: ir.Node, source: _Source) -> list[ir.Value]:
    """From low to high."""
    shape, dtype = _like(op, node)
    low, high = node.attributes.get_float("low", 0.0), node.attributes.get_float("high", 1.0)
    drawn = source.uniform(shape)
    if (low, high) != (0.0, 1.0):
        drawn = op.Add(op.Mul(drawn, float(high - low)), float(low))
    return [_cast(op, drawn, dtype)]


def _normal(op: GraphBuilder, node: ir.Node, source: _Source) -> list[ir.Value]:
    """Of this mean and this standard deviation, as Box and Muller make them of uniform ones."""
    shape, dtype = _like(op, node)
    mean, scale = node.attributes.get_float("mean", 0.0), node.attributes.get_float("scale", 1.0)
    squares = op.Mul(op.Log(op.Sub(1.0, source.uniform(shape))), -2.0)
    angles = op.Mul(source.uniform(shape), 2 * math.pi)
    drawn = op.Mul(op.Sqrt(squares), op.Cos(angles))
    return [_cast(op, op.Add(op.Mul(drawn, float(scale)), float(mean)), dtype)]


def _bernoulli(op: GraphBuilder, node: ir.Node, source: _Source) -> list[ir.Value]:
    """1 with the probability that is given for each element, otherwise 0."""
    shape, dtype = _like(op, node)
    probability = node.inputs[0]
    assert probability is not None
    drawn = op.Less(source.uniform(shape), _cast(op, probability, probability.dtype or _FLOAT))
    return [op.Cast(drawn, to=dtype)]


def _multinomial(op: GraphBuilder, node: ir.Node, source: _Source) -> list[ir.Value]:
    """Indices of classes, with the softmax of what is given as probabilities."""
    scores = node.inputs[0]
    assert scores is not None
    count = node.attributes.get_int("sample_size", 1)
    dtype = node.attributes.get_int("dtype", int(ir.DataType.INT32))
    probabilities = op.Softmax(_cast(op, scores, scores.dtype or _FLOAT), axis=-1)
    below = op.Unsqueeze(op.CumSum(op.Cast(probabilities, to=_FLOAT), -1), [1])
    batch, classes = (op.Shape(scores, start=at, end=at + 1) for at in (0, 1))
    drawn = source.uniform(op.Concat(batch, [count], axis=0))
    passed = op.GreaterOrEqual(op.Unsqueeze(drawn, [2]), below)
    index = op.ReduceSum(op.Cast(passed, to=ir.DataType.INT64), [2], keepdims=0)
    return [op.Cast(op.Min(index, op.Sub(classes, 1)), to=dtype)]


_WRITTEN: dict[str, Callable[[GraphBuilder, ir.Node, _Source], list[ir.Value]]] = {
    "Bernoulli": _bernoulli,
    "Dropout": _dropout,
    "Multinomial": _multinomial,
    "RandomNormal": _normal,
    "RandomNormalLike": _normal,
    "RandomUniform": _uniform,
    "RandomUniformLike": _uniform,
}
