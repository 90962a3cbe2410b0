"""What a parameter is: one answer of `parameters` and `inspect`, and the reasons."""

import re

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser
from torch import nn

import graphopt
from graphopt.marks import TRAINED
from tests.helpers.exporter import legacy
from tests.helpers.gradient_oracle import normal

pytestmark = pytest.mark.any_runtime

WEIGHT = normal(4, 4)
INVERSE_FREQUENCIES = (100.0 ** -np.linspace(0, 1, 4)).astype("f")[:, None]
SCALED_FREQUENCIES = INVERSE_FREQUENCIES * np.array([[1], [1], [0.5], [0.125]], "f")


def model(body, arrays, producer=""):
    forward = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        f"m (float[N,4] x, float[N,4,1] at) => (y) {{ {body} }}"
    )
    forward.producer_name = producer
    for name, array in ({"w": WEIGHT} | arrays).items():
        if array is not None:
            tensor = numpy_helper.from_array(np.asarray(array, "f"), name)
            forward.graph.initializer.append(tensor)
    return forward


# The nodes after which `h` is a result of `w`, what they read, and what of that is a parameter.
CASES = {
    "a bias of one element": ("y = Add(h, b)", {"b": [0.0]}, ["w", "b"]),
    "a bias without axes": ("y = Add(h, b)", {"b": 0.0}, ["w", "b"]),
    "a half": ("y = Mul(h, half)", {"half": 0.5}, ["w"]),
    "the number under a root": (
        "q = Mul(h, h) e = Add(q, eps) y = Sqrt(e)", {"eps": 1e-5}, ["w"],
    ),
    "GELU": (
        "d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) y = Mul(g, half)",
        {"root": np.sqrt(2), "one": 1, "half": 0.5},
        ["w"],
    ),
    "a range": (
        "r = Range(zero, four, one) g = Add(r, half) y = Mul(h, g)",
        {"zero": 0, "four": 4, "one": 1, "half": 0.5},
        ["w"],
    ),
    "a threshold": (
        "c = Less(h, many) k = Where(c, h, x) y = Identity(k)", {"many": normal(4)}, ["w"],
    ),
    "frequencies": (
        "p = MatMul(inverse, row) s = Sin(p) r = ReduceMean(s) y = Add(h, r)",
        {"inverse": INVERSE_FREQUENCIES},
        ["w"],
    ),
    "frequencies that are scaled": (
        "p = MatMul(inverse, whole) c = Concat<axis=0>(p, p) s = Cos(c) y = Add(h, s)",
        {"inverse": SCALED_FREQUENCIES},
        ["w"],
    ),
    "frequencies that are scaled, as a factor": (
        "l = Transpose(whole) p = Mul(l, inverse) s = Sin(p) r = ReduceMean(s) y = Add(h, r)",
        {"inverse": SCALED_FREQUENCIES.reshape(4)},
        ["w"],
    ),
    "features of Fourier, of numbers that are not whole": (
        "p = MatMul(inverse, row) s = Sin(p) r = ReduceMean(s) y = Add(h, r)",
        {"inverse": SCALED_FREQUENCIES},
        ["w", "inverse"],
    ),
    "weights of counts": (
        "p = MatMul(inverse, whole) s = Tanh(p) r = ReduceMean(s) y = Add(h, r)",
        {"inverse": SCALED_FREQUENCIES},
        ["w", "inverse"],
    ),
    "what distances are read from": (
        "q = Softmax(h) y = MatMul(q, bins)", {"bins": np.arange(4.0)[:, None]}, ["w"],
    ),
    "a row of three that may have been made so": (
        "n = MatMul(h, u) y = Add(n, b)",
        {"u": normal(4, 3), "b": np.arange(3.0)},
        ["w", "u", "b"],
    ),
    "weights of classes": (
        "g = ArgMax<axis = 1, keepdims = 0>(x) y = SoftmaxCrossEntropyLoss(h, g, many)",
        {"many": [1.0, 2.0, 0.5, 3.0]},
        ["w"],
    ),
    "a window": (
        "q = Unsqueeze(h, axes) v = STFT(q, step, win, length) y = Mul(v, v)",
        {"win": [0.1, 0.6, 0.5]},
        ["w"],
    ),
    "a layer that starts from zeros": (
        "q = Unsqueeze(h, axes) y, last = GRU<hidden_size = 2>(q, k, r, , , start)",
        {"k": normal(1, 6, 1), "r": normal(1, 6, 2), "start": np.zeros((1, 4, 2))},
        ["w", "k", "r"],
    ),
    "a layer that starts from what is trained": (
        "q = Unsqueeze(h, axes) y, last = GRU<hidden_size = 2>(q, k, r, , , start)",
        {"k": normal(1, 6, 1), "r": normal(1, 6, 2), "start": normal(1, 4, 2)},
        ["w", "k", "r", "start"],
    ),
    "positions that start at 0": ("y = Add(h, p)", {"p": np.zeros((4, 4))}, ["w", "p"]),
    "a scale of several axes that starts at 1": (
        "y = Mul(h, s)", {"s": np.ones((4, 4))}, ["w", "s"],
    ),
    "a token": ("y = Concat<axis = 0>(token, h)", {"token": normal(1, 4)}, ["w", "token"]),
    "a factor, where nothing else could be trained": (
        "y = Mul(x, a)", {"a": 0.5, "w": None}, ["a"],
    ),
    "a slope": ("y = PRelu(h, s)", {"s": [0.25]}, ["w", "s"]),
    "a norm": (
        "y = LayerNormalization(h, s, b)", {"s": np.ones(4), "b": np.zeros(4)}, ["w", "s", "b"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "arrays", "wanted"), CASES.values(), ids=CASES)
def test_one_answer(body, arrays, wanted):
    row = "row = Reshape(at, flat)" if "row" in body else ""
    if "whole" in body:
        row = "n0 = Cast<to = 7>(at) n1 = Reshape(n0, flat) whole = Cast<to = 1>(n1)"
    product = "h = MatMul(x, w)" if "w" in wanted else ""
    forward = model(f"{row} {product} {body}", arrays)
    for name, number in {"flat": [1, -1], "axes": [2], "step": 1, "length": 3}.items():
        if re.search(rf"\b{name}\b", f"{row} {body}"):
            forward.graph.initializer.append(numpy_helper.from_array(np.array(number), name))
    found = graphopt.parameters(forward)
    assert [p.name for p in found] == wanted
    assert [p.name for p in graphopt.inspect(forward).parameters] == wanted
    assert {p.name for p in found.left_out} == set(arrays) - {*wanted, "w"}
    assert all(p.why for p in found.left_out)


def test_what_is_listed_trains():
    """Also where constants of formulas stand beside it."""
    body, arrays, _ = CASES["a range"]
    forward = model(f"h = MatMul(x, w) {body}", arrays)
    found = graphopt.parameters(forward)
    assert graphopt.training_graph(forward, "mse", graphopt.RMSProp(found))


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose(w) y = MatMul(x, t)",
        "t = Cast<to = 1>(w) u = Transpose(t) y = MatMul(x, u)",
        "t = Identity(w) y = MatMul(x, t)",
        "t = Reshape(w, square) y = MatMul(x, t)",
    ],
)
def test_the_operator_behind_changes_of_form(body):
    forward = model(body, {})
    forward.graph.initializer.append(numpy_helper.from_array(np.array([4, 4]), "square"))
    assert [p.name for p in graphopt.parameters(forward).of_type("MatMul")] == ["w"]
    assert [p.op_type for p in graphopt.inspect(forward).parameters] == ["MatMul"]


