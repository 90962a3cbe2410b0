"""Training graphs: forward, loss, gradients and update together, against PyTorch in float64."""

import copy
import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

import graphopt
from graphopt.examples import digits, digits_cnn
from tests.helpers.environments import both_gradients
from tests.helpers.faults import flips_that_are_found

torch.set_num_threads(1)  # its threads wait by spinning, and the test processes fill the cores


def random_initializers(model, seed=0):
    """Fill the parameters that the text of a model declares as inputs of the same name."""
    rng = np.random.default_rng(seed)
    for value in [v for v in model.graph.input if v.name not in ("x", "labels")]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = rng.normal(scale=0.5, size=shape).astype(np.float32)
        if "var" in value.name:
            array = np.abs(array) + 0.5
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        model.graph.input.remove(value)
    return model


def parse(text, opset=17, ir_version=8):
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>'
    return random_initializers(onnx.parser.parse_model(header + text))


def tensors(model):
    return {
        t.name: torch.tensor(numpy_helper.to_array(t), dtype=torch.float64, requires_grad=True)
        for t in model.graph.initializer
    }


class TorchRMSProp:
    """The same formula on PyTorch's gradients, in float64."""

    def __init__(self, optimizer, values):
        self.values = {p.name: values[p.name] for p in optimizer.params}
        self.oracle = graphopt.reference.ReferenceRMSProp(
            optimizer, {name: value.detach().numpy() for name, value in self.values.items()}
        )

    def step(self, loss):
        gradients = torch.autograd.grad(loss, list(self.values.values()))
        scale = self.oracle.optimizer.loss_scale
        gradients = [scale * gradient.numpy() for gradient in gradients]
        self.oracle.step(dict(zip(self.values, gradients, strict=True)))
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(torch.tensor(self.oracle.state[name]))


def digits_forward(p, x):
    for layer in ("conv1", "conv2"):
        x = functional.conv2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], padding=1)
        x = functional.max_pool2d(functional.relu(x), 2)
    x = functional.linear(x.flatten(1), p["dense1.weight"], p["dense1.bias"])
    return functional.linear(functional.relu(x), p["dense2.weight"], p["dense2.bias"])


EVERYTHING = {"momentum": 0.9, "centered": True, "loss_scale": 1024.0, "weight_decay": 0.01}


# The update does not know the batch, so that one of its settings is enough with a static one.
@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        ({}, None),
        ({"momentum": 0.9}, None),
        (EVERYTHING, None),
        (EVERYTHING, 32),
        ({"decay": 0.99, "epsilon": 1e-3, "use_locking": True}, None),
    ],
    ids=["plain", "momentum", "everything", "static batch", "epsilon"],
)
def test_digits_network_trains_as_in_pytorch(settings, batch):
    model = digits_cnn.build(batch=batch)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.002, **settings)
    session = graphopt.Session(graphopt.training_graph(model, "cross_entropy", optimizer))
    values = tensors(model)
    peer = TorchRMSProp(optimizer, values)
    data, rng = digits.load().train, np.random.default_rng(0)
    for _ in range(25):
        rows = rng.integers(0, len(data.x), 32)
        x, labels = data.x[rows], data.labels[rows]
        loss = functional.cross_entropy(
            digits_forward(values, torch.tensor(x, dtype=torch.float64)), torch.tensor(labels)
        )
        outputs = session.step({"x": x, "labels": labels})
        assert abs(float(outputs["loss"]) - loss.item()) < 1e-5
        peer.step(loss)
    state = session.state
    for name in values:
        np.testing.assert_allclose(state[name], values[name].detach(), rtol=0, atol=1e-4)


