"""Gradients of matrix products."""

import pytest

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


@pytest.mark.quick
@cases(MATMUL | GEMM)
def test_gradients(case, dynamic):
    check(case, dynamic)
