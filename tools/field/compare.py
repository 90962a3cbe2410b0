"""One network: its gradients and five steps in ONNX, beside PyTorch's in float32 and float64.

``python -m tools.field.compare torchvision resnet18`` prints a line of JSON.
"""

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

import graphopt
from graphopt.inspection.verification.runnable import NotRunError
from tools.field.exact import exact_steps
from tools.field.gradients import Values, gradients, probe
from tools.field.networks import BATCH, Network, networks, without_dropout

STEPS = 5
# Numbers that float32 has exactly. The first step moves every element by some ten times the rate,
# whatever its gradient.
_RATE = 2.0**-17
_DECAY = 1 - 2.0**-7
_EPSILON = 2.0**-10  # as recipes for networks of images have it
_OTHERS = 3  # runs of PyTorch with other roundings
_ROUNDING = 2.0**-24  # no error of PyTorch's is taken to be smaller than a rounding


@dataclass(frozen=True)
class Comparison:
    """What was found of a network.

    Attributes:
        package: Where the network is from.
        name: What it is called there.
        parameters: How many tensors are trained.
        elements: Their elements.
        refused: The error, if the network could not be exported or trained.
        gradient: The error of the gradient, as a whole, over that of PyTorch's in float32. Each is
            the smallest of five batches, because in some of them a rounding takes an element over
            the kink of a ReLU, here or there.
        gradient_error: The error itself: ``|g - g64| / |g64|``.
        worst: The parameter whose error is largest against PyTorch's, and that ratio.
        steps: The error of what five steps have moved; the smallest and the largest of PyTorch's
            in float32, of runs that differ in nothing but the last bits of the first inputs.
        exact: The error of what five steps have moved, where the nodes of the same training graph
            compute in float64; None if one has no kernel for it.
        loss: The largest relative difference of the five losses from those in float64.
        rate: The learning rate of the steps.
        seconds: What it took.
    """

    package: str
    name: str
    parameters: int = 0
    elements: int = 0
    refused: str | None = None
    gradient: float | None = None
    gradient_error: float | None = None
    worst: tuple[str, float] | None = None
    steps: tuple[float, float, float] | None = None
    exact: float | None = None
    loss: float | None = None
    rate: float = _RATE
    seconds: float = 0.0


def compare(network: Network) -> Comparison:
    """Export it, train it, and compare it."""
    start = time.perf_counter()
    torch.manual_seed(0)
    module = without_dropout(network.make()).train()
    batches = [_batch(module, network) for _ in range(STEPS)]
    named = Comparison(network.package, network.name)
    names = [f"x{i}" for i in range(len(batches[0][0]))]
    try:
        model = graphopt.torch.export(module, network.inputs(BATCH - 1), input_names=names)
        ours = _onnx(model, names, batches)
    except Exception as error:  # noqa: BLE001 - it is what the table shows
        refused = f"{type(error).__name__}: {error}"
        return replace(named, refused=refused, seconds=time.perf_counter() - start)
    single, double = (_torch(module, batches, dtype) for dtype in (torch.float32, torch.float64))
    trained = double.gradients[0].keys()
    if missing := trained ^ ours.gradients[0].keys():
        refused = f"WRONG: trained in one of the two only: {sorted(missing)}"
        return replace(named, refused=refused, seconds=time.perf_counter() - start)
    others = (
        _torch(module, _rounded(batches, i), torch.float32, only_steps=True).moved
        for i in range(_OTHERS)
    )
    spread = [_error(moved, double.moved) for moved in (single.moved, *others)]
    own, of_torch = (_least(_error, run, double) for run in (ours, single))
    floor = max(of_torch, _ROUNDING)
    whole = _norm(double.gradients[0])
    ratios = {
        name: _least(_error_of(name, whole), ours, double)
        / max(_least(_error_of(name, whole), single, double), floor)
        for name in trained
    }
    worst = max(ratios, key=lambda name: ratios[name])
    return replace(
        named,
        parameters=len(trained),
        elements=sum(value.size for value in ours.gradients[0].values()),
        gradient=own / floor,
        gradient_error=own,
        worst=(worst, ratios[worst]),
        steps=(_error(ours.moved, double.moved), min(spread), max(spread)),
        exact=None if ours.exact is None else _error(ours.exact, double.moved),
        loss=max(abs(a / b - 1) for a, b in zip(ours.losses, double.losses, strict=True)),
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class _Run:
    """The gradients of each batch before the first step; how far all steps moved; their losses."""

    gradients: list[Values]
    moved: Values
    losses: list[float]
    exact: Values | None = None


def _batch(module: nn.Module, network: Network) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    inputs = network.inputs(BATCH)
    with torch.no_grad():
        shape = copy.deepcopy(module)(*inputs).shape
    return inputs, torch.randint(0, shape[1], (shape[0], *shape[2:]))


def _rounded(batches: Any, seed: int) -> Any:
    """The same batches, each float moved to one of its two neighbors or left as it is."""
    rng = torch.Generator().manual_seed(seed)

    def neighbor(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return x
        away = torch.randint(-1, 2, x.shape, generator=rng)
        return torch.nextafter(x, x + away)

    return [(tuple(map(neighbor, inputs)), labels) for inputs, labels in batches]


def _onnx(model: Any, names: list[str], batches: Any) -> _Run:
    parameters = graphopt.parameters(model)
    feeds = [
        {**{n: x.numpy() for n, x in zip(names, inputs, strict=True)}, "labels": labels.numpy()}
        for inputs, labels in batches
    ]
    probing = graphopt.training_graph(model, "cross_entropy", probe(parameters))
    session = graphopt.Session(probing)
    found = [gradients(session, feed)[1] for feed in feeds]
    optimizer = graphopt.RMSProp(
        parameters,
        learning_rate=_RATE,
        decay=_DECAY,
        epsilon=_EPSILON,
        epsilon_inside_root=False,
        initial_mean_square=0.0,
        learning_rate_inside_moment=False,
    )
    graph = graphopt.training_graph(model, "cross_entropy", optimizer)
    session = graphopt.Session(graph)
    before = session.state
    losses = [float(session.step(feed)["loss"]) for feed in feeds]

    def moved(after: Values) -> Values:
        return {p.name: after[p.name].astype("d") - before[p.name] for p in parameters}

    try:
        exact = moved(exact_steps(graph, feeds))
    except NotRunError as error:
        print(error, file=sys.stderr)
        exact = None
    return _Run(found, moved(session.state), losses, exact)


def _torch(
    module: nn.Module, batches: Any, dtype: torch.dtype, *, only_steps: bool = False
) -> _Run:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        module = copy.deepcopy(module).to(dtype)
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        before = {n: p.detach().double().numpy().copy() for n, p in trained.items()}
        optimizer = torch.optim.RMSprop(trained.values(), lr=_RATE, alpha=_DECAY, eps=_EPSILON)

        def backward(inputs: Any, labels: torch.Tensor) -> float:
            optimizer.zero_grad()
            inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
            loss: torch.Tensor = nn.functional.cross_entropy(module(*inputs), labels)
            torch.autograd.backward(loss)
            return float(loss.detach())

        gradients: list[Values] = []
        for batch in () if only_steps else batches:
            backward(*batch)
            gradients.append(
                {n: p.grad.double().numpy() for n, p in trained.items() if p.grad is not None}
            )
        losses = []
        for batch in batches:
            losses.append(backward(*batch))
            optimizer.step()
        moved = {n: p.detach().double().numpy() - before[n] for n, p in trained.items()}
        return _Run(gradients, moved, losses)
    finally:
        torch.set_default_dtype(default)


def _norm(values: Values) -> float:
    return float(np.sqrt(sum(np.square(v, dtype="d").sum() for v in values.values())))


def _error(values: Values, right: Values) -> float:
    return _norm({k: values[k] - v for k, v in right.items()}) / _norm(right)


def _error_of(name: str, whole: float) -> Callable[[Values, Values], float]:
    """That of one parameter, relative to what its gradient is, or to a rounding of the whole."""

    def error(values: Values, right: Values) -> float:
        scale = max(float(np.linalg.norm(right[name])), _ROUNDING * whole)
        return float(np.linalg.norm(values[name] - right[name])) / scale

    return error


def _least(error: Callable[[Values, Values], float], run: _Run, double: _Run) -> float:
    """The smallest error of five batches."""
    return min(map(error, run.gradients, double.gradients))


def main() -> None:
    """Compare the network that the arguments name."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    package, name = sys.argv[1:]
    (network,) = (n for n in networks() if (n.package, n.name) == (package, name))
    print(json.dumps(asdict(compare(network))))


if __name__ == "__main__":
    main()
