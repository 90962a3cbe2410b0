"""What is shown of a run, and what its log says."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from graphopt.training_run import LOSS, VALIDATION, Log, Run

_NOT_VALUES = ("epoch", "step")


class _Speed(ProgressColumn):
    """Examples in a second."""

    def __init__(self, size: int) -> None:
        super().__init__(Column(no_wrap=True))
        self._size = size

    def render(self, task: Task) -> Text:
        """As many as the last steps took."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed * self._size:.0f} examples/s")


def progress_bar(size: int, *, shown: bool = True) -> Progress:
    """A bar for steps of so many samples, on the error output.

    The time is what is left; at the end, what it took. The bar alone shrinks, so that a terminal
    of 80 columns has all else on one line.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        _Speed(size),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
        disable=not shown,
    )


class Shown:
    """Shows a run while it trains."""

    def __init__(self, progress: Progress, run: Run, rate: Callable[[int], float | None]) -> None:
        """Begin at where the run is."""
        self._progress, self._run, self._rate = progress, run, rate
        self._task = progress.add_task("epoch", total=run.plan.total, loss="", rate="")
        self._show(run.position)

    def step(self, position: int, loss: float) -> None:
        """A step was taken."""
        self._show(position, loss)

    def epoch(self, values: Mapping[str, Any]) -> None:
        """An epoch has ended."""
        if any(name.startswith(VALIDATION) for name in values):
            best = " (best)" if self._run.history.best == values else ""
            self._progress.console.print(
                f"epoch {values['epoch']}/{self._run.plan.epochs}: {said(values)}{best}",
                highlight=False,
            )

    def saving(self) -> None:
        """A checkpoint is about to be written."""

    def _show(self, position: int, loss: float | None = None) -> None:
        steps, epochs = self._run.plan.steps, self._run.plan.epochs
        rate = self._rate(_updates_before(self._run))
        self._progress.update(
            self._task,
            description=f"epoch {max(0, position - 1) // steps + 1}/{epochs}",
            completed=position,
            loss="" if loss is None else f"loss {loss:.4f}",
            rate="" if rate is None else f"rate {rate:.3g}",
        )


class Logged:
    """Writes a run into its log."""

    def __init__(
        self, log: Log, run: Run, rate: Callable[[int], float | None], every: int | None
    ) -> None:
        """Begin at where the run is."""
        self._log, self._run, self._rate, self._every = log, run, rate, every
        self._epoch_began = self._began = (run.position, time.monotonic())

    def step(self, position: int, loss: float) -> None:
        """A step was taken."""
        if self._every is not None and position % self._every == 0:
            epoch = (position - 1) // self._run.plan.steps + 1
            row = {"row": "step", "epoch": epoch, "step": position, LOSS: loss}
            self._log.add(row | self._measured(position, self._began))
            self._began = (position, time.monotonic())

    def epoch(self, values: Mapping[str, Any]) -> None:
        """An epoch has ended."""
        position = int(values["step"])
        measured = self._measured(position, self._epoch_began)
        self._log.add({"row": "epoch", **values, **measured})
        self._epoch_began = self._began = (position, time.monotonic())

    def saving(self) -> None:
        """A checkpoint is about to be written: then the rows before it are on the disk."""
        self._log.sync()

    def _measured(self, position: int, since: tuple[int, float]) -> dict[str, Any]:
        before, began = since
        seconds = time.monotonic() - began
        samples = (position - before) * self._run.plan.size
        return {
            "learning_rate": self._rate(_updates_before(self._run)),
            "seconds": round(seconds, 3),
            "examples_per_second": round(samples / seconds, 1) if seconds else None,
        }


def _updates_before(run: Run) -> int:
    """How many updates there were before the last one: not each step is one."""
    return max(0, run.session.global_step - 1)


def log_columns(validated: list[str]) -> list[str]:
    """The columns of a log, whose epochs have these values of the validation data."""
    names = [f"{VALIDATION}{name}" for name in validated]
    measured = ["learning_rate", "seconds", "examples_per_second"]
    return ["row", "epoch", "step", LOSS, *names, *measured]


def said(values: Mapping[str, Any]) -> str:
    """Values in words.

    Example:
        >>> said({"epoch": 2, "step": 9, "loss": 0.5, "validation accuracy": None})
        'loss 0.5000, validation accuracy nan'
    """
    shown = {name: value for name, value in values.items() if name not in _NOT_VALUES}
    return ", ".join(
        f"{name} {float('nan') if value is None else value:.4f}" for name, value in shown.items()
    )
