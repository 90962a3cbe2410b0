"""What training steps hold, and how long they take: ``python -m tools.bench.footprint``.

Networks of real kinds and sizes, beside PyTorch's eager and compiled steps. With words as
arguments, the networks that are called so. A graph is built in one process, runs in another, and
others train in further ones, which take turns; a network or a contender that fails does not lose
the others. The records go into ``bench/results.json`` and a section of ``bench/results.md``, in
the place of older ones of the same networks.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench import sized
from tools.bench.answering import Answering, parsed
from tools.bench.footprint_roles import THREADS, trained

_ROOT = Path(__file__).parents[2]
_TURN_MS = 600.0
_MOST_STEPS = 30
_PAUSE_S = 0.02  # the threads of the one before wait for work for a while, on the same cores
_KEPT = _ROOT / "build" / "footprint"


class Contender(NamedTuple):
    """Who trains: an environment, and what its process is told to do."""

    environment: str
    role: str
    how: str


CONTENDERS = {
    "graphopt": Contender(".venv", "graphopt", "fast"),
    "graphopt balanced": Contender(".venv", "graphopt", "balanced"),
    "graphopt low": Contender(".venv", "graphopt", "low"),
    "pytorch": Contender(".venv-field", "torch", "eager"),
    "pytorch compile": Contender(".venv-field", "torch", "compiled"),
}
"""By name; the first is the one that the others are compared with."""


@dataclass(frozen=True)
class Footprint:
    """What was measured of a network, in MiB and milliseconds.

    Attributes:
        network: Its name.
        files: Of each that builds a training graph, by its name: ``file``, the size of the file,
            ``state``, that of parameters and optimizer states, ``build_peak`` and ``build_ms``.
        taken: Of each contender: ``peak``, the peak of steps; of graphopt ``load_peak``, ``held``
            before the first step, and ``load_ms`` too.
        steps: The milliseconds of the steps of each contender.
        left_out: Why others did not run.
    """

    network: str
    files: Mapping[str, Mapping[str, float]]
    taken: Mapping[str, Mapping[str, float]]
    steps: Mapping[str, Sequence[float]]
    left_out: Mapping[str, str]

    def records(self) -> list[dict[str, Any]]:
        """A record of each contender as in ``results.json``, with the memory."""
        medians = {name: statistics.median(times) for name, times in self.steps.items()}
        first = next(iter(medians))
        records = []
        for name, times in self.steps.items():
            low, _, high = statistics.quantiles(times, n=4)
            peak = self.taken[name]["peak"]
            record = {
                "case": f"step/{self.network}",
                "contender": name,
                "median_ms": round(medians[name], 4),
                "spread_ms": round((high - low) / 2, 4),
                "threads": THREADS,
                "ratio": round(medians[first] / medians[name], 3),
                "peak_mib": round(peak, 1),
                "memory_ratio": round(self.taken[first]["peak"] / peak, 3),
            }
            records.append(record | self._of_files(name))
        return records

    def _of_files(self, name: str) -> dict[str, float]:
        if name not in self.files:
            return {}
        known = {**self.files[name], **self.taken[name]}
        both = known["file"] + known["state"]
        return {
            **{f"{key}_mib": round(known[key], 1) for key in ("file", "state", "held")},
            **{f"{what}_ms": round(known[f"{what}_ms"], 1) for what in ("build", "load")},
            **{
                f"{what}_ratio": round(known[f"{what}_peak"] / both, 2)
                for what in ("build", "load")
            },
        }

    def lines(self) -> Iterator[str]:
        """For people, a line of each contender."""
        for record in self.records():
            yield (
                f"{self.network:20} {record['contender']:16} {record['median_ms']:9.1f} ms "
                f"{record['peak_mib']:7.0f} MiB   time {record['ratio']:5.2f} "
                f"memory {record['memory_ratio']:5.2f}"
                + "".join(
                    f"  {what} {record[f'{what}_ms']:.0f} ms {record[f'{what}_ratio']:.2f} x"
                    for what in ("build", "load")
                    if f"{what}_ms" in record
                )
            )
        for name, reason in self.left_out.items():
            yield f"{self.network:20} {name:16} left out: {reason}"


def footprint(network: str, contenders: Sequence[str], kept: Path, rounds: int) -> Footprint:
    """Measure a network.

    Args:
        network: Its name.
        contenders: Who trains it, graphopt first.
        kept: A folder for exported networks and compiled kernels, which are not made anew.
        rounds: How often each has a turn.

    Raises:
        RuntimeError: The first contender failed.
    """
    folder = kept / network
    if not (folder / "batch.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        answer(".venv-field", kept, "export", network, str(folder), "")
    files: dict[str, dict[str, float]] = {}
    taken: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        workers = {}
        for name in contenders:
            environment, role, how = CONTENDERS[name]
            try:
                if role == "graphopt":
                    files[name] = answer(environment, kept, "build", network, str(folder), how)
                worker = stack.enter_context(_worker(environment, kept, role, network, folder, how))
                taken[name] = worker.answer()
            except RuntimeError as error:
                if name == contenders[0]:
                    raise
                left_out[name] = str(error)
                continue
            workers[name] = worker
        steps: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                time.sleep(_PAUSE_S)
                count = min(math.ceil(_TURN_MS / taken[name]["step"]), _MOST_STEPS)
                # The first step after the others' wakes the threads.
                steps[name] += worker.run(count + 1)[1:]
        for name in files:
            trained(folder, CONTENDERS[name].how).unlink(missing_ok=True)
    return Footprint(network, files, taken, steps, left_out)


def main() -> int:
    """Measure all that is asked for, print it; how many networks could not be measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kept", type=Path, default=_KEPT, help="what is made once, kept there")
    parser.add_argument("--output", type=Path, default=_ROOT / "bench", help="for the results")
    asked = parser.parse_args()
    failed = 0
    for network in asked.networks:
        try:
            measured = footprint(network, asked.contenders, asked.kept, asked.rounds)
        except (RuntimeError, OSError) as error:
            failed += 1
            print(f"{network:20} {error}", flush=True)
            continue
        for line in measured.lines():
            print(line, flush=True)
        sized.put(asked.output, measured.records())
    return failed


