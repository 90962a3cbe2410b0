"""What is written is never what is read, nor two things at once, by whatever path it is called."""

import os
from collections.abc import Iterable
from pathlib import Path

from graphopt._files import PathLike

Named = tuple[str, PathLike | None]
"""What a file is to the user, such as "--export", and its path; None where there is none."""


def check_outputs(outputs: Iterable[Named], inputs: Iterable[Named]) -> None:
    """Refuse to write over what is read, and to write two things to one file.

    Two paths are one file if they lead to the same place through links and ``..``, or if the file
    has two names (hard links, or a file system that takes large letters for small ones).

    Args:
        outputs: What is to be written.
        inputs: What is read.

    Raises:
        ValueError: An output is an input, or another output.

    Example:
        >>> read = [("TRAIN.onnx", "./train.onnx")]
        >>> check_outputs([("--export", "train.onnx")], read)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: --export: 'train.onnx' is TRAIN.onnx itself ('train.onnx'), which ...
    """
    taken = [(name, Path(path), "is read") for name, path in inputs if path is not None]
    for name, given in outputs:
        if given is None:
            continue
        path = Path(given)
        for other, occupied, use in taken:
            if same_file(path, occupied):
                raise ValueError(
                    f"{name}: '{path}' is {other} itself ('{occupied}'), which {use}; write to "
                    "another file"
                )
        taken.append((name, path, "is written too"))


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths are one file, which need not exist."""
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    try:
        return first.samefile(second)
    except OSError:  # one of them is not there yet
        return False
