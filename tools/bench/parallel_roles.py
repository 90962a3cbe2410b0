"""What the ranks of `tools.bench.parallel` do: ``python -m tools.bench.parallel_roles ROLE ...``.

Rank 0 prints one line of JSON. Each rank computes with one thread.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.distributed import DataParallel, mpi, torch_distributed
from tools.bench.footprint_roles import torch_step, trained
from tools.bench.options import session_options

_WARM_UP = 3
STEPS = 5
"""Steps of a turn."""
PIECES = 1, 3
"""In how many pieces gradients are computed."""
DDP = "pytorch ddp"

SIZES = [8, 2**10, 2**14, 2**18, 2**20, 2**22, 2**24, 2**26]
"""Bytes of the messages that are sent to measure the links."""


class _Timed:
    """An engine that adds up how long its sums take."""

    def __init__(self, engine: Any) -> None:
        self.rank, self.size, self._engine = engine.rank, engine.size, engine
        self.seconds, self.bytes = 0.0, 0
        self.overlaps = getattr(engine, "overlaps", False)

    def __call__(self, arrays: Sequence[np.ndarray]) -> None:
        """Write to each array the sum over all ranks."""
        begin = time.perf_counter()
        self._engine(arrays)
        self.seconds += time.perf_counter() - begin
        self.bytes += sum(array.nbytes for array in arrays)


def _engine(name: str) -> Any:
    return mpi() if name == "mpi" else torch_distributed()


def links(engine: str) -> dict[str, Any]:
    """The median seconds of a sum of so many bytes, by the number of bytes."""
    with _engine(engine) as ranks:
        taken = {}
        for size in SIZES:
            array = np.ones(size // 4, np.float32)
            taken[size] = _median(partial(ranks, [array]), 100 if size < 2**20 else 7)
        return {"rank": ranks.rank, "seconds": taken}


class _Ours:
    """Steps of graphopt.

    Attributes:
        sums: The seconds of the sums of each step.
    """

    def __init__(self, ranks: Any, folder: str, pieces: int = 1) -> None:
        options = session_options(1)
        self._timed, self.sums = _Timed(ranks), list[float]()
        self._session = DataParallel(
            *(trained(Path(folder), "fast"), self._timed),
            session_options=options,
            compare_every=None,
            pieces=pieces,
        )
        self._feeds = _part(Path(folder, "batch.npz"), ranks.rank, ranks.size)

    def step(self) -> None:
        """Take one."""
        self._timed.seconds, self._timed.bytes = 0.0, 0
        self._session.step(self._feeds, outputs=["loss"])
        self.sums.append(self._timed.seconds)

    def told(self, seconds: Sequence[float]) -> dict[str, Any]:
        """The medians: of steps that took so long, of their sums, of the update alone."""
        sent = self._timed.bytes
        flat, update = dict(self._session.gradients), super(DataParallel, self._session).step
        return {
            "seconds": statistics.median(seconds),
            "sums": statistics.median(self.sums),
            "update": _median(lambda: update(flat, outputs=[]), STEPS),
            "bytes": sent,
        }


def _theirs(ranks: Any, network: str, folder: str) -> Callable[[], object]:
    """A step of PyTorch's DistributedDataParallel."""
    import torch
    from torch import nn

    from tools.bench.footprint_networks import made

    torch.set_num_threads(1)
    module, _, _ = made(network)
    parallel = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    arrays = _part(Path(folder, "batch.npz"), ranks.rank, ranks.size)
    x, labels = (torch.from_numpy(arrays[name]) for name in ("x", "labels"))
    return torch_step(parallel, x, labels, nn.functional.cross_entropy, "eager")


def graphopt(engine: str, _: str, folder: str, turns: str) -> dict[str, Any]:
    """The seconds of a step, and of that those of sums and of the update."""
    with _engine(engine) as ranks:
        ours = _Ours(ranks, folder)
        _turn(ours.step, _WARM_UP)
        return {"rank": ranks.rank, **ours.told(_turn(ours.step, int(turns) * STEPS))}


def beside(engine: str, network: str, folder: str, turns: str) -> dict[str, Any]:
    """The same, and PyTorch's DistributedDataParallel: both take turns in the same ranks."""
    with _engine(engine) as ranks:
        ours = {f"graphopt gloo, {n}": _Ours(ranks, folder, n) for n in PIECES}
        if ranks.size == 1:
            ours = dict([*ours.items()][:1])
        steps: dict[str, Callable[[], object]] = {name: one.step for name, one in ours.items()}
        steps[DDP] = _theirs(ranks, network, folder)
        times: dict[str, list[list[float]]] = {name: [] for name in steps}
        for step in steps.values():
            _turn(step, _WARM_UP)
        for turn in range(int(turns)):
            for name in sorted(steps, reverse=turn % 2 == 1):
                steps[name]()  # what is in the caches is another one's
                times[name].append(_turn(steps[name], STEPS))
        medians = {name: [statistics.median(t) for t in turns] for name, turns in times.items()}
        said = {name: one.told(list(chain(*times[name]))) for name, one in ours.items()}
        for name, answer in said.items():
            pairs = zip(medians[name], medians[DDP], strict=True)
            answer["ratios"] = ratios = [mine / theirs for mine, theirs in pairs]
            answer["ratio"] = statistics.median(ratios)
        said[DDP] = {"seconds": statistics.median(chain(*times[DDP]))}
        return {"rank": ranks.rank, **said}


def _part(path: Path, rank: int, size: int) -> dict[str, np.ndarray]:
    """A rank's part of a batch."""
    with np.load(path) as arrays:
        count = len(arrays["x"])
        bounds = [count * r // size for r in (rank, rank + 1)]
        return {name: arrays[name][slice(*bounds)] for name in arrays.files}


def _turn(work: Callable[[], object], times: int) -> list[float]:
    """The seconds that it takes, so many times."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return taken


def _median(work: Callable[[], object], times: int) -> float:
    _turn(work, _WARM_UP)
    return statistics.median(_turn(work, times))


ROLES: dict[str, Callable[..., dict[str, Any]]] = {
    "links": links,
    "graphopt": graphopt,
    "beside": beside,
}

if __name__ == "__main__":
    answer = ROLES[sys.argv[1]](*sys.argv[2:])
    if answer.pop("rank") == 0:
        print(json.dumps(answer), flush=True)
