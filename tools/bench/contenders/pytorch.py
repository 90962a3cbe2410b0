"""PyTorch: its optimizer, and its training steps, eager and compiled."""

from typing import Any

import numpy as np

from tools.bench.cases import DECAY, EPSILON, UpdateCase
from tools.bench.contenders.contender import Run, UnavailableError

_COMPILED_WARM_UP = 5


def update(case: UpdateCase, threads: int, *, foreach: bool = False) -> Run:
    """``torch.optim.RMSprop``, tensor by tensor or over lists of tensors."""
    import torch

    torch.set_num_threads(threads)
    tensors, optimizer = optimizer_of(case, "cpu", foreach=foreach)
    return Run(optimizer.step, lambda: [tensor.detach().numpy().copy() for tensor in tensors])


def optimizer_of(case: UpdateCase, device: str, *, foreach: bool) -> tuple[list[Any], Any]:
    """The case's tensors with their gradients, and the ``torch.optim.RMSprop`` of them."""
    import torch

    tensors = [torch.nn.Parameter(torch.from_numpy(a).to(device)) for a in case.parameters()]
    for tensor, gradient in zip(tensors, case.gradients(), strict=True):
        tensor.grad = torch.from_numpy(gradient).to(device)
    optimizer = torch.optim.RMSprop(
        case.grouped(tensors),
        alpha=DECAY,
        eps=EPSILON,
        momentum=case.variant.momentum,
        centered=case.variant.centered,
        foreach=foreach,
    )
    for tensor in tensors:
        optimizer.state[tensor] = _state(tensor, case)
    return tensors, optimizer


def _state(tensor: Any, case: UpdateCase) -> dict[str, Any]:
    """The state before the first step, with a mean square of ones instead of zeros."""
    import torch

    state = {"step": torch.tensor(0.0), "square_avg": torch.ones_like(tensor, requires_grad=False)}
    if case.variant.momentum > 0:
        state["momentum_buffer"] = torch.zeros_like(tensor, requires_grad=False)
    if case.variant.centered:
        state["grad_avg"] = torch.zeros_like(tensor, requires_grad=False)
    return state


def step(network: str, threads: int, *, compiled: bool = False) -> Run:
    """A training step of a network of the zoo; compiled: its forward and its backward pass."""
    import torch

    from models.torch_peers import LOSSES, peer
    from models.zoo import ZOO

    torch.set_num_threads(threads)
    if compiled:
        _check_compiler()
    entry = ZOO[network]
    module: Any = peer(network, entry.build())
    x, labels = (
        torch.tensor(a) for a in entry.feeds(np.random.default_rng(0), entry.batch).values()
    )
    optimizer = torch.optim.RMSprop(module.parameters(), lr=1e-4, alpha=0.9, eps=1e-10)

    def loss_of(x: Any, labels: Any) -> Any:
        return LOSSES[entry.loss](module(x), labels)

    forward: Any = torch.compile(loss_of) if compiled else loss_of

    def train() -> float:
        optimizer.zero_grad()
        loss = forward(x, labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    if compiled:
        for _ in range(_COMPILED_WARM_UP):
            train()
    return Run(train)


def _check_compiler() -> None:
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:  # whatever the machine lacks
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UnavailableError(f"torch.compile does not work here: {reason}") from error
