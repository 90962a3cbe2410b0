"""What measures a GPU, as far as a CPU goes."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from tests.helpers.environments import PROVIDERS
from tools import device_code
from tools.gpu import __main__ as command
from tools.gpu.records import print_records, read_records
from tools.gpu.timing import Steps, milliseconds

pytestmark = pytest.mark.any_runtime


@pytest.mark.skipif("CUDAExecutionProvider" in PROVIDERS, reason="there may be a GPU")
def test_without_a_gpu_each_part_says_that_it_has_not_run(tmp_path):
    output = tmp_path / "gpu.json"
    parts = [part for part in command.PARTS if part not in command.ANYWHERE]
    result = CliRunner().invoke(command.app, [*parts, "--output", str(output)])
    assert result.exit_code == 0
    assert not output.exists()
    for part in parts:
        assert f"== {part}: NOT RUN: this ONNX Runtime has no CUDA" in result.output


def test_an_unknown_part():
    result = CliRunner().invoke(command.app, ["everything"])
    assert result.exit_code == 2
    assert "got 'everything'" in result.output


def test_records_survive_what_else_is_printed(capsys):
    records = [{"case": "a", "ms": 1.5}, {"case": "b", "left_out": "no"}]
    print("a warning")
    print_records(records)
    print("RECOR")
    assert read_records(capsys.readouterr().out) == records


def test_steps_are_timed_with_what_finishes_them():
    calls = []
    steps = Steps(lambda: calls.append("start"), lambda: calls.append("wait"))
    assert 0 < milliseconds(steps, warm_up=2, seconds=1e-5) < 1000
    assert calls[:3] == ["start", "start", "wait"]
    assert calls[-1] == "wait"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="NOT RUN: there is no nvcc")
def test_the_device_code_is_that_of_the_source():
    stored = device_code.TARGET.read_text()
    if device_code.compiler() not in stored:
        pytest.skip("NOT RUN: another nvcc writes other code of the same meaning")
    assert device_code.compiled() == stored


def test_what_was_measured_is_what_the_page_says():
    root = device_code.KERNELS.parents[1]
    page = (root / "docs" / "gpu.md").read_text()
    results = json.loads((root / "bench" / "gpu.json").read_text())
    for record in results["updates"]:
        if record.get("contender", "").startswith(("graphopt", "torch foreach")):
            assert f"{record['ms']:.3f}" in page, record
    for record in results["steps"]:
        if (record["network"], record["contender"]) != ("vit_b_16", "torch, TF32"):
            assert f"{record['ms']:.1f}" in page, record
