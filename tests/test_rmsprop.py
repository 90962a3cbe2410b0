"""The arguments of RMSProp: what is refused, how it says so, and what is accepted."""

import re
from fractions import Fraction

import numpy as np
import pytest

from graphopt import Parameter, RMSProp

pytestmark = pytest.mark.any_runtime

W, B = Parameter("w", (3, 5)), Parameter("b", (5,))
NAN, INF = float("nan"), float("inf")


def case(name, value, error=None, note=""):
    """One row of the table; ``note`` tells values apart that print alike."""
    shown = note or f"{type(value).__name__} {value!r}"
    return pytest.param(name, value, error, id=f"{name}-{shown}")


ACCEPTED = [
    *(case("learning_rate", value) for value in (0.1, 1, 0, 0.0, True, False)),
    *(case("learning_rate", value) for value in (np.float64(0.1), np.array(0.1))),
    *(case("decay", value) for value in (0.9, 0.0, 1.0, 1.5, 2.0, np.float64(0.9))),
    *(case("momentum", value) for value in (0.9, 0.0, 1.0, 1.5, np.float64(0.9))),
    *(case("epsilon", value) for value in (1e-10, 1.0, 1e-50, np.float64(1e-10))),
    *(case("use_locking", value) for value in (True, False)),
    *(case("centered", value) for value in (True, False)),
    *(case("loss_scale", value) for value in (1.0, 1024.0, 1, 1024, True, np.float64(2.0), 0.5)),
    *(case("weight_decay", value) for value in (0.0, 0.1, 1, 0, True, np.float64(0.1))),
]
REFUSED = [
    *(case("learning_rate", value, ValueError) for value in (-0.1, -1, NAN, INF, -INF, "0.1")),
    *(
        case("learning_rate", value, TypeError)
        for value in (None, 1j, np.float32(0.1), np.float16(0.1), np.int64(1))
    ),
    case("learning_rate", object(), TypeError, "object"),
    case("learning_rate", lambda step: 0.1, TypeError, "function"),  # noqa: ARG005
    *(case("decay", value, ValueError) for value in (-0.1, NAN, INF, -INF)),
    *(
        case("decay", value, TypeError)
        for value in (1, 0, True, "0.9", None, np.float32(0.9), np.array(0.9), Fraction(9, 10))
    ),
    *(case("momentum", value, ValueError) for value in (-0.1, NAN, INF, -INF)),
    *(
        case("momentum", value, TypeError)
        for value in (1, 0, False, "0.9", None, np.float32(0.9), np.array(0.9))
    ),
    *(case("epsilon", value, ValueError) for value in (0.0, -0.0, -1e-10, NAN, INF)),
    *(
        case("epsilon", value, TypeError)
        for value in (1, 0, True, "1e-10", None, np.float32(1e-10), np.array(1e-10))
    ),
    *(case("use_locking", value, TypeError) for value in (0, 1, None, "True", np.True_)),
    *(case("centered", value, TypeError) for value in (0, 1, None, "True", np.True_)),
    *(case("loss_scale", value, ValueError) for value in (0, 0.0, -1.0, -1, False, NAN, INF)),
    *(
        case("loss_scale", value, TypeError)
        for value in ("1", None, np.float32(2.0), np.array(2.0), [1.0])
    ),
    *(case("weight_decay", value, ValueError) for value in (-0.1, -1, NAN, INF)),
    *(
        case("weight_decay", value, TypeError)
        for value in ("0.1", None, [0.1], np.float32(0.1), np.array(0.1))
    ),
]


@pytest.mark.parametrize(("name", "value", "error"), ACCEPTED)
def test_accepted(name, value, error):
    assert error is None
    opt = RMSProp([W], **{name: value})
    match name:
        case "learning_rate":
            kept = opt.rules[0].learning_rate.value(0)
        case "weight_decay":
            kept = opt.rules[0].weight_decay.value(0)
        case _:
            kept = getattr(opt, name)
    assert kept == value
    assert type(kept) is (bool if name in ("use_locking", "centered") else float)


@pytest.mark.quick
@pytest.mark.parametrize(("name", "value", "error"), REFUSED)
def test_refused(name, value, error):
    with pytest.raises(error) as caught:
        RMSProp([W], **{name: value})
    assert type(caught.value) is error
    message = str(caught.value)
    assert re.match(rf"{name}\b", message)
    shown = {repr(value), str(value)}
    if isinstance(value, int):  # also as the float that it becomes
        shown.add(repr(float(value)))
    assert any(text in message for text in shown), message


