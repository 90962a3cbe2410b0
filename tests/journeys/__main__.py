"""Plays what new users do, from an empty folder, with the wheel: ``python -m tests.journeys``.

Each journey has a folder and an environment of its own, in which nothing is but what its commands
install. What it runs are the commands and the snippets of the pages. It prints how many commands
each takes, and how many minutes on this machine, and ends with 1 if one fails.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers import chromium, node, pages
from tests.helpers.documents import blocks
from tests.helpers.folders import DOCS, ROOT

EXPORT = "graphopt export build/train.onnx -o trained.onnx --checkpoint"
PYTORCH = "the-pytorch-of-the-tests.txt"  # others may bring gigabytes for GPUs
HARNESS = ROOT / "tests" / "examples" / "javascript" / "harness.html"


@dataclass
class Journey:
    """A user at a prompt in an empty folder.

    Attributes:
        folder: Where it begins.
        wheel: What is to be installed.
        commands: What was run so far.
    """

    folder: Path
    wheel: Path
    commands: list[str] = field(default_factory=list)

    def run(self, command: str, folder: str = ".", shown: str | None = None) -> str:
        """What a command of the shell says, which must succeed."""
        self.commands.append(shown or command)
        print(f"  $ {self.commands[-1]}", flush=True)
        inside = {"HOME": str(self.folder), "PIP_CONSTRAINT": str(self.folder.parent / PYTORCH)}
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        path = f"{self.folder / 'env' / 'bin'}{os.pathsep}{node.search_path()}"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder / folder,
            env=kept | inside | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
        return done.stdout

    def install(self, extras: str) -> None:
        """Make the environment, and put graphopt into it."""
        self.run(f"'{sys.executable}' -m venv env", shown="python -m venv env")
        what = f"graphopt[{extras}]"
        self.run(
            f"pip install --quiet '{what} @ {self.wheel.as_uri()}'", shown=f"pip install '{what}'"
        )

    def python(self, page: str, heading: str | None = None) -> None:
        """The snippets of a page, or of a part of it, as one program."""
        text = _text(page, heading)
        program = self.folder / f"{page}.py"
        program.write_text("\n".join(blocks("python", text)), encoding="utf-8")
        said = self.run(f"python {program.name}").splitlines()
        assert "False" not in said, said

    def console(self, page: str, heading: str) -> None:
        """The commands of a part of a page."""
        for block in blocks("console", _text(page, heading)):
            for command in block.splitlines():
                self.run(command.partition(" # ")[0].strip())


def _text(page: str, heading: str | None = None) -> str:
    """The text of a page, or of a part of it."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    if heading is None:
        return text
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def pytorch(user: Journey) -> None:
    """A module becomes a graph, which trains, and the module gets what was trained."""
    user.install("runtime,torch")
    user.python("first_steps", "From a PyTorch module")
    user.python("tutorial_export")


def onnx(user: Journey) -> None:
    """An ONNX file becomes a graph, by the demo, in Python, and on the command line."""
    user.install("runtime")
    assert "accuracy: 0.9" in user.run("graphopt demo")
    user.python("first_steps", "From an ONNX file")
    shutil.copy(user.folder / "graphopt-demo" / "digits.npz", user.folder)
    *_, block = blocks("console", _text("first_steps"))
    for command in block.splitlines():
        user.run(command)
    assert (user.folder / "trained.onnx").is_file()


def device_in_python(user: Journey) -> None:
    """The server's graph and state train in a program without graphopt, and come back."""
    user.install("runtime")
    user.python("tutorial_device")
    assert (user.folder / "device.safetensors").is_file()


def device_in_node(user: Journey) -> None:
    """The programs in JavaScript train in Node, and Python exports what they learned."""
    node.executable()
    user.install("runtime")
    _javascript(user)
    said = user.run("node node.mjs 2", folder="javascript")
    assert "test accuracy" in said
    user.run(f"{EXPORT} build/checkpoint.safetensors", folder="javascript")


def device_in_a_browser(user: Journey) -> None:
    """A page trains in Chromium."""
    chromium.program()
    user.install("runtime")
    folder = _javascript(user)
    shutil.copy(HARNESS, folder)
    home = user.folder / "home"
    home.mkdir()
    user.commands.append("python -m http.server --bind 127.0.0.1")
    with (
        pages.served(folder) as (address, sent),
        chromium.opened(f"{address}/harness.html?page=index.html", home),
    ):
        checkpoint, seen = (sent.get(timeout=300)[1] for _ in range(2))
    assert b"trained" in seen, seen
    (folder / "checkpoint.safetensors").write_bytes(checkpoint)
    user.run(f"{EXPORT} checkpoint.safetensors", folder="javascript")


def _javascript(user: Journey) -> Path:
    """The programs, and the packages that they need: those that the tests have installed."""
    user.run("graphopt demo javascript --javascript")
    folder = user.folder / "javascript"
    (folder / "node_modules").symlink_to(node.packages())
    user.commands.append("npm ci --ignore-scripts")
    return folder


def colleague(user: Journey) -> None:
    """Somebody's graph is looked into, verified, compared and profiled."""
    user.install("runtime")
    user.python("tutorial_colleague")
    for heading in ("What is it?", "Is it true?", "What did the colleague change?", "Train it"):
        user.console("tutorial_colleague", heading)
    assert (user.folder / "train.html").is_file()


JOURNEYS: dict[str, Callable[[Journey], None]] = {
    "from PyTorch": pytorch,
    "from an ONNX file": onnx,
    "a device, in Python": device_in_python,
    "a device, in Node": device_in_node,
    "a device, in a browser": device_in_a_browser,
    "a colleague's graph": colleague,
}


def main() -> int:
    """Plays the journeys that are named, or all."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={root}"]
        subprocess.run([*pip, str(ROOT)], check=True)
        (wheel,) = root.glob("*.whl")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        torch = [name for name in project["optional-dependencies"]["test"] if "torch" in name]
        (root / PYTORCH).write_text("\n".join(torch), encoding="utf-8")
        rows = [_play(title, root, wheel) for title in sys.argv[1:] or JOURNEYS]
    print(f"\n{'':24}{'commands':>10}{'minutes':>10}")
    for title, commands, minutes, result in rows:
        print(f"{title:24}{commands:10}{minutes:10.1f}  {result}")
    failed = sum(result.startswith("FAILED") for *_, result in rows)
    print(f"\n{len(rows) - failed} passed, {failed} failed")
    return min(failed, 1)


def _play(title: str, root: Path, wheel: Path) -> tuple[str, int, float, str]:
    print(f"\n{title}", flush=True)
    folder = root / title.replace(" ", "-").replace(",", "").replace("'", "")
    folder.mkdir()
    user = Journey(folder, wheel)
    start = time.perf_counter()
    try:
        JOURNEYS[title](user)
        result = ""
    except pytest.skip.Exception as reason:
        result = str(reason)
    except AssertionError as error:
        print(error)
        result = "FAILED"
    minutes = (time.perf_counter() - start) / 60
    shutil.rmtree(folder)  # an environment with PyTorch is large
    return title, len(user.commands), minutes, result


if __name__ == "__main__":
    sys.exit(main())
