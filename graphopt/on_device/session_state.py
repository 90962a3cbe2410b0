"""The state of a session as a checkpoint of on-device training, and back.

A property of the checkpoint says how; ONNX Runtime keeps it when it saves the checkpoint again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from graphopt import _checks, checkpoint as session_checkpoint
from graphopt._files import PathLike
from graphopt.carried import Array
from graphopt.checkpoint import (
    LoadReport,
    Stored,
    check_given,
    file_of,
    impossible,
    misfits,
    note_without_checksums,
    refuse,
)
from graphopt.fingerprint import shortened
from graphopt.limits import asked_for_by
from graphopt.on_device import _step_numbers
from graphopt.on_device.checkpoint import (
    OnDeviceCheckpoint,
    OptimizerState,
    is_on_device,
    read,
    write,
)
from graphopt.on_device.tensor_names import ACCUMULATED, MOMENTUMS, STEP
from graphopt.states import COUNTERS, MEAN_SQUARE, MOVED, split

PROPERTY = "graphopt"
"""The property that says how, in files of `export_on_device`."""
GRAPH = "graphopt.graph"
"""The property that has the fingerprint of the graph, as JSON."""

_VERSION = 1


@dataclass(frozen=True)
class Arrangement:
    """Where a checkpoint has the state of a session.

    Attributes:
        momentums: Which of ONNX Runtime's two states of a parameter is which kind of ours, where
            its optimizer keeps them; otherwise they are tensors of their own.
        initial_mean_square: What is added to the mean square of ONNX Runtime's optimizer in the
            first step.
    """

    momentums: dict[str, str] = field(default_factory=dict)
    initial_mean_square: float = 0.0

    def property(self) -> dict[str, int | float | str]:
        """As a property of a checkpoint."""
        return {PROPERTY: json.dumps({"version": _VERSION} | asdict(self))}

    @classmethod
    def of(cls, checkpoint: OnDeviceCheckpoint) -> "Arrangement":
        """That of a checkpoint.

        Raises:
            ValueError: It has none that is understood.
        """
        text = checkpoint.properties.get(PROPERTY)
        if text is None:
            raise ValueError(
                f"it has no property '{PROPERTY}', so it does not come from files that "
                "graphopt.export_on_device wrote"
            )
        try:
            found = json.loads(str(text))
            version = _version(found)
            if version == _VERSION:
                return _arrangement(found)
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"its property '{PROPERTY}' is damaged: {error}") from None
        raise ValueError(
            f"its property '{PROPERTY}' has version {version}, expected {_VERSION}; "
            "a newer graphopt wrote it"
        )


def _version(found: Any) -> int:
    """That of the property, which may be any JSON."""
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(version, int):
        raise TypeError("expected an object with a version")
    return version


def _arrangement(found: Mapping[str, Any]) -> Arrangement:
    """What the property of this version says."""
    unknown = sorted(found.keys() - {"version", "momentums", "initial_mean_square"})
    if unknown:
        raise ValueError(f"got an unknown {unknown[0][:60]!r}")
    momentums = found.get("momentums", {})
    if not isinstance(momentums, dict) or not momentums.keys() <= set(MOVED):
        raise TypeError(f"momentums: expected an object with some of {', '.join(MOVED)}")
    if not all(momentum in tuple(MOMENTUMS) for momentum in momentums.values()):
        raise ValueError(f"momentums: expected each to be one of {', '.join(MOMENTUMS)}")
    first = found.get("initial_mean_square", 0.0)
    return Arrangement(momentums, _checks.at_least_zero("initial_mean_square", first))


def read_state(path: PathLike) -> dict[str, Array]:
    """The state of a session, from its checkpoint or from one of on-device training.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not such a checkpoint, or is damaged.
    """
    return _stored(file_of(path)).state


def read_stored(path: PathLike, *, leaving: bool = False) -> Stored:
    """The same to go on from, with what the checkpoint says of the graph.

    Of a folder of checkpoints it is the newest.

    A warning says that a session's checkpoint has no checksums, because it is an old one.

    Args:
        path: Of the file.
        leaving: See `graphopt.checkpoint.read_stored`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not such a checkpoint, is damaged, or has values that no training
            leaves behind.
    """
    path = file_of(path)
    stored = _stored(path, leaving=leaving)
    refuse(path, "is damaged", impossible(stored.state))
    if not stored.has_checksums:
        note_without_checksums(path)
    return stored


def read_note(path: PathLike) -> Mapping[str, Any]:
    """What was noted with a checkpoint of either kind, of which no tensor is read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not such a checkpoint.
    """
    path = file_of(path)
    return {} if is_on_device(path) else session_checkpoint.note_of(path)


def load_state(
    path: PathLike, state: Mapping[str, Any], *, output: PathLike | None = None
) -> LoadReport:
    """Write values of one's own into a checkpoint of on-device training, atomically.

    It does with a checkpoint what `Session.load_state` does with a session. `read_state` reads
    them, by the same names, also from what ONNX Runtime has saved.

    Args:
        path: A checkpoint of files that `graphopt.export_on_device` wrote, or ONNX Runtime saved.
        state: Arrays by their names in `Session.state`; what is not among them stays as it is.
        output: Where to write it instead.

    Returns:
        What was written, and what was kept.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not such a checkpoint, or is damaged; a name is unknown, an array
            has another shape or dtype, or values that no training leaves behind, such as NaN.

    Example:
        >>> import graphopt, onnx
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }''')
        >>> opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01)
        >>> files = graphopt.export_on_device(model, "mse", opt, "device")
        >>> load_state(files.checkpoint, {"w": np.float32([[3], [4]])}).kept
        ('mean_square.w', 'global_step')
        >>> read_state(files.checkpoint)["w"].ravel()
        array([3., 4.], dtype=float32)
    """
    file = read(path)
    arrays = {name: np.asarray(array) for name, array in state.items()}
    try:
        current = to_state(file)
    except ValueError as error:
        raise ValueError(f"checkpoint '{path}': {error}") from None
    check_given(arrays, {name: (a.shape, a.dtype.name) for name, a in current.items()})
    write(output or path, from_state(current | arrays, file))
    return LoadReport(tuple(arrays), tuple(name for name in current if name not in arrays))


def _stored(path: PathLike, *, leaving: bool = False) -> Stored:
    if not is_on_device(path):
        return session_checkpoint.read_stored(path, leaving=leaving)
    checkpoint = read(path)
    try:
        with asked_for_by(path):
            return Stored(to_state(checkpoint), _graph(checkpoint))
    except ValueError as error:
        raise ValueError(f"checkpoint '{path}': {error}") from None


def _graph(checkpoint: OnDeviceCheckpoint) -> Any:
    """The entry of the fingerprint, which may be any JSON."""
    text = checkpoint.properties.get(GRAPH)
    try:
        return None if text is None else json.loads(str(text))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"its property '{GRAPH}' is damaged: {error}") from None


def to_state(checkpoint: OnDeviceCheckpoint) -> dict[str, Array]:
    """The state of a session that a checkpoint holds.

    Raises:
        ValueError: It is not one of ours, or has no values.
    """
    arrangement = Arrangement.of(checkpoint)
    if checkpoint.nominal:
        raise ValueError("it is a nominal checkpoint, which has names, but no values")
    for name in COUNTERS & checkpoint.trainable.keys():
        raise ValueError(f"it is damaged: its {name} is a parameter")
    state: dict[str, Array] = dict(checkpoint.trainable)
    for name, array in checkpoint.frozen.items():
        if name in COUNTERS:
            state[name] = _counted(name, array)
        elif name != ACCUMULATED:
            state[name] = _shaped(name, array, checkpoint.trainable)
    if arrangement.momentums:
        state |= _from_optimizer(arrangement, checkpoint)
    return state


def from_state(state: Mapping[str, Array], like: OnDeviceCheckpoint) -> OnDeviceCheckpoint:
    """The checkpoint that holds a state, with the tensors that another one has.

    Raises:
        ValueError: The other checkpoint is not one of ours, or the state does not fit it.
    """
    arrangement = Arrangement.of(like)
    expected = {name: (array.shape, array.dtype.name) for name, array in to_state(like).items()}
    if problems := misfits(state, expected):
        raise ValueError(f"the state does not belong to these files: {shortened(problems)}")
    trainable = {name: state[name] for name in like.trainable}
    frozen = {
        name: np.zeros(1, np.float32)
        if name == ACCUMULATED
        else _step_numbers.encode(int(state[name]))
        if name in COUNTERS
        else state[name].reshape(array.shape)
        for name, array in like.frozen.items()
    }
    optimizer = like.optimizer
    if arrangement.momentums:
        step = int(state[STEP])
        rate = optimizer.learning_rate if optimizer else 0.0
        momentums = {
            name: {
                momentum: state[f"{kind}.{name}"]
                for kind, momentum in arrangement.momentums.items()
            }
            for name in trainable
        }
        optimizer = OptimizerState(step, rate, momentums if step else {})
    return replace(like, trainable=trainable, frozen=frozen, optimizer=optimizer)


def _counted(name: str, numbers: Array) -> Array:
    """The number of steps, as a session has it."""
    if numbers.shape != (2,) or numbers.dtype != np.float32:
        raise ValueError(
            f"its {name} is damaged: got {numbers.dtype.name}{list(numbers.shape)}, "
            "expected float32[2]"
        )
    try:
        return np.array(_step_numbers.decode(numbers.astype(np.float32)), np.int64)
    except (OverflowError, ValueError):  # infinite, beyond int64, or NaN
        raise ValueError(
            f"its {name} is damaged: got {numbers.tolist()}, expected finite numbers of a "
            "step that fits int64"
        ) from None


def _shaped(name: str, array: Array, trainable: Mapping[str, Array]) -> Array:
    """A tensor; if it is a state, in the shape of its parameter."""
    kind, parameter = split(name, trainable)
    if not kind:
        return array
    like = trainable[parameter]
    if array.size != like.size:
        raise ValueError(
            f"its '{name}' is damaged: got {array.size} elements, expected the {like.size} of "
            f"'{parameter}'"
        )
    return array.reshape(like.shape)


def _from_optimizer(arrangement: Arrangement, checkpoint: OnDeviceCheckpoint) -> dict[str, Array]:
    """What ONNX Runtime's optimizer keeps: nothing before the first step."""
    optimizer = checkpoint.optimizer
    step = optimizer.step if optimizer else 0
    state: dict[str, Array] = {STEP: np.array(step, np.int64)}
    for name, parameter in checkpoint.trainable.items():
        for kind, momentum in arrangement.momentums.items():
            first = arrangement.initial_mean_square if kind == MEAN_SQUARE.name else 0.0
            array = np.full(parameter.shape, first, np.float32)
            if optimizer and step:
                try:
                    array = optimizer.momentums[name][momentum]
                except KeyError:
                    raise ValueError(f"it lacks '{momentum}' of parameter '{name}'") from None
            state[f"{kind}.{name}"] = array
    return state
