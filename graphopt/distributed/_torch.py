"""torch.distributed: what adds arrays up between processes that torchrun has started."""

import atexit
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import numpy as np

from graphopt import _checks
from graphopt.distributed._watch import PATIENCE, Watch, failed, heard
from graphopt.distributed.errors import OtherRankError

_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_INTERFACE = "GLOO_SOCKET_IFNAME"
_CONNECTING = timedelta(seconds=300)
_FOREVER = timedelta(days=30)  # of a sum: whether it will come, the watch knows
_LOOK = timedelta(seconds=0.5)  # after so long, who waits looks whether it waits in vain
_CANCELLED = 2.0  # seconds in which sums that do not come are to be given up


class torch_distributed:  # noqa: N801 - it is used like a function
    """The processes that ``torchrun`` has started, for `DataParallel`.

    With gloo, arrays are added up where they are, and a rank that waits for one that has failed,
    has ended early or is lost gets an error. With nccl, which nobody has tried so far, they are
    copied to the GPU and back. A process group that exists is used, and not ended.

    Args:
        backend: "gloo" or "nccl".
        timeout: Seconds without a sign of life after which a rank is lost: each gives one a second,
            also while it computes. For nccl, those of PyTorch's own watch, of a sum.

    Attributes:
        rank: Which process this is, from 0.
        size: How many there are.
        local_size: How many are on this machine.
        overlaps: Whether it adds up in a thread of its own while others compute.

    Raises:
        ImportError: PyTorch is not installed.
        RuntimeError: torchrun has not started this process, or the others are not reached.

    Example:
        >>> with torch_distributed() as ranks:  # doctest: +SKIP
        ...     session = DataParallel("train.onnx", ranks)
    """

    def __init__(self, backend: str = "gloo", *, timeout: float = PATIENCE) -> None:
        """See the class."""
        _checks.one_of("backend", backend, ("gloo", "nccl"))
        _checks.above_zero("timeout", timeout)
        self._torch = _module()
        self._dist = self._torch.distributed
        self._owns = not self._dist.is_initialized()
        if self._owns:
            _check_started(os.environ)
            if backend == "gloo":
                check_address(os.environ, _own_address())
            try:
                self._dist.init_process_group(backend, timeout=_CONNECTING)
            except Exception as error:
                raise RuntimeError(_unreached(backend, error)) from error
        self._device = "cuda" if self._dist.get_backend() == "nccl" else "cpu"
        self.rank, self.size = self._dist.get_rank(), self._dist.get_world_size()
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.overlaps = self._device == "cpu"
        self._pending: list[Any] = []
        self._watch: Watch | None = None
        if self._device == "cpu" and self.size > 1:
            self._watch = Watch(self._board(), self.rank, self.size, timeout)
            atexit.register(self._leave)

    def __call__(self, arrays: Sequence[np.ndarray]) -> None:
        """Write to each array the sum over all ranks.

        Raises:
            OtherRankError: Another rank has failed, has ended, or is lost.
            RuntimeError: As PyTorch raises them.
        """
        tensors = [self._torch.from_numpy(array) for array in arrays]
        if self._device == "cpu":
            self._add(tensors)
            return
        moved = [tensor.to(self._device) for tensor in tensors]
        for work in [self._dist.all_reduce(tensor, async_op=True) for tensor in moved]:
            work.wait()
        for tensor, result in zip(tensors, moved, strict=True):
            tensor.copy_(result)

    def _add(self, tensors: Sequence[Any]) -> None:
        """Add up by gloo, whose own limits are of a sum: a rank may compute for longer."""
        options = self._dist.AllreduceOptions()
        options.timeout = _FOREVER
        group = self._dist.group.WORLD
        self._pending = [group.allreduce([tensor], options) for tensor in tensors]
        if self._watch is not None:
            self._watch.begin()
        for work in self._pending:
            self._wait(work)
        if self._watch is not None:
            self._watch.done()

    def _wait(self, work: Any) -> None:
        """Wait for a sum, as long as it may come."""
        while not work.is_completed():
            try:
                work.wait(_LOOK)
            except RuntimeError:  # it may have come since then
                wrong = None if self._watch is None else self._watch.trouble()
                if wrong and not work.is_completed():
                    raise OtherRankError(wrong) from None
        try:
            work.wait()  # says what went wrong
        except RuntimeError as error:
            if self._watch is None:
                raise
            raise OtherRankError(self._watch.reason() or str(error)) from error

    def _board(self) -> "_Store":
        """The store of the group, at a place that no earlier run of it has written to."""
        place = np.array([0 if self.rank else secrets.randbits(62)], np.int64)
        self._add([self._torch.from_numpy(place)])
        store = self._dist.distributed_c10d._get_default_store()  # noqa: SLF001 - no other way
        return _Store(store, f"graphopt/{place[0]}", self.rank, self.size)

    def end(self, error: BaseException) -> None:
        """Say in one line what went wrong, tell the others, and end this process at once."""
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        self._tell(failed(error))
        _exit()

    def _tell(self, said: str) -> None:
        if self._watch is not None:
            self._watch.end(said)

    def _leave(self) -> None:
        """Before this process ends: do not wait for what it has failed to do.

        PyTorch ends no process while a sum is under way, and takes a while in any case: too long,
        on a busy machine, for a launcher that waits to start all ranks again.
        """
        atexit.unregister(self._leave)
        self._tell("has ended")
        end = time.monotonic() + _CANCELLED
        while not all(work.is_completed() for work in self._pending):
            if time.monotonic() > end:
                _exit()
            time.sleep(0.01)
        if getattr(sys, "last_value", None) is not None:  # an exception that nobody has caught
            _exit()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Leave the group, and tell the others why."""
        if error is not None:
            self._tell(failed(error))
            return
        self._leave()
        if self._owns:
            self._dist.destroy_process_group()


class _Store:
    """The words of ranks in a store of torch.distributed."""

    def __init__(self, store: Any, place: str, rank: int, size: int) -> None:
        self._store, self._rank = store, rank
        self._keys = {r: f"{place}/{r}" for r in range(size)}
        self._others = heard(rank, size)
        self._before: dict[int, str] = {}

    def exchange(self, word: str) -> dict[int, str]:
        """Give one's own word, and take the new ones."""
        self._store.set(self._keys[self._rank], word)
        values = self._store.multi_get([self._keys[rank] for rank in self._others])
        words = {r: v.decode() for r, v in zip(self._others, values, strict=True)}
        new = {rank: said for rank, said in words.items() if self._before.get(rank) != said}
        self._before = words
        return new


def _exit() -> None:
    """End this process without cleaning up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


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
