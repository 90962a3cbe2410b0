"""The lower bound that memory sets: moves the bytes that an update must read and write."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from tools.bench.cases import UpdateCase
from tools.bench.contenders.contender import Run, UnavailableError

_SOURCE = Path(__file__).with_name("copy.c")
_BUILD = Path(__file__).parents[3] / "build" / "bench"


def update(case: UpdateCase, threads: int) -> Run:
    """Reads gradients, reads and writes parameters and states, as flat arrays.

    Raises:
        UnavailableError: There is no C compiler.
    """
    move = ctypes.CDLL(str(_library())).move_arrays
    elements = sum(int(np.prod(shape)) for shape in case.shapes)
    states = 1 + (case.variant.momentum > 0) + case.variant.centered
    read, *written = (np.ones(elements, np.float32) for _ in range(2 + states))
    addresses = (ctypes.c_void_p * len(written))(*(array.ctypes.data for array in written))
    arguments = (
        ctypes.c_void_p(read.ctypes.data),
        addresses,
        ctypes.c_size_t(len(written)),
        ctypes.c_size_t(elements),
        ctypes.c_size_t(threads),
    )

    def step() -> list[np.ndarray]:
        failed = move(*arguments)
        if failed:
            raise RuntimeError(f"{threads} threads could not be started: error {failed}")
        return [read, *written]  # which must outlive the addresses

    return Run(step)


def _library() -> Path:
    """The compiled copy.c."""
    library = _BUILD / "copy.so"
    if library.exists() and library.stat().st_mtime >= _SOURCE.stat().st_mtime:
        return library
    compiler = shutil.which("cc")
    if compiler is None:
        raise UnavailableError("there is no C compiler called cc")
    _BUILD.mkdir(parents=True, exist_ok=True)
    new = _BUILD / f"copy.{os.getpid()}.so"  # several processes may compile it at once
    options = ["-O3", "-march=native", "-pthread", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, str(_SOURCE), "-o", str(new)], check=True)
    new.replace(library)
    return library
