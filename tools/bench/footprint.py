"""What training steps hold, and how long they take: ``python -m tools.bench.footprint``.

With words as arguments, the networks that are called so; ``--memory low`` measures graphs that were
built with it, ``--kept FOLDER`` keeps exported networks, ``--json FILE`` writes what has been
measured, ``--rounds`` says how often each has a turn. Each measurement runs in a process of its
own, and counts what is resident beyond what was, with all libraries loaded: a graph is built in
one process, runs in another, and PyTorch trains in a third. The last two take turns where times
are taken. A network that fails does not lose the others.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.memory import resident

_ROOT = Path(__file__).parents[2]
_STEPS = 5
_MIB = 2**20
_THREADS = 2


@dataclass(frozen=True)
class Footprint:
    """What was measured of a network, in MiB and milliseconds.

    Attributes:
        network: Its name.
        file: The size of the training graph's file.
        state: The size of parameters and optimizer states.
        build_peak: The peak while the training graph is built and written.
        load_peak: The peak while a session of the file is made.
        held: What is resident before the first step.
        peak: The peak of steps.
        torch_peak: That of PyTorch.
        step: The median of a step.
        torch_step: That of PyTorch.
    """

    network: str
    file: float
    state: float
    build_peak: float
    load_peak: float
    held: float
    peak: float
    torch_peak: float
    step: float
    torch_step: float

    def records(self) -> list[dict[str, Any]]:
        """A record of graphopt and one of PyTorch, as in ``results.json``, with the memory."""
        measured = {
            "graphopt": (self.step, self.peak),
            "pytorch": (self.torch_step, self.torch_peak),
        }
        return [
            {
                "case": f"step/{self.network}",
                "contender": contender,
                "median_ms": round(step, 4),
                "threads": _THREADS,
                "ratio": round(self.step / step, 3),
                "peak_mib": round(peak, 1),
                "memory_ratio": round(self.peak / peak, 3),
            }
            for contender, (step, peak) in measured.items()
        ]

    def line(self) -> str:
        """For people, ratios first."""
        both = self.file + self.state
        return (
            f"{self.network:20} memory {self.peak / self.torch_peak:5.2f} "
            f"({self.peak:6.0f} / {self.torch_peak:6.0f} MiB)  "
            f"time {self.step / self.torch_step:5.2f} "
            f"({self.step:7.1f} / {self.torch_step:7.1f} ms)  "
            f"build {self.build_peak / both:5.2f} load {self.load_peak / both:5.2f} "
            f"of file + state ({self.file:.0f} + {self.state:.0f} MiB), held {self.held:.0f} MiB"
        )


def footprint(network: str, memory: str, kept: Path, rounds: int) -> Footprint:
    """Measure a network.

    Args:
        network: Its name.
        memory: As `graphopt.training_graph` takes it.
        kept: A folder for exported networks, which are not exported anew.
        rounds: How often each has a turn.

    Raises:
        RuntimeError: One of the processes failed.
    """
    folder = str(kept / network)
    if not (kept / network / "batch.npz").exists():
        (kept / network).mkdir(parents=True, exist_ok=True)
        _answer(".venv-field", "export", network, folder, memory)
    build = _answer(".venv", "build", network, folder, memory)
    with (
        _worker(".venv", "graphopt", network, folder, memory) as (ours, run_ours),
        _worker(".venv-field", "torch", network, folder, memory) as (theirs, run_theirs),
    ):
        times = [(run_ours(), run_theirs()) for _ in range(rounds)]
    own, other = zip(*times, strict=True)
    return Footprint(
        network,
        **build,
        **ours,
        torch_peak=theirs["peak"],
        step=statistics.median(own),
        torch_step=statistics.median(other),
    )


def main() -> int:
    """Measure all that is asked for, print a line of each; how many could not be measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=_NAMES)
    parser.add_argument("--memory", default="fast")
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    failed, records = 0, []
    with tempfile.TemporaryDirectory() as folder:
        kept = asked.kept or Path(folder)
        for network in asked.networks:
            try:
                measured = footprint(network, asked.memory, kept, asked.rounds)
            except (RuntimeError, OSError) as error:
                failed += 1
                print(f"{network:20} {error}", flush=True)
                continue
            print(measured.line(), flush=True)
            records += measured.records()
            if asked.json:
                asked.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return failed


_NAMES = (
    "resnet50", "vit_tiny", "bert", "llama", "convnext_atto", "mobilenet_v3_large", "unet", "lstm",
)  # fmt: skip


def _export(network: str, folder: Path, _: str) -> None:
    import onnx_ir as ir

    import graphopt.torch
    from tools.bench.footprint_networks import made

    module, x, labels = made(network)
    model = graphopt.torch.export(module, (x,), input_names=["x"])
    ir.save(model, folder / "forward.onnx")
    np.savez(folder / "batch.npz", x=x.numpy(), labels=labels.numpy())
    print(json.dumps({}))


