"""Weights that stand in the branches of If and the bodies of loops are trained like others."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import RMSProp

W = np.array([[1, 2, 3], [4, 5, 7]], np.float32)
V = np.array([[3, 1, -2], [1, -5, 2]], np.float32)


def branches(names=("w", "v"), constants=True):
    """y = x w where ``big`` is true, x v where it is not."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        m (float[4,2] x, bool big) => (float[4,3] y) {
            y = If (big) <
                then_branch = g () => (float[4,3] a) { a = MatMul(x, w) },
                else_branch = h () => (float[4,3] c) { c = MatMul(x, v) }
            >
        }"""
    )
    for attribute, value, name in zip(model.graph.node[0].attribute, (W, V), names, strict=True):
        tensor = numpy_helper.from_array(value, name)
        attribute.g.node[0].input[1] = name
        if constants:
            attribute.g.node.insert(0, onnx.helper.make_node("Constant", [], [name], value=tensor))
        else:
            attribute.g.initializer.append(tensor)
    return model


def step(model, feeds, target):
    optimizer = RMSProp(
        graphopt.parameters(model), learning_rate=1.0, decay=0.0, centered=True, epsilon=1e30
    )
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer))
    loss = session.step({**feeds, "labels": target})["loss"]
    state = session.state
    found = {n.removeprefix("mean_grad."): v for n, v in state.items() if n.startswith("mean_grad")}
    return float(loss), found


@pytest.mark.parametrize("constants", [True, False], ids=["constants", "initializers"])
@pytest.mark.parametrize("big", [True, False])
def test_the_branch_that_is_taken(big, constants):
    model = branches(constants=constants)
    kept = model.SerializeToString()
    assert [p.name for p in graphopt.parameters(model)] == ["w", "v"]
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((4, 2), "f"), rng.standard_normal((4, 3), "f")
    loss, found = step(model, {"x": x, "big": np.array(big)}, target)
    off = x.astype("d") @ (W if big else V) - target
    taken, other = ("w", "v") if big else ("v", "w")
    np.testing.assert_allclose(loss, np.square(off).mean(), rtol=1e-5)
    np.testing.assert_allclose(found[taken], x.T.astype("d") @ off * 2 / off.size, rtol=1e-5)
    np.testing.assert_array_equal(found[other], 0)
    assert model.SerializeToString() == kept


def test_a_loop():
    """y = x w w w, of which the derivative is a sum of three."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        m (float[4,3] x) => (float[4,3] y) <int64 three = {3}, bool yes = {1}> {
            y = Loop (three, yes, x) <body = g
                (int64 i, bool go, float[4,3] s) => (bool on, float[4,3] t) {
                    w = Constant <value = float[3,3] {1, 0.5, 0, 0, 1, 0.25, 0.5, 0, 1}>()
                    on = Identity(go)
                    t = MatMul(s, w)
                }>
        }"""
    )
    w = np.array([[1, 0.5, 0], [0, 1, 0.25], [0.5, 0, 1]])
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((4, 3), "f"), rng.standard_normal((4, 3), "f")
    _, found = step(model, {"x": x}, target)
    inputs = [x @ np.linalg.matrix_power(w, i) for i in range(3)]
    behind = 2 * (inputs[2] @ w - target) / target.size
    expected = 0
    for before in reversed(inputs):
        expected = expected + before.T @ behind
        behind = behind @ w.T
    np.testing.assert_allclose(found["w"], expected, rtol=1e-4, atol=1e-5)


def test_inspected():
    assert [p.name for p in graphopt.inspect(branches()).parameters] == ["w", "v"]


def test_one_name_in_two_branches():
    found = graphopt.parameters
    model = branches(("w", "w"))
    with pytest.raises(ValueError, match=r"'w': it stands in .* a name of its own"):
        found(model)


@pytest.mark.parametrize("name", ["w", "v"])
def test_exported(tmp_path, name):
    model = branches()
    optimizer = RMSProp(graphopt.parameters(model).matching(name), learning_rate=0.1)
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer))
    feeds = {"x": np.eye(4, 2, dtype="f"), "big": np.array(name == "w")}
    session.step({**feeds, "labels": np.zeros((4, 3), "f")})
    session.export(tmp_path / "trained.onnx")
    moved = {
        t.name: numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "trained.onnx").graph.initializer
    }
    np.testing.assert_array_equal(moved[name], session.state[name])
    assert np.abs(moved[name] - (W if name == "w" else V)).min() > 0.01
