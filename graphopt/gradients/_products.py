"""Products of matrices that the CPU runs faster, in place of nodes that mean the same.

A product, with the transpositions and the factor around it and with what is added to it, becomes
a function, for which there is a kernel where the processor has what that needs: it copies its
operands anyway, so it may as well read and write them in another order. Otherwise ONNX Runtime
runs the function's body: the nodes as they were.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.local_functions import add_body, become_call
from graphopt.shapes.in_place import infer_shapes

_LEAST = 64  # rows and columns of a weight; calling for smaller ones is not worth the node
_LEAST_OF_AXES = 16
_AXES = 4
_SAME_ORDER = tuple(range(_AXES))
_SWAPPED = (0, 1, 3, 2)


@dataclass(frozen=True)
class _OfWeight:
    """y = A B + plus, where A or B may lie transposed, and B is a matrix.

    A may have more axes than two, if it does not lie transposed. It was a Gemm or a MatMul.
    """

    left: ir.Value
    right: ir.Value
    trans_a: bool = False
    trans_b: bool = False
    plus: ir.Value | None = None
    is_gemm: bool = False

    @property
    def name(self) -> str:
        adds = "Add" * (self.plus is not None)
        return "MatMul" + "TransA" * self.trans_a + "TransB" * self.trans_b + adds

    @property
    def operands(self) -> list[ir.Value]:
        return [*([] if self.plus is None else [self.plus]), self.left, self.right]

    @property
    def attributes(self) -> dict[str, ir.Attr]:
        return {}

    def body(self) -> Callable[..., ir.Value]:
        body = _body_of_gemm if self.is_gemm else _body_of_weight
        return partial(body, trans_a=self.trans_a, trans_b=self.trans_b)

    def transposed(self, perm: Sequence[int]) -> "_OfWeight | None":
        """The transpose of Aᵀ B is Bᵀ A."""
        if not self.trans_a or self.plus is not None or list(perm) != [1, 0]:
            return None
        return replace(self, left=self.right, right=self.left)


@dataclass(frozen=True)
class _OfAxes:
    """y = alpha A B, for each of two axes, where the operands and the result have any order."""

    left: ir.Value
    right: ir.Value
    a_perm: tuple[int, ...]
    b_perm: tuple[int, ...]
    y_perm: tuple[int, ...] = _SAME_ORDER
    alpha: float = 1.0

    name = "MatMulAxes"

    @property
    def operands(self) -> list[ir.Value]:
        return [self.left, self.right]

    @property
    def attributes(self) -> dict[str, ir.Attr]:
        orders = {name: ir.AttrInt64s(name, getattr(self, name)) for name in _ORDERS}
        return {**orders, "alpha": ir.AttrFloat32("alpha", self.alpha)}

    def body(self) -> Callable[..., ir.Value]:
        orders = {name: getattr(self, name) for name in _ORDERS}
        return partial(_body_of_axes, **orders, alpha=self.alpha)

    def transposed(self, perm: Sequence[int]) -> "_OfAxes | None":
        """With (A B)ᵀ = Bᵀ Aᵀ, the last axis of the result stays the last one."""
        order = tuple(self.y_perm[axis] for axis in perm)
        if order[-1] == _AXES - 1:
            return replace(self, y_perm=order)
        if order[-1] != _AXES - 2:
            return None
        return _OfAxes(
            self.right,
            self.left,
            tuple(self.b_perm[axis] for axis in _SWAPPED),
            tuple(self.a_perm[axis] for axis in _SWAPPED),
            tuple(_SWAPPED[axis] for axis in order),
            self.alpha,
        )


_ORDERS = ("a_perm", "b_perm", "y_perm")
_Product = _OfWeight | _OfAxes


def call_products(op: GraphBuilder, model: ir.Model, kept: Collection[ir.Value]) -> None:
    """Let products of float32 matrices call functions.

    Args:
        op: Appends to the graph.
        model: The training graph; changed in place.
        kept: Values that others know.
    """
    infer_shapes(model)
    products: dict[ir.Value, _Product] = {}
    left: list[ir.Value] = []
    for node in list(model.graph):
        product = None if node.domain else _found(node, products, kept)
        if product is not None:
            products[node.outputs[0]] = product
            left += [value for value in node.inputs if value is not None]
            _call(op, node, product)
    for value in left:
        _drop(value, kept)


def _found(
    node: ir.Node, products: Mapping[ir.Value, _Product], kept: Collection[ir.Value]
) -> _Product | None:
    """What a node computes, if that is a product for which there is a function."""
    if node.op_type == "MatMul":
        return _of_weight(node) or _of_axes(node, kept)
    if node.op_type == "Gemm":
        return _of_gemm(node)
    if node.op_type in ("Add", "Mul", "Transpose"):
        for index, value in enumerate(node.inputs):
            if value is not None and value in products and _is_read_once(value, kept):
                others = [*node.inputs[:index], *node.inputs[index + 1 :]]
                product = _with_node(node, products[value], *others)
                if product is not None:
                    return product
    return None


def _with_node(node: ir.Node, product: _Product, other: ir.Value | None = None) -> _Product | None:
    """A product and what a node does with it."""
    if node.op_type == "Transpose":
        rank = _AXES if isinstance(product, _OfAxes) else len(node.outputs[0].shape or ())
        return product.transposed(node.attributes.get_ints("perm", range(rank)[::-1]))
    if node.op_type == "Mul" and isinstance(product, _OfAxes):
        factor = _factor(other)
        return None if factor is None else replace(product, alpha=product.alpha * factor)
    if node.op_type == "Add" and isinstance(product, _OfWeight) and product.plus is None:
        return replace(product, plus=other) if _fits(other, node.outputs[0]) else None
    return None


def _sizes(value: ir.Value) -> list[int | str | None]:
    return [d if isinstance(d, int) else d.value for d in value.shape or ()]


def _has_float_matrices(node: ir.Node) -> bool:
    return all(
        value is not None
        and value.dtype == ir.DataType.FLOAT
        and value.shape is not None
        and len(value.shape) > 1
        for value in (*node.inputs, node.outputs[0])
    )


def _of_weight(node: ir.Node) -> _OfWeight | None:
    if not _has_float_matrices(node):
        return None
    left, right = node.inputs
    assert left is not None
    assert right is not None
    if len(_sizes(right)) != 2:
        return None
    right, trans_b = _behind(right)
    trans_a = False
    if len(_sizes(left)) == 2 and not trans_b:
        left, trans_a = _behind(left)
    return _if_large(_OfWeight(left, right, trans_a, trans_b))


def _of_gemm(node: ir.Node) -> _OfWeight | None:
    left, right, plus = [*node.inputs, None][:3]
    attributes = node.attributes
    factors = [attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if left is None or right is None or factors != [1, 1]:
        return None
    if {left.dtype, right.dtype, node.outputs[0].dtype} != {ir.DataType.FLOAT}:
        return None
    if [len(_sizes(left)), len(_sizes(right))] != [2, 2]:
        return None
    if plus is not None and not _fits(plus, node.outputs[0]):
        return None
    trans_a, trans_b = (bool(attributes.get_int(name, 0)) for name in ("transA", "transB"))
    if trans_a and trans_b:
        return None
    return _if_large(_OfWeight(left, right, trans_a, trans_b, plus, is_gemm=True))


def _if_large(product: _OfWeight) -> _OfWeight | None:
    left, right = _sizes(product.left), _sizes(product.right)
    # The terms of a gradient of a weight are as many as there are rows in a batch.
    sizes = [left[-1], right[-1]] if product.trans_a else right
    return product if all(isinstance(n, int) and n >= _LEAST for n in sizes) else None


def _behind(value: ir.Value) -> tuple[ir.Value, bool]:
    """What lies before transpositions of a matrix, and whether the matrix is transposed."""
    is_transposed = False
    while (node := value.producer()) is not None and _is_transposition(node):
        before = node.inputs[0]
        assert before is not None
        value, is_transposed = before, not is_transposed
    return value, is_transposed


def _is_transposition(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and not node.domain and node.inputs[0] is not None


def _of_axes(node: ir.Node, kept: Collection[ir.Value]) -> _OfAxes | None:
    if not _has_float_matrices(node):
        return None
    left, right = node.inputs
    assert left is not None
    assert right is not None
    a, b = _sizes(left), _sizes(right)
    if len(a) != _AXES or len(b) != _AXES or a[:2] != b[:2] or None in a[:2]:
        return None
    if any(isinstance(size, int) and size < _LEAST_OF_AXES for size in (*a[2:], *b[2:])):
        return None
    alpha = 1.0
    operands, orders = list[ir.Value](), list[tuple[int, ...]]()
    for value in (left, right):
        order = _SAME_ORDER
        while (before := _before(value, order, kept)) is not None:
            value, order, factor = before  # noqa: PLW2901
            alpha *= factor
        operands.append(value)
        orders.append(order)
    return _OfAxes(operands[0], operands[1], orders[0], orders[1], alpha=alpha)


def _before(
    value: ir.Value, order: tuple[int, ...], kept: Collection[ir.Value]
) -> tuple[ir.Value, tuple[int, ...], float] | None:
    """What a node moved or multiplied, which only products of axes read, and what it did."""
    node = value.producer()
    if node is None or node.domain or value in kept or value.is_graph_output():
        return None
    if node.op_type not in ("Mul", "Transpose") or not _only_for_products(value):
        return None
    if node.op_type == "Transpose":
        before = node.inputs[0]
        perm = node.attributes.get_ints("perm", range(_AXES)[::-1])
        new = tuple(perm[axis] for axis in order)
        fits = _AXES - 1 in new[-2:]
        return (before, new, 1.0) if before is not None and fits else None
    for index in (0, 1):
        before, factor = node.inputs[index], _factor(node.inputs[1 - index])
        if before is not None and factor is not None and len(_sizes(before)) == _AXES:
            return before, order, factor
    return None


def _only_for_products(value: ir.Value) -> bool:
    """Whether what reads a value are products of axes, also behind transpositions."""
    return all(
        (reader.op_type == "MatMul" and not reader.domain and _can_be_of_axes(reader))
        or (_is_transposition(reader) and _only_for_products(reader.outputs[0]))
        for reader in value.consumers()
    )


def _can_be_of_axes(node: ir.Node) -> bool:
    sizes = [_sizes(value) for value in node.inputs if value is not None]
    return all(len(s) == _AXES for s in sizes) and sizes[0][:2] == sizes[1][:2]


def _factor(value: ir.Value | None) -> float | None:
    """The number that a value is, known before the graph runs."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or len(tensor.shape) or tensor.dtype != ir.DataType.FLOAT:
        return None
    number = float(tensor.numpy())
    return number if np.isfinite(number) else None


