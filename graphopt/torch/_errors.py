"""What is said where a module cannot be exported: why, and where in it."""

import re
import traceback
from pathlib import Path

import torch

_LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, __file__))
_NOISE = re.compile(r"\x1b\[\d*m")
_MOST = 400


class NotExportableError(ValueError):
    """Something that graphopt itself finds in a module while it is captured."""


def refusal(what: str, error: BaseException) -> ValueError:
    """The error to raise for one that was raised while a module was captured or translated."""
    own = _chain(error)
    for cause in own:
        if isinstance(cause, NotExportableError):
            return ValueError(f"{cause}{_at(cause)}")
    return ValueError(f"{what}: {reason(own[-1])}{_at(own[-1]) or _at(error)}")


def reason(error: BaseException) -> str:
    """The first paragraph of what an error says, and of which kind it is."""
    text = _NOISE.sub("", str(error)).strip()
    first = " ".join(text.split("\n\n")[0].split())
    if len(first) > _MOST:
        first = f"{first[:_MOST]} ..."
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def line_of(stack_trace: str | None) -> str:
    """Where in the module a node of a captured program comes from, for the end of a message."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.*)', stack_trace or "")
    own = [entry for entry in found if not entry[0].startswith(_LIBRARIES)]
    if not own:
        return ""
    file, line, _, code = own[-1]
    return f" ({file}:{line}: {code.strip()})"


def _at(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    # The first is the call of `export` itself.
    for frame in reversed(own):
        if frame.line and "<" not in frame.filename and not _is_call(frame):
            return f" ({frame.filename}:{frame.lineno}: {frame.line.strip()})"
    return ""


def _is_call(frame: traceback.FrameSummary) -> bool:
    return bool(re.search(r"\btorch\.export\(", frame.line or ""))


def _chain(error: BaseException) -> list[BaseException]:
    """The error, and those that led to it."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain
