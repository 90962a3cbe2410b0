"""What is exported after training: what PyTorch computes in evaluation mode."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import parser
from torch import nn

import graphopt
from tests.helpers import exporter
from tests.helpers.gradient_oracle import normal

SHAPE = (6, 4, 3, 3)


class SampleDropout(nn.Module):
    """Stochastic depth: some samples skip a branch."""

    def __init__(self, *, before=False):
        super().__init__()
        self.before = before

    def forward(self, x):
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.8)
        return x / 0.8 * mask if self.before else x * mask.div_(0.8)


class FloorDropout(nn.Module):
    """The same as it was written once."""

    def forward(self, x):
        if not self.training:
            return x
        mask = (0.75 + torch.rand((x.shape[0], 1, 1, 1))).floor()
        return x.div(0.75) * mask


class MaskDropout(nn.Module):
    """By a comparison the other way round, and the factor last."""

    def forward(self, x):
        return x * (torch.rand_like(x) > 0.4).float() / 0.6 if self.training else x


def network(*layers):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 1), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ).train()


NETWORKS = {
    "batch norm": lambda: network(nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)),
    "dropout": lambda: network(nn.Dropout(0.5)),
    "samples": lambda: network(SampleDropout()),
    "samples, scaled before": lambda: network(SampleDropout(before=True)),
    "floor": lambda: network(FloorDropout()),
    "comparison": lambda: network(MaskDropout()),
    "channels": lambda: network(nn.BatchNorm2d(4), nn.Dropout2d(0.25)),
    "batch only": lambda: network(nn.BatchNorm2d(4, track_running_stats=False)),
}


NAMED = {"input_names": ["x"], "output_names": ["y"]}


def legacy(module, args, path):
    exporter.legacy(module, args, path, **NAMED)


def dynamo(module, args, path):
    onnx.save(exporter.dynamo(module, args, optimize=False, **NAMED), path)


def exported(module, path, way):
    way(copy.deepcopy(module), (torch.from_numpy(normal(*SHAPE)),), path)
    return path


def trained(path, steps=3):
    optimizer = graphopt.RMSProp(graphopt.parameters(path), learning_rate=0.01)
    session = graphopt.Session(graphopt.training_graph(path, "cross_entropy", optimizer))
    for step in range(steps):
        session.step({"x": normal(*SHAPE, seed=step), "labels": np.arange(SHAPE[0]) % 3})
    return session


def run(path, x):
    return onnxruntime.InferenceSession(path).run(["y"], {"x": x})[0]


@pytest.mark.usefixtures("one_registry")
@pytest.mark.parametrize("way", [legacy, pytest.param(dynamo, marks=pytest.mark.any_runtime)])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_model_computes_what_pytorch_does_in_evaluation(name, way, tmp_path):
    if way is legacy and name == "channels":
        pytest.skip("PyTorch does not export it")
    module = NETWORKS[name]()
    session = trained(exported(module, tmp_path / "net.onnx", way))
    session.export(tmp_path / "trained.onnx")
    values = {key: torch.from_numpy(value) for key, value in session.state.items()}
    missing = module.load_state_dict(values, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    x = normal(*SHAPE, seed=9)
    expected = module.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(run(tmp_path / "trained.onnx", x), expected, rtol=1e-4, atol=1e-5)
    used = {node.op_type for node in onnx.load(tmp_path / "trained.onnx").graph.node}
    assert not any("Random" in op_type for op_type in used)


def test_training_keeps_the_mode(tmp_path):
    session = trained(exported(NETWORKS["dropout"](), tmp_path / "net.onnx", legacy))
    session.export(tmp_path / "trained.onnx", training=True)
    assert (
        onnx.load(tmp_path / "trained.onnx").graph.node
        == onnx.load(tmp_path / "net.onnx").graph.node
    )
    with pytest.raises(TypeError, match="training"):
        session.export(tmp_path / "trained.onnx", training="yes")


def model(body, constants="", outputs="float[N,2] y"):
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> net (float[N,2] x) => ({outputs}) '
        f"<float[2,2] w = {{1, 2, 3, 4}}, float half = {{0.5}} {constants}> {{ {body} }}"
    )


def session_of(forward):
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (2, 2))])
    return graphopt.Session(graphopt.training_graph(forward, "mse", optimizer, loss_output="y"))


UNKNOWN = {
    "another factor": "r = RandomUniformLike(h) b = Less(r, half) m = Cast<to = 1>(b)"
    " y = Mul(h, m)",
    "noise beside it": "r = RandomUniformLike(h) b = Less(r, half) m = Cast<to = 1>(b)"
    " d = Div(m, half) p = Mul(h, d) y = Add(p, m)",
    "Bernoulli": "s = Sigmoid(h) m = Bernoulli(s) y = Mul(h, m)",
}


@pytest.mark.parametrize("body", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_other_random_masks_are_refused(body, tmp_path):
    session = session_of(model(f"h = MatMul(x, w) {body}"))
    with pytest.raises(ValueError, match=r"random mask that is no Dropout.*training=True"):
        session.export(tmp_path / "trained.onnx")
    assert not list(tmp_path.iterdir())
    session.export(tmp_path / "trained.onnx", training=True)


def test_noise_that_is_no_mask_stays(tmp_path):
    session = session_of(model("h = MatMul(x, w) n = RandomNormalLike(h) y = Add(h, n)"))
    session.export(tmp_path / "trained.onnx")
    used = [node.op_type for node in onnx.load(tmp_path / "trained.onnx").graph.node]
    assert used == ["MatMul", "RandomNormalLike", "Add"]


def test_what_nothing_reads_is_left_out(tmp_path, capfd):
    session = session_of(model("y = MatMul(x, w)", ", int64[2] unread = {1, 2}"))
    session.export(tmp_path / "trained.onnx")
    onnxruntime.InferenceSession(tmp_path / "trained.onnx")
    assert [t.name for t in onnx.load(tmp_path / "trained.onnx").graph.initializer] == ["w"]
    assert "Removing initializer" not in capfd.readouterr().err


def test_a_mask_in_a_branch_and_in_a_function(tmp_path):
    """Both are written out, or found where they are."""
    forward = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        net (float[N,2] x, bool flag) => (float[N,2] y)
        <float[2,2] w = {1, 2, 3, 4}, float ratio = {0.5}, bool yes = {1}> {
            h = MatMul(x, w)
            d = local.drop(h)
            y = If(flag) <
                then_branch = a() => (float[N,2] t) { t = Dropout(x, ratio, yes) },
                else_branch = b() => (float[N,2] t) { t = Identity(x) }
            >
            z = Add(y, d)
        }
        <domain: "local", opset_import: ["": 17]> drop (v) => (u) {
            ratio = Constant<value = float {0.5}>()
            yes = Constant<value = bool {1}>()
            u = Dropout(v, ratio, yes)
        }"""
    )
    forward.graph.output[0].name = "z"
    from graphopt.inference import inference_model

    onnx.save(inference_model(forward), tmp_path / "net.onnx")
    x = normal(3, 2)
    (found,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(
        None, {"x": x, "flag": np.array(True)}
    )
    np.testing.assert_allclose(found, x + x @ np.array([[1, 2], [3, 4]], np.float32), rtol=1e-6)
