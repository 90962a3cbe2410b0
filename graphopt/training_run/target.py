"""Where a run is saved, and from what it goes on."""

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from graphopt import _checks
from graphopt._files import existing_file
from graphopt.checkpoint import file_of, note_of
from graphopt.checkpoint_folder import Checkpoints
from graphopt.on_device import read_note, read_stored
from graphopt.session import Session
from graphopt.states import GLOBAL_STEP

_BEGAN = "began with"
_LOOKED_AT = 2**24  # bytes of a file that is known again
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

    Attributes:
        noted: What a checkpoint is to say of what the run began with.
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
        self._content: _Content | None = None  # of the file, as this run knows it
        self._made_folder = False
        self.noted: Mapping[str, Any] = {}

    def resume(self, session: Session, resume: Path | None) -> Mapping[str, Any] | None:
        """Go on from a file, or from what was saved here; returns what was noted, if anything was.

        What was saved here by a run that began with the same file is what it goes on from.

        Raises:
            OSError: Another process saves to the folder.
            ValueError: What was saved here is further than the file, or of another run.
        """
        if self.checkpoints is not None and session.writes:
            self._made_folder = not self.checkpoints.folder.exists()
            self.checkpoints.claim()
        newest = self._newest()
        if resume is not None:
            resume = existing_file(file_of(resume))
        if resume is not None and not self._is_gone_on_from(resume, newest):
            session.load_checkpoint(resume)
            note = read_note(resume)
            if newest is not None and self.checkpoints is None:
                _check_not_further(newest, resume, session.global_step)
            self._begin(_mark(resume))
            return note
        if newest is None:
            self._begin("")
            return None
        if self.checkpoints is not None:
            note = self.checkpoints.resume(session) or {}
            self._saved_at = note.get(POSITION)
        else:
            session.load_checkpoint(newest)
            note = read_note(newest)
        self._begin(str(note.get(_BEGAN, "")))
        return note

    def _newest(self) -> Path | None:
        """What was saved here last."""
        if self.checkpoints is not None:
            return next(reversed(self.checkpoints.paths), None)
        return self.path if self.path is not None and self.path.is_file() else None

    def _is_gone_on_from(self, resume: Path, newest: Path | None) -> bool:
        """Whether what was saved here last is of a run that began with this file, or is the file.

        Raises:
            ValueError: It is not, and stands in a folder whose checkpoints would be removed.
        """
        if newest is None:
            return False
        if newest.samefile(resume):
            return True
        mark = _mark(resume)
        for path in [newest] if self.checkpoints is None else reversed(self.checkpoints.paths):
            with suppress(ValueError):  # a damaged one is left out
                if note_of(path).get(_BEGAN) == mark:
                    return True
        if self.checkpoints is None:
            return False
        raise ValueError(
            f"--resume: '{self.checkpoints.folder}' has checkpoints of another run already, the "
            f"newest of which is '{newest.name}': leave out --resume to go on from there, or give "
            "a --checkpoint that is not there yet"
        )

    def _begin(self, began: str) -> None:
        self.noted = {_BEGAN: began} if began else {}
        if self.checkpoints is None and self.path is not None:
            self._content = _content(self.path)

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
            if session.writes:
                self._check_content()
            session.save_checkpoint(self.path, note=note)
            self._content = _content(self.path)
        self._saved_at, self._saved = note[POSITION], time.monotonic()

    def _check_content(self) -> None:
        """Refuse to overwrite what another process has written to the file meanwhile."""
        assert self.path is not None
        if _content(self.path) not in (None, self._content):
            raise ValueError(
                f"another process has written '{self.path}' since this run did: save each run to a "
                "file of its own"
            )

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

    def leave(self) -> None:
        """Remove the folder that was made for checkpoints, if none came."""
        if self.checkpoints is not None and self._made_folder and self._saved_at is None:
            with suppress(OSError):  # something else stands in it
                self.checkpoints.folder.rmdir()


_Content = tuple[int, int, int]  # what tells whether a file was written


def _content(path: Path) -> _Content | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _mark(path: Path) -> str:
    """By what a run knows the file again that it began with."""
    with path.open("rb") as file:
        begin = file.read(_LOOKED_AT)  # which has the checksums of all tensors
    return hashlib.sha256(begin).hexdigest()


def _check_not_further(saved: Path, resume: Path, step: int) -> None:
    there = int(read_stored(saved, leaving=True).state[GLOBAL_STEP.name])
    if there > step:
        raise ValueError(
            f"'{saved}' is at step {there}, further than '{resume}' at step {step}: leave out "
            "--resume to go on from there, or save to another file"
        )


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
