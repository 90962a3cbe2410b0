"""Looking into checkpoints, against NumPy on the state itself; and checkpoints that are damaged."""

import dataclasses
import itertools
import json
import math
import struct
import tracemalloc
from io import BytesIO, StringIO, TextIOWrapper

import numpy as np
import pytest
from onnx import TensorProto, helper
from rich.console import Console
from safetensors.numpy import save_file

import graphopt
from graphopt import checkpoint as session_checkpoint
from graphopt.inspection import checkpoints
from graphopt.inspection.checkpoints import (
    BINS,
    diff_checkpoints,
    inspect_checkpoint,
    is_checkpoint,
)
from graphopt.inspection.facts import (
    GroupFacts,
    Inspection,
    MemoryFacts,
    ModelFacts,
    OptimizerFacts,
    ParameterFacts,
    StateFacts,
)
from graphopt.inspection.show.checkpoint_tables import Sparkline, checkpoint_tables
from graphopt.inspection.show.difference_tables import checkpoint_difference_tables
from graphopt.on_device import checkpoint as on_device
from graphopt.on_device.checkpoint import OnDeviceCheckpoint, OptimizerState
from graphopt.requirement import Requirements
from graphopt.schedules import CosineDecayLR
from models.zoo import ZOO

pytestmark = pytest.mark.any_runtime

MLP = ZOO["mlp"]
EPSILON = 1e-4
TINY = 5e-324


# Graphs and checkpoints.


def two_groups(parameters, rates=(0.02, 0.005), **settings):
    half = len(parameters) // 2
    groups = [
        {"params": parameters[:half], "lr": rates[0]},
        {"params": parameters[half:], "lr": rates[1]},
    ]
    return graphopt.RMSProp(groups, learning_rate=0.1, epsilon=EPSILON, **settings)


def facts(optimizer, curves=None, state=(), **changes):
    """The inspection of a graph, as far as a checkpoint can be held against it.

    Args:
        optimizer: The optimizer of the graph.
        curves: Of each group; its learning rate is a schedule then.
        state: What is carried beside parameters and their states.
        changes: Hyperparameters that differ from those of the optimizer.
    """
    parameters = tuple(
        ParameterFacts(
            name=parameter.name,
            shape=tuple(parameter.shape),
            dtype=parameter.dtype,
            op_type=None,
            group=rule.group,
            learning_rate={"schedule": "Some"} if curves else rule.learning_rate.constant,
            weight_decay=0.0,
            grad_centralization=False,
            states=optimizer.states,
            bytes=0,
            state_bytes=0,
        )
        for parameter, rule in zip(optimizer.params, optimizer.rules, strict=True)
    )
    groups = tuple(
        GroupFacts(
            parameters=tuple(parameter.name for parameter in group.params),
            learning_rate={"schedule": "Some"} if curves else group.learning_rate.constant,
            weight_decay=0.0,
            grad_centralization=False,
            curve=curves[index] if curves else (),
        )
        for index, group in enumerate(optimizer.groups)
    )
    hyperparameters = {
        "epsilon": optimizer.epsilon,
        "epsilon_inside_root": optimizer.epsilon_inside_root,
        "centered": optimizer.centered,
    }
    return Inspection(
        model=ModelFacts("train.onnx", "training graph", "graphopt", 1, 1),
        optimizer=OptimizerFacts("RMSProp", "metadata", **(hyperparameters | changes)),
        groups=groups,
        parameters=parameters,
        frozen=(),
        state=tuple(state),
        layout=None,
        buckets=(),
        inputs=(),
        outputs=(),
        stages=(),
        layers=(),
        memory=MemoryFacts(0, 0, 0, 0, None, {}),
        requirements=Requirements(8, {}, {}, []),
        targets=(),
        hazards=(),
    )


@dataclasses.dataclass
class Trained:
    optimizer: graphopt.RMSProp
    states: dict  # by step
    paths: dict


def train(folder, steps=(5, 10), model=None, **settings):
    model = MLP.build(batch=8) if model is None else model
    optimizer = two_groups(graphopt.parameters(model), **settings)
    session = graphopt.Session(graphopt.training_graph(model, MLP.loss, optimizer))
    rng = np.random.default_rng(0)
    found = Trained(optimizer, {}, {})
    for step in range(1, max(steps) + 1):
        session.step(MLP.feeds(rng, 8))
        if step in steps:
            found.states[step] = session.state
            found.paths[step] = folder / f"{step}.safetensors"
            session.save_checkpoint(found.paths[step])
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"), centered=True, momentum=0.9)


def state_of(w, /, *, step=3, centered=True, name="w", **changes):
    """The state of a network with one parameter."""
    w = np.asarray(w)
    state = {
        name: w,
        f"mean_square.{name}": np.full(w.shape, 0.5, np.float32),
        f"moment.{name}": np.full(w.shape, 0.25, np.float32),
        "global_step": np.array(step),
    }
    if centered:
        state[f"mean_grad.{name}"] = np.full(w.shape, 0.125, np.float32)
    return state | {key: value for key, value in changes.items() if value is not None}


def saved(folder, state):
    path = folder / "state.safetensors"
    session_checkpoint.save(path, state)
    return path


def without(state, *names):
    return {name: array for name, array in state.items() if name not in names}


def as_json(found):
    """Through strict JSON, which knows neither NaN nor infinity."""
    return json.loads(json.dumps(found.to_dict(), allow_nan=False))


def printed(renderables, width=200):
    buffer = StringIO()
    console = Console(file=buffer, width=width)
    for renderable in renderables:
        console.print(renderable)
    return buffer.getvalue()


def near(expected, relative):
    return pytest.approx(expected, rel=relative, abs=0)


def problems(found):
    return {(problem.kind, problem.where[0]) for problem in found.problems}


# The oracle.


def check_statistics(found, array, scale):
    """Against NumPy on the whole array in float64."""
    array = np.asarray(array)
    with np.errstate(all="ignore"):
        wide = array.astype(np.float64).ravel()
    finite = wide[np.isfinite(wide)]
    assert found.zeros == np.count_nonzero(wide == 0)
    assert found.nan == np.count_nonzero(np.isnan(wide))
    assert found.inf == np.count_nonzero(np.isinf(wide))
    if not finite.size:
        assert (found.minimum, found.maximum, found.mean, found.rms) == (None,) * 4
        assert found.histogram is None
        return
    assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    tolerance = {"rel": 1e-12, "abs": 1e-15 * np.abs(finite).max()}
    assert found.mean == pytest.approx(finite.mean(), **tolerance)
    assert found.rms == near(np.sqrt(np.mean(finite**2)), 1e-12)
    values = finite if scale == "linear" else np.log10(np.abs(finite[finite != 0]))
    if not values.size:
        assert found.histogram is None
        return
    assert found.histogram.scale == scale
    assert (found.histogram.low, found.histogram.high) == (values.min(), values.max())
    counts, _ = np.histogram(values, BINS, (values.min(), values.max()))
    assert found.histogram.counts == tuple(counts)


def check_step_sizes(found, state, name, *, rate, epsilon, inside=True):
    """Against the formula, in float32 as the graph computes it."""
    s = state[f"mean_square.{name}"].ravel()
    a = state.get(f"mean_grad.{name}")
    epsilon = np.float32(epsilon)
    with np.errstate(invalid="ignore"):
        variance = s if a is None else s - a.ravel() * a.ravel()
        root = np.sqrt(variance + epsilon) if inside else np.sqrt(variance) + epsilon
        if a is not None and not inside:
            root[variance <= 0] = np.nan
    assert root.dtype == np.float32
    steps = rate / root[root > 0].astype(np.float64)
    assert found.minimum == near(steps.min(), 1e-12)
    assert found.median == near(np.median(steps), 1e-12)
    assert found.maximum == near(steps.max(), 1e-12)
    held = np.mean(~(root > 0))
    assert found.guarded == (None if a is None else pytest.approx(held, abs=1e-15))


