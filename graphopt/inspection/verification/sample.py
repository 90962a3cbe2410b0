"""A training graph at a random point: what it gives there, and what its nodes give in float64."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.inspection.verification.interpreter import Interpreter, as_double
from graphopt.inspection.verification.made_feeds import BATCHES, KINDS, SIZES, Maker
from graphopt.inspection.verification.rounding import worst_by_name
from graphopt.inspection.verification.runnable import GraphFailsError, NotRunError
from graphopt.inspection.verification.training_part import TrainingPart

YOURS = "yours"
"""The kind of feeds that the caller gives."""

_NOISES = (0.1, 0.01, 0.0)
_GIVE = "give others (feeds, --data)"


@dataclass(frozen=True)
class Sample:
    """A point, and what is computed there.

    Attributes:
        known: What the training graph is fed, its carried values included.
        given: What its part before the update is fed.
        got: The outputs and gradients, as a session computes them.
        plain: The same without optimizations.
        exact: All values in float64; where nodes have no kernel in float64, as ``plain``.
    """

    known: Mapping[str, Any]
    given: Mapping[str, Any]
    got: Mapping[str, Any]
    plain: Mapping[str, Any]
    exact: Mapping[str, Any]


class StepFailsError(NotRunError):
    """Why a step fails with feeds that were made up."""


class Sampler:
    """Runs a training graph at random points.

    Attributes:
        part: The graph.
        interpreter: What computes its nodes in float64; None where there is no kernel.
        differentiates: Whether that computes the gradients too.
        kinds: The kinds of feeds to try, the usual first; `YOURS` where they are given.
    """

    def __init__(
        self, part: TrainingPart, seed: int, inputs: Mapping[str, Any] | None, ends: float
    ) -> None:
        """Look for feeds with which the graph runs, and has a finite loss.

        Raises:
            GraphFailsError: There are none, or the runtime does not take the graph.
            NotRunError: The graph runs, but not its nodes one by one.
            TypeError: A feed that is given has the wrong dtype.
            ValueError: Those that are given do not fit.
        """
        self.part = part
        self._given = None if inputs is None else part.checked(inputs)
        part.load()
        self._ends = ends
        self._random = np.random.default_rng(seed)
        self._fed = () if inputs is None else tuple(inputs)
        self.interpreter: Interpreter | None = part.exact(ends)
        self._nodes = self.interpreter.needed([*part.outputs, *part.gradients])
        self.differentiates = True
        self._count = 0
        self._noise, self._size = _NOISES[0], SIZES[0]
        labels = part.graph.class_labels
        self._maker = Maker.of(part.feeds, part.held.graph, labels)
        usual = self._usual()
        edges = KINDS[1:3] if self._given is None and self._maker.masks else ()
        self.kinds = (usual, *edges)

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._ends

    def sample(self, kind: str) -> Sample | None:
        """The graph at a new point, with new feeds; None if the loss is not finite there.

        Raises:
            NotRunError: It does not run.
        """
        part = self.part
        known = self._known(kind)
        self._count += 1
        got = self._run(known)
        given = part.given(known, got)
        plain = part.plain(given, [*part.outputs, *part.gradients])
        if not np.isfinite(plain[part.loss]).all():
            return None
        return Sample(known, given, got, plain, self._exact(given, plain))

    def deviating(self, sample: Sample) -> dict[str, float]:
        """How far each output and gradient is off, as a part of what rounding explains."""
        names = [name for name in self.part.gradients if self.differentiates]
        units = 1.0 if self.interpreter is not None else 64.0
        found = worst_by_name(
            self.part.outputs, sample.got, sample.exact, sample.plain, units=units
        )
        return found | worst_by_name(names, sample.got, sample.exact, sample.plain, units=units)

    def _exact(self, given: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
        """All values in float64, as far as there are kernels."""
        wide = {name: as_double(value) for name, value in given.items()}
        part = self.part
        while self.interpreter is not None:
            try:
                return self.interpreter.run(self._nodes, wide)
            except NotRunError:
                if self.differentiates and not self.is_late:
                    self.differentiates = False
                    self._nodes = self.interpreter.needed(part.outputs)
                else:
                    self.interpreter = None
        self.differentiates = True
        return wide | {name: as_double(value) for name, value in plain.items()}

    def _usual(self) -> str:
        """The kind of feeds with which the loss is finite; the sizes and noise are those too."""
        if self._given is not None:
            if self._settle(YOURS, SIZES[:1]):
                return YOURS
            raise self.never_finite()
        is_open = any(
            not isinstance(dim, int) for feed in self.part.feeds for dim in (feed.shape or ())[1:]
        )
        for kind in (KINDS[0], KINDS[3]):
            if self._settle(kind, SIZES if is_open else SIZES[:1]):
                return kind
        raise self.never_finite()

    def never_finite(self) -> GraphFailsError:
        """What is said where the loss is never finite."""
        if self._given is not None:
            return GraphFailsError("the loss is not finite with the feeds that were given")
        return GraphFailsError(
            f"the loss is not finite with any of the feeds that were made up; {_GIVE}"
        )

    def _settle(self, kind: str, sizes: tuple[int, ...]) -> bool:
        """Find sizes with which the graph runs; whether the loss is finite then.

        Raises:
            GraphFailsError: It does not run with any.
            ValueError: A feed that is given is why.
        """
        for size in sizes:
            self._size = size
            for self._noise in _NOISES:
                try:
                    if self._loss(kind):
                        return True
                except StepFailsError as error:
                    failure = error
                    break
            else:
                return False
        raise GraphFailsError(str(failure))

    def _loss(self, kind: str) -> bool:
        return bool(np.isfinite(self._run(self._known(kind))[self.part.loss]).all())

    def _run(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What a session computes.

        Raises:
            GraphFailsError: It fails with feeds that are given.
            StepFailsError: It fails with those that are made up.
            ValueError: A feed that is given is why.
        """
        try:
            return self.part.as_trained(known)
        except NotRunError as error:
            if self._given is None:
                raise StepFailsError(
                    f"a step does not run with feeds that were made up: {error}; {_GIVE}"
                ) from None
            self._maker.check(self._given)
            raise GraphFailsError(
                f"a step does not run with the feeds that were given: {error}"
            ) from None

    def _made(self, kind: str) -> dict[str, Any]:
        """Feeds that are made up; those of one sample have another batch than those of the next."""
        batch = BATCHES[self._count % len(BATCHES)]
        try:
            return self._maker.make(kind, self._size, self._random, batch)
        except NotRunError as error:
            raise StepFailsError(f"no feeds can be made up: {error}; {_GIVE}") from None

    def _known(self, kind: str) -> dict[str, Any]:
        """What the training graph is fed at a new point."""
        if self._given is not None:
            fed = {name: self._given[name] for name in self._fed}
            return {**self._given, **self.part.point(self._random, self._noise), **fed}
        return {**self._made(kind), **self.part.point(self._random, self._noise)}
