"""What a graph says it needs."""

import json

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.examples import digits_cnn
from tests.helpers.environments import needs_training_package


def digits_graph(**settings):
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), momentum=0.9)
    return graphopt.training_graph(model, "cross_entropy", optimizer, **settings)


def test_a_training_graph_needs_standard_operators_only(tmp_path):
    graph = digits_graph()
    graph.save(tmp_path / "train.onnx")
    needed = graphopt.requirements(graph)
    assert needed == graphopt.requirements(tmp_path / "train.onnx")
    assert needed == graphopt.requirements(graph.model)
    assert needed.standard
    assert (needed.ir_version, needed.opsets) == (8, {"": 17, "graphopt": 1})
    assert {"Conv", "Gemm", "MaxPool", "Sqrt"} <= set(needed.operators[""])
    assert "graphopt::ChunkedRMSPropMomentum" in needed.functions


@pytest.mark.quick
def test_it_stands_in_the_metadata():
    graph = digits_graph()
    needed = graphopt.requirements(graph)
    metadata = {entry.key: entry.value for entry in graph.model.metadata_props}
    stated = json.loads(metadata["graphopt.requirements"])
    assert graphopt.requirement.Requirements(**stated) == needed


@needs_training_package
def test_gradients_of_the_training_package_need_it():
    needed = graphopt.requirements(digits_graph(portable=False))
    assert not needed.standard
    assert "ReluGrad" in needed.operators["com.microsoft"]


def test_branches_and_functions_are_looked_into():
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18, "own" : 3]>
        m (float[N] x, bool c) => (float[N] z) {
            y = If (c) <
                then_branch = t () => (float[N] a) { a = own.Twice (x) },
                else_branch = e () => (float[N] b) { b = Neg (x) }
            >
            z = other.Kernel (y)
        }
        <domain: "own", opset_import: ["" : 18]>
        Twice (x) => (y) { y = Add (x, x) }
        <domain: "own", opset_import: ["" : 18]>
        NotCalled (x) => (y) { y = Exp (x) }
    """)
    assert graphopt.requirements(model) == graphopt.requirement.Requirements(
        ir_version=9,
        opsets={"": 18, "own": 3},
        operators={"": ["Add", "If", "Neg"], "other": ["Kernel"]},
        functions=["own::Twice"],
    )


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("missing.onnx", FileNotFoundError, "missing.onnx"),
        (17, TypeError, "got int, expected a path"),
    ],
)
def test_errors(given, error, message):
    with pytest.raises(error, match=message):
        graphopt.requirements(given)


def test_a_model_from_an_export_of_older_onnx():
    array = numpy_helper.from_array(np.zeros(2, np.float32), "w")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"], domain="ai.onnx")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "m", [info("x", 1, [2])], [info("y", 1, [2])], [array])
    assert graphopt.requirements(onnx.helper.make_model(graph)).standard