def _is_read_once(value: ir.Value, kept: Collection[ir.Value]) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output() and value not in kept


def _fits(other: ir.Value | None, value: ir.Value) -> bool:
    """Whether the kernel can add it: a row, or a tensor of the shape of the product."""
    if other is None or other.shape is None or other.dtype != ir.DataType.FLOAT:
        return False
    sizes, wanted = _sizes(other), _sizes(value)
    return None not in sizes and sizes in (wanted, wanted[-1:])


def _call(op: GraphBuilder, node: ir.Node, product: _Product) -> None:
    """Let a node call a function."""
    operands, attributes = product.operands, product.attributes
    is_gemm = isinstance(product, _OfWeight) and product.is_gemm
    of = repr((len(_sizes(operands[-2])), attributes, is_gemm))
    name = add_body(op, product.name, operands, product.body(), of, attributes)
    become_call(op, node, name, operands, attributes)


def _body_of_weight(
    op: GraphBuilder, *operands: ir.Value, trans_a: bool, trans_b: bool
) -> ir.Value:
    *plus, left, right = operands
    if trans_a:
        left = op.Transpose(left, perm=[1, 0])
    if trans_b:
        right = op.Transpose(right, perm=[1, 0])
    result = op.MatMul(left, right)
    return op.Add(*plus, result) if plus else result


def _body_of_gemm(op: GraphBuilder, *operands: ir.Value, trans_a: bool, trans_b: bool) -> ir.Value:
    *plus, left, right = operands
    return op.Gemm(left, right, *plus, transA=int(trans_a), transB=int(trans_b))


def _body_of_axes(
    op: GraphBuilder, left: ir.Value, right: ir.Value, *, alpha: float, **orders: Sequence[int]
) -> ir.Value:
    def moved(value: ir.Value, order: Sequence[int]) -> ir.Value:
        return value if tuple(order) == _SAME_ORDER else op.Transpose(value, perm=list(order))

    result = op.MatMul(moved(left, orders["a_perm"]), moved(right, orders["b_perm"]))
    if alpha != 1:
        result = op.Mul(result, alpha)
    return moved(result, orders["y_perm"])


def _drop(value: ir.Value, kept: Collection[ir.Value]) -> None:
    """Remove what computes a value that nothing reads any more."""
    node = value.producer()
    if node is None or node.graph is None:
        return
    if any(v.uses() or v.is_graph_output() or v in kept for v in node.outputs):
        return
    operands = [v for v in node.inputs if v is not None]
    node.graph.remove(node, safe=True)
    for operand in operands:
        _drop(operand, kept)
