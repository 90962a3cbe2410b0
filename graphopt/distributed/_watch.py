"""Signs of life, by which a rank that waits for another knows that it waits in vain."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from graphopt.distributed.errors import OtherRankError

PATIENCE = 15.0
"""Seconds without a sign of life after which a rank is lost."""

_LONGEST = 400  # characters of a message
_PERIOD = 1.0  # seconds between two signs
_GRACE = 2.0  # seconds in which a sum may still come that a rank took part in before it ended
_LATE = 3  # periods after which the watch itself must have been stopped


def heard(rank: int, size: int) -> range:
    """The ranks whose words a rank hears, and who hear its own.

    Example:
        >>> list(heard(0, 4)), list(heard(2, 4))
        ([1, 2, 3], [0])
    """
    return range(1, size) if rank == 0 else range(1)


class Board(Protocol):
    """What words of ranks pass by: those of rank 0 to all others, theirs to rank 0."""

    def exchange(self, word: str) -> Mapping[int, str]:
        """Give one's own word, and take the newest of each rank from which there is a new one."""


class Watch:
    """Tells each second that this rank lives, and looks whether the others do.

    Rank 0 hears all ranks, and tells them what it finds, so that a second costs each of k ranks
    one message, and rank 0 k. A rank that computes gives signs all the while, by a thread.

    Args:
        board: What words pass by.
        rank: Which rank this is.
        size: How many there are.
        patience: Seconds without a sign of life after which a rank is lost.
        act: Called by the thread with what is wrong, where this rank waits for a sum that does not
            come. None: who waits asks by `trouble`.
    """

    def __init__(
        self,
        board: Board,
        rank: int,
        size: int,
        patience: float,
        act: Callable[[str], object] | None = None,
    ) -> None:
        """See the class."""
        self._board, self._rank, self._size, self._patience = board, rank, size, patience
        self._act, self._period = act, min(_PERIOD, patience / 5)
        self._others = heard(rank, size)
        self._said: str | None = None
        self._count = 0
        self._heard = dict.fromkeys(self._others, time.monotonic())
        self._ended: dict[int, str] = {}
        self._told: str | None = None  # by rank 0, of the others
        self._waits: float | None = None  # since when this rank waits for a sum
        self._asleep: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="graphopt-watch", daemon=True)
        self._exchange()
        self._thread.start()

    def begin(self) -> None:
        """This rank begins to wait for a sum."""
        self._waits = time.monotonic()

    def done(self) -> None:
        """The sum is there."""
        self._waits = None

    def trouble(self) -> str | None:
        """Why the sum that this rank waits for will not come, if it will not."""
        now, waits, asleep = time.monotonic(), self._waits, self._asleep
        if waits is None or now - waits < _GRACE:
            return None
        if asleep is not None and now - asleep > _LATE * self._period:
            return None  # this process was stopped itself
        return self._told or self._found(now)

    def reason(self) -> str | None:
        """What another rank said that has ended, after which sums fail; None: nothing."""
        end = time.monotonic() + _GRACE
        while not (self._told or self._ended) and time.monotonic() < end:
            time.sleep(self._period / 10)
        return self._told or next(iter(self._ended.values()), None)

    def end(self, said: str) -> None:
        """Tell the others that this rank ends, and watch no more.

        Args:
            said: What goes after "rank 1 of 4" in their errors.
        """
        if self._said is None:
            self._said = f"rank {self._rank} of {self._size} {said}"
            self._stop.set()
            self._thread.join(_PERIOD)

    def _found(self, now: float) -> str | None:
        """What is wrong with those that this rank hears."""
        for said in self._ended.values():  # the first that was heard
            return said
        for rank in self._others:
            if now - self._heard[rank] > self._patience:
                return (
                    f"rank {rank} of {self._size} has given no sign of life for "
                    f"{self._patience:g} s: its process is stopped, or its machine is lost"
                )
        return None

    def _run(self) -> None:
        while True:
            self._asleep = began = time.monotonic()
            ends = self._stop.wait(self._period)
            self._asleep = None
            if time.monotonic() - began > _LATE * self._period:
                self._heard = dict.fromkeys(self._others, time.monotonic())
            self._exchange()
            if ends:
                return
            if self._act is not None and (wrong := self.trouble()):
                self._act(wrong)

    def _exchange(self) -> None:
        self._count += 1
        found = self._found(time.monotonic()) if self._rank == 0 else None
        try:
            words = self._board.exchange(json.dumps([self._count, self._said, found]))
        except Exception:  # noqa: BLE001 - who has gone is silent from now on
            return
        for rank, word in words.items():
            _, said, told = json.loads(word)
            self._heard[rank] = time.monotonic()
            self._told = told
            if said is not None:
                self._ended[rank] = said


def failed(error: BaseException) -> str:
    """What a rank says that ends with an error."""
    if isinstance(error, OtherRankError):
        return "has ended, because another rank has"
    return f"failed: {type(error).__name__}: {error}"[:_LONGEST]
