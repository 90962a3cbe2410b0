"""Models, parameters and configurations of the optimizer for training on devices."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import schedules


def worst(found, expected):
    """The largest difference of two states."""
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - expected[name]).max(initial=0)) for name in expected)


def linear_in(params):
    """A model whose gradients are its inputs: the loss is the sum of parameter times input."""
    nodes, inputs, initializers = [], [], []
    for index, (name, value) in enumerate(params.items()):
        inputs.append(
            helper.make_tensor_value_info(f"given.{name}", TensorProto.FLOAT, value.shape)
        )
        initializers.append(numpy_helper.from_array(value, name))
        nodes.append(helper.make_node("Mul", [name, f"given.{name}"], [f"product{index}"]))
        nodes.append(
            helper.make_node("ReduceSum", [f"product{index}"], [f"sum{index}"], keepdims=0)
        )
    nodes.append(helper.make_node("Sum", [f"sum{i}" for i in range(len(params))], ["objective"]))
    output = helper.make_tensor_value_info("objective", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "linear", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def given(gradients, loss_scale=1.0):
    return {
        f"given.{name}": np.asarray(g / loss_scale, np.float32) for name, g in gradients.items()
    }


def parameters(shapes):
    return [graphopt.Parameter(name, shape) for name, shape in shapes.items()]


# A scalar, one element, and two of one shape.
SHAPES = {"w": (3, 4), "b": (4,), "one": (1,), "scalar": (), "again": (3, 4)}
FALLING = schedules.ExponentialDecayLR(0.2, 0.5, 1)
VARIANTS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "rate outside": {"momentum": 0.9, "learning_rate_inside_moment": False},
    "centered": {"centered": True, "epsilon": 1e-3},
    "epsilon outside": {"epsilon_inside_root": False},
    "mean square from 0": {"initial_mean_square": 0.0, "epsilon": 1e-3},
    "mean square from 3": {"initial_mean_square": 3.0, "momentum": 0.5},
    "decay": {"weight_decay": 0.05},
    "falling decay": {"weight_decay": FALLING},
    "decoupled": {"weight_decay": 0.05, "decoupled_weight_decay": True, "momentum": 0.5},
    "falling decoupled": {"weight_decay": FALLING, "decoupled_weight_decay": True},
    "loss scale": {"loss_scale": 1024.0, "weight_decay": 0.05},
    "falling decay, loss scale": {"loss_scale": 1024.0, "weight_decay": FALLING},
}


def forward_model():
    """y = (x w + b) * scale."""
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "b": (4,), "scale": (4,)}
    values = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "b"], ["sum"]),
            helper.make_node("Mul", ["sum", "scale"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", 1, ["N", 3])],
        [helper.make_tensor_value_info("y", 1, ["N", 4])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opset = [helper.make_opsetid("", 15)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)
