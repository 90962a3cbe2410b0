"""Makes the pictures of the inspection in docs/: ``python -m tools.pictures``.

Needs Chromium: on the path, or named by ``CHROMIUM``.
"""

import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from rich.console import Console
from rich.terminal_theme import TerminalTheme

import graphopt
from graphopt.examples import digits_cnn
from graphopt.inspection.show.graph_tables import graph_tables
from graphopt.inspection.show.page import page
from graphopt.schedules import CosineDecayLR, SequentialLR, WarmUpLR

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
        _picture(page(found, ir.from_proto(model)), _DOCS / "inspect_page.png", 1400, 1750)


def _training_graph() -> onnx.ModelProto:
    model = digits_cnn.build()
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


def _picture(text: str, target: Path, width: int, height: int) -> None:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)))
    with tempfile.TemporaryDirectory() as folder:
        page_file = Path(folder) / "page.html"
        page_file.write_text(text, encoding="utf-8")
        subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--hide-scrollbars",
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


if __name__ == "__main__":
    main()
