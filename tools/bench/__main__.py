"""The command: ``python -m tools.bench``."""

import json
import os
import platform
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from models.zoo import ZOO
from tools.bench.contenders import CONTENDERS
from tools.bench.measure import Record, measure

ROOT = Path(__file__).parents[2]


app = typer.Typer(add_completion=False)


@app.command()
def main(
    models: Annotated[list[str] | None, typer.Option(help="Networks of the zoo; all.")] = None,
    contenders: Annotated[list[str] | None, typer.Option(help="Who is measured; all.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Numbers of threads; 1 and 2.")] = None,
    rounds: Annotated[int, typer.Option(help="How often everyone has a turn.")] = 15,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path(
        "bench/results.json"
    ),
) -> None:
    """Measure the training step of the zoo's networks; write a table and the results."""
    console = Console()
    records: list[Record] = []
    names = contenders or list(CONTENDERS)
    for count in threads or [1, 2]:
        for model in models or list(ZOO):
            console.print(f"step/{model}, {count} threads ...", style="dim")
            records += measure(f"step/{model}", names, count, root=ROOT, rounds=rounds)
    console.print(_table(records, names))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps([record.to_json() for record in records], indent=1) + "\n")


def _table(records: list[Record], names: list[str]) -> Table:
    """A row for each case: milliseconds, and how many times as long graphopt takes."""
    table = Table(title=f"{_machine()}; median milliseconds (graphopt's time over theirs)")
    table.add_column("case")
    table.add_column("threads", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    rows: dict[tuple[str, int], list[str]] = {}
    for record in records:
        text = f"{record.median_ms:.2f} ± {record.spread_ms:.2f}"
        if record.contender != names[0]:
            text += f" ({record.ratio:.2f})"
        rows.setdefault((record.case, record.threads), []).append(text)
    for (case, count), cells in rows.items():
        table.add_row(case, str(count), *cells)
    return table


def _machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores"


if __name__ == "__main__":
    app()
