"""Differentiation of whole graphs: what is on the path, what is named, what is refused."""

from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from graphopt.gradients import differentiate, prepare
from graphopt.operators import OPERATORS


def model(text, opset=17, **initializers):
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    parsed.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in initializers.items()
    )
    return parsed


def gradients(forward, *names):
    prepared, statistics = prepare(forward, names)
    return differentiate(prepared, names, prepared.graph.outputs[-1], statistics)


def values(forward, *names, **feeds):
    built = gradients(forward, *names)
    built.model.graph.outputs.extend(built.gradients.values())
    proto = ir.to_proto(built.model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    start = {t.name: numpy_helper.to_array(t) for t in forward.graph.initializer if t.name in names}
    return session.run([f"{name}_grad" for name in names], start | feeds)


W = np.array([1.0, -2.0, 3.0])
SCALARS = {
    "one value twice": ("y = Mul(w, w)", 2 * W),
    "one value in several places": ("a = Exp(w) b = Mul(a, w) y = Add(b, w)",
                                    np.exp(W) * (W + 1) + 1),
    "a chain of one operator": ("a = Neg(w) b = Neg(a) y = Neg(b)", -np.ones(3)),
    "an output that nobody reads": ("a, b = Split<axis=0>(w, sizes) y = Mul(b, b)", [0, -4, 6]),
    "a side path through integers": ("i = Cast<to=7>(w) f = Cast<to=1>(i) y = Mul(f, w)", W),
    "a side path that is flat": ("s = Sign(w) y = Mul(s, w)", np.sign(W)),
    "a parameter that is the loss itself": ("y = Identity(w)", np.ones(3)),
    "constants beside it": ("c = Constant<value_float=2.0>() d = Exp(c) y = Mul(w, d)",
                            [np.e**2] * 3),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize(("text", "expected"), SCALARS.values(), ids=SCALARS)
def test_gradient(text, expected):
    forward = model(f"m () => (float loss) {{ {text} loss = ReduceSum<keepdims=0>(y) }}", w=W)
    forward.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "sizes"))
    np.testing.assert_allclose(values(forward, "w")[0], expected, rtol=1e-6)


def test_two_parameters_with_one_gradient_get_a_value_each():
    forward = model("m () => (float loss) { y = Add(v, w) loss = ReduceSum<keepdims=0>(y) }",
                    v=W, w=W)  # fmt: skip
    v, w = values(forward, "v", "w")
    np.testing.assert_array_equal(v, np.ones(3))
    np.testing.assert_array_equal(w, np.ones(3))


def test_nodes_are_named_after_those_that_they_belong_to():
    forward = model("m (float[N,3] x) => (float loss) { h = Mul(x, w) y = Tanh(h) "
                    "loss = ReduceSum<keepdims=0>(y) }", w=W)  # fmt: skip
    names = [node.name for node in gradients(forward, "w").model.graph]
    backward = [name for name in names if name.startswith("backward/")]
    assert len(set(backward)) == len(backward)
    own = {name.split("/")[1] for name in backward}
    assert own == {"h", "y", "loss"}


def test_building_twice_gives_the_same_graph():
    forward = model("m (float[N,3] x) => (float loss) { h = Mul(x, w) a = Tanh(h) b = Exp(h) "
                    "y = Mul(a, b) loss = ReduceSum<keepdims=0>(y) }", w=W)  # fmt: skip
    first, second = (ir.to_proto(gradients(forward, "w").model) for _ in range(2))
    assert first == second


def test_what_the_loss_does_not_need_is_left_alone():
    forward = model("m (float[N,3] x) => (float[N,3] z, float loss) { y = Mul(x, w) "
                    "z = Hardmax(y) loss = ReduceSum<keepdims=0>(y) }",
                    w=W)  # fmt: skip
    (gradient,) = values(forward, "w", x=np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    np.testing.assert_array_equal(gradient, [5, 7, 9])


@pytest.mark.quick
def test_all_operators_without_a_gradient_are_named_at_once():
    forward = model("""m (float[2,3] x) => (float loss) {
        a = Mul(x, w) b = MatMul(a, m) c = Unique(b) d = Unique(b) e = Add(c, d)
        f = own.Kernel(e) loss = ReduceSum<keepdims=0>(f)
    }""", w=W, m=np.ones((3, 2)))  # fmt: skip
    forward.opset_import.append(onnx.helper.make_opsetid("own", 1))
    with pytest.raises(ValueError, match="these operators have no gradient") as caught:
        gradients(forward, "w")
    assert "Unique ('c', 'd')" in str(caught.value)
    assert "own.Kernel ('f')" in str(caught.value)


def test_a_rule_that_gives_no_gradient_is_found_out(monkeypatch):
    def forgets(b):
        return [b.dy, None]

    forward = model("m () => (float loss) { a = Exp(v) y = Mul(w, a) "
                    "loss = ReduceSum<keepdims=0>(y) }", v=W, w=W)  # fmt: skip
    monkeypatch.setitem(OPERATORS, "Mul", replace(OPERATORS["Mul"], gradient=forgets))
    with pytest.raises(ValueError, match=r"Mul 'y': its input 'a' \(number 1\).*no gradient; make"):
        gradients(forward, "v", "w")


def test_what_does_not_change_the_result_has_no_gradient():
    forward = model("m () => (float loss) { a = Exp(w) b = CastLike(w, a) y = Mul(b, b) "
                    "loss = ReduceSum<keepdims=0>(y) }", w=W)  # fmt: skip
    np.testing.assert_allclose(values(forward, "w")[0], 2 * W)


def test_an_operator_without_a_gradient_in_a_branch_is_named():
    forward = model("""m (bool c) => (float loss) {
        a = Exp(w)
        y = If (c) <then_branch = t () => (float[3] p) { p = Neg(a) },
                    else_branch = e () => (float[3] q) { q = Unique(a) }>
        loss = ReduceSum<keepdims=0>(y)
    }""", w=W)  # fmt: skip
    with pytest.raises(ValueError, match=r"no gradient: Unique \('.*Unique'\)"):
        gradients(forward, "w")


def test_a_branch_beside_the_path_is_kept():
    forward = model("""m (bool c) => (float loss) {
        y = If (c) <then_branch = t () => (float p) { p = Constant<value_float=1.0>() },
                    else_branch = e () => (float q) { q = Constant<value_float=2.0>() }>
        z = Mul(y, w)
        loss = ReduceSum<keepdims=0>(z)
    }""", w=W)  # fmt: skip
    np.testing.assert_array_equal(values(forward, "w", c=np.array(False))[0], [2, 2, 2])


def test_every_operator_is_in_one_table():
    schemas = {schema.name for schema in onnx.defs.get_all_schemas()}
    known = {name for name, operator in OPERATORS.items() if operator.is_known}
    assert {name.removeprefix("ai.onnx.ml::") for name in known} <= schemas
    assert sum(callable(operator.gradient) for operator in OPERATORS.values()) > 100
