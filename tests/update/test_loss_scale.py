"""The rule of a dynamic loss scale: against the sequences of other frameworks."""

import math

import numpy as np
import pytest

from graphopt import DynamicLossScale, Parameter, RMSProp, Session, schedules, update_graph
from tests.helpers.environments import typical

STEPS = 2200


def finite_steps(seed, share):
    return np.random.default_rng(seed).random(STEPS) > share


def formula(rule, finite):
    """The scales before each step and after the last one, by the rule alone."""
    scale, steps = rule.initial, 0
    scales = [scale]
    for is_finite in finite:
        scale, steps = rule.after(scale, steps, finite=bool(is_finite))
        scales.append(scale)
    return scales


def in_graph(rule, finite):
    """The same, by a graph that ONNX Runtime runs."""
    opt = RMSProp([Parameter("w", ())], 0.001, loss_scale=rule)
    session = Session(update_graph(opt), {"w": np.array(1, np.float32)})
    scales = [rule.initial]
    for is_finite in finite:
        gradient = np.array(1 if is_finite else np.inf, np.float32)
        updated = session.step({"w_grad": gradient})["updated"]
        assert updated == is_finite
        scales.append(float(session.state["loss_scale"]))
    assert session.state["skipped_steps"] == np.sum(~finite)
    assert session.state["global_step"] == np.sum(finite)
    return scales


def pytorch(finite, **settings):
    torch = pytest.importorskip("torch")
    scaler = torch.amp.GradScaler("cpu", **settings)
    w = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([w], lr=0.0)
    scales = [scaler.get_scale()]
    for is_finite in finite:
        scaler.scale(torch.ones(()))  # makes the tensor of the scale
        w.grad = torch.tensor(1.0 if is_finite else math.nan)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def mindspore_update_cell(finite, scale, factor, window):
    """Counts steps, and remembers when the scale last changed."""
    iteration, last, scales = 1, 0, [scale]
    for is_finite in finite:
        due = iteration - last >= window
        if not is_finite:
            scale = max(scale / factor, 1.0)
        elif due:
            scale = scale * factor
        if due or not is_finite:
            last = iteration
        iteration += 1
        scales.append(scale)
    return scales


def mindspore_manager(finite, scale, factor, window):
    """Grows where the steps since the last overflow are a multiple of the window."""
    iteration, last, scales = 1, 0, [scale]
    for is_finite in finite:
        if not is_finite:
            scale, last = max(scale / factor, 1), iteration
        elif (iteration - last) % window == 0:
            scale *= factor
        iteration += 1
        scales.append(scale)
    return scales


def mindspore_scaler(finite, scale, factor, window):
    counter, scales = 0, [scale]
    for is_finite in finite:
        if not is_finite:
            scale = max(scale / factor, 1.0)
        elif counter == window - 1:
            scale = scale * factor
        counter = (counter + 1) % window if is_finite else 0
        scales.append(scale)
    return scales


def keras(finite, scale, window):
    counter, scales = 0, [scale]
    for is_finite in finite:
        if not is_finite:
            scale, counter = scale / 2, 0
        elif counter + 1 == window:
            scale, counter = scale * 2, 0
        else:
            counter += 1
        scales.append(scale)
    return scales


def flax(finite, window):
    counter, scale, scales = 0, 65536.0, [65536.0]
    tiny, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    for is_finite in finite:
        grows = counter == window
        if not is_finite:
            scale = max(scale * 0.5, tiny)
        elif grows:
            scale = min(scale * 2, largest)
        counter = 0 if grows or not is_finite else counter + 1
        scales.append(scale)
    return scales


