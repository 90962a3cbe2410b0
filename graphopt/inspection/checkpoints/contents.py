"""Opening checkpoints: a session's in safetensors, and those of on-device training.

Tensors of a session are read one after the other. On-device checkpoints are read as a whole.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from graphopt import checkpoint as session_checkpoint
from graphopt._files import PathLike, existing_file
from graphopt.carried import Array
from graphopt.inspection.checkpoints.checkpoint_facts import Kind
from graphopt.inspection.checkpoints.floats import finite
from graphopt.inspection.checkpoints.problems import problem
from graphopt.inspection.facts import Hazard
from graphopt.limits import asked_for_by
from graphopt.on_device import checkpoint as on_device
from graphopt.on_device.checkpoint import OnDeviceCheckpoint, is_on_device
from graphopt.on_device.session_state import PROPERTY, to_state
from graphopt.on_device.tensor_names import STEP
from graphopt.states import NAMES

_MOST_KINDS = 8
_LARGEST_HEADER = 10**8  # bytes, of a safetensors file


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


@dataclass(frozen=True)
class Opened:
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
    kinds: tuple[str, ...] = NAMES
    learning_rate: float | None = None
    problems: tuple[Hazard, ...] = ()


@contextmanager
def open_checkpoint(path: PathLike) -> Iterator[Opened]:
    """A checkpoint of any kind."""
    file = existing_file(path)
    with asked_for_by(file):
        if is_on_device(file):
            yield _opened_on_device(file)
            return
        with session_checkpoint.opened(file) as tensors:
            yield _opened(file, "session checkpoint", tensors, tensors.get(STEP))


def _opened_on_device(file: Path) -> Opened:
    checkpoint = on_device.read(file)
    if checkpoint.nominal:
        raise ValueError(
            f"checkpoint '{file}' is a nominal one, which has names, but no values; "
            "look at the one that was written beside it"
        )
    try:
        if PROPERTY in checkpoint.properties:  # under the names of a session
            state = to_state(checkpoint)
            opened = _opened(file, "on-device checkpoint", state, state.get(STEP))
        else:
            opened = _opened_native(file, checkpoint)
    except ValueError as error:
        raise ValueError(f"checkpoint '{file}' is damaged: {error}") from None
    optimizer = checkpoint.optimizer
    return replace(
        opened,
        trainable=tuple(checkpoint.trainable),
        learning_rate=None if optimizer is None else finite(optimizer.learning_rate),
    )


def _opened(file: Path, kind: Kind, tensors: Mapping[str, Array], step: Array | None) -> Opened:
    number, problems = _step(step)
    return Opened(
        kind=kind,
        bytes=file.stat().st_size,
        step=number,
        names=tuple(name for name in tensors if name != STEP),
        read=tensors.__getitem__,
        problems=problems,
    )


def _opened_native(file: Path, checkpoint: OnDeviceCheckpoint) -> Opened:
    """What ONNX Runtime's own optimizers left, under the names that it gives their states."""
    optimizer = checkpoint.optimizer
    tensors: dict[str, Array] = dict(checkpoint.trainable) | dict(checkpoint.frozen)
    momentums = {} if optimizer is None else optimizer.momentums
    kinds = dict.fromkeys(kind for states in momentums.values() for kind in states)
    if len(kinds) > _MOST_KINDS:  # each is looked for at each parameter
        raise ValueError(f"it has {len(kinds)} kinds of states, expected momentum0 and momentum1")
    for parameter, states in momentums.items():
        for kind, array in states.items():
            name = f"{kind}.{parameter}"
            if name in tensors:
                raise ValueError(f"it has '{name}' twice")
            tensors[name] = array
    number = None if optimizer is None else np.array(optimizer.step)
    opened = _opened(file, "ONNX Runtime checkpoint", tensors, number)
    problems = () if optimizer is None else opened.problems
    return replace(opened, names=tuple(tensors), kinds=tuple(kinds), problems=problems)


def _step(array: Array | None) -> tuple[int | None, tuple[Hazard, ...]]:
    """The number of steps, or what is wrong with it."""
    if array is None:
        return None, (problem("no-step", STEP, "it is missing"),)
    if array.shape != () or array.dtype.kind not in "iu":
        why = f"it is {array.dtype.name}{list(array.shape)}, expected int64[]"
        return None, (problem("no-step", STEP, why),)
    step = int(array.item())
    if step < 0:
        return None, (problem("no-step", STEP, f"it is {step}, expected 0 or more"),)
    return step, ()
