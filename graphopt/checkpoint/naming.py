"""What checkpoints are called in a folder of them, and which of them is the newest."""

import re
from pathlib import Path

from graphopt._files import PathLike

_NAME = re.compile(r"step-(\d{10,})\.safetensors")


def name_at(step: int) -> str:
    """What a checkpoint is called in a folder of them."""
    return f"step-{step:010}.safetensors"


def step_of(path: Path) -> int:
    """The step of one that is called so; -1 of any other file."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    return sorted((path for path in folder.iterdir() if step_of(path) >= 0), key=step_of)


def file_of(path: PathLike) -> PathLike:
    """A path; of a folder of checkpoints, that of the newest.

    Raises:
        FileNotFoundError: The folder has none.
    """
    folder = Path(path)
    if not folder.is_dir():
        return path
    found = in_folder(folder)
    if not found:
        raise FileNotFoundError(f"the folder '{folder}' has no checkpoint, such as {name_at(1)}")
    return found[-1]
