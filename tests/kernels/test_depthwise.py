"""The kernels of convolutions of each channel by itself, against PyTorch in float64."""

import itertools
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch

import graphopt
from tests.helpers.environments import needs_kernels
from tests.helpers.kernel_sessions import kernels_of_same_training, of_one_node, run_one_node as run

pytestmark = needs_kernels


class Layer(NamedTuple):
    """A convolution; padding is in front and behind, high and wide."""

    x: tuple[int, ...]
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def attributes(self):
        given = self._asdict() | {"kernel_shape": self.kernel, "group": self.x[1]}
        return {name: given[name] for name in given if name not in ("x", "kernel")}


LAYERS = {
    "one of each": Layer((1, 1, 1, 1), (1, 1)),
    "3x3": Layer((2, 3, 9, 11), (3, 3), pads=(1, 1, 1, 1)),
    "7x7 on 28": Layer((2, 5, 28, 28), (7, 7), pads=(3, 3, 3, 3)),
    "larger than the image": Layer((2, 3, 2, 2), (5, 5), pads=(2, 2, 2, 2)),
    "strides": Layer((2, 3, 15, 14), (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "strides that leave a rest": Layer((1, 2, 12, 13), (3, 3), (4, 3)),
    "strides larger than the kernel": Layer((1, 2, 17, 17), (2, 2), (5, 4)),
    "strides larger than the image": Layer((1, 2, 3, 3), (2, 2), (7, 9), pads=(1, 1, 1, 1)),
    "dilations": Layer((1, 2, 17, 33), (3, 5), (1, 1), (2, 3), (2, 6, 2, 6)),
    "all of them, uneven": Layer((2, 3, 19, 23), (4, 3), (3, 2), (2, 3), (3, 0, 1, 5)),
    "a column": Layer((2, 3, 40, 1), (5, 1), pads=(2, 0, 2, 0)),
    "a row": Layer((2, 3, 1, 70), (1, 9), (1, 2), pads=(0, 4, 0, 4)),
    "a long kernel": Layer((1, 2, 30, 70), (1, 31), pads=(0, 15, 0, 15)),
    "wider than blocks": Layer((1, 2, 9, 100), (3, 3), pads=(1, 1, 1, 1)),
    "several threads": Layer((4, 32, 33, 33), (5, 5), (2, 1), pads=(2, 2, 2, 2)),
    "as large as the image": Layer((3, 5, 14, 19), (14, 19)),
    "few outputs": Layer((2, 3, 20, 23), (19, 17), (1, 2), (1, 1), (0, 1, 1, 0)),
    "few outputs, dilations": Layer((2, 3, 20, 23), (9, 7), (5, 3), (2, 3), (1, 3, 4, 2)),
    "few outputs, most of padding": Layer((1, 2, 3, 2), (9, 10), pads=(4, 5, 3, 6)),
    "parts of the image": Layer((2, 3, 64, 98), (32, 32), (32, 32)),
    "a stride behind the image": Layer((2, 2, 9, 9), (3, 3), (10**6, 10**6)),
    "only padding": Layer((1, 2, 2, 2), (2, 2), (4, 4), pads=(9, 9, 9, 9)),
}


def random_layers(count):
    values = np.random.default_rng(7)
    while count:
        kernel, strides, dilations = (
            tuple(map(int, values.integers(1, most, 2))) for most in (8, 4, 4)
        )
        pads = tuple(map(int, values.integers(0, 5, 4)))
        x = (*map(int, values.integers(1, 5, 2)), *map(int, values.integers(1, 40, 2)))
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        if all(x[2 + a] + pads[a] + pads[2 + a] >= reach[a] for a in (0, 1)):
            yield Layer(x, kernel, strides, dilations, pads)
            count -= 1


def calls(layer, values):
    """The kernels of a layer: name, operands, attributes and what PyTorch gives."""
    channels, pads = layer.x[1], layer.pads
    x = values.standard_normal(layer.x).astype(np.float32)
    weight = values.standard_normal((channels, 1, *layer.kernel)).astype(np.float32)
    bias = values.standard_normal(channels).astype(np.float32)
    in_torch = torch.tensor(x).double().requires_grad_()
    weight_in_torch = torch.tensor(weight).double().requires_grad_()
    padded = torch.nn.functional.pad(in_torch, (pads[1], pads[3], pads[0], pads[2]))
    y = torch.nn.functional.conv2d(
        padded, weight_in_torch, None, layer.strides, 0, layer.dilations, channels
    )
    dy = values.standard_normal(y.shape).astype(np.float32)
    y.backward(torch.tensor(dy).double())
    attributes = layer.attributes()
    reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel, layer.dilations, strict=True)]
    rest = [
        layer.x[2 + a] + pads[a] + pads[2 + a] - reach[a] - layer.strides[a] * (y.shape[2 + a] - 1)
        for a in (0, 1)
    ]
    plain = y.detach().numpy()
    with_bias = plain + bias[:, None, None]
    transpose = attributes | {"output_padding": rest}
    yield "DepthwiseConv", {"x": x, "w": weight}, attributes, plain
    yield "DepthwiseConvBias4", {"x": x, "w": weight, "b": bias}, attributes, with_bias
    yield "DepthwiseConvTranspose", {"dy": dy, "w": weight}, transpose, in_torch.grad.numpy()
    gradient = weight_in_torch.grad.numpy()
    yield "DepthwiseConvWeightGradient12", {"x": x, "dy": dy}, attributes, gradient