# Each forward model, and what it computes in PyTorch from its parameters and x.
LAYERS = {
    "matmul and bias": (
        (
            "m (float[N,4] x, float[4,3] w, float[3] b) => (float[N,3] y) "
            "{ h = MatMul(x, w) y = Add(h, b) }"
        ),
        lambda p, x: x @ p["w"] + p["b"],
    ),
    "scalar parameter": (
        "m (float[N,4] x, float a) => (float[N,4] y) { y = Mul(x, a) }",
        lambda p, x: x * p["a"],
    ),
    "parameter used twice": (
        (
            "m (float[N,4] x, float[4,4] w) => (float[N,4] y) "
            "{ h = MatMul(x, w) t = Tanh(h) y = MatMul(t, w) }"
        ),
        lambda p, x: torch.tanh(x @ p["w"]) @ p["w"],
    ),
    "average pool": (
        (
            "m (float[N,2,4,4] x, float[3,2,3,3] w) => (float[N,3,2,2] y) "
            "{ h = Conv<pads=[1,1,1,1]>(x, w) "
            "y = AveragePool<kernel_shape=[2,2],strides=[2,2]>(h) }"
        ),
        lambda p, x: functional.avg_pool2d(functional.conv2d(x, p["w"], padding=1), 2),
    ),
    "average pool with pads": (
        (
            "m (float[N,2,4,4] x, float[3,2,3,3] w) => (float[N,3,4,4] y) { h = Conv"
            "<pads=[1,1,1,1]>(x, w) y = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(h) }"
        ),
        lambda p, x: functional.avg_pool2d(
            functional.conv2d(x, p["w"], padding=1), 3, 1, 1, count_include_pad=False
        ),
    ),
    "automatic padding": (
        (
            "m (float[N,2,5,5] x, float[3,2,2,2] w) => (float[N,3,3,3] y) "
            '{ y = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w) }'
        ),
        lambda p, x: functional.conv2d(functional.pad(x, (0, 1, 0, 1)), p["w"], stride=2),
    ),
    "automatic padding below": (
        (
            "m (float[N,2,5,5] x, float[3,2,2,2] w) => (float[N,3,3,3] y) "
            '{ y = Conv<auto_pad="SAME_LOWER",strides=[2,2]>(x, w) }'
        ),
        lambda p, x: functional.conv2d(functional.pad(x, (1, 0, 1, 0)), p["w"], stride=2),
    ),
    "layer normalization": (
        (
            "m (float[N,6] x, float[6,6] w, float[6] g, float[6] b) => (float[N,6] y) "
            "{ h = MatMul(x, w) y = LayerNormalization(h, g, b) }"
        ),
        lambda p, x: functional.layer_norm(x @ p["w"], [6], p["g"], p["b"]),
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize(("text", "forward"), LAYERS.values(), ids=LAYERS)
@both_gradients
def test_layers_train_as_in_pytorch(text, forward, portable):
    model = parse(text)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01, momentum=0.5)
    graph = graphopt.training_graph(model, "mse", optimizer, portable=portable)
    session = graphopt.Session(graph)
    values = tensors(model)
    peer = TorchRMSProp(optimizer, values)
    rng = np.random.default_rng(1)
    shapes = {
        feed.name: [d if isinstance(d, int) else 5 for d in feed.shape] for feed in session.inputs
    }
    for _ in range(8):
        feeds = {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}
        double = {name: torch.tensor(array, dtype=torch.float64) for name, array in feeds.items()}
        loss = functional.mse_loss(forward(values, double["x"]), double["labels"])
        outputs = session.step(feeds)
        np.testing.assert_allclose(outputs["loss"], loss.item(), rtol=1e-5)
        peer.step(loss)
    for name in values:
        np.testing.assert_allclose(session.state[name], values[name].detach(), atol=1e-5)


NORMALIZED = (
    "m (float[N,2,4,4] x, float[3,2,3,3] w, float[3] g, float[3] b, float[3] mean, float[3] var) "
    "=> (float[N,3,4,4] y) { h = Conv<pads=[1,1,1,1]>(x, w) "
    "y = BatchNormalization<epsilon=0.001,momentum=0.8>(h, g, b, mean, var) }"
)


def feeds_for(shape, target, seed):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(1, 2, size=shape).astype("f"),
        "labels": rng.normal(size=target).astype("f"),
    }


