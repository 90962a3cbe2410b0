"""The checkpoints of a run in a folder: saved every so often, of which the newest are kept."""

import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from graphopt import _checks, checkpoint
from graphopt._files import PathLike, sync_folder
from graphopt._folder_lock import FolderLock, lock_of
from graphopt.finite import check_finite
from graphopt.limits import TooLargeError
from graphopt.session import Session
from graphopt.states import GLOBAL_STEP

_METRIC = "metric"


class Checkpoints:
    """Saves a session as it trains, and goes on from where a run has ended, however it did.

    A file is ``step-<number>.safetensors``, complete as soon as it has this name. An old one is
    removed when a new one is on the disk, so that there is a complete one at any time. One process
    at a time saves to a folder.

    Args:
        folder: Where they are; the first one makes it, in a folder that exists.
        keep: How many of the newest are kept; None keeps all.
        every: `save_if_due` saves after so many steps.
        minutes: `save_if_due` saves after so many minutes.
        best: Whether the best metric, of those given to `save`, is the lowest ("min") or the
            highest ("max"); its checkpoint is kept beside the newest.
        background: Copy the state, and write it while training goes on; one at a time. Errors come
            with the next call. Use the object with ``with``, or call `wait` in the end.

    Raises:
        FileNotFoundError: The parent of the folder does not exist.
        NotADirectoryError: It is a file.
        TypeError: An argument has the wrong type.
        ValueError: ``keep``, ``every`` or ``minutes`` is not above zero, or ``best`` is neither.

    Example:
        >>> opt = RMSProp([Parameter("w", (3,))], learning_rate=0.01)
        >>> graph, gradient = update_graph(opt), {"w_grad": np.ones(3, np.float32)}
        >>> def train(steps):
        ...     session = Session(graph, parameters={"w": np.zeros(3, np.float32)})
        ...     with Checkpoints("run", keep=2, every=10) as checkpoints:
        ...         checkpoints.resume(session)
        ...         while session.global_step < steps:
        ...             session.step(gradient)
        ...             checkpoints.save_if_due(session)
        ...     return [path.name for path in checkpoints.paths]
        >>> train(25)
        ['step-0000000010.safetensors', 'step-0000000020.safetensors']
        >>> train(30)  # begins at step 20
        ['step-0000000020.safetensors', 'step-0000000030.safetensors']
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        keep: int | None = 3,
        every: int | None = None,
        minutes: float | None = None,
        best: Literal["min", "max"] = "min",
        background: bool = False,
    ) -> None:
        """See the class."""
        for name, count in (("keep", keep), ("every", every)):
            if count is not None:
                _checks.steps(name, count)
        if minutes is not None:
            minutes = _checks.above_zero("minutes", minutes)
        _checks.one_of("best", best, ("min", "max"))
        _checks.boolean("background", background)
        self.folder = Path(folder)
        self.keep, self.every, self.minutes, self.best = keep, every, minutes, best
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"'{folder}' is a file, expected a folder for checkpoints")
        if not self.folder.parent.is_dir():
            raise FileNotFoundError(
                f"cannot make '{folder}': the folder '{self.folder.parent}' does not exist; "
                "create it first"
            )
        self._background = background
        self._writing: threading.Thread | None = None
        self._error: Exception | None = None
        self._own: set[Path] = set()  # those that this run has begun with or has written
        self._found: set[Path] | None = None  # those that were there before
        self._lock: FolderLock | None = None
        self._last_step, self._last_time = 0, time.monotonic()

    @property
    def paths(self) -> list[Path]:
        """The checkpoints, the oldest first."""
        return checkpoint.in_folder(self.folder) if self.folder.exists() else []

    def claim(self) -> None:
        """Make the folder, and let no other process save to it as long as this object is there.

        `save` does so by itself.

        Raises:
            OSError: Another process saves to it, or it cannot be made.
        """
        if self._lock is not None and not self._lock.is_of(self.folder):
            warnings.warn(
                f"the folder '{self.folder}' was moved or removed during the run, which goes on "
                "saving to a new one of this name",
                stacklevel=2,
            )
            self._lock = None
        if not self.folder.exists():
            self.folder.mkdir(exist_ok=True)
            sync_folder(self.folder.parent)
        if self._lock is None:
            try:
                self._lock = lock_of(self.folder)
            except BlockingIOError:
                raise OSError(
                    f"another process saves its checkpoints to '{self.folder}': wait until it has "
                    "ended, or save to another folder"
                ) from None

    def resume(self, session: Session) -> Mapping[str, Any] | None:
        """Load the newest complete checkpoint, if there is one.

        One that is damaged gets the ending ``.damaged``, with a warning, and the one before it is
        taken.

        Returns:
            What was noted with it; None where there is none.

        Raises:
            ValueError: It is one of another graph or of a newer graphopt, or takes more memory than
                there is; or all that there are are damaged.
        """
        self.wait()
        self._found = set(self.paths)
        damaged: dict[Path, ValueError] = {}
        for path in reversed(self.paths):
            try:
                session.load_checkpoint(path)
            except (checkpoint.OtherFileError, checkpoint.OtherGraphError, TooLargeError):
                raise
            except ValueError as error:
                damaged[path] = error
                continue
            for other, why in damaged.items():
                other.replace(other.with_name(f"{other.name}.damaged"))
                warnings.warn(f"{why}; it is left out", stacklevel=2)
            self._own.add(path)
            self._last_step, self._last_time = session.global_step, time.monotonic()
            return checkpoint.note_of(path)
        if damaged:
            raise ValueError(
                f"no checkpoint of '{self.folder}' is whole: {next(iter(damaged.values()))}; "
                "take another copy of one, or begin anew in another folder"
            )
        return None

    def save(
        self,
        session: Session,
        note: Mapping[str, Any] | None = None,
        *,
        metric: float | None = None,
    ) -> Path:
        """Save a session, and remove what is not kept; of a `DataParallel`, that of rank 0.

        Args:
            session: The session.
            note: What is to be noted with it, as JSON has it, such as the position in the data.
            metric: How good it is, for ``best``; by default what was noted at the same step.

        Raises:
            FloatingPointError: The state has NaN or infinite numbers.
            OSError: It could not be written, or in the background the one before it; or another
                process saves to the folder.
            ValueError: The folder has a checkpoint of a later step, which is not of this run, or
                another run has meanwhile saved one of this step.
        """
        self.wait()
        if self._background:
            return self._save(session, session.state, note, metric)
        with session.borrowed() as state:
            return self._save(session, state, note, metric)

    def _save(
        self,
        session: Session,
        state: checkpoint.State,
        note: Mapping[str, Any] | None,
        metric: float | None,
    ) -> Path:
        """Save a state of a session, which nobody writes to before it is written."""
        entry = session.fingerprint
        check_finite(state)
        step = int(state[GLOBAL_STEP.name])
        path = self.folder / checkpoint.name_at(step)
        if session.writes:
            self.claim()
        self._check_others(path, step)
        if metric is None:  # without an update since, these are the parameters of a metric
            metric = _notes([path] if path.exists() else []).get(path, {}).get(_METRIC)
        noted = dict(note or {}) | ({} if metric is None else {_METRIC: float(metric)})

        def write() -> None:
            checkpoint.save(path, state, entry, noted)
            self._rotate(path)

        self._own.add(path)
        self._last_step, self._last_time = step, time.monotonic()
        if not session.writes:
            return path
        if self._background:
            self._writing = threading.Thread(target=self._run, args=[write], name="checkpoint")
            self._writing.start()
        else:
            write()
        return path

    def _check_others(self, path: Path, step: int) -> None:
        """Refuse to save among the checkpoints of another run that is further, or as far."""
        there = self.paths
        if self._found is None:
            self._found = set(there)
        others = [other for other in there if other not in self._own]
        if others and checkpoint.step_of(others[-1]) > step:
            raise ValueError(
                f"'{others[-1]}' is further than this run, which is at step {step}: go on from it "
                "(Checkpoints.resume), or save to another folder"
            )
        if path in others and path not in self._found:
            raise ValueError(
                f"another run has saved '{path}' since this one began: save to another folder"
            )

    def save_if_due(self, session: Session, note: Mapping[str, Any] | None = None) -> Path | None:
        """Save if ``every`` steps or ``minutes`` have passed since the last time.

        Raises:
            OSError: As `save`.
        """
        steps, seconds = session.global_step - self._last_step, time.monotonic() - self._last_time
        due = self.every is not None and steps >= self.every
        due |= self.minutes is not None and steps > 0 and seconds >= 60 * self.minutes
        return self.save(session, note) if due else None

    def wait(self) -> None:
        """Return when what is written in the background is on the disk.

        Raises:
            OSError: It could not be written.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Wait for what is being written."""
        self.wait()

    def _run(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001 - it is raised by the next call
            self._error = error

    def _rotate(self, newest: Path) -> None:
        """Remove all but the newest and the best."""
        if self.keep is None:
            return
        paths = self.paths
        best = _best_of(_notes(paths), self.best)
        for path in paths[: -self.keep]:
            if path not in (newest, best):
                path.unlink(missing_ok=True)


def best_checkpoint(folder: PathLike, mode: Literal["min", "max"] | None = None) -> Path:
    """The checkpoint of a folder with the best metric, of those that `Checkpoints.save` was given.

    Args:
        folder: The folder.
        mode: Whether the lowest or the highest is the best; what ``graphopt train`` has noted, or
            "min", by default.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: None of its checkpoints has a metric.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder of checkpoints, of which one is the best")
    paths = checkpoint.in_folder(path)
    notes = _notes(paths)
    if mode is None:
        newest = notes.get(paths[-1], {}) if paths else {}
        mode = "max" if newest.get("best") == "max" else "min"
    found = _best_of(notes, mode)
    if found is None:
        raise ValueError(
            f"'{folder}' has no checkpoint that says how good it is; graphopt train --keep-best "
            "and Checkpoints.save(metric=...) write such"
        )
    return found


def _best_of(notes: Mapping[Path, Mapping[str, Any]], mode: str) -> Path | None:
    """The one of several checkpoints with the best metric, the first of equal ones."""
    metrics = {path: note[_METRIC] for path, note in notes.items() if _METRIC in note}
    choose = min if mode == "min" else max
    return choose(metrics, key=metrics.__getitem__, default=None)


def _notes(paths: Sequence[Path]) -> dict[Path, Mapping[str, Any]]:
    """What was noted with checkpoints, as far as they can be read."""
    notes = {}
    for path in paths:
        try:
            notes[path] = checkpoint.note_of(path)
        except ValueError:
            continue
    return notes
