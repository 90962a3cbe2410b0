"""From the state of an optimizer of another framework into a session."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import states
from graphopt._files import PathLike, existing_file
from graphopt.carried import Array
from graphopt.checkpoint import LoadReport
from graphopt.conversion import (
    _mindspore_file,
    _mindspore_optimizer as mindspore,
    _settings,
    _torch_file,
    _torch_optimizer as torch,
)
from graphopt.conversion._names import Names, Places, by_name, plain_array
from graphopt.conversion._settings import Own
from graphopt.fingerprint import shortened
from graphopt.limits import asked_for_by
from graphopt.session import Session

_MODULE_ORDER = (
    "say in which order the optimizer has them: names=[name for name, _ in "
    "module.named_parameters()] where it was made of module.parameters(), or make the optimizer of "
    "module.named_parameters()"
)


@dataclass(frozen=True)
class _Found:
    """What is loaded.

    Attributes:
        optimizer: The states of the optimizer as the graph has them.
        step: The number of steps.
        names: The parameters there, and what the graph calls each.
        weights: Parameters and statistics there, if they are known.
        unknown: What could not be compared.
    """

    optimizer: dict[str, Array]
    step: int
    names: Mapping[str, str]
    weights: Mapping[str, Any] | None
    unknown: list[str]


def load_state(
    session: Session,
    source: PathLike | Mapping[str, Any],
    *,
    weights: PathLike | Mapping[str, Any] | None = None,
    names: Names | None = None,
    transposed: Collection[str] = (),
) -> LoadReport:
    """Go on with the state of an optimizer of another framework.

    The hyperparameters that the state has must be those of the graph: where they are not, the error
    says what to build the graph with. If anything does not fit, nothing changes.

    Args:
        session: What is to go on.
        source: A file of ``torch.save`` or of MindSpore (``.ckpt``, safetensors), or the
            ``state_dict()`` of an optimizer itself. A file may have weights beside the optimizer.
        weights: Parameters and running statistics, a ``state_dict()`` of the module or a file of
            one; by default those in the file of the optimizer. Where it has none, those of the
            session are right, and stay.
        names: Those of the parameters of the optimizer, in its order. PyTorch's has names only if
            it was made of ``named_parameters()``, and the order is known to its maker alone. A
            dict says what the graph calls each.
        transposed: The matrices that the graph has transposed, by their names in the graph: some
            exporters write ``Linear`` so.

    Returns:
        What was loaded. ``differences`` says what could not be compared: learning rates that only
        the running graph knows.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: An argument has the wrong type.
        ValueError: The file is damaged, or is none of these; names, shapes or hyperparameters are
            others; a parameter has no state, because it never had a gradient there; or the session
            has added up gradients of a part of the steps of an update.

    Example:
        >>> opt = RMSProp(
        ...     [Parameter("w", (3,))], learning_rate=0.01, decay=0.99, epsilon=1e-8,
        ...     epsilon_inside_root=False, initial_mean_square=0.0)
        >>> session = Session(update_graph(opt), parameters={"w": np.zeros(3, np.float32)})
        >>> group = {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0, "centered": False,
        ...          "weight_decay": 0, "params": [0]}
        >>> state = {0: {"step": 7, "square_avg": np.ones(3, np.float32)}}
        >>> report = load_state(session, {"state": state, "param_groups": [group]}, names=["w"])
        >>> session.global_step, report.kept
        (7, ('w',))
    """
    with session.borrowed() as held:
        count = int(held.get(states.ACCUMULATION_COUNT.name, 0))
    if count:
        raise ValueError(
            f"the session has added up the gradients of {count} steps, which would be applied "
            "to other parameters: go on to the next update, or make another session"
        )
    what = "the state" if isinstance(source, Mapping) else f"'{source}'"
    own = Own.of(session.graph)
    places = Places.of(session.graph.carried, own.parameters, transposed)
    read = source if isinstance(source, Mapping) else _read(source)
    given = weights if weights is None or isinstance(weights, Mapping) else _weights_in(weights)
    with _naming(what):
        if torch_state := _torch_state(read):
            found = _of_torch(torch_state, own, places, names, what)
            if given is None:
                given = _weights_beside(read, torch_state, found.names)
        elif mindspore.is_of_optimizer(read):
            found = _of_mindspore(read, own, places, names, what)
            given = read if given is None else given
        else:
            raise ValueError(
                f"it has no state of {torch.TORCH}, {torch.TIMM} or {mindspore.MINDSPORE}"
            )
        found = replace(found, weights=given)
        state = found.optimizer | _weights(found, places)
        state[states.GLOBAL_STEP.name] = np.array(found.step, np.int64)
        report = session.load_state(state)
    return replace(report, differences=tuple(found.unknown))


def _read(path: PathLike) -> Mapping[str, Any]:
    path = existing_file(path)
    with asked_for_by(path):
        if _torch_file.is_torch_file(path):
            found = _torch_file.read_torch(path)
            if not isinstance(found, Mapping):
                raise ValueError(f"'{path}' has a {type(found).__name__}, expected a state_dict")
            return found
        if _is_safetensors(path):
            return _mindspore_file.read_safetensors(path)
        return _mindspore_file.read(path)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as one does: with the length of an object in JSON, and that."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _weights_in(path: PathLike) -> Mapping[str, Any]:
    """Weights, in a file of their own."""
    read = _read(path)
    beside = [value for value in read.values() if _is_weights(value)]
    return read if _is_weights(read) or len(beside) != 1 else beside[0]


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) for name in value)
        and any(plain_array(array) is not None for array in value.values())
    )


def _torch_state(read: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state of an optimizer in what a file has, at the top or one below."""
    if torch.is_state_dict(read):
        return read
    found = {key: value for key, value in read.items() if torch.is_state_dict(value)}
    if len(found) > 1:
        raise ValueError(
            f"it has several optimizers, {', '.join(map(repr, found))}: give one of them, "
            "graphopt.conversion.read_torch(path)[name]"
        )
    return next(iter(found.values()), None)


def _weights_beside(
    read: Mapping[str, Any], state: Mapping[str, Any], names: Mapping[str, str]
) -> Mapping[str, Any] | None:
    """The weights that stand beside an optimizer in a file, or with it.

    Raises:
        ValueError: They have other names, or there are several.
    """
    if read is state:
        return None
    if names.keys() <= read.keys():
        return read
    beside = {key: value for key, value in read.items() if _is_weights(value)}
    found = {key: value for key, value in beside.items() if names.keys() <= value.keys()}
    others = [key for key, value in beside.items() if len(value) >= len(names)]
    if others and not found:
        key, value = others[0], beside[others[0]]
        missing = next(name for name in names if name not in value)
        raise ValueError(
            f"beside the optimizer it has '{key}', which has no '{missing}', but "
            f"{shortened([repr(name) for name in value])}: give the weights by their names there, "
            "names={theirs: ours}, or weights={name: array}; without any, give the state of the "
            "optimizer alone"
        )
    if len(found) > 1:
        raise ValueError(
            f"it has several weights, {', '.join(map(repr, found))}: say which, "
            "weights=graphopt.conversion.read_torch(path)[name]"
        )
    return next(iter(found.values()), None)


def _of_torch(
    state_dict: Mapping[str, Any], own: Own, places: Places, names: Names | None, what: str
) -> _Found:
    given = torch.parameters_of(state_dict)
    known = [parameter.name for parameter in given]
    if names is None:
        if None in known:
            raise ValueError(f"the optimizer has no names of its parameters; {_MODULE_ORDER}")
        names = [str(name) for name in known]
    pairs = by_name(names, places.trained)
    if len(pairs) != len(given):
        raise ValueError(
            f"names: got {len(pairs)}, and the optimizer has {len(given)} parameters; "
            f"{_MODULE_ORDER}"
        )
    if None not in known and list(pairs) != known:
        raise ValueError(f"names: the optimizer has another order, {', '.join(map(str, known))}")
    by_ours = dict(zip(pairs.values(), given, strict=True))
    settings = torch.settings_of(by_ours)
    state, step = torch.state_of(by_ours, state_dict["state"], settings, places)
    unknown = _settings.check(settings, own, step, what)
    return _Found(state, step, pairs, None, unknown)


def _of_mindspore(
    tensors: Mapping[str, Any], own: Own, places: Places, names: Names | None, what: str
) -> _Found:
    arrays = {
        name: array for name, value in tensors.items() if (array := plain_array(value)) is not None
    }
    pairs = by_name(mindspore.names_in(arrays) if names is None else names, places.trained)
    state, step = mindspore.state_of(arrays, pairs, places)
    unknown = _settings.check(mindspore.settings_of(arrays, own), own, step, what)
    return _Found(state, step, pairs, None, unknown)


def _weights(found: _Found, places: Places) -> dict[str, Array]:
    """Parameters and running statistics as the graph has them."""
    if found.weights is None:
        return {}
    theirs = {ours: name for name, ours in found.names.items()}
    arrays = {}
    for ours in (*places.trained, *places.statistics):
        name = theirs.get(ours, ours)
        array = plain_array(found.weights.get(name))
        if array is None:
            raise ValueError(f"weights: there is no '{name}'")
        arrays[ours] = places.ours(ours, array, f"'{name}'")
    return arrays


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Let errors about a file name it."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if what in text else f"{what}: {text}") from None
