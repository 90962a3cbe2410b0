"""What is measured: updates of sets of tensors, and training steps of the zoo's networks.

A case is named ``update/<set>/<variant>`` or ``step/<network>``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import numpy as np

Shapes = Sequence[tuple[int, ...]]

LEARNING_RATE = 0.01
DECAY = 0.9
EPSILON = 1e-10
WEIGHT_DECAY = 1e-4
VECTORS_LEARNING_RATE = 0.02
MOMENTUM = 0.9


@dataclass(frozen=True)
class Variant:
    """A configuration of RMSProp.

    Attributes:
        momentum: The factor of the moment; 0: there is none.
        centered: Whether the square of the mean gradient is subtracted.
        decay_groups: Whether matrices have weight decay, and vectors a learning rate of their own.
    """

    momentum: float = 0.0
    centered: bool = False
    decay_groups: bool = False


@dataclass(frozen=True)
class Group:
    """Tensors that share their hyperparameters.

    Attributes:
        indices: Which of the case's tensors.
        learning_rate: Their learning rate.
        weight_decay: Their weight decay, added to the gradient.
    """

    indices: tuple[int, ...]
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class UpdateCase:
    """An update of float32 tensors by gradients that lie in memory already.

    Attributes:
        shapes: The shapes of the tensors.
        variant: The configuration.
    """

    shapes: Shapes
    variant: Variant

    @property
    def groups(self) -> list[Group]:
        """The groups that have a tensor."""
        everything = range(len(self.shapes))
        if not self.variant.decay_groups:
            return [Group(tuple(everything), LEARNING_RATE, 0.0)]
        matrices = tuple(i for i in everything if len(self.shapes[i]) > 1)
        vectors = tuple(i for i in everything if len(self.shapes[i]) <= 1)
        groups = [
            Group(matrices, LEARNING_RATE, WEIGHT_DECAY),
            Group(vectors, VECTORS_LEARNING_RATE, 0.0),
        ]
        return [group for group in groups if group.indices]

    def grouped(self, parameters: Sequence[Any]) -> list[dict[str, Any]]:
        """The groups of these, as graphopt, PyTorch and MindSpore take them."""
        return [
            {
                "params": [parameters[index] for index in group.indices],
                "lr": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in self.groups
        ]

    def parameters(self) -> list[np.ndarray]:
        """What the tensors start from, the same in each call."""
        return self._arrays(0, 1.0)

    def gradients(self) -> list[np.ndarray]:
        """Their gradients, the same in each call."""
        return self._arrays(1, 0.1)

    def _arrays(self, seed: int, scale: float) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        factor = np.float32(scale)
        return [
            np.asarray(rng.standard_normal(shape, np.float32) * factor) for shape in self.shapes
        ]


def _efficientnet_b0() -> list[tuple[int, ...]]:
    """Convolutions, normalizations and squeeze-and-excitation of a network of that size."""
    channels = [32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320]
    shapes: list[tuple[int, ...]] = []
    for inputs, outputs in pairwise(channels):
        expanded, squeezed = 6 * inputs, inputs // 4
        shapes += [(expanded, inputs, 1, 1), (expanded,), (expanded,)]
        shapes += [(expanded, 1, 3, 3), (expanded,), (expanded,)]
        shapes += [(squeezed, expanded, 1, 1), (squeezed,), (expanded, squeezed, 1, 1), (expanded,)]
        shapes += [(outputs, expanded, 1, 1), (outputs,), (outputs,)]
    return [*shapes, (1280, 320, 1, 1), (1280,), (1280,), (1000, 1280), (1000,)]


SETS: dict[str, Shapes] = {
    "efficientnet_b0": _efficientnet_b0(),
    "one_tensor": [(6144, 4096)],
    "tiny": [(8, 8), (64,)] * 1000,
}
"""Tensors by the name of their set: 5.2 M elements, 24 Mi elements, 2,000 tensors of 64."""

VARIANTS = {
    "plain": Variant(),
    "momentum": Variant(momentum=MOMENTUM),
    "centered": Variant(centered=True),
    "decay_groups": Variant(momentum=MOMENTUM, decay_groups=True),
}
"""Configurations by name."""


def update_case(name: str) -> UpdateCase:
    """The case called ``update/<set>/<variant>``."""
    _, which, variant = name.split("/")
    return UpdateCase(SETS[which], VARIANTS[variant])


def is_update(name: str) -> bool:
    """Whether the case is an update, not a training step."""
    return name.startswith("update/")


def matching(patterns: Sequence[str]) -> list[str]:
    """The names of all cases that match one of the patterns, ``update/*`` for example.

    Raises:
        ValueError: A pattern matches none.
    """
    from models.zoo import ZOO  # needs packages that an environment of a peer does not have

    names = [f"update/{which}/{variant}" for which in SETS for variant in VARIANTS]
    names += [f"step/{network}" for network in ZOO]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no case matches '{pattern}'; there are {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