@both_gradients
def test_batch_normalization_trains_and_carries_its_running_statistics(portable):
    model = parse(NORMALIZED)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01)
    assert [p.name for p in optimizer.params] == ["w", "g", "b"]
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer, portable=portable))
    values = tensors(model)
    mean, var = values["mean"].detach().numpy().copy(), values["var"].detach().numpy().copy()
    peer = TorchRMSProp(optimizer, values)
    for seed in range(6):
        feeds = feeds_for((5, 2, 4, 4), (5, 3, 4, 4), seed)
        h = functional.conv2d(torch.tensor(feeds["x"]).double(), values["w"], padding=1)
        mean = 0.8 * mean + 0.2 * h.detach().mean((0, 2, 3)).numpy()
        var = 0.8 * var + 0.2 * h.detach().var((0, 2, 3), unbiased=False).numpy()
        y = functional.batch_norm(h, None, None, values["g"], values["b"], True, eps=0.001)
        loss = functional.mse_loss(y, torch.tensor(feeds["labels"]).double())
        np.testing.assert_allclose(session.step(feeds)["loss"], loss.item(), rtol=1e-5)
        peer.step(loss)
    expected = {name: values[name].detach().numpy() for name in ("w", "g", "b")}
    for name, value in (expected | {"mean": mean, "var": var}).items():
        np.testing.assert_allclose(session.state[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@both_gradients
def test_frozen_batch_normalization_stays_as_it_is(portable):
    model = parse(NORMALIZED)
    (w,) = (p for p in graphopt.parameters(model) if p.name == "w")
    optimizer = graphopt.RMSProp([w], learning_rate=0.01)
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer, portable=portable))
    assert set(session.state) == {"w", "mean_square.w", "global_step"}
    values = tensors(model)
    mean, var = values["mean"].detach(), values["var"].detach()
    peer = TorchRMSProp(optimizer, values)
    for seed in range(4):
        feeds = feeds_for((5, 2, 4, 4), (5, 3, 4, 4), seed)
        h = functional.conv2d(torch.tensor(feeds["x"]).double(), values["w"], padding=1)
        y = functional.batch_norm(h, mean, var, values["g"], values["b"], False, eps=0.001)
        loss = functional.mse_loss(y, torch.tensor(feeds["labels"]).double())
        np.testing.assert_allclose(session.step(feeds)["loss"], loss.item(), rtol=1e-5)
        peer.step(loss)
    np.testing.assert_allclose(session.state["w"], values["w"].detach(), atol=1e-5)


def test_frozen_parameters_stay_as_they_are(tmp_path):
    model = parse(LAYERS["matmul and bias"][0])
    (w,) = (p for p in graphopt.parameters(model) if p.name == "w")
    graph = graphopt.training_graph(model, "mse", graphopt.RMSProp([w]))
    session = graphopt.Session(graph)
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    session.step(feeds_for((5, 4), (5, 3), 0))
    session.export(tmp_path / "trained.onnx")
    after = onnx.load(tmp_path / "trained.onnx").graph.initializer
    after = {t.name: numpy_helper.to_array(t) for t in after}
    assert np.array_equal(before["b"], after["b"])
    assert not np.array_equal(before["w"], after["w"])


def test_loss_scale_does_not_change_training():
    model = digits_cnn.build()
    data = digits.load().train
    states = []
    for loss_scale in (1.0, 1024.0):
        optimizer = graphopt.RMSProp(
            graphopt.parameters(model), 0.002, loss_scale=loss_scale, weight_decay=0.01
        )
        session = graphopt.Session(graphopt.training_graph(model, "cross_entropy", optimizer))
        for start in range(0, 320, 32):
            part = slice(start, start + 32)
            session.step({"x": data.x[part], "labels": data.labels[part]})
        states.append(session.state)
    for name, value in states[0].items():  # a power of two: only the order of roundings differs
        np.testing.assert_allclose(states[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.any_runtime
def test_model_is_not_changed():
    model = digits_cnn.build()
    before = copy.deepcopy(model)
    graphopt.training_graph(model, "cross_entropy", graphopt.RMSProp(graphopt.parameters(model)))
    assert model == before


@pytest.mark.any_runtime
def test_model_as_path_proto_or_ir(tmp_path):
    model = digits_cnn.build()
    onnx.save(model, tmp_path / "forward.onnx")
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    graphs = [
        graphopt.training_graph(source, "cross_entropy", optimizer).model
        for source in (
            model,
            tmp_path / "forward.onnx",
            str(tmp_path / "forward.onnx"),
            onnx_ir.from_proto(model),
        )
    ]
    assert all(graph.graph == graphs[0].graph for graph in graphs)


@pytest.mark.parametrize("opset", [11, 13, 15, 18, 21, 22])
def test_opsets(opset):
    model = parse(LAYERS["average pool"][0], opset=opset, ir_version=7)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01)
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer))
    expected = parse(LAYERS["average pool"][0])
    other = graphopt.Session(graphopt.training_graph(expected, "mse", optimizer))
    feeds = feeds_for((5, 2, 4, 4), (5, 3, 2, 2), 0)
    np.testing.assert_allclose(session.step(feeds)["loss"], other.step(feeds)["loss"], rtol=1e-6)
    np.testing.assert_allclose(session.state["w"], other.state["w"], atol=1e-6)


