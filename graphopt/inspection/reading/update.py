"""Recognises the update of a parameter by what it computes, not by names.

The patterns are the formulas of RMSProp as `graphopt.update.core` composes them, and some forms
that are common elsewhere. What they find, by name: the old values ``w``, ``s``, ``a``, ``m``, the
new ones ``s1``, ``a1``, ``m1``, the ``gradient`` as the update gets it, the learning rate ``lr``,
the factor of weight decay ``k``, the numbers ``decay``, ``epsilon``, ``momentum``,
``loss_scale``, and marks such as ``centered``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from graphopt.inspection.reading.conditions import Condition, condition_of
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.pattern import (
    Any,
    Equals,
    Fed,
    Found,
    Marked,
    Named,
    Number,
    OneOf,
    Op,
    Pattern,
    match,
)
from graphopt.inspection.reading.scaling import (
    ACCUMULATED,
    PART_OF_ACCUMULATED,
    SCALED,
    UNSCALED,
    Scaling,
    is_symmetric,
    scaling,
)
from graphopt.states import OF_PARAMETERS, State

_W, _LR, _K = Fed("w"), Any("lr"), Any("k")
_RAW = Any("gradient")


def average(old: Pattern, new: Pattern) -> Pattern:
    """An exponential moving average: decay * old + (1 - decay) * new, however it is written."""
    rest = OneOf(Op("Sub", Equals(1.0), Number("decay")), Number("rest"))
    return OneOf(
        Op("Add", Op("Mul", old, Number("decay")), Op("Mul", new, rest)),
        Op("Add", old, Op("Mul", Op("Sub", new, old), Number("rest"))),
        Op("Sub", old, Op("Mul", Op("Sub", old, new), Number("rest"))),
        Marked("whole", Op("Add", Op("Mul", old, Number("decay")), new)),  # with decay 0
    )


def _square(x: Pattern) -> Pattern:
    return OneOf(Op("Mul", x, x), Op("Pow", x, Equals(2.0)))


def _root(x: Pattern) -> Pattern:
    return OneOf(Op("Sqrt", x), Op("Pow", x, Equals(0.5)))


def _quotient(a: Pattern, b: Pattern) -> Pattern:
    return OneOf(
        Op("Div", a, b),
        Op("Mul", a, Op("Reciprocal", b)),
        Op("Mul", a, Op("Div", Equals(1.0), b)),
    )


def _coupled(g: Pattern) -> Pattern:
    """With weight decay that is added to the gradient."""
    return OneOf(
        Marked("coupled", Op("Add", g, Op("Mul", _W, _K), here=True)),
        Marked("coupled", Op("Add", Op("Mul", _W, _K), g, here=True)),
    )


# The last two are what is left where learning rate and weight decay have been multiplied before.
_BASE = OneOf(
    Marked("decoupled", Op("Sub", _W, Op("Mul", _W, Op("Mul", _LR, _K)))),
    Marked("decoupled", Op("Sub", _W, Op("Mul", _W, Number("lr_k")))),
    Marked("decoupled", Op("Mul", _W, Number("kept"))),
    _W,
)


def _rmsprop(*, unscales: bool, accumulates: bool = False) -> Pattern:
    """The new parameters; see `recognised`."""
    scaled = ACCUMULATED if accumulates else SCALED
    decayed = OneOf(_coupled(scaled), scaled)
    unscaled = Op("Div", decayed, Number("loss_scale"), here=True)
    g = Named("g", OneOf(unscaled, decayed) if unscales else decayed)
    rest_g = Op("Mul", Op("Mul", g, Number("rest")), g)
    s1 = Named(
        "s1",
        OneOf(
            average(Any("s"), _square(g)),
            Op("Add", Op("Mul", Any("s"), Number("decay")), rest_g),
        ),
    )
    a1 = Named("a1", average(Any("a"), g))
    variance = OneOf(Marked("centered", Op("Sub", s1, _square(a1))), s1)
    d = Named(
        "d",
        OneOf(
            _root(Op("Add", variance, Number("epsilon"))),
            Marked("epsilon_outside", Op("Add", _root(variance), Number("epsilon"))),
            Marked("no_epsilon", _root(variance)),  # tools delete it, because it is so small
        ),
    )
    positive = OneOf(Op("Greater", d, Equals(0.0)), Op("Greater", variance, Equals(0.0)))
    moves = Named(
        "moves", OneOf(Op("Cast", positive), Op("Div", d, d), Op("Div", variance, variance))
    )
    rated = OneOf(
        Marked("rate_inside", _quotient(Op("Mul", g, _LR), d)),
        Marked("rate_inside", Op("Mul", _quotient(g, d), _LR)),
        Marked("rate_inside", Op("Mul", g, Op("Div", _LR, d))),
        _quotient(g, d),
    )
    moving = Named("v", Op("Mul", rated, moves))
    without_negative = Op("ThresholdedRelu", moving)
    without_positive = Op("ThresholdedRelu", Op("Neg", moving))
    guarded = OneOf(
        Op("Sub", without_negative, without_positive),
        Op("Where", positive, rated, Equals(0.0)),
        Op("Where", Op("Greater", moves, Equals(0.0)), rated, Equals(0.0)),
    )
    u = Named("u", OneOf(Marked("guarded", guarded), rated))
    resting = Op("Sub", Equals(1.0), moves)
    share = OneOf(Number("momentum"), Op("Add", Op("Mul", moves, Number("momentum")), resting))
    m1 = Named("m1", Op("Add", Op("Mul", Any("m"), share), u))
    ahead = Marked("nesterov", Op("Add", Op("Mul", m1, Number("momentum")), u))
    moment = OneOf(ahead, m1, u)
    scaled = OneOf(Marked("rate_outside", Op("Mul", moment, _LR)), moment)
    step = OneOf(Op("Mul", scaled, moves), scaled)
    return OneOf(
        Op("Sub", _BASE, step),
        Op("Add", _BASE, Op("Neg", step)),
        Marked("negative_rate", Op("Add", _BASE, step)),
    )


_RMSPROP = {unscales: _rmsprop(unscales=unscales) for unscales in (True, False)}
_ACCUMULATING = _rmsprop(unscales=False, accumulates=True)

# Stochastic gradient descent written out in operators; momentum as in PyTorch.
_PLAIN = OneOf(_coupled(_RAW), _RAW)
_MOMENT = Named("m1", Op("Add", Op("Mul", Any("m"), Number("momentum")), _PLAIN))
_DIRECTION = OneOf(_coupled(_RAW), _MOMENT, _RAW)
_SGD = Op("Sub", _W, Op("Mul", _DIRECTION, _LR))

_CENTRALIZED = OneOf(
    Op("Sub", Named("x", Any("row")), Op("Div", Op("ReduceSum", Any("row")), Any("length"))),
    Op("Sub", Named("x", Any("row")), Op("ReduceMean", Any("row"))),
)
_PARTS = {False: SCALED, True: PART_OF_ACCUMULATED}  # by whether gradients are added up
_ROWS = {
    adds_up: OneOf(Op("Add", part, Op("Mul", _W, _K)), part) for adds_up, part in _PARTS.items()
}


@dataclass(frozen=True)
class Update:
    """An update that was recognised.

    Attributes:
        optimizer: "RMSProp" or "SGD".
        new: The new parameters.
        found: What the patterns found.
        enabled: What says whether it is made, if something does.
    """

    optimizer: str
    new: Value
    found: Found
    enabled: Value | None = None

    def value(self, name: str) -> Value | None:
        """A value that was found."""
        value = self.found.get(name)
        return value if isinstance(value, Value) else None

    def states(self) -> Iterator[tuple[State, Value, Value]]:
        """The states that were found, each with its old and its new value."""
        for state in OF_PARAMETERS:
            old, new = self.value(state.symbol), self.value(f"{state.symbol}1")
            if old is not None and new is not None:
                yield state, old, new

    def number(self, name: str, default: float) -> float:
        """A number that was found."""
        value = self.found.get(name, default)
        return default if isinstance(value, Value) else value

    def has(self, mark: str) -> bool:
        """Whether something was found."""
        return mark in self.found

    @cached_property
    def condition(self) -> Condition:
        """On what it depends."""
        return Condition() if self.enabled is None else condition_of(self.enabled)

    @property
    def scaling(self) -> Scaling:
        """What is done to the gradient first."""
        return scaling(self.found)


@dataclass(frozen=True)
class Gradient:
    """How the update gets the gradient of one parameter.

    Attributes:
        value: The gradient as the backward pass computes it.
        centralized: Whether its mean is subtracted.
        factor: That of weight decay, where it comes before.
        scaling: What is done to it first.
        share: What the sum of the gradients of several steps is multiplied by.
    """

    value: Value
    centralized: bool = False
    factor: Value | None = None
    scaling: Scaling = UNSCALED
    share: Value | None = None


def recognised(new: Value, *, unscales: bool = True, accumulates: bool = False) -> Update | None:
    """The update that computes these new parameters, if it is one that is known.

    Args:
        new: The new parameters.
        unscales: Whether a gradient that is divided by a number is one with a loss scale.
        accumulates: Whether it is an update by the gradients of several steps.
    """
    value, enabled, kept = _unmasked(new)
    operation = value.source.operation
    if operation is None or operation.op_type not in ("Add", "Sub"):
        return None
    found = match(_ACCUMULATING, value) if accumulates else None
    if found is None:  # also a sum of which each parameter has something done to its own part
        found = match(_RMSPROP[unscales and not accumulates], value)
    name = "RMSProp"
    if found is None or not _is_consistent(found):
        found, name = match(_SGD, value), "SGD"
        if found is None or not _is_descent(found):
            return None
    if kept is not None and kept is not found["w"]:
        return None
    return Update(name, new, found, enabled)


def gradient_of(value: Value, *, adds_up: bool = False) -> Gradient:
    """What has been done to the gradient of a parameter before the update of the bucket.

    Args:
        value: What is applied.
        adds_up: Whether it is made of the sum of the gradients of several steps.
    """
    found = match(_CENTRALIZED, value)
    pattern = (_PARTS if found is None else _ROWS)[adds_up]
    row = match(pattern, value if found is None else found.value("row"))
    if row is None or not is_symmetric(row):
        return Gradient(value.source)
    factor, share = row.get("k"), row.get("share")
    return Gradient(
        row.value("gradient").source,
        found is not None,
        factor if isinstance(factor, Value) else None,
        scaling(row),
        share if isinstance(share, Value) else None,
    )


def _unmasked(new: Value) -> tuple[Value, Value | None, Value | None]:
    """Without a Where that keeps old values: what is left, the condition, and what it keeps."""
    masked = match(Op("Where", Any("on"), Any("new"), Fed("old")), new)
    if masked is None:
        return new, None, None
    return masked.value("new"), masked.value("on"), masked.value("old")


def _is_consistent(found: Found) -> bool:
    """Whether the numbers fit each other; finds the decay where only 1 - decay stands."""
    if not is_symmetric(found):
        return False
    rest = found.get("rest")
    if isinstance(rest, float):
        decay = found.setdefault("decay", float(f"{1 - rest:.7g}"))
        if not isinstance(decay, float) or abs(rest + decay - 1) > 1e-6:
            return False
    if "whole" in found and found["decay"] != 0:
        return False
    return "negative_rate" not in found or _has_negative_rate(found)


def _has_negative_rate(found: Found) -> bool:
    """Whether the learning rate is a negative number, or the negative of something."""
    rate = found.get("lr")
    if not isinstance(rate, Value):
        return False
    number, operation = rate.source.number, rate.source.operation
    if operation is not None and operation.op_type == "Neg" and operation.inputs[0] is not None:
        found["lr"] = operation.inputs[0]
        del found["negative_rate"]
        return True
    return number is not None and number < 0


def _is_descent(found: Found) -> bool:
    """Whether what looks like gradient descent may be: any difference of a product does."""
    rate, gradient, moment = found.value("lr"), found.value("gradient"), found.get("m")
    operation = gradient.source.operation
    return (
        (rate.number is not None or rate.shape in ((), (1,)))
        and gradient is not found["w"]
        and moment is not found["w"]
        and (operation is None or operation.op_type != "Sign")
    )
