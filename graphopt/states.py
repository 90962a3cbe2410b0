"""The kinds of state that a training graph carries from step to step, each described once.

Whoever handles state takes it from here: the update, checkpoints, on-device files, inspection and
profiling.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class State:
    """A kind of state.

    Attributes:
        name: What it is called; see `of` for that of a parameter.
        purpose: What it is.
        per: What there is one of it for.
        symbol: Its letter in formulas and in the functions of the update, where its new value has
            a 1 after it; "" for what these do not have.
        dtype: NumPy's name of its element type; "" for that of the value in the forward model.
        initial: What it starts at: a number, the name of the hyperparameter that says it, or None
            for the value in the forward model, that of the parameter where it is a state of one.
        kept_with: The hyperparameter without which there is none; None where there always is.

    Example:
        >>> MOMENT.of("fc.weight"), MOMENT.dtype, MOMENT.kept_with
        ('moment.fc.weight', 'float32', 'momentum')
    """

    name: str
    purpose: str
    per: Literal["parameter", "graph", "batch normalization"] = "parameter"
    symbol: str = ""
    dtype: str = "float32"
    initial: float | str | None = 0.0
    kept_with: str | None = None

    def of(self, parameter: str) -> str:
        """What the state of a parameter is called in `Session.state` and in checkpoints."""
        return f"{self.name}.{parameter}"

    def start(self, optimizer: object) -> float:
        """What it starts at, throughout, with the hyperparameters that are attributes of this."""
        if isinstance(self.initial, str):
            return float(getattr(optimizer, self.initial))
        assert self.initial is not None
        return self.initial

    def is_kept(self, optimizer: object) -> bool:
        """Whether there is any with the hyperparameters that are attributes of this."""
        return self.kept_with is None or bool(getattr(optimizer, self.kept_with, None))


MEAN_SQUARE = State(
    "mean_square",
    "the moving average of the squared gradient",
    symbol="s",
    initial="initial_mean_square",
)
MEAN_GRAD = State(
    "mean_grad", "the moving average of the gradient", symbol="a", kept_with="centered"
)
MOMENT = State("moment", "what the last steps add up to", symbol="m", kept_with="momentum")
AVERAGE = State("average", "the moving average of the parameter", initial=None, kept_with="average")
ACCUMULATED = State(
    "accumulated", "the sum of the gradients since the last update", kept_with="accumulation"
)
GLOBAL_STEP = State("global_step", "the number of updates", "graph", dtype="int64")
ACCUMULATION_COUNT = State(
    "accumulation_count",
    "the number of steps whose gradients that is the sum of",
    "graph",
    dtype="int64",
    kept_with="accumulation",
)
LOSS_SCALE = State(
    "loss_scale",
    "what the loss is multiplied by",
    "graph",
    initial="initial_loss_scale",
    kept_with="dynamic_loss_scale",
)
LOSS_SCALE_STEPS = State(
    "loss_scale_steps",
    "the number of steps since the loss scale last changed",
    "graph",
    dtype="int64",
    kept_with="dynamic_loss_scale",
)
SKIPPED_STEPS = State(
    "skipped_steps",
    "the number of steps without an update, because a gradient was infinite or NaN",
    "graph",
    dtype="int64",
    kept_with="skip_on_overflow",
)
RANDOM_SEED = State(
    "random_seed",
    "what random numbers are made of",
    "graph",
    dtype="int64",
    initial="seed",
    kept_with="random_operators",
)
RANDOM_STEP = State(
    "random_step",
    "the number of steps, with or without an update, of which they are made too",
    "graph",
    dtype="int64",
    kept_with="random_operators",
)
STATISTIC = State(
    "statistic",
    "a running mean or variance",
    "batch normalization",
    dtype="",
    initial=None,
)

STATES = (
    *(ACCUMULATED, MEAN_SQUARE, MEAN_GRAD, MOMENT, AVERAGE),
    *(GLOBAL_STEP, ACCUMULATION_COUNT, LOSS_SCALE, LOSS_SCALE_STEPS, SKIPPED_STEPS),
    *(RANDOM_SEED, RANDOM_STEP),
    STATISTIC,
)
"""All kinds, those of a parameter in the order of the update."""
OF_PARAMETERS = tuple(state for state in STATES if state.per == "parameter")
"""The kinds of which each parameter has one."""
NAMES = tuple(state.name for state in OF_PARAMETERS)
"""What they are called."""
MOVED = tuple(state.name for state in OF_PARAMETERS if state.symbol)
"""Those that the functions of the update move."""
OF_GRAPHS = tuple(state for state in STATES if state.per == "graph")
"""The kinds of which a graph has one, a scalar."""
COUNTERS = frozenset(state.name for state in OF_GRAPHS if state.dtype == "int64")
"""What those are called that count."""
NOT_NEGATIVE = COUNTERS | {MEAN_SQUARE.name}
"""What those are called that are never below zero."""


def kept_by(optimizer: object) -> tuple[State, ...]:
    """The states that each parameter has, in the order of the update.

    Args:
        optimizer: Anything that has the hyperparameters as attributes.
    """
    return tuple(state for state in OF_PARAMETERS if state.is_kept(optimizer))


def moved_by(optimizer: object) -> tuple[State, ...]:
    """Those of them that the functions of the update move, with the parameter itself."""
    return tuple(state for state in kept_by(optimizer) if state.symbol)


def split(name: str, names: Container[str]) -> tuple[str, str]:
    """The kind of a state and its parameter; the kind is "" where the name is none of a state.

    A layer may be called as a state is: what has no parameter is none.

    Args:
        name: Of a parameter, a state of one, or anything else that is carried.
        names: All that there are.

    Example:
        >>> names = {"fc.weight", "moment.fc.weight", "moment.weight"}
        >>> split("moment.fc.weight", names), split("moment.weight", names)
        (('moment', 'fc.weight'), ('', 'moment.weight'))
    """
    kind, _, parameter = name.partition(".")
    return (kind, parameter) if kind in NAMES and parameter in names else ("", name)


def is_called_as_one(name: str) -> bool:
    """Whether a name is one that a state might have."""
    kind, _, parameter = name.partition(".")
    return kind in NAMES and bool(parameter)


def averages(state: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The averages of these names, each under that of what it is of, in the dtype of that.

    Raises:
        ValueError: There are none.
    """
    pairs = ((name, split(name, state)[1]) for name in names)
    found = {of: state[name].astype(state[of].dtype) for name, of in pairs}
    if not found:
        raise ValueError(
            "average: got True, but the training graph carries none; build the optimizer with "
            "average=graphopt.ParameterAverage(0.999)"
        )
    return found


def first_averages(state: Mapping[str, Any], lacking: Iterable[str]) -> dict[str, Any]:
    """The averages that a state lacks, which start as what they are of."""
    kinds = ((name, *split(name, state)) for name in lacking)
    return {
        name: state[of].astype(AVERAGE.dtype) for name, kind, of in kinds if kind == AVERAGE.name
    }
