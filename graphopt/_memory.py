"""Giving memory back to the system as soon as it is free."""

import ctypes
import gc
import sys

_LARGE = 2**21  # bytes: below, a collection takes longer than it is worth


def give_back_memory(size: int = _LARGE) -> None:
    """Give freed memory back to the system, where the C library would keep it (glibc's).

    Args:
        size: The bytes that have been freed; nothing is done for few.
    """
    if size < _LARGE:
        return
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def give_back_models(size: int) -> None:
    """Free models that nothing refers to: what they are made of refers to itself.

    Args:
        size: The bytes of their values; nothing is done for few.
    """
    if size >= _LARGE:
        gc.collect()
        give_back_memory()
