"""``python -m tests.helpers.state_digest GRAPH FEEDS [--one-core] [--deterministic] ...``.

Trains a file for some steps and prints the SHA-256 of the state, for processes of the tests.
"""

import hashlib
import os
import sys

import numpy as np

import graphopt
from graphopt import _runtime


def digest(state: dict[str, np.ndarray]) -> str:
    """The SHA-256 of all values."""
    found = hashlib.sha256()
    for name, array in sorted(state.items()):
        found.update(f"{name} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def trained(path: str, feeds: str, threads: int | None = None, **arguments: bool) -> str:
    """The digest of the state after five steps."""
    options = None
    if threads is not None:
        options = _runtime.session_options(_runtime.onnxruntime())
        options.intra_op_num_threads = threads
    session = graphopt.Session(path, session_options=options, **arguments)
    with np.load(feeds) as batch:
        for _ in range(5):
            session.step(dict(batch))
    return digest(session.state)


if __name__ == "__main__":
    if "--one-core" in sys.argv:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(
        trained(
            sys.argv[1],
            sys.argv[2],
            deterministic="--deterministic" in sys.argv,
            kernels="--no-kernels" not in sys.argv,
        )
    )
