"""The update itself as one ONNX function, composed of the stages in ``functions``.

Its name says which variant it is, for example ``RMSProp``, ``RMSPropMomentum`` or
``CenteredRMSPropMomentum``; a name always has the same inputs, outputs and body.

    inputs    w, g, s, a (centered), m (momentum), lr
    outputs   w1, s1, a1 (centered), m1 (momentum)

with the parameter w, the gradient g, the mean square s, the mean gradient a, the moment m and the
learning rate lr, a scalar.
"""

from graphopt.rmsprop import RMSProp

_HEADER = '<domain: "graphopt", opset_import: ["" : 17, "graphopt" : 1]>'


def name(optimizer: RMSProp) -> str:
    """The name of the function for this optimizer."""
    momentum = "Nesterov" if optimizer.nesterov else "Momentum" if optimizer.momentum else ""
    return "".join(
        (
            "Centered" if optimizer.centered else "",
            "RMSProp",
            momentum,
            "" if optimizer.epsilon_inside_root else "EpsilonOutside",
            "" if optimizer.learning_rate_inside_moment or not momentum else "RateOutside",
        )
    )


def attributes(optimizer: RMSProp) -> dict[str, float]:
    """The attributes of a call."""
    values = {"decay": optimizer.decay, "epsilon": optimizer.epsilon}
    return values | ({"momentum": optimizer.momentum} if optimizer.momentum else {})


def text(optimizer: RMSProp) -> str:
    """The function as ONNX text."""
    momentum, centered = optimizer.momentum > 0, optimizer.centered
    rate_outside = momentum and not optimizer.learning_rate_inside_moment
    lines = [
        "gg = Mul (g, g)",
        "s1 = graphopt.MovingAverage <decay: float = @decay> (s, gg)",
    ]
    variance = "s1"
    if centered:
        lines += [
            "a1 = graphopt.MovingAverage <decay: float = @decay> (a, g)",
            "aa = Mul (a1, a1)",
            "variance = Sub (s1, aa)",
        ]
        variance = "variance"
    denominator = "Denominator" if optimizer.epsilon_inside_root else "DenominatorEpsilonOutside"
    lines += [f"d = graphopt.{denominator} <epsilon: float = @epsilon> ({variance})"]
    lines += ["u = Div (g, d)"] if rate_outside else ["lg = Mul (g, lr)", "u = Div (lg, d)"]
    step = "u"
    if momentum:
        step = "moment" if centered else "m1"
        lines += [f"{step} = graphopt.Moment <momentum: float = @momentum> (m, u)"]
    if centered and momentum:
        lines += ["m1 = graphopt.Guard (d, m, moment)"]
    if optimizer.nesterov:
        lines += [f"ahead = graphopt.Moment <momentum: float = @momentum> ({step}, u)"]
        step = "ahead"
    if rate_outside:
        lines += [f"scaled = Mul ({step}, lr)"]
        step = "scaled"
    if centered:
        lines += [f"moved = Sub (w, {step})", "w1 = graphopt.Guard (d, w, moved)"]
    else:
        lines += [f"w1 = Sub (w, {step})"]
    states = ["s", *(["a"] if centered else []), *(["m"] if momentum else [])]
    inputs = ", ".join(["w", "g", *states, "lr"])
    outputs = ", ".join(["w1", *(f"{state}1" for state in states)])
    body = "\n".join(f"  {line}" for line in lines)
    keys = ", ".join(attributes(optimizer))
    return f"{_HEADER}\n{name(optimizer)} <{keys}> ({inputs}) => ({outputs})\n{{\n{body}\n}}\n"
