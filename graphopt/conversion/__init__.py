"""State of the optimizers of other frameworks: training goes on here as there, and there as here.

These are ``torch.optim.RMSprop``, timm's ``RMSpropTF`` and ``mindspore.nn.RMSProp``. None of them
need be installed: their files are read and written as data, and nothing in a file is run.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from graphopt._files import PathLike
from graphopt.checkpoint import LoadReport
from graphopt.conversion import _load, _save, _torch_file
from graphopt.conversion._names import Names
from graphopt.conversion._save import Framework
from graphopt.session import Session

__all__ = ["Framework", "Names", "load_state", "read_torch", "save_state"]


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
    return _load.load_state(session, source, weights=weights, names=names, transposed=transposed)


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
        >>> opt = RMSProp([Parameter("w", (3,))], learning_rate=0.01)
        >>> session = Session(update_graph(opt), parameters={"w": np.zeros(3, np.float32)})
        >>> save_state(session, "state.pt", "timm")
        >>> read_torch("state.pt")["optimizer"]["param_groups"][0]["lr"]
        0.01
    """
    _save.save_state(session, path, framework, names=names, transposed=transposed, fed=fed)


def read_torch(path: PathLike) -> Any:
    """What is in a file of ``torch.save``, without PyTorch, and without running anything in it.

    Dicts, lists, numbers and text are what they are, tensors are NumPy arrays; any other object
    is a placeholder that has its name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file, or damaged.
    """
    return _torch_file.read(path)
