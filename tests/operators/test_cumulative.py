"""Gradients of sums and products of all elements before one."""

import numpy as np
import onnx.parser
import onnx.reference
import onnx_ir
import onnxruntime
import pytest
import torch

import graphopt
from graphopt.gradients import prepare
from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_gradients

CUMSUM = {
    f"CumSum axis={axis} exclusive={exclusive} reverse={reverse}": Case(
        f"y = CumSum<exclusive={exclusive}, reverse={reverse}>(x, a)",
        {"x": normal(2, 4, 3), "a": np.array(axis)},
        lambda x, a, e=exclusive, r=reverse: cum_sum(x, int(a), e, r),
    )
    for axis in (1, -1)
    for exclusive in (0, 1)
    for reverse in (0, 1)
} | {
    "CumSum of a vector": Case(
        "y = CumSum(x, a)", {"x": normal(5), "a": np.array([0])}, lambda x, *_: x.cumsum(0)
    ),
    "CumSum of an empty batch": Case(
        "y = CumSum(x, a)", {"x": normal(0, 3), "a": np.array(1)}, lambda x, *_: x.cumsum(1)
    ),
    "CumSum along an axis of the running graph": Case(
        "b = Add(a, nought) y = CumSum(x, b)",
        {"x": normal(2, 3), "a": np.array(1)},
        lambda x, *_: x.cumsum(1),
    ),
}


def cum_sum(x, axis, exclusive, reverse):
    x = x.flip(axis) if reverse else x
    y = x.cumsum(axis)
    y = y - x if exclusive else y
    return y.flip(axis) if reverse else y


@cases(CUMSUM)
def test_sums(case, dynamic):
    check(case, dynamic)


def with_zeros(*places):
    """Elements of which those in the first row are 0 at these places."""
    x = normal(2, 5, 3)
    x[0, places, :] = 0
    return x


def cum_prod(x, axis, exclusive=0, reverse=0):
    x = x.flip(axis) if reverse else x
    if exclusive:
        ones = torch.ones_like(x.narrow(axis, 0, 1))
        x = torch.cat([ones, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    y = x.cumprod(axis)
    return y.flip(axis) if reverse else y


CUMPROD = {
    f"CumProd zeros={zeros} exclusive={exclusive} reverse={reverse}": Case(
        f"y = CumProd<exclusive={exclusive}, reverse={reverse}>(x, a)",
        {"x": with_zeros(*zeros), "a": np.array(1)},
        lambda x, a, e=exclusive, r=reverse: cum_prod(x, int(a), e, r),
        opset=26,
        dynamic="batch",
    )
    for zeros in ((), (0,), (2,), (4,), (1, 3), (0, 1, 2, 3, 4))
    for exclusive in (0, 1)
    for reverse in (0, 1)
} | {
    f"CumProd of {size}": Case(
        "y = CumProd(x, a)",
        {"x": normal(3, size), "a": np.array([-1])},
        lambda x, *_: x.cumprod(1),
        opset=26,
        dynamic="batch",
    )
    for size in (0, 1, 2, 8, 9, 33)
}


@cases(CUMPROD)
def test_products(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("zeros", [(), (2,), (1, 3)])
def test_products_against_finite_differences(zeros):
    case = Case("y = CumProd(x, a)", {"x": with_zeros(*zeros), "a": np.array(1)},
                lambda x, *_: x.cumprod(1), opset=26)  # fmt: skip
    got = onnx_gradients(case, ["x"], dynamic=False)["x"]
    x, weight, step = case.inputs["x"].astype(np.float64), normal(2, 5, 3, seed=7), 1e-6
    for index in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append((moved.cumprod(1) * weight).sum())
        assert got[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-5)


def discounted(axis="1", sizes="N, 4"):
    """A regression whose features are multiplied up."""
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 26]>
        m (float[{sizes}] x) => (float[{sizes}] y)
        <float[4, 4] w = {{{", ".join("0.5" for _ in range(16))}}}, int64 axis = {{{axis}}}>
        {{ a = MatMul(x, w) b = Sigmoid(a) y = CumProd(b, axis) }}"""
    )


def test_a_model_with_a_product_is_trained():
    model = discounted()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01)
    graph = graphopt.training_graph(model, loss="mse", optimizer=optimizer)
    assert "CumProd" not in {node.op_type for node in graph.model.graph.node}
    session = graphopt.Session(graph)
    x = normal(8, 4)
    target = (1 / (1 + np.exp(-x @ normal(4, 4, seed=1)))).cumprod(1)
    losses = [float(session.step({"x": x, "labels": target})["loss"]) for _ in range(200)]
    assert losses[-1] < 0.2 * losses[0]


def test_the_forward_pass_is_that_of_the_operator():
    model = discounted()
    prepared, _ = prepare(model, ["w"])
    x = normal(3, 4)
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(prepared).SerializeToString())
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], expected, rtol=1e-6)


def test_a_product_over_a_batch_of_any_size_is_refused():
    with pytest.raises(ValueError, match=r"CumProd 'y': the size of axis 0 is not known; declare"):
        prepare(discounted(axis="0"), ["w"])


def test_the_operations_of_a_product_are_counted():
    facts = graphopt.inspect(discounted(sizes="2, 4"))
    assert facts.stages[0].flops == 2 * (2 * 4 * 4) + 2 * 4 + 2 * 4
    assert not facts.stages[0].unknown


RANGE = {
    f"Range {start} {limit} {delta}": Case(
        "y = Range(x, l, z)",
        {name: np.array(number, np.float32)
         for name, number in (("x", start), ("z", delta), ("l", limit))},
        lambda x, z, *_, n=count: x + z * torch.arange(n),
        constants=("l",),
        dynamic="none",
    )
    for start, limit, delta, count in ((0.5, 3, 1.25, 2), (3, -1, -0.75, 6))
}  # fmt: skip


@cases(RANGE)
def test_range(case, dynamic):
    check(case, dynamic)
