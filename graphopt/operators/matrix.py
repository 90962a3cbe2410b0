"""Matrix products."""

from collections.abc import Sequence
from string import ascii_letters

import numpy as np
import onnx_ir as ir

from graphopt.operators import flops
from graphopt.operators.backward import Backward, Dim
from graphopt.operators.flops import Outputs
from graphopt.operators.record import operator
from graphopt.shapes import products, transforms
from graphopt.shapes.node import Node


@operator("MatMul", spreads=True, weights=(0, 1), flops=flops.matmul, shape=products.matmul)
def matmul(b: Backward) -> Sequence[ir.Value | None]:
    """dA = dY Bᵀ and dB = Aᵀ dY, summed over batches that were broadcast.

    Vectors have become matrices of one row or of one column.
    """
    op, dy = b.op, b.dy
    left, right = b.input(0), b.input(1)
    ranks = b.rank(left), b.rank(right)
    d_left = d_right = None
    if b.needs(0):
        d_left = _unbatched(b, op.MatMul(dy, _transposed(b, right)), left)
    if b.needs(1) and ranks[0] > 2 and ranks[1] == 2:
        # One product of all rows, where batches of products would have to be summed.
        d_right = op.MatMul(
            op.Transpose(op.Flatten(left, axis=ranks[0] - 1), perm=[1, 0]),
            op.Flatten(dy, axis=ranks[0] - 1),
        )
    elif b.needs(1):
        d_right = _unbatched(b, op.MatMul(_transposed(b, left), dy), right)
    return [d_left, d_right]


def _transposed(b: Backward, x: ir.Value) -> ir.Value:
    rank = b.rank(x)
    return b.op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _unbatched(b: Backward, product: ir.Value, operand: ir.Value) -> ir.Value:
    """The gradient of an operand, from one of each batch.

    Only the axes of batches are broadcast, so that it has not the shape of the result.
    """
    batch = b.shape(b.y)[:-2]
    return b.unbroadcast(product, operand, [*batch, *b.shape(operand)[-2:]])


def _gemm_flops(node: Node, outputs: Outputs) -> int | None:
    result = outputs[0].elements
    return flops.plus(flops.matmul(node, outputs), result if node.has(2) else 0)


@operator(
    "Gemm",
    broadcasts=(2,),
    spreads=True,
    weights=(0, 1),
    bias=2,
    flops=_gemm_flops,
    shape=products.gemm,
)
def gemm(b: Backward) -> Sequence[ir.Value | None]:
    """y = alpha A B + beta C, where A and B may be transposed."""
    op, dy = b.op, b.dy
    left, right, bias = b.input(0), b.input(1), b.optional(2)
    alpha = b.node.attributes.get_float("alpha", 1.0)
    beta = b.node.attributes.get_float("beta", 1.0)
    left_transposed = b.node.attributes.get_int("transA", 0)
    right_transposed = b.node.attributes.get_int("transB", 0)
    if left_transposed:
        d_left = op.Gemm(right, dy, alpha=alpha, transA=right_transposed, transB=1)
    else:
        d_left = op.Gemm(dy, right, alpha=alpha, transB=1 - right_transposed)
    if right_transposed:
        d_right = op.Gemm(dy, left, alpha=alpha, transA=1, transB=left_transposed)
    else:
        d_right = op.Gemm(left, dy, alpha=alpha, transA=1 - left_transposed)
    d_bias = None
    if bias is not None and b.needs(2):
        d_bias = dy if beta == 1 else op.Mul(b.summed(dy, 2), beta)
    return [d_left, d_right, d_bias]


def _determinant_flops(node: Node, outputs: Outputs) -> int | None:
    """By elimination, two thirds of the cube for each matrix."""
    size = node.shape()[-1]
    cube = 2 * size**3 // 3 if isinstance(size, int) else None
    return flops.times(outputs[0].elements, cube)


@operator("Det", flops=_determinant_flops, shape=transforms.determinant)
def det(b: Backward) -> ir.Value:
    """By cofactors: dx[i, j] is dy times the determinant with the unit vector j as row i.

    That is right for singular matrices too, where det(x) times the inverse is not defined. It
    computes n² determinants of an n x n matrix, which is meant for small ones.
    """
    op, rank = b.op, b.rank(b.x)
    size = b.size(b.x, rank - 1)
    count = size.reshape(()) if isinstance(size, np.ndarray) else op.Squeeze(size, [0])
    places = op.Range(np.array(0), count, np.array(1))
    # The axes are: replaced row i, unit vector j, row, column.
    is_unit = op.CastLike(op.Equal(op.Unsqueeze(places, [1, 2]), places), b.x)
    is_replaced = op.Equal(op.Unsqueeze(places, [1, 2, 3]), op.Unsqueeze(places, [1]))
    replaced = op.Where(is_replaced, is_unit, op.Unsqueeze(b.x, [rank - 2, rank - 1]))
    return op.Mul(op.Unsqueeze(b.dy, [rank - 2, rank - 1]), op.Det(replaced))


def _einsum_flops(node: Node, outputs: Outputs) -> int | None:
    del outputs
    sizes, terms, result = products.einsum_sizes(node)
    sums = set(sizes) != set(result)
    return flops.times(flops.times(*sizes.values()), len(terms) - 1 + sums)


