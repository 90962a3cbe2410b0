"""Damages files and looks what becomes of it.

``python -m tools.faults --inputs 1000 --keep finds`` damages files of every kind and gives them to
all that reads such. Each input is given to a process that may take 30 seconds and 2 GiB. What is
right: it is accepted, or refused by a ValueError or an OSError that names the file. Everything else
is a find, which is printed and kept. The same seed damages the same way.
"""

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from tools.faults.pool import outcomes_of


def main(
    inputs: Annotated[int, typer.Option(help="How many files to damage.")] = 200,
    first: Annotated[int, typer.Option(help="The number of the first, which is its seed.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    keep: Annotated[Path | None, typer.Option(help="A folder for what is found.")] = None,
    kind: Annotated[str, typer.Option(help="Only files whose name has this.")] = "",
) -> None:
    """Damage files of all kinds."""
    table: Counter[tuple[str, str]] = Counter()
    finds = 0
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, str(job)) for job in range(jobs)]
        numbers = [range(first + job, first + inputs, jobs) for job in range(jobs)]
        for folder, own in zip(folders, numbers, strict=True):
            folder.mkdir()
            for index, path, outcomes in outcomes_of(folder, own, kind):
                for call, outcome, message in outcomes:
                    table[call, outcome] += 1
                    if outcome not in ("accepted", "refused"):
                        finds += 1
                        print(f"{index} {path.name} {call}: {outcome} {message[:300]}", flush=True)
                        if keep is not None:
                            keep.mkdir(exist_ok=True)
                            target = f"{index}-{call.replace(' ', '-')}-{outcome.split()[0]}"
                            shutil.copy(path, keep / f"{target}-{path.name}")
    for (call, outcome), count in sorted(table.items()):
        print(f"{call:22} {outcome:24} {count:6}")
    print(f"{sum(table.values())} calls, {finds} finds")
    raise typer.Exit(min(finds, 1))


if __name__ == "__main__":
    typer.run(main)
