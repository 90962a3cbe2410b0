"""What a checkpoint holds, tensor by tensor, and how two checkpoints differ.

Tensors are read one after the other, and looked at in pieces of them, so that memory is needed for
the tensors of one parameter. On-device checkpoints are read as a whole.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from graphopt._files import PathLike, existing_file
from graphopt.carried import Array
from graphopt.checkpoint import _FORMAT
from graphopt.inspection.facts import VERSION, GroupFacts, Hazard, Inspection, Level, ParameterFacts
from graphopt.on_device import checkpoint as on_device
from graphopt.on_device._names import STEP
from graphopt.on_device._state import _PROPERTY, to_state
from graphopt.on_device.checkpoint import OnDeviceCheckpoint, is_on_device

BINS = 24
"""The number of bins of a histogram."""

Kind = Literal["session checkpoint", "on-device checkpoint", "ONNX Runtime checkpoint"]

_Floats = npt.NDArray[np.floating[Any]]
_Float64 = npt.NDArray[np.float64]

_STATES = ("mean_square", "mean_grad", "moment")
_EPSILON = 1e-10  # that of `RMSProp`, where no graph says another one
_PIECE = 2**16  # elements that are looked at together
_MOST_KINDS = 8
_LARGEST_HEADER = 10**8  # bytes, of a safetensors file
# The property that says how to read a checkpoint is JSON, which may hold anything.
_ODD_ARRANGEMENT = (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
_LEVELS: tuple[Level, ...] = ("error", "warning", "note")


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

    scale: Literal["linear", "log10"]
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
        others: What else there is: running statistics of batch normalization, frozen parameters.
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
        kind: "parameter", "other", or the kind of state.
        shapes: Its shape in each; None where it is missing.
        dtypes: NumPy's name of its element type in each; None where it is missing.
        equal: Whether it is the same bit for bit, with the same shape and dtype.
        largest: The largest absolute difference of two elements.
        relative_rms: The rms of the difference, divided by the rms in the first. None where that is
            zero, but the difference is not.
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
    """How two checkpoints differ; see `compare_checkpoints`.

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


def is_checkpoint(path: PathLike) -> bool:
    """Whether a file looks like a checkpoint, of a session or of on-device training.

    It reads a few bytes only: a damaged checkpoint looks like one too, and so does any other
    safetensors file. An ONNX model does not.

    Raises:
        FileNotFoundError: There is no such file.

    Example:
        >>> on_device.write("checkpoint", OnDeviceCheckpoint({"w": np.zeros(3, np.float32)}))
        >>> is_checkpoint("checkpoint")
        True
    """
    if is_on_device(path):
        return True
    with existing_file(path).open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= header <= _LARGEST_HEADER


def inspect_checkpoint(path: PathLike, graph: Inspection | None = None) -> CheckpointInspection:
    """Look into a checkpoint of a session or of on-device training.

    Args:
        path: The file. On-device checkpoints may be ONNX Runtime's own, for example of its AdamW.
        graph: The inspection of the graph that it belongs to. It says what the checkpoint should
            hold, and the hyperparameters for the sizes of the steps; without it they are given per
            unit of learning rate.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint, is damaged, or is a nominal one, without values.

    Example:
        >>> found = inspect_checkpoint("state.safetensors")  # doctest: +SKIP
        >>> found.step, found.parameters[0].value.statistics.rms  # doctest: +SKIP
        (1000, 0.0712)
    """
    with _opened(path) as opened:
        settings = {} if graph is None else _settings(graph, opened.step)
        otherwise = _Settings() if graph is None else _common_settings(graph)
        roles = _roles(opened, settings)
        parameters = tuple(
            _parameter(opened, name, states, settings.get(name, otherwise))
            for name, states in roles.parameters.items()
        )
        others = tuple(_tensor(name, opened.read(name), "linear") for name in roles.others)
        problems = [*opened.problems, *_problems(opened.step, parameters, others)]
        if graph is None:
            problems += _incomplete(opened.kinds, parameters, others)
        else:
            problems += _misfits(opened.kind, parameters, others, graph)
        return CheckpointInspection(
            name=str(path),
            kind=opened.kind,
            bytes=opened.bytes,
            step=opened.step,
            learning_rate=opened.learning_rate,
            parameters=parameters,
            others=others,
            totals=_totals(parameters, others),
            problems=tuple(sorted(problems, key=lambda problem: _LEVELS.index(problem.level))),
        )