PARAMS = [
    ("none", None, ValueError, "None"),
    ("empty list", [], ValueError, "no parameter"),
    ("empty tuple", (), ValueError, "no parameter"),
    ("empty generator", (p for p in ()), ValueError, "no parameter"),
    ("one parameter", W, TypeError, "Parameter"),
    ("number", 5, TypeError, "int"),
    ("text", "ab", TypeError, "str"),
    ("bytes", b"ab", TypeError, "bytes"),
    ("list of text", ["w"], TypeError, r"\[0\].*str"),
    ("list of arrays", [np.ones(3)], TypeError, r"\[0\].*ndarray"),
    ("array", np.ones(3), TypeError, "float64"),
    ("parameter and dict", [W, {"params": [B]}], TypeError, r"\[0\].*Parameter"),
    ("dict", {"params": [W]}, TypeError, "dict"),
    ("list of none", [None], TypeError, r"\[0\].*NoneType"),
    ("same twice", [W, B, W], ValueError, "w"),
    ("same name", [W, Parameter("w", (2,))], ValueError, "w"),
    ("int32", [W, Parameter("i", (2,), "int32")], TypeError, "'i'.*int32"),
    ("int64", [Parameter("d", (2,), "int64")], TypeError, "'d'.*int64"),
    ("bool", [Parameter("f", (2,), "bool")], TypeError, "'f'.*bool"),
    ("size 0", [W, Parameter("z", (2, 0))], ValueError, r"'z'.*\(2, 0\)"),
]


@pytest.mark.parametrize(
    ("params", "error", "message"), [row[1:] for row in PARAMS], ids=[row[0] for row in PARAMS]
)
def test_refused_params(params, error, message):
    with pytest.raises(error, match=rf"^params.*{message}") as caught:
        RMSProp(params)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "params",
    [[W, B], (W, B), (p for p in (W, B)), {W: 0, B: 1}.keys(), [W, Parameter("W", (3, 5))]],
    ids=["list", "tuple", "generator", "keys", "other case"],
)
def test_accepted_params(params):
    opt = RMSProp(params)
    assert opt.params[0] == W
    assert len(opt.params) == len(opt.rules) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((), {}), (([W],), {"beta": 0.9}), (([W],), {"lr": 0.1})],
    ids=["no params", "unknown argument", "lr"],
)
def test_call_errors(arguments, named):
    with pytest.raises(TypeError, match=r"argument"):
        RMSProp(*arguments, **named)


def test_positional_arguments():
    opt = RMSProp([W], 0.2, 0.8, 0.7, 1e-6, True, True, 2.0, 0.3)
    kept = (opt.decay, opt.momentum, opt.epsilon, opt.use_locking, opt.centered, opt.loss_scale)
    assert kept == (0.8, 0.7, 1e-6, True, True, 2.0)
    assert opt.rules[0].learning_rate.value(0) == 0.2
    assert opt.rules[0].weight_decay.value(0) == 0.3


@pytest.mark.quick
def test_defaults():
    opt = RMSProp([W, B])
    kept = (opt.decay, opt.momentum, opt.epsilon, opt.use_locking, opt.centered, opt.loss_scale)
    assert kept == (0.9, 0.0, 1e-10, False, False, 1.0)
    assert opt.params == (W, B)
    assert [rule.weight_decay.value(0) for rule in opt.rules] == [0.0, 0.0]
    assert [rule.learning_rate.value(step) for rule in opt.rules for step in (0, 9)] == [0.1] * 4


@pytest.mark.parametrize(
    ("name", "excluded"),
    [
        ("beta", True),
        ("gamma", True),
        ("bn.beta", True),
        ("bn.gamma.weight", True),
        ("alphabeta2", True),
        ("xgammax", True),
        ("Beta", False),
        ("GAMMA", False),
        ("bet.a", False),
        ("gama", False),
        ("weight", False),
        ("bias", False),
    ],
)
def test_exclusion_from_weight_decay(name, excluded):
    opt = RMSProp([W, Parameter(name, (2,))], weight_decay=0.5)
    assert [rule.weight_decay.value(0) for rule in opt.rules] == [0.5, 0.0 if excluded else 0.5]


@pytest.mark.parametrize(
    ("settings", "states"),
    [
        ({}, ("mean_square",)),
        ({"momentum": 0.9}, ("mean_square", "moment")),
        ({"centered": True}, ("mean_square", "mean_grad")),
        ({"centered": True, "momentum": 1e-3}, ("mean_square", "mean_grad", "moment")),
    ],
    ids=["plain", "momentum", "centered", "centered momentum"],
)
def test_states(settings, states):
    assert RMSProp([W], **settings).states == states
