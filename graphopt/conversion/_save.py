"""From a session into the state of an optimizer of another framework."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

from graphopt import _checks, states
from graphopt._files import PathLike, about
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
    """Write the state of a session as another framework goes on with it, atomically.

    - "torch" and "timm": a file for ``torch.load(path, weights_only=True)``, a dict of ``model``,
      the parameters and running statistics, and ``optimizer``, for ``load_state_dict``.
    - "mindspore": a file for ``mindspore.load_checkpoint``, with the parameters, the running
      statistics, and the states of the optimizer.

    Averages of the parameters, a loss scale and counts of skipped steps are not written.

    Args:
        session: What is to go on elsewhere.
        path: Of the file.
        framework: "torch", "timm" or "mindspore".
        names: The parameters of the optimizer there, in its order, all groups one after the other;
            by default those of the graph, in the order of its optimizer. A dict says what the graph
            calls each.
        transposed: The matrices that the graph has transposed, by their names in the graph.
        fed: The values of the learning rates and weight decays that the caller feeds, by name.

    Raises:
        FileNotFoundError: The folder does not exist.
        FloatingPointError: The state has NaN or infinite numbers.
        TypeError: An argument has the wrong type.
        ValueError: The framework has no optimizer that does the same; gradients of a part of the
            steps of an update are added up; or a name is unknown.

    Example:
        >>> from graphopt.conversion import read_torch
        >>> opt = RMSProp([Parameter("w", (3,))], learning_rate=0.01)
        >>> session = Session(update_graph(opt), parameters={"w": np.zeros(3, np.float32)})
        >>> save_state(session, "state.pt", "timm")
        >>> read_torch("state.pt")["optimizer"]["param_groups"][0]["lr"]
        0.01
    """
    _checks.one_of("framework", framework, get_args(Framework))
    session.graph.check_output(path)
    with about(path):
        _write(session, path, framework, names, transposed, fed)


def _write(
    session: Session,
    path: PathLike,
    framework: Framework,
    names: Names | None,
    transposed: Collection[str],
    fed: Mapping[str, float],
) -> None:
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
