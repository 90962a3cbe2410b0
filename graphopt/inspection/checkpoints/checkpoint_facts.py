"""What is said of a checkpoint, and of how two of them differ."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from graphopt.inspection.facts import VERSION, Hazard

BINS = 24
"""The number of bins of a histogram."""

Kind = Literal["session checkpoint", "on-device checkpoint", "ONNX Runtime checkpoint"]
"""What kind of file a checkpoint is."""

Scale = Literal["linear", "log10"]
"""Of a histogram: values, or the logarithm to base 10 of magnitudes that are not zero."""


@dataclass(frozen=True)
class Histogram:
    """How values are spread: `BINS` bins of equal width, from the lowest value to the highest.

    A value on the border of two bins is in the upper one, the highest in the last; where all are
    equal, they are in the middle one.

    Attributes:
        scale: "linear", or "log10": the logarithm to base 10 of magnitudes that are not zero.
        low: Where the first bin begins, on that scale.
        high: Where the last one ends.
        counts: The number of elements in each.
    """

    scale: Scale
    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Statistics:
    """The values of a tensor in numbers; None where it has no finite element.

    Attributes:
        minimum: The lowest finite element.
        maximum: The highest finite element.
        mean: Of the finite elements.
        rms: The root of the mean square of the finite elements.
        zeros: The number of elements that are zero.
        nan: The number of elements that are NaN.
        inf: The number of elements that are infinite.
        histogram: Of the finite elements; None too where all magnitudes on a logarithmic scale are
            zero.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    rms: float | None
    zeros: int
    nan: int
    inf: int
    histogram: Histogram | None


@dataclass(frozen=True)
class TensorValues:
    """A tensor of a checkpoint.

    Attributes:
        name: Its name in `Session.state`; of ONNX Runtime's own optimizers ``momentum0.<p>`` and
            ``momentum1.<p>``.
        shape: Its dimensions.
        dtype: NumPy's name of its element type.
        bytes: Its size.
        statistics: Its values; None for complex numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    statistics: Statistics | None


@dataclass(frozen=True)
class StepSizes:
    """How far a gradient of one moves each element of a parameter, before momentum.

    That is learning_rate / √(mean_square - mean_grad² + epsilon), the root in the float32
    arithmetic of the graph, as far as the root is positive.

    Attributes:
        learning_rate: The parameter's learning rate at the step of the checkpoint; None where no
            graph says it.
        per_unit: The learning rate is not known: the sizes are those for a learning rate of 1.
        epsilon: What was added.
        epsilon_inside_root: False: it was added to the root.
        assumed: No graph says what epsilon is: it is taken to be the default of `RMSProp`.
        minimum: The smallest; None where no element has a positive root.
        median: The median.
        maximum: The largest.
        guarded: Centered: the share of elements at the guard, 0 to 1. Their root is not positive
            or NaN, and the update leaves them as they are. None where it is not centered.
    """

    learning_rate: float | None
    per_unit: bool
    epsilon: float
    epsilon_inside_root: bool
    assumed: bool
    minimum: float | None
    median: float | None
    maximum: float | None
    guarded: float | None


@dataclass(frozen=True)
class ParameterValues:
    """A parameter of a checkpoint, and its states.

    Attributes:
        value: The parameter, with a linear histogram.
        states: Its states by kind, with histograms of log10: "mean_square", "mean_grad", "moment";
            of ONNX Runtime's own optimizers "momentum0", "momentum1".
        step_sizes: How far the next step goes; None without a mean square, or where it does not fit
            the mean gradient.
    """

    value: TensorValues
    states: Mapping[str, TensorValues]
    step_sizes: StepSizes | None


@dataclass(frozen=True)
class CheckpointTotals:
    """A checkpoint in numbers; its step does not count.

    Attributes:
        tensors: The number of tensors.
        elements: Of all tensors.
        bytes: Of all tensors.
        parameters: The number of parameters.
        parameter_elements: Of the parameters.
        parameter_bytes: Of the parameters.
        state_bytes: Of their states.
        zeros: The number of elements that are zero.
        nan: The number of elements that are NaN.
        inf: The number of elements that are infinite.
    """

    tensors: int
    elements: int
    bytes: int
    parameters: int
    parameter_elements: int
    parameter_bytes: int
    state_bytes: int
    zeros: int
    nan: int
    inf: int


@dataclass(frozen=True)
class CheckpointInspection:
    """What a checkpoint holds; see `inspect_checkpoint`.

    Attributes:
        name: The path as it was given.
        kind: "session checkpoint"; "on-device checkpoint", of files of `export_on_device`; or
            "ONNX Runtime checkpoint", of on-device training with any other files.
        bytes: The size of the file.
        step: The number of steps taken; None where the file does not say it.
        learning_rate: What ONNX Runtime's optimizer started with, if the file has it.
        parameters: The parameters, in the order of the graph if there is one.
        others: What else there is: running statistics of batch normalization, frozen parameters,
            the loss scale, counters.
        totals: The whole in numbers.
        problems: What is wrong with the values, and how they do not fit the graph, the worst first.
    """

    name: str
    kind: Kind
    bytes: int
    step: int | None
    learning_rate: float | None
    parameters: tuple[ParameterValues, ...]
    others: tuple[TensorValues, ...]
    totals: CheckpointTotals
    problems: tuple[Hazard, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for `json.dumps`; the keys are the names of the attributes."""
        return {"version": VERSION} | asdict(self)


