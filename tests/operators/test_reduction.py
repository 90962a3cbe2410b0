"""Gradients of reductions."""

from itertools import product

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from graphopt.gradients import differentiate, prepare
from tests.helpers.gradient_oracle import Case, cases, check, distinct, normal, onnx_gradients

SHAPES = (
    ((2, 3, 4), None),
    ((2, 3, 4), (1,)),
    ((2, 3, 4), (-1, 0)),
    ((2, 1, 4), (1,)),
    ((0, 3), (1,)),
    ((5,), (0,)),
    ((), None),
)


def reduce_with(function):
    def over(axes, keepdims):
        def compute(x, *_):
            named = sorted(a % x.ndim for a in axes) if axes is not None else list(range(x.ndim))
            rest = [a for a in range(x.ndim) if a not in named]
            groups = x.permute((*rest, *named))
            if x.ndim != len(rest) + 1:
                groups = groups.reshape(*(x.shape[a] for a in rest), -1)
            y = function(groups)
            if not keepdims:
                return y
            return y.reshape([1 if a in named else x.shape[a] for a in range(x.ndim)])

        return compute

    return over


REDUCTIONS = {
    "ReduceSum": (lambda x: x.sum(-1), normal),
    "ReduceMean": (lambda x: x.mean(-1), normal),
    "ReduceMax": (lambda x: x.amax(-1), distinct),
    "ReduceMin": (lambda x: x.amin(-1), distinct),
    "ReduceProd": (lambda x: x.prod(-1), normal),
    "ReduceL1": (lambda x: x.abs().sum(-1), distinct),
    "ReduceL2": (lambda x: x.norm(dim=-1), normal),
    "ReduceSumSquare": (lambda x: (x * x).sum(-1), normal),
    "ReduceLogSum": (
        lambda x: x.sum(-1).log(),
        lambda *s: np.asarray(distinct(*s) + 3, np.float32),
    ),
    "ReduceLogSumExp": (lambda x: x.logsumexp(-1), normal),
}


def static_axes():
    """Every reduction of every shape, as each opset writes it."""
    for (op_type, (function, values)), (shape, axes) in product(REDUCTIONS.items(), SHAPES):
        for keepdims, opset in ((0, 17), (0, 18), (1, 17), (1, 18), (1, 21)):
            # One opset is enough for the forms that do not differ.
            if opset > 17 and shape != (2, 3, 4):
                continue
            attributes, inputs = f"keepdims={keepdims}", {"x": values(*shape)}
            if axes is not None and (opset >= 18 or op_type == "ReduceSum"):
                inputs["a"] = np.array(axes)
            elif axes is not None:
                attributes += f", axes={list(axes)}"
            yield (
                f"{op_type} {shape} axes={axes} keepdims={keepdims} opset={opset}",
                Case(
                    f"y = {op_type}<{attributes}>({', '.join(inputs)})",
                    inputs,
                    reduce_with(function)(axes, keepdims),
                    opset=opset,
                    tolerance=1e-5,
                    dynamic="all" if opset == 18 or shape == (5,) else "none",
                ),
            )


def run_time_axes():
    """Reductions over axes that the running graph computes."""
    for (op_type, (function, values)), keepdims in product(REDUCTIONS.items(), (0, 1)):
        for axes in ((1,), (-1, 0), (0, 1, 2)):
            kept = [1 if a in axes or a - 3 in axes else size for a, size in enumerate((2, 3, 4))]
            shape = [size for size in kept if keepdims or size != 1]
            yield (
                f"{op_type} axes={axes} at run time keepdims={keepdims}",
                Case(
                    f"a = Add(k, nought) z = {op_type}<keepdims={keepdims}>(x, a) "
                    "y = Reshape(z, s)",
                    {"x": values(2, 3, 4), "k": np.array(axes), "s": np.array(shape, np.int64)},
                    reduce_with(function)(axes, keepdims),
                    opset=18,
                    tolerance=1e-5,
                ),
            )


