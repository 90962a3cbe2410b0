"""Gives damaged files to a process that has a limit of time and memory."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tools.faults.mutations import damaged

SECONDS = 30
"""Of computing, however busy the machine is."""

MEMORY = 2 * 2**30
_SLOW = 10  # one in so many inputs goes to the slow calls too
_PATIENCE = 20  # times as long, until a process is given up that does not compute

Outcomes = tuple[int, Path, list["Outcome"]]
"""The number of the input, the file, and what became of it."""

Outcome = tuple[str, str, str]
"""What was called, what became of it, and the message."""


def outcomes_of(folder: Path, numbers: range, kind: str) -> Iterator[Outcomes]:
    """What becomes of each input, in a process that is started anew where it has not survived."""
    waiting = list(numbers)
    while waiting:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, folder, kind), daemon=True)
        process.start()
        theirs.close()
        alive = ours.poll(_PATIENCE * SECONDS) and ours.recv() == "ready"
        while waiting and alive:
            index = waiting.pop(0)
            ours.send(index)
            path, outcomes = folder / "nothing", []
            while alive:
                alive = ours.poll(_PATIENCE * SECONDS)
                try:
                    received = ours.recv() if alive else None
                except EOFError:
                    alive, received = False, None
                if received is None:
                    process.kill()
                    process.join()
                    is_slow = process.exitcode in (-signal.SIGKILL, -signal.SIGPROF)
                    reason = "slow" if is_slow else "crash"
                    outcomes.append(("?", f"{reason} {process.exitcode}", ""))
                elif isinstance(received, Path):
                    path = received
                elif received == "done":
                    break
                else:
                    outcomes.append(received)
            yield index, path, outcomes
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()


def _work(pipe: Connection, folder: Path, kind: str) -> None:
    """Damage what is asked for, and say what became of it."""
    from tools.faults.subjects import subjects

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    found = [subject for subject in subjects(folder) if kind in subject.path.name]
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    pipe.send("ready")
    while True:
        index = pipe.recv()
        rng = np.random.default_rng(index)
        subject = found[rng.integers(len(found))]
        path = subject.path.with_name(f"damaged-{subject.path.name}")
        path.write_bytes(damaged(rng, subject.path.read_bytes()))
        pipe.send(path)
        calls = {**subject.calls, **(subject.slow if index % _SLOW == 0 else {})}
        for name, call in calls.items():
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            outcome, message, _ = judged(call, path)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send((name, outcome, message))
        pipe.send("done")


def judged(call: Callable[[Path], object], path: Path) -> tuple[str, str, Exception | None]:
    """What a call made of a file: "accepted", "refused", or a find; the message and the error."""
    try:
        call(path)
    except FloatingPointError:
        return "accepted", "", None  # NaN is not in the file, but what came of it
    except (ValueError, OSError) as error:
        message = str(error)
        if "the state is lost" in message:
            return "accepted", message, None
        is_own = type(error).__module__.startswith("graphopt.")
        if type(error) is not ValueError and not is_own and not isinstance(error, OSError):
            return f"other {type(error).__name__}", message, error
        named = path.name in message.replace("\n", "")
        return "refused" if named else "unnamed", message, error
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"other {type(error).__name__}", str(error), error
    return "accepted", "", None