def check_against_state(found, state, names):
    assert [parameter.value.name for parameter in found.parameters] == names
    for parameter in found.parameters:
        name = parameter.value.name
        kinds = [k for k in ("mean_square", "mean_grad", "moment") if f"{k}.{name}" in state]
        assert list(parameter.states) == kinds
        tensors = {"": parameter.value} | {f"{kind}.": v for kind, v in parameter.states.items()}
        for prefix, tensor in tensors.items():
            array = state[prefix + name]
            assert tensor.name == prefix + name
            assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype.name)
            assert tensor.bytes == array.nbytes
            check_statistics(tensor.statistics, array, "log10" if prefix else "linear")


# Checkpoints of training.


@pytest.mark.quick
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_trained_network(tmp_path, centered, momentum, inside):
    run = train(tmp_path, (4,), centered=centered, momentum=momentum, epsilon_inside_root=inside)
    state, names = run.states[4], [parameter.name for parameter in run.optimizer.params]
    found = inspect_checkpoint(run.paths[4], facts(run.optimizer))
    assert (found.kind, found.step, found.learning_rate) == ("session checkpoint", 4, None)
    assert found.name == str(run.paths[4])
    assert found.bytes == run.paths[4].stat().st_size
    assert found.others == found.problems == ()
    check_against_state(found, state, names)
    half = len(names) // 2
    for index, parameter in enumerate(found.parameters):
        rate, sizes = (0.02 if index < half else 0.005), parameter.step_sizes
        assert sizes.learning_rate == rate
        assert (sizes.epsilon, sizes.epsilon_inside_root) == (EPSILON, inside)
        assert not sizes.per_unit
        assert not sizes.assumed
        check_step_sizes(sizes, state, names[index], rate=rate, epsilon=EPSILON, inside=inside)


def test_totals(trained):
    state = without(trained.states[10], "global_step")
    found = inspect_checkpoint(trained.paths[10]).totals
    parameters = [array for name, array in state.items() if f"moment.{name}" in state]
    assert found == checkpoints.CheckpointTotals(
        tensors=len(state),
        elements=sum(array.size for array in state.values()),
        bytes=sum(array.nbytes for array in state.values()),
        parameters=len(parameters),
        parameter_elements=sum(array.size for array in parameters),
        parameter_bytes=sum(array.nbytes for array in parameters),
        state_bytes=3 * sum(array.nbytes for array in parameters),
        zeros=sum(np.count_nonzero(array == 0) for array in state.values()),
        nan=0,
        inf=0,
    )
    assert found.tensors == 4 * found.parameters > 8


def test_without_a_graph(trained):
    """The sizes of the steps are per unit of learning rate, and say so."""
    state = trained.states[10]
    found = inspect_checkpoint(trained.paths[10])
    assert found.problems == ()
    check_against_state(found, state, sorted(p.name for p in trained.optimizer.params))
    for parameter in found.parameters:
        sizes = parameter.step_sizes
        assert (sizes.learning_rate, sizes.per_unit, sizes.assumed) == (None, True, True)
        assert (sizes.epsilon, sizes.epsilon_inside_root) == (1e-10, True)
        check_step_sizes(sizes, state, parameter.value.name, rate=1.0, epsilon=1e-10)


@pytest.mark.parametrize(
    ("curves", "rate"),
    [
        ([((0, 1.0), (10, 0.25)), ((10, 0.25),)], 0.25),
        ([((0, 1.0), (9, 0.25), (11, 0.5)), ()], None),
        ([((10, math.nan),), ((10, math.inf),)], None),
    ],
    ids=["known at the step", "not at the step", "not finite"],
)
def test_the_learning_rate_of_a_schedule(trained, curves, rate):
    graph = facts(trained.optimizer, curves)
    for parameter in inspect_checkpoint(trained.paths[10], graph).parameters:
        sizes = parameter.step_sizes
        assert sizes.learning_rate == rate
        assert sizes.per_unit == (rate is None)
        assert not sizes.assumed
        expected = 1.0 if rate is None else rate
        name = parameter.value.name
        check_step_sizes(sizes, trained.states[10], name, rate=expected, epsilon=EPSILON)


def test_the_rate_of_any_step_is_computed_from_the_nodes(tmp_path):
    """Also where the points of the curve are far apart; of a list that has ended there is none."""
    schedules = [CosineDecayLR(0.0, 0.1, 100_000), [0.25, 0.5, 0.125]]
    for schedule in schedules:
        optimizer = graphopt.RMSProp([graphopt.Parameter("w", (1,))], learning_rate=schedule)
        graph = graphopt.update_graph(optimizer)
        session = graphopt.Session(graph, parameters={"w": np.zeros(1, np.float32)})
        found = graphopt.inspect(graph)
        for step in range(4):
            session.save_checkpoint(tmp_path / "state")
            (parameter,) = inspect_checkpoint(tmp_path / "state", found).parameters
            listed = isinstance(schedule, list)
            if listed and step == len(schedule):
                assert parameter.step_sizes.per_unit
                break
            rate = schedule[step] if listed else schedule.value(step)
            assert parameter.step_sizes.learning_rate == pytest.approx(rate, rel=1e-7)
            session.step({"w_grad": np.ones(1, np.float32)})


@pytest.mark.parametrize("inside", [True, False])
def test_a_warm_up_from_zero_is_no_fault(inside, tmp_path):
    """The moment is zero after a step with a rate of 0, though gradients have come; one has not."""
    rates = [0.0, 0.0, 0.1]
    names = ("w", "b", "left")
    optimizer = graphopt.RMSProp(
        [graphopt.Parameter(n, s) for n, s in zip(names, [(3,), (1,), (2,)], strict=True)],
        learning_rate=rates,
        momentum=0.9,
        learning_rate_inside_moment=inside,
    )
    graph = graphopt.update_graph(optimizer)
    zeros = {p.name: np.zeros(p.shape, np.float32) for p in optimizer.params}
    session = graphopt.Session(graph, parameters=zeros)
    for step in range(1, 4):
        session.step({f"{n}_grad": zeros[n] + (n != "left") for n in names})
        session.save_checkpoint(tmp_path / "state")
        for about in (None, graphopt.inspect(graph)):
            found = inspect_checkpoint(tmp_path / "state", about)
            assert {(p.kind, *p.where) for p in found.problems} == {
                ("zero-state", "moment.left")
            }, step


def test_the_curve_is_read_at_the_step_that_comes_next(tmp_path):
    """The learning rate at the checkpoint's step is the one that the next step takes."""
    schedule = CosineDecayLR(0.01, 0.1, 20)
    optimizer = graphopt.RMSProp(
        [graphopt.Parameter("w", (1,))], learning_rate=schedule, epsilon=EPSILON
    )
    session = graphopt.Session(
        graphopt.update_graph(optimizer), parameters={"w": np.zeros(1, np.float32)}
    )
    for _ in range(7):
        session.step({"w_grad": np.ones(1, np.float32)})
    session.save_checkpoint(tmp_path / "7")
    curve = tuple((step, schedule.value(step)) for step in range(20))
    found = inspect_checkpoint(tmp_path / "7", facts(optimizer, [curve]))
    before = session.state["w"]
    session.step({"w_grad": np.zeros(1, np.float32)})
    assert session.state["w"] == before
    session.load_checkpoint(tmp_path / "7")
    # A gradient whose square is the mean square leaves that as it is.
    gradient = np.sqrt(session.state["mean_square.w"])
    session.step({"w_grad": gradient})
    moved = abs((session.state["w"] - before) / gradient).item()
    assert moved == pytest.approx(found.parameters[0].step_sizes.median, rel=1e-4)