NO_AXES = {
    f"{op_type} of no axes, noop={noop}{at}": Case(
        f"{node} z = {op_type}<keepdims=0, noop_with_empty_axes={noop}>(x, {axes}) "
        "y = Reshape(z, s)",
        {
            "x": values(2, 3),
            "k": np.zeros(0, np.int64),
            "s": np.array((2, 3) if noop else (), np.int64),
        },
        (lambda x, *_: x) if noop else (lambda x, *_, f=f: f(x.reshape(-1))),
        opset=18,
        tolerance=1e-5,
    )
    for op_type, (f, values) in REDUCTIONS.items()
    for noop in (0, 1)
    if not noop or op_type in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
    for at, node, axes in (("", "", "k"), (" at run time", "a = Add(k, nought)", "a"))
}
TIES = np.array([[1, 3, 3, 3], [2, 2, 2, 2], [5, 0, -5, 1]], np.float32)
ZEROS = np.array([[0, 2, 3], [0, 0, 3], [0, 0, 0], [1, -2, 3]], np.float32)
# The weights of the outputs have the output's shape; so keepdims=0 where there are zeros.
KINKS = {
    f"{op_type} of ties {axes}": Case(
        f"y = {op_type}<axes={list(axes)}>(x)",
        {"x": TIES},
        lambda x, f=f, axes=axes: f(x, axes, True),
    )
    for op_type, f in (("ReduceMax", torch.amax), ("ReduceMin", torch.amin))
    for axes in ((1,), (0, 1))
} | {
    f"{op_type} of zeros": Case(f"y = {op_type}<keepdims=0, axes=[1]>(x)", {"x": ZEROS}, function)
    for op_type, function in (
        ("ReduceProd", lambda x: x.prod(1)),
        ("ReduceL1", lambda x: x.abs().sum(1)),
        ("ReduceL2", lambda x: x.norm(dim=1)),
    )
}
HALVES = {
    f"{op_type} in float16": Case(
        f"h = Cast<to=10>(x) g = {op_type}<axes=[1], keepdims=0>(h) y = Cast<to=1>(g)",
        {"x": distinct(3, 4)},
        lambda x, f=function: f(x),
        tolerance=5e-3,
    )
    for op_type, (function, _) in REDUCTIONS.items()
    if op_type not in ("ReduceSum", "ReduceLogSum")
}


@pytest.mark.quick
@cases(dict(static_axes()) | dict(run_time_axes()) | NO_AXES)
def test_gradients(case, dynamic):
    check(case, dynamic)


@cases(KINKS | HALVES)
def test_kinks(case, dynamic):
    check(case, dynamic)


def gradient(node, x):
    case = Case(node, {"x": x}, lambda x: x.sum(1))
    return onnx_gradients(case, ["x"], dynamic=False)["x"]


def weight(count):
    return normal(count, seed=7)[:, None]


def test_product_whose_other_elements_overflow():
    """Beside a zero, what the overflow multiplies is 0 and not NaN."""
    x = np.array([[0, 1e30, 1e30], [2, 3, 4]], np.float32)
    got = gradient("y = ReduceProd<axes=[1], keepdims=0>(x)", x)
    np.testing.assert_array_equal(got[0, 1:], 0)
    assert np.isinf(got[0, 0])
    np.testing.assert_allclose(got[1], weight(2)[1] * [12, 8, 6], rtol=1e-6)


def test_log_sum_exp_of_large_and_of_infinite_elements():
    x = np.array([[1e4, 1e4, -1e4], [-np.inf, 0, 0], [-np.inf, -np.inf, -np.inf]], np.float32)
    got = gradient("y = ReduceLogSumExp<axes=[1], keepdims=0>(x)", x)
    share = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 0]])
    # The result of 10000 is rounded to a thousandth.
    np.testing.assert_allclose(got, weight(3) * share, rtol=1e-3)


@pytest.mark.parametrize("op_type", ["ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"])
def test_reduction_over_no_axes_is_refused(op_type):
    case = Case(
        f"y = {op_type}<noop_with_empty_axes=1>(x, k)",
        {"x": normal(2, 3), "k": np.zeros(0, np.int64)},
        lambda x, *_: x,
        opset=18,
    )
    with pytest.raises(ValueError, match=rf"{op_type} 'y'.*over no axes.*replace it by Identity"):
        onnx_gradients(case, ["x"], dynamic=False)


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_total_of_an_input_of_unknown_rank(op_type, keepdims):
    """``x`` is a Reshape to a shape whose length only the running graph knows."""
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        m (int64[K] s) => (float loss) {{
            x = Reshape (p, s)
            y = {op_type} <keepdims = {keepdims}> (x)
            shape = Constant <value_ints = [0]> ()
            none = Slice (shape, shape, shape)
            loss = Reshape (y, none)
        }}""")
    x = normal(2, 3)
    model.graph.initializer.append(numpy_helper.from_array(x, "p"))
    prepared, statistics = prepare(model, ["p"])
    built = differentiate(prepared, ["p"], prepared.graph.outputs[0], statistics)
    prepared.graph.outputs.append(built.gradients["p"])
    session = onnxruntime.InferenceSession(
        ir.to_proto(prepared).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = {
        "ReduceSum": np.ones_like(x),
        "ReduceMean": np.full_like(x, 1 / 6),
        "ReduceMax": (x == x.max()).astype("f"),
        "ReduceL2": x / np.linalg.norm(x),
    }[op_type]
    _, gradient = session.run(None, {"p": x, "s": np.array([3, 1, 2])})
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