def compare_checkpoints(a: PathLike, b: PathLike) -> CheckpointDifference:
    """How the second checkpoint differs from the first.

    The two may be of different kinds: a session's and an on-device one of the same training, for
    example.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is not a checkpoint; see `inspect_checkpoint`.

    Example:
        >>> compare_checkpoints("5.safetensors", "10.safetensors").steps  # doctest: +SKIP
        (5, 10)
    """
    with _opened(a) as first, _opened(b) as second:
        in_first, in_second = _kinds(first), _kinds(second)
        measured = [
            _compared(
                name,
                kind,
                first.read(name) if name in in_first else None,
                second.read(name) if name in in_second else None,
            )
            for name, kind in (in_first | in_second).items()
        ]
        tensors = tuple(difference for difference, _ in measured)
        lengths = [
            pair for difference, pair in measured if difference.kind == "parameter" and pair.count
        ]
        return CheckpointDifference(
            names=(str(a), str(b)),
            kinds=(first.kind, second.kind),
            steps=(first.step, second.step),
            tensors=tensors,
            totals=_difference_totals(tensors, lengths),
        )


# Files


@dataclass(frozen=True)
class _Opened:
    """A checkpoint that can be read.

    Attributes:
        kind: What it is.
        bytes: Its size.
        step: The number of steps taken.
        names: Its tensors but the step, in order.
        read: Reads one.
        trainable: Those that are parameters; None where only their states tell.
        kinds: The kinds of states that it may have, as in ``<kind>.<parameter>``.
        learning_rate: What the optimizer started with.
        problems: What is wrong with the step.
    """

    kind: Kind
    bytes: int
    step: int | None
    names: tuple[str, ...]
    read: Callable[[str], Array]
    trainable: tuple[str, ...] | None = None
    kinds: tuple[str, ...] = _STATES
    learning_rate: float | None = None
    problems: tuple[Hazard, ...] = ()


@contextmanager
def _opened(path: PathLike) -> Iterator[_Opened]:
    """A checkpoint of any kind."""
    file = existing_file(path)
    if not is_on_device(file):
        with _opened_session(file) as opened:
            yield opened
        return
    checkpoint = on_device.read(file)
    if checkpoint.nominal:
        raise ValueError(
            f"checkpoint '{file}' is a nominal one, which has names, but no values; "
            "look at the one that was written beside it"
        )
    ours = _PROPERTY in checkpoint.properties
    yield (_opened_ours if ours else _opened_native)(file, checkpoint)


@contextmanager
def _opened_session(path: Path) -> Iterator[_Opened]:
    try:
        file: Any = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(
            f"'{path}' is not a readable checkpoint, expected one of a session, a safetensors "
            f"file, or one of on-device training: {error}"
        ) from None
    with file:
        _check_format(path, file.metadata() or {})

        def read(name: str) -> Array:
            try:
                array: Array = file.get_tensor(name)
            # What NumPy does not know, safetensors finds out in several ways.
            except (SafetensorError, AttributeError, TypeError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"checkpoint '{path}' is damaged: its tensor '{name}' is not one that NumPy "
                    f"can hold: {error}"
                ) from None
            return array

        names = tuple(file.keys())
        step, problems = _step(read(STEP) if STEP in names else None)
        yield _Opened(
            kind="session checkpoint",
            bytes=path.stat().st_size,
            step=step,
            names=tuple(name for name in names if name != STEP),
            read=read,
            problems=problems,
        )


