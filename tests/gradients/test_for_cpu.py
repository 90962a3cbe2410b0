"""Convolutions of each channel by itself become functions for which there is a kernel.

Their bodies are products of matrices where images are narrow.
"""

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import graphopt
from graphopt.graphs import without_functions

pytestmark = pytest.mark.any_runtime

CASES = {
    "3x3 on 7": ("pads=[1,1,1,1]", (3, 3), (7, 7)),
    "7x7 on 7, strides": ("pads=[3,3,3,3], strides=[2,1]", (7, 7), (7, 7)),
    "asymmetric": ("pads=[0,2,1,1], strides=[1,2], dilations=[2,1]", (2, 3), (8, 9)),
    "no padding": ("dilations=[1,2]", (3, 3), (6, 6)),
    "as large, ahead": ('auto_pad="SAME_LOWER", strides=[2,2]', (4, 4), (7, 8)),
    "as large, behind": ('auto_pad="SAME_UPPER", strides=[1,1]', (4, 3), (5, 6)),
    "only padding": ("pads=[9,9,9,9], strides=[4,4]", (2, 2), (3, 3)),
}


def network(attributes, kernel, image, *, channels=4, bias=True):
    """Its batch is open."""
    values = np.random.default_rng(0)
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,{channels},{image[0]},{image[1]}] x) => (float[N,C,H,W] y) {{
            y = Conv<group={channels}, {attributes}>(x, w{", b" if bias else ""})
        }}""")
    arrays = {"w": values.standard_normal((channels, 1, *kernel))}
    if bias:
        arrays["b"] = values.standard_normal(channels)
    for name, array in arrays.items():
        tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        model.graph.initializer.append(tensor)
    return onnx.shape_inference.infer_shapes(model)


def trained(model):
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    return graphopt.training_graph(model, lambda op, y: op.ReduceMean(y, keepdims=0), optimizer)


def convolutions(graph):
    """Those that there are where functions are written out."""
    return [n for n in without_functions(graph.model).graph.node if n.op_type == "Conv"]


def reader(graph):
    """What reads the image first."""
    return next(node for node in graph.model.graph.node if "x" in node.input)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_same_numbers(case, bias):
    model = network(*case, bias=bias)
    graph = trained(model)
    assert not any(node.input[0] == "x" for node in convolutions(graph))
    assert reader(graph).op_type == ("DepthwiseConvBias1" if bias else "DepthwiseConv1")
    x = np.random.default_rng(1).standard_normal((3, 4, *case[2])).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    for kernels in (False, True):
        got = graphopt.Session(graph, kernels=kernels).step({"x": x})["y"]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_body_of_wide_images_is_a_convolution():
    graph = trained(network("pads=[1,1,1,1]", (3, 3), (8, 16)))
    assert reader(graph).op_type == "DepthwiseConvBias"
    assert any(n.input[0] == "x" for n in convolutions(graph))


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("Conv<group=4>(x, w)", "DepthwiseConv"),
        ("Conv<group=4>(x, w, b)", "DepthwiseConvBias"),
        ("Conv<group=4, auto_pad='VALID'>(x, w)", "DepthwiseConv"),
        ("Conv<group=4, auto_pad='SAME_UPPER'>(x, w)", "DepthwiseConv"),
        ("Conv<group=4, auto_pad='SAME_UPPER', strides=[2,2]>(x, w)", "DepthwiseConv"),
        ("ConvTranspose<group=4, strides=[2,2]>(x, w)", "DepthwiseConvTranspose"),
        (
            "ConvTranspose<group=4, output_padding=[1,0], strides=[2,2]>(x, w)",
            "DepthwiseConvTranspose",
        ),
        # These stay what they are.
        ("ConvTranspose<group=4, strides=[2,2]>(x, w, b)", "ConvTranspose"),
        ("ConvTranspose<group=4, strides=[2,2], output_shape=[32,32]>(x, w)", "ConvTranspose"),
        ("ConvTranspose<group=4, auto_pad='SAME_UPPER', strides=[2,2]>(x, w)", "ConvTranspose"),
        ("Conv<group=4>(x, wide)", "Conv"),
        ("Conv<group=2>(x, half)", "Conv"),
        ("Conv(x, all)", "Conv"),
    ],
)
def test_which_convolutions_have_a_kernel(node, name):
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,4,16,16] x) => (float[N,C,H,W] y) {{ y = {node.replace("'", '"')} }}""")
    shapes = {"w": (4, 1, 3, 3), "b": (4,), "wide": (8, 1, 3, 3), "half": (4, 2, 3, 3)}
    values = np.random.default_rng(0)
    for read in model.graph.node[0].input[1:]:
        array = values.standard_normal(shapes.get(read, (4, 4, 3, 3))).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, read))
    model = onnx.shape_inference.infer_shapes(model)
    graph = trained(model)
    assert reader(graph).op_type == name
    x = values.standard_normal((2, 4, 16, 16)).astype(np.float32)
    forward = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (expected,) = forward.run(["y"], {"x": x})
    got = graphopt.Session(graph).step({"x": x})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "WebGpuExecutionProvider"])
def test_devices_convolve(provider):
    model = network(*CASES["3x3 on 7"])
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    graph = graphopt.training_graph(
        model, lambda op, y: op.ReduceMean(y, keepdims=0), optimizer, provider=provider
    )
    assert any(node.input[0] == "x" for node in convolutions(graph))


def test_the_gradient_of_the_input_is_a_product_too():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,4,6,6] x) => (float[N,4,6,6] y) {
            h = Conv<group=4, pads=[1,1,1,1]>(x, w0)
            y = Conv<group=4, pads=[1,1,1,1]>(h, w1)
        }""")
    for name in ("w0", "w1"):
        tensor = onnx.numpy_helper.from_array(np.ones((4, 1, 3, 3), np.float32), name)
        model.graph.initializer.append(tensor)
    assert convolutions(trained(onnx.shape_inference.infer_shapes(model))) == []
