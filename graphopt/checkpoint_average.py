"""The average of checkpoints: of their parameters and running statistics."""

import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import numpy as np

from graphopt import _checks, checkpoint, states
from graphopt._files import PathLike, about, existing_file
from graphopt._outputs import check_outputs
from graphopt.checkpoint import Stored
from graphopt.fingerprint import Fingerprint
from graphopt.on_device import read_stored

_SCALARS = frozenset(state.name for state in states.OF_GRAPHS)


def average_checkpoints(
    checkpoints: PathLike | Iterable[PathLike], path: PathLike, *, last: int | None = None
) -> tuple[Path, ...]:
    """Write a checkpoint whose parameters and running statistics are the means of several.

    The means are computed in float64. Everything else, the optimizer's states, what is counted and
    what was noted, is that of the checkpoint with the most updates: load it to export or evaluate
    what was averaged; training may go on from it, but is another one.

    Args:
        checkpoints: Of one graph: files, as sessions or devices write them, or folders of
            `Checkpoints`, each of which stands for all that it has.
        path: The file to write.
        last: Take only so many of them, those with the most updates.

    Returns:
        The files that were averaged, in the order of their updates.

    Raises:
        FileNotFoundError: There is no such file, or a folder has no checkpoint.
        TypeError: An argument has the wrong type.
        ValueError: A file is not a checkpoint, or damaged, or given twice; they belong to different
            graphs; there are fewer than ``last``; or the file to write is one of them.

    Source:
        Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018.

    Example:
        >>> opt = RMSProp([Parameter("w", ())], learning_rate=1.0, decay=0.0)
        >>> session = Session(update_graph(opt), {"w": np.float32(5)})
        >>> for step in range(2):
        ...     _ = session.step({"w_grad": np.float32(1)})
        ...     session.save_checkpoint(f"{step}.safetensors")
        >>> _ = average_checkpoints(["0.safetensors", "1.safetensors"], "mean.safetensors")
        >>> _ = session.load_checkpoint("mean.safetensors")
        >>> session.state["w"], session.global_step
        (array(3.5, dtype=float32), 2)
    """
    if last is not None:
        _checks.steps("last", last)
    given = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
    files = [file for entry in given for file in _files_of(Path(entry))]
    if not files:
        raise ValueError("checkpoints: got none, expected at least one")
    if twice := next((f for i, f in enumerate(files) if any(map(f.samefile, files[:i]))), None):
        raise ValueError(f"checkpoints: '{twice}' is given twice, and would count twice")
    check_outputs([("path", path)], [("a checkpoint that is averaged", file) for file in files])
    if last is not None and last > len(files):
        raise ValueError(f"last: got {last}, but there are {len(files)} checkpoints")
    ordered = sorted(files, key=_updates)[-(last or len(files)) :]
    with about(path):
        newest = read_stored(ordered[-1])
        averaged = [name for name in newest.state if _is_averaged(name, newest.state)]
        sums = {name: newest.state[name].astype(np.float64) for name in averaged}
        for file in ordered[:-1]:
            stored = read_stored(file)
            _check(file, stored, ordered[-1], newest)
            for name in averaged:
                sums[name] += stored.state[name]
        count = len(ordered)
        means = {n: (sums[n] / count).astype(newest.state[n].dtype) for n in sums}
        note = newest.note if isinstance(newest.note, dict) else {}
        state, note = newest.state | means, note | {"average_of": count}
        checkpoint.save(path, state, newest.graph, note)
    return tuple(ordered)


def _files_of(path: Path) -> Iterator[Path]:
    """A file itself, or the checkpoints of a folder."""
    if not path.is_dir():
        yield existing_file(path)
        return
    checkpoint.file_of(path)  # which says that there are none
    yield from checkpoint.in_folder(path)


def _updates(file: Path) -> int:
    return int(read_stored(file).state.get(states.GLOBAL_STEP.name, np.int64(0)))


def _is_averaged(name: str, names: Container[str]) -> bool:
    return not states.split(name, names)[0] and name not in _SCALARS


def _check(file: Path, stored: Stored, other: Path, newest: Stored) -> None:
    """Refuse one that belongs to another graph."""
    problems: list[str] = []
    if isinstance(newest.graph, dict):
        problems += Fingerprint(newest.graph).differences(stored.graph)
    expected = {name: (array.shape, array.dtype.name) for name, array in newest.state.items()}
    problems += checkpoint.misfits(stored.state, expected)
    checkpoint.refuse(file, f"does not belong to the graph of '{other}'", problems)
