"""What ranks tell each other, all of it by sums: any engine that adds arrays up will do."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from graphopt.distributed.errors import OtherRankError

AllReduce = Callable[[Sequence[np.ndarray]], object]
"""Writes to each array the sum over all ranks: contiguous 1-D arrays of float32, float64, int64.

Every rank calls it as often, with arrays of the same dtypes and sizes, and finds the same bits.
"""

_T = TypeVar("_T")


@runtime_checkable
class Engine(Protocol):
    """An `AllReduce` that knows which rank it is.

    Attributes:
        rank: From 0.
        size: How many there are.
    """

    rank: int
    size: int

    def __call__(self, arrays: Sequence[np.ndarray]) -> object:
        """Write to each array the sum over all ranks."""


class Ranks:
    """The ranks of a run, of which this is one.

    Args:
        all_reduce: Adds arrays up.
        rank: Which this is, from 0.
        size: How many there are.
    """

    def __init__(self, all_reduce: AllReduce, rank: int, size: int) -> None:
        """See the class."""
        self._all_reduce, self.rank, self.size = all_reduce, rank, size

    def add(self, *arrays: np.ndarray) -> None:
        """Write to each array the sum over all ranks.

        Raises:
            OtherRankError: The engine failed, because another rank has ended for example.
        """
        if self.size == 1:
            return
        none = f"rank {self.rank} of {self.size}: no sum over all ranks, so nothing was updated"
        try:
            self._all_reduce(arrays)
        except OtherRankError as error:
            raise OtherRankError(f"{none}: {error}") from error
        except Exception as error:
            raise OtherRankError(
                f"{none}; most likely another rank has ended, whose own message says why: "
                f"{type(error).__name__}: {error}"
            ) from error

    @property
    def overlaps(self) -> bool:
        """Whether the engine adds up in a thread of its own while this rank computes."""
        return bool(getattr(self._all_reduce, "overlaps", False)) and self.size > 1

    def sums(self, *, overlapped: bool) -> "Sums":
        """Sums of a step, which may begin before the last array is there."""
        return OverlappedSums(self) if overlapped else Sums(self)

    def check(self) -> None:
        """Refuse an engine that does not add up.

        Raises:
            ValueError: It does something else.
        """
        for dtype in (np.float32, np.float64, np.int64):
            ones = np.ones(3, dtype)
            self.add(ones)
            if not (ones == self.size).all():
                raise ValueError(
                    f"all_reduce: from 1 on each of {self.size} ranks it made {ones[0]} "
                    f"({np.dtype(dtype).name}), expected the sum, written to the array itself"
                )

    def largest(self, value: int) -> int:
        """The largest of what the ranks give."""
        return int(self.from_all(np.array([value], np.int64)).max())

    def from_all(self, values: np.ndarray) -> np.ndarray:
        """The int64 values of all ranks, a row each; every rank gives as many."""
        table = np.zeros((self.size, values.size), np.int64)
        table[self.rank] = values
        self.add(table.reshape(-1))
        return table

    def from_first(self, data: bytes | None) -> bytes:
        """What rank 0 gives; that of the others is not read."""
        if self.size == 1:
            return data or b""
        data = data if self.rank == 0 and data is not None else b""
        length = np.array([len(data)], np.int64)
        self.add(length)
        words = np.zeros(-(-int(length[0]) // 8), np.int64)
        words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
        self.add(words)
        return words.tobytes()[: int(length[0])]

    def together(self, work: Callable[[], _T]) -> _T:
        """Do something on all ranks that ends with an error on all, if it does on one.

        Raises:
            OtherRankError: Another rank failed, which raises what went wrong there.
        """
        result, error = attempt(work)
        if self.largest(int(error is not None)):
            self.fail(error)
        return result  # type: ignore[return-value]

    def fail(self, error: Exception | None) -> None:
        """Raise this error, or say which rank failed; every rank calls it.

        Raises:
            OtherRankError: Another rank failed.
        """
        said = f"{type(error).__name__}: {error}"[:_LONGEST].encode() if error else b""
        words = np.zeros(_LONGEST // 2, np.int64)
        words.view(np.uint8)[: len(said)] = np.frombuffer(said, np.uint8)
        messages = [row.tobytes().rstrip(b"\0").decode() for row in self.from_all(words)]
        if error is not None:
            raise error
        rank, message = next((r, text) for r, text in enumerate(messages) if text)
        raise OtherRankError(f"rank {rank} of {self.size} failed, nothing was updated: {message}")


class Sums:
    """Sums of a step, all of them at its end.

    Attributes:
        begun: How often arrays were given.
    """

    def __init__(self, ranks: Ranks) -> None:
        """See the class."""
        self._ranks, self._arrays, self.begun = ranks, list[np.ndarray](), 0

    def begin(self, *arrays: np.ndarray) -> None:
        """Add these up, before `end` returns; all ranks give as many, in the same order."""
        self._arrays += arrays
        self.begun += 1

    def end(self) -> None:
        """Wait until all arrays are the sums.

        Raises:
            OtherRankError: As `Ranks.add`.
        """
        self._ranks.add(*self._arrays)


class OverlappedSums(Sums):
    """Sums of a step, each of which a thread begins when its array is there."""

    def __init__(self, ranks: Ranks) -> None:
        """See the class."""
        super().__init__(ranks)
        self._queue: SimpleQueue[Sequence[np.ndarray] | None] = SimpleQueue()
        self._error: Exception | None = None
        # A daemon: a process that ends does not wait for sums that do not come.
        self._thread = threading.Thread(target=self._run, name="graphopt-sums", daemon=True)
        self._thread.start()

    def begin(self, *arrays: np.ndarray) -> None:
        """Begin to add these up; all ranks give the same, in the same order."""
        self.begun += 1
        self._queue.put(arrays)

    def end(self) -> None:
        """Wait until all arrays are the sums."""
        self._queue.put(None)
        while self._thread.is_alive():
            self._thread.join(0.5)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (arrays := self._queue.get()) is not None:
            if self._error is None:
                self._error = attempt(partial(self._ranks.add, *arrays))[1]


_LONGEST = 400  # characters of a message, of four bytes at most


def attempt(work: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
    """What something gives, or with what error it ends."""
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - it is raised when the other ranks know
        return None, error


def ranks_of(all_reduce: Any, rank: int | None, size: int | None) -> Ranks:
    """The ranks, from an engine, or from a function and numbers.

    Raises:
        TypeError: It is not callable, or does not know which rank it is.
        ValueError: There is no such rank.
    """
    if not callable(all_reduce):
        raise TypeError(
            f"all_reduce: got {type(all_reduce).__name__}, expected a function of a list of arrays "
            "that writes to each the sum over all ranks, or graphopt.distributed.mpi()"
        )
    if isinstance(all_reduce, Engine):
        rank, size = all_reduce.rank, all_reduce.size
    for name, value in (("rank", rank), ("size", size)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(
                f"{name}: got {value!r}, expected an int, because all_reduce has no attribute "
                f"'{name}'"
            )
    assert rank is not None
    assert size is not None
    if not 0 <= rank < size:
        raise ValueError(f"rank: got {rank} of size {size}, expected 0 <= rank < size")
    return Ranks(all_reduce, rank, size)
