"""Functions whose gradient PyTorch computes by a formula of its own, and not by that of its parts.

Written out as PyTorch's exporter does it, they are the same numbers with other gradients: not a
number at 0, or none where PyTorch has one.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from graphopt.torch._no_gradient import STOP
from graphopt.torch._nodes import call, replace

aten = torch.ops.aten
Ops = Callable[..., Node]
"""Appends a node: of an operator and its arguments."""
_NONE, _MEAN = 0, 1
_LARGE = 25  # from here on, PyTorch takes a product for distances


def settle(program: ExportedProgram) -> None:
    """Write them out with operators that have the gradient."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        rule = _RULES.get(node.target)
        if rule is None or not _is_float(node.args[0]):
            continue

        def ops(target: Any, *args: Any, of: Node = node) -> Node:
            return call(graph, of, target, *args)

        with graph.inserting_before(node):
            result = rule(ops, *node.args, **node.kwargs)
        if isinstance(result, Node):
            replace(graph, node, result)
        else:
            _replace_each(node, result)
    program.graph_module.recompile()


def _is_float(value: Any) -> bool:
    return not isinstance(value, Node) or value.meta["val"].is_floating_point()


def _replace_each(node: Node, results: Sequence[Node]) -> None:
    """Let nodes take the place of the outputs of one."""
    for user in list(node.users):
        assert user.target is operator.getitem
        replace(node.graph, user, results[cast(int, user.args[1])])
    node.graph.erase_node(node)


def _xlogy(ops: Ops, x: Any, y: Any) -> Node:
    """X log(y), whose gradient for x is log(y) save where both are 0; there, it is 0."""
    if not isinstance(y, Node):
        return ops(aten.mul.Tensor, x, math.log(y)) if y > 0 else _xlogy_tensor(ops, x, y)
    return _xlogy_tensor(ops, x, y)


def _xlogy_tensor(ops: Ops, x: Any, y: Any) -> Node:
    y = y if isinstance(y, Node) else ops(aten.full_like.default, x, y)
    is_zero = ops(aten.eq.Scalar, x, 0) if isinstance(x, Node) else x == 0
    if not isinstance(is_zero, Node):
        return ops(aten.mul.Tensor, ops(aten.log.default, y), x)
    is_left_out = ops(aten.logical_and.default, is_zero, ops(aten.le.Scalar, y, 0))
    one = ops(aten.full_like.default, y, 1.0)
    return ops(aten.mul.Tensor, x, ops(aten.log.default, ops(aten.where.self, is_left_out, one, y)))


def _xlog1py(ops: Ops, x: Any, y: Any) -> Node:
    """As x log(1 + y)."""
    return _xlogy(ops, x, ops(aten.add.Tensor, y, 1.0) if isinstance(y, Node) else y + 1.0)


def _log_add_exp(ops: Ops, x: Node, y: Node) -> Node:
    """log(exp(x) + exp(y)) of any numbers: the gradients are the shares of both."""
    pair = ops(aten.stack.default, ops(aten.broadcast_tensors.default, [x, y]), -1)
    return ops(aten.logsumexp.default, pair, [-1])


def _log_add_exp2(ops: Ops, x: Node, y: Node) -> Node:
    """log2(2^x + 2^y)."""
    natural = (ops(aten.mul.Tensor, v, math.log(2)) for v in (x, y))
    return ops(aten.div.Tensor, _log_add_exp(ops, *natural), math.log(2))


def _atan2(ops: Ops, y: Node, x: Node) -> Node:
    """The angle; its gradients (x, -y) / (x² + y²) are finite on the axes, and 0 at the origin."""
    where, zero = aten.where.self, ops(aten.zeros_like.default, ops(aten.add.Tensor, x, y))
    x, y = ops(aten.add.Tensor, x, zero), ops(aten.add.Tensor, y, zero)
    steep = ops(aten.gt.Tensor, ops(aten.abs.default, y), ops(aten.abs.default, x))
    upper = ops(aten.ge.Scalar, y, 0)
    is_left = ops(aten.lt.Scalar, x, 0)
    divisor = ops(where, steep, y, x)
    is_origin = ops(aten.eq.Scalar, divisor, 0)
    dividend = ops(where, is_origin, zero, ops(where, steep, ops(aten.neg.default, x), y))
    one = ops(aten.full_like.default, zero, 1.0)
    angle = ops(
        aten.atan.default,
        ops(aten.div.Tensor, dividend, ops(where, is_origin, one, divisor)),
    )
    half = ops(where, upper, *(ops(aten.full_like.default, zero, s * math.pi / 2) for s in (1, -1)))
    aside = ops(where, is_left, ops(aten.mul.Tensor, half, 2.0), zero)
    return ops(aten.add.Tensor, angle, ops(where, steep, half, aside))


def _hypot(ops: Ops, x: Node, y: Node) -> Node:
    """The root of the sum of squares; its gradient is 0 at the origin."""
    squares = (ops(aten.mul.Tensor, v, v) for v in (x, y))
    return ops(aten.sqrt.default, ops(aten.add.Tensor, *squares))


