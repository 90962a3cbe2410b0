"""Makes the pictures of the inspection in docs/: ``python -m tools.pictures``.

Needs Chromium: on the path, or named by ``CHROMIUM``.
"""

import io
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from rich.console import Console
from rich.terminal_theme import TerminalTheme

import graphopt
from graphopt.examples import digits_cnn
from graphopt.inspection import diff, diff_checkpoints, inspect_checkpoint
from graphopt.inspection.reading.read_model import read
from graphopt.inspection.show.graph_tables import graph_tables
from graphopt.inspection.show.page import (
    checkpoint_difference_page,
    checkpoint_page,
    difference_page,
    page,
)
from graphopt.schedules import CosineDecayLR, SequentialLR, WarmUpLR
from tools import many_parameters

_DOCS = Path(__file__).parent.parent / "docs"
_NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
_COLUMNS = 100
_DARK = TerminalTheme(
    (17, 20, 26),
    (220, 224, 230),
    [
        (60, 64, 72),
        (224, 108, 117),
        (152, 195, 121),
        (229, 192, 123),
        (97, 175, 239),
        (198, 120, 221),
        (86, 182, 194),
        (220, 224, 230),
    ],
)
_GRAPH_ALONE = """
const sections = [...document.querySelectorAll("main > section")];
for (const section of sections) section.hidden = section.id !== "graph";
"""
_CHOSEN = """
const row = (name, stage) => [...document.querySelectorAll(`.outline li.${stage}`)].find(
  (item) => item.querySelector(".label").textContent === name);
const select = document.querySelector(".tools select");
select.value = "flops";
select.dispatchEvent(new Event("change"));
row("conv2", "forward").click();
"""
_BESIDE = """
document.querySelector(".outline li.changed").click();
"""
_WINDOWS = [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")]
_HEIGHT = 900
_PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 16px 20px; background: {background}; color: {foreground}; }}
pre {{ font: 13px/1.35 "DejaVu Sans Mono", monospace; margin: 0; }}
{stylesheet}</style><pre>{code}</pre>"""


def main() -> None:
    """Inspect the digits network's training graph, and take pictures of what is shown."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.onnx"
        model = _training_graph()
        onnx.save(model, path)
        before = Path.cwd()
        os.chdir(folder)
        try:
            found = graphopt.inspect("train.onnx", steps=1000)
        finally:
            os.chdir(before)
        console = Console(width=_COLUMNS, record=True, file=io.StringIO(), force_terminal=True)
        for part in graph_tables(found):
            console.print(part)
        text = console.export_html(theme=_DARK, code_format=_PAGE)
        lines = text.count("\n")
        _picture(text, _DOCS / "inspect_terminal.png", 880, 40 + int(16.2 * lines))
        reading = read(model)
        html = page(found, reading)
        _picture(html, _DOCS / "inspect_page.png", 1280, 900)
        _picture(html, _DOCS / "inspect_graph.png", 1280, 900, _CHOSEN + _GRAPH_ALONE)
        session = graphopt.Session(model)
        session.save_checkpoint(Path(folder) / "start.safetensors")
        checkpoint = inspect_checkpoint(Path(folder) / "start.safetensors", found)
        html = checkpoint_page(replace(checkpoint, name="start.safetensors"))
        _picture(html, _DOCS / "inspect_checkpoint.png", 1280, 700)
        other = read(_training_graph(changed=True))
        sides = (graphopt.inspect(reading), reading), (graphopt.inspect(other), other)
        beside = difference_page(diff(sides[0][0], sides[1][0]), *sides)
        _picture(beside, _DOCS / "inspect_diff.png", 1280, 800, _BESIDE + _GRAPH_ALONE)
        _windows(page(found, reading), "inspect_windows_8")
        _windows(beside, "inspect_windows_diff")
        for blocks in (50, 250):
            _large(blocks, Path(folder))


def _large(blocks: int, folder: Path) -> None:
    """Pictures of a graph of four parameters a block, of its checkpoint, and of two of them."""
    model = many_parameters.training_graph(blocks)
    reading = read(model)
    parameters = 4 * blocks
    html = page(graphopt.inspect(reading), reading)
    _windows(html, f"inspect_windows_{parameters}", _GRAPH_ALONE)
    if parameters < 1000:
        return
    session = graphopt.Session(model)
    paths = folder / "first.safetensors", folder / "second.safetensors"
    session.save_checkpoint(paths[0])
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    session.step({"x": x, "labels": np.arange(8)})
    session.save_checkpoint(paths[1])
    checkpoint = replace(inspect_checkpoint(paths[1]), name=paths[1].name)
    _windows(checkpoint_page(checkpoint), "inspect_windows_checkpoint")
    difference = replace(diff_checkpoints(*paths), names=(paths[0].name, paths[1].name))
    _windows(checkpoint_difference_page(difference), "inspect_windows_checkpoints")


def _windows(html: str, name: str, script: str = "") -> None:
    """A page as it is in wide and narrow windows, light and dark, beside each other."""
    images: list[Image.Image] = []
    with tempfile.TemporaryDirectory() as folder:
        for width, scheme in _WINDOWS:
            file = Path(folder) / "window.png"
            _picture(html, file, width, _HEIGHT, script, scheme)
            with Image.open(file) as picture:
                images.append(picture.convert("RGB").reduce(2))
    width = sum(image.width + 8 for image in images) - 8
    whole = Image.new("RGB", (width, _HEIGHT // 2), "gray")
    at = 0
    for image in images:
        whole.paste(image, (at, 0))
        at += image.width + 8
    whole.save(_DOCS / f"{name}.png")
    _reduced(_DOCS / f"{name}.png")


def _training_graph(*, changed: bool = False) -> onnx.ModelProto:
    model = digits_cnn.build()
    if changed:
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    parameters = graphopt.parameters(model)
    conv = parameters.matching("conv*")
    warm_up = SequentialLR([WarmUpLR(0.002, 100), CosineDecayLR(0.0, 0.002, 800)], [100])
    optimizer = graphopt.RMSProp(
        [
            {"params": conv, "weight_decay": 0.01, "grad_centralization": True},
            {"params": parameters.without(conv), "lr": warm_up},
        ],
        learning_rate=0.001,
        momentum=0.9,
        centered=True,
    )
    return graphopt.training_graph(model, "cross_entropy", optimizer).model


def _picture(
    text: str, target: Path, width: int, height: int, script: str = "", scheme: str = "light"
) -> None:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)))
    with tempfile.TemporaryDirectory() as folder:
        page_file = Path(folder) / "page.html"
        if script:  # of which the policy of the page would allow nothing
            text = text.replace("Content-Security-Policy", "none")
            text = text.replace("</body>", f"<script>{script}</script></body>")
        page_file.write_text(text, encoding="utf-8")
        subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
                f"--user-data-dir={folder}/profile",
                f"--window-size={width},{height}",
                f"--screenshot={target}",
                page_file.as_uri(),
            ],
            env={**os.environ, "HOME": folder, "XDG_CACHE_HOME": folder},
            check=True,
            capture_output=True,
            timeout=120,
        )
    _reduced(target)


def _reduced(target: Path) -> None:
    """Fewer colors, which nobody sees in a page, and so fewer bytes."""
    with Image.open(target) as image:
        image.convert("RGB").quantize(96, method=Image.Quantize.MEDIANCUT).save(
            target, optimize=True
        )


if __name__ == "__main__":
    main()
