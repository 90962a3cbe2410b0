"""Every row of the specification's table of bad and odd inputs: refused or accepted as there."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from onnx import numpy_helper

from graphopt import Parameter, RMSProp, Session, update_graph
from graphopt.schedules import PolynomialDecayLR, WarmUpLR
from tests.helpers.folders import REFERENCE

pytestmark = pytest.mark.any_runtime

ROWS = json.loads((REFERENCE / "errors.json").read_text())
KINDS = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)
ERRORS = {kind.__name__: kind for kind in KINDS}
NAN, INF = float("nan"), float("inf")
A, B, C = Parameter("a", (3,)), Parameter("b", (2, 2)), Parameter("c", ())
STRANGER = Parameter("stranger", (3,))


class Case(NamedTuple):
    """What graphopt is given in place of a row's input.

    ``text`` is the row's input, ``make`` gives the value, or the whole optimizer. ``says`` is what
    the error's message tells after the name of the argument, a pattern; by default the value. With
    a ``^`` it is the whole pattern.
    """

    text: str
    make: Callable[[], Any]
    says: str = ""


def plain(*values, says=""):
    """Values whose input is their ``repr`` (of NumPy 1: scalars print alike, whatever the type)."""
    with np.printoptions(legacy="1.21"):
        return [Case(without_address(repr(v)), lambda v=v: v, says) for v in values]


def without_address(text):
    return re.sub(r" at 0x\w+", "", text)


def tensor(value, dtype=np.float32):
    return numpy_helper.from_array(np.array(value, dtype))


def groups(*others, **first):
    """A group with ``a`` and these keys, then the others."""
    return [{"params": [A], **first}, *others]


def ordered(order, **others):
    """Two groups with ``a``, ``b`` and ``c``, then the order."""
    return [{"params": [A, B]}, {"params": [C]}, {"order_params": order, **others}]


class Cell:
    """Not a schedule."""


FLAGS = plain(True, False, 0, 1, None, "True", np.True_)

# In the order of the rows of each category.
TABLE = {
    "learning_rate": [
        *plain(0.1, 1, 0, 0.0, True, -0.1, -1, NAN, INF, -INF, "0.1", "12", b"12", None, 1j),
        *plain([], says="no value"),
        *plain([0.1], (0.1, 0.2)),
        *plain([0.1, -0.2], says=r"\[1\]: got -0\.2"),
        *plain([NAN], says=r"\[0\]: got nan"),
        *plain(["a"], says=r"\[0\]: got 'a'"),
        *plain([None], says=r"\[0\]: got None"),
        *plain([[0.1, 0.2]], says=r"\[0\]: got \[0\.1, 0\.2\]"),
        *plain({}, says="no value"),
        *plain({0.1, 0.2}, np.float32(0.1), np.float64(0.1), np.float16(0.1), np.int64(1)),
        *plain(np.array(0.1), np.array([0.1, 0.2])),
        *plain(np.array([[0.1, 0.2]]), says=r"shape \[1, 2\]"),
        *plain(np.array([], np.float64), says="no value"),
        *plain(object(), lambda step: 0.1),  # noqa: ARG005
        Case("Tensor scalar", lambda: tensor(0.1)),
        Case("Tensor scalar neg", lambda: tensor(-0.5), r"got -0\.5"),
        Case("Tensor nan", lambda: tensor(NAN), "got nan"),
        Case("Tensor int", lambda: tensor(1, np.int32)),
        Case("Tensor bool", lambda: tensor(True, np.bool_)),
        Case("Tensor 1-D", lambda: tensor([0.1, 0.2])),
        Case("Tensor 1-D len1", lambda: tensor([0.1])),
        Case("Tensor 1-D neg", lambda: tensor([0.5, -0.5]), r"\[1\]: got -0\.5"),
        Case("Tensor 1-D int", lambda: tensor([1, 2], np.int32)),
        Case("Tensor 2-D", lambda: tensor([[0.1, 0.2]]), r"shape \[1, 2\]"),
        Case("Parameter scalar", lambda: Parameter("lr", ()), "Parameter"),
        Case("nn.Cell (not LRSchedule)", Cell, "Cell"),
        Case("LRSchedule", lambda: PolynomialDecayLR(0.1, 0.01, 10, 0.5)),
        Case("WarmUpLR lr0", lambda: WarmUpLR(0.0, 10)),
        Case("generator", lambda: (rate for rate in (0.1, 0.2))),
        Case("range(3)", lambda: range(3)),
        Case("range(0)", lambda: range(0), "no value"),
    ],
    "decay": [
        *plain(0.9, 0.0, 1.0, 1.5, 2.0, -0.1, NAN, INF, 1, 0, True, "0.9", None),
        *plain(np.float32(0.9), np.float64(0.9)),
        Case(
            "Tensor(shape=[], dtype=Float32, value= 0.9) (Tensor)",
            lambda: tensor(0.9),
            "TensorProto",
        ),
    ],
    "momentum": [
        *plain(0.9, 0.0, 1.0, 1.5, -0.1, NAN, INF, 1, 0, False, "0.9", None),
        *plain(np.float32(0.9), np.float64(0.9)),
    ],
    "epsilon": [
        *plain(1e-10, 1.0, 0.0, -1e-10, NAN, INF, 1, 0, True, "1e-10", None),
        *plain(np.float64(1e-10), np.float32(1e-10), 1e-50),
    ],
    "use_locking": FLAGS,
    "centered": FLAGS,
    "loss_scale": [
        *plain(1.0, 1024.0, 1, 1024, 0, 0.0, -1.0, -1, True, False, NAN, INF, "1", None),
        *plain(np.float64(2.0), np.float32(2.0), 0.5),
        Case(
            "Tensor(shape=[], dtype=Float32, value= 2) (Tensor)", lambda: tensor(2), "TensorProto"
        ),
    ],
    "weight_decay": [
        *plain(0.0, 0.1, 1, 0, -0.1, -1, NAN, INF, True, "0.1", None, [0.1]),
        *plain(np.float64(0.1), np.float32(0.1)),
        Case(
            "Tensor(shape=[], dtype=Float32, value= 0.1) (Tensor)",
            lambda: tensor(0.1),
            "TensorProto",
        ),
    ],
    "params": [
        Case("None", lambda: None),
        Case("[]", list, "no parameter"),
        Case("()", tuple, "no parameter"),
        Case("tuple of Parameter", lambda: (A, B)),
        Case("generator", lambda: (p for p in (A, B))),
        Case("single Parameter (3,)", lambda: A, "got Parameter"),
        Case("single Parameter ()", lambda: C, "got Parameter"),
        Case("int 5", lambda: 5, "got int"),
        Case("str 'ab'", lambda: "ab", "got str"),
        Case("[Tensor]", lambda: [tensor([1])], r"\[0\]: got TensorProto"),
        Case("[ndarray]", lambda: [np.ones(3)], r"\[0\]: got ndarray"),
        Case("[Parameter, dict]", lambda: [A, {"params": [B]}], r"\[0\]: got Parameter.* dict"),
        Case("dict (not list)", lambda: {"params": [A]}, "got dict"),
        Case("[None]", lambda: [None], r"\[0\]: got NoneType"),
        Case("same Parameter twice", lambda: [A, B, A], "more than once: a"),
        Case("two Parameters same name", lambda: [A, Parameter("a", ())], "more than once: a"),
        Case("requires_grad=False", lambda: [A]),  # what is not to be trained is not listed
        Case("int32 Parameter", lambda: [Parameter("i", (3,), "int32")], "'i' .*int32"),
        Case(
            "int32 Parameter centered",
            lambda: RMSProp([Parameter("i", (3,), "int32")], centered=True),
            "'i' .*int32",
        ),
        Case("size-0 param", lambda: [Parameter("z", (0, 3))], r"'z' .*\(0, 3\)"),
        Case("missing arg", RMSProp, "^RMSProp.*'params'"),
        Case("unexpected kwarg", lambda: RMSProp([A], foo=1), "^RMSProp.*'foo'"),
        Case("positional 2nd arg", lambda: RMSProp([A], 0.01)),
    ],
    "groups": [
        Case("no 'params' key", lambda: [{"lr": 0.1}], r"\[0\]: .*'params'"),
        Case("{} empty dict", lambda: [{}], r"\[0\]: .*'params'"),
        Case("params: []", lambda: groups({"params": []}), r"\[1\]\['params'\]: .*no parameter"),
        Case("params: None", lambda: groups({"params": None}), r"\[1\]\['params'\]: got None"),
        Case(
            "params: single Parameter",
            lambda: groups({"params": B}),
            r"\[1\]\['params'\]: got Parameter",
        ),
        Case("params: tuple", lambda: groups({"params": (B,)})),
        Case("params: generator", lambda: groups({"params": (p for p in (B,))})),
        Case(
            "params: [Tensor]",
            lambda: groups({"params": [tensor([1])]}),
            r"\[1\]\['params'\]\[0\]: got TensorProto",
        ),
        Case("unknown key 'foo'", lambda: groups(foo=1), r"\[0\]: .*'foo'"),
        Case("unknown key 'momentum'", lambda: groups(momentum=0.9), r"\[0\]: .*'momentum'"),
        Case("param in two groups", lambda: groups({"params": [B, A]}), "more than once: a"),
        Case("dup in one group", lambda: groups({"params": [B, B]}), "more than once: b"),
        Case(
            "same name distinct params in 2 groups",
            lambda: groups({"params": [Parameter("a", ())]}),
            "more than once: a",
        ),
    ],
    "group lr": [
        *plain(0.5, 1, 0, -0.1, NAN, "0.1", None),
        *plain([], says="no value"),
        *plain([0.1, 0.2]),
        Case("Tensor(shape=[], dtype=Float32, value= 0", lambda: tensor(0.1)),
        *plain(True, np.float32(0.1)),
        Case("generator", lambda: (rate for rate in (0.1, 0.2))),
        Case("Tensor 2-D", lambda: tensor([[0.1, 0.2]]), r"shape \[1, 2\]"),
        Case(
            "len 2 vs default len 3",
            lambda: RMSProp(groups({"params": [B]}, lr=[0.1, 0.2]), [0.1, 0.2, 0.3]),
            "^lr: got lists of 2 and 3",
        ),
        Case(
            "len 2 vs len 3",
            lambda: RMSProp(groups({"params": [B], "lr": [0.1, 0.2, 0.3]}, lr=[0.1, 0.2])),
            "^lr: got lists of 2 and 3",
        ),
        Case(
            "len 2 list vs schedule",
            lambda: RMSProp(groups({"params": [B], "lr": WarmUpLR(0.1, 10)}, lr=[0.1, 0.2])),
        ),
    ],
    "group weight_decay": [
        *plain(0.5, 1, 0, -0.1, NAN, "0.1", None, True, np.float32(0.1), np.float64(0.1)),
        Case("Tensor(shape=[], dtype=Float32, value= 0", lambda: tensor(0.1), "TensorProto"),
    ],
    "group grad_centralization": FLAGS,
    "grouped": [
        Case(
            "default weight_decay -1 (all groups set own)",
            lambda: RMSProp(groups(weight_decay=0.0), weight_decay=-1),
            "^weight_decay: got -1",
        ),
        Case(
            "default weight_decay 'x' (all groups set own)",
            lambda: RMSProp(groups(weight_decay=0.0), weight_decay="x"),
            "^weight_decay: got 'x'",
        ),
        Case(
            "default learning_rate -1 (all groups set own)",
            lambda: RMSProp(groups(lr=0.1), learning_rate=-1),
            "^learning_rate: got -1",
        ),
    ],
    "order_params": [
        Case("[c,a,b] good", lambda: ordered([C, A, B])),
        Case("first in list", lambda: ordered([C, A, B])[::-1]),
        Case("tuple", lambda: ordered((C, A, B))),
        Case("generator", lambda: ordered(p for p in (C, A, B)), "got generator"),
        Case("missing one", lambda: ordered([C, A]), "lacks b;"),
        Case(
            "extra one not in any group",
            lambda: ordered([C, A, B, STRANGER]),
            "has ungrouped stranger;",
        ),
        Case(
            "same length, one foreign",
            lambda: ordered([C, A, STRANGER]),
            "lacks b; has ungrouped stranger;",
        ),
        Case("duplicate element, same length", lambda: ordered([C, A, A]), "lacks b; repeats a;"),
        Case(
            "other Parameter object with same name",
            lambda: ordered([C, Parameter("a", (3,)), B]),
        ),
        Case("other key 'lr' in same dict", lambda: ordered([C, A, B], lr=0.1), "with 'lr'"),
        Case(
            "other key 'params' in same dict",
            lambda: ordered([C, A, B], params=[STRANGER]),
            "with 'params'",
        ),
        Case("not iterable (5)", lambda: ordered(5), "got int"),
        Case("None", lambda: ordered(None), "got NoneType"),
        Case("[] empty", lambda: ordered([])),
        Case("strings ['b','a']", lambda: ordered(["b", "a"]), r"\[0\]: got str"),
        Case("Tensors", lambda: ordered([tensor([1])]), r"\[0\]: got TensorProto"),
        Case(
            "only order_params, no params group",
            lambda: [{"order_params": [A]}],
            "^params: got order_params alone",
        ),
        Case(
            "two order_params dicts (last wins?)",
            lambda: [*ordered([C, A, B]), {"order_params": [B, A, C]}],
        ),
    ],
}

GOOD = {"a_grad": np.ones(3, np.float32), "b_grad": np.ones((2, 2), np.float32)}


def gradient(text, name, value, says=""):
    """A row in which one gradient is replaced."""
    return Case(text, lambda: {**GOOD, name: value}, f"^feed '{name}': {says}")


GRADIENTS = [
    Case("ok", lambda: GOOD),
    Case("list instead of tuple", lambda: list(GOOD.values()), "^feeds: got list"),
    Case("too few", lambda: {"a_grad": GOOD["a_grad"]}, "^feeds: 'b_grad' is missing"),
    Case("too many", lambda: {**GOOD, "c_grad": np.ones(3)}, "^feeds: 'c_grad' is not a feed"),
    Case("empty tuple", dict, "^feeds: 'a_grad' is missing, 'b_grad' is missing"),
    Case("single Tensor", lambda: GOOD["a_grad"], "^feeds: got ndarray"),
    gradient("wrong shape (4,)", "a_grad", np.ones(4, np.float32), r"got shape \[4\]"),
    gradient(
        "wrong shape same size (4,) for (2,2)",
        "b_grad",
        np.ones(4, np.float32),
        r"got shape \[4\], expected \[2, 2\]",
    ),
    gradient("broadcastable (1,)", "a_grad", np.ones(1, np.float32), r"got shape \[1\]"),
    gradient(
        "broadcastable (1,) + weight_decay", "a_grad", np.ones(1, np.float32), r"got shape \[1\]"
    ),
    gradient("scalar ()", "a_grad", np.float32(1), r"got shape \[\]"),
    gradient("float64", "a_grad", np.ones(3), "got dtype float64, expected float32"),
    gradient("float16", "a_grad", np.ones(3, np.float16), "got dtype float16"),
    gradient("int32", "a_grad", np.ones(3, np.int32), "got dtype int32"),
    gradient("float16 + weight_decay", "a_grad", np.ones(3, np.float16), "got dtype float16"),
    gradient("None element", "a_grad", None, "got "),
    gradient("ndarray element", "a_grad", np.ones(3, np.float32)),
    Case("None", lambda: None, "^feeds: got NoneType"),
    gradient("python float element", "a_grad", 1.0, "got dtype float64"),
]
TABLE["gradients"] = GRADIENTS + [case._replace(text=f"{case.text} centered") for case in GRADIENTS]


def with_groups(key):
    name = rf"params\[0\]\['{key}'\]"
    return name, lambda value: RMSProp(groups({"params": [B]}, **{key: value}))


# What messages call the value of a case (a pattern), and how the value becomes an optimizer. Any
# other category is the name of an argument.
OPTIMIZERS = {
    **dict.fromkeys(("params", "groups", "grouped"), ("params", RMSProp)),
    "order_params": (r"(params\[2\]\['order_params'\]|order_params)", RMSProp),
    "group lr": with_groups("lr"),
    "group weight_decay": with_groups("weight_decay"),
    "group grad_centralization": with_groups("grad_centralization"),
}


class Departure(NamedTuple):
    """What graphopt does instead: an error when built ("init") or at a step ("call"), or none."""

    category: str
    error: type[Exception] | None
    stage: str | None
    reason: str
    texts: list[str]


CHECKED_ONCE = "checked when built, not at a step: "
DEPARTURES = [
    Departure("learning_rate", ValueError, "init", "text is no number", ["'12'", "b'12'"]),
    Departure(
        "learning_rate",
        ValueError,
        "init",
        CHECKED_ONCE + "without a value there is no step",
        ["[]", "{}", "array([], dtype=float64)", "range(0)"],
    ),
    Departure(
        "learning_rate",
        ValueError,
        "init",
        CHECKED_ONCE + "a negative value or NaN would spoil the parameters",
        ["[0.1, -0.2]", "[nan]", "Tensor scalar neg", "Tensor nan", "Tensor 1-D neg"],
    ),
    Departure("learning_rate", TypeError, "init", CHECKED_ONCE + "None is no number", ["[None]"]),
    Departure(
        "learning_rate",
        ValueError,
        "init",
        CHECKED_ONCE + "a step has one learning rate",
        ["[[0.1, 0.2]]", "array([[0.1, 0.2]])"],
    ),
    Departure(
        "learning_rate",
        None,
        None,
        "a 0-D array is a number, as a 0-D tensor is",
        ["array(0.1)"],
    ),
    Departure(
        "learning_rate",
        TypeError,
        "init",
        "a Parameter has no value here; what the caller sets at each step is schedules.FromCaller",
        ["Parameter scalar"],
    ),
    Departure(
        "params",
        TypeError,
        "init",
        CHECKED_ONCE + "integers have no gradient",
        ["int32 Parameter", "int32 Parameter centered"],
    ),
    Departure(
        "groups",
        ValueError,
        "init",
        "the same error as for a parameter that stands twice without groups",
        ["param in two groups", "dup in one group"],
    ),
    Departure("group lr", ValueError, "init", CHECKED_ONCE + "no step has a value", ["[]"]),
    Departure("group lr", None, None, "a generator is read once, and kept", ["generator"]),
    Departure(
        "order_params",
        TypeError,
        "init",
        "the wrong type is a TypeError, here as elsewhere",
        ["strings ['b','a']", "Tensors"],
    ),
    Departure(
        "gradients",
        TypeError,
        "call",
        "feeds are a dict by name, so that anything else has the wrong type",
        ["list instead of tuple", "list instead of tuple centered", "None"],
    ),
    Departure(
        "gradients",
        ValueError,
        "call",
        "feeds are named, and so is the one that is missing or unknown",
        [
            *("too few", "too many", "empty tuple"),
            *("too few centered", "too many centered", "empty tuple centered"),
        ],
    ),
    Departure(
        "gradients",
        TypeError,
        "call",
        "the wrong type is a TypeError, whether centered or not",
        ["None element", "python float element"],
    ),
    Departure(
        "gradients",
        None,
        None,
        "tensors are NumPy arrays here",
        ["ndarray element", "ndarray element centered"],
    ),
]
DEPARTING = {
    (departure.category, text): departure for departure in DEPARTURES for text in departure.texts
}


def rows_and_cases():
    """Pairs in the order of the rows; a test of its own finds out whether any is left over."""
    remaining = {category: iter(cases) for category, cases in TABLE.items()}
    return [
        pytest.param(row, next(remaining[row["category"]], None), id=f"{number} {label(row)}")
        for number, row in enumerate(ROWS)
    ]


def label(row):
    return f"{row['category']} {without_address(row['input'])}"


def specified(row):
    """The error and its stage; twice None if the row is accepted."""
    return ERRORS.get(row["result"]), row.get("stage")


def expected(row):
    departure = DEPARTING.get((row["category"], row["input"]))
    return (departure.error, departure.stage) if departure else specified(row)


def built(row, case):
    """The optimizer, and what is fed to a step of it."""
    category, text = row["category"], row["input"]
    if category == "gradients":
        decay = 0.1 if "weight_decay" in text else 0.0
        optimizer = RMSProp([A, B], weight_decay=decay, centered="centered" in text)
        return optimizer, case.make()
    made = case.make()
    if not isinstance(made, RMSProp):
        _, optimizer = OPTIMIZERS.get(category, (None, lambda v: RMSProp([A], **{category: v})))
        made = optimizer(made)
    return made, {f"{p.name}_grad": np.ones(p.shape, p.dtype) for p in made.params}


def message(category, case):
    """A pattern: the name of the argument, then what the case says, or the value."""
    if case.says.startswith("^"):
        return case.says
    name, _ = OPTIMIZERS.get(category, (category, None))
    if case.says:
        return f"^{name}.*{case.says}"
    value = case.make()
    shown = {repr(value), repr(float(value)) if isinstance(value, int) else repr(value)}
    return f"^{name}: got ({'|'.join(map(re.escape, shown))})"


def test_every_row_has_one_case():
    assert len(ROWS) == 273
    assert {row["category"] for row in ROWS} == TABLE.keys()
    for category, cases in TABLE.items():
        rows = [without_address(row["input"]) for row in ROWS if row["category"] == category]
        assert [case.text for case in cases] == rows


def test_every_departure_departs():
    assert len(DEPARTING) == sum(len(departure.texts) for departure in DEPARTURES)
    rows = {}
    for row in ROWS:
        rows.setdefault((row["category"], row["input"]), []).append(row)
    for key, departure in DEPARTING.items():
        (row,) = rows[key]
        error, stage = specified(row)
        agrees = departure.stage == stage and (
            departure.error is error or (error and issubclass(departure.error, error))
        )
        assert not agrees, key
        assert departure.reason


@pytest.mark.quick
@pytest.mark.parametrize(("row", "case"), rows_and_cases())
def test_row(row, case):
    error, stage = expected(row)
    if stage == "init":
        with pytest.raises(error) as caught:
            built(row, case)
        assert re.search(message(row["category"], case), str(caught.value.args[0]), re.DOTALL)
        return
    optimizer, feeds = built(row, case)
    initial = {p.name: np.ones(p.shape, p.dtype) for p in optimizer.params}
    session = Session(update_graph(optimizer), parameters=initial)
    before = session.state
    if stage == "call":
        with pytest.raises(error, match=message(row["category"], case)):
            session.step(feeds)
        for name, value in session.state.items():
            np.testing.assert_array_equal(value, before[name])
    else:
        assert session.step(feeds)["updated"]
