"""Reading and writing files so that a failure leaves nothing half done.

What is being written has a name that begins with `.graphopt-`, and is locked by its writer, so that
what a killed one has left is known, and swept by the next one.
"""

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # there are no such locks on Windows, where nothing is swept
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]

_TEMPORARY = re.compile(r"\.graphopt-[0-9a-f]{16}\.part")
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR}


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

    Whoever opens ``path`` sees the old content or the new, never a part of it, also after a loss
    of power. A symbolic link stays one: what it points to is written. A new file has the
    permissions that new files have, an old one keeps its own.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: It could not be written; the old file is as it was.
    """
    target = check_target(path)
    sweep(target.parent, _TEMPORARY, Path.unlink)
    with about(path), temporary(target.parent, ".part", Path.touch, Path.unlink) as part:
        write(part)
        sync(part)
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
        sync_folder(target.parent)
    return target


def check_target(path: PathLike) -> Path:
    """The file that is written where this is the path, which may be a symbolic link to it.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: It is a folder, or no regular file.
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
    return target


def check_writable(folder: Path, path: PathLike) -> None:
    """Refuse a folder that no file can be made in.

    Args:
        folder: The folder.
        path: What is to be written, which the error names.

    Raises:
        OSError: None can.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def about(path: PathLike) -> Iterator[None]:
    """Let errors of the operating system name this file, and not a temporary one, or none.

    So does one that there is no memory for what is to be written.
    """
    try:
        yield
    except MemoryError as error:
        named = os.fspath(path)
        if named in str(error) or ".graphopt-" in named:
            raise
        why = f": {error}" if str(error) else ""
        raise MemoryError(f"cannot write '{path}': there is not enough memory{why}") from error
    except OSError as error:
        named = error.filename
        if error.errno is None or not (named is None or ".graphopt-" in os.fsdecode(named)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def temporary(
    folder: Path, suffix: str, make: Callable[[Path], None], remove: Callable[[Path], None]
) -> Iterator[Path]:
    """Something in a folder that is locked, and removed in the end if it is still there."""
    while True:
        path = folder / f".graphopt-{secrets.token_hex(8)}{suffix}"
        try:
            make(path)
            with _locked(path):
                if path.exists():  # otherwise somebody has swept it before it was locked
                    yield path
                    return
        finally:
            if path.exists():
                remove(path)


def sweep(folder: Path, names: re.Pattern[str], remove: Callable[[Path], None]) -> None:
    """Remove what killed writers have left in a folder; what cannot be removed stays."""
    if fcntl is None:
        return
    with suppress(OSError):
        for path in folder.iterdir():
            if names.fullmatch(path.name):
                with suppress(OSError), _locked(path, wait=False):
                    remove(path)


def sync(path: Path) -> None:
    """Return when a file is on the disk."""
    with path.open("rb" if fcntl else "rb+") as file:  # it may be read-only
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk, where it can be said of folders."""
    if fcntl is None:
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(number)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file or folder.

    Raises:
        OSError: Another process holds it, and this one does not wait.
    """
    if fcntl is None:
        yield
        return
    number = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            if not wait:  # a file system without locks: nothing is swept there
                raise
        yield
    finally:
        os.close(number)