@pytest.mark.parametrize(
    "changes", [{"epsilon": None}, {"epsilon": math.nan}], ids=["unknown", "NaN"]
)
def test_an_epsilon_that_the_graph_does_not_say(trained, changes):
    found = inspect_checkpoint(trained.paths[5], facts(trained.optimizer, **changes))
    sizes = found.parameters[0].step_sizes
    assert (sizes.epsilon, sizes.assumed, sizes.learning_rate) == (1e-10, True, 0.02)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "bodies"])
def test_elements_at_the_guard_are_those_that_do_not_move(tmp_path, kernels, inside):
    """Gradients that never change: the variance is rounding, above zero or below."""
    optimizer = graphopt.RMSProp(
        [graphopt.Parameter("w", (1000,))],
        learning_rate=1.0,
        decay=0.5,
        centered=True,
        initial_mean_square=0.0,
        epsilon_inside_root=inside,
    )
    graph = graphopt.update_graph(optimizer)
    start = {"w": np.zeros(1000, np.float32)}
    session = graphopt.Session(graph, parameters=start, kernels=kernels)
    gradient = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 100
    for _ in range(40):
        before = session.state["w"]
        session.step({"w_grad": gradient})
    session.save_checkpoint(tmp_path / "state")
    resting = np.mean(session.state["w"] == before)
    assert 0.05 < resting < 0.95
    found = inspect_checkpoint(tmp_path / "state", facts(optimizer))
    assert found.parameters[0].step_sizes.guarded == pytest.approx(resting, abs=1e-15)


def test_running_statistics_are_others(tmp_path):
    entry = ZOO["resnet"]
    model = entry.build(batch=2)
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    session = graphopt.Session(graphopt.training_graph(model, entry.loss, optimizer))
    session.save_checkpoint(tmp_path / "state")
    state = session.state
    expected = {
        name: StateFacts(name, None, "statistic", array.shape, "float32", None, True, "values")
        for name, array in state.items()
        if "mean_square" not in name and f"mean_square.{name}" not in state and array.ndim
    }
    assert expected
    found = inspect_checkpoint(tmp_path / "state", facts(optimizer, state=expected.values()))
    assert found.problems == ()
    assert {tensor.name for tensor in found.others} == expected.keys()
    for tensor in found.others:
        check_statistics(tensor.statistics, state[tensor.name], "linear")
    assert inspect_checkpoint(tmp_path / "state").others == found.others


# Values at the ends.


def float16_signalling_nan():
    return np.array([0x7D00, 0x3C00], np.uint16).view(np.float16)


VALUES = {
    "scalar": np.float32(2.5).reshape(()),
    "zero scalar": np.float32(0).reshape(()),
    "empty": np.zeros((0, 3), np.float32),
    "one": np.ones(1, np.float32),
    "constant": np.full(7, -3.5, np.float32),
    "zeros": np.zeros((2, 3), np.float32),
    "minus zero": np.array([-0.0, 1.0], np.float32),
    "NaN throughout": np.full(3, np.nan, np.float32),
    "infinite throughout": np.array([np.inf, -np.inf], np.float32),
    "everything": np.array([np.nan, np.inf, -np.inf, 0.0, -2.0, 3.0, 1e-45, 3e38], np.float32),
    "float32 denormals": np.array([1, 5, 9, 0], np.uint32).view(np.float32),
    "float32 extremes": np.array([-3.4e38, 3.4e38, 1e-45], np.float32),
    "float16": np.linspace(-6e4, 6e4, 50).astype(np.float16),
    "float16 denormals": np.array([1, 2, 0x8003], np.uint16).view(np.float16),
    "float16 signalling NaN": float16_signalling_nan(),
    "float64": np.random.default_rng(0).normal(size=300),
    "int8": np.array([-128, 0, 127], np.int8),
    "uint64": np.array([0, 2**40], np.uint64),
    "bool": np.array([True, False, True]),
    "pieces": np.random.default_rng(1).normal(size=3 * 2**16 + 17).astype(np.float32),
    "neighbours": np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], np.float32),
}


@pytest.mark.quick
@pytest.mark.parametrize("array", VALUES.values(), ids=VALUES)
def test_statistics(tmp_path, array):
    states = np.asarray(array, np.float32) if array.dtype != np.float32 else array
    with np.errstate(all="ignore"):
        path = saved(tmp_path, state_of(array, **{"moment.w": states}))
    found = inspect_checkpoint(path)
    parameter = found.parameters[0]
    check_statistics(parameter.value.statistics, array, "linear")
    check_statistics(parameter.states["moment"].statistics, states, "log10")
    as_json(found)
    as_json(diff_checkpoints(path, path))
    assert "w" in printed(checkpoint_tables("state", found))


FLOAT64_ENDS = {
    "the largest": ([1.7e308, 1.7e308], 1.7e308, 1.7e308),
    "both ends": ([-1.7e308, 1.7e308], 0.0, 1.7e308),
    "the smallest": ([TINY, TINY], TINY, TINY),
    "small": ([3e-200, 4e-200], 3.5e-200, math.sqrt(12.5) * 1e-200),
    "a range of 600 decades": ([1e-300, 1e300], 5e299, 1e300 / math.sqrt(2)),
}


@pytest.mark.parametrize(("values", "mean", "rms"), FLOAT64_ENDS.values(), ids=FLOAT64_ENDS)
def test_squares_that_leave_float64(tmp_path, values, mean, rms):
    found = inspect_checkpoint(saved(tmp_path, state_of(np.array(values)))).parameters[0].value
    assert found.statistics.mean == near(mean, 1e-14)
    assert found.statistics.rms == near(rms, 1e-14)
    assert sum(found.statistics.histogram.counts) == 2


def test_no_mean_is_beyond_the_values(tmp_path):
    """Where all are equal, rounding could put it there."""
    values = np.random.default_rng(0).uniform(1, 2, 20)
    state = {"global_step": np.array(0)} | {str(v): np.full(7, v) for v in values}
    for tensor in inspect_checkpoint(saved(tmp_path, state)).others:
        found = tensor.statistics
        assert found.minimum == found.maximum == float(tensor.name)
        assert found.mean == found.minimum
        assert 0 <= found.maximum - found.rms < 1e-15


def test_complex_numbers_have_no_statistics(tmp_path):
    path = saved(tmp_path, state_of(np.array([1j, 2], np.complex64)))
    found = inspect_checkpoint(path)
    assert found.parameters[0].value.statistics is None
    assert "complex64" in printed(checkpoint_tables("state", found))
    difference = diff_checkpoints(path, path).tensors[0]
    assert (difference.equal, difference.largest, difference.left_out) == (True, None, 0)


