"""Training graphs of many parameters, to look at and to measure."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

import graphopt


def training_graph(blocks: int, *, flat: bool = False) -> onnx.ModelProto:
    """Residual blocks of two layers, in stages of ten: 26 nodes and four parameters a block.

    Args:
        blocks: How many.
        flat: Leave the names of modules out of those of the nodes.
    """
    rng, width = np.random.default_rng(0), 16
    made: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    x = "x"
    for block in range(blocks):
        scope = f"/stages/stages.{block // 10}/blocks/blocks.{block % 10}"
        y = x
        for layer in ("fc1", "fc2"):
            name = f"stages.{block // 10}.blocks.{block % 10}.{layer}"
            weight = (rng.normal(size=(width, width)) * 0.1).astype(np.float32)
            initializers.append(numpy_helper.from_array(weight, f"{name}.weight"))
            initializers.append(
                numpy_helper.from_array(np.zeros(width, np.float32), f"{name}.bias")
            )
            for op_type, read_ in (("Gemm", [y, f"{name}.weight", f"{name}.bias"]), ("Relu", [])):
                title = f"n{len(made)}" if flat else f"{scope}/{layer}/{op_type}"
                made.append(helper.make_node(op_type, read_ or [y], [f"v{len(made)}"], name=title))
                y = made[-1].output[0]
        title = f"n{len(made)}" if flat else f"{scope}/Add"
        made.append(helper.make_node("Add", [x, y], [f"v{len(made)}"], name=title))
        x = made[-1].output[0]
    made.append(helper.make_node("Identity", [x], ["logits"], name="head"))
    values = [helper.make_tensor_value_info(n, 1, ["N", width]) for n in ("x", "logits")]
    graph = helper.make_graph(made, "network", values[:1], values[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    parameters = graphopt.parameters(model)
    optimizer = graphopt.RMSProp(parameters, learning_rate=0.001, momentum=0.9)
    return graphopt.training_graph(model, "cross_entropy", optimizer).model