@both_gradients
def test_model_with_local_functions(portable):
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    m (float[N,4] x, float[4,3] w, float[3] b) => (float[N,3] y) { y = local.linear(x, w, b) }
    <domain: "local", opset_import: ["" : 17]>
    linear (x, w, b) => (y) { h = MatMul(x, w) y = Add(h, b) }"""
    model = random_initializers(onnx.parser.parse_model(text))
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer, portable=portable))
    assert float(session.step(feeds_for((5, 4), (5, 3), 0))["loss"]) > 0


@both_gradients
def test_names_of_the_forward_model_may_be_those_of_the_training_graph(portable):
    text = (
        "m (float[N,4] x, float[4,3] w) => (float[N,3] y) "
        "{ loss = MatMul(x, w) w_grad = Tanh(loss) labels = Relu(w_grad) y = Neg(labels) }"
    )
    model = parse(text)
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer, portable=portable))
    feeds = feeds_for((5, 4), (5, 3), 0)
    outputs = session.step(feeds)
    np.testing.assert_allclose(
        outputs["loss"], np.mean((outputs["y"] - feeds["labels"]) ** 2), rtol=1e-6
    )


@both_gradients
def test_dropout_in_training_mode_is_active(portable):
    text = (
        "m (float[N,400] x, float[400] w) => (float[N,400] y) { h = Mul(x, w) "
        "r = Constant<value_float: float = 0.5>() t = Constant<value = bool {1}>() "
        "y = Dropout(h, r, t) }"
    )
    model = parse(text)
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer, portable=portable))
    y = session.step(feeds_for((5, 400), (5, 400), 0))["y"]
    assert 0.4 < np.mean(y == 0) < 0.6


ERRORS = {
    "no gradient reaches it": (
        (
            "m (float[N,4] x, float[4,3] w, float[3] b) => (float[N,3] y, float[3] z) "
            "{ y = MatMul(x, w) z = Relu(b) }"
        ),
        {"output": "y"},
        "no gradient of the loss reaches 'b'",
    ),
    "not differentiable": (
        (
            "m (float[N,4] x, float[4,3] w, float[3] b) => (float[N,3] y) { h = MatMul(x, w) "
            "c = Cast<to = 7>(b) d = Cast<to = 1>(c) y = Add(h, d) }"
        ),
        {},
        "no gradient of the loss reaches 'b'",
    ),
    "operator that is flat": (
        "m (float[N,4] x, float[4,3] w) => (float[N,3] y) { h = MatMul(x, w) y = Round(h) }",
        {},
        "no gradient of the loss reaches 'w'",
    ),
}


@pytest.mark.parametrize(("text", "options", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_of_the_model(text, options, message):
    model = parse(text)
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    with pytest.raises(ValueError, match=message):
        graphopt.training_graph(model, "mse", optimizer, **options)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (graphopt.Parameter("weight", (4, 3)), "'weight' is not an initializer of the model"),
        (graphopt.Parameter("ww", (4, 3)), "did you mean 'w'"),
        (graphopt.Parameter("w", (3, 4)), r"float32\[3, 4\] in the optimizer, but float32\[4, 3\]"),
        (graphopt.Parameter("w", (4, 3), "float16"), "float16"),
    ],
    ids=["unknown", "misspelt", "shape", "dtype"],
)
def test_parameters_must_be_those_of_the_model(parameter, message):
    model = parse(LAYERS["matmul and bias"][0])
    with pytest.raises(ValueError, match=message):
        graphopt.training_graph(model, "mse", graphopt.RMSProp([parameter]))


def test_optimizer_must_be_one():
    for build in (
        lambda: graphopt.training_graph(digits_cnn.build(), "mse", "rmsprop"),
        lambda: graphopt.update_graph([graphopt.Parameter("w", (3,))]),
    ):
        with pytest.raises(TypeError, match=r"expected a graphopt\.RMSProp"):
            build()


def test_graph_file_round_trip(tmp_path):
    model = digits_cnn.build()
    graph = graphopt.training_graph(
        model, "cross_entropy", graphopt.RMSProp(graphopt.parameters(model))
    )
    graph.save(tmp_path / "train.onnx")
    loaded = graphopt.load(tmp_path / "train.onnx")
    assert loaded.model == graph.model
    assert loaded.carried == graph.carried


@pytest.mark.any_runtime
def test_every_flipped_bit_of_a_file_is_found(tmp_path):
    """Of its values as of everything else."""
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    graphopt.training_graph(model, "cross_entropy", optimizer).save(tmp_path / "train.onnx")
    flips_that_are_found(tmp_path / "train.onnx", graphopt.load)


def test_other_programs_run_and_change_a_file(tmp_path):
    path = tmp_path / "train.onnx"
    update_only().save(path)
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    changed = onnx.load(path)
    assert [entry.key for entry in changed.metadata_props].count("graphopt.sha256") == 1
    changed.doc_string = "changed"
    onnx.save(changed, path)
    graph = graphopt.load(path)
    assert graph.model.doc_string == "changed"
    assert "graphopt.sha256" not in {entry.key for entry in graph.model.metadata_props}


def update_only():
    return graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter("w", (3,))]))


@pytest.mark.any_runtime
def test_values_are_stored_once():
    """Neither the parameters nor the constant states stand in the file twice."""
    model = parse(
        "m (float[N,300] x, float[300,300] w, float[300,200] v) => (float[N,200] y) "
        "{ h = MatMul(x, w) y = MatMul(h, v) }"
    )
    (w,) = (p for p in graphopt.parameters(model) if p.name == "w")
    size = graphopt.training_graph(model, "mse", graphopt.RMSProp([w])).model.ByteSize()
    assert size < model.ByteSize() + 20_000


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "there is no file"),
        (b"", ValueError, "not an ONNX model"),
        (b"hello", ValueError, "not an ONNX model"),
        (digits_cnn.build().SerializeToString()[:5000], ValueError, "not an ONNX model"),
        (digits_cnn.build().SerializeToString(), ValueError, "not a training graph"),
    ],
    ids=["missing", "empty", "text", "truncated", "forward model"],
)
def test_loading_something_else(tmp_path, content, error, message):
    path = tmp_path / "train.onnx"
    if content is not None:
        path.write_bytes(content)
    for load in (graphopt.load, graphopt.Session):
        with pytest.raises(error, match=message):
            load(path)


def test_saving_leaves_no_half_written_file(tmp_path):
    graph = update_only()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        graph.save(tmp_path / "missing" / "train.onnx")
    with pytest.raises(IsADirectoryError):
        graph.save(tmp_path)
    graph.save(tmp_path / "train.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["train.onnx"]


RUN = (
    "import sys; sys.path.insert(0, '.'); import numpy as np\n"
    "import graphopt; from graphopt.examples import digits_cnn\n"
)


def run(script):
    return subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )


@pytest.mark.any_runtime
def test_torch_is_not_imported():
    done = run(
        RUN + "m = digits_cnn.build(); g = graphopt.training_graph(m, 'cross_entropy', "
        "graphopt.RMSProp(graphopt.parameters(m))); graphopt.Session(g)\n"
        "assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.any_runtime
def test_without_onnxruntime():
    """Graphs can be built, saved and read; what needs a runtime says which to install."""
    done = run(
        "import sys; sys.modules['onnxruntime'] = None\n"
        + RUN
        + "m = digits_cnn.build(); opt = graphopt.RMSProp(graphopt.parameters(m))\n"
        "graph = graphopt.training_graph(m, 'cross_entropy', opt)\n"
        "build = lambda: graphopt.training_graph(m, 'cross_entropy', opt, portable=False)\n"
        "for use in (lambda: graphopt.Session(graph), build):\n"
        "    try: use()\n"
        "    except ImportError as error: assert 'graphopt[runtime]' in str(error), error\n"
        "    else: raise AssertionError\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.any_runtime
def test_graph_grows_linearly():
    """400 parameters: the nodes grow in proportion, and few are ready at the same time."""
    sizes = {}
    for layers in (50, 100, 200):
        graph = mlp(layers)
        sizes[2 * layers] = len(graph.model.graph.node)
        for value in graph.model.graph.node:
            assert len(value.input) <= 70
    assert sizes[400] - sizes[200] == pytest.approx(2 * (sizes[200] - sizes[100]), rel=0.02)
    assert sizes[400] < 10 * 400


def mlp(layers, width=8):
    rng = np.random.default_rng(0)
    nodes, initializers, x = [], [], "x"
    for k in range(layers):
        for name, shape in ((f"w{k}", (width, width)), (f"b{k}", (width,))):
            array = rng.normal(scale=0.3, size=shape).astype("f")
            initializers.append(numpy_helper.from_array(array, name))
        nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], [f"a{k}"]))
        nodes.append(helper.make_node("Tanh", [f"a{k}"], [f"h{k}"]))
        x = f"h{k}"
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "mlp", [info("x", 1, ["N", width])], [info(x, 1, ["N", width])], initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    return graphopt.training_graph(model, "mse", optimizer)
