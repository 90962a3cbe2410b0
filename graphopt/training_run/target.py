"""Where a run is saved, and from what it goes on."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from graphopt import _checks
from graphopt.checkpoint_folder import Checkpoints
from graphopt.on_device import read_stored
from graphopt.session import Session
from graphopt.states import GLOBAL_STEP

POSITION = "position"
"""What a checkpoint's note calls the number of steps taken."""


class Target:
    """Where a run is saved: a file, a folder of checkpoints, or nowhere.

    Args:
        path: Of a file, or of a folder; None for nowhere.
        checkpoints: Those of the folder.
        every: Save after so many steps too.
        minutes: Save after so many minutes too.
        best: Keep the checkpoint of the best epoch beside the newest.
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
            note = self.checkpoints.resume(session)
            self._saved_at = None if note is None else note.get(POSITION)
            return note
        if resume is None and self.path is not None and self.path.is_file():
            resume = self.path
        if resume is None:
            return None
        note = read_stored(resume, leaving=True).note
        session.load_checkpoint(resume)
        if self.checkpoints is None and self.path is not None and self.path.is_file():
            saved = int(read_stored(self.path, leaving=True).state[GLOBAL_STEP.name])
            if saved > session.global_step:
                raise ValueError(
                    f"'{self.path}' is at step {saved}, further than '{resume}' at step "
                    f"{session.global_step}: leave out --resume to go on from there, or save to "
                    "another file"
                )
        return note

    def save(self, session: Session, note: Mapping[str, Any], metric: float | None = None) -> None:
        """Save, if that has not been done at this position.

        Args:
            session: The session.
            note: What is to be noted.
            metric: How good the epoch is, where one has ended.
        """
        if self.path is None or self._saved_at == note[POSITION]:
            return
        if self.checkpoints is not None:
            self.checkpoints.save(session, note, metric=metric if self._best else None)
        else:
            session.save_checkpoint(self.path, note=note)
        self._saved_at, self._saved = note[POSITION], time.monotonic()

    def is_due(self, position: int) -> bool:
        """Whether as many steps were taken as were asked for, or as many minutes have passed."""
        if self._every is not None and position % self._every == 0:
            return True
        minutes = (time.monotonic() - self._saved) / 60
        return self._minutes is not None and minutes >= self._minutes

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
    best: Literal["min", "max"] | None,
    background: bool,
) -> Target:
    """Where a run is saved; a path that is a folder, or has no ending, is that of a folder.

    Args:
        path: The path.
        every: Save after so many steps too.
        minutes: Save after so many minutes too.
        keep: How many checkpoints stay in a folder.
        best: Keep that of the epoch with the lowest or the highest value too.
        background: Write to the folder while training goes on.

    Raises:
        ValueError: ``best`` or ``background`` without a folder, or ``minutes`` is not above zero.
    """
    if minutes is not None:
        minutes = _checks.above_zero("--save-minutes", minutes)
    if path is not None and (path.is_dir() or not (path.exists() or path.suffix)):
        checkpoints = Checkpoints(path, keep=keep, best=best or "min", background=background)
        return Target(path, checkpoints, every=every, minutes=minutes, best=best is not None)
    for option, given in (("--background", background), ("--keep-best", best is not None)):
        if given:
            raise ValueError(f"{option}: needs a folder, got --checkpoint '{path}'")
    return Target(path, every=every, minutes=minutes)
