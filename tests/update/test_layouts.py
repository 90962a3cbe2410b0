"""What is updated together does not show in what comes out."""

from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import graphopt
from graphopt import Parameter, in_place
from graphopt.reference import ReferenceRMSProp
from graphopt.update import layout as layouts
from models.zoo import ZOO
from tests.helpers.environments import typical
from tests.helpers.functions import EXACT_ROOTS

LAYOUTS = ("separate", "buckets", "chunks")
STEPS = 4


@pytest.fixture
def small(monkeypatch):
    """Limits that small parameters reach: buckets of several elements, chunks of 16."""
    monkeypatch.setattr(layouts, "_CHUNK", 16)
    monkeypatch.setattr(layouts, "_LARGE", 24)
    monkeypatch.setattr(layouts, "_MAX_ELEMENTS", 40)


def one_thread():
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


def session_of(graph, parameters=None, kernels=False):
    return graphopt.Session(graph, parameters, session_options=one_thread(), kernels=kernels)


def assert_same(state, expected):
    """Bit for bit, or on a runtime with another Sqrt within a few ulps of the largest element."""
    if EXACT_ROOTS:
        assert_same_bits(state, expected)
        return
    assert set(state) == set(expected)
    for name, array in expected.items():
        assert (state[name].dtype, state[name].shape) == (array.dtype, array.shape), name
        bound = 2**-10 if array.dtype == np.float16 else 2e-6
        atol = bound * np.abs(array.astype(np.float64)).max()
        np.testing.assert_allclose(state[name], array, rtol=0, atol=atol, err_msg=name)


def assert_same_bits(state, expected):
    """The same names, and arrays that are equal bit for bit."""
    assert set(state) == set(expected)
    for name, array in expected.items():
        assert state[name].dtype == array.dtype, name
        assert state[name].shape == array.shape, name
        assert np.isfinite(array).all(), name
        difference = np.abs(state[name].astype(float) - array).max()
        assert state[name].tobytes() == array.tobytes(), f"{name}: {difference:.1e}"


# Update graphs.

PARAMETERS = [
    Parameter("scalar", ()),
    Parameter("one", (1,)),
    Parameter("kernel", (4, 2, 3, 3), op_type="Conv"),
    Parameter("one_by_one", (1, 1)),
    Parameter("pointwise", (3, 2, 1, 1), op_type="Conv"),
    Parameter("matrix", (3, 5)),
    Parameter("prime", (53,)),
    Parameter("gamma", (4, 1, 1)),
    Parameter("large", (6, 16)),
    Parameter("larger", (5, 2, 32, 1)),
    Parameter("last", (2, 1, 3)),
]
# Of each layout, the shapes in which the parameters are updated.
SHAPES = {
    "separate": [(p.size,) for p in PARAMETERS],
    "buckets": [(34,), (72,), (53,), (96,), (320,)],
    "chunks": [(2, 17), (4, 18), (1, 53), (6, 16), (20, 16)],
}


def of_dtype(dtype, params=PARAMETERS):
    return [Parameter(p.name, p.shape, dtype, p.op_type) for p in params]


def groups(params, **common):
    """Three groups with rules of their own, each with small and large parameters."""
    rate = graphopt.schedules.ExponentialDecayLR(0.05, 0.9, 2)
    own = [{"lr": 0.03}, {}, {"lr": rate, "weight_decay": 0.02}]
    return [{"params": params[index::3]} | common | settings for index, settings in enumerate(own)]


UPDATES = {
    "plain": (PARAMETERS, {}),
    "momentum": (PARAMETERS, {"momentum": 0.9}),
    "nesterov": (PARAMETERS, {"momentum": 0.9, "nesterov": True}),
    "centered": (PARAMETERS, {"centered": True}),
    "centered, momentum": (PARAMETERS, {"centered": True, "momentum": 0.9}),
    "rate outside": (PARAMETERS, {"momentum": 0.9, "learning_rate_inside_moment": False}),
    "epsilon outside": (PARAMETERS, {"epsilon_inside_root": False, "epsilon": 1e-3}),
    "weight decay": (PARAMETERS, {"weight_decay": 0.1}),
    "decoupled decay": (PARAMETERS, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "loss scale": (PARAMETERS, {"loss_scale": 1000.0, "weight_decay": 0.1}),
    "groups": (groups(PARAMETERS), {"momentum": 0.9, "centered": True}),
    "groups, decoupled": (
        groups(PARAMETERS, weight_decay=0.1),
        {"decoupled_weight_decay": True, "momentum": 0.5, "loss_scale": 3.0},
    ),
    "centralization": (groups(PARAMETERS, grad_centralization=True), {"loss_scale": 3.0}),
    "centralization, decay": (
        groups(PARAMETERS, grad_centralization=True, weight_decay=0.1),
        {"loss_scale": 3.0, "centered": True},
    ),
    "everything": (
        groups(PARAMETERS, grad_centralization=True, weight_decay=0.1),
        {
            "loss_scale": 3.0,
            "centered": True,
            "momentum": 0.9,
            "nesterov": True,
            "learning_rate_inside_moment": False,
            "epsilon_inside_root": False,
            "epsilon": 1e-3,
            "decoupled_weight_decay": True,
        },
    ),
    "float16": (of_dtype("float16"), {"momentum": 0.9, "centered": True, "loss_scale": 8.0}),
    "float16, centralization": (
        groups(of_dtype("float16"), grad_centralization=True, weight_decay=0.1),
        {"loss_scale": 8.0},
    ),
    "both dtypes": (
        [*of_dtype("float16", PARAMETERS[::2]), *PARAMETERS[1::2]],
        {"momentum": 0.9, "weight_decay": 0.1},
    ),
}
every_update = pytest.mark.parametrize(
    "case", typical(UPDATES.keys(), "everything", "groups, decoupled", "float16, centralization")
)


def optimizer(case):
    given, settings = UPDATES[case]
    return graphopt.RMSProp(given, **{"learning_rate": 0.01} | settings)


def drawn(opt, rng, scale=1.0):
    return {
        p.name: np.asarray(scale * rng.standard_normal(p.shape)).astype(p.dtype) for p in opt.params
    }


def gradients(opt, rng):
    return {f"{name}_grad": g for name, g in drawn(opt, rng, opt.loss_scale).items()}


def masks(opt, group_mask):
    """What a step is fed besides gradients: never, or in some steps, a group rests."""
    for step in range(STEPS):
        rests = np.arange(len(opt.groups)) == step % 3
        yield {"group_mask": ~rests} if group_mask else {}


def start(opt, layout, group_mask=False, kernels=False):
    graph = graphopt.update_graph(opt, layout=layout, group_mask=group_mask)
    return session_of(graph, drawn(opt, np.random.default_rng(1)), kernels)


def updated(opt, layout, group_mask=False, kernels=False):
    """A session of an update graph after several steps."""
    session = start(opt, layout, group_mask, kernels)
    rng = np.random.default_rng(2)
    for mask in masks(opt, group_mask):
        session.step(gradients(opt, rng) | mask)
    return session


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_of_the_update(layout):
    """The parameters are what the tests below need: together, in one piece and in chunks."""
    graph = graphopt.update_graph(graphopt.RMSProp(PARAMETERS), layout=layout)
    assert [tuple(bucket["shape"]) for bucket in graph.layout["buckets"]] == SHAPES[layout]


@pytest.mark.quick
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("group_mask", [False, True], ids=["", "group_mask"])
@every_update
def test_update_is_the_same(case, group_mask):
    """In place, and in all layouts: those could all be wrong in the same way."""
    opt = optimizer(case)
    sessions = {layout: updated(opt, layout, group_mask) for layout in LAYOUTS}
    for session in sessions.values():
        assert_overwritable(session.graph)
    states = {layout: session.state for layout, session in sessions.items()}
    for layout in ("buckets", "chunks"):
        assert_same(states[layout], states["separate"])
    if group_mask and all(parameter.dtype == "float32" for parameter in opt.params):
        expected = reference_state(opt)
        for name, value in ((name, v) for state in states.values() for name, v in state.items()):
            np.testing.assert_allclose(value, expected[name], 1e-5, 1e-6, err_msg=name)


def reference_state(opt):
    """What the reference has after the steps of `updated` with masks."""
    reference = ReferenceRMSProp(opt, drawn(opt, np.random.default_rng(1)))
    rng = np.random.default_rng(2)
    for mask in masks(opt, group_mask=True):
        given = {name.removesuffix("_grad"): g for name, g in gradients(opt, rng).items()}
        reference.step(given, mask["group_mask"])
    return reference.state


def assert_overwritable(graph):
    proven = in_place.overwritable(graph.model, graph.carried)
    assert proven == {value.input for value in graph.carried}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("case", ["everything", "float16", "both dtypes"])
def test_update_by_kernels_is_the_same(case):
    """Where kernels are installed; elsewhere these are the functions' bodies again."""
    opt = optimizer(case)
    expected = updated(opt, "separate", kernels=True).state
    for layout in ("buckets", "chunks"):
        assert_same(updated(opt, layout, kernels=True).state, expected)


def test_real_sizes_are_the_same():
    """With the limits as they are: two buckets, a prime, and chunks."""
    shapes = [(300, 200), (1,), (70001,), (1000, 800), (4096,), (300, 200)]
    opt = graphopt.RMSProp(
        [Parameter(f"p{index}", shape) for index, shape in enumerate(shapes)],
        momentum=0.9,
        centered=True,
    )
    states = {layout: updated(opt, layout).state for layout in LAYOUTS}
    chunked = graphopt.update_graph(opt, layout="chunks").layout["buckets"]
    assert [b["shape"] for b in chunked] == [[1, 124097], [1, 70001], [4, 200000]]
    for layout in ("buckets", "chunks"):
        assert_same(states[layout], states["separate"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_group_that_rests_keeps_every_bit(layout):
    """Whatever its gradients are; the others move."""
    opt = optimizer("everything")
    session = start(opt, layout, group_mask=True)
    rng = np.random.default_rng(3)
    session.step(gradients(opt, rng))
    before = session.state
    resting = {p.name for p, rule in zip(opt.params, opt.rules, strict=True) if rule.group == 1}
    feeds = gradients(opt, rng)
    for name in resting:
        feeds[f"{name}_grad"][...] = np.nan
    session.step(feeds | {"group_mask": np.array([True, False, True])})
    for name, value in session.state.items():
        owner = name.removeprefix("mean_square.").removeprefix("mean_grad.").removeprefix("moment.")
        assert (value.tobytes() == before[name].tobytes()) == (owner in resting), name


# Checkpoints.


@pytest.mark.any_runtime
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("saved", "loaded"), list(product(LAYOUTS, LAYOUTS)))
@pytest.mark.parametrize("case", ["everything", "both dtypes"])
def test_a_checkpoint_continues_in_another_layout(case, saved, loaded, tmp_path):
    opt = optimizer(case)
    first = updated(opt, saved)
    first.save_checkpoint(tmp_path / "c.safetensors")
    second = start(opt, loaded)
    second.load_checkpoint(tmp_path / "c.safetensors")
    assert_same_bits(second.state, first.state)
    for seed in range(2):
        for session in (first, second):
            session.step(gradients(opt, np.random.default_rng(seed)))
    assert_same(second.state, first.state)
    assert int(second.state["global_step"]) == STEPS + 2


# Training graphs.

SHARED = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N,6] x) => (float[N,4] logitsREPORTED) {
    a = MatMul (x, w)
    b = Tanh (a)
    c = MatMul (b, w)
    d = Add (c, bias)
    e = MatMul (d, last)
    f = Mul (e, scale)
    logits = Add (f, offset)
}"""
NORMALIZED = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N,2,4,4] x) => (float[N,4] logits) {
    a = Conv <pads = [1, 1, 1, 1]> (x, kernel)
    b = BatchNormalization (a, weight, shift, mean, variance)
    c = Relu (b)
    d = Flatten (c)
    logits = Gemm (d, dense, bias)
}"""


def parsed(text, shapes):
    rng = np.random.default_rng(0)
    model = parser.parse_model(text)
    for name, shape in shapes.items():
        array = np.asarray(rng.uniform(0.1, 0.5, shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def shared(reported=""):
    """Two uses of one parameter."""
    shapes = {"w": (6, 6), "bias": (6,), "last": (6, 4), "scale": (), "offset": (1, 4)}
    return parsed(SHARED.replace("REPORTED", reported), shapes)


def reported():
    """A large parameter, and one of a bucket, are outputs of the model too."""
    return shared(", float[6,6] w, float[6] bias")


def normalized():
    shapes = {"kernel": (3, 2, 3, 3), "weight": (3,), "shift": (3,), "mean": (3,)}
    return parsed(NORMALIZED, shapes | {"variance": (3,), "dense": (48, 4), "bias": (4,)})


def features(*shape):
    def feeds(rng):
        x = rng.standard_normal((5, *shape)).astype(np.float32)
        return {"x": x, "labels": rng.integers(0, 4, 5)}

    return feeds


NETWORKS = {
    "mlp": (ZOO["mlp"].build, lambda rng: ZOO["mlp"].feeds(rng, 8)),
    "digits_cnn": (ZOO["digits_cnn"].build, lambda rng: ZOO["digits_cnn"].feeds(rng, 8)),
    "shared": (shared, features(6)),
    "reported": (reported, features(6)),
    "normalized": (normalized, features(2, 4, 4)),
}
TRAINING = {"momentum": 0.9, "centered": True, "learning_rate": 0.01, "weight_decay": 0.01}
every_network = pytest.mark.parametrize("network", NETWORKS)


def training_graph(network, layout):
    model = NETWORKS[network][0]()
    params = graphopt.parameters(model)
    groups = [{"params": params[::2], "grad_centralization": True}, {"params": params[1::2]}]
    return graphopt.training_graph(
        model, "cross_entropy", graphopt.RMSProp(groups, **TRAINING), output="logits",
        group_mask=True, layout=layout,
    )  # fmt: skip


def trained(graph, network, parameters=None):
    """A session after some steps, and what each of them reported."""
    session = session_of(graph, parameters)
    rng, feeds = np.random.default_rng(1), NETWORKS[network][1]
    reports = [
        session.step(feeds(rng) | {"group_mask": np.array(mask)})
        for mask in ([True, True], [True, False], [False, True], [True, True])
    ]
    return session, reports


@pytest.mark.usefixtures("small")
@every_network
def test_training_is_the_same(network, tmp_path):
    """State, losses and outputs, and the exported model."""
    states, reports = {}, {}
    model = NETWORKS[network][0]()
    for layout in LAYOUTS:
        session, reports[layout] = trained(training_graph(network, layout), network)
        states[layout] = session.state
        session.export(tmp_path / layout)
        exported = onnx.load(tmp_path / layout)
        tensors = {t.name: numpy_helper.to_array(t) for t in exported.graph.initializer}
        del exported.graph.initializer[:]
        expected = onnx.ModelProto()
        expected.CopyFrom(model)
        assert set(tensors) == {tensor.name for tensor in expected.graph.initializer}
        del expected.graph.initializer[:]
        assert exported == expected
        for name, array in tensors.items():
            assert array.tobytes() == states[layout].get(name, array).tobytes(), name
    for layout in ("buckets", "chunks"):
        assert_same(states[layout], states["separate"])
        for report, expected in zip(reports[layout], reports["separate"], strict=True):
            assert_same(report, expected)


@pytest.mark.any_runtime
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", ["buckets", "chunks"])
@pytest.mark.parametrize("network", ["digits_cnn", "shared", "normalized"])
def test_some_parameters_are_given(network, layout):
    """Of a bucket, others start from the model's own values."""
    graph = training_graph(network, layout)
    bucket = max(graph.layout["buckets"], key=lambda bucket: len(bucket["parameters"]))
    assert len(bucket["parameters"]) > 1
    before = session_of(graph).state
    given = {bucket["parameters"][0]: before[bucket["parameters"][0]] + np.float32(0.25)}
    assert_same_bits(session_of(graph, given).state, before | given)
    expected, _ = trained(training_graph(network, "separate"), network, given)
    assert_same(trained(graph, network, given)[0].state, expected.state)


@pytest.mark.any_runtime
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("saved", "loaded"), list(product(LAYOUTS, LAYOUTS)))
def test_training_continues_in_another_layout(saved, loaded, tmp_path):
    network = "normalized"
    first, _ = trained(training_graph(network, saved), network)
    first.save_checkpoint(tmp_path / "c.safetensors")
    second = session_of(training_graph(network, loaded))
    second.load_checkpoint(tmp_path / "c.safetensors")
    assert_same_bits(second.state, first.state)
    feeds = NETWORKS[network][1](np.random.default_rng(3))
    assert_same(second.step(feeds), first.step(feeds))
    assert_same(second.state, first.state)


# Linear regression with its gradients by hand; `w` is read by a branch of an If too.
BY_HAND = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N,6] x, float[N,6] labelsPARAMETERS) => (float[N,6] y, float mean) {
    product = MatMul (x, w)
    y = Add (product, b)
    error = Sub (y, labels)
    square = Mul (error, error)
    mean = ReduceMean <keepdims = 0> (square)
    zero = Constant <value = float {0}> ()
    large = Greater (mean, zero)
    penalty = If (large) <
        then_branch = yes () => (float[6,6] p) { p = Mul (w, mean) },
        else_branch = no () => (float[6,6] q) { q = Identity (w) }>
    transposed = Transpose <perm = [1, 0]> (x)
    dw1 = MatMul (transposed, error)
    dw = Add (dw1, penalty)
    axis = Constant <value_ints = [0]> ()
    db = ReduceSum <keepdims = 0> (error, axis)
    ds = Mul (s, mean)
}"""
VALUES = {"w": (6, 6), "b": (6,), "s": ()}


def by_hand(stored):
    """The model with some parameters stored in it; the others are inputs."""
    types = {"w": "float[6,6]", "b": "float[6]", "s": "float"}
    inputs = "".join(f", {kind} {name}" for name, kind in types.items() if name not in stored)
    shapes = {name: shape for name, shape in VALUES.items() if name in stored}
    return parsed(BY_HAND.replace("PARAMETERS", inputs), shapes)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("stored", ["wbs", "wb", ""], ids=["initializers", "both", "inputs"])
def test_given_gradients_are_the_same(stored):
    model = by_hand(stored)
    values = {
        name: np.asarray(np.random.default_rng(4).uniform(0.1, 1, shape)).astype(np.float32)
        for name, shape in VALUES.items()
        if name not in stored
    }
    params = [Parameter(name, shape) for name, shape in VALUES.items()]
    states, reports = {}, {}
    for layout in LAYOUTS:
        graph = graphopt.training_graph(
            model, "mean", graphopt.RMSProp(params, **TRAINING),
            gradients={"w": "dw", "b": "db", "s": "ds"}, layout=layout,
        )  # fmt: skip
        session = session_of(graph, values)
        rng = np.random.default_rng(5)
        for _ in range(3):
            x, labels = rng.standard_normal((2, 4, 6)).astype(np.float32)
            reports[layout] = session.step({"x": x, "labels": labels})
        states[layout] = session.state
    for layout in ("buckets", "chunks"):
        assert_same(states[layout], states["separate"])
        assert_same(reports[layout], reports["separate"])


# Memory.


@pytest.mark.any_runtime
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "reported"])
def test_every_value_of_a_training_graph_is_overwritten_in_place(network, layout):
    assert_overwritable(training_graph(network, layout))


@pytest.mark.any_runtime
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_parameter_that_is_reported_is_not_overwritten(layout):
    """It is read after the step, and so is the bucket that it is a part of."""
    graph = training_graph("reported", layout)
    proven = in_place.overwritable(graph.model, graph.carried)
    kept = {c.input for c in graph.carried if {"w", "bias"} & {view.name for view in c.views}}
    assert len(kept) == 2
    assert proven == {value.input for value in graph.carried} - kept


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case", typical(["everything", "float16", "centralization, decay"], "everything")
)
def test_in_place_is_the_same_as_taking_turns(case, layout, monkeypatch):
    opt = optimizer(case)
    state = updated(opt, layout).state
    monkeypatch.setattr(in_place, "overwritable", lambda *_: set())
    assert_same_bits(state, updated(opt, layout).state)


DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
VIEWS = {"Reshape", "Identity"}  # their result is the memory of their operand


def large_results(graph, size, tmp_path):
    """The nodes outside of subgraphs that make tensors of so many elements, after optimization.

    The optimized model runs with each result as an output.
    """
    options = one_thread()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    needed = [value for value in graph.carried if value.initial is None]
    initial = {
        view.name: np.ones(view.shape, value.dtype) for value in needed for view in value.views
    }
    graphopt.Session(graph, initial, session_options=options, kernels=False)
    model = onnx.load(tmp_path / "optimized.onnx")
    made = {name: node for node in model.graph.node for name in node.output if name}
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    plain = one_thread()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), plain, providers=["CPUExecutionProvider"]
    )
    values = {
        value.name: np.ones(value.shape, DTYPES[value.type]) for value in session.get_inputs()
    }
    results = dict(zip(made, session.run(None, values), strict=True))
    return [made[name] for name, array in results.items() if array.size >= size]


@pytest.mark.parametrize("group_mask", [False, True], ids=["", "group_mask"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "loss_scale": 8.0},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    ids=["plain", "centered, decay", "decoupled"],
)
def test_chunks_make_no_temporary_of_full_size(settings, group_mask, tmp_path):
    params = [Parameter("large", (640, 1024)), Parameter("small", (3,))]
    opt = graphopt.RMSProp(params, **settings)
    graph = graphopt.update_graph(opt, layout="chunks", group_mask=group_mask)
    nodes = large_results(graph, 640 * 1024, tmp_path)
    assert [node.op_type for node in nodes if node.op_type not in VIEWS] == [
        "Scan" for _ in ("large", *opt.states)
    ]


def test_training_in_chunks_makes_no_temporary_of_full_size(tmp_path):
    """But for the gradient, which is one matrix product."""
    model = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        m (float[4,640] x) => (float[4,1024] y) { z = MatMul (x, w) y = Add (z, b) }""",
        {"w": (640, 1024), "b": (1024,)},
    )
    opt = graphopt.RMSProp(graphopt.parameters(model), **TRAINING)
    graph = graphopt.training_graph(model, "mse", opt, layout="chunks")
    nodes = large_results(graph, 640 * 1024, tmp_path)
    types = [node.op_type for node in nodes if node.op_type not in VIEWS]
    products = [op_type for op_type in types if op_type != "Scan"]
    assert products in (["Gemm"], ["MatMul"], ["FusedMatMul"])
    assert types.count("Scan") == 4
