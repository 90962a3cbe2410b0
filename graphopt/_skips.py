"""Notices that one step after another is skipped."""

from collections.abc import Iterable
from typing import Any

from graphopt import _checks
from graphopt.carried import Carried
from graphopt.states import SKIPPED_STEPS


class Skips:
    """Counts the steps that were skipped one after another.

    Args:
        limit: How many of them are an error; None: any number is none.
        carried: What the graph carries.
    """

    def __init__(self, limit: Any, carried: Iterable[Carried]) -> None:
        """Check the limit.

        Raises:
            TypeError: It is no int.
            ValueError: It is less than 1, or the graph skips no step.
        """
        self._limit, self._before, self._in_a_row = limit, 0, 0
        if limit is None:
            return
        _checks.steps("max_skips", limit)
        if all(value.input != SKIPPED_STEPS.name for value in carried):
            raise ValueError(
                f"max_skips: got {limit}, but this graph skips no step; build the optimizer with "
                "skip_on_overflow=True"
            )

    @property
    def are_limited(self) -> bool:
        """Whether anybody asks."""
        return self._limit is not None

    def see(self, before: int, skipped: int) -> None:
        """Look at the number of skipped steps before and after each step.

        Raises:
            FloatingPointError: There were too many in a row.
        """
        if before != self._before or skipped == before:  # another state was loaded, or an update
            self._in_a_row = 0
        self._in_a_row += skipped > before
        self._before = skipped
        if self._limit is not None and self._in_a_row >= self._limit:
            in_a_row, self._in_a_row = self._in_a_row, 0
            raise FloatingPointError(
                f"{in_a_row} steps in a row were skipped, because gradients were infinite or NaN; "
                "the state is that of the last update: look at the data and the loss, or go on "
                "from an earlier checkpoint with a smaller learning rate"
            )