def test_a_layer_norm_of_images_that_is_written_out(tmp_path):
    """Older opsets have no node for it; its scale is all ones before it is trained."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LayerNorm([4, 6, 6]), nn.ReLU())
    legacy(module, (torch.zeros(2, 1, 6, 6),), tmp_path / "norm.onnx", opset_version=13)
    found = {p.name for p in graphopt.parameters(tmp_path / "norm.onnx")}
    assert found == {name for name, _ in module.named_parameters()}


def test_weights_in_nodes_constant():
    forward = model("h = MatMul(x, w) y = Add(h, half)", {"half": 0.5})
    (weight,) = (tensor for tensor in forward.graph.initializer if tensor.name == "w")
    node = onnx.helper.make_node("Constant", [], ["w"], value=weight)
    forward.graph.initializer.remove(weight)
    forward.graph.node.insert(0, node)
    found = graphopt.parameters(forward)
    assert [(p.name, p.shape, p.op_type) for p in found] == [
        ("half", (), None),
        ("w", (4, 4), "MatMul"),
    ]
    assert {p.name for p in graphopt.inspect(forward).parameters} == {"half", "w"}
    graph = graphopt.training_graph(forward, "mse", graphopt.RMSProp(found.of_type("MatMul")))
    assert {view.name for value in graph.carried for view in value.views} >= {"w"}


@pytest.mark.parametrize("low", [-1e9, -np.inf])
def test_what_attention_is_given(low):
    """Not the mask, nor the sines and cosines of positions, of whatever frequencies."""
    forward = parser.parse_model(
        """<ir_version: 11, opset_import: ["": 23]> m (float[N,3,4] x) => (float[N,3,4] y) {
            h = MatMul(x, w) q = RotaryEmbedding<num_heads = 1>(h, c, s, at)
            y = Attention<q_num_heads = 1, kv_num_heads = 1>(q, h, h, mask)
        }"""
    )
    arrays = {
        "w": WEIGHT,
        "c": normal(5, 2),
        "s": normal(5, 2),
        "mask": np.where(np.tri(3) > 0, 0, low).astype("f"),
        "at": np.array([[0, 1, 2]]),
    }
    for name, array in arrays.items():
        forward.graph.initializer.append(numpy_helper.from_array(array, name))
    found = graphopt.parameters(forward)
    assert [p.name for p in found] == ["w"]
    assert {p.name: p.why for p in found.left_out} == {
        "c": "it is a setting of RotaryEmbedding",
        "s": "it is a setting of RotaryEmbedding",
        "mask": "it is a table of two values, such as a mask",
    }


def test_running_statistics_in_nodes_constant_move():
    forward = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 12]> m (float[N,3] x) => (float[N,2] y) {
            w = Constant<value = float[3,2] {1, 2, 3, 4, 5, 6}>()
            s = Constant<value = float[2] {1, 2}>() b = Constant<value = float[2] {0, 1}>()
            mean = Constant<value = float[2] {0.5, 0}>() var = Constant<value = float[2] {1, 2}>()
            h = MatMul(x, w) y = BatchNormalization<momentum=0.75>(h, s, b, mean, var)
        }"""
    )
    found = graphopt.parameters(forward)
    assert [p.name for p in found] == ["w", "s", "b"]
    session = graphopt.Session(graphopt.training_graph(forward, "mse", graphopt.RMSProp(found)))
    x = normal(8, 3)
    session.step({"x": x, "labels": np.zeros((8, 2), "f")})
    h = x.astype("d") @ np.array([[1, 2], [3, 4], [5, 6]])
    moved = {"mean": h.mean(0) / 4 + [0.375, 0], "var": h.var(0) / 4 + [0.75, 1.5]}
    for name, value in moved.items():
        np.testing.assert_allclose(session.state[name], value, rtol=1e-5)


