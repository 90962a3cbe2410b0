"""A folder that one process at a time writes to.

The lock is that of the system on the folder itself, so that it leaves no file, and ends with the
process, however that ends.
"""

import errno
import os
from pathlib import Path
from weakref import WeakValueDictionary

try:
    import fcntl
except ImportError:  # there are no such locks on Windows
    fcntl = None  # type: ignore[assignment]

_Identity = tuple[int, int]  # of a file system, and of a folder in it


class FolderLock:
    """The lock of a folder, which this process holds as long as somebody refers to it."""

    def __init__(self, number: int) -> None:
        """Of an open folder."""
        self._number = number
        self._identity = _identity(os.fstat(number))

    def is_of(self, folder: Path) -> bool:
        """Whether a path is still that of the folder, which may have been moved or removed."""
        try:
            return _identity(folder.stat()) == self._identity
        except OSError:
            return False

    def __del__(self) -> None:
        os.close(self._number)


_held: WeakValueDictionary[_Identity, FolderLock] = WeakValueDictionary()


def lock_of(folder: Path) -> FolderLock | None:
    """Lock a folder, once in a process; None where the file system has no such locks.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: There is no such folder.
    """
    if fcntl is None:
        return None
    number = os.open(folder, os.O_RDONLY)
    found = _held.get(_identity(os.fstat(number)))
    if found is None:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(number)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BlockingIOError(error.errno, error.strerror, str(folder)) from None
            return None
        found = FolderLock(number)
        _held[_identity(os.fstat(number))] = found
        return found
    os.close(number)
    return found


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino
