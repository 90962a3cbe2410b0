"""From a session into the state of an optimizer of another framework."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

from graphopt import _checks, states
from graphopt._files import PathLike
from graphopt.carried import Array
from graphopt.conversion import (
    _mindspore_file,
    _mindspore_optimizer as mindspore,
    _torch_file,
    _torch_optimizer as torch,
)
from graphopt.conversion._names import Names, Places, by_name
from graphopt.conversion._settings import Own
from graphopt.finite import check_finite
from graphopt.session import Session

Framework = Literal["torch", "timm", "mindspore"]


def save_state(
    session: Session,
    path: PathLike,
    framework: Framework,
    *,
    names: Names | None = None,
    transposed: Collection[str] = (),
    fed: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """See `graphopt.conversion.save_state`."""
    _checks.one_of("framework", framework, get_args(Framework))
    session.graph.check_output(path)
    state = session.state
    check_finite(state)
    own = Own.of(session.graph)
    places = Places.of(session.graph.carried, own.parameters, transposed)
    pairs = by_name(list(own.parameters) if names is None else names, places.trained)
    if count := state.get(states.ACCUMULATION_COUNT.name):
        raise ValueError(
            f"the session has added up the gradients of {int(count)} steps, which {framework} does "
            "not take over: go on to the next update"
        )
    if framework == "mindspore":
        _mindspore_file.write(path, mindspore.tensors_of(state, own, pairs, places))
        return
    optimizer = torch.state_dict_of(
        *(state, own, pairs, places),
        torch.TIMM if framework == "timm" else torch.TORCH,
        fed,
    )
    _torch_file.write(path, {"model": _weights(state, pairs, places), "optimizer": optimizer})


def _weights(
    state: Mapping[str, Array], names: Mapping[str, str], places: Places
) -> dict[str, Any]:
    """Parameters and running statistics, as the other framework calls them."""
    parameters = {theirs: places.theirs(ours, state[ours]) for theirs, ours in names.items()}
    return parameters | {name: state[name] for name in places.statistics}
