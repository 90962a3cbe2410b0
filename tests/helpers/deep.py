"""Networks of many layers, and their training graphs."""

import numpy as np
import onnx

import graphopt


def built(model, loss, memory):
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3, momentum=0.9, epsilon=1e-3)
    return graphopt.training_graph(model, loss, optimizer, memory=memory)


def deep(layers, width=64):
    """Layers of tanh(x w), one parameter each."""
    rng = np.random.default_rng(0)
    names = [f"h{i}" for i in range(layers)] + ["y"]
    nodes, weights, value = [], [], "x"
    for index, name in enumerate(names):
        weight = rng.normal(scale=width**-0.5, size=(width, width)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
        nodes += [
            onnx.helper.make_node("MatMul", [value, f"w{index}"], [f"{name}.product"]),
            onnx.helper.make_node("Tanh", [f"{name}.product"], [name]),
        ]
        value = name
    x, y = (
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", width])
        for n in ("x", "y")
    )
    graph = onnx.helper.make_graph(nodes, "deep", [x], [y], weights)
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)


def normalized(layers, channels=4, side=16, batch=8):
    """Convolutions, each with a batch normalization and an activation behind it."""
    helper, rng = onnx.helper, np.random.default_rng(0)
    nodes, values, x = [], {}, "x"
    for k in range(layers):
        values[f"w{k}"] = rng.normal(0, 0.2, (channels, channels, 3, 3)).astype("f")
        for name, value in (("scale", 1), ("bias", 0), ("mean", 0), ("var", 1)):
            values[f"{name}{k}"] = np.full(channels, value, "f")
        operands = [f"c{k}", *(f"{name}{k}" for name in ("scale", "bias", "mean", "var"))]
        nodes += [
            helper.make_node("Conv", [x, f"w{k}"], [f"c{k}"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", operands, [f"n{k}"]),
            helper.make_node("Relu", [f"n{k}"], [f"h{k}"]),
        ]
        x = f"h{k}"
    shape = [batch, channels, side, side]
    graph = helper.make_graph(
        nodes,
        "normalized",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
