"""What came of the epochs of a run so far: which was the best, and whether it goes on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from graphopt.evaluation import metric_of

LOSS = "loss"
VALIDATION = "validation "
"""What the name of a value of the validation data begins with."""

Values = Mapping[str, float | None]
"""What an epoch came to, by name; None is no finite number."""


@dataclass
class History:
    """The epochs of a run.

    Attributes:
        monitored: The value that says which epoch is the best.
        patience: After how many epochs without a better one the run ends; None: never.
        least: By how much an epoch must be better to count.
        epochs: What each came to.
    """

    monitored: str = LOSS
    patience: int | None = None
    least: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether the lowest or the highest is the best."""
        name = self.monitored.removeprefix(VALIDATION)
        return "max" if name != LOSS and metric_of(name).higher_is_better else "min"

    def add(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """An epoch, counted from 1, that has ended at a step."""
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self.epochs.append({"epoch": epoch, "step": step, **finite})

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The first epoch with the best value, if any has one."""
        found = None
        for epoch in self.epochs:
            if self._is_better(epoch, found, 0.0):
                found = epoch
        return found

    @property
    def waited(self) -> int:
        """For how many epochs there was none that is better by enough."""
        found, waited = None, 0
        for epoch in self.epochs:
            if self._is_better(epoch, found, self.least):
                found, waited = epoch, 0
            else:
                waited += 1
        return waited

    @property
    def has_ended(self) -> bool:
        """Whether no better epoch has come for too long."""
        return self.patience is not None and self.waited >= self.patience

    def _is_better(
        self, epoch: Mapping[str, Any], other: Mapping[str, Any] | None, least: float
    ) -> bool:
        value = epoch.get(self.monitored)
        if value is None:
            return False
        if other is None:
            return True
        gain = value - other[self.monitored]
        return bool((gain if self.mode == "max" else -gain) > least)
