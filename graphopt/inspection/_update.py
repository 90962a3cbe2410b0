"""Recognises the update of a parameter by what it computes, not by names.

The patterns are the formulas of RMSProp as `graphopt.update.core` composes them, and some forms
that are common elsewhere. What they find, by name: the old values ``w``, ``s``, ``a``, ``m``, the
new ones ``s1``, ``a1``, ``m1``, the ``gradient`` as the update gets it, the learning rate ``lr``,
the factor of weight decay ``k``, the numbers ``decay``, ``epsilon``, ``momentum``,
``loss_scale``, and marks such as ``centered``.
"""

from dataclasses import dataclass

from graphopt.inspection._dataflow import Value
from graphopt.inspection._pattern import (
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

_W, _LR, _K = Fed("w"), Any("lr"), Any("k")


def _average(old: Pattern, new: Pattern) -> Pattern:
    """Decay * old + (1 - decay) * new."""
    rest = OneOf(Op("Sub", Equals(1.0), Number("decay")), Number("rest"))
    return Op("Add", Op("Mul", old, Number("decay")), Op("Mul", new, rest))


_RAW = Any("gradient")
_DECAYED = OneOf(
    Marked("coupled", Op("Add", _RAW, Op("Mul", _W, _K), here=True)),
    Marked("coupled", Op("Add", Op("Mul", _W, _K), _RAW, here=True)),
    _RAW,
)
_G = Named("g", OneOf(Op("Div", _DECAYED, Number("loss_scale"), here=True), _DECAYED))
_S1 = Named("s1", _average(Any("s"), Op("Mul", _G, _G)))
_A1 = Named("a1", _average(Any("a"), _G))
_VARIANCE = OneOf(Marked("centered", Op("Sub", _S1, Op("Mul", _A1, _A1))), _S1)
_D = Named(
    "d",
    OneOf(
        Op("Sqrt", Op("Add", _VARIANCE, Number("epsilon"))),
        Marked("epsilon_outside", Op("Add", Op("Sqrt", _VARIANCE), Number("epsilon"))),
    ),
)
_MOVES = Named("moves", OneOf(Op("Cast", Op("Greater", _D, Equals(0.0))), Op("Div", _D, _D)))
_RATED = OneOf(
    Marked("rate_inside", Op("Div", Op("Mul", _G, _LR), _D)),
    Marked("rate_inside", Op("Mul", Op("Div", _G, _D), _LR)),
    Op("Div", _G, _D),
)
_ONLY_MOVING = Named("v", Op("Mul", _RATED, _MOVES))
_GUARDED = Marked(
    "guarded",
    OneOf(
        Op(
            "Sub",
            Op("ThresholdedRelu", _ONLY_MOVING),
            Op("ThresholdedRelu", Op("Neg", _ONLY_MOVING)),
        ),
        Op("Where", Op("Greater", _D, Equals(0.0)), _RATED, Equals(0.0)),
    ),
)
_U = Named("u", OneOf(_GUARDED, _RATED))
_SHARE = OneOf(
    Number("momentum"),
    Op("Add", Op("Mul", _MOVES, Number("momentum")), Op("Sub", Equals(1.0), _MOVES)),
)
_M1 = Named("m1", Op("Add", Op("Mul", Any("m"), _SHARE), _U))
_AHEAD = Marked("nesterov", Op("Add", Op("Mul", _M1, Number("momentum")), _U))
_MOMENT = OneOf(_AHEAD, _M1, _U)
_SCALED = OneOf(Marked("rate_outside", Op("Mul", _MOMENT, _LR)), _MOMENT)
_STEP = OneOf(Op("Mul", _SCALED, _MOVES), _SCALED)
_BASE = OneOf(Marked("decoupled", Op("Sub", _W, Op("Mul", _W, Op("Mul", _LR, _K)))), _W)
_RMSPROP = Op("Sub", _BASE, _STEP)

# Stochastic gradient descent written out in operators; momentum as in PyTorch.
_DIRECTION = OneOf(Named("m1", Op("Add", Op("Mul", Any("m"), Number("momentum")), _RAW)), _RAW)
_SGD = Op("Sub", _W, Op("Mul", _DIRECTION, _LR))

_CENTRALIZED = OneOf(
    Op("Sub", Named("x", Any("row")), Op("Div", Op("ReduceSum", Any("row")), Any("length"))),
    Op("Sub", Named("x", Any("row")), Op("ReduceMean", Any("row"))),
)
_ROW_DECAYED = Op("Add", _RAW, Op("Mul", _W, _K))


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

    def number(self, name: str, default: float) -> float:
        """A number that was found."""
        value = self.found.get(name, default)
        return default if isinstance(value, Value) else value

    def has(self, mark: str) -> bool:
        """Whether something was found."""
        return mark in self.found


@dataclass(frozen=True)
class Gradient:
    """How the update gets the gradient of one parameter.

    Attributes:
        value: The gradient as the backward pass computes it.
        centralized: Whether its mean is subtracted.
        factor: That of weight decay, where it comes before.
    """

    value: Value
    centralized: bool = False
    factor: Value | None = None


def recognised(new: Value) -> Update | None:
    """The update that computes these new parameters, if it is one that is known."""
    value, enabled = _unmasked(new)
    operation = value.source.operation
    if operation is None or operation.op_type != "Sub":
        return None
    found = match(_RMSPROP, value)
    if found is not None and _consistent(found):
        return Update("RMSProp", new, found, enabled)
    found = match(_SGD, value)
    # Every difference of a product looks like this, so the rate must be one.
    if found is not None and _is_scalar(found["lr"]) and found["gradient"] is not found["w"]:
        return Update("SGD", new, found, enabled)
    return None


def gradient_of(value: Value) -> Gradient:
    """What has been done to the gradient of a parameter before the update of the bucket."""
    found = match(_CENTRALIZED, value)
    if found is None:
        return Gradient(value.source)
    row = found["row"]
    assert isinstance(row, Value)
    decayed = match(_ROW_DECAYED, row)
    if decayed is None:
        return Gradient(row.source, centralized=True)
    raw, factor = decayed["gradient"], decayed["k"]
    assert isinstance(raw, Value)
    assert isinstance(factor, Value)
    return Gradient(raw.source, centralized=True, factor=factor)


def _unmasked(new: Value) -> tuple[Value, Value | None]:
    """Without a Where that keeps the old values."""
    masked = match(Op("Where", Any("on"), Any("new"), Fed("old")), new)
    if masked is None:
        return new, None
    value, enabled = masked["new"], masked["on"]
    assert isinstance(value, Value)
    assert isinstance(enabled, Value)
    return value, enabled


def _consistent(found: Found) -> bool:
    """Whether a constant in place of 1 - decay is that."""
    rest, decay = found.get("rest"), found["decay"]
    if rest is None:
        return True
    assert isinstance(rest, float)
    assert isinstance(decay, float)
    return abs(rest + decay - 1) < 1e-6


def _is_scalar(value: Value | float) -> bool:
    assert isinstance(value, Value)
    return value.number is not None or value.shape in ((), (1,))
