"""Schedules made of other things: of schedules, of ONNX text, of a value that the caller feeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx import parser

from graphopt import _checks
from graphopt.builder import GraphBuilder
from graphopt.schedules._base import LearningRateSchedule

_FROM_CALLER = "graphopt.from_caller"


@dataclass(frozen=True, init=False)
class SequentialLR(LearningRateSchedule):
    """One schedule after another, each starting from its own step 0.

    Args:
        schedules: Two or more.
        milestones: The steps at which the second, third, ... begin; ints, growing.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The lengths do not match, or the milestones do not grow.

    Example:
        >>> from graphopt.schedules import CosineDecayLR, WarmUpLR
        >>> warm_up_then_cosine = SequentialLR(
        ...     [WarmUpLR(0.1, 10), CosineDecayLR(0.0, 0.1, 90)], milestones=[10])
        >>> [warm_up_then_cosine.value(step) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.05, 0.1, 0.05, 0.0]
    """

    schedules: tuple[LearningRateSchedule, ...]
    milestones: tuple[int, ...]

    def __init__(
        self, schedules: Sequence[LearningRateSchedule], milestones: Sequence[int]
    ) -> None:
        """See the class."""
        object.__setattr__(self, "schedules", tuple(schedules))
        object.__setattr__(self, "milestones", tuple(milestones))
        for schedule in self.schedules:
            if not isinstance(schedule, LearningRateSchedule):
                raise TypeError(
                    f"schedules: got {type(schedule).__name__}, expected a LearningRateSchedule"
                )
        for milestone in self.milestones:
            _checks.steps("milestones", milestone)
        if len(self.schedules) < 2 or len(self.milestones) != len(self.schedules) - 1:
            raise ValueError(
                f"milestones: got {len(self.milestones)} for {len(self.schedules)} schedules, "
                "expected two schedules or more, and a milestone between any two"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones: got {list(self.milestones)}, expected growing steps")

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """The schedule whose turn it is; all are computed."""
        value = op.Cast(self.schedules[0].emit(op, step), to=ir.DataType.DOUBLE)
        for milestone, schedule in zip(self.milestones, self.schedules[1:], strict=True):
            # Clipped, because a schedule need not be defined before its own step 0.
            later = schedule.emit(op, op.Max(op.Sub(step, milestone), 0.0))
            later = op.Cast(later, to=ir.DataType.DOUBLE)
            value = op.Where(op.Less(step, milestone), value, later)
        return value

    def value(self, step: int) -> float:
        """The value of the schedule whose turn it is."""
        begins, schedule = 0, self.schedules[0]
        for milestone, later in zip(self.milestones, self.schedules[1:], strict=True):
            if step >= milestone:
                begins, schedule = milestone, later
        return schedule.value(step - begins)

    def describe(self) -> Mapping[str, Any]:
        """The parts and the milestones."""
        return {
            "schedule": "SequentialLR",
            "schedules": [schedule.describe() for schedule in self.schedules],
            "milestones": list(self.milestones),
        }


@dataclass(frozen=True)
class OnnxSchedule(LearningRateSchedule):
    """A schedule written as ONNX text: one function from the step to the value.

    Args:
        text: An ONNX function of one input, the step as a float64 scalar, and one output.

    Raises:
        ValueError: The text is not a function of one input and one output.

    Example:
        >>> schedule = OnnxSchedule('''<domain: "local", opset_import: ["": 17]>
        ... inverse_root (step) => (lr) {
        ...     one = Constant <value = double {1.0}> ()
        ...     start = Constant <value = double {0.1}> ()
        ...     count = Add (step, one)
        ...     root = Sqrt (count)
        ...     lr = Div (start, root)
        ... }''')
        >>> schedule.value(3)
        0.05
    """

    text: str

    def __post_init__(self) -> None:
        try:
            function = parser.parse_function(self.text)
        except parser.ParseError as error:
            raise ValueError(f"text: not an ONNX function: {error}") from None
        if len(function.input) != 1 or len(function.output) != 1 or function.attribute:
            raise ValueError(
                f"text: function '{function.name}' has {len(function.input)} inputs and "
                f"{len(function.output)} outputs, expected one of each and no attributes"
            )

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """The nodes of the function, copied into the graph."""
        function = parser.parse_function(self.text)
        values: dict[str, ir.Value | None] = {"": None, function.input[0]: step}
        for proto in function.node:
            attributes = [ir.from_proto(attribute) for attribute in proto.attribute]
            outputs = op.node(
                proto.op_type,
                [values[name] for name in proto.input],
                domain=proto.domain,
                outputs=len(proto.output),
                **{attribute.name: attribute for attribute in attributes},
            )
            values.update(zip(proto.output, outputs, strict=True))
        result = values[function.output[0]]
        assert result is not None
        return result

    def describe(self) -> Mapping[str, Any]:
        """The text."""
        return {"schedule": "OnnxSchedule", "text": self.text}


@dataclass(frozen=True)
class FromCaller(LearningRateSchedule):
    """A learning rate that the caller feeds at every step, a float32 scalar.

    Args:
        name: The name of the graph's input.

    Example:
        >>> opt = RMSProp([Parameter("w", ())], learning_rate=FromCaller(), decay=0.0)
        >>> session = Session(update_graph(opt), parameters={"w": np.float32(1)})
        >>> _ = session.step({"w_grad": np.float32(2), "learning_rate": np.float32(0.25)})
        >>> session.state["w"]
        array(0.75, dtype=float32)
    """

    name: str = "learning_rate"

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:  # noqa: ARG002
        """An input of the graph, the same wherever it is read."""
        for value in op.graph.inputs:
            if value.name == self.name and _FROM_CALLER in value.meta:
                return value
        value = op.input(self.name, ir.DataType.FLOAT, [])
        value.meta[_FROM_CALLER] = True
        return value

    def value(self, step: int) -> float:
        """Not known.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"the learning rate of step {step} is fed as '{self.name}'")

    def describe(self) -> Mapping[str, Any]:
        """The name of the input."""
        return {"schedule": "FromCaller", "input": self.name}
