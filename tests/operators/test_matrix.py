"""Gradients of matrix products."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from tests.helpers.gradient_oracle import Case, cases, check, normal


def gemm(alpha=1.0, beta=1.0, a_transposed=False, b_transposed=False):
    def compute(a, b, c=0.0):
        left = a.T if a_transposed else a
        right = b.T if b_transposed else b
        return alpha * left @ right + beta * c

    return compute


MATMUL = {
    f"MatMul {left} {right}": Case(
        "y = MatMul(a, b)",
        {"a": normal(*left), "b": normal(*right, seed=1)},
        lambda a, b: a @ b,
    )
    for left, right in (
        ((2, 3), (3, 4)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((3,), (3,)),
        ((5, 2, 3), (3, 4)),
        ((5, 2, 3), (3,)),
        ((3,), (5, 3, 4)),
        ((5, 2, 3), (5, 3, 4)),
        ((1, 2, 3), (5, 3, 4)),
        ((2, 3), (5, 3, 4)),
        ((6, 1, 2, 3), (5, 3, 4)),
        ((6, 5, 2, 3), (3, 1)),
        ((1, 1), (1, 1)),
        ((0, 3), (3, 4)),
    )
}
GEMM = {
    "Gemm": Case(
        "y = Gemm(a, b, c)",
        {"a": normal(2, 3), "b": normal(3, 4), "c": normal(4)},
        gemm(),
    ),
    "Gemm without C": Case("y = Gemm(a, b)", {"a": normal(2, 3), "b": normal(3, 4)}, gemm()),
    **{
        f"Gemm transA={a} transB={b}": Case(
            f"y = Gemm<alpha=0.5, beta=3.0, transA={a}, transB={b}>(a, b, c)",
            {
                "a": normal(3, 2) if a else normal(2, 3),
                "b": normal(4, 3) if b else normal(3, 4),
                "c": normal(2, 1),
            },
            gemm(0.5, 3.0, bool(a), bool(b)),
        )
        for a in (0, 1)
        for b in (0, 1)
    },
    "Gemm with a scalar": Case(
        "y = Gemm(a, b, c)", {"a": normal(2, 3), "b": normal(3, 4), "c": normal()}, gemm()
    ),
}


def determinant(x, *_):
    """The sum over permutations: a polynomial, of singular matrices as of others."""
    size = x.shape[-1]
    terms = []
    for permutation in permutations(range(size)):
        swaps = sum(a > b for a, b in combinations(permutation, 2))
        factors = [x[..., row, column] for row, column in enumerate(permutation)]
        terms.append((-1) ** swaps * torch.stack(factors).prod(0))
    return sum(terms)


def singular(*shape, rank):
    return (normal(*shape[:-1], rank, seed=1) @ normal(*shape[:-2], rank, shape[-1])).astype("f")


DET = {
    f"Det of {name} {x.shape}": Case("y = Det(x)", {"x": x}, determinant, tolerance=2e-5)
    for name, x in (
        ("one matrix", normal(3, 3)),
        ("a batch", normal(2, 3, 4, 4)),
        ("one element", normal(2, 1, 1)),
        ("singular", singular(3, 3, rank=2)),
        ("singular", singular(2, 4, 4, rank=3)),
        ("of zeros", np.zeros((2, 2), np.float32)),
        ("of zeros", np.zeros((3, 3), np.float32)),
    )
}


@pytest.mark.quick
@cases(MATMUL | GEMM | DET)
def test_gradients(case, dynamic):
    check(case, dynamic)