@dataclass(frozen=True)
class TensorDifference:
    """How a tensor differs between two checkpoints.

    Numbers are None where shapes differ, a tensor is in one checkpoint alone, nothing can be
    compared, or float64 cannot hold them. Elements that are NaN or infinite in one of them are left
    out of all of them.

    Attributes:
        name: Its name; see `TensorValues`.
        kind: "parameter", "loss scale", "counter", "other", or the kind of state of a parameter.
        shapes: Its shape in each; None where it is missing.
        dtypes: NumPy's name of its element type in each; None where it is missing.
        equal: Whether it is the same bit for bit, with the same shape and dtype.
        largest: The largest absolute difference of two elements.
        relative_rms: The rms of the difference, divided by the rms in the first. None where that is
            zero, but the difference is not.
        rms: The rms of the difference.
        first_rms: The rms in the first.
        cosine: Of a parameter: the cosine of the angle between the two. None where one is zero.
        left_out: The number of elements that are NaN or infinite in one of the two.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    equal: bool
    largest: float | None = None
    relative_rms: float | None = None
    rms: float | None = None
    first_rms: float | None = None
    cosine: float | None = None
    left_out: int = 0

    @property
    def comparable(self) -> bool:
        """Whether both have it, in one shape and dtype."""
        return None not in self.shapes and len(set(self.shapes)) == len(set(self.dtypes)) == 1


@dataclass(frozen=True)
class DifferenceTotals:
    """Two checkpoints in numbers; their steps do not count.

    Attributes:
        tensors: How many there are in one or both.
        equal: How many are the same bit for bit.
        different: How many have other values.
        mismatched: How many have another shape or dtype.
        only_first: How many are in the first alone.
        only_second: How many are in the second alone.
        relative_rms: Of all parameters that can be compared, as one vector: the length of the
            difference, divided by the length in the first. None where there is none, or where that
            length is zero, but the difference is not.
    """

    tensors: int
    equal: int
    different: int
    mismatched: int
    only_first: int
    only_second: int
    relative_rms: float | None


@dataclass(frozen=True)
class CheckpointDifference:
    """How two checkpoints differ; see `diff_checkpoints`.

    Attributes:
        names: Their paths as they were given.
        kinds: What kind of file each is; see `CheckpointInspection`.
        steps: The number of steps of each; None where the file does not say it.
        tensors: The tensors of both, those of the first before those that only the second has.
        totals: The whole in numbers.
    """

    names: tuple[str, str]
    kinds: tuple[Kind, Kind]
    steps: tuple[int | None, int | None]
    tensors: tuple[TensorDifference, ...]
    totals: DifferenceTotals

    def to_dict(self) -> dict[str, Any]:
        """Everything, for `json.dumps`; the keys are the names of the attributes."""
        return {"version": VERSION} | asdict(self)
