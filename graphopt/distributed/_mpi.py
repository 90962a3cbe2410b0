"""MPI, by mpi4py: what adds arrays up between processes that mpiexec has started."""

import atexit
import os
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from graphopt import _checks
from graphopt.distributed._watch import PATIENCE, Watch, heard

_READ = 0.2  # seconds in which mpiexec reads what a rank has said, before it ends it
# What an mpiexec tells the processes that it starts: how many they are.
_TOLD = {"OMPI_COMM_WORLD_SIZE": "Open MPI", "PMI_SIZE": "MPICH, Intel MPI or another with PMI"}


class mpi:  # noqa: N801 - it is used like a function
    """The processes that ``mpiexec`` has started, for `DataParallel`.

    Use it with ``with``: where a rank ends with an exception, it writes it to the standard error
    and ends all others, which would wait for it for ever.

    Args:
        comm: A communicator of mpi4py; all processes by default.
        timeout: Seconds without a sign of life after which a rank is lost, and all end: each gives
            one a second, also while it computes. Where MPI takes calls of one thread alone, there
            are none.

    Attributes:
        rank: Which process this is, from 0.
        size: How many there are.
        local_size: How many are on this machine.

    Raises:
        ImportError: mpi4py or an MPI is not installed.
        RuntimeError: An mpiexec of another MPI has started this process, which thinks it is alone.

    Example:
        >>> with mpi() as ranks:  # doctest: +SKIP
        ...     session = DataParallel("train.onnx", ranks)
    """

    def __init__(self, comm: Any = None, *, timeout: float = PATIENCE) -> None:
        """See the class."""
        _checks.above_zero("timeout", timeout)
        self._mpi = _module()
        self._comm = self._mpi.COMM_WORLD if comm is None else comm
        self.rank, self.size = int(self._comm.Get_rank()), int(self._comm.Get_size())
        local = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        self.local_size = int(local.Get_size())
        local.Free()
        if comm is None:
            check_company(self.size, os.environ, self._mpi.Get_library_version())
        self._watch: Watch | None = None
        if self.size > 1 and self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE:
            board = _Messages(self._mpi, self._comm.Dup())
            self._watch = Watch(board, self.rank, self.size, timeout, self._give_up)
            atexit.register(self._watch.end, "has ended")

    def __call__(self, arrays: Sequence[np.ndarray]) -> None:
        """Write to each array the sum over all ranks."""
        if self._watch is not None:
            self._watch.begin()
        for array in arrays:
            self._comm.Allreduce(self._mpi.IN_PLACE, array)
        if self._watch is not None:
            self._watch.done()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """End all ranks, if this one has failed."""
        if error is not None and self.size > 1:
            self.end(error)
        elif self._watch is not None:
            self._watch.end("has ended")

    def _give_up(self, wrong: str) -> None:
        """End all ranks, because a sum that this one waits for will not come."""
        time.sleep(0.1 * min(self.rank, 10))  # what all ranks say is said once
        self.end(RuntimeError(f"rank {self.rank} waits for a sum in vain: {wrong}"), shortly=True)

    def end(self, error: BaseException, *, shortly: bool = False) -> None:
        """Say what went wrong, and end all ranks.

        Args:
            error: What it was.
            shortly: Say it in one line, without a traceback.
        """
        said = f"error: {' '.join(str(error).split())}\n"
        if not shortly:
            lines = traceback.format_exception(error)
            said = f"rank {self.rank} of {self.size} failed:\n{''.join(lines)}"
        sys.stderr.write(said)
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(_READ)
        self._comm.Abort(1)
        os._exit(1)  # it may return before this process is ended


class _Messages:
    """The words of ranks as messages of MPI."""

    def __init__(self, library: Any, comm: Any) -> None:
        self._comm, self._status = comm, library.Status()
        self._others = heard(comm.Get_rank(), comm.Get_size())
        self._sent: list[Any] = []

    def exchange(self, word: str) -> dict[int, str]:
        """Give one's own word, and take the new ones."""
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent += [self._comm.isend(word, rank) for rank in self._others]
        words = {}
        while self._comm.iprobe(status=self._status):
            rank = self._status.Get_source()
            words[rank] = self._comm.recv(source=rank)
        return words


def _module() -> Any:
    """``mpi4py.MPI``."""
    try:
        with warnings.catch_warnings():  # of what is an error here, see `check_company`
            warnings.filterwarnings("ignore", "suspicious MPI execution environment")
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # a RuntimeError where it finds no MPI
        raise ImportError(
            f"training with MPI needs mpi4py and an MPI ({error}); install them with: "
            "pip install 'graphopt[mpi]'"
        ) from error
    return MPI


def check_company(size: int, environ: Mapping[str, str], version: str) -> None:
    """Refuse to be alone where several processes were started.

    Args:
        size: How many processes MPI knows.
        environ: The environment.
        version: What the MPI says that it is.

    Raises:
        RuntimeError: The environment says that there are more.
    """
    for name, whose in _TOLD.items():
        told = environ.get(name, "")
        if size == 1 and told.isdigit() and int(told) > 1:
            library = version.split("\n")[0].split(",")[0].strip("\0 ")
            raise RuntimeError(
                f"an mpiexec of {whose} has started {told} processes ({name}), but mpi4py uses "
                f"{library}, so that each thinks it is alone: start them with the mpiexec beside "
                f"{sys.executable}, or install the MPI whose mpiexec it is"
            )
