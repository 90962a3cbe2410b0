"""What samples are: arrays by name, of which some rows at a time are read."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from graphopt.feeds import Feed

Batch = dict[str, np.ndarray]

_WHOLE = 2**26  # bytes of an array on the disk that are all looked at
_ROWS = 4096  # of a larger one


class Rows(Protocol):
    """An array, or what takes rows as one does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, of which the first counts samples."""

    @property
    def dtype(self) -> np.dtype:
        """Its element type."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Some rows of it."""


class Samples(ABC):
    """Samples of what a graph is fed."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """What there is an array of."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> Batch:
        """Some of them, by their numbers, in that order."""

    @abstractmethod
    def digest(self) -> str:
        """By what a run that goes on knows that they are the same."""

    @property
    def classes(self) -> Sequence[str] | None:
        """What each number of a class stands for, where there is a list of that."""
        return None

    @property
    def files(self) -> Sequence[Path]:
        """The files that they are read from."""
        return ()

    @property
    def written(self) -> str:
        """When its files were last written to, as a digest, where `digest` does not look at all."""
        return ""

    def among(self, feeds: Iterable[Feed]) -> list[Feed]:
        """Those of some feeds that there are samples of."""
        return [feed for feed in feeds if feed.name in self.names]

    def batches(self, order: np.ndarray, size: int) -> Iterator[Batch]:
        """Those of an order, so many at a time; the last ones may be fewer."""
        for start in range(0, len(order), size):
            yield self.take(order[start : start + size])


class Arrays(Samples):
    """Samples that are arrays, in memory or mapped into it.

    Args:
        arrays: Them, by name.
        files: The files that they were read from.
        in_memory: Whether all of them are, so that all bytes are looked at to know them again; of
            a large one that is on the disk, these are its size and 4096 rows.
    """

    def __init__(
        self, arrays: Mapping[str, Rows], files: Sequence[Path] = (), *, in_memory: bool = True
    ) -> None:
        """See the class."""
        self.arrays, self._files, self._in_memory = dict(arrays), tuple(files), in_memory

    @property
    def names(self) -> tuple[str, ...]:
        """What there is an array of."""
        return tuple(self.arrays)

    def __len__(self) -> int:
        """How many there are."""
        return next(iter(self.arrays.values())).shape[0]

    def take(self, rows: np.ndarray) -> Batch:
        """Some of them."""
        return {name: np.asarray(array[rows]) for name, array in self.arrays.items()}

    def digest(self) -> str:
        """Of names, dtypes, shapes and values."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            looked_at = np.arange(array.shape[0])
            if not self._in_memory and _is_large(array):
                looked_at = np.unique(np.linspace(0, array.shape[0] - 1, _ROWS).astype(np.int64))
            whole = array if isinstance(array, np.ndarray) and self._in_memory else array[looked_at]
            digest.update(np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    @property
    def files(self) -> Sequence[Path]:
        """The files that they were read from."""
        return self._files

    @property
    def written(self) -> str:
        """When its files were last written to, where not all rows are looked at."""
        is_whole = self._in_memory or not any(map(_is_large, self.arrays.values()))
        return "" if is_whole else written_at(self._files)

    def with_arrays(self, arrays: Mapping[str, Rows]) -> "Arrays":
        """The same with other arrays, or with other names of them."""
        return Arrays(arrays, self._files, in_memory=self._in_memory)


def written_at(files: Iterable[Path]) -> str:
    """A digest of when files were last written to, in their order."""
    times = [file.stat().st_mtime_ns for file in files]
    return hashlib.sha256(" ".join(map(str, times)).encode()).hexdigest()


def _is_large(array: Rows) -> bool:
    return bool(np.prod(array.shape) * array.dtype.itemsize > _WHOLE)


def check_lengths(where: str, arrays: Mapping[str, Rows]) -> None:
    """Refuse arrays that do not have the same number of samples, or none.

    Raises:
        ValueError: They do not.
    """
    scalars = [name for name, array in arrays.items() if not array.shape]
    if scalars:
        raise ValueError(f"'{where}': '{scalars[0]}' is a scalar, expected an axis of samples")
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"'{where}': expected the same number of samples, got {lengths}")
