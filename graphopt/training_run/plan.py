"""The samples of a run and the order in which they come."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.samples import Batch, Samples


@dataclass(frozen=True)
class Plan:
    """The samples and the order in which they come.

    Attributes:
        samples: Them.
        size: Samples in a step.
        steps: Steps of an epoch.
        epochs: Passes over the samples.
        seed: Of the order.
        constants: What each step is fed beside them.
    """

    samples: Samples
    size: int
    steps: int
    epochs: int
    seed: int
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The number of steps."""
        return self.epochs * self.steps

    def from_position(self, position: int) -> Iterator[Batch]:
        """The batches from there on, in an order that is drawn anew for each epoch."""
        for chosen in self.chosen_from(position):
            yield {**self.samples.take(chosen), **self.constants}

    def chosen_from(self, position: int) -> Iterator[np.ndarray]:
        """The numbers of the samples of each of these batches."""
        count = len(self.samples)
        for epoch in range(position // self.steps, self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(count)
            done = max(0, position - epoch * self.steps) * self.size
            end = min(count, self.steps * self.size)
            for start in range(done, end, self.size):
                yield order[start : min(end, start + self.size)]

    def described(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        values = {name: array.tolist() for name, array in sorted(self.constants.items())}
        return {
            "data": self.samples.digest(),
            "batch size": self.size,
            "seed": self.seed,
            "constants": hashlib.sha256(json.dumps(values).encode()).hexdigest(),
        }
