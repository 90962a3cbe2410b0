"""Averages of parameters: against their formula in float64, and PyTorch's AveragedModel."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import graphopt
from graphopt import DynamicLossScale, Parameter, ParameterAverage, RMSProp, Session, update_graph
from models.zoo import ZOO
from tests.helpers.environments import typical

PARAMETERS = [Parameter("a", (4, 3)), Parameter("b", (5,)), Parameter("c", ())]
RULES = {
    "plain": ParameterAverage(0.9),
    "none is kept": ParameterAverage(0.0),
    "warm-up": ParameterAverage(0.99, warm_up=True),
}


def start():
    rng = np.random.default_rng(0)
    return {p.name: np.array(rng.normal(size=p.shape), np.float32) for p in PARAMETERS}


def feeds(rng, *, bad=False):
    drawn = {f"{p.name}_grad": np.array(rng.normal(size=p.shape), np.float32) for p in PARAMETERS}
    if bad:
        drawn["b_grad"][2] = np.nan
    return drawn


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "bodies"])
@pytest.mark.parametrize("layout", ["chunks", "buckets", "separate", "foreach"])
@pytest.mark.parametrize("rule", typical(RULES, "warm-up"))
def test_formula(rule, layout, kernels):
    opt = RMSProp(PARAMETERS, 0.01, momentum=0.9, average=rule, loss_scale=DynamicLossScale(8.0))
    session = Session(update_graph(opt, layout=layout), start(), kernels=kernels)
    expected = {name: array.astype(np.float64) for name, array in start().items()}
    rng, updates = np.random.default_rng(1), 0
    for step in range(60):
        for name, array in session.state.items():
            if name.startswith("average."):
                np.testing.assert_allclose(array, expected[name[8:]], rtol=1e-5, atol=1e-6)
        if session.step(feeds(rng, bad=step % 7 == 3))["updated"]:
            decay = rule.decay_at(updates)
            state, updates = session.state, updates + 1
            for name, old in expected.items():
                expected[name] = decay * old + (1 - decay) * state[name].astype(np.float64)
    assert updates == session.state["global_step"] == 60 - 9


def test_the_average_of_a_group_waits_for_its_first_update():
    groups = [{"params": PARAMETERS[:1]}, {"params": PARAMETERS[1:]}]
    graph = update_graph(RMSProp(groups, 0.01, average=0.5), group_mask=True)
    session = Session(graph, start())
    rng = np.random.default_rng(0)
    session.step(feeds(rng) | {"group_mask": np.array([True, False])})
    np.testing.assert_array_equal(session.state["average.b"], start()["b"])
    session.step(feeds(rng))
    wanted = (start()["b"] + session.state["b"]) / 2
    np.testing.assert_allclose(session.state["average.b"], wanted, rtol=1e-6)


@pytest.mark.any_runtime
def test_that_of_pytorch():
    torch = pytest.importorskip("torch")
    swa = torch.optim.swa_utils
    module = torch.nn.Linear(3, 2)
    averaged = swa.AveragedModel(module, multi_avg_fn=swa.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.RMSprop(module.parameters(), 0.01, alpha=0.9, eps=1e-3)
    initial = {name: t.detach().numpy().copy() for name, t in module.named_parameters()}
    opt = RMSProp(
        [Parameter(name, array.shape) for name, array in initial.items()],
        0.01,
        epsilon=1e-3,
        epsilon_inside_root=False,
        initial_mean_square=0.0,
        average=0.9,
    )
    session = Session(update_graph(opt), initial)
    rng = np.random.default_rng(0)
    for _ in range(50):
        gradients = {
            name: rng.normal(size=a.shape).astype(np.float32) for name, a in initial.items()
        }
        for name, tensor in module.named_parameters():
            tensor.grad = torch.from_numpy(gradients[name].copy())
        optimizer.step()
        averaged.update_parameters(module)
        session.step({f"{name}_grad": array for name, array in gradients.items()})
    for name, tensor in averaged.module.named_parameters():
        got = session.state[f"average.{name}"]
        np.testing.assert_allclose(got, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


def trained(average, name="resnet"):
    model = ZOO[name].build()
    opt = RMSProp(graphopt.parameters(model), 1e-2, epsilon=1e-3, average=average)
    return graphopt.training_graph(model, ZOO[name].loss, opt)


@pytest.mark.parametrize("statistics", [False, True])
def test_export(statistics, tmp_path):
    """The exported model computes with the averages."""
    graph = trained(ParameterAverage(0.9, statistics=statistics))
    session = Session(graph)
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch = ZOO["resnet"].feeds(rng, 4)
        session.step(batch)
    state = session.state
    averages = {n[8:]: a for n, a in state.items() if n.startswith("average.")}
    moved = {n for n in state if "mean" in n.split(".")[-1] and f"average.{n}" in state}
    assert bool(moved) == statistics
    session.export(tmp_path / "average.onnx", average=True)
    session.export(tmp_path / "last.onnx")
    made = {
        name: {
            t.name: onnx.numpy_helper.to_array(t)
            for t in onnx.load(tmp_path / name).graph.initializer
        }
        for name in ("average.onnx", "last.onnx")
    }
    for name, array in made["average.onnx"].items():
        np.testing.assert_array_equal(array, averages.get(name, state.get(name, array)))
    for name, array in made["last.onnx"].items():
        np.testing.assert_array_equal(array, state.get(name, array))
    run = onnxruntime.InferenceSession(
        tmp_path / "average.onnx", providers=["CPUExecutionProvider"]
    )
    assert np.isfinite(run.run(None, {"x": batch["x"]})[0]).all()


def test_without_an_average_there_is_none_to_export(tmp_path):
    session = Session(trained(None, "mlp"))
    with pytest.raises(ValueError, match="carries none; build the optimizer with average="):
        session.export(tmp_path / "a.onnx", average=True)
    assert not list(tmp_path.iterdir())


def test_a_program_without_graphopt_starts_it_at_the_parameter(tmp_path):
    """By the initialization that stands in the file."""
    path = tmp_path / "train.onnx"
    trained(0.9, "mlp").save(path)
    info = onnx.load(path).training_info[0]
    outputs = [value.name for value in info.initialization.output]
    model = onnx.helper.make_model(
        info.initialization, opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    values = dict(zip(outputs, ReferenceEvaluator(model).run(None, {}), strict=True))
    read = graphopt.load(path)
    session = Session(read)
    for value in read.carried:
        if value.input.startswith("average."):
            flat = np.concatenate([session.state[view.name].ravel() for view in value.views])
            assert values[value.input].shape == value.shape
            np.testing.assert_array_equal(values[value.input].ravel(), flat)
            for view in value.views:
                np.testing.assert_array_equal(
                    session.state[view.name], session.state[view.name[8:]]
                )


def test_parameters_that_are_given_are_where_it_starts():
    graph = trained(0.9, "mlp")
    name = next(view.name for value in graph.carried for view in value.views)
    given = np.full_like(Session(graph).state[name], 3)
    session = Session(graph, {name: given})
    np.testing.assert_array_equal(session.state[f"average.{name}"], given)


def test_a_checkpoint_has_it(tmp_path):
    opt = RMSProp(PARAMETERS, 0.01, average=ParameterAverage(0.9, warm_up=True))
    whole, half = (Session(update_graph(opt), start()) for _ in range(2))
    rng = np.random.default_rng(0)
    batches = [feeds(rng) for _ in range(6)]
    for batch in batches:
        whole.step(batch)
    for batch in batches[:3]:
        half.step(batch)
    half.save_checkpoint(tmp_path / "c.safetensors")
    resumed = Session(update_graph(opt), start())
    resumed.load_checkpoint(tmp_path / "c.safetensors")
    for batch in batches[3:]:
        resumed.step(batch)
    for name, array in whole.state.items():
        assert array.tobytes() == resumed.state[name].tobytes(), name


WRONG = {
    "decay": (1.0, ValueError, "decay: got 1.0"),
    "below": (-0.1, ValueError, "decay: got -0.1"),
    "text": ("0.9", TypeError, "average: got '0.9'"),
    "bool": (True, TypeError, "average: got True"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("value", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(value, kind, message):
    with pytest.raises(kind, match=message):
        RMSProp(PARAMETERS, average=value)


def test_an_average_that_a_checkpoint_lacks_starts_as_the_parameter(tmp_path):
    path = tmp_path / "c.safetensors"
    session = Session(update_graph(RMSProp(PARAMETERS, 0.1)), start())
    session.step(feeds(np.random.default_rng(0)))
    session.save_checkpoint(path)
    other = Session(update_graph(RMSProp(PARAMETERS, 0.1, average=0.9)), start())
    assert "average.a" in other.load_checkpoint(path, strict=False).kept
    for p in PARAMETERS:
        np.testing.assert_array_equal(other.state[f"average.{p.name}"], session.state[p.name])


def test_parameters_that_are_loaded_are_where_it_starts_anew():
    """Unless it is given too, and for those alone that are given."""
    graph = update_graph(RMSProp([Parameter("a", (3,)), Parameter("b", (2,))], average=0.5))
    start = {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)}
    session = Session(graph, start)
    for _ in range(3):
        session.step({"a_grad": np.ones(3, np.float32), "b_grad": np.ones(2, np.float32)})
    before = {name: value.copy() for name, value in session.state.items()}
    assert (before["average.b"] != before["b"]).all()
    session.load_state({"a": np.full(3, 7, np.float32)})
    assert session.state["average.a"].tolist() == [7, 7, 7]
    for name in ("b", "average.b", "mean_square.a", "global_step"):
        np.testing.assert_array_equal(session.state[name], before[name])
    both = {"a": np.full(3, 5, np.float32), "average.a": np.full(3, 6, np.float32)}
    session.load_state(both)
    assert session.state["average.a"].tolist() == [6, 6, 6]


def test_a_parameter_that_is_called_so_is_no_average(tmp_path):
    model = parameters_called_so()
    opt = RMSProp(graphopt.parameters(model), 1e-3)
    session = Session(graphopt.training_graph(model, "mse", opt))
    with pytest.raises(ValueError, match="carries none"):
        session.export(tmp_path / "a.onnx", average=True)


def parameters_called_so():
    helper = onnx.helper
    names = ("w", "average.w")
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Mul", ["x", "w"], ["z"]),
                helper.make_node("Mul", ["z", names[1]], ["y"]),
            ],
            "net",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 2])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 2])],
            [onnx.numpy_helper.from_array(np.full(2, 3, np.float32), name) for name in names],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