def _check_format(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != _FORMAT["format"]:
        raise ValueError(f"'{path}' is a safetensors file, but not a checkpoint of graphopt")
    if metadata.get("version") != _FORMAT["version"]:
        raise ValueError(
            f"checkpoint '{path}' has version {metadata.get('version')!r}, "
            f"expected {_FORMAT['version']!r}; a newer graphopt wrote it"
        )


def _opened_ours(path: Path, checkpoint: OnDeviceCheckpoint) -> _Opened:
    """What `export_on_device` made, under the names of a session."""
    try:
        with np.errstate(all="ignore"):
            state = to_state(checkpoint)
    except _ODD_ARRANGEMENT as error:
        raise ValueError(f"checkpoint '{path}' is damaged: {error}") from None
    step, problems = _step(state.pop(STEP, None))
    return _Opened(
        kind="on-device checkpoint",
        bytes=path.stat().st_size,
        step=step,
        names=tuple(state),
        read=state.__getitem__,
        trainable=tuple(checkpoint.trainable),
        learning_rate=_initial_learning_rate(checkpoint),
        problems=problems,
    )


def _opened_native(path: Path, checkpoint: OnDeviceCheckpoint) -> _Opened:
    """What ONNX Runtime's own optimizers left, under the names that it gives their states."""
    optimizer = checkpoint.optimizer
    tensors: dict[str, Array] = dict(checkpoint.trainable) | dict(checkpoint.frozen)
    momentums = {} if optimizer is None else optimizer.momentums
    kinds = dict.fromkeys(kind for states in momentums.values() for kind in states)
    if len(kinds) > _MOST_KINDS:  # each is looked for at each parameter
        raise ValueError(
            f"checkpoint '{path}' is damaged: it has {len(kinds)} kinds of states, expected "
            "momentum0 and momentum1"
        )
    for parameter, states in momentums.items():
        for kind, array in states.items():
            name = f"{kind}.{parameter}"
            if name in tensors:
                raise ValueError(f"checkpoint '{path}' is damaged: it has '{name}' twice")
            tensors[name] = array
    step, problems = (None, ()) if optimizer is None else _step(np.array(optimizer.step))
    return _Opened(
        kind="ONNX Runtime checkpoint",
        bytes=path.stat().st_size,
        step=step,
        names=tuple(tensors),
        read=tensors.__getitem__,
        trainable=tuple(checkpoint.trainable),
        kinds=tuple(kinds),
        learning_rate=_initial_learning_rate(checkpoint),
        problems=problems,
    )


def _initial_learning_rate(checkpoint: OnDeviceCheckpoint) -> float | None:
    optimizer = checkpoint.optimizer
    return None if optimizer is None else _finite(optimizer.learning_rate)


def _step(array: Array | None) -> tuple[int | None, tuple[Hazard, ...]]:
    """The number of steps, or what is wrong with it."""
    if array is None:
        return None, (_problem("no-step", "error", STEP, "it is missing"),)
    if array.shape != () or array.dtype.kind not in "iu":
        why = f"it is {array.dtype.name}{list(array.shape)}, expected int64[]"
        return None, (_problem("no-step", "error", STEP, why),)
    step = int(array.item())
    if step < 0:
        return None, (_problem("no-step", "error", STEP, f"it is {step}, expected 0 or more"),)
    return step, ()


# Roles


@dataclass(frozen=True)
class _Roles:
    """Which tensor is what.

    Attributes:
        parameters: The names of the states of each parameter, by kind.
        others: The tensors that are neither.
    """

    parameters: Mapping[str, Mapping[str, str]]
    others: tuple[str, ...]


def _roles(opened: _Opened, first: Iterable[str] = ()) -> _Roles:
    """Which tensor is what; these parameters come first."""
    names = dict.fromkeys(opened.names)
    found = opened.trainable
    if found is None:
        found = tuple(n for n in names if any(f"{kind}.{n}" in names for kind in opened.kinds))
    ordered = dict.fromkeys([name for name in first if name in names] + list(found))
    parameters = {
        parameter: {
            kind: f"{kind}.{parameter}" for kind in opened.kinds if f"{kind}.{parameter}" in names
        }
        for parameter in ordered
    }
    taken = {name for states in parameters.values() for name in states.values()}
    others = (name for name in names if name not in taken and name not in parameters)
    return _Roles(parameters, tuple(others))


def _kinds(opened: _Opened) -> dict[str, str]:
    """What each tensor is; a parameter comes before its states, and everything else last."""
    roles = _roles(opened)
    kinds: dict[str, str] = {}
    for parameter, states in roles.parameters.items():
        kinds[parameter] = "parameter"
        kinds |= {name: kind for kind, name in states.items()}
    return kinds | dict.fromkeys(roles.others, "other")


# Values


def _parameter(
    opened: _Opened, name: str, states: Mapping[str, str], settings: "_Settings"
) -> ParameterValues:
    value = _tensor(name, opened.read(name), "linear")
    found: dict[str, TensorValues] = {}
    kept: dict[str, Array] = {}
    for kind, state in states.items():
        array = opened.read(state)
        found[kind] = _tensor(state, array, "log10")
        if kind in ("mean_square", "mean_grad"):
            kept[kind] = array
    sizes = None
    if "mean_square" in kept:
        sizes = _step_sizes(kept["mean_square"], kept.get("mean_grad"), settings)
    return ParameterValues(value, found, sizes)


def _tensor(name: str, array: Array, scale: Literal["linear", "log10"]) -> TensorValues:
    return TensorValues(
        name=name,
        shape=array.shape,
        dtype=array.dtype.name,
        bytes=array.nbytes,
        statistics=None if array.dtype.kind == "c" else _statistics(array, scale),
    )


def _pieces(*arrays: Array) -> Iterator[tuple[_Float64, ...]]:
    """The elements of arrays of one size in float64, a piece at a time."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, _PIECE):
        yield tuple(array[start : start + _PIECE].astype(np.float64) for array in flat)


@dataclass
class _Range:
    """Where the finite elements of a tensor lie."""

    finite: int = 0
    zeros: int = 0
    nan: int = 0
    inf: int = 0
    low: float = math.inf
    high: float = -math.inf
    least: float = math.inf  # the smallest magnitude but zero

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high))

    def add(self, piece: _Float64) -> None:
        finite = piece[np.isfinite(piece)]
        nan = int(np.isnan(piece).sum())
        self.nan += nan
        self.inf += piece.size - finite.size - nan
        if finite.size:
            self.finite += finite.size
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))
            magnitudes = np.abs(finite[finite != 0])
            self.zeros += finite.size - magnitudes.size
            self.least = min(self.least, float(magnitudes.min(initial=math.inf)))


def _statistics(array: Array, scale: Literal["linear", "log10"]) -> Statistics:
    # Signalling NaNs and magnitudes at the ends of float64 are ordinary here.
    with np.errstate(all="ignore"):
        found = _Range()
        for (piece,) in _pieces(array):
            found.add(piece)
        if not found.finite:
            return Statistics(None, None, None, None, 0, found.nan, found.inf, None)
        unit = _unit(array, found.largest)
        sums, squares = [], []
        for (piece,) in _pieces(array):
            finite = _scaled(piece[np.isfinite(piece)], unit)
            sums.append(float(finite.sum()))
            squares.append(float(np.square(finite).sum()))
        mean = math.fsum(sums) / found.finite * unit
        rms = math.sqrt(math.fsum(squares) / found.finite) * unit
        return Statistics(
            minimum=found.low,
            maximum=found.high,
            mean=max(found.low, min(found.high, mean)),
            rms=min(rms, found.largest),
            zeros=found.zeros,
            nan=found.nan,
            inf=found.inf,
            histogram=_histogram(array, found)
            if scale == "linear"
            else _log_histogram(array, found),
        )


def _unit(array: Array, largest: float) -> float:
    """A power of two such that squares of multiples of it do not leave float64."""
    if array.dtype != np.float64 or not largest:
        return 1.0
    return math.ldexp(1.0, math.frexp(largest)[1] - 1)


def _scaled(values: _Float64, unit: float) -> _Float64:
    return values if unit == 1.0 else values / unit


def _histogram(array: Array, found: _Range) -> Histogram:
    unit = _unit(array, found.largest)
    values = (_scaled(piece[np.isfinite(piece)], unit) for (piece,) in _pieces(array))
    counts = _counts(values, found.low / unit, found.high / unit)
    return Histogram("linear", found.low, found.high, counts)


def _log_histogram(array: Array, found: _Range) -> Histogram | None:
    if not found.largest:
        return None
    values = (
        np.log10(np.abs(piece[np.isfinite(piece) & (piece != 0)])) for (piece,) in _pieces(array)
    )
    low, high = float(np.log10(found.least)), float(np.log10(found.largest))
    return Histogram("log10", low, high, _counts(values, low, high))


def _counts(pieces: Iterable[_Float64], low: float, high: float) -> tuple[int, ...]:
    """How many values are in each bin from ``low`` to ``high``."""
    counts = np.zeros(BINS, np.int64)
    edges = np.linspace(low, high, BINS + 1)
    for piece in pieces:
        if low == high:
            counts[BINS // 2] += piece.size
        else:
            bins = np.searchsorted(edges, piece, side="right") - 1
            counts += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
    return tuple(counts.tolist())


# Step sizes


@dataclass(frozen=True)
class _Settings:
    """What the size of a parameter's step depends on."""

    learning_rate: float | None = None
    epsilon: float | None = None
    epsilon_inside_root: bool = True


def _settings(graph: Inspection, step: int | None) -> dict[str, _Settings]:
    """What a graph says of each parameter."""
    common = _common_settings(graph)
    return {
        parameter.name: replace(common, learning_rate=_learning_rate(parameter, step, graph.groups))
        for parameter in graph.parameters
    }


def _common_settings(graph: Inspection) -> _Settings:
    """What a graph says of any parameter."""
    optimizer = graph.optimizer
    if optimizer is None:
        return _Settings()
    epsilon = None if optimizer.epsilon is None else _finite(optimizer.epsilon)
    return _Settings(None, epsilon, optimizer.epsilon_inside_root is not False)


def _learning_rate(
    parameter: ParameterFacts, step: int | None, groups: Sequence[GroupFacts]
) -> float | None:
    """The learning rate at a step, if it is known."""
    rate = parameter.learning_rate
    if isinstance(rate, int | float):
        return _finite(rate)
    if rate is None or parameter.group is None or not 0 <= parameter.group < len(groups):
        return None
    value = dict(groups[parameter.group].curve).get(-1 if step is None else step)
    return None if value is None else _finite(value)


def _step_sizes(
    mean_square: Array, mean_grad: Array | None, settings: _Settings
) -> StepSizes | None:
    if mean_grad is not None and mean_grad.shape != mean_square.shape:
        return None
    if "c" in mean_square.dtype.kind + ("" if mean_grad is None else mean_grad.dtype.kind):
        return None
    epsilon = _EPSILON if settings.epsilon is None else settings.epsilon
    rate = 1.0 if settings.learning_rate is None else settings.learning_rate
    with np.errstate(all="ignore"):
        root = _root(mean_square, mean_grad, epsilon, settings.epsilon_inside_root)
        positive = root[root > 0]
        sizes = _quantiles(positive, rate)
    minimum, median, maximum = sizes or (None, None, None)
    guarded = None
    if mean_grad is not None:
        guarded = (root.size - positive.size) / root.size if root.size else 0.0
    return StepSizes(
        learning_rate=settings.learning_rate,
        per_unit=settings.learning_rate is None,
        epsilon=epsilon,
        epsilon_inside_root=settings.epsilon_inside_root,
        assumed=settings.epsilon is None,
        minimum=minimum,
        median=median,
        maximum=maximum,
        guarded=guarded,
    )


def _root(mean_square: Array, mean_grad: Array | None, epsilon: float, inside: bool) -> _Floats:
    """What the learning rate is divided by, in the arithmetic of the graph if that is float32."""
    float32 = all(a is None or a.dtype == np.float32 for a in (mean_square, mean_grad))
    dtype = np.dtype(np.float32 if float32 else np.float64)
    added = np.asarray(epsilon).astype(dtype)
    s = mean_square.reshape(-1)
    a = None if mean_grad is None else mean_grad.reshape(-1)
    root = np.empty(s.size, dtype)
    for start in range(0, s.size, _PIECE):
        part = slice(start, start + _PIECE)
        variance = s[part].astype(dtype)
        if a is not None:
            variance -= np.square(a[part].astype(dtype))
        root[part] = np.sqrt(variance + added) if inside else np.sqrt(variance) + added
    return root


def _quantiles(
    roots: _Floats, rate: float
) -> tuple[float | None, float | None, float | None] | None:
    """The smallest, the median and the largest step; the roots change their order."""
    if not roots.size:
        return None
    below, above = (roots.size - 1) // 2, roots.size // 2
    roots.partition(sorted({0, below, above, roots.size - 1}))
    first, low, high, last = (rate / np.float64(roots[i]) for i in (0, below, above, -1))
    least, most = sorted((first, last))
    return _finite(least), _finite((low + high) / 2), _finite(most)


def _finite(value: float) -> float | None:
    """A number as JSON can hold it."""
    return float(value) if math.isfinite(value) else None


# Problems


def _problem(kind: str, level: Level, name: str, why: str) -> Hazard:
    return Hazard(kind, level, (name,), why, _FIXES[kind])


_FIXES = {
    "no-step": "take another copy of the checkpoint",
    "not-finite": "go back to an earlier checkpoint, and lower the learning rate or the loss scale",
    "negative-mean-square": "take another copy of the checkpoint",
    "zero-state": "see whether the loss depends on the parameter, and whether its group is updated",
    "missing-tensor": "take a checkpoint of this graph, or build the graph that it belongs to",
    "unexpected-tensor": "take a checkpoint of this graph, or build the graph that it belongs to",
    "other-shape-or-dtype": "take a checkpoint of this graph, or build the graph it belongs to",
}


def _problems(
    step: int | None, parameters: Sequence[ParameterValues], others: Sequence[TensorValues]
) -> Iterator[Hazard]:
    """What is wrong with the values."""
    for tensor in _tensors(parameters, others):
        yield from _not_finite(tensor)
    for parameter in parameters:
        value = parameter.value
        for kind, state in parameter.states.items():
            if state.shape != value.shape:
                why = f"it has shape {list(state.shape)}, and its parameter {list(value.shape)}"
                yield _problem("other-shape-or-dtype", "error", state.name, why)
            yield from _odd_state(kind, state, step)


def _tensors(
    parameters: Sequence[ParameterValues], others: Sequence[TensorValues]
) -> Iterator[TensorValues]:
    for parameter in parameters:
        yield parameter.value
        yield from parameter.states.values()
    yield from others


def _not_finite(tensor: TensorValues) -> Iterator[Hazard]:
    found = tensor.statistics
    if found is not None and (found.nan or found.inf):
        counts = {"NaN": found.nan, "infinite": found.inf}
        what = " and ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        why = f"of its {math.prod(tensor.shape):,} elements {what}"
        yield _problem("not-finite", "error", tensor.name, why)


def _odd_state(kind: str, state: TensorValues, step: int | None) -> Iterator[Hazard]:
    found, size = state.statistics, math.prod(state.shape)
    if found is None or not size:
        return
    if kind == "mean_square" and found.minimum is not None and found.minimum < 0:
        why = f"its lowest element is {found.minimum:.3g}, and a mean of squares is never negative"
        yield _problem("negative-mean-square", "error", state.name, why)
    if step and found.zeros == size:
        why = f"it is zero throughout after {step:,} steps: no gradient has reached the parameter"
        yield _problem("zero-state", "warning", state.name, why)


def _incomplete(
    known: Sequence[str], parameters: Sequence[ParameterValues], others: Sequence[TensorValues]
) -> Iterator[Hazard]:
    """What a checkpoint seems to lack, by what else it has."""
    kinds = dict.fromkeys(kind for parameter in parameters for kind in parameter.states)
    for parameter in parameters:
        for kind in kinds:
            if kind not in parameter.states:
                name = f"{kind}.{parameter.value.name}"
                why = f"it is missing, and other parameters have their {kind}"
                yield _problem("missing-tensor", "error", name, why)
    for tensor in others:
        kind, _, parameter_name = tensor.name.partition(".")
        if kind in known and parameter_name:
            why = f"it is a state of '{parameter_name}', which is missing"
            yield _problem("unexpected-tensor", "error", tensor.name, why)


@dataclass(frozen=True)
class _Expected:
    """What a graph wants of a tensor; None where it does not say."""

    shape: tuple[int, ...] | None
    dtype: str


def _misfits(
    kind: Kind,
    parameters: Sequence[ParameterValues],
    others: Sequence[TensorValues],
    graph: Inspection,
) -> Iterator[Hazard]:
    """How the tensors differ from those that the graph carries."""
    expected = _expected(graph)
    found = {tensor.name: tensor for tensor in _tensors(parameters, others)}
    for name, wanted in expected.items():
        if name not in found:
            yield _problem("missing-tensor", "error", name, "the checkpoint lacks it")
        else:
            yield from _misfit(found[name], wanted)
    known = {*expected, *(state.input for state in graph.state)}
    unexpected = {parameter.value.name for parameter in parameters}
    if graph.optimizer is not None and graph.optimizer.name == "RMSProp":
        unexpected |= {state.name for p in parameters for state in p.states.values()}
    if kind == "session checkpoint":  # on-device ones have frozen parameters too
        unexpected |= {tensor.name for tensor in others}
    for name in found:
        if name in unexpected and name not in known:
            yield _problem("unexpected-tensor", "error", name, "the graph does not have it")


def _expected(graph: Inspection) -> dict[str, _Expected]:
    """The tensors that a checkpoint of a graph must have."""
    expected: dict[str, _Expected] = {}
    for parameter in graph.parameters:
        expected[parameter.name] = _Expected(parameter.shape, parameter.dtype)
        for kind in parameter.states:
            expected[f"{kind}.{parameter.name}"] = _Expected(parameter.shape, "float32")
    for state in graph.state:
        if state.kind == "statistic":
            sizes = tuple(d for d in state.shape if isinstance(d, int))
            shape = sizes if len(sizes) == len(state.shape) else None
            expected[state.input] = _Expected(shape, state.dtype)
    return expected


def _misfit(tensor: TensorValues, wanted: _Expected) -> Iterator[Hazard]:
    shape = tensor.shape if wanted.shape is None else wanted.shape
    if (tensor.shape, tensor.dtype) != (shape, wanted.dtype):
        why = (
            f"it is {tensor.dtype}{list(tensor.shape)} in the checkpoint, "
            f"but {wanted.dtype}{list(shape)} in the graph"
        )
        yield _problem("other-shape-or-dtype", "error", tensor.name, why)


def _totals(
    parameters: Sequence[ParameterValues], others: Sequence[TensorValues]
) -> CheckpointTotals:
    tensors = list(_tensors(parameters, others))
    values = [parameter.value for parameter in parameters]
    states = [state for parameter in parameters for state in parameter.states.values()]
    statistics = [t.statistics for t in tensors if t.statistics is not None]
    return CheckpointTotals(
        tensors=len(tensors),
        elements=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=sum(tensor.bytes for tensor in tensors),
        parameters=len(values),
        parameter_elements=sum(math.prod(tensor.shape) for tensor in values),
        parameter_bytes=sum(tensor.bytes for tensor in values),
        state_bytes=sum(tensor.bytes for tensor in states),
        zeros=sum(found.zeros for found in statistics),
        nan=sum(found.nan for found in statistics),
        inf=sum(found.inf for found in statistics),
    )


# Differences


@dataclass(frozen=True)
class _Numbers:
    """What two tensors of one shape are to each other, where both are finite.

    Attributes:
        count: The number of elements.
        largest: The largest absolute difference.
        first: The length of the first, as a vector.
        difference: The length of the difference.
        relative: The latter by the former; None where there is no such number.
        cosine: Of the angle between the two, if neither is zero.
    """

    count: int = 0
    largest: float = 0.0
    first: float = 0.0
    difference: float = 0.0
    relative: float | None = None
    cosine: float | None = None


def _compared(
    name: str, kind: str, a: Array | None, b: Array | None
) -> tuple[TensorDifference, _Numbers]:
    shapes = (None if a is None else a.shape, None if b is None else b.shape)
    dtypes = (None if a is None else a.dtype.name, None if b is None else b.dtype.name)
    if a is None or b is None or a.shape != b.shape:
        return TensorDifference(name, kind, shapes, dtypes, equal=False), _Numbers()
    equal = _same_bits(a, b)
    if "c" in a.dtype.kind + b.dtype.kind:
        return TensorDifference(name, kind, shapes, dtypes, equal), _Numbers()
    with np.errstate(all="ignore"):
        numbers = _measured(a, b)
    difference = TensorDifference(
        name=name,
        kind=kind,
        shapes=shapes,
        dtypes=dtypes,
        equal=equal,
        largest=_finite(numbers.largest) if numbers.count else None,
        relative_rms=numbers.relative,
        cosine=numbers.cosine if kind == "parameter" else None,
        left_out=a.size - numbers.count,
    )
    return difference, numbers


def _same_bits(a: Array, b: Array) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    one, other = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (a, b))
    step = 8 * _PIECE
    return all(
        np.array_equal(one[start : start + step], other[start : start + step])
        for start in range(0, one.size, step)
    )


