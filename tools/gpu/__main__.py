"""The command: ``python -m tools.gpu``, for a short visit to a machine with a GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import typer

from graphopt import kernels
from tools.gpu.records import read_records

ROOT = Path(__file__).parents[2]
# In the order of what matters most: what is run, and the seconds that it may take.
PARTS = {
    "device": (["-m", "tools.gpu.device"], 30),
    "tests": (["-m", "pytest", "-q", "-p", "no:benchmark", "-n", "8", "tests/test_cuda.py"], 48),
    "updates": (["-m", "tools.gpu.updates"], 45),
    "steps": (["-m", "tools.gpu.steps"], 105),
    "placement": (["-m", "tools.gpu.placement"], 60),
}

# What runs on a CPU as far as it goes.
ANYWHERE = {"tests"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    parts: Annotated[list[str] | None, typer.Argument(help="Some of the parts; all.")] = None,
    output: Annotated[Path, typer.Option(help="Where the results go.")] = Path("bench/gpu.json"),
) -> None:
    """Prove and measure what CUDA does with graphopt's graphs."""
    results: dict[str, Any] = {}
    missing = _missing()
    for part in parts or PARTS:
        if part not in PARTS:
            raise typer.BadParameter(f"parts: got '{part}', expected some of {', '.join(PARTS)}")
        arguments, seconds = PARTS[part]
        if missing and part not in ANYWHERE:
            print(f"== {part}: NOT RUN: {missing}", flush=True)
            results[part] = [{"status": f"NOT RUN: {missing}"}]
            continue
        begin = time.perf_counter()
        print(f"== {part}", flush=True)
        text, status = _run(arguments, seconds)
        records = read_records(text)
        for record in records:
            print(json.dumps(record))
        if not records or status:
            print(text[-6000:])
        print(f"== {part}: {status or 'done'}, {time.perf_counter() - begin:.0f} s", flush=True)
        results[part] = records or [{"status": status, "end": text[-300:]}]
    if missing:
        print(f"{output} is left as it is")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")


def _missing() -> str:
    """What CUDA lacks here; empty if nothing."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA execution provider"
    return "" if kernels.has_cuda() else "there is no GPU, or no driver of it, or no kernels"


def _run(arguments: list[str], seconds: float) -> tuple[str, str]:
    """What a part printed, and how it failed."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    ) as process:
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            return text, f"ended after {seconds} s"
    return text, f"exit status {process.returncode}" if process.returncode else ""


if __name__ == "__main__":
    app()