def check(layer):
    for name, operands, attributes, expected in calls(layer, np.random.default_rng(0)):
        got = run(name, operands, attributes)
        assert got.shape == expected.shape, (name, layer)
        near = 3e-6 * float(np.abs(expected).max()) + 1e-30
        np.testing.assert_allclose(got, expected, rtol=0, atol=near, err_msg=f"{name} {layer}")


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_against_pytorch(layer):
    check(layer)


def test_random_layers_against_pytorch():
    for layer in random_layers(60):
        check(layer)


@pytest.mark.parametrize("name", ["7x7 on 28", "several threads"])
def test_the_bits_do_not_depend_on_threads(name):
    layer = LAYERS[name]._replace(x=(8, 16, 28, 28))
    for name, operands, attributes, _ in calls(layer, np.random.default_rng(0)):
        one, four = (run(name, operands, attributes, threads) for threads in (1, 4))
        assert one.tobytes() == four.tobytes(), name


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_is_not_finite_stays_where_it_is_read(special):
    layer = Layer((2, 3, 11, 13), (3, 3), pads=(1, 1, 1, 1))
    for name, operands, attributes, expected in calls(layer, np.random.default_rng(0)):
        if not name.startswith("DepthwiseConvWeight"):
            next(iter(operands.values()))[1, 2, 4, 5] = special
            finite = np.isfinite(run(name, operands, attributes))
            reads = np.zeros(expected.shape, bool)
            reads[1, 2, 3:6, 4:7] = True
            np.testing.assert_array_equal(finite, ~reads, err_msg=name)
        else:
            for key, array in operands.items():
                given = operands | {key: array.copy()}
                given[key][1, 2, 4, 5] = special
                finite = np.isfinite(run(name, given, attributes))
                assert finite[:2].all(), (name, key)
                assert not finite[2].any(), (name, key)


def test_no_examples():
    layer = Layer((2, 3, 9, 9), (3, 3), pads=(1, 1, 1, 1))
    for name, operands, attributes, expected in calls(layer, np.random.default_rng(0)):
        few = {k: v[:0] if v.shape[0] == 2 else v for k, v in operands.items()}
        (got,) = of_one_node(name, operands | few, attributes).run(None, few)
        if name.startswith("DepthwiseConvWeight"):
            np.testing.assert_array_equal(got, np.zeros_like(expected))
        else:
            assert got.shape == (0, *expected.shape[1:])


X, WEIGHT, DY = (1, 3, 9, 9), (3, 1, 3, 3), (1, 3, 7, 7)
PLAIN = Layer(X, (3, 3)).attributes()