OFTEN, RARELY = finite_steps(0, 0.2), finite_steps(1, 1 / 700)
# So that three times as large or a quarter stays among float32's normal numbers.
SELDOM = finite_steps(2, 0.13)
SEQUENCES = {
    "PyTorch, as it comes": (
        DynamicLossScale.pytorch(),
        lambda: pytorch(RARELY, init_scale=65536.0),
        RARELY,
    ),
    "PyTorch, never an overflow": (
        DynamicLossScale.pytorch(),
        lambda: pytorch(np.ones(STEPS, bool), init_scale=65536.0),
        np.ones(STEPS, bool),
    ),
    "PyTorch, short": (
        DynamicLossScale(8.0, 3.0, 0.25, 3),
        lambda: pytorch(
            SELDOM, init_scale=8.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=3
        ),
        SELDOM,
    ),
    "MindSpore, update cell": (
        DynamicLossScale.mindspore_update_cell(64, 2, 3),
        lambda: mindspore_update_cell(OFTEN, 64, 2, 3),
        OFTEN,
    ),
    "MindSpore, manager": (
        DynamicLossScale.mindspore_manager(64, 2, 3),
        lambda: mindspore_manager(OFTEN, 64, 2, 3),
        OFTEN,
    ),
    "MindSpore, scaler": (
        DynamicLossScale.mindspore_scaler(64, 2, 3),
        lambda: mindspore_scaler(OFTEN, 64, 2, 3),
        OFTEN,
    ),
    "Keras": (DynamicLossScale.keras(), lambda: keras(RARELY, 2.0**15, 2000), RARELY),
    "flax, short": (DynamicLossScale.flax(3), lambda: flax(OFTEN, 3), OFTEN),
    "flax": (DynamicLossScale.flax(), lambda: flax(RARELY, 2000), RARELY),
}


@pytest.mark.parametrize(
    ("rule", "expected", "finite"),
    typical(SEQUENCES, "PyTorch, short", "MindSpore, manager", "flax, short"),
)
def test_sequence(rule, expected, finite):
    wanted = expected()
    assert formula(rule, finite) == wanted
    assert in_graph(rule, finite) == wanted


def test_defaults_of_others():
    assert DynamicLossScale.mindspore_manager().initial == 2**24
    assert DynamicLossScale.keras().initial == 2**15
    assert DynamicLossScale.mindspore_manager().floor == 1


def test_a_scale_does_not_become_infinite():
    rule = DynamicLossScale(2.0**127, growth_interval=1)
    assert in_graph(rule, np.ones(3, bool)) == [2.0**127] * 4


def test_floor_and_ceiling():
    rule = DynamicLossScale(4.0, growth_interval=1, floor=3.0, ceiling=6.0)
    finite = np.array([True, True, False, False, False])
    assert in_graph(rule, finite) == formula(rule, finite) == [4, 6, 6, 3, 3, 3]


WRONG = {
    "initial": ({"initial": 0.0}, ValueError, "initial: got 0.0"),
    "initial infinite": ({"initial": math.inf}, ValueError, "initial: got inf"),
    "initial text": ({"initial": "8"}, TypeError, "initial: got '8'"),
    "initial tiny": ({"initial": 1e-40}, ValueError, "float32 loses digits"),
    "growth_factor": ({"growth_factor": 1.0}, ValueError, "growth_factor: got 1.0, expected"),
    "backoff_factor": ({"backoff_factor": 1.0}, ValueError, "backoff_factor: got 1.0, expected"),
    "backoff_factor 0": ({"backoff_factor": 0.0}, ValueError, "backoff_factor: got 0.0"),
    "growth_interval": ({"growth_interval": 0}, ValueError, "growth_interval: got 0"),
    "growth_interval float": ({"growth_interval": 2.0}, TypeError, "growth_interval: got 2.0"),
    "floor": ({"initial": 2.0, "floor": 4.0}, ValueError, "floor: got 4.0, expected at most"),
    "ceiling": ({"initial": 2.0, "ceiling": 1.0}, ValueError, "ceiling: got 1.0, expected at"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("settings", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(settings, kind, message):
    with pytest.raises(kind, match=message):
        DynamicLossScale(**settings)


@pytest.mark.any_runtime
def test_the_name_of_a_fed_scale_is_not_that_of_a_rate():
    with pytest.raises(ValueError, match="name it"):
        RMSProp([Parameter("w", ())], loss_scale=schedules.FromCaller())
