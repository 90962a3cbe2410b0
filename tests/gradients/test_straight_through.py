"""Training through quantization, against PyTorch's fake quantization."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import graphopt
from graphopt.gradients import differentiate, prepare, with_straight_through
from tests.helpers.exporter import legacy
from tests.helpers.gradient_oracle import normal

X = 2 * normal(3, 4, seed=1)
WEIGHT = normal(3, 4, seed=2)


def gradient(nodes, opset=17, **initializers):
    """The result of the nodes ``y`` and the gradient of the sum of y times `WEIGHT`."""
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> m () => (float loss, float[M, N] y) '
        f"{{ {nodes} p = Mul(y, weight) loss = ReduceSum<keepdims=0>(p) }}"
    )
    model = onnx.parser.parse_model(text)
    arrays = {"x": X, "weight": WEIGHT, **initializers}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n)
                                   for n, a in arrays.items())  # fmt: skip
    prepared, statistics = prepare(with_straight_through(model, ["x"]), ["x"])
    built = differentiate(prepared, ["x"], prepared.graph.outputs[0], statistics)
    prepared.graph.outputs.extend(built.gradients.values())
    proto = ir.to_proto(prepared)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    _, y, got = session.run(None, {"x": X})
    forward = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(y, forward.run(["y"], {})[0])
    return y, got


def fake(x, scale, zero, axis, least, most):
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, least, most)
    scale, zero = torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(x, scale, zero, axis, least, most)


def expected(scale, zero, axis, least, most):
    x = torch.tensor(X, requires_grad=True)
    y = fake(x, scale, zero, axis, least, most)
    (y * torch.tensor(WEIGHT)).sum().backward()
    return y.detach().numpy(), x.grad.numpy()


PAIR = "q = QuantizeLinear<axis={axis}>(x, s, z) y = DequantizeLinear<axis={axis}>(q, s, z)"
WHOLE = PAIR.format(axis=0)
CASES = {
    "int8": (PAIR, 0.01, 0, None, np.int8),
    "uint8 with a zero": (PAIR, 0.01, 100, None, np.uint8),
    "that clips nothing": (PAIR, 0.1, 0, None, np.int8),
    "of columns": (PAIR, [0.01, 0.1, 0.02, 0.001], [1, 0, -3, 4], 1, np.int8),
    "of rows": (PAIR, [0.01, 0.1, 0.005], [100, 128, 3], 0, np.uint8),
    "with moves between": (
        "q = QuantizeLinear(x, s, z) t = Transpose(q) r = Reshape(t, shape) "  # noqa: ISC004
        "d = DequantizeLinear(r, s2, z) e = Reshape(d, back) y = Transpose(e)",
        0.01,
        3,
        None,
        np.int8,
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize(("nodes", "scale", "zero", "axis", "dtype"), CASES.values(), ids=CASES)
def test_a_gradient_passes_within_the_range(nodes, scale, zero, axis, dtype):
    limits = np.iinfo(dtype)
    y, got = gradient(
        nodes.format(axis=axis or 0),
        s=np.float32(scale),
        s2=np.float32(scale),
        z=np.array(zero, dtype),
        shape=np.array([2, 6]),
        back=np.array([4, 3]),
    )
    theirs, slope = expected(scale, zero, axis, limits.min, limits.max)
    np.testing.assert_allclose(y, theirs, atol=1e-6)
    np.testing.assert_array_equal(got, slope)


def test_without_a_zero_the_integers_are_uint8():
    _, got = gradient("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)", s=np.float32(0.01))
    np.testing.assert_array_equal(got, expected(0.01, 0, None, 0, 255)[1])


def test_blocks_have_scales_of_their_own():
    scales = np.array([[0.02, 0.004], [0.01, 0.1], [0.001, 0.05]], np.float32)
    pair = (
        "q = QuantizeLinear<axis=1, block_size=2, output_dtype=3>(x, s) "
        "y = DequantizeLinear<axis=1, block_size=2>(q, s)"
    )
    _, got = gradient(pair, opset=21, s=scales)
    level = np.rint(X / np.repeat(scales, 2, 1))
    np.testing.assert_array_equal(got, np.where((level >= -128) & (level <= 127), WEIGHT, 0))


def test_a_dynamic_quantization_clips_next_to_nothing():
    _, got = gradient("q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)")
    np.testing.assert_array_equal(got, WEIGHT)


def test_a_residual_keeps_its_own_gradient():
    _, got = gradient(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Add(x, d)",
        s=np.float32(0.01),
        z=np.int8(0),
    )
    inside = np.abs(np.rint(X / 0.01) - 0.5) <= 128
    np.testing.assert_allclose(got, np.where(inside, 2 * WEIGHT, WEIGHT))


def quantized_linear(nodes=WHOLE, **initializers):
    """A layer whose weight is quantized."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> m (float[N, 3] a) => (float[N, 4] h) '
        f"{{ {nodes} h = MatMul(a, y) }}"
    )
    arrays = {"x": X, "s": np.float32(0.01), "z": np.int8(0), **initializers}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n)
                                   for n, a in arrays.items() if a is not None)  # fmt: skip
    return model


