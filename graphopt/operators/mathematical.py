"""Functions of one number."""

import math
from collections.abc import Collection
from functools import partial

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators._roots import nonzero_root
from graphopt.operators.backward import Backward
from graphopt.operators.flops import elementwise
from graphopt.operators.record import name_of, operator
from graphopt.operators.rewriting import replace
from graphopt.shapes import elements

function = partial(operator, flops=elementwise, shape=elements.joined)
quick = partial(function, is_quick=True)

quick("Abs", flat_at_infinity=False, gradient=lambda b: b.op.Mul(b.dy, b.op.Sign(b.x)))  # 0 at 0
quick("Neg", flat_at_infinity=False, gradient=lambda b: b.op.Neg(b.dy))
quick("Exp", gradient=lambda b: b.op.Mul(b.dy, b.y))


def rewrite_log(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Write that of s = Sigmoid(x) as -softplus(-x), of 1 - s as -softplus(x): they are finite."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    x, is_rest = _logit(node.inputs[0]), False
    if x is None and producer is not None and name_of(producer) == "Sub":
        x, is_rest = _logit(producer.inputs[1]), True
        if x is None or not _is_one(producer.inputs[0], x, trained):
            return
    if x is None:
        return
    if node.outputs[0].dtype == ir.DataType.DOUBLE:  # of which ONNX Runtime has no Softplus
        bounded = op.Neg(op.Max(x, 0.0)) if is_rest else op.Min(x, 0.0)
        rest = op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), 1.0))
        replace(op, node, op.Sub(bounded, rest))
    else:
        replace(op, node, op.Neg(op.Softplus(x if is_rest else op.Neg(x))))


def _is_one(value: ir.Value | None, beside: ir.Value, trained: Collection[str]) -> bool:
    """Whether a value is the number 1, which leaves another its shape."""
    known = None if value is None else ir.convenience.get_const_tensor(value)
    if known is None or value is None or value.name in trained or known.size != 1:
        return False
    rank = 0 if beside.shape is None else len(beside.shape)
    return len(known.shape) <= rank and float(known.numpy().item()) == 1


def _logit(value: ir.Value | None) -> ir.Value | None:
    """Of which a value is the Sigmoid; None if it is none."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and name_of(node) == "Sigmoid" else None


@function("Log", steep=(0,), pole=0, rewrite=rewrite_log)
def log(b: Backward) -> ir.Value:
    """Infinite at 0."""
    return b.op.Div(b.dy, b.x)


function("Sin", gradient=lambda b: b.op.Mul(b.dy, b.op.Cos(b.x)))
function("Cos", gradient=lambda b: b.op.Neg(b.op.Mul(b.dy, b.op.Sin(b.x))))
function("Tan", gradient=lambda b: b.op.Mul(b.dy, b.op.Add(b.op.Mul(b.y, b.y), 1.0)))
function("Sinh", gradient=lambda b: b.op.Mul(b.dy, b.op.Cosh(b.x)))
function("Cosh", gradient=lambda b: b.op.Mul(b.dy, b.op.Sinh(b.x)))


@quick("Sqrt", steep=(0,), pole=0)
def sqrt(b: Backward) -> ir.Value:
    """Infinite at 0; but 0 at 0 of a sum of squares, as with torch.linalg.norm and torch.std."""
    return b.op.Div(b.op.Mul(b.dy, 0.5), nonzero_root(b))


def _one_minus_square(b: Backward) -> ir.Value:
    """1 - x² as a product, which keeps its digits where x is near 1."""
    return b.op.Mul(b.op.Sub(1.0, b.x), b.op.Add(b.x, 1.0))


@function("Asin", steep=(0,))
def asin(b: Backward) -> ir.Value:
    """Infinite at -1 and 1."""
    return b.op.Div(b.dy, b.op.Sqrt(_one_minus_square(b)))


function("Acos", steep=(0,), gradient=lambda b: b.op.Neg(asin(b)))  # infinite at -1 and 1
function("Atanh", steep=(0,), gradient=lambda b: b.op.Div(b.dy, _one_minus_square(b)))  # as asin
function("Atan", gradient=lambda b: b.op.Div(b.dy, b.op.Add(b.op.Mul(b.x, b.x), 1.0)))


@function("Asinh")
def asinh(b: Backward) -> ir.Value:
    return b.op.Div(b.dy, b.op.Sqrt(b.op.Add(b.op.Mul(b.x, b.x), 1.0)))


@function("Acosh", steep=(0,))
def acosh(b: Backward) -> ir.Value:
    """Infinite at 1."""
    square_minus_one = b.op.Mul(b.op.Sub(b.x, 1.0), b.op.Add(b.x, 1.0))
    return b.op.Div(b.dy, b.op.Sqrt(square_minus_one))


@function("Erf")
def erf(b: Backward) -> ir.Value:
    """dx = dy 2/√π exp(-x²), the factor being moved into the exponent."""
    exponent = b.op.Sub(math.log(2 / math.sqrt(math.pi)), b.op.Mul(b.x, b.x))
    return b.op.Mul(b.dy, b.op.Exp(exponent))


@quick("Reciprocal", steep=(0,), pole=0)
def reciprocal(b: Backward) -> ir.Value:
    return b.op.Neg(b.op.Mul(b.dy, b.op.Mul(b.y, b.y)))