def _measured(a: Array, b: Array) -> _Numbers:
    units = _unit(a, _largest(a)), _unit(b, _largest(b))
    unit = max(units)
    count, largest = 0, 0.0
    dots, squares, others, differences = [], [], [], []
    for x, y in _finite_pieces(a, b):
        difference = _scaled(x, unit) - _scaled(y, unit)
        p, q = _scaled(x, units[0]), _scaled(y, units[1])
        count += x.size
        largest = max(largest, float(np.abs(difference).max(initial=0.0)))
        dots.append(float(np.dot(p, q)))
        squares.append(float(np.dot(p, p)))
        others.append(float(np.dot(q, q)))
        differences.append(float(np.dot(difference, difference)))
    first, second, moved = (math.sqrt(math.fsum(s)) for s in (squares, others, differences))
    norm = first * second
    return _Numbers(
        count=count,
        largest=largest * unit,
        first=first * units[0],
        difference=moved * unit,
        relative=_ratio(moved * (unit / units[0]), first) if count else None,
        cosine=max(-1.0, min(1.0, math.fsum(dots) / norm)) if norm else None,
    )


def _largest(array: Array) -> float:
    """The largest finite magnitude, where squares could leave float64."""
    if array.dtype != np.float64:
        return 0.0
    magnitudes = (np.abs(piece[np.isfinite(piece)]) for (piece,) in _pieces(array))
    return max((float(piece.max(initial=0.0)) for piece in magnitudes), default=0.0)