def test_step_sizes_at_the_guard(tmp_path):
    """Radicands below zero, zero, NaN, infinite and above zero, by hand."""
    mean_square = np.array([0.0, 0.25, np.nan, np.inf, 1.0, 4.0, 0.0], np.float32)
    mean_grad = np.array([1.0, 0.5, 0.0, 0.0, 0.0, 0.0, np.nan], np.float32)
    state = state_of(
        np.zeros(7, np.float32), **{"mean_square.w": mean_square, "mean_grad.w": mean_grad}
    )
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (7,))], momentum=0.9, centered=True)
    path = saved(tmp_path, state)

    def sizes(**changes):
        found = inspect_checkpoint(path, facts(optimizer, **changes)).parameters[0].step_sizes
        return found.minimum, found.median, found.maximum, found.guarded

    # infinite, 1 and 2 are left, wherever epsilon is added
    assert sizes(epsilon=0.0) == near((0.0, 0.05, 0.1, 4 / 7), 1e-12)
    assert sizes(epsilon=0.5, epsilon_inside_root=False) == pytest.approx(
        (0.0, 0.1 / 2.5, 0.1 / 1.5, 4 / 7), rel=1e-12
    )
    uncentered = saved(tmp_path, without(state, "mean_grad.w"))
    assert inspect_checkpoint(uncentered).parameters[0].step_sizes.guarded is None


@pytest.mark.parametrize(
    "changes",
    [
        {"mean_square.w": np.zeros(0, np.float32), "mean_grad.w": np.zeros(0, np.float32)},
        {"mean_square.w": np.full(3, np.nan, np.float32)},
        {"mean_square.w": np.full(3, -1, np.float32)},
    ],
    ids=["empty", "NaN", "negative"],
)
def test_no_element_has_a_step(tmp_path, changes):
    found = inspect_checkpoint(saved(tmp_path, state_of(np.zeros(3, np.float32), **changes)))
    sizes = found.parameters[0].step_sizes
    assert (sizes.minimum, sizes.median, sizes.maximum) == (None, None, None)
    assert sizes.guarded == (0.0 if changes["mean_square.w"].size == 0 else 1.0)
    as_json(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean_square.w": None},
        {"mean_grad.w": np.zeros(4, np.float32)},
        {"mean_square.w": np.zeros(3, np.complex64)},
    ],
    ids=["no mean square", "another shape", "complex"],
)
def test_states_that_give_no_step_sizes(tmp_path, changes):
    state = state_of(np.zeros(3, np.float32)) | changes
    state = {name: array for name, array in state.items() if array is not None}
    assert inspect_checkpoint(saved(tmp_path, state)).parameters[0].step_sizes is None


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_step_sizes_of_other_dtypes(tmp_path, dtype):
    """They are computed in float64."""
    states = {f"{kind}.w": np.array([0.5, 1, 2], dtype) for kind in ("mean_square", "moment")}
    path = saved(tmp_path, state_of(np.zeros(3, dtype), centered=False, **states))
    sizes = inspect_checkpoint(path).parameters[0].step_sizes
    expected = 1 / np.sqrt(np.array([2, 1, 0.5]) + 1e-10)
    assert [sizes.minimum, sizes.median, sizes.maximum] == near(expected, 1e-14)


def test_bfloat16(tmp_path):
    content = struct.pack("<2f", 1.5, -2)
    (tmp_path / "file").write_bytes(header(entry("BF16", [2], 4), content[2:4] + content[6:]))
    (tensor,) = inspect_checkpoint(tmp_path / "file").others
    assert tensor.dtype == "bfloat16"
    assert (tensor.statistics.minimum, tensor.statistics.maximum) == (-2, 1.5)


# Problems.


W = np.arange(1, 13, dtype=np.float32).reshape(3, 4)


def bad(array, *values):
    array = np.array(array)
    array.flat[: len(values)] = values
    return array


FINDINGS = {
    "nothing": ({}, set()),
    "NaN in the parameter": ({"w": bad(W, np.nan)}, {("not-finite", "w")}),
    "infinite moment": ({"moment.w": bad(W, -np.inf)}, {("not-finite", "moment.w")}),
    "zero mean square": (
        {"mean_square.w": np.zeros_like(W)},
        {("zero-state", "mean_square.w")},
    ),
    "zero moment and mean gradient": (
        {"moment.w": np.zeros_like(W), "mean_grad.w": -np.zeros_like(W)},
        {("zero-state", "moment.w"), ("zero-state", "mean_grad.w")},
    ),
    "zeros but one": ({"moment.w": bad(np.zeros_like(W), 1)}, set()),
    "zero parameter": ({"w": np.zeros_like(W)}, set()),
    "negative mean square": (
        {"mean_square.w": bad(W, -1e-30)},
        {("negative-mean-square", "mean_square.w")},
    ),
    "zeros before the first step": (
        {"moment.w": np.zeros_like(W), "global_step": np.array(0)},
        set(),
    ),
    "state of another shape": (
        {"moment.w": W.T.copy()},
        {("other-shape-or-dtype", "moment.w")},
    ),
    "a state without its parameter": (
        {"moment.v": W},
        {("unexpected-tensor", "moment.v")},
    ),
    "a parameter that lacks states": (
        {"v": W, "mean_square.v": W},
        {("missing-tensor", "moment.v"), ("missing-tensor", "mean_grad.v")},
    ),
    "negative step": ({"global_step": np.array(-1)}, {("no-step", "global_step")}),
    "step of another dtype": ({"global_step": np.float32(3)}, {("no-step", "global_step")}),
    "step of another shape": ({"global_step": np.array([3])}, {("no-step", "global_step")}),
}


@pytest.mark.parametrize(("changes", "expected"), FINDINGS.values(), ids=FINDINGS)
def test_problems_of_the_values(tmp_path, changes, expected):
    found = inspect_checkpoint(saved(tmp_path, state_of(W, **changes)))
    assert problems(found) == expected
    assert len(found.problems) == len(expected)
    assert (found.step is None) == (("no-step", "global_step") in expected)
    text = printed(checkpoint_tables("state", found))
    for problem in found.problems:
        assert problem.why
        assert problem.fix
        assert f"{problem.level}, {problem.kind}: {problem.where[0]}: {problem.why}" in text


def test_a_checkpoint_without_a_step(tmp_path):
    found = inspect_checkpoint(saved(tmp_path, without(state_of(W), "global_step")))
    assert found.step is None
    assert problems(found) == {("no-step", "global_step")}


def test_what_is_not_finite_is_counted(tmp_path):
    state = state_of(bad(W, np.nan, np.inf, -np.inf))
    found = inspect_checkpoint(saved(tmp_path, state))
    assert found.problems[0].why == "of its 12 elements 1 NaN and 2 infinite"
    assert (found.totals.nan, found.totals.inf) == (1, 2)


MISFITS = {
    "nothing": ({}, set()),
    "a missing parameter": ({"w": None}, {("missing-tensor", "w")}),
    "a missing state": ({"moment.w": None}, {("missing-tensor", "moment.w")}),
    "another tensor": ({"v": W}, {("unexpected-tensor", "v")}),
    "another parameter": (
        {"v": W, "mean_square.v": W},
        {("unexpected-tensor", "v"), ("unexpected-tensor", "mean_square.v")},
    ),
    "another state": ({"mean_grad.w": W}, {("unexpected-tensor", "mean_grad.w")}),
    "another shape": (
        {"w": W.T.copy(), "moment.w": W.T.copy(), "mean_square.w": W.T.copy()},
        {("other-shape-or-dtype", name) for name in ("w", "moment.w", "mean_square.w")},
    ),
    "another dtype": ({"w": W.astype(np.float64)}, {("other-shape-or-dtype", "w")}),
    "a missing statistic": ({"running": None}, {("missing-tensor", "running")}),
    "a statistic of another shape": (
        {"running": np.zeros(6, np.float32)},
        {("other-shape-or-dtype", "running")},
    ),
}


@pytest.mark.parametrize(("changes", "expected"), MISFITS.values(), ids=MISFITS)
def test_misfits_with_the_graph(tmp_path, changes, expected):
    state = state_of(W, centered=False, running=np.zeros(5, np.float32)) | changes
    path = saved(tmp_path, {name: array for name, array in state.items() if array is not None})
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (3, 4))], momentum=0.9)
    statistic = StateFacts("running", None, "statistic", (5,), "float32", 20, True, "values")
    found = inspect_checkpoint(path, facts(optimizer, state=[statistic]))
    assert problems(found) == expected
    assert found.totals.tensors == len(state) - sum(array is None for array in changes.values()) - 1


def test_the_graph_says_what_a_misfit_should_be(tmp_path):
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (4, 3), dtype="float16")])
    state = without(state_of(W, centered=False), "moment.w")
    found = inspect_checkpoint(saved(tmp_path, state), facts(optimizer))
    why = "it is float32[3, 4] in the checkpoint, but float16[4, 3] in the graph"
    assert why in [problem.why for problem in found.problems]


def test_the_worst_problems_come_first(tmp_path):
    state = state_of(W, **{"mean_grad.w": np.zeros_like(W), "moment.v": W})
    found = inspect_checkpoint(saved(tmp_path, state)).problems
    assert [(p.level, p.kind) for p in found] == [
        ("error", "unexpected-tensor"),
        ("warning", "zero-state"),
    ]


def test_what_else_the_graph_carries_is_expected(tmp_path):
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (3, 4))], momentum=0.9)
    path = saved(tmp_path, state_of(W, centered=False, counter=np.array([2.0])))
    carried = StateFacts("counter", None, "other", (1,), "float64", 8, True, None)
    assert problems(inspect_checkpoint(path, facts(optimizer))) == {
        ("unexpected-tensor", "counter")
    }
    assert inspect_checkpoint(path, facts(optimizer, state=[carried])).problems == ()


def test_a_parameter_may_be_called_like_a_state(tmp_path):
    """Only what has states of its own is a parameter."""
    state = state_of(W) | without(state_of(W, name="moment.v"), "global_step")
    found = inspect_checkpoint(saved(tmp_path, state))
    assert {p.value.name for p in found.parameters} == {"w", "moment.v"}
    assert found.others == found.problems == ()


# Checkpoints of on-device training.


@pytest.mark.parametrize("native", [False, True], ids=["update inside", "optimizer model"])
def test_on_device_checkpoints_show_what_the_session_has(tmp_path, native):
    model = MLP.build(batch=8)
    settings = {"learning_rate": 0.02, "momentum": 0.9, "epsilon": EPSILON}
    optimizer = graphopt.RMSProp(graphopt.parameters(model), **settings)
    session = graphopt.Session(graphopt.training_graph(model, MLP.loss, optimizer))
    rng = np.random.default_rng(0)
    for _ in range(3):
        session.step(MLP.feeds(rng, 8))
    session.save_checkpoint(tmp_path / "state")
    files = graphopt.export_on_device(
        model,
        MLP.loss,
        optimizer,
        tmp_path / "device",
        optimizer_model=native,
        state=session.state,
    )
    graph = facts(optimizer)
    ours = inspect_checkpoint(tmp_path / "state", graph)
    device = inspect_checkpoint(files.checkpoint, graph)
    assert (device.kind, device.step) == ("on-device checkpoint", 3)
    assert device.learning_rate == (pytest.approx(0.02) if native else None)
    assert device.parameters == ours.parameters
    assert device.problems == ours.problems == ()
    check_against_state(device, session.state, [p.name for p in optimizer.params])
    difference = diff_checkpoints(tmp_path / "state", files.checkpoint)
    assert difference.totals.equal == difference.totals.tensors == ours.totals.tensors
    assert difference.kinds == ("session checkpoint", "on-device checkpoint")


def adamw(step=3, momentums=True, **changes):
    trainable = {"w": W, "b": W[0] - 3}
    state = OptimizerState(
        step,
        0.125,
        {
            name: {"momentum0": array - 5, "momentum1": array**2}
            for name, array in trainable.items()
            if momentums
        },
    )
    given = {"trainable": trainable, "frozen": {"scale": W[1]}, "optimizer": state}
    return OnDeviceCheckpoint(**(given | changes))


def test_the_checkpoint_of_another_optimizer(tmp_path):
    on_device.write(tmp_path / "checkpoint", adamw())
    found = inspect_checkpoint(tmp_path / "checkpoint")
    assert (found.kind, found.step, found.learning_rate) == ("ONNX Runtime checkpoint", 3, 0.125)
    assert [parameter.value.name for parameter in found.parameters] == ["w", "b"]
    for parameter, array in zip(found.parameters, adamw().trainable.values(), strict=True):
        name = parameter.value.name
        check_statistics(parameter.value.statistics, array, "linear")
        assert {kind: state.name for kind, state in parameter.states.items()} == {
            "momentum0": f"momentum0.{name}",
            "momentum1": f"momentum1.{name}",
        }
        check_statistics(parameter.states["momentum0"].statistics, array - 5, "log10")
        check_statistics(parameter.states["momentum1"].statistics, array**2, "log10")
        assert parameter.step_sizes is None
    assert [tensor.name for tensor in found.others] == ["scale"]
    assert found.problems == ()
    as_json(found)


def test_checkpoints_before_the_first_step_and_without_an_optimizer(tmp_path):
    path = tmp_path / "checkpoint"
    on_device.write(path, adamw(step=0, momentums=False))
    assert inspect_checkpoint(path).step == 0
    on_device.write(path, adamw(optimizer=None))
    found = inspect_checkpoint(path)
    assert (found.step, found.learning_rate, found.problems) == (None, None, ())
    assert all(not parameter.states for parameter in found.parameters)
    on_device.write(path, adamw(optimizer=OptimizerState(1, math.nan)))
    assert as_json(inspect_checkpoint(path))["learning_rate"] is None


def test_the_other_optimizer_and_its_graph(tmp_path):
    """Frozen parameters and the states of other optimizers are not unexpected."""
    on_device.write(tmp_path / "checkpoint", adamw())
    optimizer = graphopt.RMSProp([graphopt.Parameter("b", (4,)), graphopt.Parameter("v", (3, 4))])
    graph = facts(optimizer)
    stateless = [dataclasses.replace(p, states=()) for p in graph.parameters]
    graph = dataclasses.replace(
        graph, parameters=tuple(stateless), optimizer=OptimizerFacts("AdamW", "graph")
    )
    found = inspect_checkpoint(tmp_path / "checkpoint", graph)
    assert [parameter.value.name for parameter in found.parameters] == ["b", "w"]
    assert problems(found) == {("missing-tensor", "v"), ("unexpected-tensor", "w")}


