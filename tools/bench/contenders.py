"""Who is measured, and what a run is for each.

A case is named ``<kind>/<what>``: ``step/resnet`` is a training step of that network of the zoo,
on a batch of its usual size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """Something that can run a case.

    Attributes:
        environment: The virtual environment that has what it needs.
        prepare: Gets ready for a case with a number of threads; returns what is measured.
        kinds: The kinds of cases that it can run.
    """

    environment: str
    prepare: Callable[[str, int], Run]
    kinds: tuple[str, ...] = ("step",)


def prepare(contender: str, case: str, threads: int) -> Run:
    """What one run of a case is."""
    return CONTENDERS[contender].prepare(case, threads)


def _graphopt(case: str, threads: int, *, portable: bool = True) -> Run:
    import onnxruntime

    import graphopt
    from models.zoo import ZOO

    entry = ZOO[case.removeprefix("step/")]
    model = entry.build(batch=entry.batch)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-4)
    graph = graphopt.training_graph(model, entry.loss, optimizer, portable=portable)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = graphopt.Session(graph, session_options=options)
    feeds = entry.feeds(np.random.default_rng(0), entry.batch)
    return lambda: session.step(feeds)


def _onnxruntime_training(case: str, threads: int) -> Run:
    return _graphopt(case, threads, portable=False)


def _pytorch(case: str, threads: int) -> Run:
    import torch

    from models.torch_peers import LOSSES, peer
    from models.zoo import ZOO

    torch.set_num_threads(threads)
    name = case.removeprefix("step/")
    entry = ZOO[name]
    module: Any = peer(name, entry.build())
    feeds = [torch.tensor(a) for a in entry.feeds(np.random.default_rng(0), entry.batch).values()]
    optimizer = torch.optim.RMSprop(module.parameters(), lr=1e-4, alpha=0.9, eps=1e-10)

    def step() -> float:
        optimizer.zero_grad()
        loss = LOSSES[entry.loss](module(feeds[0]), feeds[1])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


STOCK, TRAINING = ".venv", ".venv-training"

CONTENDERS = {
    "graphopt": Contender(STOCK, _graphopt),
    "graphopt, onnxruntime 1.19": Contender(TRAINING, _graphopt),
    "onnxruntime-training": Contender(TRAINING, _onnxruntime_training),
    "pytorch": Contender(STOCK, _pytorch),
}
"""By name; ``onnxruntime-training`` is the graph with gradients built by that package."""