def _finite_pieces(a: Array, b: Array) -> Iterator[tuple[_Float64, _Float64]]:
    """The elements that are finite in both."""
    for x, y in _pieces(a, b):
        finite = np.isfinite(x) & np.isfinite(y)
        yield x[finite], y[finite]


def _ratio(difference: float, first: float) -> float | None:
    """One length by another; None where there is no such number."""
    if first:
        return _finite(difference / first) if math.isfinite(first) else None
    return None if difference else 0.0


def _difference_totals(
    tensors: Sequence[TensorDifference], parameters: Sequence[_Numbers]
) -> DifferenceTotals:
    first = math.hypot(*(numbers.first for numbers in parameters))
    difference = math.hypot(*(numbers.difference for numbers in parameters))
    both = [tensor for tensor in tensors if None not in tensor.shapes]
    return DifferenceTotals(
        tensors=len(tensors),
        equal=sum(tensor.equal for tensor in both),
        different=sum(tensor.comparable and not tensor.equal for tensor in both),
        mismatched=sum(not tensor.comparable for tensor in both),
        only_first=sum(tensor.shapes[1] is None for tensor in tensors),
        only_second=sum(tensor.shapes[0] is None for tensor in tensors),
        relative_rms=_ratio(difference, first) if parameters else None,
    )
