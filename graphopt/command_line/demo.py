"""``graphopt demo``: what there is to try with comes with the package, and so the first minute."""

import contextlib
import shlex
import shutil
from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer

from graphopt.command_line import javascript
from graphopt.examples import digits, digits_cnn

COMMANDS = (
    "build model.onnx --loss cross_entropy --learning-rate 0.004 -o train.onnx",
    "train train.onnx --data digits.npz --epochs 10 --checkpoint run",
    "evaluate train.onnx --checkpoint run --data test.npz",
    "export train.onnx --checkpoint run -o trained.onnx",
)


def demo(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A new folder for all files.")
    ] = Path("graphopt-demo"),
    javascript_too: Annotated[
        bool,
        typer.Option(
            "--javascript", help="Write the programs and pages that train in JavaScript instead."
        ),
    ] = False,
) -> None:
    """Train a network on handwritten digits, which come along, and say how."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"'{folder}' has files already: give a new folder, graphopt demo FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    if javascript_too:
        with resources.as_file(resources.files("graphopt.examples") / "javascript") as programs:
            shutil.copytree(programs, folder, dirs_exist_ok=True)
        javascript.main(folder / "build")
        typer.echo(f"what to do with the programs stands in {folder / 'README.md'}")
        return
    data = digits.load()
    onnx.save(digits_cnn.build(), folder / "model.onnx")
    np.savez(folder / "digits.npz", **data.train._asdict())
    np.savez(folder / "test.npz", **data.test._asdict())
    typer.echo(f"wrote a network and handwritten digits\n$ cd {folder}")
    with contextlib.chdir(folder):
        for command in COMMANDS:
            typer.echo(f"$ graphopt {command}")
            context.find_root().command.main(shlex.split(command), standalone_mode=False)
    typer.echo("look into it: graphopt inspect train.onnx --html train.html")
