"""PyTorch's warnings and log messages of its own doings, which are not for those who export."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_BY_OTHERS = re.compile(r"(torch|onnxscript|onnx_ir)(\.|$)")


class _Errors(logging.Filter):
    """Lets errors pass alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings, and what is logged below errors."""
    names = [name for name in logging.root.manager.loggerDict if _BY_OTHERS.match(name)]
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    handlers += logging.root.handlers
    errors = _Errors()
    for handler in handlers:
        handler.addFilter(errors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(errors)
