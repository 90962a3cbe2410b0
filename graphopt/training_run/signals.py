"""Ctrl-C and SIGTERM, which end a run after the running step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether a signal came, and which; the running step is ended then."""

    signal: int | None = None


@contextmanager
def stopping() -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM say that a run is to stop; the second one stops it at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None:
            signal.default_int_handler(number, frame)
        stop.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