def optimizer(model, **more):
    settings = {"decay": 0.9, "epsilon": 1e-8, "epsilon_inside_root": False,
                "initial_mean_square": 0.0, **more}  # fmt: skip
    return graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.05, **settings)


def test_without_the_option_it_is_refused():
    model = quantized_linear()
    with pytest.raises(ValueError, match=r"QuantizeLinear 'q'.*straight_through=True"):
        graphopt.training_graph(model, "mse", optimizer(model))


def test_the_scale_of_a_dynamic_quantization_alone_is_refused_too():
    model = quantized_linear("q, scale, zero = DynamicQuantizeLinear(x) y = Mul(x, scale)")
    with pytest.raises(ValueError, match=r"DynamicQuantizeLinear 'q'.*straight_through=True"):
        graphopt.training_graph(model, "mse", optimizer(model))


def test_the_shape_of_a_parameter_may_be_quantized():
    model = quantized_linear(
        "n = Size(x) f = CastLike(n, s) q = QuantizeLinear(f, s, z) d = DequantizeLinear(q, s, z) "
        "y = Mul(x, d)"
    )
    graphopt.Session(graphopt.training_graph(model, "mse", optimizer(model)))


def test_quantization_that_the_loss_does_not_need_is_not_refused():
    model = quantized_linear("q = QuantizeLinear(x, s, z) y = Identity(x)")
    model.graph.output.append(helper.make_tensor_value_info("q", onnx.TensorProto.INT8, [3, 4]))
    graph = graphopt.training_graph(model, "mse", optimizer(model), loss_output="h")
    assert "q" in {value.name for value in graph.model.graph.output}


def test_trains_as_pytorch_does():
    model = quantized_linear()
    graph = graphopt.training_graph(model, "mse", optimizer(model), straight_through=True)
    assert [p.name for p in graphopt.parameters(model)] == ["x"]
    assert graphopt.parameters(model)[0].op_type == "MatMul"
    session = graphopt.Session(graph)
    weight = nn.Parameter(torch.tensor(X))
    peer = torch.optim.RMSprop([weight], lr=0.05, alpha=0.9, eps=1e-8)
    for step in range(5):
        a, labels = normal(8, 3, seed=step), normal(8, 4, seed=9 + step)
        got = session.step({"a": a, "labels": labels})["loss"]
        peer.zero_grad()
        loss = nn.functional.mse_loss(torch.tensor(a) @ fake(weight, 0.01, 0, None, -128, 127),
                                      torch.tensor(labels))  # fmt: skip
        loss.backward()
        peer.step()
        np.testing.assert_allclose(got, loss.item(), rtol=1e-5)
        np.testing.assert_allclose(session.state["x"], weight.detach().numpy(), atol=1e-5)


