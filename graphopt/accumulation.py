"""Gradients of several steps, added up before an update."""

from dataclasses import dataclass
from typing import Any

from graphopt import _checks

REDUCTIONS = ("mean", "sum")
"""What may be applied of several gradients."""

UPDATE_INPUT = "update"
"""The input that says which step is an update, where nobody counts."""


@dataclass(frozen=True)
class Accumulation:
    """How many steps make an update.

    The gradients of the steps are added up, without their loss scales, as state of the graph
    (``accumulated.<parameter>``, float32, and ``accumulation_count``); ``global_step`` counts
    updates, and ``updated`` is False for the other steps. A step whose gradients are not all finite
    is left out, where the optimizer skips such steps, also one that says ``update``: the next that
    says it applies what has been added up. Running statistics move in each step.

    Args:
        steps: An int >= 1; None: the graph has the input ``update``, a bool scalar that says
            whether this step is the last before an update.
        reduction: "mean": the gradients are divided by the number of steps that were added up, as
            of one batch as large as all of them together; or "sum".

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> opt = RMSProp([Parameter("w", ())], learning_rate=1.0, decay=0.0)
        >>> session = Session(update_graph(opt, accumulation=2), {"w": np.float32(5)})
        >>> for gradient in (1, 3):
        ...     print(session.step({"w_grad": np.float32(gradient)})["updated"])
        False
        True
        >>> session.state["w"]  # moved by 2 / sqrt(2**2)
        array(4., dtype=float32)
    """

    steps: int | None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.steps is not None:
            _checks.steps("accumulation", self.steps)
        _checks.one_of("reduction", self.reduction, REDUCTIONS)


def checked_accumulation(value: Any) -> Accumulation | None:
    """The accumulation that a graph is given: None, an `Accumulation`, or the number of steps.

    Raises:
        TypeError: It is none of them.
        ValueError: The number is out of range.
    """
    if value is None or isinstance(value, Accumulation):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"accumulation: got {value!r} ({type(value).__name__}), "
            "expected a number of steps, an Accumulation or None"
        )
    return Accumulation(value)
