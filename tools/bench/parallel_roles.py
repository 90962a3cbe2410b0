"""What the ranks of `tools.bench.parallel` do: ``python -m tools.bench.parallel_roles ROLE ...``.

Rank 0 prints one line of JSON. Each rank computes with one thread.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.distributed import DataParallel, mpi, torch_distributed

_WARM_UP = 3
SIZES = [8, 2**10, 2**14, 2**18, 2**20, 2**22, 2**24, 2**26]
"""Bytes of the messages that are sent to measure the links."""


class _Timed:
    """An engine that adds up how long its sums take."""

    def __init__(self, engine: Any) -> None:
        self.rank, self.size, self._engine = engine.rank, engine.size, engine
        self.seconds, self.bytes = 0.0, 0

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
            taken[size] = _median(partial(ranks, [array]), 200 if size < 2**20 else 15)
        return {"rank": ranks.rank, "ranks": ranks.size, "seconds": taken}


def graphopt(engine: str, folder: str, steps: str) -> dict[str, Any]:
    """The seconds of a step, and of that the share of sums and of the update."""
    from graphopt import _runtime

    with _engine(engine) as ranks:
        timed = _Timed(ranks)
        options = _runtime.session_options(_runtime.onnxruntime())
        options.intra_op_num_threads = 1
        train = Path(folder, "train.onnx")
        session = DataParallel(train, timed, session_options=options, compare_every=None)
        feeds = _part(Path(folder, "batch.npz"), ranks.rank, ranks.size)
        for _ in range(_WARM_UP):
            session.step(feeds, outputs=["loss"])
        timed.seconds, timed.bytes = 0.0, 0
        whole = _median(lambda: session.step(feeds, outputs=["loss"]), int(steps), warm_up=0)
        said = {"seconds": whole, "sums": timed.seconds / int(steps)}
        update = super(DataParallel, session).step
        flat = dict(session.gradients)
        said["update"] = _median(lambda: update(flat, outputs=[]), int(steps))
        said["bytes"] = timed.bytes // int(steps)
        return {"rank": ranks.rank, "ranks": ranks.size, **said}


def ddp(engine: str, network: str, folder: str, steps: str) -> dict[str, Any]:
    """The seconds of a step of PyTorch's DistributedDataParallel, over gloo."""
    import torch
    from torch import distributed, nn

    from tools.bench.footprint_networks import made

    del engine
    torch.set_num_threads(1)
    with torch_distributed() as ranks:
        module, _, _ = made(network)
        parallel = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
        optimizer = torch.optim.RMSprop(module.parameters(), lr=1e-4, eps=1e-3)
        arrays = _part(Path(folder, "batch.npz"), ranks.rank, ranks.size)
        x, labels = (torch.from_numpy(arrays[name]) for name in ("x", "labels"))

        def step() -> None:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(parallel(x), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()

        seconds = _median(step, int(steps))
        distributed.barrier()
        return {"rank": ranks.rank, "ranks": ranks.size, "seconds": seconds}


def _part(path: Path, rank: int, size: int) -> dict[str, np.ndarray]:
    """A rank's part of a batch."""
    with np.load(path) as arrays:
        count = len(arrays["x"])
        bounds = [count * r // size for r in (rank, rank + 1)]
        return {name: arrays[name][slice(*bounds)] for name in arrays.files}


def _median(work: Callable[[], object], times: int, warm_up: int = _WARM_UP) -> float:
    for _ in range(warm_up):
        work()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


ROLES: dict[str, Callable[..., dict[str, Any]]] = {"links": links, "graphopt": graphopt, "ddp": ddp}

if __name__ == "__main__":
    answer = ROLES[sys.argv[1]](*sys.argv[2:])
    if answer.pop("rank") == 0:
        print(json.dumps(answer), flush=True)
