"""Gradients of several steps in one update: against one batch of all, and against float64."""

import itertools

import numpy as np
import pytest

import graphopt
from graphopt import (
    Accumulation,
    DynamicLossScale,
    Parameter,
    ParameterAverage,
    RMSProp,
    Session,
    schedules,
    update_graph,
)
from graphopt.reference import ReferenceRMSProp
from models.zoo import ZOO

PARAMETERS = [
    Parameter("conv", (4, 3, 3, 3), op_type="Conv"),
    Parameter("bias", (4,)),
    Parameter("fc", (30, 7)),
    Parameter("scalar", ()),
]
LAYOUTS = ["chunks", "buckets", "separate", "foreach"]
OPTIONS = {
    "plain": {},
    "scale": {"loss_scale": 8.0, "weight_decay": 0.1},
    "dynamic": {"loss_scale": DynamicLossScale(64.0, growth_interval=4), "momentum": 0.9},
    "fed": {"loss_scale": schedules.FromCaller("loss_scale"), "skip_on_overflow": True},
    "skip": {"skip_on_overflow": True, "centered": True, "momentum": 0.9, "epsilon": 1e-3},
    "norm": {"clip_norm": 3.0, "loss_scale": 8.0},
    "norm of groups": {"clip_norm": 1.0, "clip_norm_per": "group", "skip_on_overflow": True},
    "norm of parameters": {"clip_norm": 1.0, "clip_norm_per": "parameter"},
    "value": {"clip_value": 0.3, "loss_scale": 4.0},
    "average": {"average": ParameterAverage(0.8), "skip_on_overflow": True},
}
RULES = {
    "mean of 3": Accumulation(3),
    "sum of 3": Accumulation(3, "sum"),
    "mean, as the caller says": Accumulation(None),
    "sum, as the caller says": Accumulation(None, "sum"),
    "of one": Accumulation(1),
}


def groups():
    first = {"params": PARAMETERS[:2], "weight_decay": 0.05, "grad_centralization": True}
    return [first, {"params": PARAMETERS[2:], "lr": 0.02}]


def start():
    rng = np.random.default_rng(0)
    return {p.name: np.array(rng.normal(size=p.shape), np.float32) for p in PARAMETERS}