REFUSED = {
    "nominal": (adamw(nominal=True), "nominal one, which has names, but no values"),
    "a name twice": (adamw(frozen={"momentum0.w": W}), "it has 'momentum0.w' twice"),
    "many kinds of states": (
        adamw(
            optimizer=OptimizerState(1, 0.1, {n: {f"{n}{i}": W for i in range(9)} for n in "wb"})
        ),
        "it has 18 kinds of states, expected momentum0 and momentum1",
    ),
    "no JSON": (adamw(properties={"graphopt": "{"}), "property 'graphopt' is damaged"),
    "a number": (adamw(properties={"graphopt": 1}), "property 'graphopt' is damaged"),
    "another version": (adamw(properties={"graphopt": '{"version": 7}'}), "has version 7"),
    "deep JSON": (adamw(properties={"graphopt": "[" * 100_000}), "is damaged"),
    "momentums as a list": (
        adamw(properties={"graphopt": '{"version": 1, "momentums": [1]}'}),
        "is damaged",
    ),
    "an initial mean square beyond float32": (
        adamw(properties={"graphopt": '{"version": 1, "initial_mean_square": 1e300}'}),
        "is damaged",
    ),
    "a parameter in place of the step": (
        adamw(
            trainable={"global_step": W}, optimizer=None, properties={"graphopt": '{"version": 1}'}
        ),
        "its global_step is a parameter",
    ),
    "a step of NaN": (
        adamw(
            properties={"graphopt": '{"version": 1}'},
            frozen={"global_step": np.array([np.nan, 1], np.float32)},
        ),
        "is damaged",
    ),
    "an infinite step": (
        adamw(
            properties={"graphopt": '{"version": 1}'},
            frozen={"global_step": np.array([np.inf, 1], np.float32)},
        ),
        "is damaged",
    ),
    "a scalar step": (
        adamw(
            properties={"graphopt": '{"version": 1}'},
            frozen={"global_step": np.float32(1).reshape(())},
        ),
        "is damaged",
    ),
    "a state of another size": (
        adamw(
            properties={"graphopt": '{"version": 1}'},
            frozen={"moment.w": W[0]},
        ),
        "is damaged",
    ),
}


@pytest.mark.parametrize(("checkpoint", "message"), REFUSED.values(), ids=REFUSED)
def test_on_device_checkpoints_that_are_refused(tmp_path, checkpoint, message):
    path = tmp_path / "refused-checkpoint"
    on_device.write(path, checkpoint)
    assert is_checkpoint(path)
    with pytest.raises(ValueError, match=message) as caught:
        inspect_checkpoint(path)
    assert path.name in str(caught.value)
    with pytest.raises(ValueError, match=message):
        diff_checkpoints(path, path)


# Two checkpoints.


def test_a_run_at_two_steps(trained):
    a, b = (without(trained.states[step], "global_step") for step in (5, 10))
    found = diff_checkpoints(trained.paths[5], trained.paths[10])
    assert found.steps == (5, 10)
    assert found.names == (str(trained.paths[5]), str(trained.paths[10]))
    assert {tensor.name for tensor in found.tensors} == a.keys()
    parameters = {parameter.name for parameter in trained.optimizer.params}
    for tensor in found.tensors:
        x, y = (state[tensor.name].astype(np.float64).ravel() for state in (a, b))
        assert tensor.shapes == (a[tensor.name].shape,) * 2
        assert tensor.dtypes == ("float32", "float32")
        assert tensor.comparable
        assert not tensor.equal
        assert tensor.left_out == 0
        assert tensor.largest == np.abs(y - x).max()
        moved, before = np.sqrt(np.mean((y - x) ** 2)), np.sqrt(np.mean(x**2))
        assert (tensor.rms, tensor.first_rms) == (near(moved, 1e-12), near(before, 1e-12))
        assert tensor.relative_rms == near(moved / before, 1e-12)
        if tensor.name in parameters:
            assert tensor.kind == "parameter"
            cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            assert tensor.cosine == near(cosine, 1e-12)
        else:
            assert tensor.name == f"{tensor.kind}.{tensor.name.split('.', 1)[1]}"
            assert tensor.cosine is None
    x, y = (np.concatenate([s[n].ravel() for n in parameters]).astype("d") for s in (a, b))
    totals = found.totals
    assert totals.relative_rms == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-9)
    assert (totals.tensors, totals.different, totals.equal) == (len(a), len(a), 0)
    assert (totals.mismatched, totals.only_first, totals.only_second) == (0, 0, 0)
    as_json(found)


def test_a_checkpoint_and_itself(trained):
    found = diff_checkpoints(trained.paths[5], trained.paths[5])
    assert all(tensor.equal and tensor.largest == 0 for tensor in found.tensors)
    assert found.totals.equal == found.totals.tensors
    assert found.totals.relative_rms == 0
    for tensor in found.tensors:
        cosine = pytest.approx(1, abs=1e-12) if tensor.kind == "parameter" else None
        assert tensor.cosine == cosine


def pair(a, b):
    return np.array(a, np.float32), np.array(b, np.float32)


# first, second: equal, largest, relative rms, cosine, left out
NAN = np.nan
DIFFERENCES = {
    "equal": (*pair([1, 2], [1, 2]), True, 0.0, 0.0, 1.0, 0),
    "opposite": (*pair([3, 4], [-3, -4]), False, 8.0, 2.0, -1.0, 0),
    "orthogonal": (*pair([3, 0], [0, 4]), False, 4.0, 5 / 3, 0.0, 0),
    "equal with NaN": (*pair([NAN, 2], [NAN, 2]), True, 0.0, 0.0, 1.0, 1),
    "NaN and infinity": (*pair([NAN, 2, 1], [1, 3, np.inf]), False, 1.0, 0.5, 1.0, 2),
    "nothing finite": (*pair([NAN, 2], [2, NAN]), False, None, None, None, 2),
    "zero and minus zero": (*pair([0.0], [-0.0]), False, 0.0, 0.0, None, 0),
    "from zero": (*pair([0, 0], [0, 1]), False, 1.0, None, None, 0),
    "to zero": (*pair([0, 2], [0, 0]), False, 2.0, 1.0, None, 0),
    "empty": (*pair([], []), True, None, None, None, 0),
    "scalar": (*pair(2, 3), False, 1.0, 0.5, 1.0, 0),
    "denormal": (*pair([2.0**-149], [2.0**-147]), False, 3 * 2.0**-149, 3.0, 1.0, 0),
    "float64 at its ends": (
        np.array([1.5e308, 0.0]),
        np.array([1.0e308, 0.0]),
        *(False, 0.5e308, 1 / 3, 1.0, 0),
    ),
    "float64 beyond its ends": (np.array([1.7e308]), np.array([-1.7e308]), False, None, 2, -1.0, 0),
    "float64 of two sizes": (
        np.array([1e-300, 1e-300]),
        np.array([1e200, 1e200]),
        *(False, 1e200, None, 1.0, 0),
    ),
    "float64 that shrinks": (
        np.array([1e200, 1e200]),
        np.array([1e-300, -1e-300]),
        *(False, 1e200, 1.0, 0.0, 0),
    ),
    "float64 at its other end": (np.array([TINY]), np.array([2 * TINY]), False, TINY, 1.0, 1.0, 0),
}


@pytest.mark.parametrize("case", DIFFERENCES.values(), ids=DIFFERENCES)
def test_differences(tmp_path, case):
    a, b, equal, largest, relative, cosine, left_out = case
    for name, array in {"a": a, "b": b}.items():
        session_checkpoint.save(tmp_path / name, state_of(array))
    found = diff_checkpoints(tmp_path / "a", tmp_path / "b")
    tensor = found.tensors[0]
    assert (tensor.name, tensor.kind, tensor.equal) == ("w", "parameter", equal)
    assert tensor.left_out == left_out
    for value, expected in ((tensor.largest, largest), (tensor.relative_rms, relative)):
        assert value == (expected and near(expected, 1e-12))
    # A processor that rounds a product and a sum once finds nearly 0 where they cancel.
    assert tensor.cosine == (
        cosine if cosine is None else pytest.approx(cosine, rel=1e-12, abs=1e-16)
    )
    assert found.totals.equal == 3 + equal
    as_json(found)
    assert "4 tensors" in printed(checkpoint_difference_tables("two", found))


