"""Matrix products."""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.gradients.backward import Backward, rule


@rule("MatMul")
def matmul(b: Backward) -> Sequence[ir.Value | None]:
    """dA = dY Bᵀ and dB = Aᵀ dY, summed over batches that were broadcast."""
    op, dy = b.op, b.dy
    left, right = b.input(0), b.input(1)
    ranks = b.rank(left), b.rank(right)
    if ranks == (1, 1):
        return [op.Mul(dy, right), op.Mul(dy, left)]
    # Vectors as matrices of one row, or of one column.
    rows = op.Unsqueeze(left, [0]) if ranks[0] == 1 else left
    columns = op.Unsqueeze(right, [1]) if ranks[1] == 1 else right
    if ranks[0] == 1:
        dy = op.Unsqueeze(dy, [-2])
    if ranks[1] == 1:
        dy = op.Unsqueeze(dy, [-1])
    d_left = d_right = None
    if b.needs(0):
        product = op.MatMul(dy, _transposed(b, columns, max(ranks[1], 2)))
        d_left = _unbatched(b, product, left, axis_of_one=-2)
    if b.needs(1) and ranks[0] > 2 and ranks[1] <= 2:
        # One product of all rows, where batches of products would have to be summed.
        product = op.MatMul(
            op.Transpose(op.Flatten(left, axis=ranks[0] - 1), perm=[1, 0]),
            op.Flatten(dy, axis=ranks[0] - 1),
        )
        d_right = op.Squeeze(product, [1]) if ranks[1] == 1 else product
    elif b.needs(1):
        product = op.MatMul(_transposed(b, rows, max(ranks[0], 2)), dy)
        d_right = _unbatched(b, product, right, axis_of_one=-1)
    return [d_left, d_right]


def _transposed(b: Backward, x: ir.Value, rank: int) -> ir.Value:
    return b.op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _unbatched(b: Backward, product: ir.Value, operand: ir.Value, axis_of_one: int) -> ir.Value:
    """The gradient of an operand, from one of each batch; a vector loses the axis of size 1."""
    shape = b.shape(operand)
    matrices = sum(b.rank(value) > 1 for value in (b.input(0), b.input(1)))
    batch = b.shape(b.y)[: b.rank(b.y) - matrices]
    if len(shape) > 1:
        return b.unbroadcast(product, operand, [*batch, *shape[-2:]])
    vector = b.op.Squeeze(product, [axis_of_one])
    return b.unbroadcast(vector, operand, [*batch, *shape])


@rule("Gemm")
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
        d_bias = b.unbroadcast(dy, bias)
        if beta != 1:
            d_bias = op.Mul(d_bias, beta)
    return [d_left, d_right, d_bias]
