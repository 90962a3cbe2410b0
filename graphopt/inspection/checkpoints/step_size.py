"""How far the next step goes, by the states of a parameter and what a graph says of it."""

from dataclasses import dataclass, replace

import numpy as np

from graphopt.carried import Array
from graphopt.inspection.checkpoints.checkpoint_facts import StepSizes
from graphopt.inspection.checkpoints.floats import PIECE, Floats, finite
from graphopt.inspection.facts import Inspection, ParameterFacts

_EPSILON = 1e-10  # that of `RMSProp`, where no graph says another one


@dataclass(frozen=True)
class Settings:
    """What the size of a parameter's step depends on."""

    learning_rate: float | None = None
    epsilon: float | None = None
    epsilon_inside_root: bool = True


def settings_by_parameter(graph: Inspection, step: int | None) -> dict[str, Settings]:
    """What a graph says of each parameter."""
    common = common_settings(graph)
    return {
        parameter.name: replace(common, learning_rate=_learning_rate(parameter, step, graph))
        for parameter in graph.parameters
    }


def common_settings(graph: Inspection) -> Settings:
    """What a graph says of any parameter."""
    optimizer = graph.optimizer
    if optimizer is None:
        return Settings()
    epsilon = None if optimizer.epsilon is None else finite(optimizer.epsilon)
    return Settings(None, epsilon, optimizer.epsilon_inside_root is not False)


def _learning_rate(parameter: ParameterFacts, step: int | None, graph: Inspection) -> float | None:
    """The learning rate at a step, if it is known: by the nodes, or at the points of the curve."""
    rate, groups = parameter.learning_rate, graph.groups
    by_nodes = graph.contents.rates.get(parameter.name)
    if by_nodes is not None and step is not None and (found := by_nodes(step)) is not None:
        return finite(found)
    if isinstance(rate, int | float):
        return finite(rate)
    if rate is None or parameter.group is None or not 0 <= parameter.group < len(groups):
        return None
    value = dict(groups[parameter.group].curve).get(-1 if step is None else step)
    return None if value is None else finite(value)


def step_sizes(mean_square: Array, mean_grad: Array | None, settings: Settings) -> StepSizes | None:
    """How far the next step goes; None where the states do not tell."""
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


def _root(mean_square: Array, mean_grad: Array | None, epsilon: float, inside: bool) -> Floats:
    """What the learning rate is divided by, in the arithmetic of the graph if that is float32."""
    float32 = all(a is None or a.dtype == np.float32 for a in (mean_square, mean_grad))
    dtype = np.dtype(np.float32 if float32 else np.float64)
    added = np.asarray(epsilon).astype(dtype)
    s = mean_square.reshape(-1)
    a = None if mean_grad is None else mean_grad.reshape(-1)
    root = np.empty(s.size, dtype)
    for start in range(0, s.size, PIECE):
        part = slice(start, start + PIECE)
        variance = s[part].astype(dtype)
        if a is not None:
            variance -= np.square(a[part].astype(dtype))
        root[part] = np.sqrt(variance + added) if inside else np.sqrt(variance) + added
        if a is not None and not inside:
            root[part][variance <= 0] = np.nan  # at the guard
    return root


def _quantiles(
    roots: Floats, rate: float
) -> tuple[float | None, float | None, float | None] | None:
    """The smallest, the median and the largest step; the roots change their order."""
    if not roots.size:
        return None
    below, above = (roots.size - 1) // 2, roots.size // 2
    roots.partition(sorted({0, below, above, roots.size - 1}))
    first, low, high, last = (rate / np.float64(roots[i]) for i in (0, below, above, -1))
    least, most = sorted((first, last))
    return finite(least), finite((low + high) / 2), finite(most)
