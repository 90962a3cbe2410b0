"""Steps of several ranks beside PyTorch's: ``python -m tools.bench.parallel --help``.

Each network is trained with 1, 2 and 4 ranks of one thread, by graphopt with MPI and with gloo, and
by PyTorch's DistributedDataParallel with gloo, all with the same parts of the same batch; the last
two take turns in the same processes. Ranks are on one machine, or each in a network namespace of
its own, with a wire between them that is as slow as one says. What the wires give is measured too,
and what that says for more ranks is computed by `link_cost`. Records go to ``bench/parallel.json``.
It needs what ``make test`` and ``make field`` install, and for namespaces root, or
``unshare -rnm`` before it.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from graphopt.distributed import MESSAGE
from tools.bench.footprint import answer
from tools.bench.footprint_roles import graph_of, trained
from tools.bench.link_cost import COUNTS, Link, cost
from tools.bench.namespaces import INTERFACE, Place, Wire, namespaces
from tools.launchers import launcher

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "bench" / "parallel.json"
_OWN, _FIELD = ".venv", ".venv-field"

WIRES: dict[str, Wire | None] = {
    "loopback": None,
    "virtual": Wire(),
    "gigabit": Wire(1e9),
    "gigabit, 1 ms": Wire(1e9, 1e-3),
}
"""What joins the ranks; None: they are not in namespaces."""

# Between namespaces, MPICH would find that it is one machine, and go by its memory.
_MPI_BY_WIRE = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": INTERFACE}


@contextmanager
def places(ranks: int, wire: Wire | None) -> Iterator[list[Place]]:
    """Where the ranks run; none, where all are on the host itself."""
    if wire is None:
        yield []
        return
    with namespaces(ranks, wire) as made:
        yield made


def by_ranks(
    engine: str,
    ranks: int,
    role: str,
    *arguments: Any,
    at: Sequence[Place] = (),
    environment: str = _OWN,
) -> dict[str, Any]:
    """What rank 0 of so many answers.

    Args:
        engine: "mpi" or "torch".
        ranks: How many there are.
        role: What they do, of `tools.bench.parallel_roles`.
        arguments: Of the role.
        at: The places of the ranks; none: this machine.
        environment: Whose Python runs it.

    Raises:
        RuntimeError: A rank failed; the message has what it said.
    """
    python = _ROOT / environment / "bin" / "python"
    said = ["-m", "tools.bench.parallel_roles", role, engine, *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    with tempfile.TemporaryDirectory() as name:
        if engine == "mpi":
            starts = [
                ([*_mpiexec(ranks, python, at, Path(name)), *said], _MPI_BY_WIRE if at else {})
            ]
        else:
            starts = list(_by_gloo(ranks, [str(python), *said], at))
        with (Path(name) / "output").open("w+") as output:
            processes = [
                subprocess.Popen(
                    command, cwd=_ROOT, env=variables | more, stdout=output, stderr=output
                )
                for command, more in starts
            ]
            failed = [code for process in processes if (code := process.wait())]
            output.seek(0)
            text = output.read()
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if failed or not lines:
        raise RuntimeError(f"{' '.join(starts[0][0])}:\n{text}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _by_gloo(
    ranks: int, command: list[str], at: Sequence[Place]
) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The command of each rank, and the environment that torchrun would make."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    same = {"WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
    same |= {"MASTER_ADDR": at[0].address if at else "127.0.0.1"}
    same |= {"GLOO_SOCKET_IFNAME": INTERFACE if at else "lo"}
    for rank in range(ranks):
        here, local = (at[rank].prefix, ("0", "1")) if at else ([], (str(rank), str(ranks)))
        own = {"RANK": str(rank), "LOCAL_RANK": local[0], "LOCAL_WORLD_SIZE": local[1]}
        yield [*here, *command], same | own


def _mpiexec(ranks: int, python: Path, at: Sequence[Place], folder: Path) -> list[str]:
    """What starts ranks with MPICH's mpiexec, also where each has a place of its own."""
    command = launcher("mpi", ranks, python)
    if not at:
        return command
    # It takes the namespaces for hosts, which it enters by this in place of ssh.
    enter = folder / "enter"
    names = " ".join(f"{place.address}) name={place.name};;" for place in at)
    enter.write_text(
        '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\n'
        f'case $1 in {names} esac\nshift\nexec ip netns exec $name sh -c "$*"\n'
    )
    enter.chmod(0o755)
    hosts = ",".join(place.address for place in at)
    by = ["-launcher", "ssh", "-launcher-exec", str(enter), "-hosts", hosts]
    return [*at[0].prefix, command[0], *by, *command[1:]]


