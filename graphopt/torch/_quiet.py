"""What PyTorch says of its own doings while it captures and translates: nothing."""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

_ITS_OWN = re.compile(r"(torch|onnxscript|onnx_ir)(\.|$)")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings, log messages, and the program that it prints when it fails.

    What is wrong it raises as an error besides.
    """
    names = [name for name in logging.root.manager.loggerDict if _ITS_OWN.match(name)]
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return not _ITS_OWN.match(record.name)
