"""The activation functions of recurrent layers, and what their attributes say of them."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.rewriting import describe

Activation = Callable[[ir.Value], ir.Value]

# What a function takes of `activation_alpha` and `activation_beta`, and what it is without; None
# where ONNX gives no default.
_ALPHA: dict[str, float | None] = {
    "affine": None,
    "elu": 1.0,
    "hardsigmoid": 0.2,
    "leakyrelu": 0.01,
    "scaledtanh": None,
    "thresholdedrelu": 1.0,
}
_BETA: dict[str, float | None] = {"affine": None, "hardsigmoid": 0.5, "scaledtanh": None}


def activations(
    op: GraphBuilder, node: ir.Node, defaults: Sequence[str], directions: int
) -> list[list[Activation]]:
    """The functions of a recurrent node, in each direction; those of gates clip what they get.

    Raises:
        ValueError: One is unknown, or lacks a parameter.
    """
    count = len(defaults)
    names = [*(node.attributes.get_strings("activations") or [*defaults] * directions)]
    if len(names) != count * directions:
        raise ValueError(
            f"{describe(node)}: got {len(names)} activations, expected {count * directions}: "
            f"{count} in each direction"
        )
    clip = node.attributes.get_float("clip") if "clip" in node.attributes else None
    alphas = list(node.attributes.get_floats("activation_alpha") or ())
    betas = list(node.attributes.get_floats("activation_beta") or ())

    def function(index: int, name: str) -> Activation:
        kind = name.lower()
        # Each takes the next number of the list, if it takes one at all.
        parameters = {
            key: given.pop(0) if given else defaults[kind]
            for key, given, defaults in (("alpha", alphas, _ALPHA), ("beta", betas, _BETA))
            if kind in defaults
        }
        if missing := [key for key, value in parameters.items() if value is None]:
            raise ValueError(
                f"{describe(node)}: its activation '{name}' has no default; "
                f"give activation_{' and activation_'.join(missing)}"
            )
        if kind not in _FUNCTIONS:
            raise ValueError(
                f"{describe(node)}: got the activation '{name}', expected one of "
                f"{', '.join(sorted(_FUNCTIONS))}, in upper or lower case"
            )

        def apply(x: ir.Value) -> ir.Value:
            # An LSTM's third function is not one of a gate; ONNX Runtime does not clip there.
            if clip is not None and index % count < 2:
                x = op.Clip(x, -clip, clip)
            return _FUNCTIONS[kind](op, x, **parameters)

        return apply

    functions = [function(index, name) for index, name in enumerate(names)]
    return [functions[start : start + count] for start in range(0, len(functions), count)]


def _affine(op: GraphBuilder, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    return op.Add(op.Mul(x, alpha), beta)


def _scaled_tanh(op: GraphBuilder, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    return op.Mul(op.Tanh(op.Mul(x, beta)), alpha)


def _operator(op_type: str) -> Callable[..., ir.Value]:
    """A function that is an operator of ONNX, with attributes of the same names."""

    def append(op: GraphBuilder, x: ir.Value, **attributes: Any) -> ir.Value:
        return op.node(op_type, [x], **attributes)[0]

    return append


_FUNCTIONS: dict[str, Callable[..., ir.Value]] = {
    name.lower(): _operator(name)
    for name in (
        *("Elu", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Softsign", "Tanh"),
        "ThresholdedRelu",
    )
} | {"affine": _affine, "scaledtanh": _scaled_tanh}
