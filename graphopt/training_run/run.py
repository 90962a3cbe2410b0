"""A run of training: goes through the samples, looks how good it is, saves, and goes on."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from graphopt.manifest import Manifest
from graphopt.session import Session
from graphopt.states import ACCUMULATION_COUNT, COUNTERS, GLOBAL_STEP, SKIPPED_STEPS
from graphopt.training_run.history import LOSS, VALIDATION, History
from graphopt.training_run.plan import Plan
from graphopt.training_run.signals import Stop
from graphopt.training_run.target import POSITION, Target

_LOSSES = "losses"  # of the epoch so far: how many, and their sum
_HISTORY = "history"
_WRITTEN = "data written"  # when, where only a part of them is looked at
_BEST = "best"  # which of two metrics is the better one


class Watcher(Protocol):
    """What is told of a run."""

    def step(self, position: int, loss: float) -> None:
        """A step was taken."""

    def epoch(self, values: Mapping[str, Any]) -> None:
        """An epoch has ended, before it is saved."""

    def saving(self) -> None:
        """A checkpoint is about to be written: what was told before it must not be lost then."""


@dataclass
class Run:
    """A run of training.

    Attributes:
        session: What is trained.
        plan: What it is trained on.
        target: Where it is saved.
        history: What its epochs came to.
        validate: Evaluates the session's state after an epoch; what it returns is noted.
        validated: What ``validate`` looks at, by which a run that goes on knows it again.
        position: The number of steps taken.
        losses: Those of the last epoch, as far as this run took it; not of skipped steps.
        summed: Of the epoch so far, whoever took its steps: how many losses, and their sum.
    """

    session: Session
    plan: Plan
    target: Target
    history: History = field(default_factory=History)
    validate: Callable[[], Mapping[str, float]] | None = None
    validated: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0
    losses: list[float] = field(default_factory=list)
    summed: tuple[int, float] = (0, 0.0)

    def resume(self, resume: Path | None) -> None:
        """Go on from where a run was.

        Raises:
            ValueError: That was on other data, or in another order.
        """
        note = self.target.resume(self.session, resume)
        self._described = {**self.plan.described(), **self.validated}
        self._written = self.plan.samples.written
        if note is None:
            return
        noted = note.get(POSITION)
        self.position = _steps_of(self.session) if noted is None else int(noted)
        if isinstance(losses := note.get(_LOSSES), list) and len(losses) == 2:
            self.summed = int(losses[0]), float(losses[1])
        if isinstance(epochs := note.get(_HISTORY), list):
            self.history.epochs = [epoch for epoch in epochs if isinstance(epoch, dict)]
        for name, now in self._described.items():
            if name in note and note[name] != now:
                values = f": it was {note[name]}, and is {now}"
                raise ValueError(
                    f"the checkpoint was trained with another {name}"
                    f"{'' if 'data' in name or name == 'constants' else values}; give the same to "
                    "go on, or begin anew with another --checkpoint"
                )
        if self._written != note.get(_WRITTEN, self._written):
            warnings.warn(
                "files of the data were written since the run began, of which only the sizes and "
                "some rows are compared: if they were edited, begin anew with another --checkpoint",
                stacklevel=2,
            )

    @property
    def has_ended(self) -> bool:
        """Whether no step is left, or no better epoch has come for too long."""
        return self.position >= self.plan.total or self.history.has_ended

    def train(self, stop: Stop, watchers: Sequence[Watcher] = ()) -> None:
        """Take the steps that are left, and save after each epoch.

        Args:
            stop: Looked at after each step.
            watchers: Told of each step and each epoch.
        """
        if not self.has_ended:
            self._train(stop, watchers)
        if self.position:
            self._save(watchers)
        self.target.wait()

    def _save(self, watchers: Sequence[Watcher], metric: float | None = None) -> None:
        for watcher in watchers:
            watcher.saving()
        self.target.save(self.session, self.note, metric)

    def _train(self, stop: Stop, watchers: Sequence[Watcher]) -> None:
        for batch in self.plan.from_position(self.position):
            if self._is_to_stop(stop):
                break
            if self.position % self.plan.steps == 0:
                self.losses, self.summed = [], (0, 0.0)
            loss = float(self.session.step(batch, outputs=[LOSS])[LOSS])
            if np.isfinite(loss) or not self._skips:
                self.losses.append(loss)
                self.summed = self.summed[0] + 1, self.summed[1] + loss
            self.position += 1
            for watcher in watchers:
                watcher.step(self.position, loss)
            if self.position % self.plan.steps:
                if self.target.is_due(self.position):
                    self._save(watchers)
                continue
            self._end_epoch(watchers)
            if self.history.has_ended:
                break

    def _is_to_stop(self, stop: Stop) -> bool:
        return stop.signal is not None

    def _values(self) -> dict[str, float]:
        """What an epoch that has ended came to."""
        mean = self.summed[1] / self.summed[0] if self.summed[0] else np.nan
        values = {LOSS: mean}
        if self.validate is not None and np.isfinite(mean):
            values |= {f"{VALIDATION}{name}": v for name, v in self.validate().items()}
        return values

    def _end_epoch(self, watchers: Sequence[Watcher]) -> None:
        self.history.add(self.position // self.plan.steps, self.position, self._values())
        for watcher in watchers:
            watcher.epoch(self.history.epochs[-1])
        self._save(watchers, self.history.epochs[-1].get(self.monitored))
        self._check_losses()

    @property
    def monitored(self) -> str:
        """The value that says which epoch is the best."""
        return self.history.monitored

    def _check_losses(self) -> None:
        """End a run whose losses are no numbers any more.

        Raises:
            FloatingPointError: They are not.
        """
        if not self.summed[0]:
            raise FloatingPointError(
                "all steps of an epoch overflowed and were skipped; the state is sound: look for "
                "numbers in the samples that are NaN, infinite or too large"
            )
        if not np.isfinite(self.losses).all():
            self.session.check()
            lost = next(loss for loss in self.losses if not np.isfinite(loss))
            raise FloatingPointError(
                f"the loss is {lost}; the state is sound: look for such numbers in the samples"
            )

    @property
    def skipped(self) -> int:
        """How many steps were skipped, in this run and those that it goes on from."""
        if not self._skips:
            return 0
        with self.session.borrowed() as state:
            return int(state[SKIPPED_STEPS.name])

    @property
    def _skips(self) -> bool:
        """Whether steps that overflow are skipped, so that their losses say nothing."""
        return any(value.input == SKIPPED_STEPS.name for value in self.session.graph.carried)

    @property
    def note(self) -> dict[str, Any]:
        """What a checkpoint says of the run."""
        return {
            POSITION: self.position,
            _LOSSES: list(self.summed),
            _HISTORY: self.history.epochs,
            _BEST: self.history.mode,
            _WRITTEN: self._written,
            **self.target.noted,
            **self._described,
        }


def _steps_of(session: Session) -> int:
    """The number of steps taken, of a state with which it was not noted.

    Raises:
        ValueError: The caller says which steps are updates, so that the state does not tell.
    """
    optimizer = Manifest.read(session.graph.lean, "optimizer").optimizer
    accumulation = None if optimizer is None else optimizer.accumulation
    with session.borrowed() as state:
        counters = {name: int(state[name]) for name in COUNTERS if name in state}
    steps = counters[GLOBAL_STEP.name]
    if accumulation is not None:
        if accumulation.steps is None:
            raise ValueError(
                "the checkpoint does not say after how many steps it was saved, and the graph "
                "leaves to its caller which of them are updates; build it with accumulation=N"
            )
        steps = steps * accumulation.steps + counters[ACCUMULATION_COUNT.name]
    return steps + counters.get(SKIPPED_STEPS.name, 0)
