"""graphopt itself."""

from typing import Any

import numpy as np

from tools.bench.cases import DECAY, EPSILON, UpdateCase
from tools.bench.contenders.contender import Run


def update(case: UpdateCase, threads: int, *, kernels: bool = True) -> Run:
    """An update graph; without the fused kernels it is standard ONNX alone."""
    import graphopt

    names, optimizer = optimizer_of(case)
    session = graphopt.Session(
        graphopt.update_graph(optimizer),
        parameters=dict(zip(names, case.parameters(), strict=True)),
        session_options=_session_options(threads),
        kernels=kernels,
    )
    feeds = {f"{name}_grad": g for name, g in zip(names, case.gradients(), strict=True)}

    def parameters() -> list[np.ndarray]:
        state = session.state
        return [state[name] for name in names]

    return Run(lambda: session.step(feeds), parameters)


def step(network: str, threads: int, *, portable: bool = True) -> Run:
    """A training graph of a network of the zoo, with gradients that graphopt builds or not."""
    import graphopt
    from models.zoo import ZOO

    entry = ZOO[network]
    model = entry.build(batch=entry.batch)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-4)
    graph = graphopt.training_graph(model, entry.loss, optimizer, portable=portable)
    session = graphopt.Session(graph, session_options=_session_options(threads))
    feeds = entry.feeds(np.random.default_rng(0), entry.batch)
    return Run(lambda: session.step(feeds))


def optimizer_of(case: UpdateCase) -> tuple[list[str], Any]:
    """The names of the case's tensors, and the ``graphopt.RMSProp`` of them."""
    import graphopt

    names = [f"p{index}" for index in range(len(case.shapes))]
    every = [
        graphopt.Parameter(name, shape) for name, shape in zip(names, case.shapes, strict=True)
    ]
    return names, graphopt.RMSProp(
        case.grouped(every),
        decay=DECAY,
        momentum=case.variant.momentum,
        epsilon=EPSILON,
        centered=case.variant.centered,
    )


def _session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options
