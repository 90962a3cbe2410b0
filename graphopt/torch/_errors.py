"""What is said where a module cannot be exported: why, and where in it."""

import re
import sysconfig
import traceback
from pathlib import Path

import torch

_LIBRARIES = tuple(str(Path(file).parent) for file in (torch.__file__, __file__))
_PYTHON = sysconfig.get_path("stdlib")
_NOISE = re.compile(r"\x1b\[\d*m")
_MOST = 400


class NotExportableError(ValueError):
    """Something that graphopt itself finds in a module while it is captured."""


def refusal(what: str, error: BaseException) -> ValueError:
    """The error to raise for one that was raised while a module was captured or translated."""
    causes = chain(error)
    for cause in causes:
        if isinstance(cause, NotExportableError):
            return ValueError(f"{cause}{_at(cause)}")
    places = [*(_at(cause) for cause in reversed(causes)), *(line_of(str(e)) for e in causes)]
    where = next(filter(None, places), "")
    return ValueError(f"{what}: {reason(causes[-1])}{where}")


def reason(error: BaseException) -> str:
    """The first paragraph of what an error says, and of which kind it is."""
    text = _NOISE.sub("", str(error)).strip()
    if "data-dependent" in text:
        return (
            "a number or a branch depends on the values of tensors, of which only the shapes are "
            "known; write torch.where(...) for an if, and tensors for numbers"
        )
    if missing := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text):
        return f"PyTorch has no translation of {missing[1]}; write it with other operators"
    first = " ".join(text.split("\n\n")[0].split())
    if len(first) > _MOST:
        first = f"{first[:_MOST]} ..."
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def line_of(stack_trace: str | None) -> str:
    """Where in the module a node of a captured program comes from, for the end of a message."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.*)', stack_trace or "")
    own = [entry for entry in found if _is_users(entry[0])]
    if not own:
        return ""
    file, line, _, code = own[-1]
    return f" ({file}:{line}: {code.strip()})"


def _at(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if frame.line and _is_users(frame.filename) and not _is_call(frame):
            return f" ({frame.filename}:{frame.lineno}: {frame.line.strip()})"
    return ""


def _is_users(file: str) -> bool:
    """Whether it is neither PyTorch nor Python itself, but the module or a library of modules."""
    is_python = file.startswith(_PYTHON) and "site-packages" not in file
    return not (file.startswith((*_LIBRARIES, "<")) or is_python)


def _is_call(frame: traceback.FrameSummary) -> bool:
    return bool(re.search(r"\btorch\.export\(", frame.line or ""))


def chain(error: BaseException) -> list[BaseException]:
    """The error, and those that led to it."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain
