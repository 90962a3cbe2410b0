"""The update graph against the float64 reference and NumPy, and what the model declares."""

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, inliner, parser

import graphopt
from graphopt.reference import ReferenceRMSProp

SHAPES = {
    "scalar": (),
    "one": (1,),
    "one_by_one": (1, 1),
    "fc.weight": (3, 5),
    "fc.bias": (5,),
    "bn.beta": (7,),
    "conv.weight": (1280, 1, 1, 1),
    "large": (320, 206),
    "last": (2, 1, 3),
}
MANY = {f"p{index}": [(), (1,), (index % 7 + 1, 3)][index % 3] for index in range(150)}
BOUNDARIES = {"a": (65535,), "b": (1,), "c": (2,), "d": (65536,), "e": (65537,), "f": (1, 1)}
STEPS = 8


def rmsprop(shapes, dtype="float32", **settings):
    params = [graphopt.Parameter(name, shape, dtype) for name, shape in shapes.items()]
    return graphopt.RMSProp(params, **{"learning_rate": 0.01, **settings})


def normal(shapes, rng, scale=1.0, dtype="float32"):
    return {k: np.asarray(scale * rng.standard_normal(s)).astype(dtype) for k, s in shapes.items()}


def feeds(gradients):
    return {f"{name}_grad": g for name, g in gradients.items()}


def start(opt, initial):
    return graphopt.Session(graphopt.update_graph(opt), parameters=initial)


def stored(reference):
    """The part of the reference's state that a graph stores."""
    kinds = tuple(f"{kind}." for kind in ("mean_square", "mean_grad", "moment"))
    kept = tuple(f"{kind}." for kind in reference.optimizer.states)
    return {
        name: np.asarray(value)
        for name, value in reference.state.items()
        if name.startswith(kept) or not name.startswith(kinds)
    }


class Largest(dict):
    """The largest absolute value that each array of a trajectory has had; errors relate to it."""

    def assert_close(self, state, expected, tolerance):
        assert set(state) == set(expected)
        for name, array in expected.items():
            assert state[name].shape == array.shape, name
            self[name] = max(self.get(name, 0), np.abs(array).max())
            error = np.abs(state[name] - array).max() / self[name]
            assert error < tolerance, f"{name}: {error:.1e}"


def train_and_compare(opt, shapes, scale=1.0, steps=STEPS, tolerance=1e-6):
    rng = np.random.default_rng(1)
    initial = normal(shapes, rng)
    session, reference = start(opt, initial), ReferenceRMSProp(opt, initial)
    largest = Largest()
    for _ in range(steps):
        gradients = normal(shapes, rng, scale)
        session.step(feeds(gradients))
        reference.step(gradients)
        largest.assert_close(session.state, stored(reference), tolerance)


@pytest.mark.quick
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_hyperparameters(momentum, centered, loss_scale, weight_decay):
    opt = rmsprop(
        SHAPES,
        momentum=momentum,
        centered=centered,
        loss_scale=loss_scale,
        weight_decay=weight_decay,
    )
    train_and_compare(opt, SHAPES, scale=loss_scale)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0},
        {"learning_rate": 3.5, "epsilon": 1.0},
        {"decay": 0.0, "epsilon": 1e-3},
        {"decay": 1.0},
        {"momentum": 1.0},
        {"momentum": 1.5, "decay": 0.5},
        {"decay": 0.999, "centered": True, "momentum": 0.5, "epsilon": 1e-6},
        {"loss_scale": 0.5, "weight_decay": 1},
        {"loss_scale": 2**-10, "weight_decay": 0.1, "centered": True},
    ],
    ids=lambda settings: ",".join(f"{key}={value}" for key, value in settings.items()),
)
def test_unusual_hyperparameters(settings):
    shapes = {"scalar": (), "w": (3, 5), "gamma": (4,)}
    opt = rmsprop(shapes, **settings)
    # 1 - decay is a difference of float32 numbers, so a decay near 1 loses digits there.
    rounding = np.spacing(np.float32(opt.decay)) / (1 - opt.decay) if 0 < opt.decay < 1 else 0
    train_and_compare(opt, shapes, scale=opt.loss_scale, tolerance=1e-6 + rounding)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
@pytest.mark.parametrize("shapes", [MANY, BOUNDARIES], ids=["many", "boundaries"])
def test_several_buckets(shapes, centered, momentum):
    opt = rmsprop(shapes, momentum=momentum, centered=centered, weight_decay=0.01)
    train_and_compare(opt, shapes, steps=3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"centered": True, "momentum": 0.9},
        {"loss_scale": 1024.0, "weight_decay": 0.01},
    ],
    ids=["plain", "momentum", "centered", "loss_scale"],
)
def test_float16_parameters(settings):
    opt = rmsprop(SHAPES, "float16", **settings)
    rng = np.random.default_rng(2)
    initial = normal(SHAPES, rng, dtype="float16")
    session, reference = start(opt, initial), ReferenceRMSProp(opt, initial)
    largest = Largest()
    for _ in range(STEPS):
        # Gradients near float16's smallest numbers, unless the loss scale lifts them.
        gradients = normal(SHAPES, rng, 1e-4 * opt.loss_scale, "float16")
        # One step at a time, because the weight is rounded in each.
        reference.state |= {k: v.astype(np.float64) for k, v in session.state.items()}
        session.step(feeds(gradients))
        reference.step(gradients)
        state, expected = session.state, stored(reference)
        for name in SHAPES:
            assert state[name].dtype == np.float16
            np.testing.assert_allclose(state.pop(name), expected.pop(name), rtol=2**-11, atol=1e-7)
        assert {state[name].dtype.name for name in state if name != "global_step"} == {"float32"}
        largest.assert_close(state, expected, 1e-6)


def test_float16_keeps_a_small_epsilon():
    opt = rmsprop({"w": (4,)}, "float16", decay=0.0, epsilon=1e-10)
    session = start(opt, {"w": np.ones(4, np.float16)})
    session.step({"w_grad": np.zeros(4, np.float16)})
    np.testing.assert_array_equal(session.state["w"], np.ones(4, np.float16))


def test_both_dtypes_in_one_graph():
    shapes = {"a": (3,), "b": (2, 2), "c": (3,), "d": ()}
    dtypes = {"a": "float32", "b": "float16", "c": "float32", "d": "float16"}
    params = [graphopt.Parameter(name, shapes[name], dtypes[name]) for name in shapes]
    opt = graphopt.RMSProp(params, learning_rate=0.5, momentum=0.9)
    rng = np.random.default_rng(3)
    initial = {k: v.astype(dtypes[k]) for k, v in normal(shapes, rng).items()}
    gradients = {k: v.astype(dtypes[k]) for k, v in normal(shapes, rng).items()}
    session, reference = start(opt, initial), ReferenceRMSProp(opt, initial)
    session.step(feeds(gradients))
    reference.step(gradients)
    for name, value in session.state.items():
        rtol = 1e-6 if value.dtype != np.float16 else 2**-11
        np.testing.assert_allclose(value, reference.state[name], rtol=rtol, err_msg=name)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_centered_guard(momentum):
    """Near-constant gradients: rounding makes the variance negative, element by element."""
    n, steps, f32 = 256, 240, np.float32
    lr, decay, rest, epsilon = f32(0.01), f32(0.9), f32(1) - f32(0.9), f32(1e-10)
    opt = rmsprop({"w": (n,)}, decay=0.9, momentum=momentum, centered=True)
    rng = np.random.default_rng(4)
    base = rng.choice([-1, 1], n)
    w, s, a, m = (np.zeros(n, f32), np.ones(n, f32), np.zeros(n, f32), np.zeros(n, f32))
    session = start(opt, {"w": w})
    ever_guarded = np.zeros(n, bool)
    for step in range(steps):
        g = (base + 1e-5 * rng.standard_normal(n)).astype(f32)
        before = session.state
        session.step({"w_grad": g})
        after = session.state

        s, a = s * decay + g * g * rest, a * decay + g * rest
        radicand = s - a * a + epsilon
        guarded = ~(radicand > 0)
        with np.errstate(invalid="ignore"):
            moved = m * f32(momentum) + g * lr / np.sqrt(radicand)
        m = np.where(guarded, m, moved)
        w = np.where(guarded, w, w - moved)

        np.testing.assert_allclose(after["mean_square.w"], s, rtol=1e-6)
        np.testing.assert_allclose(after["mean_grad.w"], a, rtol=1e-6)
        np.testing.assert_allclose(after["w"], w, rtol=2e-6, err_msg=f"step {step}")
        np.testing.assert_array_equal(after["w"][guarded], before["w"][guarded])
        if momentum:
            np.testing.assert_allclose(after["moment.w"], m, rtol=2e-6, err_msg=f"step {step}")
            np.testing.assert_array_equal(after["moment.w"][guarded], before["moment.w"][guarded])
        assert (after["w"][~guarded] != before["w"][~guarded]).all()
        ever_guarded |= guarded
    assert ever_guarded.mean() > 0.9
    for kind in ("mean_square.w", "mean_grad.w"):  # they went on moving
        moving = after[kind] != before[kind]
        assert moving[guarded].mean() > 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
