"""Failures of file operations, one at a time."""

import errno
import os
import random
from contextlib import contextmanager

import pytest

FLIPS = 1000
OPERATIONS = ("open", "replace", "unlink", "link", "fsync", "mkdir", "rmdir")


@contextmanager
def failing(at, *, for_ever=False, fail=None, code=None):
    """Let the operation of this number fail, or from there on all; gives the list of those done.

    Args:
        at: Counts from 0; None lets none fail.
        for_ever: Also all after it.
        fail: What happens instead of an error of the disk.
        code: Of the error; by default EIO when a file is synced, and ENOSPC otherwise.
    """
    done = []

    def watched(name, operation):
        def run(*arguments, **options):
            number = len(done)
            done.append(name)
            if at is not None and (number >= at if for_ever else number == at):
                if fail is not None:
                    fail()
                error = code or (errno.EIO if name == "fsync" else errno.ENOSPC)
                raise OSError(error, os.strerror(error))
            return operation(*arguments, **options)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield done


def contents(folder):
    """The content of each file, by its path in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flips_that_are_found(path, read, flips=FLIPS):
    """Flip bits of a file, one at a time: every one is refused, by an error that names the file.

    Args:
        path: The file, which is whole again in the end.
        read: Is called with its path.
        flips: How many bits, which are drawn at random.
    """
    whole, rng, missed = path.read_bytes(), random.Random(0), []
    read(path)
    for _ in range(flips):
        at, bit = rng.randrange(len(whole)), rng.randrange(8)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            read(path)
            missed.append((at, bit))
        except ValueError as error:
            if str(path) not in str(error):
                missed.append((at, bit, error))
    path.write_bytes(whole)
    assert missed == []
