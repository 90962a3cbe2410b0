"""What ONNX Runtime's operators take alone, and PyTorch's: ``python -m tools.bench.alone``.

Where a step is no faster than PyTorch's, this says whether an operator is the limit. The products
and convolutions of a training graph run alone, with the shapes and attributes that they have in
it, beside PyTorch's function of the same arguments; they take turns, on two threads. It runs in
the environment of the networks from elsewhere (``make field``), which has both; the networks are
those of `footprint_networks`. Writes ``alone.json`` and ``alone.md``.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.alone_calls import Call, calls, in_onnxruntime, in_pytorch

_ROOT = Path(__file__).parents[2]
_THREADS = 2
_ROUNDS = 15
_PAUSE_S = 0.01  # the threads of the one before wait for work for a while, on the same cores
_SHOWN = 5
_TITLE = """# Operators alone

Products and convolutions of a step, each alone, in milliseconds of all that are alike, on two
threads: ONNX Runtime's operator, and PyTorch's function of the same arguments. Shown are those of
which ONNX Runtime's takes longer, the largest losses of each network first. A sum of all would say
nothing: gradients of weights are convolutions here that PyTorch itself never runs.
"""


@dataclass(frozen=True)
class Alone:
    """What a call takes alone, in milliseconds, and how often a step has it."""

    call: Call
    count: int
    onnxruntime: float
    pytorch: float


def measured(call: Call, count: int, threads: int = _THREADS, rounds: int = _ROUNDS) -> Alone:
    """Run a call alone, here and there in turns.

    Raises:
        ValueError: The two give different numbers.
    """
    random = np.random.default_rng(0)
    values = [random.standard_normal(shape).astype(np.float32) for shape in call.shapes]
    turns: dict[str, Callable[[], Any]] = {
        "onnxruntime": in_onnxruntime(call, values, threads),
        "pytorch": in_pytorch(call, values, threads),
    }
    got, expected = (np.asarray(run()) for run in turns.values())
    if not np.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        raise ValueError(f"{call}: ONNX Runtime and PyTorch give different numbers")
    times: dict[str, list[float]] = {who: [] for who in turns}
    for _ in range(rounds):
        for who, run in turns.items():
            time.sleep(_PAUSE_S)
            run()
            begin = time.perf_counter()
            run()
            times[who].append((time.perf_counter() - begin) * 1e3)
    return Alone(call, count, **{who: statistics.median(taken) for who, taken in times.items()})


def table(found: Mapping[str, Sequence[Alone]]) -> Iterator[str]:
    """A table in Markdown: of each network the calls that lose the most."""
    yield "| network | operators | ONNX Runtime | PyTorch | ratio |"
    yield "|---|---|---|---|---|"
    for network, every in found.items():
        slower = (one for one in every if one.onnxruntime > one.pytorch)
        worst = sorted(slower, key=lambda one: one.count * (one.pytorch - one.onnxruntime))
        for one in worst[:_SHOWN]:
            yield f"| {network} | {one.count} of {one.call} {_cells(one)}"


def save(found: Mapping[str, Sequence[Alone]], folder: Path) -> None:
    """Write the numbers, and the table of them."""
    records = {network: [asdict(one) for one in every] for network, every in found.items()}
    (folder / "alone.json").write_text(json.dumps(records) + "\n", encoding="utf-8")
    (folder / "alone.md").write_text("\n".join([_TITLE, *table(found), ""]), encoding="utf-8")


def _cells(one: Alone) -> str:
    ours, theirs = one.count * one.onnxruntime, one.count * one.pytorch
    return f"| {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |"


def _of_network(name: str) -> list[Alone]:
    from tools.bench.footprint_roles import build, export, trained

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export(name, folder, "")
        build(name, folder, "fast")
        feeds = dict(np.load(folder / "batch.npz"))
        found = calls(trained(folder, "fast"), feeds)
    return [measured(call, count) for call, count in found.items()]


def main() -> int:
    """Measure the networks that are asked for, and print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--output", type=Path, default=_ROOT / "bench", help="for the results")
    asked = parser.parse_args()
    found = {}
    for network in asked.networks:
        found[network] = _of_network(network)
        print("\n".join(table({network: found[network]})), flush=True)
    save(found, asked.output)
    return 0


NETWORKS = ("convnext_atto", "unet", "resnet18", "lstm_256", "bert")
"""What is measured if nothing is asked for: where a step is not clearly faster than PyTorch's."""

if __name__ == "__main__":
    sys.exit(main())