def test_not_finite_gradient(centered, momentum, bad):
    shapes = {"w": (2, 3), "b": (3,)}  # one bucket: what is bad must stay where it is
    opt = rmsprop(shapes, centered=centered, momentum=momentum)
    rng = np.random.default_rng(5)
    initial = normal(shapes, rng)
    session = start(opt, initial)
    session.step(feeds(normal(shapes, rng)))
    before = session.state
    gradients = normal(shapes, rng)
    gradients["w"][1, 1] = bad
    session.step(feeds(gradients))
    session.step(feeds(normal(shapes, rng)))
    after = session.state
    hit = np.zeros((2, 3), bool)
    hit[1, 1] = True
    for name in after:
        assert np.isfinite(after[name][~hit] if name.endswith("w") else after[name]).all(), name
    assert not np.isfinite(after["mean_square.w"][hit]).any()
    if centered:
        assert not np.isfinite(after["mean_grad.w"][hit]).any()
        for name in ("w", "moment.w") if momentum else ("w",):
            np.testing.assert_array_equal(after[name][hit], before[name][hit])
    else:  # Inf / sqrt(Inf) is NaN too
        assert np.isnan(after["w"][hit]).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
def test_zero_gradient(centered, momentum):
    """The states decay; the weight coasts on its moment."""
    shapes = {"w": (3, 2), "scalar": ()}
    opt = rmsprop(shapes, centered=centered, momentum=momentum, decay=0.5)
    rng = np.random.default_rng(6)
    initial = normal(shapes, rng)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    session = start(opt, initial)
    session.step(feeds(zeros))
    for name in shapes:
        np.testing.assert_array_equal(session.state[name], initial[name])
        np.testing.assert_array_equal(session.state[f"mean_square.{name}"], zeros[name] + 0.5)
    session.step(feeds(normal(shapes, rng)))
    before = session.state
    session.step(feeds(zeros))
    for name, value in session.state.items():
        kind, _, owner = name.rpartition(".")
        if name in shapes and momentum:
            drift = before[name] - np.float32(momentum) * before[f"moment.{name}"]
            np.testing.assert_allclose(value, drift, rtol=1e-6, err_msg=name)
            assert (value != before[name]).all()
        elif name in shapes:
            np.testing.assert_array_equal(value, before[name])
        elif owner in shapes:
            factor = np.float32(momentum if kind == "moment" else 0.5)
            np.testing.assert_allclose(value, before[name] * factor, rtol=1e-6, err_msg=name)