def test_tensors_that_do_not_fit(tmp_path):
    first = state_of(W, only=W, type=W, form=W)
    second = state_of(W, other=W[0], type=W.astype("d") + 1, form=W.T.copy(), step=9)
    session_checkpoint.save(tmp_path / "a", first)
    session_checkpoint.save(tmp_path / "b", without(second, "moment.w"))
    found = diff_checkpoints(tmp_path / "a", tmp_path / "b")
    unfit = {t.name: (t.kind, t.shapes, t.dtypes) for t in found.tensors if not t.comparable}
    assert unfit == {
        "moment.w": ("moment", ((3, 4), None), ("float32", None)),
        "only": ("other", ((3, 4), None), ("float32", None)),
        "other": ("other", (None, (4,)), (None, "float32")),
        "type": ("other", ((3, 4), (3, 4)), ("float32", "float64")),
        "form": ("other", ((3, 4), (4, 3)), ("float32", "float32")),
    }
    by_name = {tensor.name: tensor for tensor in found.tensors}
    assert by_name["type"].largest == 1
    assert by_name["form"].largest is None
    assert found.tensors[-1].name == "other"
    totals = found.totals
    assert (totals.tensors, totals.equal, totals.different, totals.mismatched) == (8, 3, 0, 2)
    assert (totals.only_first, totals.only_second) == (2, 1)
    text = printed(checkpoint_difference_tables("two", found))
    assert "2 of another shape or dtype, 2 only in the first, 1 only in the second" in text
    assert "3x4 float64" in text


def test_the_same_bits_of_another_dtype_are_not_equal(tmp_path):
    session_checkpoint.save(tmp_path / "a", state_of(np.zeros(3, np.float32)))
    session_checkpoint.save(tmp_path / "b", state_of(np.zeros(3, np.int32)))
    tensor = diff_checkpoints(tmp_path / "a", tmp_path / "b").tensors[0]
    assert (tensor.name, tensor.equal, tensor.largest) == ("w", False, 0)


def test_nothing_in_common(tmp_path):
    session_checkpoint.save(tmp_path / "a", {"global_step": np.array(1)})
    found = diff_checkpoints(tmp_path / "a", tmp_path / "a")
    assert (found.tensors, found.totals.relative_rms) == ((), None)
    assert "steps 1 and 1, 0 tensors" in printed(checkpoint_difference_tables("two", found))


# Files.


def onnx_model():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "{", *([v] for v in values))
    return helper.make_model(graph).SerializeToString()


def written(write):
    def build(path):
        write(path)
        return path.read_bytes()

    return build


FILES = {
    "session checkpoint": (written(lambda p: session_checkpoint.save(p, state_of(W))), True),
    "on-device checkpoint": (written(lambda p: on_device.write(p, adamw())), True),
    "nominal checkpoint": (written(lambda p: on_device.write(p, adamw(nominal=True))), True),
    "any safetensors": (written(lambda p: save_file({"w": W}, p)), True),
    "cut off": (lambda p: written(lambda q: session_checkpoint.save(q, state_of(W)))(p)[:20], True),
    "ONNX model": (lambda _: onnx_model(), False),
    "a network": (lambda _: MLP.build().SerializeToString(), False),
    "ORT model": (lambda _: b"\x18\0\0\0ORTM" + bytes(40), False),
    "empty": (lambda _: b"", False),
    "one byte": (lambda _: b"{", False),
    "text": (lambda _: b'{"version": 1, "a": {}}', False),
    "zeros": (lambda _: bytes(100), False),
    "a header without an end": (lambda _: struct.pack("<Q", 2**40) + b"{", False),
}


@pytest.mark.parametrize(("build", "expected"), FILES.values(), ids=FILES)
def test_what_looks_like_a_checkpoint(tmp_path, build, expected):
    path = tmp_path / "file"
    path.write_bytes(build(path))
    assert is_checkpoint(path) is expected


@pytest.mark.parametrize("function", [is_checkpoint, inspect_checkpoint])
def test_a_missing_file_is_named(tmp_path, function):
    with pytest.raises(FileNotFoundError, match=r"no file '.*nowhere'"):
        function(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        function(tmp_path)


def header(tensors, data=b"", *, version="1", kind="graphopt"):
    """A safetensors file with this header."""
    text = json.dumps({"__metadata__": {"format": kind, "version": version}} | tensors).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype, shape, size):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


