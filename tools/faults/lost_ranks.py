"""Kills a rank of a run of several at random moments, and looks what becomes of the others.

``python -m tools.faults.lost_ranks --kills 20``: ``graphopt train --distributed mpi`` is started
again and again, and one of its ranks, drawn at random, is killed with SIGKILL at a random moment,
until there were so many kills. All others must end soon, with an error that says so, and what the
last run ends with must be, bit for bit, what an uninterrupted one does. ``--engine torch`` does it
with torchrun.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from graphopt import checkpoint
from tools.faults.kills import newest, prepare
from tools.launchers import launcher

_WORDS = {
    "mpi": "Killed (signal 9)",
    "torch": "Signal 9 (SIGKILL)",
}
_SHOWN = 500  # characters
_LONGEST = 60.0  # seconds that the others may take


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        kills: How often a rank was killed.
        slowest: The longest time until all others had ended, in seconds.
        said: How often the error said that a rank was killed.
        otherwise: What was said in its place.
        left: How many processes were left.
        equal: Whether the run ended with the bits of the uninterrupted one.
    """

    kills: int
    slowest: float
    said: int
    otherwise: list[str]
    left: int
    equal: bool


def run_with_losses(
    folder: Path, kills: int, ranks: int, epochs: int, engine: str = "mpi", seed: int = 0
) -> Outcome:
    """Kill a rank so often, or as often as it can be before the run ends.

    Args:
        folder: Where it is.
        kills: How often.
        ranks: How many ranks there are.
        epochs: How long the run is.
        engine: "mpi" or "torch".
        seed: Of the moments.
    """
    prepare(folder)
    start = launcher(engine, ranks)
    start += ["-m", "graphopt", "train", "train.onnx", "--data", "digits.npz"]
    start += ["--epochs", str(epochs), "--batch-size", "32", "--distributed", engine]
    whole = _started([*start, "--checkpoint", "whole.safetensors"], folder)
    if whole.wait():
        raise RuntimeError(f"the uninterrupted run ended with {whole.returncode}")
    start += ["--checkpoint", "run", "--save-every", "3"]
    rng, done, slowest, left = random.Random(seed), 0, 0.0, 0
    otherwise: list[str] = []
    run = folder / "run"
    while True:
        before, process = newest(run), _started(start, folder)
        if done == kills:
            break
        while newest(run) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        members = list(_members(process.pid))
        if process.poll() is not None or len(members) < ranks:
            break
        os.kill(rng.choice(members), signal.SIGKILL)
        done, since = done + 1, time.monotonic()
        process.wait(_LONGEST)
        while any(map(_is_there, members)) and time.monotonic() - since < _LONGEST:
            time.sleep(0.01)
        slowest = max(slowest, time.monotonic() - since)
        left += sum(map(_is_there, members))
        output = (folder / "output.txt").read_text("utf-8", "replace")
        if _WORDS[engine] not in output:
            otherwise.append(output[-_SHOWN:])
    if process.wait():
        raise RuntimeError(f"the last run ended with {process.returncode}")
    one, other = checkpoint.read(folder / "whole.safetensors"), checkpoint.read(newest(run))
    equal = all(np.array_equal(one[name], other[name]) for name in one)
    return Outcome(done, round(slowest, 2), done - len(otherwise), otherwise, left, equal)


def _started(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A command in a session of its own, whose output is written to a file."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, process_group=0
        )


def _members(launcher: int) -> Iterator[int]:
    """The ranks that a launcher, or what it has started, has started."""
    parents, training = {}, []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            words = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(words[1])
            command = (entry / "cmdline").read_bytes().split(b"\0")
            is_rank = b"graphopt" in command and b"torch.distributed.run" not in command
            if is_rank and words[0] != "Z" and not command[0].endswith(b"mpiexec"):
                training.append(int(entry.name))
    for process in training:
        above = process
        while above > 1 and above != launcher:
            above = parents.get(above, 0)
        if above == launcher and process != launcher:
            yield process


def _is_there(process: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--engine", choices=sorted(_WORDS), default="mpi")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_with_losses(
            *(Path(folder), options.kills, options.ranks, options.epochs),
            *(options.engine, options.seed),
        )
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