def _build(_: str, folder: Path, memory: Any) -> None:
    import graphopt

    path = folder / "forward.onnx"
    _small_graph()
    before = _from_here()
    optimizer = graphopt.RMSProp(graphopt.parameters(path), 1e-4, epsilon=1e-3)
    graph = graphopt.training_graph(path, "cross_entropy", optimizer, memory=memory)
    graph.save(folder / "train.onnx")
    peak = _mebibytes("VmHWM") - before
    state = sum(
        int(np.prod(value.shape, dtype=np.int64)) * np.dtype(value.dtype).itemsize
        for value in graph.carried
    )
    size = (folder / "train.onnx").stat().st_size
    print(json.dumps({"build_peak": peak, "file": size / _MIB, "state": state / _MIB}))


def _graphopt(_: str, folder: Path, __: str) -> None:
    import onnxruntime

    import graphopt
    from graphopt import _runtime

    feeds = dict(np.load(folder / "batch.npz"))
    small = {"x": np.ones((1, 2), np.float32), "labels": np.ones((1, 1), np.float32)}
    graphopt.Session(_small_graph()).step(small)
    before = _from_here()
    options = _runtime.session_options(onnxruntime)
    options.intra_op_num_threads = _THREADS
    session = graphopt.Session(folder / "train.onnx", session_options=options)
    sizes = {"load_peak": _mebibytes("VmHWM") - before, "held": _mebibytes("VmRSS") - before}
    _serve(lambda: session.step(feeds)["loss"], before, sizes)


def _torch(network: str, _: Path, __: str) -> None:
    import torch

    from tools.bench.footprint_networks import made

    torch.set_num_threads(_THREADS)
    small = torch.nn.Conv2d(1, 1, 1)
    small(torch.ones(1, 1, 2, 2)).sum().backward()
    torch.optim.RMSprop(small.parameters()).step()
    made("lstm")  # imports what makes networks
    before = _from_here()
    module, x, labels = made(network)
    optimizer = torch.optim.RMSprop(module.parameters(), 1e-4, alpha=0.9, eps=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss: Any = torch.nn.functional.cross_entropy(module(x), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    _serve(step, before, {})


def _serve(step: Callable[[], Any], before: float, sizes: dict[str, float]) -> None:
    """Say what the steps take; then, for each line that comes, the milliseconds of some."""
    _from_here()
    for _ in range(_STEPS):
        loss = float(step())
    print(f"loss after {_STEPS} steps: {loss:.6f}", file=sys.stderr)
    print(json.dumps({**sizes, "peak": _mebibytes("VmHWM") - before}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        for _ in range(_STEPS):
            step()
        print(json.dumps((time.perf_counter() - begin) * 1e3 / _STEPS), flush=True)


def _small_graph() -> Any:
    """A graph of which making and running loads all that a library loads once."""
    import onnx

    import graphopt

    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        linear (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul(x, w) }""")
    return graphopt.training_graph(model, "mse", graphopt.RMSProp(graphopt.parameters(model)))


@contextmanager
def _worker(
    environment: str, *words: str
) -> Iterator[tuple[dict[str, float], Callable[[], float]]]:
    """A process that trains: what it takes, and what runs some steps and gives their time."""
    process = subprocess.Popen(
        _command(environment, words),
        cwd=_ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers = process.stdout

    def run() -> float:
        print("go", file=process.stdin, flush=True)
        return float(_parsed(answers.readline(), words))

    try:
        yield _parsed(answers.readline(), words), run
    finally:
        process.communicate()


def _answer(environment: str, *words: str) -> dict[str, float]:
    done = subprocess.run(
        _command(environment, words),
        cwd=_ROOT,
        text=True,
        stdout=subprocess.PIPE,
        check=False,
        env=_environment(),
    )
    answer: dict[str, float] = _parsed(
        "" if done.returncode else done.stdout.splitlines()[-1], words
    )
    return answer


def _parsed(line: str, words: Sequence[str]) -> Any:
    """What a process has answered, if it did."""
    if not line:
        raise RuntimeError(f"'{words[0]}' failed, see above")
    return json.loads(line)


def _command(environment: str, words: Sequence[str]) -> list[str]:
    return [str(_ROOT / environment / "bin" / "python"), "-m", "tools.bench.footprint", *words]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(_THREADS), "PYTHONPATH": str(_ROOT)}


def _from_here() -> float:
    """What is resident, in MiB, from which the peak starts anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _mebibytes("VmRSS")


def _mebibytes(field: str) -> float:
    return resident(field) / 2**20


_ROLES = {"export": _export, "build": _build, "graphopt": _graphopt, "torch": _torch}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in _ROLES:
        role, network_name, folder_name, how = sys.argv[1:]
        _ROLES[role](network_name, Path(folder_name), how)
    else:
        sys.exit(main())