UNREADABLE = {
    "an ONNX model": (onnx_model(), "not a readable checkpoint"),
    "empty": (b"", "not a readable checkpoint"),
    "text": (b"a checkpoint\n" * 9, "not a readable checkpoint"),
    "a header alone": (struct.pack("<Q", 2) + b"{", "not a readable checkpoint"),
    "deep JSON": (struct.pack("<Q", 60_000) + b'{"a":' * 12_000, "not a readable checkpoint"),
    "another format": (header({}, kind="pt"), "but not a checkpoint of graphopt"),
    "another version": (header({}, version="3"), "has version '3', expected '2'"),
    "data cut off": (header(entry("F32", [4], 16), bytes(15)), "not a readable checkpoint"),
    "too much data": (header(entry("F32", [4], 16), bytes(17)), "not a readable checkpoint"),
    "an endless shape": (header(entry("F32", [2**62, 2**62], 0)), "not a readable checkpoint"),
    "an impossible shape": (header(entry("F32", [0, 2**63], 0)), "its tensor 'w'"),
    "65 dimensions": (header(entry("F32", [1] * 65, 4), bytes(4)), "its tensor 'w'"),
    "float8": (header(entry("F8_E4M3", [2], 2), bytes(2)), "its tensor 'w'"),
    "an on-device header alone": (b"\x08\0\0\0ODTC", "cut off or damaged"),
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_files_that_are_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "unreadable-file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        inspect_checkpoint(path)
    assert path.name in str(caught.value)


def damaged(content, rng):
    """The bytes with one kind of damage."""
    content = bytearray(content)
    match int(rng.integers(6)):
        case 0:
            return bytes(content[: rng.integers(len(content))])
        case 1:  # anywhere
            for at in rng.integers(len(content), size=rng.integers(1, 20)):
                content[at] = rng.integers(256)
        case 2:  # where the structure is
            for at in rng.integers(min(len(content), 600), size=rng.integers(1, 4)):
                content[at] = rng.integers(256)
        case 3:  # one bit
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        case 4:  # a piece of it in another place
            size = int(rng.integers(1, 64))
            at, to = rng.integers(len(content) - size, size=2)
            content[to : to + size] = content[at : at + size]
        case _:  # a number at its end
            at = int(rng.integers(len(content) - 8))
            ends = (0, 1, -1, 2**31 - 1, 2**62, -(2**63))
            content[at : at + 8] = struct.pack("<q", ends[rng.integers(len(ends))])
    return bytes(content)


def look(path, other):
    """Everything that can be done with a file; whether it could be read."""
    is_checkpoint(path)
    try:
        found = inspect_checkpoint(path)
    except (ValueError, FileNotFoundError):
        for function in (inspect_checkpoint, lambda p: diff_checkpoints(other, p)):
            with pytest.raises((ValueError, FileNotFoundError), match=path.name):
                function(path)
        return False
    as_json(found)
    difference = diff_checkpoints(other, path)
    as_json(difference)
    for renderable in (
        *checkpoint_tables("a", found),
        *checkpoint_difference_tables("b", difference),
    ):
        printed([renderable], width=80)
    return True


OURS = adamw(
    frozen={"global_step": np.array([3, 0], np.float32), "mean_square.w": W, "mean_square.b": W[0]},
    optimizer=None,
    properties={"graphopt": '{"version": 1, "momentums": {}, "initial_mean_square": 0.0}'},
)


def write_old(path, state):
    """As an older graphopt did, without checksums."""
    save_file(state, path, metadata={"format": "graphopt", "version": "1"})


def write_without_digest(path, checkpoint):
    """As ONNX Runtime does."""
    on_device.write(path, checkpoint)
    path.write_bytes(path.read_bytes().partition(b"graphopt.sha256.")[0])


SOUND = {
    "session": lambda path: write_old(path, state_of(W, running=W[0])),
    "on-device": lambda path: write_without_digest(path, OURS),
    "ONNX Runtime's": lambda path: write_without_digest(path, adamw()),
}


@pytest.mark.parametrize("write", SOUND.values(), ids=SOUND)
@pytest.mark.parametrize("seed", range(4))
def test_damaged_checkpoints(tmp_path, write, seed):
    """Whatever is wrong: a ValueError that names the file, or facts that can be written."""
    rng = np.random.default_rng(seed)
    sound, path = tmp_path / "sound", tmp_path / "damaged-file"
    write(sound)
    content = sound.read_bytes()
    assert look(sound, sound)
    read = 0
    for _ in range(60):
        path.write_bytes(damaged(content, rng))
        read += look(path, sound)
    assert 0 < read < 60


@pytest.mark.parametrize("seed", range(2))
def test_headers_with_other_words(tmp_path, seed):
    """Damage that leaves the JSON of the header as it is: names, types, shapes, offsets."""
    rng = np.random.default_rng(seed)
    sound, path = tmp_path / "sound", tmp_path / "damaged-file"
    write_old(sound, state_of(W))
    content = sound.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    words = json.loads(content[8 : 8 + size])
    names = [name for name in words if name != "__metadata__"]
    others = [*names, "moment.", "global_step", "\x1b[2J", "é", "mean_square.mean_square.w", ""]
    for _ in range(100):
        changed = json.loads(json.dumps(words))
        name = str(rng.choice(names))
        match int(rng.integers(4)):
            case 0:
                changed[str(rng.choice(others))] = changed.pop(name)
            case 1:
                kinds = ["F64", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E5M2", "F4", "I32"]
                changed[name]["dtype"] = str(rng.choice(kinds))
            case 2:
                shapes = ([], [12], [0], [24, 0.5], [-1], [1] * 70 + [12], [6, 2], [2**64], [48])
                changed[name]["shape"] = shapes[rng.integers(len(shapes))]
            case _:
                changed[name]["data_offsets"] = rng.integers(0, 200, size=2).tolist()
        text = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
        look(path, sound)


def test_memory_is_needed_for_one_parameter(tmp_path):
    """Not for the file, which has ten of that size with two states each."""
    size = 2**19
    array = np.random.default_rng(0).normal(size=size).astype(np.float32)
    state = {"global_step": np.array(3)}
    for index in range(10):
        name = f"w{index}"
        state |= without(state_of(array, name=name, centered=False), "global_step")
    path = saved(tmp_path, state)
    del state
    for look_at in (inspect_checkpoint, lambda p: diff_checkpoints(p, p)):
        tracemalloc.start()
        try:
            look_at(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # pieces of 2**16 elements in float64 are another 4 MB
        assert peak < 6 * array.nbytes + 4 * 2**20 < path.stat().st_size / 3


# Tables.


@pytest.mark.parametrize(
    ("counts", "width", "expected"),
    [
        ([0, 1, 2, 4, 8, 16], 24, " ▁▁▂▄█"),
        ([1000, 1, 0, 500], 24, "█▁ ▄"),
        ([0, 0, 0], 24, "   "),
        ([1, 1, 0, 0, 2, 2], 3, "▄ █"),
        ([1, 1, 1, 0, 0, 0], 2, "█ "),
        ([1, 1, 1, 0, 0, 0], 1, "█ "),
        ([], 24, ""),
    ],
)
def test_sparklines(counts, width, expected):
    assert Sparkline(tuple(counts)).line(width) == expected


def test_terminals_without_unicode(tmp_path):
    file = TextIOWrapper(BytesIO(), encoding="ascii")
    console = Console(file=file, width=120)
    state = state_of(np.arange(9, dtype=np.float32).repeat(np.arange(9)))
    for renderable in checkpoint_tables("run", inspect_checkpoint(saved(tmp_path, state))):
        console.print(renderable)
    file.flush()
    assert "@" in file.buffer.getvalue().decode()
    assert Sparkline(tuple(range(9))).line(ascii_only=True) == " .:-=+*#@"


def test_tables_of_a_checkpoint(trained):
    graph = facts(trained.optimizer)
    found = inspect_checkpoint(trained.paths[10], graph)
    text = printed(checkpoint_tables("my run", found, rows=3))
    assert "my run: session checkpoint, step 10, " in text
    names = [parameter.value.name for parameter in found.parameters]
    assert len(names) > 3
    for title, total in {"Parameters": len(names), "States": 3 * len(names)}.items():
        part = text[text.index(f"\n{title}") :]
        assert f"{total - 3:,} more" in part[: part.index("more") + 4]
    first = found.parameters[0]
    row = next(line for line in text.splitlines() if line.split()[:1] == [names[0]])
    assert f"{first.value.statistics.minimum:.3g}" in row
    assert Sparkline(first.value.statistics.histogram.counts).line() in row
    assert "x".join(map(str, first.value.shape)) in row
    sizes = text[text.index("Step sizes") :]
    assert f"{first.step_sizes.median:.3g}" in sizes
    assert "0.02" in sizes
    assert "assumed" not in text
    alone = printed(checkpoint_tables("my run", inspect_checkpoint(trained.paths[10])))
    assert "it is not known: steps for one of 1" in alone
    assert "1e-10 was assumed" in alone


@pytest.mark.parametrize("width", [1, 20, 40, 80, 300])
def test_tables_of_any_width(trained, width):
    found = inspect_checkpoint(trained.paths[10])
    difference = diff_checkpoints(trained.paths[5], trained.paths[10])
    for renderable in itertools.chain(
        checkpoint_tables("run", found), checkpoint_difference_tables("run", difference)
    ):
        lines = printed([renderable], width=width).splitlines()
        assert lines
        assert all(len(line) <= width for line in lines)


def test_tables_of_differences(trained):
    difference = diff_checkpoints(trained.paths[5], trained.paths[10])
    text = printed(checkpoint_difference_tables("run", difference, rows=2))
    assert "run: steps 5 and 10, " in text
    assert f"{difference.totals.relative_rms:.3%} of their length" in text
    assert f"{len(difference.tensors) - 2} more" in text
    assert f"{difference.tensors[0].cosine:.6f}" in text


def test_names_from_a_file_do_not_steer_the_terminal(tmp_path):
    name = "w\x1b[2J\n[bold]" + "x" * 100
    state = state_of(bad(W, np.nan), name=name)
    path = saved(tmp_path, state)
    found = inspect_checkpoint(path)
    assert found.parameters[0].value.name == name
    session_checkpoint.save(tmp_path / "b", state | {name: W[0], f"moment.{name}": W + 1})
    difference = diff_checkpoints(path, tmp_path / "b")
    for tables in (checkpoint_tables(name, found), checkpoint_difference_tables(name, difference)):
        text = printed(tables)
        assert "\x1b" not in text
        assert r"w\x1b[2J\n[bold]xx" in text


def test_columns_of_what_is_not_finite(tmp_path):
    """Only where there is something to count."""
    sound = printed(checkpoint_tables("a", inspect_checkpoint(saved(tmp_path, state_of(W)))))
    state = state_of(bad(W, NAN, NAN, np.inf, 0))
    odd = printed(checkpoint_tables("a", inspect_checkpoint(saved(tmp_path, state))))
    for column in ("zeros", "NaN", "Inf"):
        assert column not in sound[sound.index("Parameters") :]
        assert column in odd[odd.index("Parameters") :]
