"""The guide federated.md: its snippets, its commands, its table and its numbers."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from graphopt.examples import digits_cnn
from graphopt.federated import SessionClient
from tests.helpers.documents import blocks, check_snippets
from tests.helpers.folders import DOCS, ROOT
from tools import federated

pytestmark = pytest.mark.any_runtime

PAGE = (DOCS / "federated.md").read_text(encoding="utf-8")
APP = ROOT / "examples" / "flower"


@pytest.mark.quick
def test_snippets_without_flower(tmp_path, monkeypatch, capsys):
    """tests/federated runs those with Flower, where it is."""
    monkeypatch.chdir(tmp_path)
    first, second = blocks("python", PAGE)
    assert "flower" not in first
    assert "flower" in second
    check_snippets(f"```python\n{first}```\n", "federated.md", capsys)


def test_commands(tmp_path):
    """Flower's own takes a minute, with Ray: `make federated` gives it, and others with it."""
    (block,) = blocks("console", PAGE)
    folder, files, run = map(shlex.split, block.splitlines())
    assert folder == ["cd", str(APP.relative_to(ROOT))]
    program = [sys.executable, *files[1:-1], str(tmp_path / files[-1])]
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run(program, cwd=APP, env=environment, check=True, capture_output=True)
    made = {path.name for path in (tmp_path / "build").iterdir()}
    assert made == {"train.onnx", "device"}
    assert run == federated.command({"files": "build"})
    subprocess.run(["make", "federated", "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_the_table_and_the_picture_are_those_of_the_results(tmp_path):
    results = json.loads((ROOT / "bench" / "federated.json").read_text())
    mark = "<!-- made by make federated -->\n"
    assert PAGE.split(mark)[1] == federated.table(results)
    assert results.keys() == federated.RUNS.keys()
    federated.draw(results, tmp_path / "picture.png")
    for picture in (tmp_path / "picture.png", federated.PICTURE):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_rounds_and_means():
    results = {
        "one": {"0": [0.1] * 12 + [0.95] * 29, "1": [0.5] * 41},
        "two": {"0": [0.96] * 41, "1": [1.0] * 41},
    }
    assert federated.table(results).splitlines()[2:] == [
        "| one | 12, more than 40 | 30.0%, 72.5%, 72.5% |",
        "| two | 0, 0 | 98.0%, 98.0%, 98.0% |",
    ]


def test_the_numbers_of_the_digits(tmp_path):
    """As Flower packs an array: in NumPy's format, whose header takes 128 bytes."""
    sys.path.insert(0, str(APP))
    try:
        from digits_app import files
    finally:
        sys.path.remove(str(APP))
    files.write(tmp_path)
    values = SessionClient(tmp_path / "train.onnx").values
    assert sum(array.size for array in values.values()) == 13706
    assert values.keys() == {tensor.name for tensor in digits_cnn.build().graph.initializer}
    np.savez(tmp_path / "packed.npz", **values)
    head = {name: values[name] for name in files.HEAD}
    for part, said in ((values, "55,848 bytes"), (head, "2,856")):
        size = sum(128 + array.nbytes for array in part.values())
        assert f"{size:,}" in said
        assert said in PAGE
