"""Failures of file operations, one at a time."""

import errno
import os
from contextlib import contextmanager

import pytest

OPERATIONS = ("open", "replace", "unlink", "link", "fsync", "mkdir", "rmdir")


@contextmanager
def failing(at, *, for_ever=False, fail=None):
    """Let the operation of this number fail, or from there on all; gives the list of those done.

    Args:
        at: Counts from 0; None lets none fail.
        for_ever: Also all after it.
        fail: What happens instead of an error of the disk.
    """
    done = []

    def watched(name, operation):
        def run(*arguments, **options):
            number = len(done)
            done.append(name)
            if at is not None and (number >= at if for_ever else number == at):
                if fail is not None:
                    fail()
                code = errno.EIO if name == "fsync" else errno.ENOSPC
                raise OSError(code, os.strerror(code))
            return operation(*arguments, **options)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield done