NETWORKS = (
    *("resnet18", "resnet50", "mobilenet_v3_large", "efficientnet_b0", "convnext_atto"),
    *("vit_tiny", "bert", "llama", "unet", "lstm_256"),
)
"""What is measured if nothing is asked for: the names of `footprint_networks.NETWORKS`."""


@contextmanager
def _worker(
    environment: str, kept: Path, role: str, network: str, folder: Path, how: str
) -> Iterator[Answering]:
    process = subprocess.Popen(
        _command(environment, role, network, str(folder), how),
        cwd=_ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(kept),
    )
    try:
        yield Answering(process, f"'{role}'")
    finally:
        process.communicate()


def answer(environment: str, kept: Path, *words: str) -> dict[str, float]:
    """What a role of `tools.bench.footprint_roles` answers, in the Python of an environment.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(
        _command(environment, *words),
        cwd=_ROOT,
        text=True,
        stdout=subprocess.PIPE,
        check=False,
        env=_environment(kept),
    )
    lines = [] if done.returncode else done.stdout.splitlines()
    found: dict[str, float] = parsed(lines[-1] if lines else "", f"'{words[0]}'")
    return found


def _command(environment: str, *words: str) -> list[str]:
    python = _ROOT / environment / "bin" / "python"
    return [str(python), "-m", "tools.bench.footprint_roles", *words]


def _environment(kept: Path) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(_ROOT)}
    # PyTorch's compiler keeps what it has compiled, here.
    return {**os.environ, **own, "TORCHINDUCTOR_CACHE_DIR": str((kept / "inductor").resolve())}


if __name__ == "__main__":
    sys.exit(main())
