"""The benchmark measures what it says; how fast anything is, no test asserts."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools.bench import __main__ as command, contenders, measure

pytestmark = pytest.mark.any_runtime
ROOT = Path(__file__).parent.parent


@pytest.fixture
def _here(monkeypatch):
    """Everyone runs in the environment of the tests."""
    here = {
        name: replace(contender, environment=sys.prefix)
        for name, contender in contenders.CONTENDERS.items()
    }
    monkeypatch.setattr(measure, "CONTENDERS", here)


@pytest.mark.usefixtures("_here")
def test_results(tmp_path):
    output = tmp_path / "bench" / "results.json"
    arguments = ["--models", "mlp", "--threads", "1", "--rounds", "2", "--output", str(output)]
    arguments += ["--contenders", "graphopt", "--contenders", "pytorch"]
    done = CliRunner().invoke(command.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    first, second = json.loads(output.read_text())
    assert first.keys() == {"case", "contender", "median_ms", "spread_ms", "threads", "ratio"}
    assert (first["case"], first["contender"], first["threads"]) == ("step/mlp", "graphopt", 1)
    assert first["ratio"] == 1
    assert second["contender"] == "pytorch"
    assert second["ratio"] == pytest.approx(first["median_ms"] / second["median_ms"], rel=0.01)
    assert "step/mlp" in done.stdout


@pytest.mark.usefixtures("_here")
def test_a_contender_that_fails_is_named():
    with pytest.raises(RuntimeError, match="graphopt in step/nothing failed"):
        measure.measure("step/nothing", ["graphopt"], 1, root=ROOT, rounds=1)
