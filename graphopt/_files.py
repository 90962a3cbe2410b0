"""Reading and writing files so that a failure leaves nothing half done."""

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

PathLike = str | os.PathLike[str]


def existing_file(path: PathLike) -> Path:
    """The path, if it names a file; otherwise an error that says what is there instead."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}' (current folder: {Path.cwd()})")
    return path


def write_atomically(path: PathLike, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file in the same folder, then move it to ``path``.

    Whoever opens ``path`` sees the old content or the new, never a part of it. A symbolic link
    stays one: what it points to is written.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"cannot write '{path}': it is a folder")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write '{path}': the folder '{Path(path).parent}' does not exist; "
            "create it first"
        )
    if target.exists() and not target.is_file():
        raise OSError(f"cannot write '{path}': it is not a regular file")
    temporary = target.parent / f".graphopt-{secrets.token_hex(8)}.part"
    try:
        write(temporary)
        if target.exists():
            shutil.copymode(target, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
