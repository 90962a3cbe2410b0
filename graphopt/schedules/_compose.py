"""Schedules made of other things: of schedules, of ONNX text, of a value that the caller feeds."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
from onnx import defs, parser

from graphopt import _checks
from graphopt.builder import GraphBuilder
from graphopt.local_functions import add_local_function
from graphopt.schedules.base import LearningRateSchedule

_FROM_CALLER = "graphopt.from_caller"


@dataclass(frozen=True)
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
        >>> [round(warm_up_then_cosine.value(step), 6) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.05, 0.1, 0.05, 0.0]
    """

    schedules: Sequence[LearningRateSchedule]
    milestones: Sequence[int]

    def __post_init__(self) -> None:
        if not isinstance(self.schedules, list | tuple):
            raise TypeError(f"schedules: got {type(self.schedules).__name__}, expected a list")
        for schedule in self.schedules:
            if not isinstance(schedule, LearningRateSchedule):
                raise TypeError(
                    f"schedules: got {type(schedule).__name__}, expected a LearningRateSchedule"
                )
        _checks.growing_steps("milestones", self.milestones)
        if len(self.schedules) != len(self.milestones) + 1:
            raise ValueError(
                f"milestones: got {len(self.milestones)} for {len(self.schedules)} schedules, "
                "expected two schedules or more, and a milestone between any two"
            )
        object.__setattr__(self, "schedules", tuple(self.schedules))
        object.__setattr__(self, "milestones", tuple(self.milestones))

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """The schedule whose turn it is; all are computed."""
        value = op.Cast(self.schedules[0].checked_emit(op, step), to=ir.DataType.DOUBLE)
        for milestone, schedule in zip(self.milestones, self.schedules[1:], strict=True):
            # Clipped, because a schedule need not be defined before its own step 0.
            later = schedule.checked_emit(op, op.Max(op.Sub(step, milestone), 0.0))
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
        if not isinstance(self.text, str):
            raise TypeError(f"text: got {type(self.text).__name__}, expected ONNX text")
        try:
            function = parser.parse_function(self.text)
        except parser.ParseError as error:
            raise ValueError(f"text: not an ONNX function: {error}") from None
        attributes = [*function.attribute, *(a.name for a in function.attribute_proto)]
        if len(function.input) != 1 or len(function.output) != 1 or attributes:
            raise ValueError(
                f"text: function '{function.name}' has {len(function.input)} inputs, "
                f"{len(function.output)} outputs and {len(attributes)} attributes, "
                "expected one input, one output and no attributes"
            )
        foreign = sorted({node.domain for node in function.node if node.domain})
        if foreign:
            raise ValueError(f"text: it calls domain '{foreign[0]}', expected ONNX operators only")
        try:
            self.value(0)
        except Exception as error:  # noqa: BLE001 - whatever its operators raise in NumPy
            raise ValueError(f"text: '{function.name}' has no value at step 0: {error}") from None

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """A call of the function."""
        function = parser.parse_function(self.text)
        function.name = f"{function.name}_{zlib.crc32(self.text.encode()):08x}"
        function.domain = "graphopt.schedules"
        opset = op.graph.opset_imports[""]
        for entry in function.opset_import:
            if not entry.domain:
                _check_opset(function, entry.version, opset)
                entry.version = opset
        add_local_function(op.graph, function)
        return op.node(function.name, [step], domain=function.domain)[0]

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

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name: got {self.name!r}, expected a string")
        if not self.name:
            raise ValueError("name: got an empty string, expected the name of an input")

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:  # noqa: ARG002
        """An input of the graph."""
        return self.input_of(op)

    def input_of(self, op: GraphBuilder) -> ir.Value:
        """The input of the graph, the same wherever it is read."""
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


def _check_opset(function: onnx.FunctionProto, written: int, opset: int) -> None:
    """Refuse operators that changed between the opset of the text and that of the graph."""
    for node in function.node:
        versions = [
            defs.get_schema(node.op_type, version, "").since_version for version in (written, opset)
        ]
        if versions[0] != versions[1]:
            raise ValueError(
                f"OnnxSchedule: {node.op_type} of opset {written} is not that of opset {opset}, "
                f"which the graph has; write the text for opset {opset}"
            )
