"""The kernels of products of matrices, against NumPy in float64."""

import numpy as np
import pytest

from graphopt import kernels
from tests.helpers.kernel_sessions import of_one_node, run_one_node, run_over_the_first

pytestmark = pytest.mark.skipif(
    not kernels.has("MatMul"), reason="no kernels of products: no AVX-512, or no C compiler"
)

# Rows, columns and terms of a product.
SIZES = [
    (1, 1, 1),
    (3, 5, 7),
    (12, 32, 256),
    (13, 33, 257),
    (11, 31, 255),
    (97, 48, 300),
    (100, 129, 17),
    (300, 40, 513),
    (512, 256, 64),
    (257, 545, 65),
    (40, 1030, 31),
]
BATCHES = [(), (3,), (2, 5)]
KINDS = ["MatMul", "MatMulTransA", "MatMulTransB"]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def operands(kind, batch, size):
    rows, columns, terms = size
    a, b = normal(*batch, rows, terms), normal(*batch, terms, columns, seed=1)
    if "TransA" in kind:
        a = np.ascontiguousarray(a.swapaxes(-1, -2))
    if "TransB" in kind:
        b = np.ascontiguousarray(b.swapaxes(-1, -2))
    return {"a": a, "b": b}


def expected(kind, a, b):
    """The product, and how far rounding may lead from it: a sum of the sizes of all terms."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    a = a.swapaxes(-1, -2) if "TransA" in kind else a
    b = b.swapaxes(-1, -2) if "TransB" in kind else b
    return a @ b, 1e-6 * (np.abs(a) @ np.abs(b)) + 1e-30


def assert_near(got, wanted, bound):
    assert got.shape == wanted.shape
    assert got.dtype == np.float32
    assert (np.abs(got - wanted) <= bound).all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products(kind, batch, size, threads):
    given = operands(kind, batch, size)
    assert_near(run_one_node(f"{kind}1", given, {}, threads), *expected(kind, **given))


@pytest.mark.parametrize("shape", [(2, 3), (5, 1, 4)], ids=str)
@pytest.mark.parametrize("kind", ["MatMul", "MatMulTransB"])
def test_the_rows_of_many_matrices_by_one(kind, shape):
    given = operands(kind, (), (7, 40, 33))
    a = normal(*shape, 9, 33, seed=2)
    assert_near(run_one_node(kind, given | {"a": a}, {}), *expected(kind, a, given["b"]))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_row", [True, False])
def test_what_is_added(kind, size, is_row):
    given = operands(kind, (), size)
    plus = normal(size[1], seed=3) if is_row else normal(*size[:2], seed=3)
    wanted, bound = expected(kind, **given)
    got = run_one_node(f"{kind}Add", {"plus": plus} | given, {}, 2)
    assert_near(got, wanted + plus, bound + 1e-6 * np.abs(plus))


def test_what_is_added_to_several_products():
    given = operands("MatMul", (3, 2), (9, 34, 20))
    plus = normal(3, 2, 9, 34, seed=3)
    wanted, bound = expected("MatMul", **given)
    got = run_one_node("MatMulAdd", {"plus": plus} | given, {}, 2)
    assert_near(got, wanted + plus, bound + 1e-6 * np.abs(plus))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_do_not_depend_on_threads(kind):
    given = operands(kind, (2,), (300, 520, 600))
    one, four = (run_one_node(kind, given, {}, threads) for threads in (1, 4))
    assert one.tobytes() == four.tobytes()


@pytest.mark.parametrize("size", [(13, 33, 600), (300, 256, 257)], ids=str)
def test_the_result_may_lie_where_what_is_added_is(size):
    given = {"plus": normal(*size[:2])} | operands("MatMul", (), size)
    session = of_one_node("MatMulAdd", given, {}, 2)
    (elsewhere,), (there,) = session.run(None, given), run_over_the_first(session, given)
    assert elsewhere.tobytes() == there.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(0, 5, 7), (5, 0, 7), (5, 7, 0)], ids=str)
def test_of_nothing(kind, size):
    given = operands(kind, (), size)
    got = run_one_node(kind, given, {})
    assert got.shape == size[:2]
    assert not got.any()
    plus = normal(*size[:2])
    np.testing.assert_array_equal(run_one_node(f"{kind}Add", {"plus": plus} | given, {}), plus)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_in_its_row_and_column(kind):
    given = operands(kind, (), (14, 35, 258))
    left, right = (given[name] for name in "ab")
    left[(3, 4) if "TransA" not in kind else (4, 3)] = np.inf
    right[(257, 34) if "TransB" not in kind else (34, 257)] = np.nan
    with np.errstate(invalid="ignore"):
        wanted, _ = expected(kind, **given)
    got = run_one_node(kind, given, {})
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("MatMul", [(2, 3), (4, 5)]),
        ("MatMul", [(3,), (3, 5)]),
        ("MatMul", [(2, 3), (3,)]),
        ("MatMul", [(2, 2, 3), (3, 3, 5)]),
        ("MatMul", [(2, 3), (1, 3, 5)]),
        ("MatMulTransA", [(2, 4, 3), (4, 5)]),
        ("MatMulTransA", [(2, 3), (3, 5)]),
        ("MatMulTransB", [(2, 3), (3, 5)]),
        ("MatMulAdd", [(4,), (2, 3), (3, 5)]),
        ("MatMulAdd", [(1, 5), (2, 3), (3, 5)]),
        ("MatMulAdd", [(5, 2), (2, 3), (3, 5)]),
        ("MatMulAdd", [(2, 5), (1, 2, 3), (3, 5)]),
    ],
)
def test_what_does_not_fit_is_refused(name, shapes):
    given = {f"input_{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}
    session = of_one_node(name, given, {})
    with pytest.raises(Exception, match=f"graphopt.{name}: the shapes"):
        session.run(None, given)


# Orders of the axes of a, b and of the result: those of the file by those of the product.
ORDERS = [
    ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]),
    ([0, 2, 1, 3], [0, 2, 3, 1], [0, 1, 2, 3]),
    ([0, 1, 3, 2], [0, 2, 1, 3], [0, 2, 1, 3]),
    ([2, 0, 3, 1], [1, 2, 0, 3], [2, 1, 0, 3]),
    ([1, 0, 2, 3], [0, 1, 3, 2], [1, 2, 0, 3]),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("alpha", [1.0, -0.3])
@pytest.mark.parametrize("size", [(1, 1, 1), (17, 35, 7), (64, 32, 300), (260, 65, 64)], ids=str)
@pytest.mark.parametrize(("a_perm", "b_perm", "y_perm"), ORDERS)
def test_products_of_axes(a_perm, b_perm, y_perm, size, alpha, threads):
    given = operands("MatMul", (2, 3), size)
    wanted, bound = expected("MatMul", **given)
    lying = {
        "a": np.ascontiguousarray(given["a"].transpose(np.argsort(a_perm))),
        "b": np.ascontiguousarray(given["b"].transpose(np.argsort(b_perm))),
    }
    attributes = {"a_perm": a_perm, "b_perm": b_perm, "y_perm": y_perm, "alpha": alpha}
    got = run_one_node("MatMulAxes3", lying, attributes, threads)
    assert_near(got, alpha * wanted.transpose(y_perm), bound.transpose(y_perm))


@pytest.mark.parametrize(
    ("changed", "shapes", "message"),
    [
        ({"a_perm": [0, 3, 1, 2]}, [(2, 2, 2, 2)] * 2, "no order"),
        ({"b_perm": [3, 0, 1, 2]}, [(2, 2, 2, 2)] * 2, "no order"),
        ({"y_perm": [0, 1, 3, 2]}, [(2, 2, 2, 2)] * 2, "no order"),
        ({"a_perm": [0, 1, 1, 3]}, [(2, 2, 2, 2)] * 2, "no order"),
        ({"a_perm": [0, 1, 2, 4]}, [(2, 2, 2, 2)] * 2, "no order"),
        ({"a_perm": [0, 1]}, [(2, 2, 2, 2)] * 2, "it has four axes"),
        ({}, [(2, 2, 2), (2, 2, 2)], "the inputs have four axes"),
        ({}, [(2, 1, 2, 3), (2, 3, 3, 2)], "the shapes"),
        ({}, [(2, 3, 2, 3), (2, 3, 2, 3)], "the shapes"),
    ],
)
def test_axes_that_do_not_fit_are_refused(changed, shapes, message):
    attributes = {name: [0, 1, 2, 3] for name in ("a_perm", "b_perm", "y_perm")} | {"alpha": 1.0}
    given = {f"input_{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}
    with pytest.raises(Exception, match=f"graphopt.MatMulAxes: {message}"):
        of_one_node("MatMulAxes", given, attributes | changed).run(None, given)


def test_axes_of_which_there_is_nothing():
    attributes = {key: [0, 1, 2, 3] for key in ("a_perm", "b_perm", "y_perm")} | {"alpha": 2.0}
    for a, b in [((0, 2, 3, 4), (0, 2, 4, 5)), ((2, 3, 4, 0), (2, 3, 0, 5))]:
        given = {"a": np.ones(a, np.float32), "b": np.ones(b, np.float32)}
        got = run_one_node("MatMulAxes", given, attributes)
        assert got.shape == (*a[:3], 5)
        assert not got.any()