def _prepare(network: str, folder: Path) -> None:
    """Export a network, and build its training graph."""
    answer(_FIELD, folder, "export", network, str(folder), "")
    graph_of(folder, "fast").save(trained(folder, "fast"))


def measured(network: str, folder: Path, at: Sequence[Place], ranks: int, turns: int) -> Any:
    """The record of a network whose files are in the folder."""
    beside = by_ranks(
        *("torch", ranks, "beside", network, folder, turns), at=at, environment=_FIELD
    )
    return {
        "graphopt mpi": by_ranks("mpi", ranks, "graphopt", network, folder, turns, at=at),
        **beside,
    }


def line(record: Mapping[str, Any]) -> str:
    """What was measured, in one line."""

    def told(name: str, found: Mapping[str, Any]) -> str:
        sums = found.get("sums")
        share = "" if sums is None else f" (sums {100 * sums / found['seconds']:.0f} %)"
        seconds = f"{name} {1e3 * found['seconds']:.0f} ms{share}"
        if "ratio" not in found:
            return seconds
        least, most = min(found["ratios"]), max(found["ratios"])
        return f"{seconds} {found['ratio']:.2f} of DDP's ({least:.2f} to {most:.2f})"

    return ", ".join(told(*item) for item in record.items())


def predicted(seconds: Mapping[str, float], size: float, messages: int) -> str:
    """What a link between two ranks says for more of them."""
    link = Link.fitted({int(n): s for n, s in seconds.items()}, 2)
    times = [f"{k}: {1e3 * cost(link, size, messages, k):.1f}" for k in COUNTS]
    return (
        f"latency {1e6 * link.latency:.0f} us, {link.bandwidth / 1e9:.2f} GB/s; "
        f"ms of sums by ranks: {', '.join(times)}"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet18", "bert"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--wires", nargs="+", choices=list(WIRES), default=list(WIRES))
    parser.add_argument("--turns", type=int, default=5, help="of five steps each")
    parser.add_argument("--results", type=Path, default=_RESULTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which removes the namespaces
    records: dict[str, Any] = {"cores": os.cpu_count(), "wires": {}, "networks": {}}
    with tempfile.TemporaryDirectory() as name:
        for network in options.networks:
            (folder := Path(name, network)).mkdir()
            _prepare(network, folder)
        for wire, ranks in product(options.wires, options.ranks):
            if ranks == 1 and WIRES[wire] is not None:
                continue  # nothing passes a wire
            with places(ranks, WIRES[wire]) as at:
                if ranks > 1:
                    records["wires"].setdefault(wire, {})[str(ranks)] = {
                        engine: by_ranks(engine, ranks, "links", at=at)["seconds"]
                        for engine in ("mpi", "torch")
                    }
                for network in options.networks:
                    found = measured(network, Path(name, network), at, ranks, options.turns)
                    by_wire = records["networks"].setdefault(network, {})
                    by_wire.setdefault(wire, {})[str(ranks)] = found
                    print(f"{network}, {wire}, {ranks} ranks: {line(found)}", flush=True)
                    options.results.write_text(json.dumps(records, indent=1) + "\n", "utf-8")
    for wire, by_count in records["wires"].items():
        for network, by_wire in records["networks"].items():
            last = by_wire[wire][str(options.ranks[-1])]
            size = last["graphopt gloo, 1"]["bytes"]
            for engine, seconds in by_count.get("2", {}).items():
                said = predicted(seconds, size, max(1, size // MESSAGE))
                print(f"{network}, {wire}, {engine}: {said}", flush=True)


if __name__ == "__main__":
    main()
