"""Gradients of Einsum."""

import pytest
import torch

from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_gradients

EINSUM = {
    f"{equation} {shapes}": Case(
        f'y = Einsum<equation="{equation}">({", ".join("abc"[: len(shapes)])})',
        {
            name: normal(*shape, seed=seed)
            for seed, (name, shape) in enumerate(zip("abc", shapes, strict=False))
        },
        lambda *operands, equation=equation: torch.einsum(equation, *operands),
        opset=opset,
    )
    for equation, shapes, opset in (
        ("ij,jk->ik", ((2, 3), (3, 4)), 17),
        ("ij,jk->ik", ((2, 3), (3, 4)), 21),
        (" ij , jk -> ki ", ((2, 3), (3, 4)), 17),
        ("ij,jk", ((2, 3), (3, 4)), 17),
        ("kj,ji", ((2, 3), (3, 4)), 17),
        ("ij->ji", ((2, 3),), 17),
        ("ij->i", ((2, 3),), 17),
        ("ij->", ((2, 3),), 17),
        ("ji", ((2, 3),), 17),
        ("i,i->", ((3,), (3,)), 17),
        ("i,i->i", ((3,), (3,)), 17),
        ("i,j->ij", ((3,), (2,)), 17),
        ("i,j->", ((3,), (2,)), 17),
        ("ijk,j->i", ((2, 3, 4), (3,)), 17),
        ("bhqd,bhkd->bhqk", ((2, 2, 3, 4), (2, 2, 5, 4)), 17),
        ("bqhd,bkhd->bhqk", ((2, 3, 2, 4), (2, 5, 2, 4)), 17),
        ("bnc,chw->bnhw", ((2, 3, 4), (4, 2, 3)), 17),
        ("ij,jk,kl->il", ((2, 3), (3, 4), (4, 2)), 17),
        ("bi,bj,ijk->bk", ((2, 3), (2, 4), (3, 4, 5)), 17),
        ("a,ab,abc->c", ((2,), (2, 3), (2, 3, 4)), 17),
        ("...ij,...jk->...ik", ((5, 2, 3), (5, 3, 4)), 17),
        ("...ij,...jk->...ik", ((6, 1, 2, 3), (1, 5, 3, 4)), 17),
        ("...ij,jk->...ik", ((5, 2, 3), (3, 4)), 17),
        ("...ij,jk->...ik", ((2, 3), (3, 4)), 17),
        ("i...,ij", ((3, 2), (3, 4)), 17),
        ("...i->...", ((2, 3, 4),), 17),
        ("ii->i", ((3, 3),), 17),
        ("ii->", ((3, 3),), 17),
        ("bii->b", ((2, 3, 3),), 17),
        ("ibi->bi", ((3, 2, 3),), 17),
        ("iji,j->i", ((3, 2, 3), (2,)), 17),
        ("iijj,jk->ik", ((2, 2, 3, 3), (3, 4)), 17),
        ("...ii,...i->...", ((2, 3, 3), (2, 3)), 17),
        ("aB,BC->aC", ((2, 3), (3, 4)), 17),
        (",i->i", ((), (3,)), 17),
        ("i,->i", ((3,), ()), 17),
        ("i->", ((1,),), 17),
        ("ij,jk->ik", ((1, 3), (3, 1)), 17),
        ("ij,jm->i", ((2, 3), (3, 1)), 17),
        ("ij,jm->im", ((2, 3), (3, 1)), 17),
        ("ijk,km->k", ((2, 2, 3), (3, 1)), 17),
        ("ij->i", ((3, 1),), 17),
        ("ij->j", ((1, 3),), 17),
        ("ij->", ((1, 3),), 17),
        ("ii->", ((1, 1),), 17),
        ("ii->i", ((1, 1),), 17),
        ("ij,k->", ((1, 3), (1,)), 17),
        ("...i,j->...", ((2, 1), (1,)), 17),
    )
} | {
    # Only under an ellipsis is broadcasting found when the graph runs.
    f"{equation} {shapes} broadcast": Case(
        f'y = Einsum<equation="{equation}">(a, b)',
        {"a": normal(*shapes[0]), "b": normal(*shapes[1], seed=1)},
        lambda *operands, equation=equation: torch.einsum(equation, *operands),
        dynamic="none",
    )
    for equation, shapes in (
        ("ij,jk->ik", ((2, 1), (3, 4))),
        ("ij,j->i", ((2, 3), (1,))),
    )
}
CONSTANT = {
    "constant operand": Case(
        'y = Einsum<equation="ij,jk->ik">(a, b)',
        {"a": normal(2, 3), "b": normal(3, 4)},
        lambda a, b: a @ b,
        constants=("a",),
    ),
    "one operand twice": Case(
        'y = Einsum<equation="ij,kj->ik">(a, a)', {"a": normal(2, 3)}, lambda a: a @ a.T
    ),
}


@pytest.mark.quick
@cases(EINSUM | CONSTANT)
def test_gradients(case, dynamic):
    check(case, dynamic)


def test_broadcasting_without_an_ellipsis_is_refused():
    """Shape inference and runtimes disagree on its result."""
    case = Case(
        'y = Einsum<equation="bij,bjk->bik">(a, b)',
        {"a": normal(1, 2, 3), "b": normal(5, 3, 4)},
        lambda a, b: torch.einsum("bij,bjk->bik", a, b),
    )
    with pytest.raises(ValueError, match=r"Einsum 'y'.*'b' has sizes \[1, 5\].*an ellipsis"):
        onnx_gradients(case, ["a", "b"], dynamic=False)
