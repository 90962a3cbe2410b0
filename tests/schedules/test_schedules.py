"""Learning rates: values of MindSpore, of the graph and of NumPy; bad arguments; composition."""

import json
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import graphopt
from graphopt import schedules
from graphopt.builder import GraphBuilder
from graphopt.local_functions import local_functions
from graphopt.schedules.parse import emit, learning_rate
from tests.helpers.folders import REFERENCE

TABLE = json.loads((REFERENCE / "schedules.json").read_text())
CLASSES = {name: row for name, row in TABLE.items() if "steps" in row}
LISTS = {name: row for name, row in TABLE.items() if "steps" not in row}


def from_graph(schedule, steps):
    """The values that ONNX Runtime computes from the global step."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17}, name="schedule")
    op = GraphBuilder(graph)
    value = emit(schedule, op, op.input("global_step", np.int64, []))
    op.output(value, "value")
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([])
    model = ir.to_proto(ir.Model(graph, ir_version=8))
    model.functions.extend(local_functions(graph))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values = [session.run(None, {"global_step": np.array(step)})[0] for step in steps]
    assert all(value.dtype == np.float32 for value in values)
    return np.array(values)


def make(name, args):
    return getattr(schedules, name.split()[0])(**args)


@pytest.mark.quick
@pytest.mark.parametrize("name", CLASSES)
def test_schedules(name):
    row = CLASSES[name]
    schedule = make(name, row["args"])
    graph = from_graph(schedule, row["steps"])
    np.testing.assert_allclose(graph, row["values"], rtol=1e-6)
    numpy = np.float32([schedule.value(step) for step in row["steps"]])
    np.testing.assert_array_max_ulp(graph, numpy, maxulp=1)


@pytest.mark.parametrize("name", LISTS)
def test_lists(name):
    row = LISTS[name]
    values = make(name, row["args"])
    assert isinstance(values, list)
    assert all(type(value) is float for value in values)
    np.testing.assert_allclose(values, row["values"], rtol=1e-12)
    graph = from_graph(learning_rate("learning_rate", values), range(len(values)))
    np.testing.assert_array_equal(graph, np.float32(values))


def test_the_whole_table_is_walked():
    assert len(CLASSES) == 10
    assert len(LISTS) == 11


LONG = {
    "exponential": schedules.ExponentialDecayLR(0.1, 0.99, 1000),
    "natural": schedules.NaturalExpDecayLR(0.1, 1e-5, 1000, is_stair=True),
    "inverse": schedules.InverseDecayLR(0.1, 0.5, 1000),
    "cosine": schedules.CosineDecayLR(1e-6, 0.1, 1_000_000),
    "cosine to zero": schedules.CosineDecayLR(0.0, 0.1, 1_000_000),
    "polynomial": schedules.PolynomialDecayLR(0.1, 1e-6, 1000, 2.0, update_decay_steps=True),
    "warm-up": schedules.WarmUpLR(0.1, 1_000_000),
    "milestones": schedules.MultiStepLR(0.1, 0.3, [1, 100, 1001, 20_000_001]),
    "warm-up, then cosine, then inverse": schedules.SequentialLR(
        [
            schedules.WarmUpLR(0.1, 100),
            schedules.CosineDecayLR(0.01, 0.1, 900),
            schedules.InverseDecayLR(0.01, 0.5, 1000),
        ],
        milestones=[100, 1000],
    ),
}


@pytest.mark.parametrize("schedule", LONG.values(), ids=LONG)
def test_graph_and_numpy_agree_far_out(schedule):
    """float32 could not tell step 20,000,001 from the one before it."""
    steps = [0, 1, 99, 100, 101, 999, 1000, 1001, 65_537, 999_999, 20_000_001]
    numpy = np.float32([schedule.value(step) for step in steps])
    np.testing.assert_array_max_ulp(from_graph(schedule, steps), numpy, maxulp=1)


RATE = np.array([0.3, 0.2, 0.1])
ACCEPTED = {
    "list": [0.3, 0.2, 0.1],
    "tuple": (0.3, 0.2, 0.1),
    "generator": (value for value in RATE),
    "range": range(3, 0, -1),
    "NumPy array": RATE,
    "NumPy integers": np.array([3, 2, 1]),
    "ONNX tensor": numpy_helper.from_array(RATE.astype(np.float32)),
    "onnx-ir tensor": ir.tensor(RATE),
}


@pytest.mark.parametrize("rate", ACCEPTED.values(), ids=ACCEPTED)
def test_a_value_for_each_step(rate):
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (2,))], learning_rate=rate)
    values = [optimizer.rules[0].learning_rate.value(step) for step in range(3)]
    expected = RATE * (10 if values[0] == 3 else 1)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    session = graphopt.Session(graphopt.update_graph(optimizer), {"w": np.zeros(2, "f")})
    feeds = {"w_grad": np.zeros(2, "f")}
    for _ in range(3):
        session.step(feeds)
    before = session.state
    with pytest.raises(RuntimeError, match="step 3: the learning rate has values for steps 0 to 2"):
        session.step(feeds)
    after = session.state
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_past_the_end_nothing_is_updated_in_any_runtime(monkeypatch):
    """The graph itself refuses, before it writes anything."""
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (2,))], [0.1, 0.2], momentum=0.9)
    session = graphopt.Session(graphopt.update_graph(optimizer), {"w": np.zeros(2, "f")})
    monkeypatch.setattr(session, "_check_steps", lambda: None)
    feeds = {"w_grad": np.ones(2, "f")}
    session.step(feeds)
    session.step(feeds)
    before = session.state
    with pytest.raises(RuntimeError, match="cannot be reshaped"):
        session.step(feeds)
    assert all(np.array_equal(value, session.state[name]) for name, value in before.items())


def test_a_checkpoint_knows_the_step(tmp_path):
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (2,))], [0.1, 0.2])
    session = graphopt.Session(graphopt.update_graph(optimizer), {"w": np.zeros(2, "f")})
    feeds = {"w_grad": np.ones(2, "f")}
    session.save_checkpoint(tmp_path / "start")
    session.step(feeds)
    session.step(feeds)
    session.save_checkpoint(tmp_path / "end")
    session.load_checkpoint(tmp_path / "start")
    session.step(feeds)
    session.load_checkpoint(tmp_path / "end")
    with pytest.raises(RuntimeError, match="step 2"):
        session.step(feeds)


@pytest.mark.parametrize("milestones", [[1], [3, 4, 9], (2, 11)])
def test_milestones_are_those_of_pytorch(milestones):
    schedule = schedules.MultiStepLR(0.3, 0.1, milestones)
    peer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(peer, list(milestones), gamma=0.1)
    expected = []
    for _ in range(12):
        expected += scheduler.get_last_lr()
        peer.step()
        scheduler.step()
    assert [schedule.value(step) for step in range(12)] == expected
    np.testing.assert_array_equal(from_graph(schedule, range(12)), np.float32(expected))
    assert (
        schedules.LearningRateSchedule.value(schedule, 5) == expected[5]
    )  # in NumPy, by its nodes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1, 0.1, [3]), TypeError, "learning_rate: got 1"),
        ((0.0, 0.1, [3]), ValueError, "learning_rate: got 0.0"),
        ((0.1, 0.0, [3]), ValueError, "decay_rate: got 0.0"),
        ((0.1, 0.1, []), ValueError, r"milestones: got \[\]"),
        ((0.1, 0.1, 3), TypeError, "milestones: got int"),
        ((0.1, 0.1, [3.0]), TypeError, "milestones: got 3.0"),
        ((0.1, 0.1, [0, 3]), ValueError, "milestones: got 0"),
        ((0.1, 0.1, [3, 3]), ValueError, "expected growing steps"),
    ],
)
def test_bad_milestones(arguments, error, message):
    with pytest.raises(error, match=message):
        schedules.MultiStepLR(*arguments)


@dataclass(frozen=True)
class Halving(schedules.LearningRateSchedule):
    start: float
    every: int

    def emit(self, op, step):
        return op.Mul(op.Pow(0.5, op.Floor(op.Div(step, self.every))), self.start)


TEXT = """<domain: "local", opset_import: ["": 17]>
halving (step) => (lr) {
    every = Constant <value = double {3.0}> ()
    half = Constant <value = double {0.5}> ()
    start = Constant <value = double {0.8}> ()
    count = Div (step, every)
    floor = Floor (count)
    power = Pow (half, floor)
    lr = Mul (power, start)
}"""


@pytest.mark.parametrize(
    "schedule", [Halving(0.8, 3), schedules.OnnxSchedule(TEXT)], ids=["subclass", "ONNX text"]
)
def test_a_schedule_of_ones_own(schedule):
    expected = [0.8 * 0.5 ** (step // 3) for step in range(10)]
    np.testing.assert_allclose([schedule.value(step) for step in range(10)], expected)
    np.testing.assert_allclose(from_graph(schedule, range(10)), expected, rtol=1e-7)
    composed = schedules.SequentialLR([schedules.WarmUpLR(0.8, 4), schedule], [4])
    np.testing.assert_allclose(from_graph(composed, [4, 7]), [0.8, 0.4], rtol=1e-7)


class Returns(schedules.LearningRateSchedule):
    """What a user may return by mistake, or on purpose."""

    def __init__(self, make):
        self.make = make

    def emit(self, op, step):
        return self.make(op, step)


GOOD_RETURNS = {
    "number": lambda _op, _step: 0.5,
    "cosine": lambda op, step: op.Cos(op.Mul(step, 0.0)),
    "one element": lambda op, step: op.Reshape(op.Add(op.Mul(step, 0.0), 0.5), [1]),
    "clipped": lambda op, step: op.Clip(step, 0.25, 0.25),
}
BAD_RETURNS = {
    "nothing": (lambda _op, _step: None, TypeError),
    "tuple": (lambda op, step: (op.Neg(step),), TypeError),
    "bool": (lambda op, step: op.Less(step, 1.0), ValueError),
    "three elements": (lambda op, step: op.Expand(step, [3]), ValueError),
    "operator that does not exist": (lambda op, step: op.Cosinus(step), ValueError),
}


@pytest.mark.parametrize("make", GOOD_RETURNS.values(), ids=GOOD_RETURNS)
def test_what_a_schedule_may_return(make):
    schedule = Returns(make)
    np.testing.assert_allclose(from_graph(schedule, [0, 3]), [schedule.value(t) for t in (0, 3)])


@pytest.mark.parametrize(("make", "error"), BAD_RETURNS.values(), ids=BAD_RETURNS)
@pytest.mark.parametrize("key", ["learning_rate", "weight_decay"])
def test_what_a_schedule_may_not_return(key, make, error):
    with pytest.raises(error, match=key):
        graphopt.RMSProp([graphopt.Parameter("w", (3,))], **{key: Returns(make)})


def test_a_schedule_that_grows_later_fails_before_anything_is_written():
    def make(op, step):
        return op.Expand(step, op.Reshape(op.Cast(op.Add(step, 1.0), to=7), [1]))

    w, v = graphopt.Parameter("w", (3,)), graphopt.Parameter("v", (2,))
    groups = [{"params": [w]}, {"params": [v], "lr": Returns(make)}]
    optimizer = graphopt.RMSProp(groups, 0.5, momentum=0.9)
    start = {"w": np.ones(3, "f"), "v": np.ones(2, "f")}
    session = graphopt.Session(graphopt.update_graph(optimizer), start)
    feeds = {"w_grad": np.ones(3, "f"), "v_grad": np.ones(2, "f")}
    session.step(feeds)
    before = session.state
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the state is as it was"):
            session.step(feeds)
    assert all(np.array_equal(value, session.state[name]) for name, value in before.items())


def test_a_schedule_must_be_hashable():
    @dataclass
    class Mutable(schedules.LearningRateSchedule):
        start: float

        def emit(self, op, step):
            return op.Add(step, self.start)

    with pytest.raises(TypeError, match="Mutable is not hashable; make it a frozen dataclass"):
        graphopt.RMSProp([graphopt.Parameter("w", (3,))], Mutable(0.1))


IN_PLACE = [
    [0.1, 0.2],
    schedules.FromCaller(),
    schedules.OnnxSchedule(TEXT),
    LONG["cosine"],
    LONG["warm-up, then cosine, then inverse"],
]


@pytest.mark.parametrize("rate", IN_PLACE, ids=lambda rate: type(rate).__name__)
def test_everything_is_overwritten_in_place(rate):
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (3,))], rate, weight_decay=LONG["cosine"])
    graph = graphopt.update_graph(optimizer, group_mask=True)
    proven = graphopt.in_place.overwritable(graph.model, graph.carried)
    assert proven == {value.input for value in graph.carried}


def test_a_damaged_step_is_refused(tmp_path):
    optimizer = graphopt.RMSProp([graphopt.Parameter("w", (2,))], [0.1, 0.2])
    session = graphopt.Session(graphopt.update_graph(optimizer), {"w": np.zeros(2, "f")})
    state = session.state | {"global_step": np.array(-1)}
    graphopt.checkpoint.save(tmp_path / "c", state)
    with pytest.raises(ValueError, match="'global_step' has the value -1"):
        session.load_checkpoint(tmp_path / "c")


def test_a_branch_in_onnx_text():
    text = """<domain: "local", opset_import: ["": 17]>
    steps (step) => (lr) {
        limit = Constant <value = double {2.0}> ()
        early = Less (step, limit)
        lr = If (early) <
            then_branch = a () => (double x) { x = Add (limit, step) },
            else_branch = b () => (double y) { y = Cast <to = 11> (limit) }>
    }"""
    schedule = schedules.OnnxSchedule(text)
    assert [schedule.value(step) for step in range(4)] == [2, 3, 2, 2]
    np.testing.assert_array_equal(from_graph(schedule, range(4)), [2, 3, 2, 2])


@pytest.mark.parametrize("name", ["", 3, None], ids=repr)
def test_bad_names_of_a_rate_from_the_caller(name):
    with pytest.raises(ValueError if name == "" else TypeError, match="name"):
        schedules.FromCaller(name)


def test_left_to_the_caller():
    rate = schedules.FromCaller()
    w, v = graphopt.Parameter("w", (2,)), graphopt.Parameter("v", (2,))
    optimizer = graphopt.RMSProp(
        [{"params": [w], "lr": rate}, {"params": [v]}], learning_rate=0.5, decay=0.0
    )
    start = {"w": np.zeros(2, "f"), "v": np.zeros(2, "f")}
    session = graphopt.Session(graphopt.update_graph(optimizer), start)
    for value in (np.float32(0.25), 0.5, np.array(0.125, "f")):
        ones = np.ones(2, "f")
        session.step({"w_grad": ones, "v_grad": ones, "learning_rate": value})
    assert np.array_equal(session.state["w"], [-0.875, -0.875])
    assert np.array_equal(session.state["v"], [-1.5, -1.5])
    with pytest.raises(ValueError, match="'learning_rate' is missing"):
        session.step({"w_grad": ones, "v_grad": ones})


def test_left_to_the_caller_in_two_places():
    params = [graphopt.Parameter(name, (2,)) for name in "wv"]
    after = schedules.SequentialLR([schedules.WarmUpLR(0.5, 1), schedules.FromCaller()], [1])
    optimizer = graphopt.RMSProp(
        [{"params": params[:1], "lr": schedules.FromCaller()}, {"params": params[1:], "lr": after}],
        decay=0.0,
    )
    start = {name: np.zeros(2, "f") for name in "wv"}
    session = graphopt.Session(graphopt.update_graph(optimizer), start)
    for _ in range(2):
        ones = np.ones(2, "f")
        session.step({"w_grad": ones, "v_grad": ones, "learning_rate": 0.25})
    assert np.array_equal(session.state["w"], [-0.5, -0.5])
    assert np.array_equal(session.state["v"], [-0.25, -0.25])


def test_weight_decay_as_a_schedule():
    decay = schedules.PolynomialDecayLR(0.4, 0.0, 4, 1.0)
    w, gamma = graphopt.Parameter("w", (3,)), graphopt.Parameter("gamma", (3,))
    optimizer = graphopt.RMSProp([w, gamma], 0.1, loss_scale=8.0, weight_decay=decay)
    start = {"w": np.float32([1, -2, 3]), "gamma": np.float32([1, -2, 3])}
    session = graphopt.Session(graphopt.update_graph(optimizer), start)
    reference = graphopt.reference.ReferenceRMSProp(optimizer, start)
    rng = np.random.default_rng(0)
    for _ in range(6):
        gradients = {name: rng.normal(size=3).astype("f") for name in start}
        session.step({f"{name}_grad": value for name, value in gradients.items()})
        reference.step(gradients)
        for name in start:
            np.testing.assert_allclose(session.state[name], reference.state[name], rtol=1e-5)
    assert not np.allclose(session.state["w"], session.state["gamma"])


def test_equal_schedules_are_computed_once():
    params = [graphopt.Parameter(name, (2,)) for name in "abc"]
    groups = [{"params": [p], "lr": schedules.CosineDecayLR(0.0, 0.1, 10)} for p in params]
    graph = graphopt.update_graph(graphopt.RMSProp(groups)).model.graph
    assert [node.op_type for node in graph.node].count("Sin") == 1


RATES = ("learning_rate", "decay_rate", "min_lr", "max_lr", "end_learning_rate", "power")
ZERO_ALLOWED = {"min_lr", "end_learning_rate"}


def bad_arguments():
    for name, row in TABLE.items():
        for key, value in row["args"].items():
            if key in RATES:
                zero = key in ZERO_ALLOWED or (key == "learning_rate" and "arm" in name)
                cases = [(1, TypeError), (True, TypeError), ("0.1", TypeError), (-0.1, ValueError)]
                cases += [(float("nan"), ValueError), (float("inf"), ValueError)]
                cases += [] if zero else [(0.0, ValueError)]
            elif isinstance(value, bool):
                cases = [(1, TypeError), (None, TypeError)]
            elif isinstance(value, int):
                cases = [(1.0, TypeError), (True, TypeError), (0, ValueError), (-1, ValueError)]
            else:
                continue
            for bad, error in cases:
                yield name, key, bad, error


@pytest.mark.quick
@pytest.mark.any_runtime
def test_bad_arguments():
    cases = list(bad_arguments())
    assert len(cases) > 400
    for name, key, bad, error in cases:
        with pytest.raises(error, match=key):
            pytest.fail(f"accepted {make(name, TABLE[name]['args'] | {key: bad})}")


@pytest.mark.parametrize("name", ["CosineDecayLR", "cosine_decay_lr"])
def test_least_and_greatest(name):
    for low in (0.1, 0.2):
        with pytest.raises(ValueError, match="min_lr"):
            make(name, TABLE[name]["args"] | {"min_lr": low, "max_lr": 0.1})


@pytest.mark.parametrize(
    ("milestone", "rates", "error"),
    [
        ([2, 5], [0.1], ValueError),
        ([], [], ValueError),
        ([5, 2], [0.1, 0.2], ValueError),
        ([2, 2], [0.1, 0.2], ValueError),
        ([2.0], [0.1], TypeError),
        ([2], [1], TypeError),
        ([2], [-0.1], ValueError),
        (2, [0.1], TypeError),
    ],
)
def test_bad_pieces(milestone, rates, error):
    with pytest.raises(error, match=r"milestone|learning_rates"):
        schedules.piecewise_constant_lr(milestone, rates)


@pytest.mark.parametrize(
    ("parts", "milestones", "error"),
    [
        ([LONG["cosine"]], [], ValueError),
        ([LONG["cosine"]] * 2, [], ValueError),
        ([LONG["cosine"]] * 3, [5, 5], ValueError),
        ([LONG["cosine"], 0.1], [5], TypeError),
        ([LONG["cosine"]] * 2, [5.0], TypeError),
    ],
)
def test_bad_sequences(parts, milestones, error):
    with pytest.raises(error):
        schedules.SequentialLR(parts, milestones)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        TEXT.replace("(step)", "(step, other)"),
        TEXT.replace("(lr)", "(lr, count)"),
        TEXT.replace("Mul (power, start)", "Mul (power, nothing)"),
        TEXT.replace("Mul (", "com.Mul ("),
        TEXT.replace("(step)", "<a: float = 0.5> (step)"),
    ],
    ids=["empty", "no function", "two inputs", "two outputs", "unknown name", "domain", "kept"],
)
def test_bad_text(text):
    with pytest.raises(ValueError, match="text"):
        schedules.OnnxSchedule(text)
