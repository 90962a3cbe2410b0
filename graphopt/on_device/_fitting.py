"""What ONNX Runtime's own optimizer has room for; the rest is refused.

It keeps two states of a parameter, and is fed a single learning rate. It does not say which tensor
belongs to which parameter, so that only a tensor's shape tells how it is updated.
"""

from dataclasses import replace

import onnx_ir as ir

from graphopt import _checks
from graphopt.on_device.tensor_names import MOMENTUMS, OPTIMIZER_INPUTS
from graphopt.parameter import Parameter
from graphopt.rmsprop import RMSProp, Rule
from graphopt.schedules.base import Fixed
from graphopt.states import MEAN_SQUARE

_OTHERWISE = "or leave out optimizer_model=True: the update then is inside the training model"


def momentums(optimizer: RMSProp) -> dict[str, str]:
    """Which of ONNX Runtime's two states of a parameter holds which kind of ours.

    Args:
        optimizer: Whose states.

    Returns:
        "momentum0" and "momentum1", as ONNX Runtime's checkpoints call the first and second order
        moments, by kind: "mean_square", and "mean_grad" or "moment" if there is one. The mean
        square is the second order moment, as in AdamW.

    Raises:
        ValueError: There are three kinds.

    Example:
        >>> momentums(RMSProp([Parameter("w", (3,))], momentum=0.9))
        {'mean_square': 'momentum1', 'moment': 'momentum0'}
    """
    if len(optimizer.states) > len(MOMENTUMS):
        raise ValueError(
            f"optimizer: got centered=True with momentum={optimizer.momentum}, which keeps three "
            "states of a parameter, and ONNX Runtime's optimizer has two; leave out one of them, "
            f"{_OTHERWISE}"
        )
    return {
        kind: "momentum1" if kind == MEAN_SQUARE.name else "momentum0" for kind in optimizer.states
    }


def rules_of_shapes(optimizer: RMSProp) -> dict[tuple[int, ...], Rule]:
    """How a tensor of each shape is updated.

    Returns:
        The rule of each shape, without a group; its learning rate is a multiple of the one that
        the application sets.

    Raises:
        ValueError: A learning rate is no number, or has no ratio to the first; two parameters of
            one shape are updated in different ways.
    """
    ratios = _ratios(optimizer)
    found: dict[tuple[int, ...], tuple[Rule, Parameter]] = {}
    for parameter, of_parameter in zip(optimizer.params, optimizer.rules, strict=True):
        rule = replace(of_parameter, group=0, learning_rate=ratios[of_parameter.group])
        here, other = found.setdefault(parameter.shape, (rule, parameter))
        if here != rule:
            different = ", ".join(
                name for name, value in vars(rule).items() if value != vars(here)[name]
            )
            raise ValueError(
                f"parameters '{other.name}' and '{parameter.name}' both have the shape "
                f"{list(parameter.shape)}, but different rules ({different}), and ONNX Runtime's "
                "optimizer tells parameters apart by their shapes alone; give them one rule, "
                f"{_OTHERWISE}"
            )
    return {shape: rule for shape, (rule, _) in found.items()}


def _ratios(optimizer: RMSProp) -> list[Fixed]:
    """The learning rate of each group as a multiple of that of the first."""
    rates = []
    for index, group in enumerate(optimizer.groups):
        if not isinstance(group.learning_rate, Fixed):
            kind = dict(group.learning_rate.describe())["schedule"]
            raise ValueError(
                f"the learning rate of group {index}: got {kind}, expected a number: here the "
                "application sets the rate in each step, for example with ONNX Runtime's "
                f"LinearLRScheduler; give a number, {_OTHERWISE}"
            )
        rates.append(group.learning_rate.constant)
    return [Fixed(_ratio(index, rate, rates[0])) for index, rate in enumerate(rates)]


def _ratio(index: int, rate: float, first: float) -> float:
    if rate == first:
        return 1.0
    if first == 0:
        raise ValueError(
            f"the learning rate of group {index}: got {rate}, which is no multiple of 0.0, the "
            f"rate of the first group, in whose place the application sets one; give that a rate "
            f"> 0, {_OTHERWISE}"
        )
    return _checks.in_float32(f"the learning rate of group {index} over the first", rate / first)


def check_inputs(graph: ir.Graph) -> None:
    """Refuse a schedule that has added an input.

    Raises:
        ValueError: There is one.
    """
    for value in graph.inputs[len(OPTIMIZER_INPUTS) :]:
        raise ValueError(
            f"weight_decay: got a schedule that needs the input '{value.name}', which ONNX "
            f"Runtime's optimizer does not feed; use one that counts steps, {_OTHERWISE}"
        )
