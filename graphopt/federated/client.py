"""What a client does in a round, whatever it trains with."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from graphopt.carried import Array
from graphopt.checkpoint import fits
from graphopt.federated.group_mask import MASK, flags_of
from graphopt.fingerprint import shortened
from graphopt.manifest import Manifest
from graphopt.random_numbers import checked_seed
from graphopt.states import ACCUMULATED, ACCUMULATION_COUNT, OF_GRAPHS, RANDOM_SEED, split

Batch = Mapping[str, Any]
"""What a step is fed, by name."""
Metrics = Callable[[Mapping[str, Array], Batch], Mapping[str, float]]
"""What is measured of a batch: from the outputs of the model and the batch, means by name."""

LOSS = "loss"
"""The output, and the metric, that is the mean loss."""
UPDATED = "updated"
"""The output that says whether a step has changed the parameters."""

_OF_GRAPHS = {state.name for state in OF_GRAPHS}


@dataclass(frozen=True)
class Trained:
    """What a client has after its local training.

    Attributes:
        values: What is sent back, by name: of what it was given, all but the parameters of groups
            that were not trained.
        examples: How many examples it has trained on; one that was seen twice counts twice. What a
            graph with `accumulation` has added up at the end without applying it does not count.
        metrics: What is reported beside it: the mean ``loss``, where there were examples.
        state: All that it carries, with the states of its own optimizer.
    """

    values: dict[str, Array]
    examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    state: dict[str, Array] = field(default_factory=dict, repr=False)


class Client(Protocol):
    """What trains on a client: a `SessionClient`, an `OnDeviceClient`, or one of the user's."""

    @property
    def values(self) -> dict[str, Array]:
        """Parameters and running statistics that its files start from, by name."""

    def train(
        self,
        values: Mapping[str, Array],
        batches: Iterable[Batch],
        *,
        group_mask: Sequence[bool] | None = None,
        state: Mapping[str, Array] | None = None,
        seed: int | None = None,
    ) -> Trained:
        """Train from these values on its own batches."""

    def evaluate(
        self, values: Mapping[str, Array], batches: Iterable[Batch], metrics: Metrics
    ) -> tuple[int, dict[str, float]]:
        """Measure these values on its own batches: the number of examples, and means over them."""


def travelling(state: Mapping[str, Array]) -> dict[str, Array]:
    """Of a state, what goes from the server to clients and back: not the states of an optimizer."""
    return {n: x for n, x in state.items() if not split(n, state)[0] and n not in _OF_GRAPHS}


@dataclass(frozen=True)
class Groups:
    """Which group each parameter of a graph is in.

    Attributes:
        of: The index of the group, by parameter.
        count: How many groups there are.
        masked: Whether the graph has the input ``group_mask``.
    """

    of: Mapping[str, int]
    count: int
    masked: bool

    @classmethod
    def read(cls, manifest: Manifest) -> "Groups":
        """Those that a graph says."""
        of = {entry.name: entry.group for entry in manifest.parameters or ()}
        optimizer = manifest.optimizer
        return cls(of, len(manifest.groups or ()), optimizer is not None and optimizer.group_mask)

    def checked(self, group_mask: Sequence[bool] | None, given: Collection[str]) -> list[bool]:
        """The mask, if the client can train so.

        Args:
            group_mask: Which groups are trained.
            given: The names of the values that the server gave, and gets back.

        Raises:
            ValueError: The graph has no mask, or one of another length; or a parameter is trained
                that the server did not give, so that it would never learn of it.
        """
        mask = flags_of(group_mask, self.count, "the client's graph")
        if not self.masked and not all(mask):
            raise ValueError(
                f"group_mask: got {mask}, but the client's graph has no such input; build it with "
                "group_mask=True"
            )
        trained = [name for name, group in self.of.items() if mask[group]]
        if lacking := [f"'{name}'" for name in trained if name not in given]:
            raise ValueError(
                f"the server did not send {shortened(lacking)}, which the client would train, and "
                "not send back: mask the group, or send all of it"
            )
        return mask

    def sent(self, given: Collection[str], mask: Sequence[bool]) -> list[str]:
        """The names of what is sent back: trained parameters, and what is no parameter."""
        return [name for name in given if name not in self.of or mask[self.of[name]]]


def check_given(values: Mapping[str, Array], own: Mapping[str, Array]) -> None:
    """Refuse values that the client does not have.

    Raises:
        ValueError: There are such, or some have another shape or dtype; the message names them.
    """
    unknown = [f"'{name}'" for name in values if name not in own]
    if unknown:
        raise ValueError(
            f"the server sent {shortened(unknown)}, but the client has "
            f"{shortened([repr(name) for name in own])}: it has the files of another model"
        )
    problems = [
        f"'{name}' is {array.dtype.name}{list(array.shape)}, but "
        f"{own[name].dtype.name}{list(own[name].shape)} in the client's files"
        for name, array in values.items()
        if not fits(array, (own[name].shape, own[name].dtype.name))
    ]
    if problems:
        raise ValueError(f"the server sent other values: {shortened(problems)}")


def examples_in(batch: Batch, name: str) -> int:
    """How many examples a batch has: the size of the first axis of an input.

    Raises:
        ValueError: It has no axes.
    """
    array = batch.get(name)
    if array is None:
        raise ValueError(f"a batch has no '{name}', got {sorted(batch)}")
    shape = np.shape(array)
    if not shape:
        raise ValueError(f"'{name}' is a scalar in a batch, expected an axis of examples")
    return int(shape[0])


class Means:
    """Means over examples of what is measured of each batch.

    Example:
        >>> means = Means()
        >>> means.add(3, {"loss": 1.0})
        >>> means.add(1, {"loss": 5.0})
        >>> means.examples, means.means
        (4, {'loss': 2.0})
    """

    def __init__(self) -> None:
        """Nothing has been measured."""
        self.examples = 0
        self._sums: dict[str, float] = {}

    def add(self, examples: int, measured: Mapping[str, Any]) -> None:
        """Take in those of a batch, which are means over its examples."""
        self.examples += examples
        for name, value in measured.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * examples

    @property
    def means(self) -> dict[str, float]:
        """The means by name; empty without examples."""
        if not self.examples:
            return {}
        return {name: total / self.examples for name, total in self._sums.items()}


@dataclass(frozen=True)
class ClientFiles:
    """What the files of a client say, whatever it trains with.

    Attributes:
        start: The state that a round starts from.
        groups: Those of the parameters.
        axis_of: The input whose first axis is that of examples.
    """

    start: Mapping[str, Array]
    groups: Groups
    axis_of: str

    @property
    def adds_up(self) -> bool:
        """Whether gradients of several steps are added up for one update."""
        return ACCUMULATION_COUNT.name in self.start

    @property
    def own(self) -> dict[str, Array]:
        """Parameters and running statistics by name, not copied."""
        return travelling(self.start)

    @property
    def values(self) -> dict[str, Array]:
        """Parameters and running statistics by name: a copy."""
        return {name: array.copy() for name, array in self.own.items()}

    def begin(
        self,
        values: Mapping[str, Array],
        group_mask: Sequence[bool] | None,
        state: Mapping[str, Array] | None,
        seed: int | None,
    ) -> "Round":
        """Begin a round of training; see `Client.train`.

        Raises:
            ValueError: A value is unknown or has another shape or dtype, the mask does not fit, or
                the seed is none.
        """
        check_given(values, self.own)
        mask = self.groups.checked(group_mask, values)
        loaded = _without_sums(state or {}, self.start) | dict(values)
        if checked_seed(seed) is not None and RANDOM_SEED.name in self.start:
            loaded[RANDOM_SEED.name] = np.array(seed, np.int64)
        feeds = {MASK: np.array(mask)} if self.groups.masked else {}
        return Round(self, loaded, feeds, self.groups.sent(values, mask))

    def measured(
        self, batches: Iterable[Batch], measure: Callable[[Batch], Mapping[str, Any]]
    ) -> Means:
        """The means of what is measured of each batch in its turn."""
        means = Means()
        for batch in batches:
            examples = examples_in(batch, self.axis_of)
            means.add(examples, measure(batch))
        return means


@dataclass(frozen=True)
class Round:
    """A round of training that has begun.

    Attributes:
        files: What the client starts from.
        loaded: What the server and the caller gave, and the seed: loaded over what is in the files.
        feeds: What each step is fed beside its batch.
        sent: The names of what is sent back.
    """

    files: ClientFiles
    loaded: Mapping[str, Array]
    feeds: Mapping[str, Array]
    sent: Sequence[str]

    def trained(
        self,
        batches: Iterable[Batch],
        step: Callable[[Batch], Mapping[str, Any]],
        state: Callable[[], dict[str, Array]],
    ) -> Trained:
        """Train on all batches.

        Args:
            batches: What the steps are fed, without `feeds`.
            step: Takes one, and reports of it: the loss, and whether it has updated.
            state: What the client carries after the last one.
        """
        waiting = 0  # examples whose gradients are added up, and not applied yet

        def taken(batch: Batch) -> Mapping[str, Any]:
            nonlocal waiting
            reported = dict(step({**self.feeds, **batch}))
            waiting += examples_in(batch, self.files.axis_of)
            if reported.pop(UPDATED, True) or not self.files.adds_up:
                waiting = 0
            return reported

        means = self.files.measured(batches, taken)
        if waiting:
            warnings.warn(
                f"the gradients of the last {waiting} of {means.examples} examples of the round "
                "were added up and not applied, and these do not count: end a round with a step "
                "that updates, or build the client's graph with less accumulation",
                stacklevel=3,
            )
        after = state()
        sent = {name: after[name] for name in self.sent}
        return Trained(sent, means.examples - waiting, means.means, after)


def _without_sums(state: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
    """A state without what is added up, which is for the parameters of another round.

    Args:
        state: It, which may lack the parameters.
        names: Those of all that is carried.
    """
    return {
        name: array
        for name, array in state.items()
        if split(name, names)[0] != ACCUMULATED.name and name != ACCUMULATION_COUNT.name
    }