def _binary_cross_entropy(
    ops: Ops, p: Node, target: Node, weight: Any = None, reduction: int = _MEAN
) -> Node:
    """PyTorch's slope is (p - t) / max(p (1 - p), 1e-12), also where the logarithm is bounded."""
    still = ops(STOP, p, "binary_cross_entropy")
    rest = ops(aten.sub.Tensor, ops(aten.full_like.default, still, 1.0), still)
    logs = [ops(aten.clamp.default, ops(aten.log.default, part), -100.0) for part in (rest, still)]
    tilt = ops(aten.mul.Tensor, target, ops(aten.sub.Tensor, logs[0], logs[1]))
    value = ops(aten.sub.Tensor, tilt, logs[0])
    variance = ops(aten.clamp.default, ops(aten.mul.Tensor, still, rest), 1e-12)
    slope = ops(aten.div.Tensor, ops(aten.sub.Tensor, still, target), variance)
    slope = ops(STOP, slope, "binary_cross_entropy")
    each = ops(aten.add.Tensor, value, ops(aten.mul.Tensor, slope, ops(aten.sub.Tensor, p, still)))
    if weight is not None:
        each = ops(aten.mul.Tensor, each, weight)
    if reduction == _NONE:
        return each
    return ops(aten.mean.default if reduction == _MEAN else aten.sum.default, each)


def _scattered(
    ops: Ops, x: Node, dim: int, index: Node, src: Node, reduce: str, *, include_self: bool = True
) -> Node:
    """A mean, for which the exporter writes no reduction: the sum, by the number of its parts."""
    scatter = aten.scatter_reduce.two

    def total(into: Node, parts: Node) -> Node:
        node = ops(scatter, into, dim, index, parts, "sum" if reduce == "mean" else reduce)
        node.kwargs = {"include_self": include_self}
        return node

    result = total(x, src)
    if reduce != "mean":
        return result
    ones = (ops(aten.full_like.default, v, 1.0) for v in (x, src))
    return ops(aten.div.Tensor, result, total(*ones))


def _extremum(arg: Any) -> Callable[..., Sequence[Node]]:
    def along(ops: Ops, x: Node, dim: int, keepdim: bool = False) -> Sequence[Node]:
        """The element at the first index of the extremum, which alone gets the gradient."""
        indices = ops(arg, x, dim, True)
        results = [ops(aten.gather.default, x, dim, indices), indices]
        return results if keepdim else [ops(aten.squeeze.dim, v, dim) for v in results]

    return along


def _cdist(ops: Ops, x: Node, y: Node, p: float = 2.0, compute_mode: int | None = None) -> Node:
    """The distances of rows; the gradient of a distance of 0 is 0."""
    rows = [v.meta["val"].shape[-2] for v in (x, y)]
    is_large = any(not isinstance(size, int) or size > _LARGE for size in rows)
    if p == 2 and (compute_mode == 1 or (compute_mode in (None, 0) and is_large)):
        return _distances_by_product(ops, x, y)
    apart = ops(
        aten.sub.Tensor, ops(aten.unsqueeze.default, x, -2), ops(aten.unsqueeze.default, y, -3)
    )
    return ops(aten.linalg_vector_norm.default, apart, p, [-1])


def _distances_by_product(ops: Ops, x: Node, y: Node) -> Node:
    """√(|x|² + |y|² - 2 x y), and 0 where that is not positive."""
    squares = [ops(aten.sum.dim_IntList, ops(aten.mul.Tensor, v, v), [-1], True) for v in (x, y)]
    across = ops(aten.matmul.default, x, ops(aten.transpose.int, y, -1, -2))
    total = ops(aten.add.Tensor, squares[0], ops(aten.transpose.int, squares[1], -1, -2))
    square = ops(aten.sub.Tensor, total, ops(aten.mul.Tensor, across, 2.0))
    is_apart = ops(aten.gt.Scalar, square, 0)
    one, zero = (ops(aten.full_like.default, square, number) for number in (1.0, 0.0))
    root = ops(aten.sqrt.default, ops(aten.where.self, is_apart, square, one))
    return ops(aten.where.self, is_apart, root, zero)


_RULES: dict[Any, Callable[..., Node | Sequence[Node]]] = {
    aten.xlogy.Tensor: _xlogy,
    aten.xlogy.Scalar_Other: _xlogy,
    aten.special_xlogy.default: _xlogy,
    aten.special_xlogy.other_scalar: _xlogy,
    aten.special_xlog1py.default: _xlog1py,
    aten.special_xlog1py.other_scalar: _xlog1py,
    aten.logaddexp.default: _log_add_exp,
    aten.logaddexp2.default: _log_add_exp2,
    aten.atan2.default: _atan2,
    aten.arctan2.default: _atan2,
    aten.hypot.default: _hypot,
    aten.binary_cross_entropy.default: _binary_cross_entropy,
    aten.scatter_reduce.two: _scattered,
    aten.max.dim: _extremum(aten.argmax.default),
    aten.min.dim: _extremum(aten.argmin.default),
    aten.cdist.default: _cdist,
}
