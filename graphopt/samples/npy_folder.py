"""Samples in a folder of ``.npy`` files, which may be larger than the memory."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graphopt.samples.source import Arrays, Rows, check_lengths

_ENDING = ".npy"


class Parts:
    """Arrays one after the other, as one."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        """Of some that are alike but for the first size."""
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype: np.dtype = parts[0].dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Some rows, copied."""
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._ends, rows, side="right")
        for owner in np.unique(owners):
            part, chosen = self._parts[owner], owners == owner
            taken[chosen] = part[rows[chosen] - (self._ends[owner] - len(part))]
        return taken


def is_npy_folder(folder: Path) -> bool:
    """Whether a folder has such files, or folders of them."""
    return any(folder.glob(f"*{_ENDING}")) or any(folder.glob(f"*/*{_ENDING}"))


def open_npy_folder(folder: Path) -> Arrays:
    """The arrays of a folder: ``<name>.npy``, or the files of a folder ``<name>`` as one array.

    They are mapped into memory, and read where they are needed. Files of one array are in the order
    of their names, in which numbers count as such.

    Raises:
        ValueError: A file is damaged, or they do not fit each other.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == _ENDING:
            found.setdefault(path.stem, []).append(path)
        elif path.is_dir() and (parts := sorted(path.glob(f"*{_ENDING}"), key=_numbered)):
            found.setdefault(path.name, []).extend(parts)
    arrays: dict[str, Rows] = {}
    for name, paths in found.items():
        mapped = [_mapped(path) for path in paths]
        first = mapped[0]
        for path, part in zip(paths, mapped, strict=True):
            if (part.shape[1:], part.dtype) != (first.shape[1:], first.dtype):
                raise ValueError(
                    f"'{path}' is {part.dtype.name}{list(part.shape)}, but '{paths[0]}' is "
                    f"{first.dtype.name}{list(first.shape)}; parts of one array are alike but "
                    "for their number of samples"
                )
        arrays[name] = first if len(mapped) == 1 else Parts(mapped)
    check_lengths(str(folder), arrays)
    return Arrays(arrays, [path for paths in found.values() for path in paths], in_memory=False)


def _numbered(path: Path) -> list[tuple[int, str]]:
    """By what files are sorted so that ``part-2`` comes before ``part-10``."""
    pieces = re.split(r"([0-9]+)", path.name)
    return [(int(p) if p.isdecimal() else 0, p) for p in pieces]


def _mapped(path: Path) -> np.ndarray:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - what NumPy finds wrong has no common base
        raise ValueError(f"cannot read '{path}', it is damaged: {error}") from None
    return np.asarray(mapped)
