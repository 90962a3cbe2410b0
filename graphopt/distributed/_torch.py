"""torch.distributed: what adds arrays up between processes that torchrun has started."""

import os
import socket
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import numpy as np

from graphopt import _checks

_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_INTERFACE = "GLOO_SOCKET_IFNAME"


class torch_distributed:  # noqa: N801 - it is used like a function
    """The processes that ``torchrun`` has started, for `DataParallel`.

    With gloo, arrays are added up where they are. With nccl, which nobody has tried so far, they
    are copied to the GPU and back. A process group that exists is used, and not ended.

    Args:
        backend: "gloo" or "nccl".
        timeout: Seconds after which a rank that does not answer is lost.

    Attributes:
        rank: Which process this is, from 0.
        size: How many there are.
        local_size: How many are on this machine.

    Raises:
        ImportError: PyTorch is not installed.
        RuntimeError: torchrun has not started this process, or the others are not reached.

    Example:
        >>> with torch_distributed() as ranks:  # doctest: +SKIP
        ...     session = DataParallel("train.onnx", ranks)
    """

    def __init__(self, backend: str = "gloo", *, timeout: float = 300.0) -> None:
        """See the class."""
        _checks.one_of("backend", backend, ("gloo", "nccl"))
        limit = timedelta(seconds=_checks.above_zero("timeout", timeout))
        self._torch = _module()
        self._dist = self._torch.distributed
        self._owns = not self._dist.is_initialized()
        if self._owns:
            _check_started(os.environ)
            if backend == "gloo":
                check_address(os.environ, _own_address())
            try:
                self._dist.init_process_group(backend, timeout=limit)
            except Exception as error:
                raise RuntimeError(_unreached(backend, error)) from error
        self._device = "cuda" if self._dist.get_backend() == "nccl" else "cpu"
        self.rank, self.size = self._dist.get_rank(), self._dist.get_world_size()
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def __call__(self, arrays: Sequence[np.ndarray]) -> None:
        """Write to each array the sum over all ranks."""
        tensors = [self._torch.from_numpy(array) for array in arrays]
        moved = [tensor.to(self._device) for tensor in tensors]  # itself on the CPU
        for work in [self._dist.all_reduce(tensor, async_op=True) for tensor in moved]:
            work.wait()
        for tensor, result in zip(tensors, moved, strict=True):
            if result is not tensor:
                tensor.copy_(result)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Leave the group; where this rank has failed, its end tells the others."""
        if error is None and self._owns:
            self._dist.destroy_process_group()


def _module() -> Any:
    """PyTorch."""
    try:
        import torch
        import torch.distributed
    except ImportError as error:
        raise ImportError(
            f"training with torch.distributed needs PyTorch ({error}); install it with: "
            "pip install 'graphopt[torch]'"
        ) from error
    return torch


def _check_started(environ: Mapping[str, str]) -> None:
    missing = [name for name in _TOLD if name not in environ]
    if missing:
        raise RuntimeError(
            f"torchrun has not started this process ({', '.join(missing)} is not set): start it "
            "with, for example, torchrun --nproc-per-node 4 -m graphopt train ..."
        )


def check_address(environ: Mapping[str, str], address: str) -> None:
    """Refuse to listen where other machines do not reach.

    Args:
        environ: The environment, as torchrun sets it.
        address: That of the name of this machine, which gloo takes.

    Raises:
        RuntimeError: There are other machines, and it is of this machine alone.
    """
    here, all_of_them = environ.get("LOCAL_WORLD_SIZE"), environ.get("WORLD_SIZE")
    several = here is not None and here != all_of_them
    if several and address.startswith("127.") and not environ.get(_INTERFACE):
        raise RuntimeError(
            f"gloo would listen at {address}, which is what the name of this machine means here "
            f"and where others do not reach it: {_remedy()}"
        )


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def _remedy() -> str:
    names = ", ".join(name for _, name in socket.if_nameindex())
    return f"set {_INTERFACE} to the interface that connects the machines; here are {names}"


def _unreached(backend: str, error: Exception) -> str:
    where = (
        f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        f" as rank {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}"
    )
    said = f"torch.distributed ({backend}) did not connect to {where}: {error}"
    if backend != "gloo":
        return said
    chosen = os.environ.get(_INTERFACE)
    return f"{said}; {f'{_INTERFACE} is {chosen}: ' if chosen else ''}{_remedy()}"