def cases():
    """Each option with each rule, and each layout with each of both."""
    pairs = list(itertools.product(OPTIONS, RULES))
    return [(o, r, LAYOUTS[(i + i // 5) % 4], bool(i % 3)) for i, (o, r) in enumerate(pairs)]


class Oracle:
    """Adds up in float64 what is fed, and applies it by the reference."""

    def __init__(self, optimizer, rule):
        self.optimizer, self.rule = optimizer, rule
        scale = optimizer.loss_scale
        self.dynamic = scale if isinstance(scale, DynamicLossScale) else None
        self.scale, self.steps = (self.dynamic.initial, 0) if self.dynamic else (scale, 0)
        plain = RMSProp(groups(), LEARNING_RATE, **self.without_scale())
        self.reference = ReferenceRMSProp(plain, start())
        self.total, self.count, self.skipped = None, 0, 0

    def without_scale(self):
        settings = {n: getattr(self.optimizer, n) for n in ("momentum", "centered", "epsilon")}
        return settings | {
            n: getattr(self.optimizer, n) for n in ("clip_norm", "clip_norm_per", "clip_value")
        }

    def step(self, gradients, scale, *, last):
        """Whether it is an update."""
        finite = all(np.isfinite(g).all() for g in gradients.values())
        if self.dynamic:
            self.scale, self.steps = self.dynamic.after(self.scale, self.steps, finite=finite)
        if not finite and self.optimizer.skip_on_overflow:
            self.skipped += 1
            return False
        unscaled = {name: g.astype(np.float64) / scale for name, g in gradients.items()}
        if self.count == 0:
            self.total = dict.fromkeys(unscaled, 0.0)
        self.total = {name: self.total[name] + g for name, g in unscaled.items()}
        self.count += 1
        if not (last if self.rule.steps is None else self.count == self.rule.steps):
            return False
        share = 1 / self.count if self.rule.reduction == "mean" else 1
        self.reference.step({name: total * share for name, total in self.total.items()})
        self.count = 0
        return True


LEARNING_RATE = schedules.InverseDecayLR(0.01, 0.1, 3)


@pytest.mark.parametrize(
    ("option", "rule", "layout", "kernels"),
    [  # the oldest runtime runs every third
        pytest.param(
            *case, marks=pytest.mark.any_runtime if at % 3 else (), id="-".join(map(str, case))
        )
        for at, case in enumerate(cases())
    ],
)
def test_against_float64(option, rule, layout, kernels):
    settings, rule = OPTIONS[option], RULES[rule]
    settings = {name: value for name, value in settings.items() if name != "weight_decay"}
    opt = RMSProp(groups(), LEARNING_RATE, **settings)
    graph = update_graph(opt, layout=layout, accumulation=rule)
    session, oracle = Session(graph, start(), kernels=kernels), Oracle(opt, rule)
    rng = np.random.default_rng(1)
    updates = 0
    for _ in range(60):
        scale = opt.loss_scale
        if isinstance(scale, DynamicLossScale):
            scale = float(session.state["loss_scale"])
        elif not isinstance(scale, float):
            scale = float(2.0 ** rng.integers(-3, 8))
        gradients = {
            p.name: np.array(rng.normal(size=p.shape) * scale, np.float32) for p in PARAMETERS
        }
        if opt.skip_on_overflow and rng.random() < 0.2:
            gradients["bias"][1] = rng.choice([np.nan, np.inf])
        last = bool(rng.random() < 0.4)
        feeds = {f"{name}_grad": g for name, g in gradients.items()}
        if rule.steps is None:
            feeds["update"] = np.array(last)
        if not isinstance(opt.loss_scale, float | DynamicLossScale):
            feeds["loss_scale"] = np.array(scale, np.float32)
        updated = oracle.step(gradients, scale, last=last)
        outputs = session.step(feeds)
        assert outputs["updated"] == updated
        updates += updated
        if opt.clip_norm is not None and updated:
            norm = oracle.reference.gradient_norm
            np.testing.assert_allclose(outputs["gradient_norm"], norm, rtol=1e-5)
    state = session.state
    assert (state["global_step"], state["accumulation_count"]) == (updates, oracle.count)
    assert state.get("skipped_steps", 0) == oracle.skipped
    assert state.get("loss_scale", 0) == (oracle.scale if oracle.dynamic else 0)
    for name, array in oracle.reference.state.items():
        if name in state:
            np.testing.assert_allclose(state[name], array, rtol=2e-4, atol=2e-5, err_msg=name)
    if oracle.count:
        for name, total in oracle.total.items():
            got = state[f"accumulated.{name}"]
            np.testing.assert_allclose(got, total, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_four_parts_are_one_batch(name):
    """A network without batch normalization, within rounding."""
    entry = ZOO[name]
    model = entry.build()
    opt = RMSProp(graphopt.parameters(model), 1e-3, epsilon=1e-3, momentum=0.9, clip_norm=1.0)
    whole = Session(graphopt.training_graph(model, entry.loss, opt))
    parts = Session(graphopt.training_graph(model, entry.loss, opt, accumulation=4))
    rng = np.random.default_rng(0)
    for _ in range(5):
        batch = entry.feeds(rng, 8)
        whole.step(batch)
        for part in range(4):
            few = {k: array[2 * part : 2 * part + 2] for k, array in batch.items()}
            assert parts.step(few)["updated"] == (part == 3)
    for key, array in whole.state.items():
        np.testing.assert_allclose(parts.state[key], array, rtol=1e-5, atol=1e-6, err_msg=key)


def test_running_statistics_move_in_each_step():
    entry = ZOO["resnet"]
    model = entry.build()
    opt = RMSProp(graphopt.parameters(model), 1e-3)
    session = Session(graphopt.training_graph(model, entry.loss, opt, accumulation=2))
    before = session.state
    session.step(entry.feeds(np.random.default_rng(0), 4))
    after = session.state
    trained = {p.name for p in opt.params}
    for name, array in before.items():
        counts = name == "accumulation_count" or name.startswith("accumulated.")
        moves = counts or not (name in trained or graphopt.states.split(name, before)[0])
        assert (array.tobytes() != after[name].tobytes()) == (moves and name != "global_step"), name


def test_a_part_survives_a_checkpoint(tmp_path):
    opt = RMSProp(PARAMETERS, 0.01, loss_scale=DynamicLossScale(8.0), average=0.9, clip_norm=1.0)
    whole, half = (Session(update_graph(opt, accumulation=3), start()) for _ in range(2))
    rng = np.random.default_rng(0)
    batches = [
        {f"{p.name}_grad": np.array(rng.normal(size=p.shape), np.float32) for p in PARAMETERS}
        for _ in range(8)
    ]
    batches[2]["bias_grad"][0] = np.inf
    for batch in batches:
        whole.step(batch)
    for interrupted in range(1, 8):
        session = Session(update_graph(opt, accumulation=3), start())
        for batch in batches[:interrupted]:
            session.step(batch)
        session.save_checkpoint(tmp_path / "c.safetensors")
        half.load_checkpoint(tmp_path / "c.safetensors")
        for batch in batches[interrupted:]:
            half.step(batch)
        for name, array in whole.state.items():
            assert array.tobytes() == half.state[name].tobytes(), (interrupted, name)


WRONG = {
    "zero": (0, ValueError, "accumulation: got 0"),
    "float": (2.0, TypeError, "accumulation: got 2.0"),
    "bool": (True, TypeError, "accumulation: got True"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("value", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(value, kind, message):
    with pytest.raises(kind, match=message):
        update_graph(RMSProp(PARAMETERS), accumulation=value)


@pytest.mark.any_runtime
def test_wrong_reduction():
    with pytest.raises(ValueError, match="reduction: got 'max'"):
        Accumulation(2, "max")


def one(**settings):
    parameters = [Parameter("a", (2,)), Parameter("b", (2,))]
    groups = [{"params": [parameter]} for parameter in parameters]
    initial = {p.name: np.ones(2, np.float32) for p in parameters}
    return RMSProp(groups, 0.01, **settings), initial


def of_both(a, b):
    return {"a_grad": np.array(a, np.float32), "b_grad": np.array(b, np.float32)}


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "bodies"])
def test_a_sum_of_none_begins_anew(kernels):
    """Whatever was added up before: of a group that was not updated, or that was clipped."""
    opt, initial = one()
    graph = update_graph(opt, group_mask=True, accumulation=2)
    session = Session(graph, initial, kernels=kernels)
    mask = {"group_mask": np.array([True, False])}
    for b in ([np.inf, np.nan], [1, 1]):
        session.step(of_both([1, 1], b) | mask)
    np.testing.assert_array_equal(session.state["b"], 1)
    for _ in range(2):
        session.step(of_both([1, 1], [1, 1]))
    assert np.isfinite(session.state["b"]).all()
    assert (session.state["b"] != 1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("clip", [{}, {"clip_norm": 1.0}], ids=["plain", "norm"])
def test_a_sum_that_overflows_is_not_applied(layout, clip):
    opt, initial = one(skip_on_overflow=True, **clip)
    session = Session(update_graph(opt, accumulation=2, layout=layout), initial)
    for _ in range(2):
        assert not session.step(of_both([1, 1], [3e38, 1]))["updated"]
    state = session.state
    assert (state["skipped_steps"], state["global_step"], state["accumulation_count"]) == (1, 0, 0)
    np.testing.assert_array_equal(state["a"], 1)
    np.testing.assert_array_equal(state["mean_square.b"], 1)
    assert [bool(session.step(of_both([1, 1], [1, 1]))["updated"]) for _ in range(2)] == [
        False,
        True,
    ]
    assert np.isfinite(session.state["b"]).all()


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("layout", ["chunks", "foreach"])
def test_a_step_that_overflows_and_says_update(layout, kernels):
    """It is as if it had not been: what has been added up is applied by the next that says so."""
    rule = Accumulation(None)
    optimizer = RMSProp([Parameter("w", (2,))], 0.1, skip_on_overflow=True, average=0.9)
    graph = update_graph(optimizer, layout=layout, accumulation=rule)
    session, other = (
        Session(graph, {"w": np.ones(2, np.float32)}, kernels=kernels) for _ in range(2)
    )

    def step(one, gradient, *, update):
        feeds = {"w_grad": np.full(2, gradient, np.float32), "update": np.array(update)}
        return bool(one.step(feeds)["updated"])

    steps = [(1, False), (2, False), (np.nan, True), (4, False), (np.inf, True), (5, True)]
    told = [step(session, gradient, update=update) for gradient, update in steps]
    assert told == [False, False, False, False, False, True]
    for gradient, update in steps:
        if np.isfinite(gradient):
            step(other, gradient, update=update)
    assert (session.state["skipped_steps"], other.state["skipped_steps"]) == (2, 0)
    for name, value in other.state.items():
        if name != "skipped_steps":
            assert session.state[name].tobytes() == value.tobytes(), name
