"""A library of kernels for a part of the tests.

A session takes a tenth of a millisecond for each kernel that any session of the process has wanted,
as those of a library share them. The tests want nearly all of them, so that each session took as
long as a test.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from graphopt import kernels


@contextmanager
def own_kernels() -> Iterator[None]:
    """Let what runs meanwhile load a copy of the library, in which nobody has wanted any kernel."""
    built = kernels.library()
    if built is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        copy = Path(shutil.copy(built, folder))
        patch.setattr(kernels, "library", lambda: copy)
        yield
