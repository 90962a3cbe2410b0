"""What `graphopt train` does: goes through the samples, saves, stops when told, and goes on."""

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from graphopt import _checks
from graphopt.checkpoint_folder import Checkpoints
from graphopt.manifest import Manifest
from graphopt.on_device import read_stored
from graphopt.samples import Batch
from graphopt.session import Session
from graphopt.states import ACCUMULATION_COUNT, GLOBAL_STEP, SKIPPED_STEPS

_POSITION = "position"
_LOSSES = "losses"  # of the epoch so far: how many, and their sum


@dataclass(frozen=True)
class Plan:
    """The samples and the order in which they come.

    Attributes:
        samples: The arrays, by name.
        size: Samples in a step.
        steps: Steps of an epoch.
        epochs: Passes over the samples.
        seed: Of the order.
    """

    samples: Batch
    size: int
    steps: int
    epochs: int
    seed: int

    @property
    def total(self) -> int:
        """The number of steps."""
        return self.epochs * self.steps

    def from_position(self, position: int) -> Iterator[Batch]:
        """The batches from there on, in an order that is drawn anew for each epoch."""
        for chosen in self.chosen_from(position):
            yield {name: array[chosen] for name, array in self.samples.items()}

    def chosen_from(self, position: int) -> Iterator[np.ndarray]:
        """The numbers of the samples of each of these batches."""
        count = len(next(iter(self.samples.values())))
        for epoch in range(position // self.steps, self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(count)
            done = max(0, position - epoch * self.steps) * self.size
            end = min(count, self.steps * self.size)
            for start in range(done, end, self.size):
                yield order[start : min(end, start + self.size)]

    def described(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        digest = hashlib.sha256()
        for name, array in sorted(self.samples.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return {"data": digest.hexdigest(), "batch size": self.size, "seed": self.seed}


class Target:
    """Where a run is saved: a file, a folder of checkpoints, or nowhere.

    Args:
        path: Of a file, or of a folder; None for nowhere.
        checkpoints: Those of the folder.
        every: Save after so many steps too.
        minutes: Save after so many minutes too.
        best: Keep the checkpoint of the epoch with the lowest mean loss beside the newest.
    """

    def __init__(
        self,
        path: Path | None,
        checkpoints: Checkpoints | None = None,
        *,
        every: int | None = None,
        minutes: float | None = None,
        best: bool = False,
    ) -> None:
        """See the class."""
        self.path, self.checkpoints = path, checkpoints
        self._every, self._minutes, self._best = every, minutes, best
        self._saved_at: int | None = None  # the position
        self._saved = time.monotonic()

    def resume(self, session: Session, resume: Path | None) -> Mapping[str, Any] | None:
        """Go on from a file, or from what was saved here; returns what was noted, if anything was.

        Raises:
            ValueError: What was saved here is further than the file.
        """
        if resume is None and self.checkpoints is not None:
            return self.checkpoints.resume(session)
        if resume is None and self.path is not None and self.path.is_file():
            resume = self.path
        if resume is None:
            return None
        note = read_stored(resume).note
        session.load_checkpoint(resume)
        if self.checkpoints is None and self.path is not None and self.path.is_file():
            saved = int(read_stored(self.path).state[GLOBAL_STEP.name])
            if saved > session.global_step:
                raise ValueError(
                    f"'{self.path}' is at step {saved}, further than '{resume}' at step "
                    f"{session.global_step}: leave out --resume to go on from there, or save to "
                    "another file"
                )
        return note

    def save(
        self, session: Session, note: Mapping[str, Any], mean_loss: float | None = None
    ) -> None:
        """Save, if that has not been done at this position.

        Args:
            session: The session.
            note: What is to be noted.
            mean_loss: That of the epoch, where one has ended.
        """
        if self.path is None or self._saved_at == note[_POSITION]:
            return
        if self.checkpoints is not None:
            self.checkpoints.save(session, note, metric=mean_loss if self._best else None)
        else:
            session.save_checkpoint(self.path, note=note)
        self._saved_at, self._saved = note[_POSITION], time.monotonic()

    def save_if_due(self, session: Session, note: Mapping[str, Any]) -> None:
        """Save, if as many steps were taken as were asked for, or as many minutes have passed."""
        due = self._every is not None and note[_POSITION] % self._every == 0
        minutes = (time.monotonic() - self._saved) / 60
        if due or (self._minutes is not None and minutes >= self._minutes):
            self.save(session, note)

    def wait(self) -> None:
        """Return when all is on the disk."""
        if self.checkpoints is not None:
            self.checkpoints.wait()


def target_at(
    path: Path | None,
    *,
    every: int | None,
    minutes: float | None,
    keep: int,
    best: bool,
    background: bool,
) -> Target:
    """Where a run is saved; a path that is a folder, or has no ending, is that of a folder.

    Args:
        path: The path.
        every: Save after so many steps too.
        minutes: Save after so many minutes too.
        keep: How many checkpoints stay in a folder.
        best: Keep that of the epoch with the lowest mean loss too.
        background: Write to the folder while training goes on.

    Raises:
        ValueError: ``best`` or ``background`` without a folder, or ``minutes`` is not above zero.
    """
    if minutes is not None:
        minutes = _checks.above_zero("--save-minutes", minutes)
    if path is not None and (path.is_dir() or not (path.exists() or path.suffix)):
        checkpoints = Checkpoints(path, keep=keep, background=background)
        return Target(path, checkpoints, every=every, minutes=minutes, best=best)
    for option, given in (("--background", background), ("--keep-best", best)):
        if given:
            raise ValueError(f"{option}: needs a folder, got --checkpoint '{path}'")
    return Target(path, every=every, minutes=minutes)


@dataclass
class Stop:
    """Whether a signal came, and which; the running step is ended then."""

    signal: int | None = None


@dataclass
class Run:
    """A run of training.

    Attributes:
        session: What is trained.
        plan: What it is trained on.
        target: Where it is saved.
        position: The number of steps taken.
        losses: Those of the last epoch, as far as this run took it; not of skipped steps.
        summed: Of the epoch so far, whoever took its steps: how many losses, and their sum.
    """

    session: Session
    plan: Plan
    target: Target
    position: int = 0
    losses: list[float] = field(default_factory=list)
    summed: tuple[int, float] = (0, 0.0)

    def resume(self, resume: Path | None) -> None:
        """Go on from where a run was.

        Raises:
            ValueError: That was on other data, or in another order.
        """
        note = self.target.resume(self.session, resume)
        self._described = self.plan.described()
        if note is None:
            return
        noted = note.get(_POSITION)
        self.position = _steps_of(self.session) if noted is None else int(noted)
        if isinstance(losses := note.get(_LOSSES), list) and len(losses) == 2:
            self.summed = int(losses[0]), float(losses[1])
        for name, now in self._described.items():
            if name in note and note[name] != now:
                values = "" if name == "data" else f": it was {note[name]}, and is {now}"
                raise ValueError(
                    f"the checkpoint was trained with another {name}{values}; give the same to go "
                    "on, or begin anew with another --checkpoint"
                )

    def train(self, stop: Stop, report: Callable[[int, float], object]) -> None:
        """Take the steps that are left, and save after each epoch.

        Args:
            stop: Looked at after each step.
            report: Called after each step with the position and the loss.
        """
        for batch in self.plan.from_position(self.position):
            if self._is_to_stop(stop):
                break
            if self.position % self.plan.steps == 0:
                self.losses, self.summed = [], (0, 0.0)
            loss = float(self.session.step(batch)["loss"])
            if np.isfinite(loss) or not self._skips:
                self.losses.append(loss)
                self.summed = self.summed[0] + 1, self.summed[1] + loss
            self.position += 1
            report(self.position, loss)
            if self.position % self.plan.steps == 0:
                mean = self.summed[1] / self.summed[0] if self.summed[0] else np.nan
                finite = mean if np.isfinite(mean) else None
                self.target.save(self.session, self.note, finite)
                self._check_losses()
            else:
                self.target.save_if_due(self.session, self.note)
        if self.position:
            self.target.save(self.session, self.note)
        self.target.wait()

    def _is_to_stop(self, stop: Stop) -> bool:
        return stop.signal is not None

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
        return int(self.session.state[SKIPPED_STEPS.name]) if self._skips else 0

    @property
    def _skips(self) -> bool:
        """Whether steps that overflow are skipped, so that their losses say nothing."""
        return any(value.input == SKIPPED_STEPS.name for value in self.session.graph.carried)

    @property
    def note(self) -> dict[str, Any]:
        """What a checkpoint says of the run."""
        return {_POSITION: self.position, _LOSSES: list(self.summed), **self._described}


def _steps_of(session: Session) -> int:
    """The number of steps taken, of a state with which it was not noted.

    Raises:
        ValueError: The caller says which steps are updates, so that the state does not tell.
    """
    state, optimizer = session.state, Manifest.read(session.graph.model, "optimizer").optimizer
    accumulation = None if optimizer is None else optimizer.accumulation
    steps = session.global_step
    if accumulation is not None:
        if accumulation.steps is None:
            raise ValueError(
                "the checkpoint does not say after how many steps it was saved, and the graph "
                "leaves to its caller which of them are updates; build it with accumulation=N"
            )
        steps = steps * accumulation.steps + int(state[ACCUMULATION_COUNT.name])
    return steps + int(state.get(SKIPPED_STEPS.name, 0))


@contextmanager
def stopping() -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM say that a run is to stop; the second one stops it at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None:
            signal.default_int_handler(number, frame)
        stop.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
