"""The guide to the command line: its commands run, its tables are those of the schema."""

import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.configuration.example_file import table
from graphopt.configuration.schema import SECTIONS
from graphopt.examples import digits, digits_cnn
from tests.helpers.documents import blocks, broken_links, run
from tests.helpers.folders import DOCS

pytestmark = pytest.mark.any_runtime

GUIDE = DOCS / "command_line.md"
TEXT = GUIDE.read_text(encoding="utf-8")


def test_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(digits_cnn.build(), "model.onnx")
    train = digits.load().train
    np.savez("digits.npz", x=train.x[:320], labels=train.labels[:320])
    (written,) = blocks("toml", TEXT)
    Path("example.toml").write_text(written, encoding="utf-8")
    np.savez("held_out.npz", x=train.x[320:400], labels=train.labels[320:400])
    commands = [
        shlex.split(line, comments=True)
        for block in blocks("console", TEXT)
        for line in block.replace("\\\n", "").splitlines()
    ]
    run([command for command in commands if command])


@pytest.mark.parametrize("section", SECTIONS)
def test_tables_are_those_of_the_schema(section):
    assert f"### {section}\n" in TEXT
    assert table(SECTIONS[section]) in TEXT


def test_links():
    assert broken_links(GUIDE) == []
