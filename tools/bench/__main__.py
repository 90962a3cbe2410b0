"""The command: ``python -m tools.bench``."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.bench.cases import is_update, matching
from tools.bench.contenders import CONTENDERS
from tools.bench.measure import measure
from tools.bench.report import Report

ROOT = Path(__file__).parents[2]
_UPDATE_THREADS, _STEP_THREADS = [2], [1, 2]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    cases: Annotated[
        list[str] | None, typer.Option(help="Patterns, such as 'update/*' or 'step/resnet'; all.")
    ] = None,
    contenders: Annotated[list[str] | None, typer.Option(help="Who is measured; all.")] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Numbers of threads; 2 for updates, 1 and 2 for steps.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="How often everyone has a turn.")] = 11,
    output: Annotated[Path, typer.Option(help="The folder for the results.")] = Path("bench"),
) -> None:
    """Measure updates and training steps of graphopt and its peers.

    Writes results.json, results.md and update.png; what is not measured does not stay in them.
    """
    console = Console()
    names = _checked_contenders(contenders or list(CONTENDERS))
    _check_threads(threads or [])
    report = Report()
    for case in _checked_cases(cases or ["*"]):
        able = [name for name in names if CONTENDERS[name].takes(case)]
        for count in threads or _default_threads(case):
            present = [name for name in able if name not in report.left_out]
            if not present:
                continue
            console.print(f"{case}, {count} threads ...", style="dim")
            measured = measure(case, present, count, root=ROOT, rounds=rounds)
            for name, reason in measured.left_out.items():
                console.print(f"left out: {name}: {reason}", style="yellow")
            report.add(measured)
    if not report.records:
        raise typer.BadParameter("none of the contenders can run any of the cases")
    for table in report.tables():
        console.print(table)
    report.save(output)
    console.print(f"results in {output}")


def _checked_cases(patterns: list[str]) -> list[str]:
    try:
        return matching(patterns)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _checked_contenders(names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise typer.BadParameter(
            f"contenders: got '{unknown[0]}', expected some of {', '.join(CONTENDERS)}"
        )
    return [name for name in CONTENDERS if name in names]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _check_threads(threads: list[int]) -> None:
    for count in threads:
        if not 1 <= count <= _cores():
            raise typer.BadParameter(
                f"threads: got {count}, expected 1 to {_cores()}, the cores of this machine"
            )


def _default_threads(case: str) -> list[int]:
    """As many as this machine has cores for."""
    usual = _UPDATE_THREADS if is_update(case) else _STEP_THREADS
    return sorted({min(count, _cores()) for count in usual})


if __name__ == "__main__":
    app()
