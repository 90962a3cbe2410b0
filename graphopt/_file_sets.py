"""Writing several files that belong together, so that nobody finds some old and some new.

The new files are written beside the old ones, in a folder of their own. Then they are moved. One
file, without which nobody can begin, goes first and comes last: whoever reads between the moves
finds it missing. After an error the old files are there again; after a kill the next call ends
what was begun.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from graphopt._files import about, sweep, sync, sync_folder, temporary

# That of temporary folders, also of those that were made before they had an ending.
_STAGING = re.compile(r"\.graphopt-([0-9a-f]{16}\.set|[a-z0-9_]{8})")
_PLAN, _NEW, _OLD = "plan.json", "new", "old"


@dataclass(frozen=True)
class _Plan:
    """What is moved.

    Attributes:
        is_back: The old files come back.
        new: The names of the new files, the one that comes last at the end.
        old: The names of those that are replaced or removed.
    """

    is_back: bool
    new: list[str]
    old: list[str]


def write_together(
    folder: Path, fill: Callable[[Path], object], names: Sequence[str], last: str
) -> None:
    """Replace files in a folder by others, all of them or none.

    Args:
        folder: The folder, which exists.
        fill: Writes the new files into the folder that it is given.
        names: What there may be; those that ``fill`` does not write are removed.
        last: The one without which nobody can begin, which ``fill`` always writes.

    Raises:
        OSError: They could not be written; the old ones are as they were.
    """
    sweep(folder, _STAGING, _end)
    with about(folder), temporary(folder, ".set", Path.mkdir, _end) as staging:
        new, old = staging / _NEW, staging / _OLD
        new.mkdir()
        old.mkdir()
        fill(new)
        written = [name for name in names if name != last and (new / name).exists()]
        plan = _Plan(False, [*written, last], [n for n in names if (folder / n).exists()])
        for name in plan.new:
            sync(new / name)
            if name in plan.old:
                shutil.copymode(folder / name, new / name)
        for name in plan.old:
            _keep(folder / name, old / name)
        sync_folder(new)
        sync_folder(old)
        _write(plan, staging)
        try:
            _move(plan, staging)
        except BaseException:
            back = _Plan(True, plan.new, plan.old)
            _write(back, staging)
            _move(back, staging)
            raise


def _end(staging: Path) -> None:
    """End what was begun in a staging folder, and remove it."""
    if (staging / _PLAN).exists():
        _move(_Plan(**json.loads((staging / _PLAN).read_text())), staging)
    shutil.rmtree(staging)


def _keep(file: Path, copy: Path) -> None:
    """A second name for a file, or a copy where there are none."""
    try:
        os.link(file, copy)
    except OSError:
        shutil.copy2(file, copy)
        sync(copy)


def _write(plan: _Plan, staging: Path) -> None:
    part = staging / f"{_PLAN}.part"
    part.write_text(json.dumps(asdict(plan)))
    sync(part)
    part.replace(staging / _PLAN)
    sync_folder(staging)


def _move(plan: _Plan, staging: Path) -> None:
    """Move files to their places, as far as they have not been; the plan ends with it."""
    folder, last = staging.parent, plan.new[-1]
    source, wanted = (staging / _OLD, plan.old) if plan.is_back else (staging / _NEW, plan.new)
    unwanted = {*plan.old, *plan.new}.difference(wanted)
    if (source / last).exists():
        (folder / last).unlink(missing_ok=True)
    for name in sorted(unwanted, key=lambda name: name != last):
        (folder / name).unlink(missing_ok=True)
    for name in sorted(wanted, key=lambda name: name == last):
        _replace(source / name, folder / name)
    sync_folder(folder)
    (staging / _PLAN).unlink()


def _replace(source: Path, target: Path) -> None:
    if source.exists() and not (target.exists() and target.samefile(source)):
        source.replace(target)