class Aware(nn.Module):
    """Quantization-aware: weight and activation."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.full((6,), 0.01))
        self.register_buffer("zero", torch.zeros(6, dtype=torch.int32))

    def forward(self, x):
        weight = torch.fake_quantize_per_channel_affine(
            self.first.weight, self.scale, self.zero, 0, -128, 127
        )
        hidden = nn.functional.linear(x, weight, self.first.bias).relu()
        return self.second(torch.fake_quantize_per_tensor_affine(hidden, 0.01, 0, 0, 255))


def test_exported_by_pytorch(tmp_path):
    torch.manual_seed(0)
    network, path = Aware(), str(tmp_path / "aware.onnx")
    x, labels = torch.randn(5, 3), torch.randn(5, 2)
    legacy(network, (x,), path, input_names=["x"])
    trained = graphopt.parameters(path).matching("*.weight", "*.bias")
    rmsprop = graphopt.RMSProp(trained, learning_rate=0.01, decay=0.9, epsilon=1e-8,
                               epsilon_inside_root=False, initial_mean_square=0.0)  # fmt: skip
    session = graphopt.Session(graphopt.training_graph(path, "mse", rmsprop, straight_through=True))
    session.step({"x": x.numpy(), "labels": labels.numpy()})
    peer = torch.optim.RMSprop(network.parameters(), lr=0.01, alpha=0.9, eps=1e-8)
    nn.functional.mse_loss(network(x), labels).backward()
    peer.step()
    for name, value in network.named_parameters():
        np.testing.assert_allclose(session.state[name], value.detach().numpy(), atol=1e-4)


def test_batch_normalization_before_it_is_in_training_mode():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> m (float[N, 3] a) => (float[N, 4] h) '
        "{ c = MatMul(a, w) n = BatchNormalization(c, scale, bias, mean, variance) "
        "q = QuantizeLinear(n, s, z) h = DequantizeLinear(q, s, z) }"
    )
    arrays = {"w": X, "scale": np.ones(4, "f"), "bias": np.zeros(4, "f"),
              "mean": np.zeros(4, "f"), "variance": np.ones(4, "f"),
              "s": np.float32(0.01), "z": np.int8(0)}  # fmt: skip
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()
    )
    session = graphopt.Session(
        graphopt.training_graph(model, "mse", optimizer(model), straight_through=True)
    )
    a, labels = normal(8, 3), normal(8, 4, seed=3)
    session.step({"a": a, "labels": labels})
    weight, norm = nn.Parameter(torch.tensor(X)), nn.BatchNorm1d(4)
    peer = torch.optim.RMSprop([weight, *norm.parameters()], lr=0.05, alpha=0.9, eps=1e-8)
    y = fake(norm(torch.tensor(a) @ weight), 0.01, 0, None, -128, 127)
    nn.functional.mse_loss(y, torch.tensor(labels)).backward()
    peer.step()
    for name, value in (("w", weight), ("scale", norm.weight), ("bias", norm.bias)):
        np.testing.assert_allclose(session.state[name], value.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(session.state["mean"], norm.running_mean.numpy(), atol=1e-5)


REFUSED = {
    "an operator on the integers": (
        "q = QuantizeLinear(x, s, z) y = Cast<to=1>(q)",
        r"Cast 'y'.*calculates with the integers",
    ),
    "another scale": (
        "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z)",
        r"DequantizeLinear 'y'.*give both the same",
    ),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("nodes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(nodes, message):
    model = quantized_linear(nodes, t=np.float32(0.02))
    with pytest.raises(ValueError, match=message):
        graphopt.training_graph(model, "mse", graphopt.RMSProp(
            [graphopt.Parameter("x", (3, 4))]), straight_through=True)  # fmt: skip


@pytest.mark.any_runtime
def test_integers_that_are_stored_have_no_gradient():
    nodes = "y = DequantizeLinear(x, s, z)"
    model = quantized_linear(nodes, x=np.ones((3, 4), np.int8), b=np.ones(4, np.float32))
    for parameter in (graphopt.Parameter("x", (3, 4)), graphopt.Parameter("y", (3, 4))):
        with pytest.raises(ValueError, match=r"before a QuantizeLinear.*straight_through=True"):
            graphopt.training_graph(model, "mse", graphopt.RMSProp([parameter]))


@pytest.mark.any_runtime
def test_the_option_must_have_an_effect():
    model = quantized_linear()
    with pytest.raises(ValueError, match="straight_through: has no effect beside portable=False"):
        graphopt.training_graph(
            model, "mse", optimizer(model), portable=False, straight_through=True
        )
    with pytest.raises(TypeError, match="straight_through"):
        graphopt.training_graph(model, "mse", optimizer(model), straight_through=1)


def test_the_scale_of_stored_integers_has_a_gradient():
    q = np.random.default_rng(0).integers(-100, 100, (3, 4)).astype(np.int8)
    model = quantized_linear(
        "y = DequantizeLinear<axis=1>(x, s, z)", x=q, s=np.full(4, 0.1, np.float32),
        z=np.array([1, 2, 3, 4], np.int8),
    )  # fmt: skip
    rmsprop = graphopt.RMSProp([graphopt.Parameter("s", (4,))], learning_rate=0.01, decay=0.9,
                               epsilon=1e-8, epsilon_inside_root=False,
                               initial_mean_square=0.0)  # fmt: skip
    session = graphopt.Session(graphopt.training_graph(model, "mse", rmsprop))
    a, labels = normal(8, 3), normal(8, 4, seed=3)
    session.step({"a": a, "labels": labels})
    scale = nn.Parameter(torch.full((4,), 0.1))
    peer = torch.optim.RMSprop([scale], lr=0.01, alpha=0.9, eps=1e-8)
    weight = (torch.tensor(q) - torch.tensor([1, 2, 3, 4])) * scale
    nn.functional.mse_loss(torch.tensor(a) @ weight, torch.tensor(labels)).backward()
    peer.step()
    np.testing.assert_allclose(session.state["s"], scale.detach().numpy(), atol=1e-5)