@operator("Einsum", spreads=True, flops=_einsum_flops, shape=products.einsum)
def einsum(b: Backward) -> Sequence[ir.Value | None]:
    """The gradient of each operand is an Einsum of dy and the other operands."""
    terms, output, batch = _letters(b)
    for letter in set(output) - set(batch):
        sizes = [b.shape(b.input(i))[t.index(letter)] for i, t in enumerate(terms) if letter in t]
        static = {size for size in sizes if isinstance(size, int)}
        if len(static) > 1:
            raise b.error(
                f"the letter '{letter}' has sizes {sorted(static)}; write an ellipsis in place of "
                "what is broadcast, whose result shape inference knows"
            )
    return [
        _of_operand(b, index, terms, output, batch) if b.needs(index) else None
        for index in range(len(terms))
    ]


def _letters(b: Backward) -> tuple[list[str], str, str]:
    """The letters of each operand, of the output, and those that stand for an ellipsis."""
    equation = b.node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        output = "..." if "..." in left else ""
        output += "".join(sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1))
    hidden = [
        b.rank(b.input(index)) - len(term.replace("...", "")) for index, term in enumerate(terms)
    ]
    batch = "".join([c for c in ascii_letters if c not in equation][: max(hidden)])
    terms = [
        term.replace("...", batch[len(batch) - count :])
        for term, count in zip(terms, hidden, strict=True)
    ]
    return terms, output.replace("...", batch), batch


def _of_operand(b: Backward, index: int, terms: Sequence[str], output: str, batch: str) -> ir.Value:
    op, term, x = b.op, terms[index], b.input(index)
    sizes = dict(zip(term, b.shape(x), strict=True))
    letters = "".join(sizes)
    factors = [(t, b.input(i)) for i, t in enumerate(terms) if i != index]
    factors.append((output, b.dy))
    dims = [dict(zip(t, b.shape(b.input(i)), strict=True)) for i, t in enumerate(terms)]
    others = dims[:index] + dims[index + 1 :]
    # The output's, too, follow from the operands.
    others.append({c: _widest([d[c] for d in dims if c in d]) for c in output})
    wide = {c: _widest([d[c] for d in others if c in d]) for c in letters}
    # Along an axis of size 1 that was broadcast, the gradient is summed. It is repeated along one
    # that only this operand has, or that the others have with size 1.
    is_given = set().union(*others, output)
    kept = "".join(c for c in letters if c in is_given and (sizes[c] == 1) == (wide[c] == 1))
    gradient = _product(b, factors, kept)
    if missing := [i for i, c in enumerate(letters) if c not in kept]:
        gradient = op.Unsqueeze(gradient, missing)
    if any(sizes[letters[i]] != 1 for i in missing):
        target = [
            b.size(x, term.index(c)) if i in missing else np.ones(1, np.int64)
            for i, c in enumerate(letters)
        ]
        gradient = op.Expand(gradient, b.concat(target))
    if len(letters) < len(term):
        gradient = _on_diagonals(b, gradient, term, x)
    # Under an ellipsis, and only there, sizes that are unknown here may turn out to be broadcast.
    unknown = [c for c in letters if c in batch and not isinstance(sizes[c], int)]
    if any(sum(c in t for t in terms) > 1 and not _same(sizes[c], wide[c]) for c in unknown):
        gradient = b.unbroadcast(gradient, x, [wide[c] if c in kept else sizes[c] for c in term])
    return gradient


def _widest(sizes: Sequence[Dim]) -> Dim:
    """The size that results from broadcasting; 1 if there are none."""
    known = [size for size in sizes if isinstance(size, int) and size != 1]
    unknown = [size for size in sizes if not isinstance(size, int)]
    return [*known, *unknown, 1][0]


def _same(left: Dim, right: Dim) -> bool:
    return left is not None and left == right


def _product(b: Backward, factors: Sequence[tuple[str, ir.Value]], output: str) -> ir.Value:
    """The Einsum of these; a scalar has no letters."""
    scalars = [value for term, value in factors if not term]
    tensors = [(term, value) for term, value in factors if term]
    if not tensors:
        product, *scalars = scalars
    elif [term for term, _ in tensors] == [output]:
        product = tensors[0][1]
    else:
        equation = ",".join(term for term, _ in tensors) + "->" + output
        product = b.op.Einsum(*(value for _, value in tensors), equation=equation)
    for scalar in scalars:
        product = b.op.Mul(product, scalar)
    return product


def _on_diagonals(b: Backward, gradient: ir.Value, term: str, x: ir.Value) -> ir.Value:
    """The gradient of an operand, some of whose letters repeat, from one of its diagonal."""
    op = b.op
    for axis, letter in enumerate(term):
        first = term.index(letter)
        if first == axis:
            continue
        size = b.size(x, axis)
        identity = op.EyeLike(b.zeros(b.concat([size, size]), ir.DataType.FLOAT))
        rank = len(term[: axis + 1]) + len(set(term[axis + 1 :]) - set(term[: axis + 1]))
        others = [i for i in range(rank) if i not in (first, axis)]
        is_diagonal = op.Cast(identity, to=int(ir.DataType.BOOL))
        if others:
            is_diagonal = op.Unsqueeze(is_diagonal, others)
        gradient = b.masked(op.Unsqueeze(gradient, [axis]), is_diagonal)
    return gradient