class Legacy(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(3, 2)
        self.register_buffer("offset", torch.tensor([[0.5, 0.25]]))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("running_var", torch.ones(2))

    def forward(self, x):
        y = torch.relu(self.dense(x)) * self.scale + self.offset
        return y / torch.sqrt(self.running_var + 1e-5) * 0.5


def test_an_exporter_that_does_not_tell_buffers(tmp_path):
    legacy(Legacy().train(), (torch.ones(4, 3),), tmp_path / "net.onnx")
    found = graphopt.parameters(tmp_path / "net.onnx")
    assert {p.name for p in found} == {"dense.weight", "dense.bias", "scale", "offset"}
    doubtful = {p.name: p.why for p in found if p.why}
    assert doubtful.keys() == {"scale", "offset"}
    assert all("the exporter does not tell" in why for why in doubtful.values())
    assert {p.name for p in found.left_out} == {"running_var"}


def test_a_frozen_batch_norm_that_is_written_out():
    """As DETR has it: four buffers."""
    forward = model(
        'h = MatMul(x, w) r = Sqrt("n.running_var") s = Div("n.weight", r) p = Mul(h, s)'
        ' m = Mul("n.running_mean", s) b = Sub("n.bias", m) y = Add(p, b)',
        {f"n.{name}": normal(4) for name in ("weight", "bias", "running_mean", "running_var")},
    )
    assert [p.name for p in graphopt.parameters(forward)] == ["w"]


def test_a_mark_says_that_a_number_is_trained():
    forward = model("h = MatMul(x, w) y = Mul(h, half)", {"half": 0.5})
    assert [p.name for p in graphopt.parameters(forward)] == ["w"]
    forward.graph.initializer[1].metadata_props.add(key=TRAINED, value="parameter")
    assert [p.name for p in graphopt.parameters(forward)] == ["w", "half"]


def test_why_is_not_compared():
    one, other = (graphopt.Parameter("w", (2,), why=why) for why in (None, "a guess"))
    assert one == other
    assert "guess" not in repr(other)
    with pytest.raises(TypeError, match="why of parameter 'w'"):
        graphopt.Parameter("w", (2,), why=3)


def test_what_recipes_do_not_decay():
    network = graphopt.Parameters(
        [
            graphopt.Parameter("conv.weight", (1, 1, 3, 1), op_type="Conv"),
            graphopt.Parameter("conv.bias", (8,)),
            graphopt.Parameter("head.weight", (8, 1), op_type="MatMul"),
            graphopt.Parameter("head.bias", (1,)),
            graphopt.Parameter("norm.weight", (4, 5), op_type="LayerNormalization"),
            graphopt.Parameter("norm.bias", (4, 5)),
            graphopt.Parameter("layer_scale", (1, 8, 1)),
            graphopt.Parameter("positions", (1, 9, 8)),
            graphopt.Parameter("activation.weight", (8, 1, 1), op_type="PRelu"),
        ]
    )
    kept = ["conv.weight", "head.weight", "positions"]
    assert [p.name for p in network.with_decay()] == kept
    assert [p.name for p in network.without_decay()] == [
        p.name for p in network if p.name not in kept
    ]
