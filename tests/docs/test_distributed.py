"""The guide to several processes: its commands run, its table is what the tool computes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import checkpoint
from graphopt.examples import digits, digits_cnn
from tests.helpers.documents import blocks, broken_links
from tests.helpers.folders import DOCS, ROOT
from tools.bench.link_cost import table

pytestmark = pytest.mark.any_runtime

GUIDE = DOCS / "distributed.md"
TEXT = GUIDE.read_text(encoding="utf-8")


def run(command):
    binaries = Path(sys.executable).parent
    path = os.pathsep.join([str(binaries), os.environ["PATH"]])
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [binaries / command[0], *command[1:]],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.exhaustive
def test_commands_and_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graphopt.training_graph(model, "cross_entropy", optimizer).save("train.onnx")
    train = digits.load().train
    np.savez("digits.npz", x=train.x[:320], labels=train.labels[:320])
    (by_mpi, by_torch) = (
        shlex.split(line)
        for block in blocks("console", TEXT)
        for line in block.splitlines()
        if not line.startswith("pip")
    )
    run(by_mpi)
    assert checkpoint.in_folder(Path("run"))[-1].name == checkpoint.name_at(10)
    run(by_torch)
    assert checkpoint.in_folder(Path("run"))[-1].name == checkpoint.name_at(20)
    (snippet,) = blocks("python", TEXT)
    Path("snippet.py").write_text(snippet, encoding="utf-8")
    run(["mpiexec", "-n", "2", sys.executable, "snippet.py"])
    assert checkpoint.read("state.safetensors")["global_step"] == 3


def test_the_table_of_costs_is_what_the_tool_computes():
    for row in table():
        assert f"{row}\n" in TEXT


def test_links():
    assert broken_links(GUIDE) == []
