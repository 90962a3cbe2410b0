"""Kills `graphopt train` at random moments, and compares where it ends with an uninterrupted run.

``python -m tools.faults.kills --kills 200``: the same command is run again and again, and killed
with SIGKILL after a random time, until it ends by itself. The state must be, bit for bit, that of
the uninterrupted run, and so must be what its epochs came to; nothing may be left in the folder.
Each run is a process that is forked from this one, which has imported all and has no session, so
that a kill takes a second; with ``--anew`` it is a new process, ``python -m graphopt train ...``,
as a user starts it.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

import graphopt
from graphopt import _runtime, checkpoint
from graphopt.cli import app
from graphopt.examples import digits, digits_cnn

_SAMPLES = 320


@dataclass(frozen=True)
class Outcome:
    """What came of a run that was killed.

    Attributes:
        kills: How often it was.
        starts: How often it was started.
        equal: Whether it ended with the bits of the uninterrupted run.
        damaged: The checkpoints that were found damaged.
        left: What is in the folder beside checkpoints.
    """

    kills: int
    starts: int
    equal: bool
    damaged: list[str]
    left: list[str]


def killed_run(
    folder: Path, kills: int, epochs: int, seed: int = 0, *, anew: bool = False
) -> Outcome:
    """Kill a run so often, or as often as it can be before it ends.

    Args:
        folder: Where it is.
        kills: How often.
        epochs: How long the run is.
        seed: Of the moments.
        anew: Start new processes, instead of forking this one.
    """
    prepare(folder)
    _runtime.onnxruntime()
    arguments = ["train", "train.onnx", "--data", "digits.npz", "--epochs", str(epochs)]
    arguments += ["--validation", "digits.npz", "--patience", str(epochs), "--monitor", "accuracy"]
    arguments += ["--batch-size", "16", "--checkpoint"]
    _end(_started([*arguments, "whole.safetensors"], folder, anew=anew))
    arguments += ["run", "--save-every", "3", "--background", "--log", "log.csv"]
    rng, done, starts = random.Random(seed), 0, 0
    run = folder / "run"
    while True:
        starts += 1
        before, process = newest(run), _started(arguments, folder, anew=anew)
        if done == kills:
            _end(process)
            break
        # It is killed where it works: some time after it has begun to save anew.
        while newest(run) == before and (ended := _status(process)) is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if ended is None and (ended := _status(process)) is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            done += 1
        elif ended != 0:
            raise RuntimeError(f"graphopt train ended with {ended}")
        else:
            break
    whole, ended_at = map(checkpoint.read_stored, (folder / "whole.safetensors", newest(run)))
    return Outcome(
        kills=done,
        starts=starts,
        equal=whole.note == ended_at.note
        and all(np.array_equal(whole.state[name], ended_at.state[name]) for name in whole.state),
        damaged=[path.name for path in run.glob("*.damaged")],
        left=[path.name for path in run.iterdir() if checkpoint.step_of(path) < 0],
    )


def _started(arguments: list[str], folder: Path, *, anew: bool) -> int:
    """The number of the process that runs a command."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    code = 1
    try:
        if anew:
            paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            os.execv(sys.executable, [sys.executable, "-m", "graphopt", *arguments])
        app(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def _status(process: int) -> int | None:
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _end(process: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code != 0:
        raise RuntimeError(f"graphopt train ended with {code}")


def newest(run: Path) -> Path:
    """The newest checkpoint; the folder, where there is none."""
    return max(run.glob("step-*.safetensors"), key=checkpoint.step_of, default=run)


def prepare(folder: Path) -> None:
    """Write ``train.onnx``, the training graph of the digits network, and ``digits.npz``."""
    model = digits_cnn.build()
    onnx.save(model, folder / "model.onnx")
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.001, momentum=0.9)
    graphopt.training_graph(model, "cross_entropy", optimizer).save(folder / "train.onnx")
    train = digits.load().train
    np.savez(folder / "digits.npz", x=train.x[:_SAMPLES], labels=train.labels[:_SAMPLES])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--anew", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = killed_run(
            *(Path(folder), options.kills, options.epochs, options.seed), anew=options.anew
        )
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