@pytest.mark.parametrize(
    ("name", "shapes", "changed"),
    [
        ("DepthwiseConv", [X, (4, 1, 3, 3)], {}),
        ("DepthwiseConv", [X, (3, 2, 3, 3)], {}),
        ("DepthwiseConv", [X, (3, 1, 5, 3)], {}),
        ("DepthwiseConv", [(1, 3, 2, 9), WEIGHT], {}),
        ("DepthwiseConv", [(1, 3, 0, 9), WEIGHT], {"pads": [2, 2, 2, 2]}),
        ("DepthwiseConv", [(3, 9, 9), WEIGHT], {}),
        ("DepthwiseConv", [X, WEIGHT], {"strides": [1, 0]}),
        ("DepthwiseConv", [X, WEIGHT], {"pads": [0, 0, -1, 0]}),
        ("DepthwiseConv", [X, WEIGHT], {"dilations": [1]}),
        ("DepthwiseConvBias", [X, WEIGHT, (4,)], {}),
        ("DepthwiseConvTranspose", [X, (3, 1, 2, 3)], {"output_padding": [0, 0]}),
        ("DepthwiseConvTranspose", [X, WEIGHT], {"output_padding": [0, 0], "pads": [9, 9, 9, 9]}),
        ("DepthwiseConvWeightGradient", [X, (1, 3, 7, 8)], {}),
        ("DepthwiseConvWeightGradient", [X, (2, 3, 7, 7)], {}),
        ("DepthwiseConvWeightGradient", [X, (1, 2, 7, 7)], {}),
    ],
)
def test_what_does_not_fit_is_refused(name, shapes, changed):
    operands = {f"input_{index}": np.ones(shape, np.float32) for index, shape in enumerate(shapes)}
    with pytest.raises(Exception, match=f"graphopt.{name}: (the shapes|an attribute|an input)"):
        run(name, operands, PLAIN | changed)


def network():
    """Depthwise layers of each kind, one of them in front of another."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,4,32,32] x) => (float[N,2] y) {
            a = Conv<group=4, pads=[1,1,1,1]>(x, w0, b0)
            b = Relu(a)
            c = Conv<group=4, pads=[2,2,2,2], strides=[2,2]>(b, w1)
            d = Relu(c)
            e = Conv<group=4, pads=[3,3,3,3]>(d, w2)
            f = GlobalAveragePool(e)
            g = Flatten(f)
            y = MatMul(g, w3)
        }""")
    shapes = {"w0": (4, 1, 3, 3), "b0": (4,), "w1": (4, 1, 5, 5), "w2": (4, 1, 7, 7), "w3": (4, 2)}
    values = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = values.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(model)


def test_a_network_trains_the_same_with_kernels_and_without():
    model = network()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graph = graphopt.training_graph(model, "cross_entropy", optimizer)
    fused = kernels_of_same_training(
        graph,
        lambda values: {
            "x": values.standard_normal((6, 4, 32, 32)).astype(np.float32),
            "labels": values.integers(0, 2, 6),
        },
    )
    assert [name for name in fused if name.startswith("Depthwise")] == [
        "DepthwiseConv",
        "DepthwiseConv1",  # 7x7 on 16
        "DepthwiseConvBias",
        "DepthwiseConvTranspose",
        "DepthwiseConvWeightGradient1",
        "DepthwiseConvWeightGradient2",
        "DepthwiseConvWeightGradient3",
    ]


def test_layers_of_the_same_sizes_share_a_function():
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,4,16,16] x) => (float[N,4,16,16] y) {
            a = Conv<group=4, pads=[1,1,1,1]>(x, w0)
            b = Conv<group=4, pads=[1,1,1,1]>(a, w1)
            y = Conv<group=4, pads=[2,2,2,2]>(b, w2)
        }""")
    for name, size in (("w0", 3), ("w1", 3), ("w2", 5)):
        array = np.ones((4, 1, size, size), np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = onnx.shape_inference.infer_shapes(model)
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    graph = graphopt.training_graph(model, lambda op, y: op.ReduceMean(y, keepdims=0), optimizer)
    called = [n.op_type for n in graph.model.graph.node if "WeightGradient" in n.op_type]
    assert sorted(called) == [f"DepthwiseConvWeightGradient{i}" for i in (1, 2, 2)]
    defined = [f.name for f in graph.model.functions if f.name.startswith("Depthwise")]
    assert len(defined) == len(set(defined))
    assert set(called) <= set(defined)


def test_every_combination_of_small_sizes():
    for size, kernel, stride, pad in itertools.product((1, 2, 3), (1, 2, 3), (1, 2), (0, 1)):
        if size + 2 * pad >= kernel:
            check(Layer((1, 1, size, size), (kernel,) * 2, (stride,) * 2, pads=(pad,) * 4))
