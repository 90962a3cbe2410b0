"""Operators of ai.onnx.ml before and behind parameters."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.gradients import differentiate, prepare
from graphopt.graphs import without_functions
from graphopt.shapes.engine import Shapes
from tests.helpers.gradient_oracle import normal

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
X = normal(3, 4)
HOLES = np.where(X > 0.5, np.float32(np.nan), X)
LARGEST = np.array([[1, 3, 2, -5], [-1, -2, -4, -3], [0, 0, 0, 0]], np.float32)
ZEROS = np.array([[1, -3, 2, 0], [0, 0, 0, 0]], np.float32)
W, B = normal(2, 4, seed=1), normal(2, seed=2)
LINEAR = {"coefficients": W.reshape(-1).tolist(), "intercepts": B.tolist(), "targets": 2}


def linear(x):
    return x @ torch.tensor(W).double().T + torch.tensor(B).double()


def over(x, size):
    return x / torch.where(size == 0, torch.ones_like(size), size)


CASES = {
    "Scaler": ({"offset": [1.0, 2.0, 3.0, 4.0], "scale": [0.5, 2.0, 3.0, 1.0]}, X,
               lambda x: (x - torch.arange(1, 5)) * torch.tensor([0.5, 2, 3, 1])),
    "Scaler of one number": ({"offset": [1.0], "scale": [0.5]}, X, lambda x: (x - 1) * 0.5),
    "Scaler in int64": ({"offset": [1.0], "scale": [0.5]}, np.arange(6).reshape(2, 3),
                        lambda x: (x - 1) * 0.5),
    "Normalizer MAX": ({"norm": "MAX"}, LARGEST, lambda x: over(x, x.amax(1, keepdim=True))),
    "Normalizer L1": ({"norm": "L1"}, ZEROS, lambda x: over(x, x.abs().sum(1, keepdim=True))),
    "Normalizer L2": ({"norm": "L2"}, X, lambda x: over(x, x.norm(dim=1, keepdim=True))),
    "Normalizer L2 of zeros": ({"norm": "L2"}, ZEROS * 0, lambda x: x),
    "Normalizer L2 of a vector": ({"norm": "L2"}, X[0], lambda x: over(x, x.norm(dim=0))),
    "LinearRegressor": (LINEAR, X, linear),
    "LinearRegressor of a vector": (LINEAR, X[0], lambda x: linear(x[None])),
    "LinearRegressor LOGISTIC": ({**LINEAR, "post_transform": "LOGISTIC"}, X,
                                 lambda x: linear(x).sigmoid()),
    "LinearRegressor SOFTMAX": ({**LINEAR, "post_transform": "SOFTMAX"}, X,
                                lambda x: linear(x).softmax(-1)),
    "Imputer": ({"replaced_value_float": float("nan"), "imputed_value_floats": [7.0]}, HOLES,
                lambda x: torch.where(x.isnan(), 7.0, x)),
    "Imputer by columns": ({"replaced_value_float": 0.0, "imputed_value_floats": [1.0, 2.0, 3, 4]},
                           ZEROS, lambda x: torch.where(x == 0, torch.arange(1.0, 5).double(), x)),
    "FeatureVectorizer": ({"inputdimensions": [4, 4]}, X, lambda x: torch.cat([x, x], 1)),
}  # fmt: skip


def model(name, attributes, x, parameter="x"):
    node = helper.make_node(name.split()[0], [parameter] * (1 + ("Vectorizer" in name)), ["y"],
                            domain="ai.onnx.ml", **attributes)  # fmt: skip
    graph = helper.make_graph([node], "g", [], [], [numpy_helper.from_array(x, "x")])
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)


@pytest.mark.parametrize(("attributes", "x", "compute"), CASES.values(), ids=CASES)
def test_what_is_written_in_other_operators(request, attributes, x, compute):
    """The same result, and PyTorch's gradient."""
    name = request.node.callspec.id
    given = model(name, attributes, x)
    given.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    (result,) = onnxruntime.InferenceSession(given.SerializeToString()).run(None, {})
    theirs = torch.tensor(x).double().requires_grad_()
    expected = compute(theirs)
    np.testing.assert_allclose(result, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert Shapes(ir.from_proto(given)).of("y").shape == result.shape
    weight = normal(*result.shape, seed=5)
    given.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    given.graph.node.append(helper.make_node("Mul", ["y", "weight"], ["p"]))
    given.graph.node.append(helper.make_node("ReduceSum", ["p"], ["loss"], keepdims=0))
    given.graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    trained = ["x"] if x.dtype == np.float32 else ["weight"]
    prepared, statistics = prepare(given, trained)
    built = differentiate(prepared, trained, prepared.graph.outputs[1], statistics)
    prepared.graph.outputs.extend(built.gradients.values())
    proto = ir.to_proto(prepared)
    if trained == ["x"]:  # what lies before the trained part stays as it is
        assert {node.domain for node in without_functions(proto).graph.node} == {""}
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    y, _, got = session.run(None, {"x": x} if trained == ["x"] else {"weight": weight})
    np.testing.assert_allclose(y, result, rtol=1e-6)
    (expected * torch.tensor(weight).double()).sum().backward()
    slope = theirs.grad.numpy() if trained == ["x"] else result
    np.testing.assert_allclose(got, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.any_runtime
def test_a_transform_that_is_not_known_is_refused():
    given = model("LinearRegressor", {**LINEAR, "post_transform": "PROBIT"}, X)
    given.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    with pytest.raises(ValueError, match="LinearRegressor 'y': post_transform 'PROBIT'"):
        prepare(given, ["x"])


FRONT = {
    "Scaler": ("Scaler", {"offset": [0.0], "scale": [2.0]}, X, 4),
    "Binarizer": ("Binarizer", {"threshold": 0.25}, X, 4),
    "ArrayFeatureExtractor": ("ArrayFeatureExtractor", {}, X, 2),
    "LabelEncoder": (
        "LabelEncoder",
        {"keys_int64s": [1, 2], "values_floats": [0.5, 0.25], "default_float": -1.0},
        np.array([[1, 2], [3, 1], [2, 2]]),
        2,
    ),
    "TreeEnsembleRegressor": (
        "TreeEnsembleRegressor",
        {
            "n_targets": 2, "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2],
            "nodes_featureids": [1, 0, 0], "nodes_values": [0.1, 0.0, 0.0],
            "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0],
            "nodes_falsenodeids": [2, 0, 0], "target_treeids": [0, 0], "target_nodeids": [1, 2],
            "target_ids": [0, 1], "target_weights": [1.0, 2.0],
        },
        X,
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("operator", "attributes", "x", "width"), FRONT.values(), ids=FRONT)
def test_a_network_behind_it_is_trained(operator, attributes, x, width):
    """Its rank is known, though nothing in the file says so."""
    more = [numpy_helper.from_array(np.array([[3, 1]]), "i")] * (operator[0] == "A")
    node = helper.make_node(operator, ["x", "i"][: 1 + len(more)], ["s"], domain="ai.onnx.ml",
                            **attributes)  # fmt: skip
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node, helper.make_node("MatMul", ["s", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", x.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(normal(width, 1, seed=4), "w"), *more],
    )
    given = helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
    only = helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
    only.graph.output[0].CopyFrom(helper.make_tensor_value_info("s", TensorProto.FLOAT, None))
    (s,) = onnxruntime.InferenceSession(only.SerializeToString()).run(None, {"x": x})
    optimizer = graphopt.RMSProp(graphopt.parameters(given), learning_rate=0.01, decay=0.9,
                                 epsilon=1e-8, epsilon_inside_root=False,
                                 initial_mean_square=0.0)  # fmt: skip
    session = graphopt.Session(graphopt.training_graph(given, "mse", optimizer))
    labels = normal(3, 1, seed=6)
    session.step({"x": x, "labels": labels})
    weight = torch.nn.Parameter(torch.tensor(normal(width, 1, seed=4)))
    peer = torch.optim.RMSprop([weight], lr=0.01, alpha=0.9, eps=1e-8)
    torch.nn.functional.mse_loss(torch.tensor(s) @ weight, torch.tensor(labels)).backward()
    peer.step()
    np.testing.assert_allclose(session.state["w"], weight.detach().numpy(), atol=1e-5)
