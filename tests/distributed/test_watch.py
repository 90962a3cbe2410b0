"""Ranks that wait for another one know why, where they wait in vain."""

import threading
import time

import pytest

from graphopt.distributed import _watch, torch_distributed
from graphopt.distributed._watch import Watch, failed, heard
from graphopt.distributed.errors import OtherRankError

pytestmark = pytest.mark.any_runtime


class Boards:
    """Words of ranks that are threads."""

    def __init__(self, size):
        self.words = {}
        self.lock = threading.Lock()
        self.silent = set()
        self.others = {rank: heard(rank, size) for rank in range(size)}

    def of(self, rank):
        return _Board(self, rank)


class _Board:
    def __init__(self, boards, rank):
        self.boards, self.rank, self.before = boards, rank, {}

    def exchange(self, word):
        with self.boards.lock:
            if self.rank in self.boards.silent:
                raise OSError("no connection")
            self.boards.words[self.rank] = word
            seen = {
                r: self.boards.words[r]
                for r in self.boards.others[self.rank]
                if r in self.boards.words
            }
        new = {rank: said for rank, said in seen.items() if self.before.get(rank) != said}
        self.before = seen
        return new


@pytest.fixture
def boards(monkeypatch):
    monkeypatch.setattr(_watch, "_GRACE", 0.05)
    return Boards(3)


@pytest.fixture
def watches(boards):
    made = [Watch(boards.of(rank), rank, 3, 0.5) for rank in range(3)]
    yield made
    for watch in made:
        watch.end("is over")


def wrong(watch, seconds=5.0):
    """What a rank that waits is told; None, where it waits so long for nothing."""
    watch.begin()
    end = time.monotonic() + seconds
    while not (said := watch.trouble()) and time.monotonic() < end:
        time.sleep(0.01)
    watch.done()
    return said


def test_who_lives_is_waited_for(watches):
    assert [wrong(watch, 0.8) for watch in watches] == [None] * 3


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_who_is_silent_is_lost(lost, boards, watches):
    boards.silent.add(lost)
    for watch in (w for rank, w in enumerate(watches) if rank != lost):
        said = wrong(watch)
        assert said.startswith(f"rank {lost} of 3 has given no sign of life for 0.5 s: its process")


@pytest.mark.parametrize("ended", [0, 1, 2])
def test_who_ends_says_why(ended, watches):
    watches[ended].end(failed(KeyError("no such picture")))
    others = [watch for rank, watch in enumerate(watches) if rank != ended]
    for watch in others:
        assert wrong(watch) == f"rank {ended} of 3 failed: KeyError: 'no such picture'"
        assert watch.reason() == f"rank {ended} of 3 failed: KeyError: 'no such picture'"
    others[0].end(failed(OtherRankError("rank 0 of 3: no sum")))  # says nothing new
    said = wrong(others[1])
    assert said == f"rank {ended} of 3 failed: KeyError: 'no such picture'"


def test_who_does_not_wait_is_not_told(watches):
    watches[1].end("has ended")
    time.sleep(0.3)
    assert watches[0].trouble() is None
    assert wrong(watches[0]) == "rank 1 of 3 has ended"


def test_a_sum_that_is_under_way_is_given_time(watches, monkeypatch):
    """A rank may end while the last sum that it took part in still arrives elsewhere."""
    monkeypatch.setattr(_watch, "_GRACE", 60.0)
    watches[1].end("has ended")
    assert wrong(watches[0], 0.5) is None


def test_the_thread_acts_where_who_waits_cannot(boards):
    done = threading.Event()
    told = []

    def act(said):
        told.append(said)
        done.set()

    acting = Watch(boards.of(0), 0, 2, 0.5, act)
    other = Watch(boards.of(1), 1, 2, 0.5)
    other.end("has ended")
    assert not done.wait(0.4)
    acting.begin()
    assert done.wait(5)
    acting.end("has ended")
    assert told[0] == "rank 1 of 2 has ended"


def test_who_was_stopped_itself_does_not_think_that_the_others_are_lost(watches):
    watch = watches[0]
    watch.begin()
    long_ago = time.monotonic() - 100
    watch._heard = dict.fromkeys(watch._heard, long_ago)
    watch._asleep = long_ago
    assert watch.trouble() is None


class _Sum:
    """A sum of gloo that comes, or fails, just when somebody has given up waiting for it."""

    def __init__(self, error=None):
        self.error, self.waits = error, 0

    def is_completed(self):
        return self.waits > 0

    def wait(self, _=None):
        self.waits += 1
        if self.waits == 1:
            raise RuntimeError("Operation timed out!")
        if self.error:
            raise self.error


def ranks_of(watch):
    ranks = object.__new__(torch_distributed)
    ranks._watch = watch
    return ranks


def test_a_sum_that_comes_as_the_wait_ends_is_taken(watches):
    late = _Sum()
    ranks_of(watches[0])._wait(late)
    assert late.waits == 2


@pytest.mark.parametrize("watched", [False, True])
def test_a_sum_that_fails_as_the_wait_ends_says_why(watches, watched):
    broken = _Sum(RuntimeError("Connection closed by peer"))
    with pytest.raises(OtherRankError if watched else RuntimeError, match="Connection closed"):
        ranks_of(watches[0] if watched else None)._wait(broken)