def test_updated_is_a_bool():
    session = start(rmsprop({"w": (2,)}), {"w": np.zeros(2, np.float32)})
    outputs = session.step({"w_grad": np.ones(2, np.float32)})
    assert list(outputs) == ["updated"]
    assert outputs["updated"].dtype == np.bool_
    assert outputs["updated"].shape == ()
    assert outputs["updated"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
def test_initial_state(centered, momentum):
    shapes = {"w": (3, 2), "b": (2,), "scalar": ()}
    opt = rmsprop(shapes, centered=centered, momentum=momentum)
    initial = normal(shapes, np.random.default_rng(7))
    expected = stored(ReferenceRMSProp(opt, initial))
    state = start(opt, initial).state
    assert set(state) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(state[name], expected[name], err_msg=name, strict=False)
    assert state["global_step"].dtype == np.int64


def test_gradients_come_in_the_order_of_the_parameters():
    graph = graphopt.update_graph(rmsprop({"z": (2,), "a": (70000,), "m": (), "b": (2, 2)}))
    names = [value.name for value in graph.model.graph.input]
    assert names[:4] == ["z_grad", "a_grad", "m_grad", "b_grad"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True], ids=["plain", "centered"])
def test_model_is_valid_with_and_without_functions(centered, momentum):
    opt = rmsprop(SHAPES, momentum=momentum, centered=centered, loss_scale=8.0, weight_decay=0.1)
    model = graphopt.update_graph(opt).model
    inlined = inliner.inline_local_functions(model)
    assert {node.domain for node in model.graph.node} == {"", "graphopt"}
    assert {node.domain for node in inlined.graph.node} == {""}
    for each in (model, inlined):
        onnx.checker.check_model(each, full_check=True)
    rng = np.random.default_rng(8)
    values = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        values[value.name] = np.asarray(rng.uniform(0.5, 1, shape)).astype(dtype)
    results = [session_of(each).run(None, values) for each in (model, inlined)]
    for output, one, other in zip(model.graph.output, *results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=output.name)


