"""The command ``graphopt``: Ctrl-C ends it without a traceback while it still imports.

It stands outside the package, because importing anything inside runs all of that first.
"""

import gc
import os
import signal
from types import FrameType

_CODE = 128 + signal.SIGINT


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """End at once: nothing has begun, and imports cannot be interrupted at any place."""
    os.write(2, b"stopped by SIGINT\n")
    os._exit(_CODE)


def main() -> None:
    """Run the command line."""
    before = signal.signal(signal.SIGINT, _stop)
    gc.disable()  # what is imported stays: looking for garbage in it takes a tenth of the time
    from graphopt.cli import app

    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, before)
    try:
        app()
    except KeyboardInterrupt:
        _stop(signal.SIGINT, None)


if __name__ == "__main__":
    main()
