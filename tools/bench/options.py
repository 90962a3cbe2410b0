"""The options of sessions that are measured: those of graphopt, and how many threads."""

from typing import Any


def session_options(threads: int) -> Any:
    """Options as graphopt makes them, for a session that computes with so many threads."""
    from graphopt import _runtime  # of which processes that measure memory have nothing before

    options = _runtime.session_options(_runtime.onnxruntime())
    options.intra_op_num_threads = threads
    return options