# A consumer that knows ONNX and ONNX Runtime, but nothing of graphopt.


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def initial_values(model):
    """The values before the first step: the initialization, run as a model of its own."""
    (info,) = model.training_info
    alone = helper.make_model(
        info.initialization, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    names = [value.name for value in info.initialization.output]
    values = dict(zip(names, session_of(alone).run(None, {}), strict=True))
    return {entry.key: values[entry.value] for entry in info.initialization_binding}


def binding_of_training_info(model):
    return {entry.key: entry.value for entry in model.training_info[0].update_binding}


def binding_of_metadata(model):
    metadata = session_of(model).get_modelmeta().custom_metadata_map
    return json.loads(metadata["graphopt.update_binding"])


def laid_out(session, given):
    """Parameters as the graph carries them, from what it says about its layout."""
    views = json.loads(session.get_modelmeta().custom_metadata_map["graphopt.views"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    return {
        name: np.concatenate([given[view].ravel() for view, *_ in parts]).reshape(shapes[name])
        for name, parts in views.items()
        if parts[0][0] in given
    }


def consume(model, binding, given, steps):
    session = session_of(model)
    outputs = [value.name for value in session.get_outputs()]
    carried = initial_values(model) | laid_out(session, given)
    assert set(carried) == set(binding)
    for step in steps:
        before = {key: value.copy() for key, value in carried.items()}
        results = dict(zip(outputs, session.run(None, {**carried, **step}), strict=True))
        for key, value in before.items():  # a run changes nothing that it is given
            np.testing.assert_array_equal(carried[key], value, err_msg=key)
        carried = {key: results[value] for key, value in binding.items()}
    return carried


def update_case():
    rng = np.random.default_rng(9)
    shapes = {"w": (3, 2), "scalar": (), "large": (70000,), "b": (2,)}
    graph = graphopt.update_graph(rmsprop(shapes, momentum=0.9, centered=True))
    return graph, normal(shapes, rng), [feeds(normal(shapes, rng)) for _ in range(STEPS)]


def training_case():
    rng = np.random.default_rng(10)
    model = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        net (float[N,3] x) => (float[N,2] y)
        <float[3,2] w = {1, 2, 3, 4, 5, 6}, float[2] gamma = {1, 1}, float[2] beta = {0, 0},
         float[2] mean = {0, 0}, float[2] var = {1, 1}>
        { h = MatMul(x, w)  y = BatchNormalization(h, gamma, beta, mean, var) }""")
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01, momentum=0.9)
    graph = graphopt.training_graph(model, loss="mse", optimizer=opt)
    steps = [normal({"x": (4, 3), "labels": (4, 2)}, rng) for _ in range(STEPS)]
    return graph, {}, steps


@pytest.mark.parametrize("read", [binding_of_training_info, binding_of_metadata])
@pytest.mark.parametrize("case", [update_case, training_case])
def test_generic_consumer(case, read, tmp_path):
    graph, given, steps = case()
    graph.save(tmp_path / "train.onnx")
    model = onnx.load(tmp_path / "train.onnx")
    onnx.checker.check_model(model, full_check=True)
    carried = consume(model, read(model), given, steps)

    session = graphopt.Session(graph, parameters=given, kernels=False)
    for step in steps:
        session.step(step)
    state = session.state
    assert carried["global_step"] == state["global_step"] == len(steps)
    by_name = {view.name: (value.input, view) for value in graph.carried for view in value.views}
    for name, expected in state.items():
        owner, view = by_name[name]
        part = carried[owner].ravel()[view.offset : view.offset + view.size].reshape(view.shape)
        np.testing.assert_allclose(part, expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("layout", ["separate", "buckets"])
def test_bindings_are_complete(layout):
    """Each carried input has its output and, save parameters without a value, a first value."""
    shapes = {f"p{index}": (2,) for index in range(3)}
    model = graphopt.update_graph(rmsprop(shapes, momentum=0.9), layout=layout).model
    (info,) = model.training_info
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    carried = {name for name in inputs if not name.endswith("_grad")}
    assert {entry.key for entry in info.update_binding} == carried
    assert {entry.value for entry in info.update_binding} == outputs - {"updated"}
    parameters = {"separate": set(shapes), "buckets": {"bucket0"}}[layout]
    assert {entry.key for entry in info.initialization_binding} == carried - parameters


def test_size_grows_linearly():
    def nodes(count):
        shapes = {f"p{index}": (2, 2) for index in range(count)}
        graph = graphopt.update_graph(rmsprop(shapes, momentum=0.9))
        return len(inliner.inline_local_functions(graph.model).graph.node)

    few, more, most = nodes(100), nodes(200), nodes(400)
    assert most - more < 2.2 * (more - few)
    assert most < 400 * 8


@pytest.mark.parametrize("wrong", [None, "opt", 3, [], graphopt.RMSProp])
def test_wrong_optimizer(wrong):
    with pytest.raises(TypeError, match="optimizer"):
        graphopt.update_graph(wrong)


def test_constants_are_called_what_they_are():
    """Also where a weight decay is the same number as the learning rate."""
    opt = rmsprop({"w": (3,)}, learning_rate=0.5, weight_decay=0.5)
    graph = graphopt.update_graph(opt, group_mask=True).model.graph
    (node,) = (node for node in graph.node if node.domain == "graphopt")
    assert list(node.input)[3:5] == ["learning_rate", "weight_decay"]
    names = [tensor.name for tensor in graph.initializer]
    assert not [name for name in names if re.fullmatch(r"(learning_rate|weight_decay)_\d+", name)]
