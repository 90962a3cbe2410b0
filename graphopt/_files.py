"""Reading and writing files so that a failure leaves nothing half done."""

import os
import tempfile
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
    """Let ``write`` fill a temporary file beside ``path``, then move it into place.

    Whoever opens ``path`` sees the old content or the new, never a part of it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write '{path}': it is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write '{path}': the folder '{path.parent}' does not exist; create it first"
        )
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
