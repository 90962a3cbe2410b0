"""Ten clients learn digits in Flower's simulation: ``python -m tools.federated``.

Writes ``bench/federated.json``, the table of docs/federated.md and its picture. It needs
``graphopt[flower]``, ``flwr[simulation]``, matplotlib and onnxruntime-training: `make federated`.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parent.parent
APP = ROOT / "examples" / "flower"
RESULTS = ROOT / "bench" / "federated.json"
PICTURE = ROOT / "docs" / "federated.png"
PAGE = ROOT / "docs" / "federated.md"
WANTED = 0.95
ROUNDS = 40
CLIENTS = 10

RUNS: dict[str, dict[str, Any]] = {
    "FedAvg": {"strategy": "FedAvg"},
    "FedAdam": {"strategy": "FedAdam", "learning-rate": 0.03},
    "FedRMSProp": {"strategy": "FedRMSProp", "learning-rate": 0.003, "momentum": 0.9},
    "FedRMSProp, two with the files for devices": {
        "strategy": "FedRMSProp",
        "learning-rate": 0.003,
        "momentum": 0.9,
        "on-devices": 2,
    },
}
"""What is compared: the best of rates that were tried on other shares of the data."""

Results = Mapping[str, Mapping[str, list[float]]]
"""The accuracies after each round, by run and seed."""


def main(
    seeds: Annotated[int, typer.Option(help="How many shares of the data.")] = 3,
    folder: Annotated[Path, typer.Option(help="For what is made.")] = ROOT / "build" / "federated",
) -> None:
    """Simulate, and write the table and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in RUNS}
    with simulation(folder) as environment:
        program = [sys.executable, "-m", "digits_app.files", str(folder)]
        subprocess.run(program, cwd=APP, env=environment, check=True)
        for seed in range(seeds):
            for name, settings in RUNS.items():
                accuracies = simulated(folder, {**settings, "seed": seed}, environment)
                found[name][str(seed)] = accuracies
                reached = first_round(accuracies)
                print(f"{name}, seed {seed}: {reached} rounds to {WANTED:.0%}", flush=True)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    report()


def report() -> None:
    """Write the table into the page, and the picture beside it."""
    found = json.loads(RESULTS.read_text())
    text, mark = PAGE.read_text(encoding="utf-8"), "<!-- made by make federated -->\n"
    before, _, after = text.split(mark)
    PAGE.write_text(f"{before}{mark}{table(found)}{mark}{after}", encoding="utf-8")
    draw(found)


def command(settings: Mapping[str, Any]) -> list[str]:
    """The command that simulates, as the guide has it."""
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
    clients = f"num-supernodes={CLIENTS}"
    return ["flwr", "run", ".", "--stream", "--federation-config", clients, "--run-config", config]


def simulated(
    folder: Path, settings: Mapping[str, Any], environment: Mapping[str, str]
) -> list[float]:
    """The accuracies before the first round and after each."""
    results = folder / "results.json"
    results.unlink(missing_ok=True)
    given = {"files": str(folder), "results": results.name, "rounds": ROUNDS, **settings}
    program = Path(sys.executable).with_name("flwr")
    done = subprocess.run(
        [str(program), *command(given)[1:]],
        cwd=APP,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if not results.exists():
        raise RuntimeError(f"the simulation failed: {done.stdout[-3000:]}{done.stderr[-1000:]}")
    accuracies: list[float] = json.loads(results.read_text())["accuracy"]
    return accuracies


@contextmanager
def simulation(folder: Path) -> Iterator[dict[str, str]]:
    """An environment in which Flower leaves nothing outside a folder, and no process behind."""
    home = folder / "flower"
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"FLWR_HOME": str(home), "PATH": programs, "OMP_NUM_THREADS": "1"}
    own |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        yield {**os.environ, **own}
    finally:
        for process in _superlinks(home):
            os.kill(process, signal.SIGTERM)


def _superlinks(home: Path) -> Iterator[int]:
    """The servers that `flwr run` has started and leaves running, whose files are in this home."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if any(word.startswith(f"{home}{os.sep}") for word in words):
            yield int(entry.parent.name)


def first_round(accuracies: list[float]) -> int | None:
    """The first round after which so many are recognized as are wanted."""
    return next((n for n, accuracy in enumerate(accuracies) if accuracy >= WANTED), None)


def table(results: Results) -> str:
    """Rounds to the wanted accuracy, and the accuracies, in Markdown."""
    seeds = list(next(iter(results.values())))
    lines = [
        f"| | rounds to {WANTED:.0%}, by seed | after 10, 20, {ROUNDS} rounds (mean) |",
        "|---|---|---|",
    ]
    for name, runs in results.items():
        rounds = [first_round(runs[seed]) for seed in seeds]
        reached = ", ".join(f"more than {ROUNDS}" if r is None else str(r) for r in rounds)
        means = [sum(runs[s][n] for s in seeds) / len(seeds) for n in (10, 20, ROUNDS)]
        lines.append(f"| {name} | {reached} | {', '.join(f'{m:.1%}' for m in means)} |")
    return "\n".join(lines) + "\n"


def draw(results: Results, path: Path = PICTURE) -> None:
    """The accuracy after each round: the mean of the seeds, and between which they are."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (name, runs), style in zip(results.items(), ("-", "-", "-", ":"), strict=True):
        columns = list(zip(*runs.values(), strict=True))
        means = [sum(column) / len(column) for column in columns]
        (line,) = axes.plot(means, style, label=name)
        axes.fill_between(
            range(len(means)),
            [min(column) for column in columns],
            [max(column) for column in columns],
            color=line.get_color(),
            alpha=0.12,
            linewidth=0,
        )
    axes.axhline(WANTED, color="gray", linewidth=0.8)
    axes.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1), xlim=(0, ROUNDS))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    typer.run(main)
